//! Resident mode: the check behind Aurora's health contract (`hostkit::health`), which owns the port.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hostkit::health::{self, HealthFlags, HealthReason, ProbeResult, ShutdownRequest};
use hostkit::nagios::NagiosStatus;
use hostkit::{Exit, Failure, clock};

use crate::check::LogCheck;
use crate::wall_time::WallTime;

/// The deadline for sending a response after a check. The check itself is not interrupted: two gigabytes of new lines
/// take half a second, and on a disk that does not respond the port does not either.
const DEADLINE: Duration = Duration::from_millis(4500);

/// Serves health checks on `port` until it is shut down.
///
/// # Errors
/// The port cannot be bound (exit 73).
pub(crate) fn serve(check: LogCheck, port: u16, flags: &HealthFlags) -> Result<Exit, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = hostkit::runtime::build(builder.enable_all())?;
    let sandbox = check.sandbox();
    let log = ResidentCheck(Mutex::new(ResidentState {
        check,
        is_unreadable: false,
    }));
    runtime.block_on(health::serve(port, &sandbox, flags, log))
}

/// The check as Aurora's contract calls it.
struct ResidentCheck(Mutex<ResidentState>);

struct ResidentState {
    check: LogCheck,
    /// Whether the last check could not read a log.
    is_unreadable: bool,
}

impl health::HealthCheck for ResidentCheck {
    fn deadline(&self) -> Duration {
        DEADLINE
    }

    async fn probe(&self) -> ProbeResult {
        let mut resident = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        resident.probe()
    }

    async fn shut_down(&self, _: ShutdownRequest) {
        // There is no work to drain.
    }
}

impl ResidentState {
    fn probe(&mut self) -> ProbeResult {
        let checked = match self.check.check(WallTime::from(clock::now())) {
            Ok(checked) => checked,
            Err(failure) => {
                let because = failure.causes().join("; ");
                return ProbeResult::unhealthy(
                    HealthReason::ERROR,
                    format!("{failure}; {because}"),
                );
            }
        };
        let verdict = checked.verdict;
        // An unreadable log is healthy as long as it is written to: a restart does not grant permission to read it.
        let is_unreadable = verdict.status == NagiosStatus::Unknown && checked.summary.logs > 0;
        if is_unreadable && !self.is_unreadable {
            tracing::warn!(
                because = verdict.message,
                "unreadable log counts as healthy while it is written to"
            );
        }
        self.is_unreadable = is_unreadable;
        if matches!(verdict.status, NagiosStatus::Ok | NagiosStatus::Warning) || is_unreadable {
            ProbeResult::healthy(verdict.message)
        } else {
            ProbeResult::unhealthy(verdict.reason.to_health_reason(), verdict.message)
        }
    }
}
