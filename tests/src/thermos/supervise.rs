//! The thread behind a running task: it starts processes in order, reaps them, restarts those that may fail again, and
//! stops them all.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Uid, User};

use super::{ThermosProcess, ThermosTask};
use crate::{POLL, wait_limit};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// Not started, or waiting for a restart.
    Waiting,
    Running,
    Done,
    /// Failed as often as allowed, or was stopped.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// At least one process has not ended.
    Active,
    /// Every process succeeded.
    Success,
    /// A process failed permanently; the others were stopped.
    Failed,
    /// Stopped from outside.
    Killed,
}

#[derive(Debug)]
pub(super) struct ProcessTable {
    pub(super) slots: BTreeMap<String, ProcessSlot>,
    pub(super) state: TaskState,
    /// The final state once all processes have stopped, and the end of their grace.
    pub(super) stopping: Option<(TaskState, Instant)>,
}

impl ProcessTable {
    /// Sends SIGTERM to every process; after `grace` the supervisor kills them.
    pub(super) fn stop(&mut self, state: TaskState, grace: Duration) {
        for group in self.slots.values().filter_map(ProcessSlot::group) {
            let _ = killpg(group, Signal::SIGTERM);
        }
        self.stopping = Some((state, Instant::now() + grace));
    }
}

/// One process through all its runs.
#[derive(Debug, Default)]
pub(super) struct ProcessSlot {
    pub(super) child: Option<Child>,
    /// `None` while it waits or runs.
    ended: Option<ProcessState>,
    pub(super) runs: u32,
    failures: u32,
}

impl ProcessSlot {
    pub(super) fn state(&self) -> ProcessState {
        match (&self.child, self.ended) {
            (Some(_), _) => ProcessState::Running,
            (None, ended) => ended.unwrap_or(ProcessState::Waiting),
        }
    }

    fn group(&self) -> Option<Pid> {
        let child = self.child.as_ref()?;
        i32::try_from(child.id()).ok().map(Pid::from_raw)
    }

    /// Records the end of a run and kills what it left behind, as thermos does.
    fn reap(&mut self, status: ExitStatus, max_failures: u32) {
        if let Some(group) = self.group() {
            let _ = killpg(group, Signal::SIGKILL);
        }
        self.child = None;
        if status.success() {
            self.ended = Some(ProcessState::Done);
        } else if status.signal().is_none() {
            // A process ended by a signal is lost, not failed: it restarts and nothing is counted.
            self.failures += 1;
            if max_failures != 0 && self.failures >= max_failures {
                self.ended = Some(ProcessState::Failed);
            }
        }
    }
}

impl Drop for ProcessSlot {
    fn drop(&mut self) {
        // Only when the supervisor did not end normally.
        if let Some(group) = self.group() {
            let _ = killpg(group, Signal::SIGKILL);
        }
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// The thread that starts and reaps.
pub(super) struct ProcessSupervisor {
    pub(super) task: ThermosTask,
    pub(super) sandbox: PathBuf,
    pub(super) table: Arc<Mutex<ProcessTable>>,
}

impl ProcessSupervisor {
    pub(super) fn supervise(&self) {
        while self.step() {
            std::thread::sleep(POLL);
        }
    }

    /// Checks every process once; returns `false` when the task has ended.
    fn step(&self) -> bool {
        let mut table = self.table.lock().unwrap();
        for process in &self.task.processes {
            let slot = table.slots.get_mut(&process.name).unwrap();
            if let Some(child) = &mut slot.child
                && let Some(status) = child.try_wait().unwrap()
            {
                slot.reap(status, process.max_failures);
            }
        }
        if let Some((state, deadline)) = table.stopping {
            return self.end(&mut table, state, deadline);
        }
        if table
            .slots
            .values()
            .any(|slot| slot.state() == ProcessState::Failed)
        {
            table.stop(TaskState::Failed, self.task.grace);
            return true;
        }
        if table
            .slots
            .values()
            .all(|slot| slot.state() == ProcessState::Done)
        {
            table.state = TaskState::Success;
            return false;
        }
        for process in &self.task.processes {
            let before = self.task.predecessors(&process.name);
            let ready = before
                .iter()
                .all(|name| table.slots[name].state() == ProcessState::Done);
            let slot = table.slots.get_mut(&process.name).unwrap();
            if ready && slot.state() == ProcessState::Waiting {
                slot.child = Some(self.launch(process, slot.runs));
                slot.runs += 1;
            }
        }
        true
    }

    fn end(&self, table: &mut ProcessTable, state: TaskState, deadline: Instant) -> bool {
        if Instant::now() >= deadline {
            for group in table.slots.values().filter_map(ProcessSlot::group) {
                let _ = killpg(group, Signal::SIGKILL);
            }
        }
        if table.slots.values().any(|slot| slot.child.is_some()) {
            let over = Instant::now() > deadline + wait_limit();
            assert!(!over, "a process of {} does not end", self.task.name);
            return true;
        }
        for slot in table.slots.values_mut().filter(|slot| slot.runs > 0) {
            slot.ended.get_or_insert(ProcessState::Failed);
        }
        table.state = state;
        false
    }

    fn launch(&self, process: &ThermosProcess, run: u32) -> Child {
        let logs = logs(&self.sandbox, &process.name, run);
        std::fs::create_dir_all(&logs).unwrap();
        let uid = self.task.uid.map_or_else(Uid::current, Uid::from_raw);
        let user = User::from_uid(uid).ok().flatten();
        let user = user.map_or_else(|| uid.to_string(), |user| user.name);
        let mut command = Command::new("/bin/bash");
        command
            .arg("-c")
            .arg(self.task.fill(&process.cmdline))
            .current_dir(&self.sandbox)
            .env_clear()
            .env("HOME", &self.sandbox)
            .env("LOGNAME", &user)
            .env("USER", &user)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.task.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(append(&logs.join("stdout")))
            .stderr(append(&logs.join("stderr")))
            .process_group(0);
        let profile = self.sandbox.join(".thermos_profile");
        if profile.exists() {
            command.env("BASH_ENV", profile);
        }
        if let Some(uid) = self.task.uid {
            command.uid(uid).gid(uid);
        }
        command.spawn().unwrap()
    }
}

pub(super) fn logs(sandbox: &Path, process: &str, run: u32) -> PathBuf {
    sandbox.join(".logs").join(process).join(run.to_string())
}

fn append(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
}
