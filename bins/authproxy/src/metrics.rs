//! What authproxy counts and times, for `/metrics`.
//!
//! Owns names and values; who counts what is in the code that does it. Every number is an atomic that a request reaches
//! without an allocation; labels come from the configuration or are bounded.

mod families;
mod number;
mod page;
#[cfg(test)]
mod tests;

use std::time::Duration;

use hyper::StatusCode;

use crate::authorizer::AllowReason;
use crate::record::Record;
use crate::request_error::TruncationReason;

pub use families::Seen;
pub use number::{Bounded, Count, Gauge, Histogram};
pub use page::{markdown, render};

/// Ids of keys that are counted one by one; all others together are `other`.
const IDS: usize = 1_000;
/// Routes come from the configuration, and change with it.
const ROUTES: usize = 1_000;
/// More words than there are.
const WORDS: usize = 100;
/// Where no route decided.
const NO_ROUTE: &str = "none";

/// Requests by the first digit of their status; 0 is for those that got none.
#[derive(Debug, Default)]
pub struct Classes([Count; 6]);

/// Requests of a key.
#[derive(Debug, Default)]
pub struct Use {
    pub(crate) passed: Count,
    pub(crate) refused: Count,
}

/// Everything that is counted. `page` names it for the outside.
#[derive(Debug)]
pub struct Metrics {
    /// Connections of clients now.
    pub connections: Gauge,
    /// Connections of clients since the start.
    pub accepted: Count,
    /// Connections to the server now.
    pub server_connections: Gauge,
    /// Requests that wait for a connection to the server now.
    pub server_waiting: Gauge,
    /// Requests that were sent to the server a second time.
    pub retries: Count,
    /// Requests now.
    pub(crate) in_flight: Gauge,
    pub(crate) routes: Bounded<Classes>,
    /// Where no route decided: everywhere, while none is configured.
    pub(crate) no_route: Classes,
    pub(crate) refusals: Bounded<Count>,
    pub(crate) keys: Bounded<Use>,
    pub(crate) received: Count,
    pub(crate) sent: Count,
    pub(crate) cut: [Count; TruncationReason::ALL.len()],
    pub(crate) fail_open: Count,
    pub(crate) stale: Count,
    pub(crate) open: Count,
    pub(crate) preflights: Count,
    pub(crate) duration: Histogram,
    pub(crate) server: Histogram,
    pub(crate) reloaded: Count,
    pub(crate) reload_refused: Count,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            connections: Gauge::default(),
            accepted: Count::default(),
            server_connections: Gauge::default(),
            server_waiting: Gauge::default(),
            retries: Count::default(),
            in_flight: Gauge::default(),
            routes: Bounded::new(ROUTES),
            no_route: Classes::default(),
            refusals: Bounded::new(WORDS),
            keys: Bounded::new(IDS),
            received: Count::default(),
            sent: Count::default(),
            cut: Default::default(),
            fail_open: Count::default(),
            stale: Count::default(),
            open: Count::default(),
            preflights: Count::default(),
            duration: Histogram::default(),
            server: Histogram::default(),
            reloaded: Count::default(),
            reload_refused: Count::default(),
        }
    }
}

impl Metrics {
    /// Counts a request that has ended.
    pub(crate) fn count(&self, record: &Record, took: Duration) {
        let class = record.status.as_ref().map_or(0, StatusCode::as_u16) / 100;
        let count = |Classes(classes): &Classes| {
            if let Some(count) = classes.get(usize::from(class)) {
                count.add(1);
            }
        };
        match record.route.as_deref() {
            None | Some(NO_ROUTE) => count(&self.no_route),
            Some(route) => self.routes.with(route, count),
        }
        if let Some(refusal) = record.refusal {
            self.refusals.with(refusal.reason(), |count| count.add(1));
        }
        if let Some(grant) = &record.grant {
            self.keys.with(&grant.id, |used| match record.mark {
                Some(_) => used.passed.add(1),
                None => used.refused.add(1),
            });
        }
        match record.mark {
            Some(AllowReason::FailOpen) => self.fail_open.add(1),
            Some(AllowReason::StaleGrant) => self.stale.add(1),
            Some(AllowReason::OpenPath) => self.open.add(1),
            Some(AllowReason::ForwardedPreflight) => self.preflights.add(1),
            Some(AllowReason::ValidKey | AllowReason::AnsweredPreflight) | None => {}
        }
        if let Some(truncation) = record.cut {
            self.cut[truncation as usize].add(1);
        }
        self.received.add(record.received);
        self.sent.add(record.sent);
        self.duration.observe(took);
        if let Some(server) = record.server {
            self.server.observe(server);
        }
    }
}
