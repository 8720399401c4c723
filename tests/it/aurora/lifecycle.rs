//! The stop of a task: which requests it gets, how long each waits, and when the wait ends early.

use std::io::Write as _;
use std::time::Duration;

use hostkit_tests::free_port;
use hostkit_tests::thermos::{
    AuroraRelease, HealthCheck, HttpCheck, HttpLifecycle, LifecycleMessage, ProcessState,
    RunningTask, TaskRunner, TaskState, ThermosProcess, ThermosTask,
};
use tempfile::TempDir;

use super::seconds;
use super::server::{ScriptedServer, answer};

/// The length of one of Aurora's seconds here; a response has one of them.
const SECOND: Duration = Duration::from_millis(250);

/// A job that ends as soon as the file `quit` exists, or at SIGTERM.
const QUITS: &str = "until [ -e quit ]; do sleep 0.01; done";

fn start(task: ThermosTask) -> (RunningTask, TempDir) {
    let parent = TempDir::new().unwrap();
    (TaskRunner::start(task, parent.path()), parent)
}

fn task(port: u16) -> ThermosTask {
    ThermosTask::new("t")
        .port_at("health", port)
        .lifecycle(HttpLifecycle::default().waits(seconds(2), seconds(3)))
        .second(SECOND)
}

fn message(endpoint: &str, handled: bool, looks: u32) -> LifecycleMessage {
    LifecycleMessage {
        endpoint: endpoint.to_owned(),
        handled,
        looks,
    }
}

/// Stops the task and returns the requests of the lifecycle.
fn stop_and_collect(task: &mut RunningTask) -> Vec<LifecycleMessage> {
    task.stop();
    task.health().messages
}

#[test]
fn task_that_answers_any_status_is_given_its_wait_before_signal() {
    for status in ["404 Not Found", "500 No"] {
        let server = ScriptedServer::start_with_response(answer(status, "x"));
        let task = task(server.port()).lifecycle(HttpLifecycle::default());
        let (mut task, _parent) = start(task.process(ThermosProcess::new("job", "exec sleep 600")));
        task.wait_for("job", ProcessState::Running);
        let seen = stop_and_collect(&mut task);
        // At once, and then once a second until the five are over.
        let expected = [
            message("/quitquitquit", true, 6),
            message("/abortabortabort", true, 6),
        ];
        assert_eq!(seen, expected, "{status}");
        assert_eq!(
            server.requests(),
            ["POST /quitquitquit", "POST /abortabortabort"]
        );
        assert_eq!(task.task_state(), TaskState::Killed);
    }
}

#[test]
fn task_that_does_not_answer_is_signalled_without_wait() {
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    for port in [free_port(), silent.local_addr().unwrap().port()] {
        let (mut task, _parent) =
            start(task(port).process(ThermosProcess::new("job", "exec sleep 600")));
        task.wait_for("job", ProcessState::Running);
        let expected = [
            message("/quitquitquit", false, 0),
            message("/abortabortabort", false, 0),
        ];
        assert_eq!(stop_and_collect(&mut task), expected);
    }
}

#[test]
fn each_stage_waits_only_when_its_endpoint_answers() {
    let server = ScriptedServer::start(|line, stream| {
        if line.contains("quit") {
            // No response: the connection ends.
            return Ok(());
        }
        stream.write_all(answer("200 OK", "").as_bytes())
    });
    let (mut task, _parent) =
        start(task(server.port()).process(ThermosProcess::new("job", "exec sleep 600")));
    task.wait_for("job", ProcessState::Running);
    let expected = [
        message("/quitquitquit", false, 0),
        message("/abortabortabort", true, 4),
    ];
    assert_eq!(stop_and_collect(&mut task), expected);
}

/// Stops a task of two processes, of which both or only one wait for `quit`, which the server of the port writes.
fn quit_two_processes(
    contract: AuroraRelease,
    both: bool,
) -> (Vec<LifecycleMessage>, Vec<String>, TaskState) {
    let parent = TempDir::new().unwrap();
    let sandbox = parent.path().join("1700000000000-t-0/sandbox");
    let server = ScriptedServer::start(move |line, stream| {
        if line.contains("quit") {
            std::fs::write(sandbox.join("quit"), "")?;
        }
        stream.write_all(answer("200 OK", "").as_bytes())
    });
    let second = if both { QUITS } else { "exec sleep 600" };
    let task = task(server.port())
        .contract(contract)
        .process(ThermosProcess::new("server", QUITS))
        .process(ThermosProcess::new("checker", second));
    let mut task = TaskRunner::start(task, parent.path());
    task.wait_for("checker", ProcessState::Running);
    let seen = stop_and_collect(&mut task);
    (seen, server.requests(), task.task_state())
}

#[test]
fn task_that_ended_after_quit_gets_no_abort() {
    let (seen, requests, state) = quit_two_processes(AuroraRelease::Last, true);
    assert_eq!(requests, ["POST /quitquitquit"]);
    assert_eq!(seen.len(), 1);
    assert!(seen[0].handled && seen[0].looks < 4, "{seen:?}");
    assert_eq!(state, TaskState::Success, "it ended by itself");
    // 0.15 does not check before the time is over.
    let (seen, requests, state) = quit_two_processes(AuroraRelease::V0_15, true);
    assert_eq!(requests, ["POST /quitquitquit"]);
    assert_eq!(seen, [message("/quitquitquit", true, 1)]);
    assert_eq!(state, TaskState::Success);
}

#[test]
fn one_remaining_process_keeps_task_active() {
    for (contract, looks) in [
        (AuroraRelease::Last, [3, 4]),
        (AuroraRelease::V0_15, [1, 1]),
    ] {
        let (seen, requests, state) = quit_two_processes(contract, false);
        assert_eq!(requests, ["POST /quitquitquit", "POST /abortabortabort"]);
        let expected = [
            message("/quitquitquit", true, looks[0]),
            message("/abortabortabort", true, looks[1]),
        ];
        assert_eq!((seen.as_slice(), state), (&expected[..], TaskState::Killed));
    }
}

#[test]
fn unhealthy_task_gets_lifecycle_requests() {
    let server = ScriptedServer::start_with_response(answer("200 OK", "sick"));
    let check = HealthCheck::http(HttpCheck::default())
        .initial_interval(Duration::ZERO)
        .timeout(seconds(100));
    let task = task(server.port())
        .process(ThermosProcess::new("job", "exec sleep 600"))
        .health(check);
    let (task, _parent) = start(task);
    assert_eq!(task.wait_finished(), TaskState::Failed);
    let expected = [
        message("/quitquitquit", true, 3),
        message("/abortabortabort", true, 4),
    ];
    assert_eq!(task.health().messages, expected);
    assert_eq!(
        server.requests(),
        ["GET /health", "POST /quitquitquit", "POST /abortabortabort"]
    );
}

#[test]
fn task_without_lifecycle_port_gets_no_requests() {
    let server = ScriptedServer::start_with_response(answer("200 OK", ""));
    let (mut other, _parent) = start(
        ThermosTask::new("t")
            .port_at("http", server.port())
            .process(ThermosProcess::new("job", "exec sleep 600"))
            .lifecycle(HttpLifecycle::default())
            .second(SECOND),
    );
    assert_eq!(stop_and_collect(&mut other), []);
    let (mut named, _parent) = start(
        ThermosTask::new("t")
            .port_at("admin", server.port())
            .process(ThermosProcess::new("job", "exec sleep 600"))
            .lifecycle(
                HttpLifecycle::default()
                    .port("admin")
                    .waits(Duration::ZERO, Duration::ZERO),
            )
            .second(SECOND),
    );
    assert_eq!(stop_and_collect(&mut named).len(), 2);
    assert_eq!(
        server.requests(),
        ["POST /quitquitquit", "POST /abortabortabort"]
    );
}
