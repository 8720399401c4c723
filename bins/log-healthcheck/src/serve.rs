//! The resident mode: the check behind Aurora's health contract (`hostkit::health`), which owns the port.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hostkit::health::{self, HealthFlags, HealthReason, ProbeResult, ShutdownRequest};
use hostkit::nagios::NagiosStatus;
use hostkit::{Exit, Failure, clock};

use crate::check::Check;
use crate::moment::Moment;

/// The longest that an answer may take to be sent after a check, which itself is not interrupted: two gigabytes of new
/// lines take half a second, and a disk that does not answer is told by the port not doing so either.
const DEADLINE: Duration = Duration::from_millis(4500);

/// Answers checks on `port` until told to end.
///
/// # Errors
/// The port cannot be bound (exit 73).
pub(crate) fn serve(check: Check, port: u16, flags: &HealthFlags) -> Result<Exit, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = hostkit::runtime::build(builder.enable_all())?;
    let sandbox = check.sandbox();
    let log = Log(Mutex::new(Resident {
        check,
        unread: false,
    }));
    runtime.block_on(health::serve(port, &sandbox, flags, log))
}

/// The logs, as Aurora's contract sees them.
struct Log(Mutex<Resident>);

struct Resident {
    check: Check,
    /// Whether the last check could not read a log.
    unread: bool,
}

impl health::HealthCheck for Log {
    fn deadline(&self) -> Duration {
        DEADLINE
    }

    async fn probe(&self) -> ProbeResult {
        let mut resident = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        resident.probe()
    }

    async fn shut_down(&self, _: ShutdownRequest) {
        // There is nothing to finish; the service ends.
    }
}

impl Resident {
    fn probe(&mut self) -> ProbeResult {
        let checked = match self.check.check(Moment::from(clock::now())) {
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
        // Only that a log is written to can be told then, and that it is: no restart gives us the right to read it.
        let unread = verdict.status == NagiosStatus::Unknown && checked.seen.logs > 0;
        if unread && !self.unread {
            tracing::warn!(
                "taken for healthy as long as it is written to: {}",
                verdict.message
            );
        }
        self.unread = unread;
        if matches!(verdict.status, NagiosStatus::Ok | NagiosStatus::Warning) || unread {
            ProbeResult::healthy(verdict.message)
        } else {
            ProbeResult::unhealthy(verdict.reason.aurora(), verdict.message)
        }
    }
}
