//! `--once`: one check as a Nagios plugin.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;

use hostkit_tests::misbehavior::{ConnectionBehavior, MisbehavingServer, format_response};
use hostkit_tests::{CommandOutcome, bin, free_port};

fn once(args: &str) -> CommandOutcome {
    let sandbox = tempfile::tempdir().unwrap();
    let outcome = Command::new(bin("proxy-healthcheck"))
        .args(args.split_whitespace())
        .current_dir(sandbox.path())
        .output();
    outcome.unwrap().into()
}

#[test]
fn check_prints_one_line_with_performance_data() {
    let healthy =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "{}")));
    let unhealthy =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("503 No", "a|b")));
    let (healthy, unhealthy) = (healthy.port(), unhealthy.port());
    let nowhere = free_port();
    for (args, code, expected) in [
        (
            format!("--once --url=/x --test-port={healthy}"),
            0,
            "OK: http://localhost:",
        ),
        (
            format!("--once --port=1 --tcp --test-port={healthy}"),
            0,
            "OK: localhost:",
        ),
        (
            format!("--once --url=/ --test_port={unhealthy}"),
            2,
            "CRITICAL: http503: ",
        ),
        (
            format!("--once --url=/ --test-port={unhealthy} --expect-status=503 --expect-body=c"),
            2,
            "a\\x7cb",
        ),
        (
            format!("--once --url=/ --test-port={nowhere}"),
            2,
            "CRITICAL: refused: ",
        ),
    ] {
        let outcome = once(&args).exits(code);
        assert!(
            outcome.stdout.contains(expected),
            "{args}: {}",
            outcome.stdout
        );
        assert_eq!(outcome.stderr, "", "{args}");
        let (line, data) = outcome.stdout.trim_end().split_once(" | time=").unwrap();
        assert!(!line.contains('|') && !line.contains('\n'), "{line}");
        let (time, limits) = data.split_once('s').unwrap();
        assert!(time.parse::<f64>().unwrap() < 4.5, "{data}");
        assert_eq!(limits, ";;4.5;0;4.5");
    }
}

#[test]
fn json_has_the_same_result() {
    let unhealthy =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("503 No", "")));
    let outcome = once(&format!(
        "--once --json --url=/ --test-port={}",
        unhealthy.port()
    ))
    .exits(2);
    let value: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(
        (&value["status"], &value["reason"]),
        (&"CRITICAL".into(), &"http503".into())
    );
    assert!(value["time_seconds"].as_f64().unwrap() < value["timeout_seconds"].as_f64().unwrap());
    let outcome = once("--once --json").exits(3);
    let value: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(
        (&value["status"], &value["reason"]),
        (&"UNKNOWN".into(), &"error".into())
    );
}

#[test]
fn invalid_command_line_is_unknown_only_with_once() {
    for (args, expected) in [
        ("--once", "UNKNOWN: error: missing --url: give --url"),
        (
            "--once --url=/",
            "UNKNOWN: error: invalid --url /: a path needs --test-port",
        ),
        (
            "--once --url=/ --test-port=no",
            "UNKNOWN - invalid value 'no' for '--test-port <PORT>'",
        ),
        (
            "--once=1 --url",
            "UNKNOWN - a value is required for '--url <URL>'",
        ),
    ] {
        let outcome = once(args).exits(3);
        assert!(
            outcome.stdout.starts_with(expected),
            "{args}: {}",
            outcome.stdout
        );
        assert_eq!(outcome.stdout.lines().count(), 1, "{}", outcome.stdout);
    }
    assert_eq!(once("--url=/ --test-port=2").exits(2).stdout, "");
}

#[test]
fn zone_selects_the_interface_and_is_not_sent() {
    let listener = hostkit_tests::or_skip(
        "IPv6",
        TcpListener::bind("[::1]:0").map_err(|e| e.to_string()),
    );
    let Some(listener) = listener else { return };
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap();
        stream.write_all(&format_response("200 OK", "")).unwrap();
        String::from_utf8_lossy(&request[..length]).to_ascii_lowercase()
    });
    let outcome = once(&format!("--once --url=http://[::1%251]:{port}/x")).exits(0);
    let expected = format!("OK: http://[::1%1]:{port}/x returned 200");
    assert!(outcome.stdout.starts_with(&expected), "{}", outcome.stdout);
    let request = server.join().unwrap();
    assert!(
        request.contains(&format!("host: [::1]:{port}\r\n")),
        "{request}"
    );
    let outcome = once("--once --url=http://[fe80::1%25none0]:1/").exits(2);
    assert!(
        outcome.stdout.starts_with("CRITICAL: dnsfail: "),
        "{}",
        outcome.stdout
    );
}
