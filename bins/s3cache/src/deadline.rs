//! The deadline of a run (`--timeout`). The runtime's timers end waiting for the network; later reads and writes check
//! the deadline themselves.

use std::fmt::Display;
use std::io::{self, Read};
use std::time::Duration;

use hostkit::units::format_duration;
use hostkit::{Exit, Failure, clock};

/// The deadline of one run.
#[derive(Debug, Clone)]
pub struct Deadline {
    /// The artifact, for the error.
    what: String,
    timeout: Duration,
    /// Time since boot.
    at: Duration,
}

/// The deadline is over.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the deadline is over")]
pub(crate) struct DeadlineExceeded;

impl From<DeadlineExceeded> for io::Error {
    fn from(error: DeadlineExceeded) -> Self {
        Self::new(io::ErrorKind::TimedOut, error)
    }
}

impl Deadline {
    /// A deadline `timeout` from now; `what` is named in its error.
    #[must_use]
    pub fn new(what: impl Display, timeout: Duration) -> Self {
        Self {
            what: what.to_string(),
            timeout,
            at: clock::since_boot().saturating_add(timeout),
        }
    }

    /// The remaining time.
    #[must_use]
    pub(crate) fn left(&self) -> Duration {
        self.at.saturating_sub(clock::since_boot())
    }

    /// Fails once the deadline is over.
    pub(crate) fn check(&self) -> Result<(), DeadlineExceeded> {
        match self.left().is_zero() {
            true => Err(DeadlineExceeded),
            false => Ok(()),
        }
    }

    /// The failure of a run that did not finish in time (exit 75).
    #[must_use]
    pub(crate) fn failure(&self) -> Failure {
        let timeout = format_duration(self.timeout);
        let text = format!("{}: not finished within {timeout}", self.what);
        Failure::new(Exit::TRY_AGAIN, text).remedy("try again, or raise --timeout")
    }
}

/// A reader that fails once the deadline is over.
pub(crate) struct UntilDeadline<'a, R> {
    pub(crate) bytes: R,
    pub(crate) deadline: &'a Deadline,
}

impl<R: Read> Read for UntilDeadline<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.deadline.check()?;
        self.bytes.read(into)
    }
}
