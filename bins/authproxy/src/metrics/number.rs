//! Durations in buckets, and counters by a bounded label.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use hostkit::metrics::{Counter, MetricSamples};

/// Upper bounds of buckets, in microseconds: from what a cached key costs to `--timeout`.
const BOUNDS: [u64; 15] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 15_000_000,
];

/// Durations in buckets.
#[derive(Debug, Default)]
pub(crate) struct DurationHistogram {
    /// One for each bound, and one for all above.
    buckets: [Counter; BOUNDS.len() + 1],
    microseconds: Counter,
}

impl DurationHistogram {
    pub(crate) fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].add(1);
        self.microseconds.add(micros);
    }

    pub(super) fn samples(&self) -> MetricSamples {
        let bounds = BOUNDS.iter().map(|micros| *micros as f64 / 1e6);
        let buckets: Vec<(f64, u64)> = bounds
            .chain([f64::INFINITY])
            .zip(self.buckets.iter().map(Counter::get))
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        MetricSamples::Histogram(self.microseconds.get() as f64 / 1e6, count, buckets)
    }
}

/// Counters by the value of a label. Values beyond `limit` of them share the counters of `other`.
#[derive(Debug)]
pub(crate) struct BoundedLabels<N> {
    limit: usize,
    named: RwLock<HashMap<Box<str>, N>>,
    other: N,
}

impl<N: Default> BoundedLabels<N> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            named: RwLock::default(),
            other: N::default(),
        }
    }

    pub(super) fn with(&self, name: &str, count: impl FnOnce(&N)) {
        {
            let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(numbers) = named.get(name) {
                return count(numbers);
            }
            if named.len() >= self.limit {
                return count(&self.other);
            }
        }
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        count(named.entry(name.into()).or_default());
    }

    /// Every label value and what `read` returns for its counters, sorted; `other` is there once it is needed.
    pub(super) fn get<V>(&self, read: impl Fn(&N) -> V) -> Vec<(Box<str>, V)> {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<(Box<str>, V)> = named
            .iter()
            .map(|(name, numbers)| (name.clone(), read(numbers)))
            .collect();
        if named.len() >= self.limit {
            all.push(("other".into(), read(&self.other)));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
