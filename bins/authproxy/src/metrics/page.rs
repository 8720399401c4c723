//! The page of `/metrics`, and the table of it in the operator's manual: both from one list, so that neither can drift.

use std::fmt::{self, Write as _};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{Classes, Count, Gauge, Histogram};
use crate::record::Telemetry;

/// What a metric is, and what its numbers are now.
#[derive(Debug)]
struct Family {
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    samples: Samples,
}

/// The numbers of a metric, each with the values of its labels.
#[derive(Debug)]
enum Samples {
    Counts(Vec<(Vec<String>, u64)>),
    Gauges(Vec<(Vec<String>, i64)>),
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

impl Samples {
    const fn kind(&self) -> MetricType {
        match self {
            Self::Counts(_) => MetricType::Counter,
            Self::Gauges(_) => MetricType::Gauge,
            Self::Times(..) => MetricType::Histogram,
        }
    }

    fn counts<const N: usize>(
        all: impl IntoIterator<Item = ([impl Into<String>; N], u64)>,
    ) -> Self {
        let owned = |values: [_; N]| values.into_iter().map(Into::into).collect();
        Self::Counts(
            all.into_iter()
                .map(|(values, count)| (owned(values), count))
                .collect(),
        )
    }
}

/// Every metric, in the order of the operator's page.
fn families(seen: &Telemetry) -> Vec<Family> {
    let Telemetry { metrics, access } = seen;
    let family = |name, labels, help, samples| Family {
        name,
        labels,
        help,
        samples,
    };
    let class = |digit: usize| match digit {
        0 => "none".to_owned(),
        digit => format!("{digit}xx"),
    };
    let routes = metrics
        .routes
        .get(|Classes(classes)| classes.each_ref().map(Count::get));
    let routes = routes.into_iter().flat_map(|(route, classes)| {
        let known = classes.into_iter().enumerate();
        known
            .filter(|(_, count)| *count > 0)
            .map(move |(digit, count)| ([route.to_string(), class(digit)], count))
            .collect::<Vec<_>>()
    });
    let keys = metrics
        .keys
        .get(|used| (used.passed.get(), used.refused.get()));
    let keys = keys.into_iter().flat_map(|(id, (passed, refused))| {
        [
            ([id.to_string(), "passed".to_owned()], passed),
            ([id.into_string(), "refused".to_owned()], refused),
        ]
    });
    let refusals = metrics.refusals.get(Count::get);
    let refusals = refusals.into_iter().map(|(word, count)| ([word], count));
    let dropped = access.as_ref().map_or(0, |access| access.dropped());
    vec![
        family(
            "authproxy_requests_total",
            &["route", "class"],
            "Requests by the route that decided and the class of their status; class none: the client went before there was one",
            Samples::counts(routes),
        ),
        family(
            "authproxy_refusals_total",
            &["reason"],
            "Requests that were answered here, by the word in the answer's body",
            Samples::counts(refusals),
        ),
        family(
            "authproxy_key_requests_total",
            &["id", "result"],
            "Requests with a known key: passed or refused; ids beyond 1,000 are other",
            Samples::counts(keys),
        ),
        family(
            "authproxy_unjudged_total",
            &["why"],
            "Requests that passed without the engine's word of now: fail-open, stale, open (a path that needs no key) or preflight",
            Samples::counts([
                (["fail-open"], metrics.fail_open.get()),
                (["open"], metrics.open.get()),
                (["preflight"], metrics.preflights.get()),
                (["stale"], metrics.stale.get()),
            ]),
        ),
        family(
            "authproxy_request_duration_seconds",
            &[],
            "From a request's head being here to the last byte of the answer being handed over",
            (&metrics.duration).into(),
        ),
        family(
            "authproxy_server_duration_seconds",
            &[],
            "From a request's head being here to the head of the server's answer",
            (&metrics.server).into(),
        ),
        family(
            "authproxy_requests_in_flight",
            &[],
            "Requests under way",
            (&metrics.in_flight).into(),
        ),
        family(
            "authproxy_answers_cut_total",
            &[],
            "Answers that ended before their end",
            (&metrics.cut).into(),
        ),
        family(
            "authproxy_received_bytes_total",
            &[],
            "Bytes of requests' bodies",
            (&metrics.received).into(),
        ),
        family(
            "authproxy_sent_bytes_total",
            &[],
            "Bytes of answers' bodies",
            (&metrics.sent).into(),
        ),
        family(
            "authproxy_connections",
            &[],
            "Connections of clients",
            (&metrics.connections).into(),
        ),
        family(
            "authproxy_connections_accepted_total",
            &[],
            "Connections of clients since the start",
            (&metrics.accepted).into(),
        ),
        family(
            "authproxy_server_connections",
            &[],
            "Connections to the server, idle ones too",
            (&metrics.server_connections).into(),
        ),
        family(
            "authproxy_server_waiting",
            &[],
            "Requests that wait for a connection to the server",
            (&metrics.server_waiting).into(),
        ),
        family(
            "authproxy_server_retries_total",
            &[],
            "Requests sent a second time, since the server had closed an idle connection",
            (&metrics.retries).into(),
        ),
        family(
            "authproxy_access_lines_dropped_total",
            &[],
            "Lines of the access log that nobody took from stderr in time",
            Samples::Counts(vec![(Vec::new(), dropped)]),
        ),
        family(
            "authproxy_config_reloads_total",
            &["result"],
            "Times that the configuration was read again: ok or refused",
            Samples::counts([
                (["ok"], metrics.reloaded.get()),
                (["refused"], metrics.reload_refused.get()),
            ]),
        ),
    ]
}

/// Everything, as OpenMetrics text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
#[must_use]
pub fn render(seen: &Telemetry) -> String {
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
    for family in families(&Telemetry::default()) {
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
