//! Counters and gauges, and the text of `/metrics`: OpenMetrics, written by prometheus-client.
//!
//! A metric is declared once, with its samples of the moment: the served text and the table of the operator's page come
//! from the same list.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; returns the number before.
    pub fn add(&self, n: u64) -> u64 {
        self.0.fetch_add(n, Relaxed)
    }

    /// The current number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The current number.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// A metric with its current samples.
#[derive(Debug)]
pub struct MetricFamily {
    /// The name, with the `_total` of a counter.
    pub name: &'static str,
    /// The label names.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
    /// The samples.
    pub samples: MetricSamples,
}

/// Samples of one type, each with the values of the family's labels.
#[derive(Debug)]
pub enum MetricSamples {
    /// Counters.
    Counters(Vec<(Vec<String>, u64)>),
    /// Gauges of whole numbers.
    Gauges(Vec<(Vec<String>, i64)>),
    /// Gauges of seconds.
    Seconds(Vec<(Vec<String>, f64)>),
    /// A histogram without labels: the sum of all observations, their number, and how many are in each bucket alone, by
    /// its upper bound.
    Histogram(f64, u64, Vec<(f64, u64)>),
}

impl MetricSamples {
    const fn metric_type(&self) -> MetricType {
        match self {
            Self::Counters(_) => MetricType::Counter,
            Self::Gauges(_) | Self::Seconds(_) => MetricType::Gauge,
            Self::Histogram(..) => MetricType::Histogram,
        }
    }
}

impl From<u64> for MetricSamples {
    fn from(count: u64) -> Self {
        Self::Counters(vec![(Vec::new(), count)])
    }
}

impl From<i64> for MetricSamples {
    fn from(number: i64) -> Self {
        Self::Gauges(vec![(Vec::new(), number)])
    }
}

impl From<bool> for MetricSamples {
    fn from(is_true: bool) -> Self {
        i64::from(is_true).into()
    }
}

/// Samples with the values of their labels.
pub fn labelled<const N: usize, V>(
    samples: impl IntoIterator<Item = ([impl Into<String>; N], V)>,
) -> Vec<(Vec<String>, V)> {
    let samples = samples.into_iter();
    samples
        .map(|(labels, value)| (labels.map(Into::into).to_vec(), value))
        .collect()
}

/// The families as OpenMetrics text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
#[must_use]
pub fn render(families: Vec<MetricFamily>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(FamilyCollector(families)));
    let mut rendered = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut rendered, &registry);
    rendered
}

/// The families as a Markdown table.
#[must_use]
pub fn markdown(families: &[MetricFamily]) -> String {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for family in families {
        let labels = family.labels.iter().map(|label| format!("`{label}`"));
        let labels = labels.collect::<Vec<_>>().join(", ");
        let (name, help) = (family.name, family.help);
        let metric_type = family.samples.metric_type();
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "| `{name}` | {} | {labels} | {help} |",
            metric_type.as_str()
        );
    }
    table
}

#[derive(Debug)]
struct FamilyCollector(Vec<MetricFamily>);

impl Collector for FamilyCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            // The encoder adds the suffix of a counter.
            let name = family.name.strip_suffix("_total").unwrap_or(family.name);
            let metric_type = family.samples.metric_type();
            let mut metric = encoder.encode_descriptor(name, family.help, None, metric_type)?;
            match &family.samples {
                MetricSamples::Counters(samples) => each(&mut metric, family, samples, |to, n| {
                    to.encode_counter::<NoLabelSet, _, u64>(n, None)
                }),
                MetricSamples::Gauges(samples) => {
                    each(&mut metric, family, samples, |to, n| to.encode_gauge(n))
                }
                MetricSamples::Seconds(samples) => {
                    each(&mut metric, family, samples, |to, n| to.encode_gauge(n))
                }
                MetricSamples::Histogram(sum, count, buckets) => {
                    metric.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
                }
            }?;
        }
        Ok(())
    }
}

fn each<V>(
    metric: &mut MetricEncoder<'_>,
    family: &MetricFamily,
    samples: &[(Vec<String>, V)],
    encode: fn(&mut MetricEncoder<'_>, &V) -> fmt::Result,
) -> fmt::Result {
    samples.iter().try_for_each(|(values, value)| {
        if values.is_empty() {
            return encode(metric, value);
        }
        let names = family.labels.iter().copied();
        let labels: Vec<(&str, &str)> = names.zip(values.iter().map(String::as_str)).collect();
        encode(&mut metric.encode_family(&labels)?, value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_rendered_with_escaped_labels_and_one_type_each() {
        let family = |name, labels, samples| MetricFamily {
            name,
            labels,
            help: "A sentence.",
            samples,
        };
        let requests = labelled([(["a\"} 1\nevil 1"], 3)]);
        let text = render(vec![
            family("requests_total", &["id"], MetricSamples::Counters(requests)),
            family("up", &[], true.into()),
            family("age_seconds", &["id"], MetricSamples::Seconds(Vec::new())),
            family(
                "took_seconds",
                &[],
                MetricSamples::Histogram(2.5, 3, vec![(1.0, 2), (f64::INFINITY, 1)]),
            ),
        ]);
        let expected = "\
# HELP requests A sentence.
# TYPE requests counter
requests_total{id=\"a\\\"} 1\\nevil 1\"} 3
# HELP up A sentence.
# TYPE up gauge
up 1
# HELP age_seconds A sentence.
# TYPE age_seconds gauge
# HELP took_seconds A sentence.
# TYPE took_seconds histogram
took_seconds_sum 2.5
took_seconds_count 3
took_seconds_bucket{le=\"1.0\"} 2
took_seconds_bucket{le=\"+Inf\"} 3
# EOF
";
        assert_eq!(text, expected);
    }
}
