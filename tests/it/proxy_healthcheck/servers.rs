//! What is healthy and what is not, of servers in every state.

use std::time::Duration;

use hostkit_tests::misbehavior::{
    ConnectionBehavior, FullBacklog, MisbehavingServer, format_response,
};
use hostkit_tests::{free_port, or_skip};

use super::CheckerProcess;

const HEAD: &str = "HTTP/1.1 200 OK\r\n";

fn raw(text: &str) -> ConnectionBehavior {
    ConnectionBehavior::Answer(text.as_bytes().to_vec())
}

/// Starts a checker in front of a scripted server, and asserts its result.
#[track_caller]
fn expect(
    manner: ConnectionBehavior,
    args: &[&str],
    status: u16,
    body: &str,
    detail: &str,
) -> (MisbehavingServer, CheckerProcess) {
    let shown = format!("{manner:?}");
    let shown: String = shown.chars().take(80).collect();
    let server = MisbehavingServer::start(manner);
    let checker = CheckerProcess::before(server.port(), args);
    let (got, log) = (checker.health(), checker.log());
    assert_eq!(
        (got.0, got.1.as_str()),
        (status, body),
        "{shown} {args:?}: {log}"
    );
    let result = &checker.results()[0];
    assert_eq!(result["ok"], body == "ok", "{shown}: {result}");
    let found = result["detail"].as_str().unwrap();
    assert!(found.contains(detail), "{shown}: {found}");
    (server, checker)
}

#[test]
fn healthy_responses() {
    let ok = |text: &str| ConnectionBehavior::Answer(text.replace('\n', "\r\n").into_bytes());
    for (manner, args) in [
        (raw("HTTP/1.1 204 No Content\r\n\r\n"), &[][..]),
        (ok("HTTP/1.1 299 Fine\nContent-Length: 0\n\n"), &[]),
        (ok("HTTP/1.0 200 OK\n\nok\n"), &["--expect-body=ok"]),
        (
            ok("HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
            &["--expect-body=ok"],
        ),
        (
            ok("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n1\no\n1\nk\n0\n\n"),
            &["--expect-body=ok"],
        ),
        (
            ok("HTTP/1.1 200 OK\n\nall is green\n"),
            &["--expect_body_regex=is (green|blue)"],
        ),
        (
            ok(
                "HTTP/1.1 102 Processing\n\nHTTP/1.1 103 Early Hints\nLink: x\n\nHTTP/1.1 200 OK\nContent-Length: 0\n\n",
            ),
            &[],
        ),
        (
            raw("HTTP/1.1 200 OK\nX: bare line feeds\n\nok"),
            &["--expect-body=ok"],
        ),
        (
            ok("HTTP/1.1 200 OK\nX: folded\n  line\nY : space\nContent-Length: 0\n\n"),
            &[],
        ),
        (
            ok("HTTP/1.1 302 Found\nLocation: /x\nContent-Length: 0\n\n"),
            &["--expect-status=200-399"],
        ),
        (
            ok("HTTP/1.1 404 Not Found\nContent-Length: 0\n\n"),
            &["--expect-status=200,404"],
        ),
        (
            ConnectionBehavior::Drip(format_response("200 OK", "ok"), Duration::from_millis(1)),
            &["--timeout=10s", "--expect-body=ok"],
        ),
    ] {
        expect(manner, args, 200, "ok", "returned");
    }
}

#[test]
fn unhealthy_responses() {
    for (manner, args, reason, detail) in [
        (
            ConnectionBehavior::Answer(format_response("503 Busy", "ok")),
            &[][..],
            "http503",
            "expected 2xx",
        ),
        (
            ConnectionBehavior::Answer(format_response("200 OK", "ok")),
            &["--expect-status=204"],
            "http200",
            "expected 204",
        ),
        (
            ConnectionBehavior::Answer(format_response("200 OK", "okay")),
            &["--expect-body=ok"],
            "badbody",
            "\"okay\"",
        ),
        (
            ConnectionBehavior::Answer(format_response("200 OK", "red")),
            &["--expect-body-regex=^green"],
            "badbody",
            "a match of ^green",
        ),
        (
            ConnectionBehavior::Answer(format_response("500 No", "ok")),
            &["--expect-body=ok"],
            "http500",
            "expected 2xx",
        ),
        (
            ConnectionBehavior::Stall(Vec::new()),
            &[],
            "timeout",
            "accepted the connection, but sent no response within 300ms",
        ),
        (
            ConnectionBehavior::Stall(HEAD.into()),
            &[],
            "timeout",
            "sent no response",
        ),
        (
            ConnectionBehavior::Stall([HEAD, "\r\no"].concat().into()),
            &["--expect-body=ok"],
            "timeout",
            "but not the whole body",
        ),
        (
            ConnectionBehavior::Drip(format_response("200 OK", "ok"), Duration::from_millis(100)),
            &[],
            "timeout",
            "sent no response",
        ),
        (
            ConnectionBehavior::Close,
            &[],
            "closed",
            "without a response",
        ),
        (ConnectionBehavior::Reset, &[], "closed", "reset"),
        (raw(HEAD), &[], "closed", "without a response"),
        (
            raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"),
            &["--expect-body=ok"],
            "closed",
            "a truncated body",
        ),
        (
            raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
            &["--expect-body=ok"],
            "closed",
            "truncated body",
        ),
        (
            raw("ok\r\n\r\n"),
            &[],
            "invalid",
            "sent an invalid HTTP response",
        ),
        (
            raw("SSH-2.0-OpenSSH_9.2\r\n"),
            &[],
            "invalid",
            "sent an invalid HTTP response",
        ),
        (raw("HTTP/1.1 99 Low\r\n\r\n"), &[], "invalid", ""),
        (raw("HTTP/2 200\r\n\r\n"), &[], "invalid", ""),
        (
            ConnectionBehavior::Endless(HEAD.into(), b"X: y\r\n".repeat(100)),
            &[],
            "invalid",
            "",
        ),
        (
            ConnectionBehavior::Endless(Vec::new(), b"\0".repeat(100)),
            &[],
            "invalid",
            "",
        ),
        (
            ConnectionBehavior::Endless(Vec::new(), b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
            &[],
            "timeout",
            "sent no response",
        ),
    ] {
        expect(manner, args, 503, reason, detail);
    }
}

#[test]
fn closed_port_is_refused_and_full_backlog_is_a_timeout() {
    let checker = CheckerProcess::before(free_port(), &[]);
    assert_eq!(checker.health(), (503, "refused".to_owned()));
    let full = FullBacklog::start();
    for args in [&["--timeout=300ms"][..], &["--timeout=300ms", "--tcp"]] {
        let port = format!("--test-port={}", full.port());
        let url: &[&str] = if args.len() == 1 { &["--url=/"] } else { &[] };
        let checker = CheckerProcess::start(&[&[port.as_str()], args, url].concat());
        assert_eq!(checker.health(), (503, "timeout".to_owned()));
        checker.logs("did not accept the connection");
    }
}

#[test]
fn redirect_is_not_followed() {
    let target =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "ok")));
    let location = format!("http://127.0.0.1:{}/?token=secret", target.port());
    let redirect =
        format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    let (server, checker) = expect(
        raw(&redirect),
        &[],
        503,
        "http302",
        "token=***, expected 2xx",
    );
    assert_eq!((server.connections(), target.connections()), (1, 0));
    assert!(!checker.log().contains("secret"));
}

#[test]
fn body_of_a_gigabyte_is_not_read() {
    let head = format!("{HEAD}Content-Length: {}\r\n\r\n", 1 << 30);
    let endless = || ConnectionBehavior::Endless(head.clone().into(), vec![b'x'; 1 << 16]);
    // What the kernels of both sides hold is not the checker's to refuse.
    let buffers = 24 << 20;
    for (args, status, body) in [
        (&[][..], 200, "ok"),
        (&["--expect-body=x"], 503, "badbody"),
        (&["--expect-body-regex=y"], 503, "badbody"),
        (&["--expect-body-regex=xx"], 200, "ok"),
    ] {
        let (server, _checker) = expect(endless(), args, status, body, "returned 200");
        assert!(server.written() < buffers, "{}", server.written());
    }
    let (_server, checker) = expect(
        endless(),
        &["--expect-body=x"],
        503,
        "badbody",
        "longer than 64 KiB",
    );
    assert!(super::many::ProcessUsage::of(&checker).rss < 32 << 10);
}

#[test]
fn endless_body_is_healthy_without_an_expected_body() {
    let head = format!("{HEAD}Content-Length: 9\r\n\r\no");
    expect(
        ConnectionBehavior::Stall(head.into()),
        &[],
        200,
        "ok",
        "returned 200",
    );
}

#[test]
fn slow_response_within_the_timeout_is_healthy() {
    let server =
        MisbehavingServer::start(ConnectionBehavior::Held(format_response("200 OK", "ok")));
    let checker = CheckerProcess::before(server.port(), &["--timeout=30s"]);
    let response = std::thread::scope(|scope| {
        let response = scope.spawn(|| checker.health());
        hostkit_tests::wait_until("the server is probed", || server.requests().len() == 1);
        server.release();
        response.join().unwrap()
    });
    assert_eq!(response, (200, "ok".to_owned()));
}

#[test]
fn server_on_ipv6_is_found() {
    let ok = ConnectionBehavior::Answer(format_response("200 OK", "ok"));
    let Some(server) = or_skip("IPv6", MisbehavingServer::start_v6(ok)) else {
        return;
    };
    let url = format!("http://[::1]:{}/", server.port());
    for args in [
        &["--url=/", &format!("--test-port={}", server.port())][..],
        &[&format!("--url={url}")],
    ] {
        assert_eq!(CheckerProcess::start(args).health(), (200, "ok".to_owned()));
    }
    let v4 = format!("--url=http://127.0.0.1:{}/", server.port());
    assert_eq!(
        CheckerProcess::start(&[&v4]).health(),
        (503, "refused".to_owned())
    );
}

#[test]
fn every_change_of_a_flapping_server_is_returned() {
    let server =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "")));
    let checker = CheckerProcess::before(server.port(), &[]);
    for (manner, expected) in [
        (
            ConnectionBehavior::Answer(format_response("200 OK", "")),
            (200, "ok"),
        ),
        (ConnectionBehavior::Close, (503, "closed")),
        (
            ConnectionBehavior::Answer(format_response("200 OK", "")),
            (200, "ok"),
        ),
        (
            ConnectionBehavior::Answer(format_response("500 No", "")),
            (503, "http500"),
        ),
        (
            ConnectionBehavior::Answer(format_response("200 OK", "")),
            (200, "ok"),
        ),
    ] {
        server.set_behavior(manner);
        let got = checker.health();
        assert_eq!((got.0, got.1.as_str()), expected);
    }
    let reasons: Vec<_> = checker
        .results()
        .iter()
        .map(|result| result["reason"].clone())
        .collect();
    assert_eq!(reasons, ["ok", "http500", "ok", "closed", "ok"]);
}

#[test]
fn probe_is_a_get_on_a_new_connection() {
    let server =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "")));
    let checker = CheckerProcess::before(server.port(), &[]);
    checker.health();
    checker.health();
    let host = format!("localhost:{}", server.port());
    let request = "GET /private/stats/ HTTP/1.1\r\nhost: HOST\r\nuser-agent: proxy-healthcheck\r\nconnection: close";
    assert_eq!(server.requests(), vec![request.replace("HOST", &host); 2]);
    assert_eq!(server.connections(), 2);
    let checker = CheckerProcess::before(server.port(), &["--host_header=api.example"]);
    checker.health();
    assert!(server.requests()[2].contains("host: api.example"));
}

#[test]
fn all_urls_are_requested_at_once_and_must_be_healthy() {
    let held = || ConnectionBehavior::Held(format_response("200 OK", ""));
    let (one, two) = (
        MisbehavingServer::start(held()),
        MisbehavingServer::start(held()),
    );
    let urls = [
        format!("--test-port={}", one.port()),
        "--url=/a".to_owned(),
        format!("--url=http://127.0.0.1:{}/b", two.port()),
        "--timeout=30s".to_owned(),
    ];
    let checker = CheckerProcess::start(&urls.each_ref().map(String::as_str));
    let response = std::thread::scope(|scope| {
        let response = scope.spawn(|| checker.health());
        hostkit_tests::wait_until("both servers are probed", || {
            one.requests().len() == 1 && two.requests().len() == 1
        });
        one.release();
        two.release();
        response.join().unwrap()
    });
    assert_eq!(response, (200, "ok".to_owned()));
    two.set_behavior(ConnectionBehavior::Answer(format_response("500 No", "")));
    // The first one never answers, and need not.
    assert_eq!(checker.health(), (503, "http500".to_owned()));
    checker.logs("/b returned 500");
}

#[test]
fn unresolvable_name_is_dnsfail() {
    let server =
        MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "")));
    let url = format!("--url=http://nothing.invalid:{}/", server.port());
    assert_eq!(
        CheckerProcess::start(&[&url, "--timeout=20s"]).health(),
        (503, "dnsfail".to_owned())
    );
}

#[test]
fn tcp_check_only_connects() {
    let server = MisbehavingServer::start(ConnectionBehavior::Stall(Vec::new()));
    let port = format!("--test_port={}", server.port());
    let checker = CheckerProcess::start(&["--tcp", &port]);
    assert_eq!(checker.health(), (200, "ok".to_owned()));
    drop(server);
    assert_eq!(checker.health(), (503, "refused".to_owned()));
}
