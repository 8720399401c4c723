//! Which requests may use a connection of the upstream pool, and which of those that wait gets the next one.
//!
//! Pure: it counts, and hands back what is to be woken. Who waits how, and what a connection is, is the caller's.
//!
//! * A key may use as many connections as it likes, but a tenth of the pool is reserved for keys that hold less than a
//!   twentieth of it: a key that takes all it can get leaves room for those that need little.
//! * A connection that becomes free goes to the waiting key that holds the fewest; of several to the one that has waited
//!   longest. Requests of one key are served in their order.
//! * There are as many waiting places as connections. A key may fill half of them.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// The share of the pool that is reserved.
const RESERVED: usize = 10;
/// The share of the pool below which a key may use what is reserved.
const SMALL: usize = 20;

/// The pool, as it is shared between keys `K`. Requests that wait are known by what wakes them, `W`.
#[derive(Debug)]
pub(super) struct FairPool<K, W> {
    size: usize,
    held: usize,
    waiting: usize,
    /// Counts requests that waited.
    tickets: u64,
    /// Keys that hold something or wait, and some that did lately: a key that comes back is found without an allocation.
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

/// The place of a request in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueTicket(u64);

/// What a request that needs a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolAdmission {
    /// It may use one. It has to be released.
    Granted,
    /// It may wait, and is handed back when it may use one. Whatever ends the wait otherwise cancels it.
    Queued(QueueTicket),
    /// Its key's own queue has half of the waiting places.
    KeyQueueFull,
    /// All waiting places are taken.
    QueueFull,
}

impl<K: Hash + Eq, W> FairPool<K, W> {
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            held: 0,
            waiting: 0,
            tickets: 0,
            keys: HashMap::new(),
        }
    }

    /// A request of a key needs a connection. `waker` is called for only if it has to wait.
    pub(super) fn acquire(&mut self, key: K, waker: impl FnOnce() -> W) -> PoolAdmission {
        let room = FreeCapacity::of(self);
        if self.keys.len() >= 2 * self.size && !self.keys.contains_key(&key) {
            self.forget_idle();
        }
        let usage = self.keys.entry(key).or_default();
        // Whoever waits may not be granted one now, so nothing overtakes.
        if room.fits(usage.held) {
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
        let ticket = QueueTicket(self.tickets);
        self.tickets += 1;
        self.waiting += 1;
        usage.queue.push_back((ticket, waker()));
        PoolAdmission::Queued(ticket)
    }

    /// A request has stopped waiting. False: it has been handed back before, and holds a connection.
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

    /// A request no longer needs its connection. The request that may use one now, if one may.
    pub(super) fn release(&mut self, key: &K) -> Option<W> {
        if let Some(usage) = self.keys.get_mut(key) {
            usage.held -= 1;
            self.held -= 1;
        }
        if self.waiting == 0 {
            return None;
        }
        let room = FreeCapacity::of(self);
        let waiting = self.keys.values_mut().filter_map(|usage| {
            let (first, _) = usage.queue.front()?;
            Some(((usage.held, *first), usage))
        });
        let (_, next) = waiting.min_by_key(|(order, _)| *order)?;
        if !room.fits(next.held) {
            return None;
        }
        let (_, waker) = next.queue.pop_front()?;
        release_memory(&mut next.queue);
        next.held += 1;
        self.held += 1;
        self.waiting -= 1;
        Some(waker)
    }

    /// Forgets keys that neither hold nor wait.
    fn forget_idle(&mut self) {
        self.keys
            .retain(|_, usage| usage.held > 0 || !usage.queue.is_empty());
    }
}

/// A key that no longer waits holds no room for those that did.
fn release_memory<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() {
        *queue = VecDeque::new();
    }
}

/// How much of the pool is free.
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

    /// Whether a key that holds so many may use one more.
    fn fits(self, held: usize) -> bool {
        let is_small = held * SMALL < self.size;
        let reserved = if is_small { 0 } else { self.size / RESERVED };
        self.free > reserved
    }
}

#[cfg(test)]
mod tests;
