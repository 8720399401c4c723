//! Warnings of repeated failures: one when a failure starts, one a minute while it lasts, one line when it has ended.
//!
//! Further requests that fail for the same reason are only counted here; the access log has them all.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;

use crate::authorizer::DenyDecision;
use crate::request_error::RequestError;
use crate::upstream::TruncatedResponse;

/// The time between two warnings of one reason, and the time without a failure after which it has ended.
const INTERVAL: Duration = Duration::from_secs(60);

/// The failures that last. The reasons are those of [`crate::request_error`], so their number is bounded.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    /// Whether `ongoing` has any: a successful request reads only this.
    has_ongoing: AtomicBool,
    ongoing: Mutex<Vec<OngoingFailure>>,
}

#[derive(Debug)]
struct OngoingFailure {
    reason: &'static str,
    last: Instant,
    last_warning: Instant,
    /// Failed requests since the last warning.
    unreported: u64,
    total: u64,
}

impl FailureLog {
    /// A request got an error response. Warns unless the client is the cause.
    pub(crate) fn record_denial(
        &self,
        denied: &DenyDecision,
        id: &HeaderValue,
        upstream: &dyn Display,
    ) {
        let event = match denied.error {
            RequestError::Upstream(failure) => failure.warning(),
            RequestError::PermissionsUnavailable(failure) => failure.warning(),
            _ => return,
        };
        let upstream = matches!(denied.error, RequestError::Upstream(_)).then_some(upstream);
        let detail = denied.detail.as_deref();
        self.warn(denied.error.reason(), event, detail, id, upstream);
    }

    pub(crate) fn record_truncation(
        &self,
        truncated: &TruncatedResponse,
        id: &HeaderValue,
        upstream: &dyn Display,
    ) {
        if let Some(event) = truncated.reason.warning() {
            let reason = truncated.reason.as_str();
            self.warn(
                reason,
                event,
                truncated.detail.as_deref(),
                id,
                Some(upstream),
            );
        }
    }

    fn warn(
        &self,
        reason: &'static str,
        event: &'static str,
        detail: Option<&str>,
        id: &HeaderValue,
        upstream: Option<&dyn Display>,
    ) {
        let unreported = self.count_failure(reason, Instant::now());
        let upstream = upstream.map(ToString::to_string);
        let request_id = id.to_str().ok();
        match unreported {
            Some(unreported) => {
                let suppressed = (unreported > 0).then_some(unreported);
                tracing::warn!(reason, upstream, request_id, suppressed, detail, "{event}");
            }
            None => tracing::debug!(reason, upstream, request_id, detail, "{event}"),
        }
    }

    /// Counts a failure. Returns the unreported ones before it if a warning is due.
    fn count_failure(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut ongoing = self.ongoing();
        let Some(failure) = ongoing.iter_mut().find(|failure| failure.reason == reason) else {
            ongoing.push(OngoingFailure {
                reason,
                last: now,
                last_warning: now,
                unreported: 0,
                total: 1,
            });
            self.has_ongoing.store(true, Relaxed);
            return Some(0);
        };
        failure.last = now;
        failure.total += 1;
        if now - failure.last_warning < INTERVAL {
            failure.unreported += 1;
            return None;
        }
        failure.last_warning = now;
        Some(std::mem::take(&mut failure.unreported))
    }

    /// A request got the upstream's response: failures without a recent request have ended.
    pub(crate) fn record_success(&self) {
        if !self.has_ongoing.load(Relaxed) {
            return;
        }
        for (reason, total) in self.take_ended(Instant::now()) {
            tracing::info!(reason, requests = total, "failure ended");
        }
    }

    fn take_ended(&self, now: Instant) -> Vec<(&'static str, u64)> {
        let mut ongoing = self.ongoing();
        let ended = ongoing.extract_if(.., |failure| now - failure.last >= INTERVAL);
        let ended = ended
            .map(|failure| (failure.reason, failure.total))
            .collect();
        self.has_ongoing.store(!ongoing.is_empty(), Relaxed);
        ended
    }

    fn ongoing(&self) -> MutexGuard<'_, Vec<OngoingFailure>> {
        self.ongoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_that_lasts_is_reported_once_a_minute_and_when_it_has_ended() {
        let log = FailureLog::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut warned = Vec::new();
        for second in 0..150 {
            for _ in 0..10 {
                if let Some(unreported) = log.count_failure("upstream_refused", at(second)) {
                    warned.push((second, unreported));
                }
            }
        }
        assert_eq!(warned, [(0, 0), (60, 599), (120, 599)]);
        assert_eq!(
            log.count_failure("upstream_closed", at(150)),
            Some(0),
            "another reason"
        );
        assert!(log.take_ended(at(200)).is_empty(), "too early");
        assert_eq!(log.take_ended(at(209)), [("upstream_refused", 1500)]);
        assert_eq!(log.take_ended(at(210)), [("upstream_closed", 1)]);
        assert!(!log.has_ongoing.load(Relaxed));
        assert_eq!(
            log.count_failure("upstream_refused", at(211)),
            Some(0),
            "it starts again"
        );
    }
}
