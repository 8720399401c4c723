//! Fair sharing of the upstream pool between API keys: admission, and the order of the queue.
//!
//! Pure: it counts, and returns the waker of the next request. Waiting and connections are the caller's.
//!
//! * A key may use as many connections as it likes, but a tenth of the pool is reserved for keys that hold less than a
//!   twentieth of it: a greedy key leaves room for those that need few.
//! * A free connection goes to the queued key that holds the fewest, and among equals to the one that has waited
//!   longest. Requests of one key are served in their order.
//! * The queue is as long as the pool is large. A key may fill half of it.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// One in this many connections is reserved.
const RESERVED_DIVISOR: usize = 10;
/// A key that holds less than one in this many may use the reserve.
const SMALL_DIVISOR: usize = 20;

/// A pool shared between keys `K`. `W` wakes a queued request.
#[derive(Debug)]
pub(super) struct FairPool<K, W> {
    size: usize,
    held: usize,
    waiting: usize,
    next_ticket: u64,
    /// Keys that hold connections or wait, and some recent ones: a returning key needs no allocation.
    keys: HashMap<K, KeyUsage<W>>,
}

#[derive(Debug)]
struct KeyUsage<W> {
    held: usize,
    queue: VecDeque<(QueueTicket, W)>,
}

impl<W> Default for KeyUsage<W> {
    fn default() -> Self {
        let queue = VecDeque::new();
        Self { held: 0, queue }
    }
}

/// The position of a queued request in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueTicket(u64);

/// The response to a request for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolAdmission {
    /// The request may use a connection, and has to release it.
    Granted,
    /// The request waits until its waker is returned. A wait that ends otherwise has to be cancelled.
    Queued(QueueTicket),
    /// The key already fills half of the queue.
    KeyQueueFull,
    QueueFull,
}

impl<K: Hash + Eq, W> FairPool<K, W> {
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            held: 0,
            waiting: 0,
            next_ticket: 0,
            keys: HashMap::new(),
        }
    }

    /// Requests a connection for a key. `waker` is called only if the request is queued.
    pub(super) fn acquire(&mut self, key: K, waker: impl FnOnce() -> W) -> PoolAdmission {
        let capacity = FreeCapacity::of(self);
        if self.keys.len() >= 2 * self.size && !self.keys.contains_key(&key) {
            self.remove_idle_keys();
        }
        let usage = self.keys.entry(key).or_default();
        // Queued requests would not fit either, so none is overtaken.
        if capacity.fits(usage.held) {
            usage.held += 1;
            self.held += 1;
            return PoolAdmission::Granted;
        }
        if usage.queue.len() >= self.size.div_ceil(2) {
            return PoolAdmission::KeyQueueFull;
        }
        if self.waiting >= self.size {
            return PoolAdmission::QueueFull;
        }
        let ticket = QueueTicket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting += 1;
        usage.queue.push_back((ticket, waker()));
        PoolAdmission::Queued(ticket)
    }

    /// Removes a request from the queue. Returns false if it was already granted a connection.
    pub(super) fn cancel(&mut self, key: &K, ticket: QueueTicket) -> bool {
        let Some(KeyUsage { queue, .. }) = self.keys.get_mut(key) else {
            return false;
        };
        // Tickets are in order.
        let Ok(at) = queue.binary_search_by_key(&ticket, |(ticket, _)| *ticket) else {
            return false;
        };
        queue.remove(at);
        release_memory(queue);
        self.waiting -= 1;
        true
    }

    /// Releases the connection of a request. Returns the waker of the request that gets it, if there is one.
    pub(super) fn release(&mut self, key: &K) -> Option<W> {
        if let Some(usage) = self.keys.get_mut(key) {
            usage.held -= 1;
            self.held -= 1;
        }
        if self.waiting == 0 {
            return None;
        }
        let capacity = FreeCapacity::of(self);
        let waiting = self.keys.values_mut().filter_map(|usage| {
            let (first, _) = usage.queue.front()?;
            Some(((usage.held, *first), usage))
        });
        let (_, next) = waiting.min_by_key(|(order, _)| *order)?;
        if !capacity.fits(next.held) {
            return None;
        }
        let (_, waker) = next.queue.pop_front()?;
        release_memory(&mut next.queue);
        next.held += 1;
        self.held += 1;
        self.waiting -= 1;
        Some(waker)
    }

    fn remove_idle_keys(&mut self) {
        self.keys
            .retain(|_, usage| usage.held > 0 || !usage.queue.is_empty());
    }
}

/// Frees the memory of an empty queue.
fn release_memory<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() {
        *queue = VecDeque::new();
    }
}

#[derive(Debug, Clone, Copy)]
struct FreeCapacity {
    size: usize,
    free: usize,
}

impl FreeCapacity {
    fn of<K, W>(pool: &FairPool<K, W>) -> Self {
        Self {
            size: pool.size,
            free: pool.size - pool.held,
        }
    }

    /// Whether a key with `held` connections may use one more.
    fn fits(self, held: usize) -> bool {
        let is_small = held * SMALL_DIVISOR < self.size;
        let reserved = if is_small {
            0
        } else {
            self.size / RESERVED_DIVISOR
        };
        self.free > reserved
    }
}

#[cfg(test)]
mod tests;
