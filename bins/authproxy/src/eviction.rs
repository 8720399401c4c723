//! What gives up its room when others need it, the oldest first.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Entries in the order in which they came. All threads share a queue.
#[derive(Debug, Default)]
pub(crate) struct EvictionQueue(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    /// Dropping a sender tells the owner of the place that it is evicted.
    present: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place in a queue, which ends with it.
#[derive(Debug)]
pub(crate) struct QueuePlace<'a> {
    queue: &'a EvictionQueue,
    number: u64,
    evicted: oneshot::Receiver<()>,
}

impl EvictionQueue {
    /// Takes the newest place.
    pub(crate) fn enter(&self) -> QueuePlace<'_> {
        let (present, evicted) = oneshot::channel();
        let mut entries = self.entries();
        let number = entries.next;
        entries.next += 1;
        entries.present.insert(number, present);
        QueuePlace {
            queue: self,
            number,
            evicted,
        }
    }

    /// Evicts the oldest, if there is one.
    pub(crate) fn evict_oldest(&self) {
        self.entries().present.pop_first();
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueuePlace<'_> {
    /// Waits until the place is evicted.
    pub(crate) async fn evicted(&mut self) {
        let _ = (&mut self.evicted).await;
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.queue.entries().present.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_place_that_was_not_left_is_evicted() {
        let queue = EvictionQueue::default();
        let left = queue.enter();
        let (mut oldest, mut newest) = (queue.enter(), queue.enter());
        drop(left);
        queue.evict_oldest();
        oldest.evicted().await;
        assert!(
            newest
                .evicted
                .try_recv()
                .is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
        );
        drop(oldest);
        queue.evict_oldest();
        newest.evicted().await;
        drop(newest);
        assert!(queue.entries().present.is_empty());
    }
}
