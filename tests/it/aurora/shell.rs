//! The shell rows of the contract, and the effect of checks on a task: the loop, the snooze file, the order of
//! branches.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hostkit_tests::thermos::{
    AuroraRelease, HealthCheck, HttpCheck, ProcessState, RunningTask, TaskRunner, TaskState,
    ThermosProcess, ThermosTask,
};
use hostkit_tests::wait_until;
use tempfile::TempDir;

use super::server::{ScriptedServer, answer};
use super::{SECOND, seconds};

/// The parent directory of all tasks; each has its own name.
static PARENT: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().unwrap());

fn idle_task(name: &str) -> ThermosTask {
    ThermosTask::new(name)
        .process(ThermosProcess::new("job", "exec sleep 600"))
        .second(SECOND)
}

fn start(task: ThermosTask) -> RunningTask {
    TaskRunner::start(task, PARENT.path())
}

/// A check that shows only its first result.
fn first_result_check(cmdline: &str) -> HealthCheck {
    HealthCheck::shell(cmdline)
        .initial_interval(Duration::ZERO)
        .interval(seconds(1))
        .timeout(seconds(500))
}

/// The reason why a task with this check ends.
fn run_until_killed(name: &str, contract: AuroraRelease, check: HealthCheck) -> String {
    let task = start(idle_task(name).contract(contract).health(check));
    assert_eq!(task.wait_finished(), TaskState::Failed);
    task.health().counters.death_reason().unwrap().to_owned()
}

#[test]
fn shell_check_result_is_exit_status() {
    for contract in [AuroraRelease::V0_15, AuroraRelease::Last] {
        let name = format!("passes-{contract:?}");
        let check = first_result_check("echo noise; echo more >&2; true");
        let task = start(idle_task(&name).contract(contract).health(check));
        wait_until("the task is checked", || {
            task.health().counters.attempts() > 2
        });
        assert_eq!(task.health().reasons, [""; 0]);
    }
    let sick = "echo oops; echo help >&2; exit 3";
    assert_eq!(
        run_until_killed("old-exit", AuroraRelease::V0_15, first_result_check(sick)),
        format!("Command '{sick}' returned non-zero exit status 3")
    );
    assert_eq!(
        run_until_killed("exit", AuroraRelease::Last, first_result_check(sick)),
        format!("Command '{sick}' returned non-zero exit status 3 with output 'oops\nhelp\n'")
    );
    let signal = run_until_killed(
        "signal",
        AuroraRelease::Last,
        first_result_check("kill -9 $$"),
    );
    assert!(signal.contains("exit status -9 with output ''"), "{signal}");
}

#[test]
fn shell_is_sh_in_0_15_and_bash_in_latest() {
    // dash has no arrays; skipped where sh is bash.
    let only_bash = || first_result_check("a=(1 2); test ${a[1]} = 2");
    let task = start(idle_task("bash").health(only_bash()));
    wait_until("the task is checked", || {
        task.health().counters.attempts() > 1
    });
    assert_eq!(task.task_state(), TaskState::Active);
    let name = |shell| {
        run_until_killed(
            &format!("name-{shell:?}"),
            shell,
            first_result_check("echo $0; exit 1"),
        )
    };
    assert!(name(AuroraRelease::Last).ends_with("with output '/bin/bash\n'"));
    let sh = std::fs::canonicalize("/bin/sh").unwrap();
    if !sh.ends_with("bash") {
        let _ = run_until_killed("dash", AuroraRelease::V0_15, only_bash());
    }
}

#[test]
fn shell_check_is_killed_at_timeout() {
    let check = || first_result_check("exec sleep 600").timeout(seconds(2));
    assert_eq!(
        run_until_killed("slow", AuroraRelease::Last, check()),
        "Health check timed out."
    );
    assert_eq!(
        run_until_killed("old-slow", AuroraRelease::V0_15, check()),
        format!(
            "Internal health check error: Command 'exec sleep 600' timed out after {} seconds",
            (2 * SECOND).as_secs_f64()
        )
    );
}

#[test]
fn shell_check_runs_as_user_of_executor() {
    let task = ThermosTask::new("where")
        .port("health")
        .env("ONLY_OF_THE_TASK", "1")
        .process(ThermosProcess::new(
            "setup",
            "echo 'export STAGE=prod' > .thermos_profile",
        ))
        .process(ThermosProcess::new("job", "echo up >&2; exec sleep 600"))
        .constraint("setup < job")
        .second(SECOND)
        .health(
            // The first attempts are forgiven: the profile exists when failures count.
            first_result_check(
                "pwd; env; echo {{thermos.ports[health]}} {{mesos.instance}}; exit 1",
            )
            .initial_interval(seconds(1))
            .interval(seconds(1))
            .max_consecutive_failures(1000),
        );
    let task = start(task);
    task.wait_for("job", ProcessState::Running);
    let seen = task.health().reasons.len();
    wait_until("another check follows", || {
        task.health().reasons.len() > seen + 1
    });
    let output = task.health().reasons.pop().unwrap();
    let lines: Vec<&str> = output.lines().collect();
    let directory = task.sandbox().parent().unwrap().display().to_string();
    assert!(
        lines[0].ends_with(&format!("with output '{directory}")),
        "{output}"
    );
    for absent in ["STAGE=", "ONLY_OF_THE_TASK=", "HOME=", "BASH_ENV="] {
        assert!(!output.contains(absent), "{output}");
    }
    assert!(lines.contains(&format!("MESOS_DIRECTORY={directory}").as_str()));
    assert!(lines.contains(&format!("{} 0", task.port("health")).as_str()));
    assert!(task.sandbox().ends_with("sandbox"));
}

#[test]
fn shell_check_replaces_http_check_and_http_check_without_port_is_healthy() {
    let server = ScriptedServer::start_with_response(answer("200 OK", "ok"));
    let both = HealthCheck::http(HttpCheck::default())
        .and_shell("exit 1")
        .initial_interval(Duration::ZERO);
    let task = idle_task("both")
        .port_at("health", server.port())
        .health(both);
    assert_eq!(start(task).wait_finished(), TaskState::Failed);
    assert_eq!(server.requests(), [""; 0]);

    let checked = HealthCheck::http(HttpCheck::default()).initial_interval(Duration::ZERO);
    let asked = idle_task("refused")
        .port("health")
        .health(checked.clone().interval(seconds(1)));
    let unchecked = start(idle_task("no-port").health(checked.interval(seconds(1))));
    let asked = start(asked);
    assert_eq!(asked.wait_finished(), TaskState::Failed);
    let why = asked.health().counters.death_reason().unwrap().to_owned();
    assert!(why.contains("Connection refused"), "{why}");
    assert_eq!(unchecked.health().counters.attempts(), 0);
    assert_eq!(unchecked.task_state(), TaskState::Active);
}

/// A server that is healthy or not, as the flag says.
fn start_switchable_server() -> (ScriptedServer, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let outcome = well.clone();
    let server = ScriptedServer::start(move |_, stream| {
        let output = if outcome.load(Ordering::Relaxed) {
            "ok"
        } else {
            "sick"
        };
        stream.write_all(answer("200 OK", output).as_bytes())
    });
    (server, well)
}

#[test]
fn task_is_stopped_when_failures_exceed_limit() {
    for contract in [AuroraRelease::V0_15, AuroraRelease::Last] {
        let (server, well) = start_switchable_server();
        let check = HealthCheck::http(HttpCheck::default())
            .initial_interval(seconds(1))
            .interval(seconds(1))
            .timeout(seconds(500))
            .max_consecutive_failures(5);
        let task = idle_task(&format!("exceeds-{contract:?}"))
            .contract(contract)
            .port_at("health", server.port())
            .health(check);
        let task = start(task);
        wait_until("the task is running", || {
            task.health().counters.attempts() > 1
        });
        assert!(task.health().counters.running());
        well.store(false, Ordering::Relaxed);
        assert_eq!(task.wait_finished(), TaskState::Failed);
        let health = task.health();
        assert_eq!(health.reasons.len(), 6);
        assert_eq!(health.counters.failures(), 6);
        let shown = "Response differs from expected response (expected \"ok\", got \"sick\")";
        assert_eq!(health.counters.death_reason(), Some(shown));
        assert_eq!(task.state("job"), ProcessState::Failed, "it was stopped");
    }
}

#[test]
fn only_release_0_15_sleeps_before_first_check() {
    let long = || {
        HealthCheck::http(HttpCheck::default())
            .initial_interval(seconds(100_000))
            .interval(seconds(1))
    };
    let servers = [AuroraRelease::V0_15, AuroraRelease::Last].map(|contract| {
        let server = ScriptedServer::start_with_response(answer("200 OK", "sick"));
        let task = idle_task(&format!("sleeps-{contract:?}"))
            .contract(contract)
            .port_at("health", server.port())
            .health(long());
        (start(task), server)
    });
    let [(old, _), (last, _)] = &servers;
    wait_until("the latest release continues to check", || {
        last.health().counters.attempts() > 10
    });
    assert_eq!(
        (
            last.health().counters.failures(),
            last.health().counters.running()
        ),
        (0, false)
    );
    assert_eq!(
        (
            old.health().counters.attempts(),
            old.health().counters.running()
        ),
        (0, true)
    );
}

#[test]
fn snooze_file_counts_as_success() {
    for contract in [AuroraRelease::V0_15, AuroraRelease::Last] {
        let (server, well) = start_switchable_server();
        let check = HealthCheck::http(HttpCheck::default())
            .initial_interval(seconds(1))
            .interval(seconds(2))
            .timeout(seconds(500))
            .max_consecutive_failures(3);
        let task = idle_task(&format!("snoozes-{contract:?}"))
            .contract(contract)
            .port_at("health", server.port())
            .health(check);
        let task = start(task);
        let file = task.sandbox().join(".healthchecksnooze");
        std::fs::write(&file, "").unwrap();
        well.store(false, Ordering::Relaxed);
        wait_until("the check is snoozed", || task.health().snoozed > 0);
        let asked = server.requests().len();
        let snoozed = task.health().snoozed;
        wait_until("checks continue", || task.health().snoozed > snoozed + 8);
        assert_eq!(server.requests().len(), asked, "no request without a port");
        assert_eq!(task.health().counters.failures(), 0);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(task.wait_finished(), TaskState::Failed);
    }
}
