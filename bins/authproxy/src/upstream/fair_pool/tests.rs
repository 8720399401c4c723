//! Sequences of operations on a pool, compared with a model of plain lists.

use proptest::prelude::*;

use super::*;

type PoolKey = char;

/// A pool, and the keys that hold a connection or wait for one, in the order of arrival.
struct PoolModel {
    pool: FairPool<PoolKey, u64>,
    held: Vec<PoolKey>,
    waiting: Vec<(PoolKey, u64)>,
    arrivals: u64,
}

impl PoolModel {
    fn new(size: usize) -> Self {
        Self {
            pool: FairPool::new(size),
            held: Vec::new(),
            waiting: Vec::new(),
            arrivals: 0,
        }
    }

    fn holds(&self, key: PoolKey) -> usize {
        self.held.iter().filter(|held| **held == key).count()
    }

    fn waits(&self, key: PoolKey) -> usize {
        self.waiting.iter().filter(|(own, _)| *own == key).count()
    }

    /// Whether a key may use one more: a tenth is for keys that hold under 5 %.
    fn fits(&self, key: PoolKey) -> bool {
        let size = self.pool.size;
        let needs = if self.holds(key) * 100 < size * 5 {
            1
        } else {
            size / 10 + 1
        };
        size - self.held.len() >= needs
    }

    fn acquire(&mut self, key: PoolKey) -> PoolAdmission {
        let size = self.pool.size;
        let (fits, own) = (self.fits(key), self.waits(key));
        let arrival = self.arrivals;
        self.arrivals += 1;
        let admission = self.pool.acquire(key, || arrival);
        match admission {
            PoolAdmission::Granted => {
                assert!(fits);
                self.held.push(key);
            }
            PoolAdmission::Queued(_) => {
                assert!(!fits && 2 * own < size && self.waiting.len() < size);
                self.waiting.push((key, arrival));
            }
            PoolAdmission::KeyQueueFull => assert!(!fits && 2 * own >= size),
            PoolAdmission::QueueFull => assert!(!fits && self.waiting.len() == size),
        }
        admission
    }

    fn release(&mut self, at: usize) -> Option<(PoolKey, u64)> {
        let key = self.held.swap_remove(at);
        let next = self.pool.release(&key);
        let mut order: Vec<_> = self.waiting.clone();
        // Stable: of equals the one that came first.
        order.sort_by_key(|(key, _)| self.holds(*key));
        let expected = order.first().copied().filter(|(key, _)| self.fits(*key));
        assert_eq!(next, expected.map(|(_, arrival)| arrival));
        if let Some(next) = expected {
            self.waiting.retain(|waiting| *waiting != next);
            self.held.push(next.0);
        }
        expected
    }

    fn check(&self) {
        assert_eq!(self.pool.held, self.held.len());
        assert_eq!(self.pool.waiting, self.waiting.len());
        assert!(self.held.len() <= self.pool.size && self.waiting.len() <= self.pool.size);
        assert!(self.pool.keys.len() <= 2 * self.pool.size + 1);
        for (key, _) in &self.waiting {
            assert!(!self.fits(*key), "{key} waits for a connection it may have");
        }
    }
}

proptest! {
    #[test]
    fn pool_admits_and_grants_as_the_model(
        size in 1_usize..50,
        steps in proptest::collection::vec((0_u8..8, 0_usize..1000, 0_u8..7), 1..400),
    ) {
        let mut model = PoolModel::new(size);
        let mut tickets = HashMap::new();
        for (what, which, key) in steps {
            let key = char::from(b'a' + key.saturating_sub(3));
            match what {
                0 if !model.waiting.is_empty() => {
                    let (key, arrival) = model.waiting.remove(which % model.waiting.len());
                    let ticket = tickets[&arrival];
                    prop_assert!(model.pool.cancel(&key, ticket));
                    prop_assert!(!model.pool.cancel(&key, ticket));
                }
                1..=2 if !model.held.is_empty() => {
                    if let Some((key, arrival)) = model.release(which % model.held.len()) {
                        prop_assert!(!model.pool.cancel(&key, tickets[&arrival]));
                    }
                }
                _ => {
                    let arrival = model.arrivals;
                    if let PoolAdmission::Queued(ticket) = model.acquire(key) {
                        tickets.insert(arrival, ticket);
                    }
                }
            }
            model.check();
        }
        while !model.held.is_empty() {
            model.release(0);
            model.check();
        }
        prop_assert!(model.waiting.is_empty(), "nothing waits for ever");
    }
}

/// How many of `requests` are granted, queued, and refused for either reason.
fn acquire_many(model: &mut PoolModel, key: PoolKey, requests: usize) -> [usize; 4] {
    let mut counts = [0; 4];
    for _ in 0..requests {
        counts[match model.acquire(key) {
            PoolAdmission::Granted => 0,
            PoolAdmission::Queued(_) => 1,
            PoolAdmission::KeyQueueFull => 2,
            PoolAdmission::QueueFull => 3,
        }] += 1;
    }
    counts
}

#[test]
fn greedy_key_leaves_a_tenth_of_the_pool_and_half_of_the_queue() {
    let mut model = PoolModel::new(1024);
    assert_eq!(acquire_many(&mut model, 'a', 2100), [922, 512, 666, 0]);
    // 52 is the first number that is not below 5 %.
    assert_eq!(acquire_many(&mut model, 'b', 100), [52, 48, 0, 0]);
    assert_eq!(acquire_many(&mut model, 'c', 60), [50, 10, 0, 0]);
    // The queue is full.
    assert_eq!(acquire_many(&mut model, 'd', 500), [0, 454, 0, 46]);
}

#[test]
fn only_key_gets_all_but_the_reserve() {
    for (size, granted) in [(1, 1), (2, 2), (9, 9), (10, 9), (100, 90), (1000, 900)] {
        let mut model = PoolModel::new(size);
        assert_eq!(acquire_many(&mut model, 'a', size)[0], granted, "{size}");
    }
}

#[test]
fn freed_connection_goes_to_the_queued_key_that_holds_fewest() {
    let mut model = PoolModel::new(4);
    assert_eq!(acquire_many(&mut model, 'a', 3)[0], 3);
    assert_eq!(acquire_many(&mut model, 'b', 1)[0], 1);
    acquire_many(&mut model, 'a', 1);
    acquire_many(&mut model, 'b', 1);
    acquire_many(&mut model, 'c', 1);
    for (freed, next) in [('a', 'c'), ('c', 'b'), ('b', 'a')] {
        let at = model.held.iter().position(|key| *key == freed).unwrap();
        let (key, _) = model.release(at).unwrap();
        assert_eq!(key, next, "after one of {freed}");
    }
}
