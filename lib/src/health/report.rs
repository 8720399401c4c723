//! `/status` and `/metrics` of the admin listener. The metrics have the same names in both health checkers.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::HealthCheck;
use super::history::ProbeRecord;
use super::monitor::{HealthMonitor, ProbeCounters};
use crate::http::Router;
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
            metrics_of(state.status().map(|status| status.ok), &state.counters)
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
        (
            "probes".to_owned(),
            (counters.healthy + counters.unhealthy).into(),
        ),
    ])
}

/// OpenMetrics 1.0. `healthcheck_ok` is missing until the first result.
fn metrics_of(ok: Option<bool>, counters: &ProbeCounters) -> String {
    let ProbeCounters {
        checks,
        healthy,
        unhealthy,
        time,
        ..
    } = counters;
    let mut text = String::new();
    if let Some(ok) = ok {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "# HELP healthcheck_ok Whether /health returned ok last.\n\
             # TYPE healthcheck_ok gauge\n\
             healthcheck_ok {}",
            u8::from(ok)
        );
    }
    let _ = write!(
        text,
        "# HELP healthcheck_checks Requests to /health.\n\
         # TYPE healthcheck_checks counter\n\
         healthcheck_checks_total {checks}\n\
         # HELP healthcheck_probes Probes, by result.\n\
         # TYPE healthcheck_probes counter\n\
         healthcheck_probes_total{{result=\"healthy\"}} {healthy}\n\
         healthcheck_probes_total{{result=\"unhealthy\"}} {unhealthy}\n\
         # HELP healthcheck_probe_seconds Duration of probes.\n\
         # TYPE healthcheck_probe_seconds summary\n\
         healthcheck_probe_seconds_sum {}\n\
         healthcheck_probe_seconds_count {}\n\
         # EOF\n",
        time.as_secs_f64(),
        healthy + unhealthy,
    );
    text
}
