//! The end of a task: what Aurora posts, which targets are notified, and when the checker ends.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use hostkit_tests::misbehavior::{
    ConnectionBehavior, FullBacklog, MisbehavingServer, format_response,
};
use hostkit_tests::{free_port, wait_until};
use nix::sys::signal::Signal;

use super::{CheckerProcess, LOCALHOST};

fn with(status: &str) -> MisbehavingServer {
    MisbehavingServer::start(ConnectionBehavior::Answer(format_response(status, "")))
}

/// The request lines a server has seen.
fn lines(server: &MisbehavingServer) -> Vec<String> {
    let requests = server.requests();
    let lines = requests.iter().filter_map(|request| request.lines().next());
    lines.map(|line| line.replace(" HTTP/1.1", "")).collect()
}

#[test]
fn quit_is_forwarded_and_the_checker_ends_with_the_server() {
    let server = with("200 OK");
    let checker = CheckerProcess::before(server.port(), &[]);
    assert_eq!(
        checker.ask("POST", "/quitquitquit").status_and_body(),
        (200, "ok")
    );
    assert_eq!(
        checker.ask("POST", "/quitquitquit").status_and_body(),
        (200, "ok")
    );
    wait_until("the server is notified", || {
        lines(&server) == ["POST /quitquitquit"]
    });
    assert!(
        server.requests()[0].contains("content-length: 0"),
        "{:?}",
        server.requests()
    );
    assert_eq!(checker.health(), (503, "quit".to_owned()));
    assert_eq!(checker.results()[0]["reason"], "quit");
    assert_eq!(
        checker.ask("POST", "/abortabortabort").status_and_body(),
        (200, "ok")
    );
    wait_until("the server is notified again", || {
        lines(&server) == ["POST /quitquitquit", "POST /abortabortabort"]
    });
    assert_eq!(
        checker.health(),
        (503, "quit".to_owned()),
        "the server is still there"
    );
    checker.logs("shutdown requested reason=quit");
    let log = std::sync::Arc::clone(&checker.log);
    drop(server);
    assert_eq!(checker.wait_for_exit(), 0);
    let log = log.lock().unwrap();
    assert!(
        log.contains("server port closed") && !log.contains("drain timeout"),
        "{log}"
    );
}

#[test]
fn server_without_the_endpoint_gets_no_second_request() {
    for status in ["404 Not Found", "500 Oops"] {
        let server = with(status);
        let checker = CheckerProcess::before(server.port(), &["--unhealthy-status=200"]);
        assert_eq!(
            checker.ask("POST", "/quitquitquit").status_and_body(),
            (200, "ok")
        );
        checker.logs(&format!("/quitquitquit status={}", &status[..3]));
        assert_eq!(checker.health(), (200, "quit".to_owned()));
        drop(server);
        assert_eq!(checker.wait_for_exit(), 0);
    }
}

#[test]
fn server_that_does_not_respond_delays_no_response() {
    let silent = MisbehavingServer::start(ConnectionBehavior::Stall(Vec::new()));
    let full = FullBacklog::start();
    for port in [silent.port(), full.port()] {
        let checker = CheckerProcess::before(port, &["--drain-timeout=1s"]);
        // The response does not wait for the server, which is notified after it.
        assert_eq!(
            checker.ask("POST", "/quitquitquit").status_and_body(),
            (200, "ok")
        );
        assert!(
            !checker.log().contains("shutdown notification failed"),
            "{}",
            checker.log()
        );
        assert_eq!(checker.health(), (503, "quit".to_owned()));
        let log = std::sync::Arc::clone(&checker.log);
        assert_eq!(checker.wait_for_exit(), 0);
        assert!(log.lock().unwrap().contains("drain timeout exceeded"));
    }
}

#[test]
fn checker_ends_at_once_if_the_server_has_ended() {
    let checker = CheckerProcess::before(free_port(), &[]);
    assert_eq!(
        checker.ask("POST", "/abortabortabort").status_and_body(),
        (200, "ok")
    );
    assert_eq!(checker.wait_for_exit(), 0);
}

#[test]
fn siblings_are_notified_before_the_server_and_failures_are_ignored() {
    let (server, sibling) = (with("200 OK"), with("202 Accepted"));
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("admin.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let seen = thread::spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        let mut head = [0; 512];
        let length = stream.read(&mut head).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        String::from_utf8_lossy(&head[..length]).into_owned()
    });
    // The sibling takes its time to answer, the server would not.
    let slow = Duration::from_millis(3);
    sibling.set_behavior(ConnectionBehavior::Drip(
        format_response("202 Accepted", ""),
        slow,
    ));
    let args = [
        format!(
            "--quit-notify=http://127.0.0.1:{}/drain?why=quit",
            sibling.port()
        ),
        format!("--quit_notify=unix:{}", path.display()),
        format!("--quit-notify=http://127.0.0.1:{}/", free_port()),
        "--quit-notify=unix:/nowhere/admin.sock".to_owned(),
    ];
    let checker = CheckerProcess::before(server.port(), &args.each_ref().map(String::as_str));
    assert_eq!(
        checker.ask("POST", "/quitquitquit").status_and_body(),
        (200, "ok")
    );
    wait_until("the socket file is posted to", || seen.is_finished());
    let head = seen.join().unwrap();
    assert!(head.starts_with("POST /drain HTTP/1.1\r\n"), "{head}");
    checker.logs("shutdown notification failed url=unix:/nowhere/admin.sock");
    checker.logs("shutdown notification accepted url=http://localhost:");
    assert_eq!(lines(&sibling), ["POST /drain?why=quit"]);
    let log = checker.log();
    let position = |url: &str| {
        let line = format!("shutdown notification accepted url={url}");
        log.find(&line).unwrap_or_else(|| panic!("{line} in {log}"))
    };
    assert!(
        position("http://127.0.0.1:") < position("http://localhost:"),
        "{log}"
    );
    drop(server);
    assert_eq!(checker.wait_for_exit(), 0);
}

#[test]
fn server_that_is_only_connected_to_gets_no_post() {
    let server = with("200 OK");
    let port = format!("--test-port={}", server.port());
    let checker = CheckerProcess::start(&["--tcp", &port]);
    checker.ask("POST", "/quitquitquit");
    wait_until("its port is watched", || server.connections() > 1);
    assert_eq!(lines(&server), [""; 0]);
    drop(server);
    assert_eq!(checker.wait_for_exit(), 0);
}

#[test]
fn signal_ends_the_checker_after_the_checks_under_way() {
    let server = MisbehavingServer::start(ConnectionBehavior::Held(format_response("200 OK", "")));
    // Shorter than what a silent peer may take for its head: one that asks nothing does not count.
    let checker = CheckerProcess::before(server.port(), &["--timeout=60s", "--drain-timeout=4s"]);
    let _silent = TcpStream::connect((LOCALHOST, checker.port)).unwrap();
    let port = checker.port;
    let response = thread::spawn(move || super::ask(LOCALHOST, port, "GET", "/health"));
    wait_until("the server is probed", || server.connections() == 1);
    checker.signal(Signal::SIGHUP);
    checker.signal(Signal::SIGTERM);
    checker.logs("termination signal received");
    wait_until("the port is closed", || {
        TcpStream::connect((LOCALHOST, port)).is_err()
    });
    server.release();
    assert_eq!(response.join().unwrap().status_and_body(), (200, "ok"));
    let log = std::sync::Arc::clone(&checker.log);
    assert_eq!(checker.wait_for_exit(), 0);
    assert!(!log.lock().unwrap().contains("cut off"));
}

#[test]
fn drain_ends_at_its_timeout_or_at_a_second_signal() {
    let server = MisbehavingServer::start(ConnectionBehavior::Stall(Vec::new()));
    for (drain, signals, code) in [
        ("--drain-timeout=100ms", 1, 0),
        ("--drain-timeout=1h", 2, -1),
    ] {
        let checker = CheckerProcess::before(server.port(), &["--timeout=60s", drain]);
        let port = checker.port;
        let connections = server.connections();
        let mut asking = TcpStream::connect((LOCALHOST, port)).unwrap();
        asking
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        wait_until("the server is probed", || {
            server.connections() > connections
        });
        checker.signal(Signal::SIGTERM);
        checker.logs("termination signal received");
        if signals == 2 {
            checker.signal(Signal::SIGINT);
        }
        assert_eq!(checker.wait_for_exit(), code);
    }
}
