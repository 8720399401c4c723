//! What a transaction on HAProxy's file came to: its steps, how long each took, and how it failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::bind::Conflict;
use super::check::{Alert, CheckError};
use super::info::Info;
use super::limits::TooMany;
use super::reload::ReloadError;
use super::verify::VerifyError;

/// The steps, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The candidate is written beside the file.
    Candidate,
    /// `haproxy -c`, and the limit of open files.
    Check,
    /// Every new bind is tried.
    Binds,
    /// The operator's `check_command`.
    CheckCommand,
    /// The old file is copied to `<config_file>.old`, and the server-state file written.
    Keep,
    /// The candidate takes the file's place.
    Swap,
    /// HAProxy is told.
    Reload,
    /// What runs is what was meant.
    Verify,
    /// The old file is back, and runs again if it had stopped.
    RollBack,
}

impl Step {
    /// The word, as metrics and the journal have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::Check => "check",
            Self::Binds => "binds",
            Self::CheckCommand => "check-command",
            Self::Keep => "keep",
            Self::Swap => "swap",
            Self::Reload => "reload",
            Self::Verify => "verify",
            Self::RollBack => "roll-back",
        }
    }
}

/// What a successful change came to.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The process that serves now; `None` without a stats socket.
    pub info: Option<Info>,
    /// How long each step took.
    pub phases: Vec<(Step, Duration)>,
    /// What `haproxy -c` warned of.
    pub warnings: Vec<Alert>,
    /// Workers of before that have not ended yet.
    pub leftover: usize,
}

/// What a failed change came to.
#[derive(Debug, thiserror::Error)]
#[error("{}: HAProxy's new file was not applied ({}): {outcome}", config.display(), step.word())]
pub struct ApplyError {
    /// HAProxy's file.
    pub config: PathBuf,
    /// Which step failed.
    pub step: Step,
    /// What is in place now.
    pub outcome: Outcome,
    /// Why.
    #[source]
    pub cause: Box<Cause>,
    /// How long each step took, the failed one too.
    pub phases: Vec<(Step, Duration)>,
}

/// What is in place after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The old file, which was never moved; nothing was reloaded.
    Untouched,
    /// The old file was put back, and what ran before never stopped.
    PutBack,
    /// The old file was put back and HAProxy reloaded with it.
    Reloaded,
    /// There was no old file: the new one, which passed preflight, stays.
    NothingBefore,
    /// The old file could not be put back, or not be made to run: somebody must look.
    Broken(String),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Untouched => f.write_str("the old file is in place and serves"),
            Self::PutBack => f.write_str("the old file was put back, and serves"),
            Self::Reloaded => f.write_str("the old file was put back and reloaded"),
            Self::NothingBefore => f.write_str("there was no old file, and the new one stays"),
            Self::Broken(why) => write!(f, "AND the old file does not serve: {why}"),
        }
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// `config_file` is not set.
    #[error("`config_file` is not set")]
    NoFile,
    /// A file cannot be read or written.
    #[error("cannot {action} {}: correct its owner and mode, or the path", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is refused by `haproxy -c` or `check_command`, or could not be checked.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// It needs more open files than can be had.
    #[error(transparent)]
    Limit(#[from] TooMany),
    /// Some of its binds cannot be had.
    #[error("{}", conflicts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Binds {
        /// Which, and why.
        conflicts: Vec<Conflict>,
    },
    /// Its names do not resolve in time.
    #[error("names in `bind` lines did not resolve within {0:?}: use addresses")]
    Resolve(Duration),
    /// HAProxy was not reloaded.
    #[error(transparent)]
    Reload(#[from] ReloadError),
    /// What runs is not what was meant.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// Which step runs, and how long those before took.
pub(super) struct Clock<'a> {
    on_step: &'a mut (dyn FnMut(Step) + Send),
    phases: Vec<(Step, Duration)>,
    running: Option<(Step, Instant)>,
}

impl<'a> Clock<'a> {
    pub(super) fn new(on_step: &'a mut (dyn FnMut(Step) + Send)) -> Self {
        Self {
            on_step,
            phases: Vec::new(),
            running: None,
        }
    }

    pub(super) fn begin(&mut self, step: Step) {
        self.end();
        (self.on_step)(step);
        self.running = Some((step, Instant::now()));
    }

    /// The step that runs.
    pub(super) fn step(&self) -> Step {
        self.running.map_or(Step::Candidate, |(step, _)| step)
    }

    fn end(&mut self) {
        if let Some((step, since)) = self.running.take() {
            self.phases.push((step, since.elapsed()));
        }
    }

    pub(super) fn finish(mut self) -> Vec<(Step, Duration)> {
        self.end();
        self.phases
    }
}
