//! Many checks, at once and one after another: one probe for checks at once, and bounded memory.

use std::io::Write as _;
use std::net::TcpStream;

use hostkit::runtime::raise_open_files;
use hostkit_tests::misbehavior::{ConnectionBehavior, MisbehavingServer, format_response};
use hostkit_tests::{wait_limit, wait_until};

use super::{CheckerProcess, LOCALHOST, ask, read};

/// Checks at once.
const MANY: usize = 1000;
/// A day of checks, five seconds apart.
const DAY: usize = 24 * 3600 / 5;
/// How much a process may grow in that time, in KiB: what the allocator rounds.
const SLACK: u64 = 256;

/// What a process holds (proc(5)).
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessUsage {
    /// Resident memory in KiB.
    pub(super) rss: u64,
    threads: u64,
    files: usize,
}

impl ProcessUsage {
    pub(super) fn of(checker: &CheckerProcess) -> Self {
        let directory = format!("/proc/{}", checker.child.0.id());
        let status = std::fs::read_to_string(format!("{directory}/status")).unwrap();
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            rss: field("VmRSS:"),
            threads: field("Threads:"),
            files: std::fs::read_dir(format!("{directory}/fd"))
                .unwrap()
                .count(),
        }
    }
}

/// The value of a metric.
fn metric(admin: u16, name: &str) -> u64 {
    let text = ask(LOCALHOST, admin, "GET", "/metrics").body;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn thousand_checks_at_once_share_one_probe_and_leak_nothing() {
    raise_open_files(2 * MANY as u64);
    let server =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "")));
    let admin = hostkit_tests::free_port();
    let checker = CheckerProcess::before(
        server.port(),
        &["--timeout=60s", &format!("--admin=127.0.0.1:{admin}")],
    );
    assert_eq!(checker.health().0, 200);
    let before = ProcessUsage::of(&checker);
    let mut after = Vec::new();
    for round in 1..=3 {
        server.set_behavior(ConnectionBehavior::Held(format_response("200 OK", "")));
        let (earlier_checks, probes) = (
            metric(admin, "healthcheck_checks_total"),
            server.connections(),
        );
        let checks: Vec<TcpStream> = (0..MANY)
            .map(|_| {
                let mut stream = TcpStream::connect((LOCALHOST, checker.port)).unwrap();
                stream.set_read_timeout(Some(wait_limit())).unwrap();
                stream
                    .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    .unwrap();
                stream
            })
            .collect();
        wait_until("all checks have arrived", || {
            metric(admin, "healthcheck_checks_total") == earlier_checks + MANY as u64
        });
        server.release();
        for check in checks {
            assert_eq!(read(check).status_and_body(), (200, "ok"));
        }
        assert_eq!(server.connections(), probes + 1, "round {round}");
        server.set_behavior(ConnectionBehavior::Answer(format_response("200 OK", "")));
        wait_until("all connections are closed", || {
            ProcessUsage::of(&checker).files <= before.files
        });
        after.push(ProcessUsage::of(&checker));
    }
    assert_eq!(after[2].threads, 1);
    assert!(after[2].rss <= after[1].rss + SLACK, "{before:?} {after:?}");
}

#[test]
fn day_of_checks_leaks_nothing() {
    let server =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "ok")));
    let checker = CheckerProcess::before(server.port(), &["--expect-body=ok", "--timeout=60s"]);
    let check = |index: usize| {
        // Now and then something is wrong.
        let (manner, status) = match index % 97 {
            0 => (ConnectionBehavior::Close, 503),
            1 => (
                ConnectionBehavior::Answer(format_response("500 No", "no")),
                503,
            ),
            2 => (ConnectionBehavior::Answer(b"garbage".to_vec()), 503),
            _ => (
                ConnectionBehavior::Answer(format_response("200 OK", "ok")),
                200,
            ),
        };
        server.set_behavior(manner);
        assert_eq!(checker.health().0, status, "check {index}");
    };
    (0..DAY / 8).for_each(check);
    let before = ProcessUsage::of(&checker);
    (0..DAY).for_each(check);
    wait_until("all connections are closed", || {
        ProcessUsage::of(&checker).files <= before.files
    });
    let after = ProcessUsage::of(&checker);
    assert_eq!(after.threads, 1);
    assert!(after.rss <= before.rss + SLACK, "{before:?} {after:?}");
    assert_eq!(
        server.connections(),
        DAY / 8 + DAY,
        "each had a probe of its own"
    );
}

#[test]
fn silent_clients_do_not_block_others() {
    let server =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "")));
    let checker = CheckerProcess::before(server.port(), &[]);
    let silent: Vec<_> = (0..200)
        .map(|_| TcpStream::connect((LOCALHOST, checker.port)).unwrap())
        .collect();
    assert_eq!(checker.health(), (200, "ok".to_owned()));
    drop(silent);
}
