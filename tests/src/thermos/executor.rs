//! Aurora's executor beside a running task: it checks the health, and stops a task that is unhealthy or no longer
//! wanted. The supervisor owns the processes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::lifecycle::LifecycleMessage;
use super::shell::ShellCheck;
use super::supervise::{ProcessTable, TaskState};
use super::{AuroraRelease, HealthCheck, HealthCounters, HttpSignaler, ThermosTask};
use crate::POLL;

#[derive(Debug, Clone)]
pub struct TaskHealth {
    /// The counters; they do not change without a check.
    pub counters: HealthCounters,
    /// The reason of each failure, oldest first, counted or not.
    pub reasons: Vec<String>,
    /// How many checks were skipped because of the snooze file.
    pub snoozed: u32,
    /// The requests of the lifecycle to the task.
    pub messages: Vec<LifecycleMessage>,
}

/// Shared by the checking thread and the test.
#[derive(Debug)]
pub(super) struct TaskExecutor {
    pub(super) task: ThermosTask,
    pub(super) sandbox: PathBuf,
    pub(super) table: Arc<Mutex<ProcessTable>>,
    health: Mutex<TaskHealth>,
    /// No further checks.
    over: AtomicBool,
}

impl TaskExecutor {
    pub(super) fn new(
        task: ThermosTask,
        sandbox: PathBuf,
        table: Arc<Mutex<ProcessTable>>,
    ) -> Self {
        let any = HealthCheck::http(super::HttpCheck::default());
        let check = task.health.as_ref().unwrap_or(&any);
        let health = TaskHealth {
            counters: HealthCounters::new(task.contract, check),
            reasons: Vec::new(),
            snoozed: 0,
            messages: Vec::new(),
        };
        Self {
            task,
            sandbox,
            table,
            health: Mutex::new(health),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn health(&self) -> TaskHealth {
        self.lock().clone()
    }

    /// The configured check: `None`, which is always healthy, for HTTP without the port.
    pub(super) fn check(&self) -> Option<&HealthCheck> {
        let check = self.task.health.as_ref()?;
        (check.shell.is_some() || self.task.ports.contains_key("health")).then_some(check)
    }

    /// Checks until the task has ended, and ends it when it is unhealthy.
    pub(super) fn watch(&self, check: &HealthCheck) {
        if self.task.contract == AuroraRelease::V0_15 {
            if check.initial_interval.is_zero() {
                self.attempt(check, HealthCounters::count_at_once);
            } else {
                self.pause(check.initial_interval);
            }
        }
        while !self.over() {
            let dead = {
                let counters = &mut self.lock().counters;
                counters.death_reason().is_some() || !counters.should_check()
            };
            if dead {
                return self.end(TaskState::Failed);
            }
            self.attempt(check, HealthCounters::count);
            if self.lock().counters.death_reason().is_none() {
                self.pause(check.interval);
            }
        }
    }

    /// Stops checking and counting.
    pub(super) fn retire(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Stops the task unless it has ended: by the lifecycle, then by signals.
    pub(super) fn end(&self, state: TaskState) {
        if let Some(lifecycle) = &self.task.lifecycle
            && let Some(port) = self.task.ports.get(&lifecycle.port)
            && !self.ended()
        {
            let signaler =
                HttpSignaler::new(*port).timeout(self.task.scaled(Duration::from_secs(1)));
            lifecycle.escalate(
                self.task.contract,
                &signaler,
                |time| self.task.scaled(time),
                || self.ended(),
                |outcome| self.lock().messages.push(outcome),
            );
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.state == TaskState::Active && table.stopping.is_none() {
            table.stop(state, self.task.grace);
        }
    }

    fn attempt(
        &self,
        check: &HealthCheck,
        count: impl Fn(&mut HealthCounters, &Result<(), String>),
    ) {
        let snoozed = self.sandbox.join(".healthchecksnooze").is_file();
        let result = if snoozed { Ok(()) } else { self.ask(check) };
        if self.over() {
            return;
        }
        let mut health = self.lock();
        health.snoozed += u32::from(snoozed);
        count(&mut health.counters, &result);
        health.reasons.extend(result.err());
    }

    fn ask(&self, check: &HealthCheck) -> Result<(), String> {
        let timeout = self.task.scaled(check.timeout);
        if let Some(cmdline) = &check.shell {
            return ShellCheck {
                contract: self.task.contract,
                cmdline: &self.task.fill(cmdline),
                timeout,
                directory: self.directory(),
                uid: self.task.uid,
            }
            .check();
        }
        let port = self.task.ports["health"];
        HttpSignaler::new(port).timeout(timeout).check(&check.http)
    }

    /// The working directory that Mesos gives the executor; the sandbox is the directory `sandbox` in it.
    fn directory(&self) -> &Path {
        self.sandbox
            .parent()
            .expect("a sandbox is below a directory")
    }

    /// Sleeps one of Aurora's times, or until the task has ended.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + self.task.scaled(time);
        while !self.over() && Instant::now() < until {
            std::thread::sleep(POLL.min(until.saturating_duration_since(Instant::now())));
        }
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.ended()
    }

    fn ended(&self) -> bool {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.state != TaskState::Active
    }

    fn lock(&self) -> MutexGuard<'_, TaskHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
