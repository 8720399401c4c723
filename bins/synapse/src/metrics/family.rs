//! The kinds of metrics, over prometheus-client's: all are made and registered alike, and labels are bounded.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge;
use prometheus_client::metrics::histogram;
use prometheus_client::registry::Registry;

pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;

/// A gauge of seconds.
pub type Seconds = gauge::Gauge<f64, AtomicU64>;

/// Series of one metric: label values come from outside, and each series is kept for ever.
const SERIES: usize = 1 << 15;
/// Upper bounds of the buckets in seconds: the targets (5 and 25 ms, 100 ms) are among them.
const BUCKETS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Times in seconds, in buckets from 1 ms to 10 s.
#[derive(Debug, Clone)]
pub struct Histogram(histogram::Histogram);

impl Histogram {
    /// Counts one.
    pub fn observe(&self, seconds: f64) {
        self.0.observe(seconds);
    }
}

/// What a metric is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What can be declared as a metric.
pub(super) trait Series {
    const KIND: Kind;
    fn new(labels: &'static [&'static str]) -> Self;
    fn register(&self, registry: &mut Registry, name: &str, help: &str);
}

impl Series for Histogram {
    const KIND: Kind = Kind::Histogram;
    fn new(_: &'static [&'static str]) -> Self {
        Self(histogram::Histogram::new(BUCKETS))
    }
    fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.0.clone());
    }
}

impl Series for Counter {
    const KIND: Kind = Kind::Counter;
    fn new(_: &'static [&'static str]) -> Self {
        Self::default()
    }
    fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.clone());
    }
}

impl Series for Gauge {
    const KIND: Kind = Kind::Gauge;
    fn new(_: &'static [&'static str]) -> Self {
        Self::default()
    }
    fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.clone());
    }
}

impl Series for Seconds {
    const KIND: Kind = Kind::Gauge;
    fn new(_: &'static [&'static str]) -> Self {
        Self::default()
    }
    fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.clone());
    }
}

/// One metric for each combination of label values.
#[derive(Debug)]
pub struct Labels<M> {
    labels: &'static [&'static str],
    family: Family<Vec<(&'static str, String)>, M>,
    count: AtomicUsize,
}

impl<M: Clone + Default> Labels<M> {
    /// The metric with these values, in the order of the labels. Beyond 32,768 combinations a new one counts for nobody.
    #[must_use]
    pub fn with(&self, values: &[&str]) -> M {
        let set = self.set(values);
        if let Some(metric) = self.family.get(&set) {
            return metric.clone();
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= SERIES {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return M::default();
        }
        self.family.get_or_create_owned(&set)
    }

    /// Forgets the metric with these values.
    pub fn remove(&self, values: &[&str]) {
        if self.family.remove(&self.set(values)) {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn set(&self, values: &[&str]) -> Vec<(&'static str, String)> {
        let labels = self.labels.iter().copied();
        labels
            .zip(values.iter().map(|value| (*value).to_owned()))
            .collect()
    }
}

impl<M> Series for Labels<M>
where
    M: Series + Clone + Default + std::fmt::Debug + Send + Sync + 'static,
    Family<Vec<(&'static str, String)>, M>: prometheus_client::registry::Metric,
{
    const KIND: Kind = M::KIND;
    fn new(labels: &'static [&'static str]) -> Self {
        Self {
            labels,
            family: Family::default(),
            count: AtomicUsize::new(0),
        }
    }
    fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.family.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_bounded() {
        let counters = Labels::<Counter>::new(&["reason"]);
        for number in 0..SERIES + 10 {
            counters.with(&[&number.to_string()]).inc();
        }
        assert_eq!(counters.with(&[&SERIES.to_string()]).get(), 0);
        counters.remove(&["7"]);
        counters.with(&["again"]).inc();
        assert_eq!(counters.with(&["again"]).get(), 1, "there is room again");
        counters.with(&["5"]).inc();
        assert_eq!(
            counters.with(&["5"]).get(),
            2,
            "what was there before still counts"
        );
    }
}
