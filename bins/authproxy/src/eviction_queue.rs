//! A bounded queue that evicts its oldest entries.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// Entries in the order of arrival, with a value each. All threads share a queue.
#[derive(Debug)]
pub(crate) struct EvictionQueue<T> {
    entries: Mutex<QueueEntries<T>>,
    /// The largest weight of all entries together.
    max_weight: usize,
}

#[derive(Debug)]
struct QueueEntries<T> {
    next: u64,
    weight: usize,
    present: BTreeMap<u64, QueueEntry<T>>,
}

#[derive(Debug)]
struct QueueEntry<T> {
    value: T,
    weight: usize,
    /// Dropping it notifies the owner of the place of the eviction.
    _present: oneshot::Sender<()>,
}

/// A place in a queue. Dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct QueuePlace<'a, T> {
    queue: &'a EvictionQueue<T>,
    number: u64,
    evicted: oneshot::Receiver<()>,
}

impl<T> EvictionQueue<T> {
    pub(crate) const fn new(max_weight: usize) -> Self {
        let entries = QueueEntries {
            next: 0,
            weight: 0,
            present: BTreeMap::new(),
        };
        Self {
            entries: Mutex::new(entries),
            max_weight,
        }
    }

    /// Takes the newest place, with weight 0.
    pub(crate) fn enter(&self, value: T) -> QueuePlace<'_, T> {
        let (present, evicted) = oneshot::channel();
        let mut entries = self.entries();
        let number = entries.next;
        entries.next += 1;
        let entry = QueueEntry {
            value,
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

    /// Evicts the oldest entry, if there is one: its value is dropped, and the owner of its place notified.
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
    /// Swaps the value and sets its weight; returns false and does nothing after an eviction.
    pub(crate) fn swap(&self, other: &mut T, weight: usize) -> bool {
        let mut entries = self.queue.entries();
        let Some(entry) = entries.present.get_mut(&self.number) else {
            return false;
        };
        std::mem::swap(&mut entry.value, other);
        let before = std::mem::replace(&mut entry.weight, weight);
        entries.weight = entries.weight - before + weight;
        while entries.weight > self.queue.max_weight {
            entries.evict_oldest();
        }
        true
    }

    /// Ready once the place is evicted.
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
    fn oldest_remaining_place_is_evicted() {
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
    fn weight_above_maximum_evicts_oldest_and_drops_its_value() {
        let queue = EvictionQueue::new(10);
        let mut places: Vec<_> = (0..3).map(|_| queue.enter(Vec::new())).collect();
        let (first, second) = (vec![1; 4], vec![2; 5]);
        places[1].swap(&mut first.clone(), 4);
        places[0].swap(&mut second.clone(), 5);
        assert_eq!(queue.entries().weight, 9);
        // A new weight replaces the one before.
        let mut value = Vec::new();
        places[1].swap(&mut value, 0);
        assert_eq!((value.clone(), queue.entries().weight), (first, 5));
        places[1].swap(&mut value, 4);
        places[2].swap(&mut vec![3; 2], 2);
        let evicted: Vec<_> = places.iter_mut().map(is_evicted).collect();
        assert_eq!(
            (evicted, queue.entries().weight),
            (vec![true, false, false], 6)
        );
        // After its eviction a place keeps the value it swaps in.
        let mut late = second.clone();
        places[0].swap(&mut late, 5);
        assert_eq!((late, queue.entries().weight), (second, 6));
        drop(places);
        assert_eq!(queue.entries().weight, 0);
    }
}
