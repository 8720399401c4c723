//! Requests and responses are forwarded unchanged, except for the required changes.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hostkit_tests::wait_until;

use super::wire::{KEY, ScriptedUpstream, WireConnection, ok, proxy, request};

#[test]
fn request_and_response_pass_on_one_connection_each() {
    let (origin, requests) = ScriptedUpstream::start_answering(
        "HTTP/1.1 299 Quite Fine\r\nX-One: 1\r\nX-One: 2\r\nContent-Length: 5\r\n\r\nhello",
    );
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    for number in 0..3 {
        let path = format!("GET /a%2Fb/{number}?q=%20&r=+");
        let answer = client.ask(request(&path, "X-Two: 3\r\nX-Two: 4\r\n"));
        assert!(
            answer.head.starts_with("HTTP/1.1 299 Quite Fine\r\n"),
            "{answer:?}"
        );
        assert!(
            answer.head.contains("x-one: 1\r\nx-one: 2\r\n"),
            "{answer:?}"
        );
        assert_eq!(answer.text(), "hello");
        let seen = requests.lock().unwrap()[number].clone();
        assert!(
            seen.head.starts_with(&format!("{path} HTTP/1.1\r\n")),
            "{seen:?}"
        );
        assert!(seen.head.contains("x-two: 3\r\nx-two: 4\r\n"), "{seen:?}");
        assert_eq!(seen.header("host"), Some("here"));
    }
    assert_eq!(
        origin.accepted(),
        1,
        "the connection to the server was kept"
    );
}

#[test]
fn bodies_of_all_framings_pass_both_ways() {
    let answers = [
        ok("known"),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nkno\r\n2\r\nwn\r\n0\r\n\r\n"
            .to_owned(),
    ];
    for answer in answers {
        let (origin, requests) = ScriptedUpstream::start_answering(answer.as_bytes());
        let proxy = proxy(origin.port(), &[]);
        let mut client = WireConnection::connect(proxy.port());
        for (method, framed) in [
            ("POST", "Content-Length: 5\r\n\r\nhello"),
            (
                "POST",
                "Transfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n1\r\no\r\n0\r\n\r\n",
            ),
            (
                "GET",
                "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            ),
            ("GET", "Content-Length: 5\r\n\r\nhello"),
            ("PUT", "Content-Length: 0\r\n\r\n"),
        ] {
            let line = format!("{method} / HTTP/1.1\r\nHost: h\r\nX-API-Key: {KEY}\r\n{framed}");
            let got = client.ask(&line);
            assert_eq!(got.text(), "known");
            assert_eq!(
                got.header("transfer-encoding").is_some(),
                answer.contains("chunked"),
                "{got:?}"
            );
            let seen = requests.lock().unwrap().pop().unwrap();
            let sent = if method == "PUT" { "" } else { "hello" };
            assert_eq!(seen.text(), sent, "{framed:?}");
            if framed.starts_with("Content-Length") {
                assert_eq!(
                    seen.header("content-length"),
                    Some(sent.len().to_string().as_str())
                );
            } else {
                assert_eq!(seen.header("transfer-encoding"), Some("chunked"));
            }
            // A server that does not read the body of a GET reads it as the next request.
            let closes = (method == "GET").then_some("close");
            assert_eq!(seen.header("connection"), closes, "{line:?}");
        }
        assert_eq!(origin.accepted(), 3);
    }
}

#[test]
fn responses_without_body_end_with_head() {
    for (method, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 5000\r\n\r\n",
        ),
        ("OPTIONS", "HTTP/1.1 204 No Content\r\nAllow: GET\r\n\r\n"),
    ] {
        let (origin, _) = ScriptedUpstream::start_answering(answer);
        let proxy = proxy(origin.port(), &[]);
        let mut client = WireConnection::connect(proxy.port());
        for _ in 0..2 {
            let got = client.ask_head(request(&format!("{method} /"), ""));
            assert_eq!(got.head.lines().next(), answer.lines().next());
            if method == "HEAD" && answer.contains("Content-Length") {
                assert_eq!(got.header("content-length"), Some("5000"));
            }
        }
        // A server that sends the body nevertheless would give it to the next client.
        let may_follow = method == "HEAD" || answer.contains("Content-Length");
        assert_eq!(origin.accepted(), 1 + usize::from(may_follow), "{answer:?}");
    }
}

#[test]
fn trailers_pass_both_ways() {
    let (origin, requests) = ScriptedUpstream::start_answering(
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
    );
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    let answer = client.ask(
        request(
            "POST /",
            "TE: trailers\r\nConnection: TE\r\nTrailer: X-End\r\nTransfer-Encoding: chunked\r\n",
        ) + "3\r\nabc\r\n0\r\nX-End: 9\r\n\r\n",
    );
    assert_eq!(
        (answer.text().as_str(), answer.trailers.trim()),
        ("ok", "x-sum: 7")
    );
    let seen = requests.lock().unwrap()[0].clone();
    assert_eq!(
        (seen.text().as_str(), seen.trailers.trim()),
        ("abc", "x-end: 9")
    );
    assert_eq!(seen.header("te"), Some("trailers"));
    // Trailers are sent only to clients that announce support (`TE: trailers`).
    let answer = client.ask(request("GET /", ""));
    assert_eq!(
        (answer.text().as_str(), answer.trailers.as_str()),
        ("ok", "")
    );
}

#[test]
fn expect_continue_is_answered_when_upstream_takes_body() {
    let (origin, requests) = ScriptedUpstream::start_answering(ok("done"));
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    client.send(request(
        "POST /",
        "Expect: 100-continue\r\nContent-Length: 4\r\n",
    ));
    assert_eq!(client.head().unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.ask("data").text(), "done");
    assert_eq!(requests.lock().unwrap()[0].header("expect"), None);

    // A denied request gets no 100.
    let refused = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let answer = client.ask(refused);
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (401, Some("close"))
    );
    client.expect_close();

    let mut client = WireConnection::connect(proxy.port());
    let answer = client.ask(request("GET /", "Expect: the-unexpected\r\n"));
    assert_eq!(
        (answer.status(), answer.reason().as_str()),
        (417, "unsupported_expectation")
    );
}

#[test]
fn informational_responses_are_dropped() {
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
    let (origin, _) = ScriptedUpstream::start_answering(early.to_owned() + &ok("end"));
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    for _ in 0..2 {
        let answer = client.ask(request("GET /", ""));
        assert_eq!((answer.status(), answer.text().as_str()), (200, "end"));
    }
}

#[test]
fn early_response_is_forwarded_at_once() {
    let origin = ScriptedUpstream::start(|wire, _| {
        wire.head();
        wire.send("HTTP/1.1 413 Too Much\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!");
        // Closing with unread bytes would reset the connection and lose the response.
        wire.read_rest();
    });
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("POST /", "Content-Length: 1000000\r\n") + "the beginning");
    let answer = client.message().unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (413, "no!"));
    client.send(vec![0; 100_000]);
    client.expect_close();
    assert_eq!(
        proxy.get_with_key("/", KEY).status,
        413,
        "others are served"
    );
}

#[test]
fn large_bodies_pass_both_ways_in_bounded_memory() {
    const SIZE: usize = 200 << 20;
    let origin = ScriptedUpstream::start(|wire, _| {
        let head = wire.head().unwrap();
        if head.starts_with("GET") {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
            let chunk = vec![b'x'; 1 << 20];
            while wire.send(&chunk) {}
        } else {
            let mut left = SIZE;
            while left > 0 {
                left -= wire.read_exactly(left.min(1 << 20)).len();
            }
            wire.send(ok("the whole body"));
        }
    });
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("GET /", ""));
    assert!(client.head().unwrap().starts_with("HTTP/1.1 200"));
    // While the peer does not read, the data is in sockets, not in the process.
    let before = resident(proxy.pid());
    std::thread::sleep(Duration::from_millis(300));
    let waiting = resident(proxy.pid());
    assert!(waiting < before + (4 << 20), "{before} {waiting}");
    let mut left = SIZE;
    while left > 0 {
        left -= client.read_exactly(left.min(1 << 20)).len();
    }
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("POST /", &format!("Content-Length: {SIZE}\r\n")));
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..SIZE / chunk.len() {
        client.stream.write_all(&chunk).unwrap();
    }
    assert_eq!(client.message().unwrap().text(), "the whole body");
    let after = resident(proxy.pid());
    assert!(after < 40 << 20, "{after}");
}

/// Resident memory of a process in bytes.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[test]
fn response_body_without_length_ends_with_connection_and_is_framed() {
    for version in ["1.0", "1.1"] {
        let origin = ScriptedUpstream::start(move |wire, _| {
            wire.message();
            wire.send(format!("HTTP/{version} 200 OK\r\n\r\nto the end"));
        });
        let proxy = proxy(origin.port(), &[]);
        let mut client = WireConnection::connect(proxy.port());
        for _ in 0..2 {
            let answer = client.ask(request("GET /", ""));
            assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
            assert_eq!(answer.text(), "to the end");
        }
        assert_eq!(origin.accepted(), 2);
    }
}

#[test]
fn truncated_response_never_looks_complete() {
    for begun in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n5\r\nhal",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\nnonsense\r\n",
    ] {
        let origin = ScriptedUpstream::start(move |wire, _| {
            wire.message();
            wire.send(begun);
        });
        let proxy = proxy(origin.port(), &[]);
        let mut client = WireConnection::connect(proxy.port());
        client.send(request("GET /", ""));
        let head = client.head().unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let rest = String::from_utf8_lossy(&client.read_rest()).into_owned();
        assert!(
            rest.contains("only this") && !rest.contains("0\r\n\r\n"),
            "{rest:?}"
        );
        assert!(rest.len() < 100, "{rest:?}");
    }
}

#[test]
fn http_1_0_client_gets_http_1_0_framing() {
    let (origin, requests) = ScriptedUpstream::start_answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    );
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    client.send(format!(
        "GET / HTTP/1.0\r\nHost: h\r\nX-API-Key: {KEY}\r\n\r\n"
    ));
    let answer = client.message().unwrap();
    assert!(answer.head.starts_with("HTTP/1.0 200"), "{answer:?}");
    assert_eq!(
        (answer.header("transfer-encoding"), answer.text().as_str()),
        (None, "ok")
    );
    assert!(
        requests.lock().unwrap()[0]
            .head
            .starts_with("GET / HTTP/1.1\r\n")
    );
}

#[test]
fn http_1_0_client_sees_truncated_response() {
    let origin = ScriptedUpstream::start(move |wire, _| {
        wire.message();
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n");
    });
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    client.send(format!(
        "GET / HTTP/1.0\r\nHost: h\r\nX-API-Key: {KEY}\r\n\r\n"
    ));
    let mut all = Vec::new();
    let end = std::io::Read::read_to_end(&mut client.stream, &mut all);
    assert!(all.starts_with(b"HTTP/1.0 200 OK\r\n"));
    let error = end.expect_err("the end of the connection would be that of the answer");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    wait_until("the truncation is counted", || {
        proxy.metric_sum("authproxy_truncated_responses_total") == 1.0
    });
}

#[test]
fn host_of_request_target_replaces_host_header() {
    let (origin, requests) = ScriptedUpstream::start_answering(ok("ok"));
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    client.ask(request("GET http://here/a?b", ""));
    client.ask(request("OPTIONS *", ""));
    let seen = requests.lock().unwrap();
    assert!(
        seen[0].head.starts_with("GET /a?b HTTP/1.1\r\n"),
        "{seen:?}"
    );
    assert_eq!(seen[0].header("host"), Some("here"));
    assert!(
        seen[1].head.starts_with("OPTIONS * HTTP/1.1\r\n"),
        "{seen:?}"
    );
}

#[test]
fn connect_requests_are_rejected() {
    let (origin, requests) = ScriptedUpstream::start_answering(ok("ok"));
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    let asked = format!("CONNECT here:1 HTTP/1.1\r\nHost: here:1\r\nX-API-Key: {KEY}\r\n\r\n");
    let answer = client.ask(asked);
    assert!([400, 501].contains(&answer.status()), "{answer:?}");
    assert!(requests.lock().unwrap().is_empty());
}

#[test]
fn request_bodies_above_limit_are_rejected() {
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let origin = ScriptedUpstream::start(move |wire, _| {
        while let Some(request) = wire.message() {
            counted.fetch_add(1, Ordering::SeqCst);
            wire.send(ok(&request.body.len().to_string()));
        }
    });
    let proxy = proxy(origin.port(), &["--max-body=1K"]);
    let mut client = WireConnection::connect(proxy.port());
    let fits = "x".repeat(1024);
    let answer = client.ask(request("POST /", "Content-Length: 1024\r\n") + &fits);
    assert_eq!(answer.text(), "1024");
    // A body with a length above the limit is rejected before it reaches the upstream.
    let accepted = origin.accepted();
    let answer = client.ask(request("POST /", "Content-Length: 1025\r\n") + &fits);
    assert_eq!(
        (answer.status(), answer.reason().as_str()),
        (413, "body_too_large")
    );
    client.send("x");
    client.expect_close();
    assert_eq!(origin.accepted(), accepted);
    // A body that turns out to be too long is cut off, also for the upstream.
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("POST /", "Transfer-Encoding: chunked\r\n"));
    client.send(format!("400\r\n{fits}\r\n"));
    client.send("1\r\nx\r\n");
    let answer = client.message().unwrap();
    assert_eq!(
        (answer.status(), answer.reason().as_str()),
        (413, "body_too_large")
    );
    client.expect_close();
    assert_eq!(taken.load(Ordering::SeqCst), 1);
}

#[test]
fn short_body_of_denied_request_keeps_connection() {
    let (origin, _) = ScriptedUpstream::start_answering(ok("ok"));
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    let no_key = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";
    for _ in 0..2 {
        let answer = client.ask(no_key);
        assert_eq!((answer.status(), answer.header("connection")), (401, None));
    }
    assert_eq!(client.ask(request("GET /", "")).status(), 200);
    // A long one ends it, and the response arrives although the client is still sending.
    let long = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n";
    client.send(long);
    client.send(vec![b'x'; 600_000]);
    let answer = client.message().unwrap();
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (401, Some("close"))
    );
    // A reset could overtake the response on its way through a network.
    assert!(client.send(vec![b'x'; 200_000]), "the rest is read");
    let end = std::io::Read::read(&mut client.stream, &mut [0]);
    assert_eq!(end.expect("the connection ends without a reset"), 0);
}
