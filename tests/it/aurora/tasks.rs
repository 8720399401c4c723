//! Whole tasks as Aurora runs them: a server, proxy-healthcheck on the `health` port, and the executor that acts on it.
//! The settings are those of the blog with shorter seconds.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hostkit_tests::eightball::build_zipapp;
use hostkit_tests::host::CpuLimit;
use hostkit_tests::thermos::{
    AuroraRelease, HttpLifecycle, LifecycleMessage, ProcessState, RunningTask, TaskHealth,
    TaskRunner, TaskState, ThermosProcess, ThermosTask,
};
use hostkit_tests::{
    bin, find_program, is_long_run, or_skip, wait_limit, wait_until, wait_within, workspace,
};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::server::{ScriptedServer, answer};
use super::{blog, seconds};

const BOTH: [AuroraRelease; 2] = [AuroraRelease::V0_15, AuroraRelease::Last];

/// How many checks prove that a task is left alone: several times the number that stops it.
fn survival_checks() -> u32 {
    if is_long_run() { 60 } else { 12 }
}

/// A task with the blog's command line of the checker, in which only the deadline is scaled.
fn checked_task(name: &str, second: Duration) -> ThermosTask {
    checked_task_with_deadline(name, second, second * 9 / 2)
}

/// The same with another deadline.
fn checked_task_with_deadline(name: &str, second: Duration, deadline: Duration) -> ThermosTask {
    let deadline = deadline.as_millis();
    let cmdline = format!(
        "exec {} --port={{{{thermos.ports[health]}}}} --url=\"/private/stats/\" \
         --test_port={{{{thermos.ports[private]}}}} --timeout={deadline}ms --unhealthy-status=200",
        bin("proxy-healthcheck").display()
    );
    ThermosTask::new(name)
        .process(ThermosProcess::new("checker", &cmdline))
        .health(blog())
        .lifecycle(HttpLifecycle::default())
        .second(second)
}

/// The blog's eight-ball, which has none of Aurora's endpoints.
fn add_eightball(task: ThermosTask, directory: &Path) -> Option<ThermosTask> {
    let program = directory.join("eightball.pex");
    or_skip("python3", build_zipapp(&program))?;
    let cmdline = format!(
        "exec {} --port={{{{thermos.ports[private]}}}}",
        program.display()
    );
    Some(task.process(ThermosProcess::new("eightball", &cmdline)))
}

/// A server that exits on quit.
fn add_quitter(task: ThermosTask) -> Option<ThermosTask> {
    let python = or_skip("python3", find_program("python3"))?;
    let program = workspace().join("tests/fixtures/quitter.py");
    let cmdline = format!(
        "exec {} {} {{{{thermos.ports[private]}}}}",
        python.display(),
        program.display()
    );
    Some(task.process(ThermosProcess::new("server", &cmdline)))
}

/// Waits for two consecutive successes. Earlier failures do not matter: on a busy host several checks are late while a
/// server starts.
fn wait_healthy(task: &RunningTask) {
    let is_healthy = || {
        let counters = task.health().counters;
        counters.running() && counters.successes() >= 2
    };
    // In real time the first attempts alone take longer than the wait limit.
    assert!(
        wait_within(3 * wait_limit(), is_healthy),
        "{:?}",
        task.health()
    );
}

/// Sends a signal to a process, unless it has ended.
fn signal(task: &RunningTask, process: &str, signal: Signal) {
    if let Some(pid) = task.pid(process) {
        let sent = kill(Pid::from_raw(pid.try_into().unwrap()), signal);
        assert!(matches!(sent, Ok(()) | Err(Errno::ESRCH)), "{sent:?}");
    }
}

#[test]
fn dead_server_is_stopped_at_sixth_consecutive_failure() {
    for contract in BOTH {
        let parent = TempDir::new().unwrap();
        let task = checked_task("dead", Duration::from_millis(60)).contract(contract);
        let Some(task) = add_eightball(task, parent.path()) else {
            return;
        };
        let mut task = TaskRunner::start(task, parent.path());
        wait_healthy(&task);
        let before = task.health().reasons.len();
        // It is present and never answers: the worst kind of failure.
        signal(&task, "eightball", Signal::SIGSTOP);
        wait_until("the task is unhealthy", || {
            task.health().counters.death_reason().is_some()
        });
        let health = task.health();
        let shown = "Response differs from expected response (expected \"ok\", got \"timeout\")";
        assert_eq!(health.counters.death_reason(), Some(shown), "{contract:?}");
        assert_eq!(health.counters.failures(), 6, "{:?}", health.reasons);
        assert!(health.reasons.len() >= before + 6);
        signal(&task, "eightball", Signal::SIGCONT);
        assert_eq!(task.wait_finished(), TaskState::Failed);
        task.stop();
        let output = task.log("checker", 0, "stderr");
        assert!(output.contains("unhealthy reason=timeout"), "{output}");
    }
}

#[test]
fn server_that_never_listens_is_stopped_after_initial_attempts() {
    for (contract, failures) in [(AuroraRelease::V0_15, 6), (AuroraRelease::Last, 9)] {
        let parent = TempDir::new().unwrap();
        let task = checked_task("absent", Duration::from_millis(60))
            .contract(contract)
            .process(ThermosProcess::new("eightball", "exec sleep 600"));
        let task = TaskRunner::start(task, parent.path());
        assert_eq!(task.wait_finished(), TaskState::Failed);
        let health = task.health();
        assert_eq!(health.reasons.len(), failures, "{contract:?}");
        let last = health.reasons.last().unwrap();
        assert!(last.ends_with("got \"refused\")"), "{last}");
    }
}

#[test]
fn quit_ends_task_before_abort() {
    for contract in BOTH {
        let parent = TempDir::new().unwrap();
        let soon = blog().initial_interval(seconds(1)).interval(seconds(1));
        let task = checked_task("quits", Duration::from_millis(500)).contract(contract);
        let task = task.health(soon);
        let Some(task) = add_quitter(task) else {
            return;
        };
        let mut task = TaskRunner::start(task, parent.path());
        wait_healthy(&task);
        task.stop();
        let outcome = task.health().messages;
        assert_eq!(outcome.len(), 1, "no abort: {outcome:?}");
        assert_eq!(
            (outcome[0].endpoint.as_str(), outcome[0].handled),
            ("/quitquitquit", true)
        );
        // The latest release checks every second and stops when the task has ended; 0.15 checks once, after five.
        let enough = if contract == AuroraRelease::Last {
            4
        } else {
            1
        };
        assert!(outcome[0].looks <= enough, "{outcome:?}");
        assert_eq!(
            task.task_state(),
            TaskState::Success,
            "all processes ended by themselves"
        );
        assert_eq!(
            (task.state("server"), task.state("checker")),
            (ProcessState::Done, ProcessState::Done)
        );
    }
}

#[test]
fn server_that_ignores_quit_takes_both_waits_while_checker_stays() {
    let parent = TempDir::new().unwrap();
    let task = checked_task("stays", Duration::from_millis(300));
    let Some(task) = add_eightball(task, parent.path()) else {
        return;
    };
    let mut task = TaskRunner::start(task, parent.path());
    wait_healthy(&task);
    task.stop();
    let handled = |endpoint: &str| LifecycleMessage {
        endpoint: endpoint.to_owned(),
        handled: true,
        looks: 6,
    };
    assert_eq!(
        task.health().messages,
        [handled("/quitquitquit"), handled("/abortabortabort")]
    );
    assert_eq!(task.task_state(), TaskState::Killed);
    let states = (task.state("eightball"), task.state("checker"));
    assert_eq!(
        states,
        (ProcessState::Done, ProcessState::Done),
        "SIGTERM is exit 0 for both"
    );
}

#[test]
fn flapping_server_is_stopped_only_after_six_consecutive_failures() {
    // Five failures and a success, repeatedly: the most that is tolerated.
    let flaps = AtomicBool::new(true);
    let flaps: &'static AtomicBool = Box::leak(Box::new(flaps));
    let asked = std::sync::atomic::AtomicU32::new(0);
    let server = ScriptedServer::start(move |_, stream| {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let well = number.is_multiple_of(6) && flaps.load(Ordering::Relaxed);
        let output = if well { "200 OK" } else { "500 No" };
        stream.write_all(answer(output, "").as_bytes())
    });
    for contract in BOTH {
        flaps.store(true, Ordering::Relaxed);
        let parent = TempDir::new().unwrap();
        // A healthy response must not be late here.
        let second = Duration::from_millis(60);
        let task = checked_task_with_deadline(&format!("flaps-{contract:?}"), second, seconds(10))
            .health(blog().timeout(seconds(200)))
            .contract(contract)
            .port_at("private", server.port());
        let task = TaskRunner::start(task, parent.path());
        wait_until("many checks pass", || {
            task.health().counters.attempts() > 3 * 6 + 3
        });
        assert_eq!(task.health().counters.death_reason(), None);
        assert_eq!(task.task_state(), TaskState::Active);
        flaps.store(false, Ordering::Relaxed);
        wait_until("the task is unhealthy", || {
            task.health().counters.death_reason().is_some()
        });
        assert_eq!(task.health().counters.failures(), 6);
    }
}

#[test]
fn throttled_server_survives_stalls_and_is_stopped_when_dead() {
    if or_skip("CPU limits", CpuLimit::percent(5)).is_none() {
        return;
    }
    std::thread::scope(|scope| {
        for contract in BOTH {
            scope.spawn(move || assert_survives_stalls(contract));
        }
    });
}

/// The rule concerns real seconds. Compressed time is tried first, which makes the rule harder to meet, because a check
/// takes its own time. On a host too busy for that, real time decides.
fn assert_survives_stalls(contract: AuroraRelease) {
    let seconds: &[u64] = if is_long_run() { &[1000] } else { &[100, 1000] };
    let failed: Vec<_> = seconds
        .iter()
        .map_while(|millis| survives_stalls(contract, Duration::from_millis(*millis)).err())
        .collect();
    assert!(failed.len() < seconds.len(), "{contract:?}: {failed:#?}");
}

/// Whether a task whose server stalls for 4 of 8 seconds survives, and is stopped when the server no longer answers.
/// The error has the reasons of a task that was stopped earlier.
fn survives_stalls(contract: AuroraRelease, second: Duration) -> Result<(), TaskHealth> {
    let limit = CpuLimit::percent(5).unwrap();
    let parent = TempDir::new().unwrap();
    let task = checked_task("stalls", second).contract(contract);
    let Some(task) = add_eightball(task, parent.path()) else {
        return Ok(());
    };
    let task = TaskRunner::start(task, parent.path());
    wait_healthy(&task);
    // Mesos limits the whole task, including the checker.
    for process in ["eightball", "checker"] {
        limit.add(task.pid(process).unwrap()).unwrap();
    }
    let last = task.health().counters.attempts() + survival_checks();
    let is_decided = || {
        let counters = task.health().counters;
        counters.attempts() >= last || counters.death_reason().is_some()
    };
    let over = AtomicBool::new(false);
    let decided = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                signal(&task, "eightball", Signal::SIGSTOP);
                std::thread::sleep(second * 4);
                signal(&task, "eightball", Signal::SIGCONT);
                std::thread::sleep(second * 4);
            }
        });
        let decided = wait_within(wait_limit() + survival_checks() * 12 * second, is_decided);
        over.store(true, Ordering::Relaxed);
        decided
    });
    let health = task.health();
    assert!(decided, "{contract:?}: {health:?}");
    if health.counters.death_reason().is_some() {
        return Err(health);
    }
    signal(&task, "eightball", Signal::SIGSTOP);
    let is_dead = || task.health().counters.death_reason().is_some();
    // In real time that takes longer than the wait limit.
    assert!(
        wait_within(wait_limit() + survival_checks() * second, is_dead),
        "{:?}",
        task.health()
    );
    assert_eq!(task.health().counters.failures(), 6);
    signal(&task, "eightball", Signal::SIGCONT);
    Ok(())
}
