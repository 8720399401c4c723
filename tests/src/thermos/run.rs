//! A started task from the point of view of a test.

use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::ThermosTask;
use super::executor::{TaskExecutor, TaskHealth};
use super::supervise::{
    ProcessSlot, ProcessState, ProcessSupervisor, ProcessTable, TaskState, logs,
};
use crate::wait_until;

#[derive(Debug)]
pub struct TaskRunner;

impl TaskRunner {
    /// Starts a task in a new sandbox: `sandbox` in a directory below `parent` that is named after the task id.
    #[must_use]
    pub fn start(task: ThermosTask, parent: &Path) -> RunningTask {
        let known = |name: &String| task.processes.iter().any(|process| process.name == *name);
        let unknown = task.constraints.iter().flatten().find(|name| !known(name));
        assert_eq!(unknown, None, "a constraint names no process");
        let sandbox = parent.join(task.id()).join("sandbox");
        std::fs::create_dir_all(&sandbox).unwrap();
        if task.uid.is_some() {
            std::os::unix::fs::chown(&sandbox, task.uid, task.uid).unwrap();
        }
        let slots = task
            .processes
            .iter()
            .map(|process| (process.name.clone(), ProcessSlot::default()));
        let table = ProcessTable {
            slots: slots.collect(),
            state: TaskState::Active,
            stopping: None,
        };
        let table = Arc::new(Mutex::new(table));
        let supervisor = ProcessSupervisor {
            task: task.clone(),
            sandbox: sandbox.clone(),
            table: table.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("thermos".to_owned())
            .spawn(move || supervisor.supervise())
            .expect("a thread");
        let executor = Arc::new(TaskExecutor::new(task, sandbox, table));
        let watch = executor.check().cloned().map(|check| {
            let executor = executor.clone();
            std::thread::Builder::new()
                .name("health".to_owned())
                .spawn(move || executor.watch(&check))
                .expect("a thread")
        });
        RunningTask {
            executor,
            watch,
            thread: Some(thread),
        }
    }
}

/// A started task, stopped on drop.
#[derive(Debug)]
pub struct RunningTask {
    executor: Arc<TaskExecutor>,
    /// Checks the health.
    watch: Option<JoinHandle<()>>,
    /// Supervises the processes.
    thread: Option<JoinHandle<()>>,
}

impl RunningTask {
    #[must_use]
    pub fn sandbox(&self) -> &Path {
        &self.executor.sandbox
    }

    #[must_use]
    pub fn port(&self, name: &str) -> u16 {
        let port = self.executor.task.ports.get(name);
        *port.unwrap_or_else(|| panic!("the task has no port `{name}`"))
    }

    #[must_use]
    pub fn state(&self, process: &str) -> ProcessState {
        self.slot(process, ProcessSlot::state)
    }

    /// The pid of a running process, which is also its process group.
    #[must_use]
    pub fn pid(&self, process: &str) -> Option<u32> {
        self.slot(process, |slot| slot.child.as_ref().map(Child::id))
    }

    /// How often a process was started; the number of its latest run is one less.
    #[must_use]
    pub fn runs(&self, process: &str) -> u32 {
        self.slot(process, |slot| slot.runs)
    }

    #[must_use]
    pub fn task_state(&self) -> TaskState {
        self.executor.table.lock().unwrap().state
    }

    /// Waits until a process is in this state.
    ///
    /// # Panics
    /// It is not in time, or ended in another state; the message has its stderr.
    pub fn wait_for(&self, process: &str, state: ProcessState) {
        wait_until(&format!("process {process} is {state:?}"), || {
            let now = self.state(process);
            let ended = matches!(now, ProcessState::Done | ProcessState::Failed);
            let over = now != state && (ended || self.task_state() != TaskState::Active);
            if over {
                let output = self.log(process, self.runs(process).saturating_sub(1), "stderr");
                panic!("process {process} is {now:?}, not {state:?}: {output}");
            }
            now == state
        });
    }

    /// The `stdout` or `stderr` of a run of a process so far.
    #[must_use]
    pub fn log(&self, process: &str, run: u32, stream: &str) -> String {
        let bytes = std::fs::read(logs(self.sandbox(), process, run).join(stream));
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }

    #[must_use]
    pub fn health(&self) -> TaskHealth {
        self.executor.health()
    }

    /// Waits until the task has ended by itself, or was stopped as unhealthy.
    #[must_use]
    pub fn wait_finished(&self) -> TaskState {
        wait_until("the task ends", || self.task_state() != TaskState::Active);
        self.task_state()
    }

    /// Stops the task: the HTTP lifecycle, SIGTERM to every process group, SIGKILL after the grace. Returns when all
    /// have ended.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.executor.retire();
        let watched = self.watch.take().is_none_or(|watch| watch.join().is_ok());
        self.executor.end(TaskState::Killed);
        let ended = thread.join().is_ok();
        assert!(
            (watched && ended) || std::thread::panicking(),
            "the supervisor or the check panicked"
        );
    }

    fn slot<T>(&self, process: &str, of: impl Fn(&ProcessSlot) -> T) -> T {
        let table = self.executor.table.lock().unwrap();
        of(table
            .slots
            .get(process)
            .unwrap_or_else(|| panic!("no process `{process}`")))
    }
}

impl Drop for RunningTask {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, killpg};
    use nix::unistd::Pid;
    use tempfile::TempDir;

    use super::super::ThermosProcess;
    use super::*;

    fn start(task: ThermosTask) -> (RunningTask, TempDir) {
        let parent = TempDir::new().unwrap();
        (TaskRunner::start(task, parent.path()), parent)
    }

    #[test]
    fn processes_start_when_their_predecessors_have_succeeded() {
        let note = |name: &str| ThermosProcess::new(name, &format!("echo {name} >> order"));
        let (task, _parent) = start(
            ThermosTask::new("t")
                .process(note("third"))
                .process(note("second"))
                .process(note("first"))
                .constraint("first")
                .constraint("second < third"),
        );
        assert_eq!(task.wait_finished(), TaskState::Success);
        let order = std::fs::read_to_string(task.sandbox().join("order")).unwrap();
        assert_eq!(order, "first\nsecond\nthird\n");
        assert_eq!(task.state("third"), ProcessState::Done);
    }

    #[test]
    fn environment_has_only_thermos_variables_and_profile_is_sourced() {
        let (task, _parent) = start(
            ThermosTask::new("t")
                .process(ThermosProcess::new(
                    "setup",
                    "echo 'export STAGE=prod' > .thermos_profile",
                ))
                .process(ThermosProcess::new(
                    "job",
                    "echo $STAGE $EXTRA {{thermos.ports[http]}}; env",
                ))
                .env("EXTRA", "more")
                .constraint("setup < job"),
        );
        assert_eq!(task.wait_finished(), TaskState::Success);
        let output = task.log("job", 0, "stdout");
        let mut lines = output.lines();
        assert_eq!(
            lines.next(),
            Some(format!("prod more {}", task.port("http")).as_str())
        );
        let mut names: Vec<&str> = lines.map(|line| line.split('=').next().unwrap()).collect();
        names.sort_unstable();
        let of_bash = ["PWD", "SHLVL", "_"];
        names.retain(|name| !of_bash.contains(name));
        assert_eq!(
            names,
            [
                "BASH_ENV", "EXTRA", "HOME", "LOGNAME", "PATH", "STAGE", "USER"
            ]
        );
        assert!(output.contains(&format!("HOME={}\n", task.sandbox().display())));
    }

    #[test]
    fn failing_process_restarts_until_max_failures() {
        let (task, _parent) = start(
            ThermosTask::new("t")
                .process(ThermosProcess::new("bad", "echo oops >&2; exit 3").max_failures(2))
                .process(ThermosProcess::new("good", "exec sleep 60")),
        );
        assert_eq!(task.wait_finished(), TaskState::Failed);
        assert_eq!(
            (task.state("bad"), task.runs("bad")),
            (ProcessState::Failed, 2)
        );
        assert_eq!(task.log("bad", 0, "stderr"), "oops\n");
        assert_eq!(task.log("bad", 1, "stderr"), "oops\n");
        assert_eq!(
            task.state("good"),
            ProcessState::Failed,
            "stopped with the task"
        );
    }

    #[test]
    fn killed_process_is_lost_and_not_failed() {
        let (task, _parent) =
            start(ThermosTask::new("t").process(ThermosProcess::new("job", "exec sleep 60")));
        task.wait_for("job", ProcessState::Running);
        let pid = i32::try_from(task.pid("job").unwrap()).unwrap();
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        wait_until("the process runs again", || task.runs("job") == 2);
        task.wait_for("job", ProcessState::Running);
        assert_eq!(task.task_state(), TaskState::Active);
    }

    #[test]
    fn stop_sends_sigterm_first_and_kills_after_grace() {
        let polite = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done";
        let deaf = "trap '' TERM; echo up; while :; do sleep 0.01; done";
        let (mut task, _parent) = start(
            ThermosTask::new("t")
                .process(ThermosProcess::new("polite", polite))
                .process(ThermosProcess::new("deaf", deaf))
                .grace(Duration::from_millis(500)),
        );
        for name in ["polite", "deaf"] {
            wait_until(name, || task.log(name, 0, "stdout").starts_with("up"));
        }
        let group = Pid::from_raw(i32::try_from(task.pid("deaf").unwrap()).unwrap());
        task.stop();
        assert_eq!(task.log("polite", 0, "stdout"), "up\nbye\n");
        assert_eq!(
            (task.state("polite"), task.state("deaf")),
            (ProcessState::Done, ProcessState::Failed)
        );
        assert_eq!(task.task_state(), TaskState::Killed);
        let gone = || killpg(group, None) == Err(nix::errno::Errno::ESRCH);
        wait_until("its process group is gone", gone);
    }

    #[test]
    fn task_runs_as_given_user() {
        if !crate::host::is_root() {
            return crate::skip("other users", "needs root");
        }
        let parent = TempDir::new().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(parent.path(), mode).unwrap();
        let job = ThermosProcess::new("job", "id -u; id -G; touch mine");
        let task = TaskRunner::start(
            ThermosTask::new("t").process(job).user(12_345),
            parent.path(),
        );
        assert_eq!(
            task.wait_finished(),
            TaskState::Success,
            "{}",
            task.log("job", 0, "stderr")
        );
        assert_eq!(task.log("job", 0, "stdout"), "12345\n12345\n");
    }
}
