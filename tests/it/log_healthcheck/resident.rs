//! Resident mode: Aurora's health contract over logs. The contract itself is tested with proxy-healthcheck.

use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use hostkit_tests::ChildGuard;
use hostkit_tests::host::run_as;

use super::*;

struct ResidentChecker {
    process: ChildGuard,
    port: u16,
}

impl ResidentChecker {
    fn start(sandbox: &LogSandbox, flags: &[&str]) -> Self {
        Self::spawn(
            sandbox,
            sandbox.command(hostkit_tests::bin("log-healthcheck")),
            flags,
        )
    }

    fn spawn(sandbox: &LogSandbox, mut command: Command, flags: &[&str]) -> Self {
        let port = hostkit_tests::free_port();
        command
            .args(ARTICLE_FLAGS)
            .args(flags)
            .arg(format!("--port={port}"));
        let log = File::options()
            .append(true)
            .create(true)
            .open(sandbox.path("log"))
            .unwrap();
        command.stderr(log);
        let process = ChildGuard(command.spawn().unwrap());
        let resident = Self { process, port };
        hostkit_tests::wait_until("the port is open", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        resident
    }

    /// The status and the body of a response.
    fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .set_read_timeout(Some(hostkit_tests::wait_limit()))
            .unwrap();
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    #[track_caller]
    fn health(&self, status: u16, body: &str) {
        assert_eq!(self.ask("GET /health"), (status, body.to_owned()));
    }
}

#[test]
fn reasons_are_served_in_auroras_words() {
    let sandbox = LogSandbox::new();
    let resident = ResidentChecker::start(&sandbox, &[]);
    resident.health(503, "nolog");
    sandbox.logs("noise\n");
    resident.health(200, "ok");
    sandbox.logs("{\"a\":1}\n");
    resident.health(200, "ok");
    sandbox.write(".logs/app/1/stderr", timed(20));
    sandbox.age(300);
    resident.health(200, "ok");
    let (_, history) = resident.ask("GET /history");
    for word in ["nolog", "within", "0/stderr", "1/stderr"] {
        assert!(
            history.contains(word) || word == "within",
            "{word} in {history}"
        );
    }
    assert_eq!(resident.ask("POST /quitquitquit").0, 200);
    let mut process = resident.process;
    hostkit_tests::wait_until("the process exits after shutdown", || {
        process
            .0
            .try_wait()
            .unwrap()
            .is_some_and(|status| status.success())
    });
    let log = fs::read_to_string(sandbox.path("log")).unwrap();
    assert!(
        log.contains("unhealthy") && log.contains("reason=nolog"),
        "{log}"
    );
}

#[test]
fn stale_log_recovers() {
    let sandbox = LogSandbox::new();
    sandbox.logs(timed(500));
    let resident = ResidentChecker::start(&sandbox, &["--unhealthy-status=200"]);
    resident.health(200, "stale");
    sandbox.logs("{\"a\":1}\n");
    resident.health(200, "ok");
}

#[test]
fn state_is_shared_between_processes() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    sandbox.age(60);
    ResidentChecker::start(&sandbox, &[]).health(200, "ok");
    sandbox.logs("noise\n");
    assert!(perfdata(&sandbox.check().exits(0), "age") >= 60.0);
}

#[test]
fn grace_period_ends_with_the_first_success() {
    let sandbox = LogSandbox::new();
    let resident = ResidentChecker::start(&sandbox, &["--grace=1h"]);
    resident.health(200, "ok");
    sandbox.logs("{\"a\":1}\n");
    resident.health(200, "ok");
    // The state file remembers the line, not the process.
    for state in fs::read_dir(sandbox.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        if state.is_file() && !state.ends_with("log") {
            fs::remove_file(state).unwrap();
        }
    }
    drop(resident);
    fs::remove_dir_all(sandbox.path(".logs")).unwrap();
    ResidentChecker::start(&sandbox, &[]).health(503, "nolog");
}

#[test]
fn unreadable_log_is_healthy_while_it_is_written_to() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    fs::set_permissions(sandbox.log(), fs::Permissions::from_mode(0o600)).unwrap();
    let program = sandbox.path("program");
    fs::copy(hostkit_tests::bin("log-healthcheck"), &program).unwrap();
    let Some(mut command) =
        hostkit_tests::or_skip("a log that cannot be read", run_as(54_321, program))
    else {
        return;
    };
    sandbox.clean(&mut command);
    let resident = ResidentChecker::spawn(&sandbox, command, &[]);
    resident.health(200, "ok");
    resident.health(200, "ok");
    sandbox.age(200);
    resident.health(503, "stale");
    let log = fs::read_to_string(sandbox.path("log")).unwrap();
    assert_eq!(
        log.matches("unreadable log counts as healthy while it is written to")
            .count(),
        1,
        "{log}"
    );
}

#[test]
fn checks_leave_no_open_descriptors() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    let resident = ResidentChecker::start(&sandbox, &[]);
    let proc = PathBuf::from(format!("/proc/{}", resident.process.0.id()));
    let held = || {
        let count = |name: &str| fs::read_dir(proc.join(name)).unwrap().count();
        (count("fd"), count("task"))
    };
    resident.health(200, "ok");
    let mut before = (0, 0);
    hostkit_tests::wait_until("one thread is left", || {
        before = held();
        before.1 == 1
    });
    for _ in 0..200 {
        sandbox.logs("{\"a\":1}\nnoise\n");
        resident.health(200, "ok");
    }
    hostkit_tests::wait_until("as many files and threads as before", || held() <= before);
}
