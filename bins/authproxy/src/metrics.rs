//! What authproxy counts and times, for `/metrics`.
//!
//! Owns names and values. A request updates atomics, without an allocation; label values come from the configuration or
//! are bounded.

mod families;
mod number;
#[cfg(test)]
mod tests;

use std::time::Duration;

use hostkit::metrics::{Counter, Gauge};
use hyper::StatusCode;

use crate::authorizer::AllowReason;
use crate::record::RequestRecord;
use crate::request_error::TruncationReason;

pub(crate) use families::MetricsSnapshot;
use number::{BoundedLabels, DurationHistogram};

/// Key ids with counters of their own; all others share `other`.
const MAX_KEY_IDS: usize = 1_000;
/// Routes come from the configuration, and change with it.
const MAX_ROUTES: usize = 1_000;
/// More reasons than there are.
const MAX_REASONS: usize = 100;
/// The route of requests that no configured route matched.
const NO_ROUTE: &str = "none";

/// Requests by the first digit of their status; 0 is for those without a response.
#[derive(Debug, Default)]
struct StatusCounters([Counter; 6]);

/// Requests of a key.
#[derive(Debug, Default)]
struct KeyCounters {
    allowed: Counter,
    denied: Counter,
}

/// Everything that is counted. `families` names it for the outside.
#[derive(Debug)]
pub(crate) struct ProxyMetrics {
    pub(crate) client_connections: Gauge,
    pub(crate) accepted_connections: Counter,
    pub(crate) upstream_connections: Gauge,
    pub(crate) upstream_queued: Gauge,
    pub(crate) upstream_retries: Counter,
    pub(crate) requests_in_flight: Gauge,
    pub(crate) reloads: Counter,
    pub(crate) failed_reloads: Counter,
    routes: BoundedLabels<StatusCounters>,
    no_route: StatusCounters,
    error_responses: BoundedLabels<Counter>,
    keys: BoundedLabels<KeyCounters>,
    request_bytes: Counter,
    response_bytes: Counter,
    truncated: [Counter; TruncationReason::ALL.len()],
    fail_open: Counter,
    stale: Counter,
    open_path: Counter,
    preflights: Counter,
    duration: DurationHistogram,
    upstream_duration: DurationHistogram,
}

impl Default for ProxyMetrics {
    fn default() -> Self {
        Self {
            client_connections: Gauge::default(),
            accepted_connections: Counter::default(),
            upstream_connections: Gauge::default(),
            upstream_queued: Gauge::default(),
            upstream_retries: Counter::default(),
            requests_in_flight: Gauge::default(),
            reloads: Counter::default(),
            failed_reloads: Counter::default(),
            routes: BoundedLabels::new(MAX_ROUTES),
            no_route: StatusCounters::default(),
            error_responses: BoundedLabels::new(MAX_REASONS),
            keys: BoundedLabels::new(MAX_KEY_IDS),
            request_bytes: Counter::default(),
            response_bytes: Counter::default(),
            truncated: Default::default(),
            fail_open: Counter::default(),
            stale: Counter::default(),
            open_path: Counter::default(),
            preflights: Counter::default(),
            duration: DurationHistogram::default(),
            upstream_duration: DurationHistogram::default(),
        }
    }
}

impl ProxyMetrics {
    /// Counts a request that has ended.
    pub(crate) fn count(&self, record: &RequestRecord, elapsed: Duration) {
        let class = record.status.as_ref().map_or(0, StatusCode::as_u16) / 100;
        let count = |StatusCounters(classes): &StatusCounters| {
            if let Some(counter) = classes.get(usize::from(class)) {
                counter.add(1);
            }
        };
        match record.route.as_deref() {
            None | Some(NO_ROUTE) => count(&self.no_route),
            Some(route) => self.routes.with(route, count),
        }
        if let Some(refusal) = record.error {
            self.error_responses.with(refusal.reason(), |counter| {
                counter.add(1);
            });
        }
        if let Some(grant) = &record.grant {
            self.keys.with(&grant.id, |key| {
                match record.allow_reason {
                    Some(_) => key.allowed.add(1),
                    None => key.denied.add(1),
                };
            });
        }
        let unauthenticated = match record.allow_reason {
            Some(AllowReason::FailOpen) => Some(&self.fail_open),
            Some(AllowReason::StaleGrant) => Some(&self.stale),
            Some(AllowReason::OpenPath) => Some(&self.open_path),
            Some(AllowReason::ForwardedPreflight) => Some(&self.preflights),
            Some(AllowReason::ValidKey | AllowReason::AnsweredPreflight) | None => None,
        };
        if let Some(counter) = unauthenticated {
            counter.add(1);
        }
        if let Some(truncation) = record.truncation {
            self.truncated[truncation as usize].add(1);
        }
        self.request_bytes.add(record.bytes_in);
        self.response_bytes.add(record.bytes_out);
        self.duration.observe(elapsed);
        if let Some(server) = record.upstream_duration {
            self.upstream_duration.observe(server);
        }
    }
}
