//! The page of `/metrics`, and the table of it in the operator's manual: both from one list, so that neither can drift.

use std::fmt::{self, Write as _};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::families::{Seen, families};
use super::{Count, Gauge, Histogram};
use crate::record::Telemetry;

/// What a metric is, and what its numbers are now.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
    pub(super) samples: Samples,
}

/// The numbers of a metric, each with the values of its labels.
#[derive(Debug)]
pub(super) enum Samples {
    Counts(Vec<(Vec<String>, u64)>),
    Gauges(Vec<(Vec<String>, i64)>),
    Seconds(Vec<(Vec<String>, f64)>),
    Times(f64, u64, Vec<(f64, u64)>),
}

impl From<&Count> for Samples {
    fn from(count: &Count) -> Self {
        Self::Counts(vec![(Vec::new(), count.get())])
    }
}

impl From<&Gauge> for Samples {
    fn from(gauge: &Gauge) -> Self {
        Self::Gauges(vec![(Vec::new(), gauge.get())])
    }
}

impl From<&Histogram> for Samples {
    fn from(times: &Histogram) -> Self {
        let (sum, count, buckets) = times.get();
        Self::Times(sum, count, buckets)
    }
}

impl From<u64> for Samples {
    fn from(count: u64) -> Self {
        Self::Counts(vec![(Vec::new(), count)])
    }
}

impl From<bool> for Samples {
    fn from(yes: bool) -> Self {
        Self::Gauges(vec![(Vec::new(), yes.into())])
    }
}

impl Samples {
    const fn kind(&self) -> MetricType {
        match self {
            Self::Counts(_) => MetricType::Counter,
            Self::Gauges(_) | Self::Seconds(_) => MetricType::Gauge,
            Self::Times(..) => MetricType::Histogram,
        }
    }
}

/// Numbers with the values of their labels.
pub(super) fn labelled<const N: usize, V>(
    all: impl IntoIterator<Item = ([impl Into<String>; N], V)>,
) -> Vec<(Vec<String>, V)> {
    all.into_iter()
        .map(|(values, number)| (values.into_iter().map(Into::into).collect(), number))
        .collect()
}

/// Everything, as OpenMetrics text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
#[must_use]
pub fn render(seen: &Seen<'_>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(families(seen))));
    let mut rendered = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut rendered, &registry);
    rendered
}

#[derive(Debug)]
struct Page(Vec<Family>);

impl Collector for Page {
    fn encode(&self, mut page: DescriptorEncoder<'_>) -> fmt::Result {
        for Family {
            name,
            labels,
            help,
            samples,
        } in &self.0
        {
            // The library adds the suffix of a counter.
            let name = name.strip_suffix("_total").unwrap_or(name);
            let help = format!("{help}.");
            let mut family = page.encode_descriptor(name, &help, None, samples.kind())?;
            let set = |values: &[String]| -> Vec<(&str, String)> {
                labels.iter().copied().zip(values.iter().cloned()).collect()
            };
            match samples {
                Samples::Counts(counts) => {
                    for (values, count) in counts {
                        if values.is_empty() {
                            family.encode_counter::<NoLabelSet, _, u64>(count, None)?;
                        } else {
                            let set = set(values);
                            let mut one = family.encode_family(&set)?;
                            one.encode_counter::<NoLabelSet, _, u64>(count, None)?;
                        }
                    }
                }
                Samples::Gauges(gauges) => {
                    for (values, gauge) in gauges {
                        if values.is_empty() {
                            family.encode_gauge(gauge)?;
                        } else {
                            family.encode_family(&set(values))?.encode_gauge(gauge)?;
                        }
                    }
                }
                Samples::Seconds(ages) => {
                    for (values, age) in ages {
                        family.encode_family(&set(values))?.encode_gauge(age)?;
                    }
                }
                Samples::Times(sum, count, buckets) => {
                    family.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)?;
                }
            }
        }
        Ok(())
    }
}

/// The table of all metrics for the operator's page, in Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for family in families(&Seen::new(&Telemetry::default())) {
        let labels: Vec<String> = family
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} |",
            family.name,
            family.samples.kind().as_str(),
            labels.join(", "),
            family.help
        );
    }
    table
}
