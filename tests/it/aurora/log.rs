//! log-healthcheck under Aurora, as a shell check and on the `health` port: the blog's check of its consumers, which
//! are killed when lines that begin with `{` stop, whatever else is written.

use std::fs::File;
use std::process::Command;
use std::time::{Duration, SystemTime};

use hostkit_tests::thermos::{
    AuroraRelease, HealthCheck, HttpCheck, HttpLifecycle, HttpSignaler, ProcessState, TaskRunner,
    TaskState, ThermosProcess, ThermosTask,
};
use hostkit_tests::{ChildGuard, bin, free_port, wait_until};
use tempfile::TempDir;

use super::seconds;

/// The length of one of Aurora's seconds here.
const SECOND: Duration = Duration::from_millis(10);

/// Writes ten own lines within one freshness of the blog, and only lines of a library once the file `hang` exists.
const CONSUMER: &str =
    "while sleep 0.1; do if [ -e hang ]; then echo 'retrying'; else echo '{\"n\": 1}'; fi; done";

/// The blog's check, with a scaled unit of the freshness.
fn log_check_command() -> String {
    let freshness = (100 * SECOND).as_millis();
    format!(
        "{} --app-directory consumer --line-pattern '{{' --freshness {freshness}ms",
        bin("log-healthcheck").display()
    )
}

/// The blog's settings, with time for a program that starts.
fn blog(check: HealthCheck) -> HealthCheck {
    check
        .initial_interval(seconds(120))
        .interval(seconds(60))
        .max_consecutive_failures(3)
        .timeout(seconds(1000))
}

/// Runs a consumer with this check: it is left alone while it consumes, and killed when it hangs. The page contains
/// `shown`.
fn assert_stopped_only_when_hanging(
    contract: AuroraRelease,
    name: &str,
    task: ThermosTask,
    shown: &str,
) {
    let parent = TempDir::new().unwrap();
    let task = task
        .process(ThermosProcess::new("consumer", CONSUMER))
        .contract(contract)
        .second(SECOND);
    let task = TaskRunner::start(task, parent.path());
    wait_until("many checks pass", || task.health().counters.attempts() > 8);
    let health = task.health();
    assert_eq!(
        health.counters.failures(),
        0,
        "{contract:?}, {name}: {:?}",
        health.reasons
    );
    assert!(health.counters.running());
    std::fs::write(task.sandbox().join("hang"), "").unwrap();
    assert_eq!(task.wait_finished(), TaskState::Failed);
    let health = task.health();
    assert_eq!(health.counters.failures(), 4, "{contract:?}, {name}");
    let why = health.counters.death_reason().unwrap();
    assert!(why.contains(shown), "{contract:?}, {name}: {why}");
    assert!(task.log("consumer", 0, "stdout").ends_with("retrying\n"));
}

#[test]
fn consumer_is_stopped_when_only_other_processes_write_to_its_log() {
    std::thread::scope(|scope| {
        for (contract, shown) in [
            (AuroraRelease::V0_15, "returned non-zero exit status 2"),
            (AuroraRelease::Last, "exit status 2 with output 'CRITICAL"),
        ] {
            scope.spawn(move || {
                let task = ThermosTask::new("shell")
                    .health(blog(HealthCheck::shell(&log_check_command())));
                assert_stopped_only_when_hanging(contract, "shell", task, shown);
            });
            scope.spawn(move || {
                let served = format!(
                    "exec {} --port={{{{thermos.ports[health]}}}} --unhealthy-status=200",
                    log_check_command()
                );
                let task = ThermosTask::new("resident")
                    .process(ThermosProcess::new("checker", &served))
                    .health(blog(HealthCheck::http(HttpCheck::default())));
                assert_stopped_only_when_hanging(contract, "resident", task, "got \"stale\"");
            });
        }
    });
}

#[test]
fn resident_checker_exits_on_quit_within_one_wait() {
    let parent = TempDir::new().unwrap();
    let served = format!(
        "exec {} --port={{{{thermos.ports[health]}}}}",
        log_check_command()
    );
    let task = ThermosTask::new("quits")
        .process(ThermosProcess::new("checker", &served))
        .process(ThermosProcess::new("consumer", CONSUMER))
        .lifecycle(HttpLifecycle::default())
        .second(Duration::from_millis(300));
    let mut task = TaskRunner::start(task, parent.path());
    let port = task.port("health");
    wait_until("the task is healthy", || {
        HttpSignaler::new(port).check(&HttpCheck::default()).is_ok()
    });
    task.stop();
    let outcome = task.health().messages;
    let seen: Vec<_> = outcome
        .iter()
        .map(|outcome| (outcome.handled, outcome.looks))
        .collect();
    // The abort request finds no listener, which takes no time.
    assert_eq!(seen, [(true, 6), (false, 0)], "{outcome:?}");
    assert_eq!(task.state("checker"), ProcessState::Done);
}

#[test]
fn reason_of_resident_checker_fits_on_aurora_page() {
    let directory = TempDir::new().unwrap();
    let (log, port) = (directory.path().join("stderr"), free_port());
    let process = Command::new(bin("log-healthcheck"))
        .args([
            "--line-pattern={",
            "--freshness=1h",
            "--unhealthy-status=200",
            "--file",
        ])
        .arg(&log)
        .arg(format!("--port={port}"))
        .current_dir(directory.path())
        .stderr(File::create(directory.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let _process = ChildGuard(process);
    let signaler = HttpSignaler::new(port).timeout(seconds(10));
    wait_until("the checker listens", || {
        signaler.query("GET", "/history").is_ok()
    });
    let verdict = || signaler.check(&HttpCheck::default());
    let got = |word: &str| {
        Err(format!(
            "Response differs from expected response (expected \"ok\", got \"{word}\")"
        ))
    };
    assert_eq!(verdict(), got("nolog"));
    std::fs::write(&log, "{\"n\": 1}\n").unwrap();
    assert_eq!(verdict(), Ok(()));
    std::fs::remove_file(&log).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    std::fs::write(&log, "{\"@timestamp\": \"2017-07-14T02:40:00Z\"}\n").unwrap();
    File::options()
        .append(true)
        .open(&log)
        .unwrap()
        .set_modified(old)
        .unwrap();
    std::fs::write(directory.path().join(".healthchecksnooze"), "").unwrap();
    assert_eq!(verdict(), Ok(()), "snoozed");
}
