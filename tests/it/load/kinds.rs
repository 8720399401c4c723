//! Servers that do one thing wrong, and what the load generator calls it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use hostkit_tests::free_port;
use hostkit_tests::load::{ConnectionReuse, FailureKind, LoadGenerator, LoadPlan, LoadReport};
use socket2::SockRef;

use super::plan;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\neightball 1";

/// What a server does on each of its connections, in order.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Reads a request and writes this.
    Say(&'static str),
    /// Reads a request.
    Hear,
    /// Closes the connection.
    Close,
    /// Resets it.
    Reset,
    /// Leaves it open and does nothing more.
    Hang,
}
use Act::{Close, Hang, Hear, Reset, Say};

/// A server that follows the script on every connection, to the end of the test process: its threads wait for nothing
/// that a test would miss.
fn server(script: &'static [Act]) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || follow(script, stream));
        }
    });
    address
}

fn follow(script: &[Act], mut stream: TcpStream) {
    for act in script {
        match act {
            Say(text) => {
                hear(&mut stream);
                let _ = stream.write_all(text.as_bytes());
            }
            Hear => hear(&mut stream),
            Close => return,
            Reset => {
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
            Hang => {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    }
}

fn hear(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    let mut one = [0];
    while !bytes.ends_with(b"\r\n\r\n") && stream.read(&mut one).is_ok_and(|read| read == 1) {
        bytes.push(one[0]);
    }
}

/// What a load of at least 40 attempts on this server comes to.
fn judged(script: &'static [Act], connections: ConnectionReuse) -> LoadReport {
    let load = LoadGenerator::start(LoadPlan {
        timeout: Duration::from_millis(300),
        ..plan(server(script), connections)
    });
    load.await_attempts(40);
    load.stop()
}

/// Asserts that every attempt failed, and in this way.
#[track_caller]
fn all(report: &LoadReport, kind: FailureKind) {
    assert_eq!(report.count(kind), report.attempts, "{report}");
    assert_eq!(report.ok, 0, "{report}");
}

#[test]
fn a_closed_port_is_refused() {
    let load = LoadGenerator::start(plan(
        ([127, 0, 0, 1], free_port()).into(),
        ConnectionReuse::Fresh,
    ));
    load.await_attempts(40);
    let report = load.stop();
    all(&report, FailureKind::Refused);
    assert_eq!(report.gaps[0].length, report.lasted, "{report}");
    assert_eq!(report.first.len(), 20);
}

#[test]
fn what_fails_on_a_new_connection_has_its_name() {
    let fresh = ConnectionReuse::Fresh;
    all(&judged(&[Hear, Reset], fresh), FailureKind::Reset);
    all(&judged(&[Hear, Close], fresh), FailureKind::Eof);
    all(&judged(&[Hear, Hang], fresh), FailureKind::Timeout);
    all(
        &judged(
            &[Say("HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno")],
            fresh,
        ),
        FailureKind::Status(503),
    );
    all(
        &judged(
            &[Say("HTTP/1.1 302 Go\r\nContent-Length: 0\r\n\r\n")],
            fresh,
        ),
        FailureKind::Status(302),
    );
    all(
        &judged(
            &[Say(
                "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\neightballs 1",
            )],
            fresh,
        ),
        FailureKind::BadBody,
    );
    all(
        &judged(
            &[
                Say("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\neightball 1"),
                Close,
            ],
            fresh,
        ),
        FailureKind::Truncated,
    );
    all(
        &judged(&[Say("HTTP/1.1 200"), Close], fresh),
        FailureKind::Truncated,
    );
    all(
        &judged(&[Say("hello\r\n\r\n")], fresh),
        FailureKind::BadResponse,
    );
    all(
        &judged(
            &[Say(
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\neightball 1",
            )],
            fresh,
        ),
        FailureKind::BadResponse,
    );
}

#[test]
fn an_idle_connection_that_is_closed_fails_the_next_request_and_no_other() {
    let report = judged(&[Say(OK), Close], ConnectionReuse::KeepAlive);
    assert_eq!(
        report.count(FailureKind::EofReused),
        report.failed(),
        "{report}"
    );
    // The first on every connection succeeds, the second does not.
    assert!(report.ok.abs_diff(report.failed()) <= 4, "{report}");
    assert_eq!(report.connections, report.ok, "{report}");
}

#[test]
fn a_connection_that_is_reset_when_used_again_has_its_name() {
    let report = judged(&[Say(OK), Hear, Reset], ConnectionReuse::KeepAlive);
    assert_eq!(
        report.count(FailureKind::ResetReused),
        report.failed(),
        "{report}"
    );
    assert!(report.ok.abs_diff(report.failed()) <= 4, "{report}");
}

#[test]
fn a_close_that_is_announced_is_honoured() {
    let script = &[
        Say(OK),
        Say("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\neightball 1"),
        Close,
    ];
    let report = judged(script, ConnectionReuse::KeepAlive);
    assert!(report.clean(), "{report}");
    assert!(
        report.connections.abs_diff(report.attempts / 2) <= 4,
        "{report}"
    );
    // HTTP/1.0 has no other way to say it.
    let script = &[Say("HTTP/1.0 200 OK\r\n\r\neightball 1"), Close];
    let report = judged(script, ConnectionReuse::KeepAlive);
    assert!(report.clean(), "{report}");
    assert_eq!(report.connections, report.attempts, "{report}");
}

#[test]
fn kept_connections_are_used_again_and_fresh_ones_are_not() {
    let long = &[Say(OK); 100];
    let report = judged(long, ConnectionReuse::KeepAlive);
    assert!(report.clean(), "{report}");
    assert_eq!(report.connections, 4, "{report}");
    let report = judged(long, ConnectionReuse::Fresh);
    assert!(report.clean(), "{report}");
    assert_eq!(report.connections, report.attempts, "{report}");
}

#[test]
fn requests_that_were_due_during_a_wait_are_not_made_up_for() {
    let report = judged(&[Hear, Hang], ConnectionReuse::Fresh);
    // Of a request every 10 ms, one in 300 ms is made.
    assert!(report.missed > 10 * report.attempts, "{report}");
}
