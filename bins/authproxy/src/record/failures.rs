//! Warnings of failures that repeat: one when a failure starts, one a minute while it lasts, one line when it has ended.
//!
//! Owns the rate. A request that failed for the same reason in between is counted here and stands in the access log.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;

use crate::authorizer::DenyDecision;
use crate::request_error::RequestError;
use crate::upstream::TruncatedResponse;

/// The time between two warnings of one cause, and without a failure until it counts as ended.
const INTERVAL: Duration = Duration::from_secs(60);

/// What is failing. The causes are the words of [`crate::request_error`], so there are only so many.
#[derive(Debug, Default)]
pub struct FailureLog {
    /// Whether there is anything in `lasting`: all that a request that succeeds looks at.
    fails: AtomicBool,
    lasting: Mutex<Vec<Lasting>>,
}

/// A failure that lasts.
#[derive(Debug)]
struct Lasting {
    cause: &'static str,
    last: Instant,
    warned: Instant,
    /// Requests that failed since the last warning and are not in one.
    unreported: u64,
    total: u64,
}

impl FailureLog {
    /// A request got no response. Warns of what is not the client's fault.
    pub(crate) fn refused(&self, refused: &DenyDecision, id: &HeaderValue, server: &dyn Display) {
        let event = match refused.error {
            RequestError::Upstream(failure) => failure.warning(),
            RequestError::PermissionsUnavailable(failure) => failure.warning(),
            _ => return,
        };
        let server = matches!(refused.error, RequestError::Upstream(_)).then_some(server);
        let detail = refused.detail.as_deref();
        self.warn(refused.error.reason(), event, detail, id, server);
    }

    /// A response was truncated.
    pub(crate) fn truncated(
        &self,
        truncated: &TruncatedResponse,
        id: &HeaderValue,
        server: &dyn Display,
    ) {
        if let Some(event) = truncated.reason.warning() {
            let cause = truncated.reason.as_str();
            self.warn(cause, event, truncated.detail.as_deref(), id, Some(server));
        }
    }

    fn warn(
        &self,
        cause: &'static str,
        event: &'static str,
        detail: Option<&str>,
        id: &HeaderValue,
        server: Option<&dyn Display>,
    ) {
        let unreported = self.failed(cause, Instant::now());
        let server = server.map(ToString::to_string);
        let request = id.to_str().ok();
        match unreported {
            Some(unreported) => {
                let more = (unreported > 0).then_some(unreported);
                tracing::warn!(cause, server, request, more, detail, "{event}");
            }
            None => tracing::debug!(cause, server, request, detail, "{event}"),
        }
    }

    /// Counts a failure. If it is time for a warning: how many failures there were since the last one without any.
    fn failed(&self, cause: &'static str, now: Instant) -> Option<u64> {
        let mut lasting = self.lasting();
        let Some(one) = lasting.iter_mut().find(|one| one.cause == cause) else {
            lasting.push(Lasting {
                cause,
                last: now,
                warned: now,
                unreported: 0,
                total: 1,
            });
            self.fails.store(true, Relaxed);
            return Some(0);
        };
        one.last = now;
        one.total += 1;
        if now - one.warned < INTERVAL {
            one.unreported += 1;
            return None;
        }
        one.warned = now;
        Some(std::mem::take(&mut one.unreported))
    }

    /// A request got the server's response: what has not happened for a while has ended. A load while nothing fails.
    pub(crate) fn succeeded(&self) {
        if !self.fails.load(Relaxed) {
            return;
        }
        for (cause, total) in self.ended(Instant::now()) {
            tracing::info!(cause, requests = total, "failure ended");
        }
    }

    fn ended(&self, now: Instant) -> Vec<(&'static str, u64)> {
        let mut lasting = self.lasting();
        let ended = lasting.extract_if(.., |one| now - one.last >= INTERVAL);
        let ended = ended.map(|one| (one.cause, one.total)).collect();
        self.fails.store(!lasting.is_empty(), Relaxed);
        ended
    }

    fn lasting(&self) -> MutexGuard<'_, Vec<Lasting>> {
        self.lasting.lock().unwrap_or_else(PoisonError::into_inner)
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
                if let Some(unreported) = log.failed("upstream_refused", at(second)) {
                    warned.push((second, unreported));
                }
            }
        }
        assert_eq!(warned, [(0, 0), (60, 599), (120, 599)]);
        assert_eq!(
            log.failed("upstream_closed", at(150)),
            Some(0),
            "another cause"
        );
        assert!(log.ended(at(200)).is_empty(), "too early");
        assert_eq!(log.ended(at(209)), [("upstream_refused", 1500)]);
        assert_eq!(log.ended(at(210)), [("upstream_closed", 1)]);
        assert!(!log.fails.load(Relaxed));
        assert_eq!(
            log.failed("upstream_refused", at(211)),
            Some(0),
            "it starts again"
        );
    }
}
