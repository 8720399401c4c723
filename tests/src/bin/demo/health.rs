//! Checks the demo's job with both health checkers, then kills it.

use std::process::Command;
use std::time::Duration;

use hostkit_tests::thermos::{
    HealthCheck, HttpCheck, HttpSignaler, ProcessState, RunningTask, TaskRunner, ThermosProcess,
    ThermosTask,
};
use hostkit_tests::{bin, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DemoContext, print_line, print_step};

pub(super) fn check(stage: &DemoContext) {
    print_step("The job with health checks, as Aurora runs it");
    let serve = format!(
        "exec pexrun eightball {} --port={{{{thermos.ports[private]}}}} --logstash_format=True",
        stage.hash
    );
    let checker = "proxy-healthcheck --port={{thermos.ports[health]}} --url=\"/private/stats/\" \
                 --test_port={{thermos.ports[private]}} --unhealthy-status=200";
    let tools = bin("proxy-healthcheck");
    let path = format!(
        "{}:{}",
        tools.parent().unwrap().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    // The settings of the blog with a shorter second.
    let seconds = Duration::from_secs;
    let checked = HealthCheck::http(HttpCheck::default())
        .timeout(seconds(5))
        .interval(seconds(5))
        .max_consecutive_failures(5);
    let mut task = ThermosTask::new("checked")
        .process(ThermosProcess::new("eightball", &serve))
        .process(ThermosProcess::new(
            "proxy-healthcheck",
            &format!("exec {checker}"),
        ))
        .env("PATH", &path)
        .health(checked)
        .second(Duration::from_millis(100));
    for (name, value) in stage.settings() {
        task = task.env(&name, &value);
    }
    let job = TaskRunner::start(task, &stage.path("sandboxes"));
    print_line(checker);
    let page = HttpSignaler::new(job.port("health"));
    wait_until("the job is healthy", || {
        page.check(&HttpCheck::default()).is_ok()
    });
    wait_until("the task is running", || job.health().counters.running());
    print_line("Aurora checks /health, which checks eightball: ok, the task is RUNNING");
    print_line("log-healthcheck --app-directory=eightball --line-pattern='{' --freshness=1");
    print_line(&format!("  {}", check_log(&job, "OK")));
    let pid = job.pid("eightball").and_then(|pid| i32::try_from(pid).ok());
    kill(Pid::from_raw(pid.unwrap()), Signal::SIGTERM).unwrap();
    job.wait_for("eightball", ProcessState::Done);
    print_line("eightball is killed");
    let _ = job.wait_finished();
    let ended = job.health().counters;
    let why = ended.death_reason().unwrap_or_default();
    print_line(&format!(
        "after {} consecutive failures Aurora stops the task, and its page shows:",
        ended.failures()
    ));
    print_line(&format!("  Failed health check! {why}"));
    print_line("the log of the checker in the sandbox has the start of the failure:");
    let log = job.log("proxy-healthcheck", 0, "stderr");
    for line in log.lines().filter(|line| line.contains("previous=ok")) {
        print_line(&format!("  {line}"));
    }
    print_line("log-healthcheck, again");
    print_line(&format!("  {}", check_log(&job, "CRITICAL")));
}

/// Runs log-healthcheck where Aurora runs shell checks, until its output starts with `wanted`.
fn check_log(job: &RunningTask, wanted: &str) -> String {
    let mut found = String::new();
    wait_until(&format!("the log is {wanted}"), || {
        let mut command = Command::new(bin("log-healthcheck"));
        command
            .args([
                "--app-directory=eightball",
                "--line-pattern={",
                "--freshness=1",
            ])
            .current_dir(job.sandbox().parent().unwrap());
        let output = command.output().unwrap();
        found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        found.starts_with(wanted)
    });
    found
}
