//! When a run must have ended (`--timeout`). The runtime's timers end what waits for the network; what reads and writes
//! after that looks here.

use std::fmt::Display;
use std::io::{self, Read};
use std::time::Duration;

use hostkit::units::format_duration;
use hostkit::{Exit, Failure, clock};

/// The end of one run.
#[derive(Debug, Clone)]
pub struct Deadline {
    /// What the run is about.
    what: String,
    timeout: Duration,
    /// Time since boot.
    at: Duration,
}

/// The deadline is over.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the time is over")]
pub struct DeadlineExceeded;

impl From<DeadlineExceeded> for io::Error {
    fn from(error: DeadlineExceeded) -> Self {
        Self::new(io::ErrorKind::TimedOut, error)
    }
}

impl Deadline {
    /// The end of a run that begins now and is about `what`.
    #[must_use]
    pub fn new(what: impl Display, timeout: Duration) -> Self {
        Self {
            what: what.to_string(),
            timeout,
            at: clock::since_boot().saturating_add(timeout),
        }
    }

    /// The time that is left.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.at.saturating_sub(clock::since_boot())
    }

    /// Makes sure that there is time left.
    ///
    /// # Errors
    /// There is none.
    pub fn check(&self) -> Result<(), DeadlineExceeded> {
        match self.left().is_zero() {
            true => Err(DeadlineExceeded),
            false => Ok(()),
        }
    }

    /// The failure of a run that did not end in time (exit 75).
    #[must_use]
    pub fn failure(&self) -> Failure {
        let timeout = format_duration(self.timeout);
        let text = format!("{}: not finished within {timeout}", self.what);
        Failure::new(Exit::TRY_AGAIN, text).remedy("try again, or raise --timeout")
    }
}

/// Bytes that can be read until a deadline, and then fail.
pub(crate) struct UntilDeadline<'a, R> {
    /// The bytes.
    pub(crate) bytes: R,
    /// Until when.
    pub(crate) deadline: &'a Deadline,
}

impl<R: Read> Read for UntilDeadline<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.deadline.check()?;
        self.bytes.read(into)
    }
}
