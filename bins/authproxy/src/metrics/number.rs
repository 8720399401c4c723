//! The kinds of numbers: atomics, alone, in buckets and by name.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to it.
    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// What it is now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Changes it by so much.
    pub fn add(&self, by: i64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// What it is now.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of buckets, in microseconds: from what a cached key costs to `--timeout`.
const BOUNDS: [u64; 15] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 15_000_000,
];

/// Times in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for all above.
    buckets: [Count; BOUNDS.len() + 1],
    microseconds: Count,
}

impl Histogram {
    /// Counts one time.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].add(1);
        self.microseconds.add(micros);
    }

    /// The sum of all times in seconds, how many there are, and how many are in each bucket alone, by its upper bound
    /// in seconds.
    #[must_use]
    pub fn get(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = BOUNDS.iter().map(|micros| *micros as f64 / 1e6);
        let buckets: Vec<(f64, u64)> = bounds
            .chain([f64::INFINITY])
            .zip(self.buckets.iter().map(Count::get))
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.microseconds.get() as f64 / 1e6, count, buckets)
    }
}

/// Numbers by name. Names beyond a number of them share one.
#[derive(Debug)]
pub struct Bounded<N> {
    most: usize,
    named: RwLock<HashMap<Box<str>, N>>,
    other: N,
}

impl<N: Default> Bounded<N> {
    /// For so many names.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            named: RwLock::default(),
            other: N::default(),
        }
    }

    /// Counts in the numbers of a name.
    pub(super) fn with(&self, name: &str, count: impl FnOnce(&N)) {
        {
            let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(numbers) = named.get(name) {
                return count(numbers);
            }
            if named.len() >= self.most {
                return count(&self.other);
            }
        }
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        count(named.entry(name.into()).or_default());
    }

    /// Every name and what `read` makes of its numbers, sorted; `other` is among them when it was needed.
    pub(super) fn get<V>(&self, read: impl Fn(&N) -> V) -> Vec<(Box<str>, V)> {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<(Box<str>, V)> = named
            .iter()
            .map(|(name, numbers)| (name.clone(), read(numbers)))
            .collect();
        if named.len() >= self.most {
            all.push(("other".into(), read(&self.other)));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
