//! The command line: what the articles quote, what is refused, and what cannot be.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use hostkit_tests::misbehavior::{ConnectionBehavior, MisbehavingServer, format_response};
use hostkit_tests::{ChildGuard, CommandOutcome, bin, free_port, wait_until};

use super::{LOCALHOST, ask};

fn run(args: &[&str]) -> CommandOutcome {
    Command::new(bin("proxy-healthcheck"))
        .args(args)
        .output()
        .unwrap()
        .into()
}

/// The command line of the articles' job `eightball`, which its template makes from the same words. What stands for the
/// pex is our program; ports are as thermos fills them in.
const QUOTED: &str = "./aurora-proxy-healthcheck-ATHIRDGITHASH-trusty_x86_64.pex --port={{thermos.ports[health]}} --url=\"/private/stats/\" --test_port={{thermos.ports[private]}}";

#[test]
fn quoted_command_line_runs_as_quoted() {
    let server =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "{}")));
    let (sandbox, health) = (tempfile::tempdir().unwrap(), free_port());
    let line = QUOTED
        .replace("ATHIRDGITHASH", "3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f")
        .replace("{{thermos.ports[health]}}", &health.to_string())
        .replace("{{thermos.ports[private]}}", &server.port().to_string());
    let pex = line.split(' ').next().unwrap();
    std::fs::copy(bin("proxy-healthcheck"), sandbox.path().join(pex)).unwrap();
    let child = Command::new("bash")
        .args(["-c", &format!("exec {line}")])
        .current_dir(sandbox.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _child = ChildGuard(child);
    wait_until("it listens", || {
        std::net::TcpStream::connect((LOCALHOST, health)).is_ok()
    });
    assert_eq!(
        ask(LOCALHOST, health, "GET", "/health").status_and_body(),
        (200, "ok")
    );
    assert!(server.requests()[0].starts_with("GET /private/stats/ HTTP/1.1"));
}

#[test]
fn flags_are_read_from_the_environment() {
    let server =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "")));
    let health = free_port();
    let child = Command::new(bin("proxy-healthcheck"))
        .env("HOSTKIT_PROXY_HEALTHCHECK_PORT", health.to_string())
        .env(
            "HOSTKIT_PROXY_HEALTHCHECK_TEST_PORT",
            server.port().to_string(),
        )
        .env("HOSTKIT_PROXY_HEALTHCHECK_URL", "/a /b")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _child = ChildGuard(child);
    wait_until("it listens", || {
        std::net::TcpStream::connect((LOCALHOST, health)).is_ok()
    });
    assert_eq!(
        ask(LOCALHOST, health, "GET", "/health").status_and_body(),
        (200, "ok")
    );
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn invalid_command_line_is_rejected_before_a_port_is_bound() {
    for (args, expected) in [
        ("", "--port"),
        ("--port=1", "missing --url: give --url"),
        ("--port=x --url=/", "--port"),
        ("--port=70000 --url=/", "--port"),
        (
            "--port=1 --url=/",
            "invalid --url /: a path needs --test-port",
        ),
        ("--port=1 --url=/ --test_port=0", "--test-port"),
        (
            "--port=1 --url=https://u:p@h:8443/?key=secret",
            "invalid --url https://***@h:8443/?key=***: https is not supported",
        ),
        (
            "--port=1 --url=stats --test-port=2",
            "invalid --url stats: write a path that begins with /",
        ),
        (
            "--port=1 --url=http://u:p@h/",
            "user and password are not supported",
        ),
        ("--port=1 --tcp", "give --test-port"),
        (
            "--port=1 --tcp=1 --url=/ --test-port=2",
            "--url and --tcp exclude one another: give one",
        ),
        (
            "--port=1 --url=/ --test-port=2 --expect-status=ok",
            "write 200, 2xx, 200-399",
        ),
        (
            "--port=1 --url=/ --test-port=2 --expect-body-regex=(",
            "--expect-body-regex",
        ),
        ("--port=1 --url=/ --test-port=2 --timeout=soon", "--timeout"),
        (
            "--port=1 --url=/ --test-port=2 --unhealthy-status=404",
            "[possible values: 503, 200]",
        ),
        (
            "--port=1 --url=/ --test-port=2 --quit-notify=/drain",
            "write http://127.0.0.1:PORT/PATH, or unix:PATH",
        ),
        (
            "--port=1 --url=/ --test-port=2 --admin=0.0.0.0:1",
            "every address of the host",
        ),
        (
            "--port=1 --url=/ --test-port=2 --follow",
            "unexpected argument",
        ),
    ] {
        let args: Vec<&str> = args.split_whitespace().collect();
        let outcome = run(&args).exits(2).logs(expected);
        assert!(
            !outcome.stderr.contains("secret") && !outcome.stderr.contains("started"),
            "{}",
            outcome.stderr
        );
    }
}

#[test]
fn port_in_use_is_named() {
    let v4 = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let port = v4.local_addr().unwrap().port();
    let args = |port: u16| {
        [
            format!("--port={port}"),
            "--tcp".to_owned(),
            "--test-port=1".to_owned(),
        ]
    };
    let start = |port: u16| run(&args(port).each_ref().map(String::as_str));
    start(port)
        .exits(73)
        .logs(&format!(
            "cannot listen on 127.0.0.1:{port}: stop the process that listens there"
        ))
        .logs("because: Address already in use");
    if let Ok(v6) = TcpListener::bind(("::1", 0)) {
        let port = v6.local_addr().unwrap().port();
        start(port)
            .exits(73)
            .logs(&format!("cannot listen on [::1]:{port}"));
    }
}

#[test]
fn version_and_help_need_no_other_flags() {
    let outcome = run(&["--version"]).exits(0);
    assert!(
        outcome.stdout.starts_with("proxy-healthcheck "),
        "{}",
        outcome.stdout
    );
    let outcome = run(&["--help"]).exits(0);
    assert!(
        outcome.stdout.contains("--quit-notify"),
        "{}",
        outcome.stdout
    );
}
