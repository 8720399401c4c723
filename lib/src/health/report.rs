//! `/status` and `/metrics` of the admin listener. The metrics have the same names in both health checkers.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::HealthCheck;
use super::history::ProbeRecord;
use super::monitor::{HealthMonitor, ProbeCounters};
use crate::http::Router;
use crate::metrics::{MetricFamily, MetricSamples, labelled, render};
use crate::{admin, clock};

pub(super) fn build_router<C: HealthCheck>(monitor: &Arc<HealthMonitor<C>>) -> Router {
    let (status, metrics) = (Arc::clone(monitor), Arc::clone(monitor));
    admin::build_router(
        move || {
            let state = status.state();
            status_of(state.last(), &state.counters)
        },
        move || {
            let state = metrics.state();
            render(metrics_of(
                state.status().map(|status| status.ok),
                &state.counters,
            ))
        },
    )
}

fn status_of(last: Option<&ProbeRecord>, counters: &ProbeCounters) -> Map<String, Value> {
    let age = counters
        .last_success
        .map(|success| clock::since_boot().saturating_sub(success).as_secs_f64());
    Map::from_iter([
        ("last_success_age_seconds".to_owned(), age.into()),
        ("last".to_owned(), last.map(ProbeRecord::json).into()),
        ("checks".to_owned(), counters.checks.into()),
        ("probes".to_owned(), counters.probes().into()),
    ])
}

/// `healthcheck_ok` has no sample until the first result.
fn metrics_of(ok: Option<bool>, counters: &ProbeCounters) -> Vec<MetricFamily> {
    let ok = ok.into_iter().map(|ok| (Vec::new(), i64::from(ok)));
    let probes = [
        (["healthy"], counters.healthy),
        (["unhealthy"], counters.unhealthy),
    ];
    let count = counters.probes();
    vec![
        MetricFamily {
            name: "healthcheck_ok",
            labels: &[],
            help: "Whether /health returned ok last.",
            samples: MetricSamples::Gauges(ok.collect()),
        },
        MetricFamily {
            name: "healthcheck_checks_total",
            labels: &[],
            help: "Requests to /health.",
            samples: counters.checks.into(),
        },
        MetricFamily {
            name: "healthcheck_probes_total",
            labels: &["result"],
            help: "Probes, by result.",
            samples: MetricSamples::Counters(labelled(probes)),
        },
        MetricFamily {
            name: "healthcheck_probe_seconds",
            labels: &[],
            help: "Duration of probes.",
            samples: MetricSamples::Histogram(
                counters.time.as_secs_f64(),
                count,
                vec![(f64::INFINITY, count)],
            ),
        },
    ]
}
