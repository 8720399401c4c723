//! The state of one check: which request starts a probe and which ones wait for it, what `/health` returns, and the log
//! line when that changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::history::{HealthStatus, ProbeHistory, ProbeRecord, milliseconds, rfc3339};
use super::{HealthCheck, HealthFlags, HealthReason, ProbeResult, ShutdownRequest, is_snoozed};
use crate::clock;
use crate::http::RouteResponse;

/// The status after the probe under way; closed without one if the probe panicked.
type PendingStatus = watch::Receiver<Option<HealthStatus>>;

#[derive(Debug)]
pub(super) struct HealthMonitor<C> {
    pub(super) check: C,
    sandbox: PathBuf,
    unhealthy_status: u16,
    grace_ends: Instant,
    shutdown_sender: mpsc::Sender<ShutdownRequest>,
    state: Mutex<MonitorState>,
}

#[derive(Debug, Default)]
pub(super) struct MonitorState {
    pending: Option<PendingStatus>,
    /// Whether a probe has ever succeeded: that ends the grace period.
    has_succeeded: bool,
    /// Accepted shutdown requests, each kind at most once.
    shutdown_requests: Vec<ShutdownRequest>,
    /// Since when the status has not changed.
    since: Option<SystemTime>,
    history: ProbeHistory,
    pub(super) counters: ProbeCounters,
}

/// For `/metrics`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProbeCounters {
    /// Requests to `/health`.
    pub(super) checks: u64,
    pub(super) healthy: u64,
    pub(super) unhealthy: u64,
    /// Duration of all probes together.
    pub(super) time: Duration,
    /// Time of the last healthy probe, since boot.
    pub(super) last_success: Option<Duration>,
}

impl ProbeCounters {
    pub(super) const fn probes(&self) -> u64 {
        self.healthy + self.unhealthy
    }
}

impl<C: HealthCheck> HealthMonitor<C> {
    pub(super) fn new(
        check: C,
        sandbox: &Path,
        flags: &HealthFlags,
        shutdown_sender: mpsc::Sender<ShutdownRequest>,
    ) -> Self {
        Self {
            check,
            sandbox: sandbox.to_owned(),
            unhealthy_status: flags.unhealthy_status.code(),
            grace_ends: Instant::now() + flags.grace,
            shutdown_sender,
            state: Mutex::default(),
        }
    }

    /// The response to `GET /health`.
    pub(super) async fn health_response(self: Arc<Self>) -> RouteResponse {
        let status = match self.status_or_probe() {
            Ok(status) => status,
            Err(mut pending) => match pending.wait_for(Option::is_some).await {
                Ok(status) => status.unwrap_or(PANICKED),
                Err(_) => PANICKED,
            },
        };
        if status.ok {
            RouteResponse::text(200, "ok")
        } else {
            RouteResponse::text(self.unhealthy_status, &status.reason.to_string())
        }
    }

    /// The status that needs no probe, or the probe to wait for, which is started unless one is under way.
    fn status_or_probe(self: &Arc<Self>) -> Result<HealthStatus, PendingStatus> {
        let mut state = self.state();
        state.counters.checks += 1;
        if !state.shutdown_requests.is_empty() {
            return Ok(QUIT);
        }
        if is_snoozed(&self.sandbox) {
            if state.status() != Some(SNOOZED) {
                state.record(SNOOZED, Duration::ZERO, super::SNOOZE_FILE.to_owned());
            }
            return Ok(SNOOZED);
        }
        // A probe that is over has dropped its sender.
        if let Some(pending) = state
            .pending
            .as_ref()
            .filter(|pending| pending.has_changed().is_ok())
        {
            return Err(pending.clone());
        }
        let (sender, pending) = watch::channel(None);
        state.pending = Some(pending.clone());
        let monitor = Arc::clone(self);
        // A task of its own: the client may give up long before the probe ends, and the history must have its result.
        tokio::spawn(async move { sender.send(Some(monitor.probe().await)) });
        Err(pending)
    }

    async fn probe(&self) -> HealthStatus {
        let start = Instant::now();
        let deadline = self.check.deadline();
        let result = timeout(deadline, self.check.probe())
            .await
            .unwrap_or_else(|_| {
                ProbeResult::unhealthy(
                    HealthReason::TIMEOUT,
                    format!("no result within {deadline:?}"),
                )
            });
        let latency = start.elapsed();
        let mut state = self.state();
        let counters = &mut state.counters;
        counters.time += latency;
        if result.is_healthy() {
            counters.healthy += 1;
            counters.last_success = Some(clock::since_boot());
            state.has_succeeded = true;
        } else {
            counters.unhealthy += 1;
        }
        if !state.shutdown_requests.is_empty() {
            return QUIT;
        }
        let status = HealthStatus {
            ok: result.is_healthy() || !state.has_succeeded && start < self.grace_ends,
            reason: result.reason(),
        };
        state.record(status, latency, result.detail().to_owned());
        status
    }

    /// Accepts a request that Aurora posts before it stops a task. Only the first of a kind has an effect.
    pub(super) fn accept_shutdown(&self, request: ShutdownRequest) {
        let mut state = self.state();
        if state.shutdown_requests.contains(&request) {
            return;
        }
        state.shutdown_requests.push(request);
        state.record(QUIT, Duration::ZERO, format!("POST {}", request.path()));
        // The channel has room for one of each kind.
        let _ = self.shutdown_sender.try_send(request);
    }

    /// The response to `GET /history`.
    pub(super) fn history_json(&self) -> Value {
        let state = self.state();
        json!({
            "ok": state.status().map(|status| status.ok),
            "reason": state.status().map(|status| status.reason.to_string()),
            "since": state.since.map(rfc3339),
            "results": state.history.json(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, MonitorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const QUIT: HealthStatus = HealthStatus {
    ok: false,
    reason: HealthReason::QUIT,
};
const SNOOZED: HealthStatus = HealthStatus {
    ok: true,
    reason: HealthReason::SNOOZED,
};
const PANICKED: HealthStatus = HealthStatus {
    ok: false,
    reason: HealthReason::ERROR,
};

impl MonitorState {
    /// The status that was returned last; `None` before the first.
    pub(super) fn status(&self) -> Option<HealthStatus> {
        self.history.last().map(|record| record.status)
    }

    pub(super) fn last(&self) -> Option<&ProbeRecord> {
        self.history.last()
    }

    fn record(&mut self, status: HealthStatus, latency: Duration, detail: String) {
        let time = clock::now();
        let previous = self.status();
        if previous != Some(status) {
            self.since = Some(time);
            log_change(previous, status, latency, &detail);
        }
        self.history.push(ProbeRecord {
            time,
            latency,
            status,
            detail,
        });
    }
}

/// The log line stays in the sandbox after the task has ended.
fn log_change(
    previous: Option<HealthStatus>,
    status: HealthStatus,
    latency: Duration,
    detail: &str,
) {
    let reason = status.reason.to_string();
    let latency_ms = milliseconds(latency);
    let previous = previous.map(|status| status.reason.to_string());
    match status {
        HealthStatus {
            reason: HealthReason::OK,
            ..
        } => tracing::info!(reason, latency_ms, previous, detail, "healthy"),
        SNOOZED => tracing::info!(reason, previous, detail, "checks snoozed"),
        QUIT => tracing::info!(reason, previous, detail, "shutdown requested"),
        HealthStatus { ok: true, .. } => {
            tracing::info!(
                reason,
                latency_ms,
                previous,
                detail,
                "unhealthy within the grace period"
            );
        }
        HealthStatus { ok: false, .. } => {
            tracing::warn!(reason, latency_ms, previous, detail, "unhealthy");
        }
    }
}
