//! The resident mode: the check behind Aurora's health contract (`hostkit::health`), which owns the port.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use hostkit::health::{self, HealthFlags, Quit, Reason, Verdict};
use hostkit::{Exit, Failure, clock};

use crate::check::Check;
use crate::moment::Moment;
use crate::verdict::Status;

/// The longest a check may take: a disk that does not answer must not make the port one that does not.
const DEADLINE: Duration = Duration::from_millis(4500);

/// Answers checks on `port` until told to end.
///
/// # Errors
/// The port cannot be bound (exit 73).
pub(crate) fn serve(check: Check, port: u16, flags: &HealthFlags) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Files are read in a thread that lives for one check.
        .max_blocking_threads(1)
        .thread_keep_alive(Duration::ZERO)
        .build()
        .map_err(|error| Failure::new(Exit::FAILED, "cannot start a runtime").because(error))?;
    let sandbox = check.sandbox();
    let log = Log {
        check: Arc::new(Mutex::new(check)),
        unread: AtomicBool::new(false),
    };
    let end = runtime.block_on(health::serve(port, &sandbox, flags, log));
    // A disk that does not answer must not keep the process.
    runtime.shutdown_background();
    end
}

/// The logs, as Aurora's contract sees them.
struct Log {
    check: Arc<Mutex<Check>>,
    /// Whether the last check could not read a log.
    unread: AtomicBool,
}

impl health::Check for Log {
    fn deadline(&self) -> Duration {
        DEADLINE
    }

    async fn probe(&self) -> Verdict {
        if matches!(self.check.try_lock(), Err(TryLockError::WouldBlock)) {
            return Verdict::sick(Reason::TIMEOUT, "the check before is still reading");
        }
        let check = Arc::clone(&self.check);
        let look = move || {
            let mut check = check.lock().unwrap_or_else(PoisonError::into_inner);
            check.check(Moment::from(clock::now()))
        };
        let checked = match tokio::task::spawn_blocking(look).await {
            Ok(Ok(checked)) => checked,
            Ok(Err(failure)) => {
                let because = failure.causes().join("; ");
                return Verdict::sick(Reason::ERROR, format!("{failure}; {because}"));
            }
            Err(error) => return Verdict::sick(Reason::ERROR, error.to_string()),
        };
        let verdict = checked.verdict;
        // Only that a log is written to can be told then, and that it is: no restart gives us the right to read it.
        let unread = verdict.status == Status::Unknown && checked.seen.logs > 0;
        if unread && !self.unread.swap(unread, Ordering::Relaxed) {
            tracing::warn!(
                "taken for healthy as long as it is written to: {}",
                verdict.message
            );
        }
        self.unread.store(unread, Ordering::Relaxed);
        if verdict.status == Status::Ok || unread {
            Verdict::healthy(verdict.message)
        } else {
            Verdict::sick(verdict.reason.aurora(), verdict.message)
        }
    }

    async fn quit(&self, _: Quit) {
        // There is nothing to finish; the service ends.
    }
}
