//! One check and what is told of it: who has to look and who only waits, what the verdict is turned into, and the log
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
use crate::http::server::RouteResponse;

/// One probe, seen by those who wait for it: what is said once it is over.
type PendingStatus = watch::Receiver<Option<HealthStatus>>;

#[derive(Debug)]
pub(super) struct HealthMonitor<C> {
    pub(super) check: C,
    sandbox: PathBuf,
    unhealthy_status: u16,
    grace_ends: Instant,
    quits: mpsc::Sender<ShutdownRequest>,
    state: Mutex<MonitorState>,
}

#[derive(Debug, Default)]
pub(super) struct MonitorState {
    flight: Option<PendingStatus>,
    /// Whether a probe has ever succeeded: then there is no grace any more.
    proven: bool,
    /// What Aurora has said, each at most once.
    told: Vec<ShutdownRequest>,
    /// Since when the same is said.
    since: Option<SystemTime>,
    history: ProbeHistory,
    pub(super) counts: ProbeCounters,
}

/// For `/metrics`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProbeCounters {
    /// Requests to `/health`.
    pub(super) checks: u64,
    /// Probes that were healthy.
    pub(super) healthy: u64,
    /// Probes that were sick.
    pub(super) sick: u64,
    /// How long all probes took together.
    pub(super) time: Duration,
    /// When a probe was last healthy, since boot.
    pub(super) success: Option<Duration>,
}

impl<C: HealthCheck> HealthMonitor<C> {
    pub(super) fn new(
        check: C,
        sandbox: &Path,
        flags: &HealthFlags,
        quits: mpsc::Sender<ShutdownRequest>,
    ) -> Self {
        Self {
            check,
            sandbox: sandbox.to_owned(),
            unhealthy_status: flags.unhealthy_status.code(),
            grace_ends: Instant::now() + flags.grace,
            quits,
            state: Mutex::default(),
        }
    }

    /// Answers `GET /health`.
    pub(super) async fn health(self: Arc<Self>) -> RouteResponse {
        let said = match self.join() {
            Ok(said) => said,
            // The sender is gone without a word when the probe panicked.
            Err(mut flight) => match flight.wait_for(Option::is_some).await {
                Ok(said) => said.unwrap_or(PANICKED),
                Err(_) => PANICKED,
            },
        };
        if said.ok {
            RouteResponse::text(200, "ok")
        } else {
            RouteResponse::text(self.unhealthy_status, &said.reason.to_string())
        }
    }

    /// What can be said without looking, or the probe to wait for, begun if there is none under way.
    fn join(self: &Arc<Self>) -> Result<HealthStatus, PendingStatus> {
        let mut state = self.state();
        state.counts.checks += 1;
        if !state.told.is_empty() {
            return Ok(QUIT);
        }
        if is_snoozed(&self.sandbox) {
            if state.said() != Some(SNOOZED) {
                state.record(SNOOZED, Duration::ZERO, super::SNOOZE_FILE.to_owned());
            }
            return Ok(SNOOZED);
        }
        // A flight that is over has no sender any more.
        if let Some(flight) = state
            .flight
            .as_ref()
            .filter(|flight| flight.has_changed().is_ok())
        {
            return Err(flight.clone());
        }
        let (land, flight) = watch::channel(None);
        state.flight = Some(flight.clone());
        let monitor = Arc::clone(self);
        // A task of its own: whoever asked may have given up long before the probe ends, and history must have it.
        tokio::spawn(async move { land.send(Some(monitor.look().await)) });
        Err(flight)
    }

    async fn look(&self) -> HealthStatus {
        let start = Instant::now();
        let deadline = self.check.deadline();
        let verdict = timeout(deadline, self.check.probe())
            .await
            .unwrap_or_else(|_| {
                ProbeResult::unhealthy(
                    HealthReason::TIMEOUT,
                    format!("no verdict within {deadline:?}"),
                )
            });
        let latency = start.elapsed();
        let mut state = self.state();
        let counts = &mut state.counts;
        counts.time += latency;
        if verdict.is_healthy() {
            counts.healthy += 1;
            counts.success = Some(clock::since_boot());
            state.proven = true;
        } else {
            counts.sick += 1;
        }
        if !state.told.is_empty() {
            return QUIT;
        }
        let said = HealthStatus {
            ok: verdict.is_healthy() || !state.proven && start < self.grace_ends,
            reason: verdict.reason(),
        };
        state.record(said, latency, verdict.detail().to_owned());
        said
    }

    /// Answers what Aurora posts before it stops a task. Only the first of a kind counts.
    pub(super) fn shut_down(&self, how: ShutdownRequest) {
        let mut state = self.state();
        if state.told.contains(&how) {
            return;
        }
        state.told.push(how);
        state.record(QUIT, Duration::ZERO, format!("told by {}", how.path()));
        // There is room for one of each kind.
        let _ = self.quits.try_send(how);
    }

    /// What `GET /history` answers.
    pub(super) fn history(&self) -> Value {
        let state = self.state();
        json!({
            "ok": state.said().map(|said| said.ok),
            "reason": state.said().map(|said| said.reason.to_string()),
            "since": state.since.map(rfc3339),
            "verdicts": state.history.json(),
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
    /// What was said last, if anything was.
    pub(super) fn said(&self) -> Option<HealthStatus> {
        self.history.last().map(|record| record.said)
    }

    pub(super) fn last(&self) -> Option<&ProbeRecord> {
        self.history.last()
    }

    fn record(&mut self, said: HealthStatus, latency: Duration, detail: String) {
        let time = clock::now();
        let before = self.said();
        if before != Some(said) {
            self.since = Some(time);
            tell(before, said, latency, &detail);
        }
        self.history.add(ProbeRecord {
            time,
            latency,
            said,
            detail,
        });
    }
}

/// The line that outlives the task in its sandbox.
fn tell(before: Option<HealthStatus>, said: HealthStatus, latency: Duration, detail: &str) {
    let reason = said.reason.to_string();
    let latency_ms = milliseconds(latency);
    let before = before.map(|said| said.reason.to_string());
    match said {
        HealthStatus {
            reason: HealthReason::OK,
            ..
        } => tracing::info!(reason, latency_ms, before, detail, "healthy"),
        SNOOZED => tracing::info!(reason, before, detail, "not checked"),
        QUIT => tracing::info!(reason, before, detail, "told to end"),
        HealthStatus { ok: true, .. } => {
            tracing::info!(
                reason,
                latency_ms,
                before,
                detail,
                "not healthy yet, within --grace"
            );
        }
        HealthStatus { ok: false, .. } => {
            tracing::warn!(reason, latency_ms, before, detail, "sick")
        }
    }
}
