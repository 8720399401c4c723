//! What gives up its room when others need it, the oldest first.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// QueueEntries in the order in which they came, and what they hold. All threads share a queue.
#[derive(Debug)]
pub(crate) struct EvictionQueue<T> {
    entries: Mutex<QueueEntries<T>>,
    /// How much all entries may weigh.
    limit: usize,
}

#[derive(Debug)]
struct QueueEntries<T> {
    next: u64,
    weight: usize,
    present: BTreeMap<u64, QueueEntry<T>>,
}

#[derive(Debug)]
struct QueueEntry<T> {
    held: T,
    weight: usize,
    /// Dropping it tells the owner of the place that it is evicted.
    _present: oneshot::Sender<()>,
}

/// A place in a queue, which ends with it.
#[derive(Debug)]
pub(crate) struct QueuePlace<'a, T> {
    queue: &'a EvictionQueue<T>,
    number: u64,
    evicted: oneshot::Receiver<()>,
}

impl<T> EvictionQueue<T> {
    /// An empty queue. Beyond the limit it evicts.
    pub(crate) const fn new(limit: usize) -> Self {
        let entries = QueueEntries {
            next: 0,
            weight: 0,
            present: BTreeMap::new(),
        };
        Self {
            entries: Mutex::new(entries),
            limit,
        }
    }

    /// Takes the newest place, for something that weighs nothing yet.
    pub(crate) fn enter(&self, held: T) -> QueuePlace<'_, T> {
        let (present, evicted) = oneshot::channel();
        let mut entries = self.entries();
        let number = entries.next;
        entries.next += 1;
        let entry = QueueEntry {
            held,
            weight: 0,
            _present: present,
        };
        entries.present.insert(number, entry);
        QueuePlace {
            queue: self,
            number,
            evicted,
        }
    }

    /// Evicts the oldest entry, if there is one: what it holds is dropped, and the owner of its place is told.
    pub(crate) fn evict_oldest(&self) {
        self.entries().evict_oldest();
    }

    fn entries(&self) -> MutexGuard<'_, QueueEntries<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> QueueEntries<T> {
    fn evict_oldest(&mut self) {
        if let Some((_, entry)) = self.present.pop_first() {
            self.weight -= entry.weight;
        }
    }
}

impl<T> QueuePlace<'_, T> {
    /// Exchanges what the queue holds, which from now on weighs so much; false and nothing else after an eviction.
    pub(crate) fn swap(&self, other: &mut T, weight: usize) -> bool {
        let mut entries = self.queue.entries();
        let Some(entry) = entries.present.get_mut(&self.number) else {
            return false;
        };
        std::mem::swap(&mut entry.held, other);
        let before = std::mem::replace(&mut entry.weight, weight);
        entries.weight = entries.weight - before + weight;
        while entries.weight > self.queue.limit {
            entries.evict_oldest();
        }
        true
    }

    /// Ready when the place is evicted.
    pub(crate) fn poll_evicted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.evicted).poll(cx).map(|_| ())
    }
}

impl<T> Drop for QueuePlace<'_, T> {
    fn drop(&mut self) {
        let mut entries = self.queue.entries();
        if let Some(entry) = entries.present.remove(&self.number) {
            entries.weight -= entry.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn is_evicted<T>(place: &mut QueuePlace<'_, T>) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        place.poll_evicted(&mut cx).is_ready()
    }

    #[test]
    fn oldest_place_that_was_not_left_is_evicted() {
        let queue = EvictionQueue::new(0);
        let left = queue.enter(());
        let (mut oldest, mut newest) = (queue.enter(()), queue.enter(()));
        drop(left);
        queue.evict_oldest();
        assert!(is_evicted(&mut oldest) && !is_evicted(&mut newest));
        drop(oldest);
        queue.evict_oldest();
        assert!(is_evicted(&mut newest));
        drop(newest);
        assert!(queue.entries().present.is_empty());
    }

    #[test]
    fn weight_beyond_limit_evicts_oldest_and_drops_what_it_holds() {
        let queue = EvictionQueue::new(10);
        let mut places: Vec<_> = (0..3).map(|_| queue.enter(Vec::new())).collect();
        let (first, second) = (vec![1; 4], vec![2; 5]);
        places[1].swap(&mut first.clone(), 4);
        places[0].swap(&mut second.clone(), 5);
        assert_eq!(queue.entries().weight, 9);
        // A weight that changes replaces the one before.
        let mut held = Vec::new();
        places[1].swap(&mut held, 0);
        assert_eq!((held.clone(), queue.entries().weight), (first, 5));
        places[1].swap(&mut held, 4);
        places[2].swap(&mut vec![3; 2], 2);
        let evicted: Vec<_> = places.iter_mut().map(is_evicted).collect();
        assert_eq!(
            (evicted, queue.entries().weight),
            (vec![true, false, false], 6)
        );
        // What an evicted place still has is its own.
        let mut late = second.clone();
        places[0].swap(&mut late, 5);
        assert_eq!((late, queue.entries().weight), (second, 6));
        drop(places);
        assert_eq!(queue.entries().weight, 0);
    }
}
