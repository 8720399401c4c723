//! What a health check is configured with, and how its results are counted:
//! `apache/aurora/executor/common/health_checker.py` without its clock. Asking, and waiting, is the executor's.

use std::time::Duration;

use super::signaler::HttpCheck;

/// Which Aurora plays the executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuroraRelease {
    /// 0.15 of 2016: nothing is asked during the initial interval, then failures are counted. Shell checks go through
    /// `/bin/sh`; each stage of a stop is waited for in full.
    V0_15,
    /// The last one, of 2020: all is counted in attempts, of which the first are forgiven. Shell checks go through
    /// `/bin/bash`; a stop goes on when the task has ended.
    Last,
}

/// How a task is checked. All times are Aurora's: [`ThermosTask::second`](super::Task::second) scales them.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    pub(super) http: HttpCheck,
    pub(super) shell: Option<String>,
    pub(super) initial_interval: Duration,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    max_failures: u32,
    min_successes: u32,
}

impl HealthCheck {
    /// Asks the port named `health`; without one the task is always healthy.
    #[must_use]
    pub fn http(http: HttpCheck) -> Self {
        Self {
            http,
            shell: None,
            initial_interval: Duration::from_secs(15),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            max_failures: 0,
            min_successes: 1,
        }
    }

    /// Runs a command line, in which ports are filled in.
    #[must_use]
    pub fn shell(cmdline: &str) -> Self {
        Self::http(HttpCheck::default()).and_shell(cmdline)
    }

    /// Configures a command line beside HTTP.
    #[must_use]
    pub fn and_shell(mut self, cmdline: &str) -> Self {
        self.shell = Some(cmdline.to_owned());
        self
    }

    /// How long a task has to warm up. (15 s)
    #[must_use]
    pub const fn initial_interval(mut self, time: Duration) -> Self {
        self.initial_interval = time;
        self
    }

    /// How long to wait between the end of a check and the next. (10 s)
    #[must_use]
    pub const fn interval(mut self, time: Duration) -> Self {
        self.interval = time;
        self
    }

    /// How long each operation on a socket, or a whole command, may take. (1 s)
    #[must_use]
    pub const fn timeout(mut self, time: Duration) -> Self {
        self.timeout = time;
        self
    }

    /// How many failures in a row are tolerated. (0)
    #[must_use]
    pub const fn max_consecutive_failures(mut self, failures: u32) -> Self {
        self.max_failures = failures;
        self
    }

    /// How many successes in a row make a task running; 0.15 does not have it. (1)
    #[must_use]
    pub const fn min_consecutive_successes(mut self, successes: u32) -> Self {
        self.min_successes = successes;
        self
    }
}

/// The state that the results of checks lead to.
#[derive(Debug, Clone)]
pub struct HealthCounters {
    contract: AuroraRelease,
    max_failures: u32,
    min_successes: u32,
    /// Under the last contract: attempts whose failure does not count, and attempts after which it is too late.
    forgiven: u32,
    limit: u32,
    attempts: u32,
    successes: u32,
    failures: u32,
    running: bool,
    dead: Option<String>,
}

impl HealthCounters {
    /// Before the first check.
    #[must_use]
    pub fn new(contract: AuroraRelease, check: &HealthCheck) -> Self {
        let attempts = check.initial_interval.as_secs_f64() / check.interval.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a handful of attempts"
        )]
        let forgiven = attempts.ceil() as u32;
        Self {
            contract,
            max_failures: check.max_failures,
            min_successes: check.min_successes,
            forgiven,
            limit: forgiven + check.max_failures + check.min_successes,
            attempts: 0,
            successes: 0,
            failures: 0,
            running: contract == AuroraRelease::V0_15,
            dead: None,
        }
    }

    /// Whether another check is made at all. Under the last contract a task that is not running after its attempts is
    /// dead; that is looked at before a check, which gives it one attempt more than `limit`.
    pub fn asks(&mut self) -> bool {
        let late = !self.running && self.attempts > self.limit;
        if late {
            self.die("Not enough successful health checks in time.");
        }
        !late
    }

    /// Counts one result.
    pub fn count(&mut self, result: &Result<(), String>) {
        self.attempts += 1;
        match result {
            Ok(()) => self.success(),
            Err(why) => self.failure(why),
        }
    }

    /// Counts the check that 0.15 makes at once where there is no initial interval: its failure alone is death,
    /// whatever number is tolerated.
    pub fn count_at_once(&mut self, result: &Result<(), String>) {
        self.attempts += 1;
        if let Err(why) = result {
            self.die(why);
        }
    }

    fn success(&mut self) {
        self.successes += 1;
        self.running |= self.successes >= self.min_successes;
        self.failures = 0;
    }

    fn failure(&mut self, why: &str) {
        self.successes = 0;
        let counted = self.contract == AuroraRelease::V0_15 || self.attempts > self.forgiven;
        if !counted {
            return;
        }
        let left = self.limit.saturating_sub(self.attempts);
        let hopeless = !self.running && left > 1 && self.min_successes > left;
        self.failures += 1;
        if hopeless || self.failures > self.max_failures {
            self.die(why);
        }
    }

    fn die(&mut self, why: &str) {
        self.dead.get_or_insert_with(|| why.to_owned());
    }

    /// Checks made so far.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Successes in a row.
    #[must_use]
    pub const fn successes(&self) -> u32 {
        self.successes
    }

    /// Failures in a row that count.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether the task is `RUNNING` and not `STARTING`; 0.15 makes no difference between them.
    #[must_use]
    pub const fn running(&self) -> bool {
        self.running
    }

    /// Why the task is to be killed, if it is.
    #[must_use]
    pub fn dead(&self) -> Option<&str> {
        self.dead.as_deref()
    }
}
