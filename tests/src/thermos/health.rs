//! The settings of a health check and the counting of its results: `apache/aurora/executor/common/health_checker.py`
//! without its clock. The executor sends the requests and waits.

use std::time::Duration;

use super::signaler::HttpCheck;

/// The release of Aurora that the executor behaves like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuroraRelease {
    /// 0.15 of 2016: no check during the initial interval, then failures are counted. Shell checks run in `/bin/sh`;
    /// each stage of a stop waits its full time.
    V0_15,
    /// The latest, of 2020: counts in attempts, the first of which are forgiven. Shell checks run in `/bin/bash`; a
    /// stop continues when the task has ended.
    Last,
}

/// The settings of a check. All times are Aurora's: [`ThermosTask::second`](super::ThermosTask::second) scales them.
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
    /// Checks the port named `health`; without one the task is always healthy.
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

    /// Configures a command line in addition to HTTP.
    #[must_use]
    pub fn and_shell(mut self, cmdline: &str) -> Self {
        self.shell = Some(cmdline.to_owned());
        self
    }

    /// Sets the time to warm up. (15 s)
    #[must_use]
    pub const fn initial_interval(mut self, time: Duration) -> Self {
        self.initial_interval = time;
        self
    }

    /// Sets the time from the end of a check to the next. (10 s)
    #[must_use]
    pub const fn interval(mut self, time: Duration) -> Self {
        self.interval = time;
        self
    }

    /// Sets the timeout of each socket operation, or of a whole command. (1 s)
    #[must_use]
    pub const fn timeout(mut self, time: Duration) -> Self {
        self.timeout = time;
        self
    }

    /// Sets how many consecutive failures are tolerated. (0)
    #[must_use]
    pub const fn max_consecutive_failures(mut self, failures: u32) -> Self {
        self.max_failures = failures;
        self
    }

    /// Sets how many consecutive successes make a task running; 0.15 has no such setting. (1)
    #[must_use]
    pub const fn min_consecutive_successes(mut self, successes: u32) -> Self {
        self.min_successes = successes;
        self
    }
}

/// The counters of check results.
#[derive(Debug, Clone)]
pub struct HealthCounters {
    contract: AuroraRelease,
    max_failures: u32,
    min_successes: u32,
    /// In the latest release: attempts whose failure does not count, and the limit of attempts without success.
    forgiven: u32,
    limit: u32,
    attempts: u32,
    successes: u32,
    failures: u32,
    running: bool,
    dead: Option<String>,
}

impl HealthCounters {
    /// The counters before the first check.
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

    /// Whether another check is made. In the latest release a task that is not running after its attempts is dead;
    /// because this is evaluated before a check, it gets one attempt more than `limit`.
    pub fn should_check(&mut self) -> bool {
        let late = !self.running && self.attempts > self.limit;
        if late {
            self.die("Not enough successful health checks in time.");
        }
        !late
    }

    pub fn count(&mut self, result: &Result<(), String>) {
        self.attempts += 1;
        match result {
            Ok(()) => self.success(),
            Err(why) => self.failure(why),
        }
    }

    /// Counts the immediate check of 0.15 without an initial interval: a single failure is fatal, whatever number is
    /// tolerated.
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

    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Consecutive successes.
    #[must_use]
    pub const fn successes(&self) -> u32 {
        self.successes
    }

    /// Consecutive failures that count.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether the task is `RUNNING` and not `STARTING`; 0.15 does not distinguish them.
    #[must_use]
    pub const fn running(&self) -> bool {
        self.running
    }

    /// The reason to kill the task, if any.
    #[must_use]
    pub fn death_reason(&self) -> Option<&str> {
        self.dead.as_deref()
    }
}
