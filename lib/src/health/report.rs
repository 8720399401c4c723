//! `/status` and `/metrics` of the admin listener. The metrics have the same names in every checker.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::HealthCheck;
use super::history::ProbeRecord;
use super::monitor::{HealthMonitor, ProbeCounters};
use crate::http::Router;
use crate::{admin, clock};

pub(super) fn admin_router<C: HealthCheck>(monitor: &Arc<HealthMonitor<C>>) -> Router {
    let (status, metrics) = (Arc::clone(monitor), Arc::clone(monitor));
    admin::build_router(
        move || {
            let state = status.state();
            status_of(state.last(), &state.counts)
        },
        move || {
            let state = metrics.state();
            metrics_of(state.said().map(|said| said.ok), &state.counts)
        },
    )
}

fn status_of(last: Option<&ProbeRecord>, counts: &ProbeCounters) -> Map<String, Value> {
    let age = counts
        .success
        .map(|success| clock::since_boot().saturating_sub(success).as_secs_f64());
    Map::from_iter([
        ("last_success_age_seconds".to_owned(), age.into()),
        ("last".to_owned(), last.map(ProbeRecord::json).into()),
        ("checks".to_owned(), counts.checks.into()),
        ("probes".to_owned(), (counts.healthy + counts.sick).into()),
    ])
}

/// OpenMetrics 1.0. `healthcheck_ok` is missing until there is a verdict.
fn metrics_of(ok: Option<bool>, counts: &ProbeCounters) -> String {
    let ProbeCounters {
        checks,
        healthy,
        sick,
        time,
        ..
    } = counts;
    let mut text = String::new();
    if let Some(ok) = ok {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "# HELP healthcheck_ok Whether the last verdict was healthy.\n\
             # TYPE healthcheck_ok gauge\n\
             healthcheck_ok {}",
            u8::from(ok)
        );
    }
    let _ = write!(
        text,
        "# HELP healthcheck_checks Health checks that were answered.\n\
         # TYPE healthcheck_checks counter\n\
         healthcheck_checks_total {checks}\n\
         # HELP healthcheck_probes Probes by their verdict.\n\
         # TYPE healthcheck_probes counter\n\
         healthcheck_probes_total{{verdict=\"healthy\"}} {healthy}\n\
         healthcheck_probes_total{{verdict=\"sick\"}} {sick}\n\
         # HELP healthcheck_probe_seconds Time that probes took.\n\
         # TYPE healthcheck_probe_seconds summary\n\
         healthcheck_probe_seconds_sum {}\n\
         healthcheck_probe_seconds_count {}\n\
         # EOF\n",
        time.as_secs_f64(),
        healthy + sick,
    );
    text
}
