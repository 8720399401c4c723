//! Every phase has a deadline: slow heads, slow bodies, slow readers, slow upstreams.
//!
//! Deadlines are short here, and tests wait for their effects. That progress keeps a connection is tested by making
//! progress for several times the deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::misbehavior::FullBacklog;
use hostkit_tests::wait_until;
use socket2::SockRef;

use super::wire::{ScriptedUpstream, WireConnection, proxy, request};

const SHORT: [&str; 3] = [
    "--client-timeout=400ms",
    "--timeout=400ms",
    "--idle-timeout=30s",
];
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Several times the short deadline.
const LONG: Duration = Duration::from_secs(2);

/// Waits until all client connections are closed.
fn wait_until_closed(proxy: &AuthproxyProcess) {
    wait_until("all client connections are closed", || {
        proxy.metric_sum("authproxy_client_connections") == 0.0
    });
}

/// Repeats an action for several times the deadline.
fn repeat_slowly(mut each: impl FnMut()) {
    let start = Instant::now();
    while start.elapsed() < LONG {
        each();
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn incomplete_request_head_is_408() {
    let (origin, requests) = ScriptedUpstream::start_answering(OK);
    let proxy = proxy(origin.port(), &SHORT);
    // It stalls.
    let mut client = WireConnection::connect(proxy.port());
    client.send("GET / HTTP/1.1\r\nHost: h\r\nX-");
    let answer = client.message().unwrap();
    assert_eq!(
        (answer.status(), answer.reason().as_str()),
        (408, "request_timeout")
    );
    assert_eq!(answer.header("connection"), Some("close"));
    client.expect_close();
    // It drips, which is treated the same.
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("GET /", ""));
    assert_eq!(client.message().unwrap().status(), 200);
    client.send("GET / HTTP/1.1\r\n");
    client.stream.set_nonblocking(true).unwrap();
    wait_until("the head times out", || {
        client.send("a: b\r\n");
        client.stream.peek(&mut [0]).is_ok()
    });
    client.stream.set_nonblocking(false).unwrap();
    assert_eq!(client.message().unwrap().status(), 408);
    drop(client);
    wait_until_closed(&proxy);
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[test]
fn stalled_request_body_is_408_and_closes_upstream() {
    let gone = Arc::new(AtomicUsize::new(0));
    let counted = gone.clone();
    let origin = ScriptedUpstream::start(move |wire, _| {
        assert!(wire.message().is_none());
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let proxy = proxy(origin.port(), &SHORT);
    for unfinished in [
        request("POST /", "Content-Length: 100\r\n") + "some",
        request("POST /", "Transfer-Encoding: chunked\r\n") + "4\r\nsome\r\n",
        request("POST /", "Transfer-Encoding: chunked\r\n") + "ff",
    ] {
        let before = gone.load(Ordering::SeqCst);
        let mut client = WireConnection::connect(proxy.port());
        client.send(unfinished);
        let answer = client.message().unwrap();
        assert_eq!(
            (answer.status(), answer.reason().as_str()),
            (408, "request_timeout")
        );
        client.expect_close();
        wait_until("the upstream connection is closed", || {
            gone.load(Ordering::SeqCst) > before
        });
    }
}

#[test]
fn request_body_below_minimum_rate_is_408_and_above_it_passes() {
    let (origin, _) = ScriptedUpstream::start_answering(OK);
    let mut args = SHORT.to_vec();
    args.push("--min-rate=100");
    let proxy = proxy(origin.port(), &args);
    // 20 bytes a second.
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("POST /", "Content-Length: 100000\r\n"));
    client.stream.set_nonblocking(true).unwrap();
    wait_until("the body times out", || {
        client.send("x");
        std::thread::sleep(Duration::from_millis(50));
        client.stream.peek(&mut [0]).is_ok()
    });
    client.stream.set_nonblocking(false).unwrap();
    assert_eq!(client.message().unwrap().status(), 408);
    // Some 2,000 bytes a second.
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("POST /", "Transfer-Encoding: chunked\r\n"));
    repeat_slowly(|| assert!(client.send(format!("64\r\n{}\r\n", "x".repeat(100)))));
    client.send("0\r\n\r\n");
    assert_eq!(client.message().unwrap().status(), 200);
}

#[test]
fn slow_upstream_does_not_count_against_client_rate() {
    let length = 8 << 20;
    let origin = ScriptedUpstream::start(move |wire, _| {
        wire.head();
        let mut left = length;
        // Below the clients' minimum rate, which does not apply to upstreams.
        repeat_slowly(|| left -= wire.read_exactly(20_000).len());
        wire.read_exactly(left);
        wire.send(OK);
    });
    let args = ["--client-timeout=400ms", "--timeout=10s", "--min-rate=10M"];
    let proxy = proxy(origin.port(), &args);
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("POST /", &format!("Content-Length: {length}\r\n")));
    client.send(vec![b'x'; length]);
    let status = client.message().unwrap().status();
    assert_eq!(status, 200);
}

#[test]
fn client_that_does_not_read_response_is_closed() {
    let gone = Arc::new(AtomicUsize::new(0));
    let counted = gone.clone();
    let origin = ScriptedUpstream::start(move |wire, _| {
        wire.message();
        wire.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            1_u64 << 40
        ));
        let chunk = vec![b'x'; 1 << 20];
        while wire.send(&chunk) {}
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let mut args = SHORT.to_vec();
    args.push("--min-rate=100K");
    let proxy = proxy(origin.port(), &args);
    // It stalls.
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("GET /", ""));
    assert!(client.head().is_some());
    wait_until_closed(&proxy);
    wait_until("the upstream connection is closed", || {
        gone.load(Ordering::SeqCst) == 1
    });
    drop(client);
    // It reads now and then, below the rate.
    let mut client = WireConnection::connect(proxy.port());
    SockRef::from(&client.stream)
        .set_recv_buffer_size(4096)
        .unwrap();
    client.send(request("GET /", ""));
    wait_until("the slow reader is closed", || {
        use std::io::Read as _;
        let _ = client.stream.read(&mut [0; 1000]);
        proxy.metric_sum("authproxy_client_connections") == 0.0
    });
}

#[test]
fn client_that_reads_above_minimum_rate_is_kept() {
    const SIZE: usize = 4 << 20;
    let origin = ScriptedUpstream::start(move |wire, _| {
        wire.message();
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
        wire.send(vec![b'x'; SIZE]);
    });
    let mut args = SHORT.to_vec();
    args.push("--min-rate=10K");
    let proxy = proxy(origin.port(), &args);
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("GET /", ""));
    client.head().unwrap();
    let mut left = SIZE;
    repeat_slowly(|| {
        left -= client.read_exactly(50_000).len();
    });
    assert_eq!(client.read_exactly(left).len(), left);
}

#[test]
fn silent_upstream_is_504() {
    for origin in [
        // It takes the request and does not respond.
        ScriptedUpstream::start(|wire, _| {
            wire.message();
            wire.read_rest();
        }),
        // It starts a response.
        ScriptedUpstream::start(|wire, _| {
            wire.message();
            wire.send("HTTP/1.1 200 OK\r\nContent-Le");
            wire.read_rest();
        }),
        // It does not even read a body.
        ScriptedUpstream::start(|wire, _| {
            wire.head();
            std::thread::sleep(LONG);
        }),
    ] {
        let proxy = proxy(origin.port(), &SHORT);
        let mut client = WireConnection::connect(proxy.port());
        let answer = client.ask(request("GET /", ""));
        assert_eq!(
            (answer.status(), answer.reason().as_str()),
            (504, "gateway_timeout")
        );
        assert_eq!(
            answer.header("connection"),
            None,
            "the client has done nothing wrong"
        );
        let again = client.ask(request("GET /", ""));
        assert_eq!(again.status(), 504);
    }
    // It does not even accept.
    let full = FullBacklog::start();
    let proxy = proxy(full.port(), &SHORT);
    let answer = WireConnection::connect(proxy.port()).ask(request("GET /", ""));
    assert_eq!(
        (answer.status(), answer.reason().as_str()),
        (504, "gateway_timeout")
    );
}

#[test]
fn stalled_response_is_truncated() {
    let origin = ScriptedUpstream::start(|wire, _| {
        wire.message();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
        wire.read_rest();
    });
    let proxy = proxy(origin.port(), &SHORT);
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("GET /", ""));
    assert!(client.head().unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(client.read_rest(), b"only this");
}

#[test]
fn slow_response_with_progress_passes() {
    let origin = ScriptedUpstream::start(|wire, _| {
        wire.message();
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        repeat_slowly(|| {
            wire.send("1\r\nx\r\n");
        });
        wire.send("0\r\n\r\n");
    });
    let proxy = proxy(origin.port(), &SHORT);
    let answer = WireConnection::connect(proxy.port()).ask(request("GET /", ""));
    assert!(answer.body.len() > 10);
}

#[test]
fn idle_connection_is_closed_at_idle_timeout() {
    let (origin, _) = ScriptedUpstream::start_answering(OK);
    let args = [
        "--client-timeout=200ms",
        "--timeout=200ms",
        "--idle-timeout=3s",
    ];
    let proxy = proxy(origin.port(), &args);
    // An idle connection serves: deadlines of requests are separate from the idle timeout.
    let mut used = WireConnection::connect(proxy.port());
    let mut silent = WireConnection::connect(proxy.port());
    let start = Instant::now();
    assert_eq!(used.ask(request("GET /", "")).status(), 200);
    std::thread::sleep(LONG);
    assert_eq!(used.ask(request("GET /", "")).status(), 200);
    silent.expect_close();
    used.expect_close();
    assert!(start.elapsed() >= Duration::from_secs(5), "too early");
    wait_until_closed(&proxy);
}

#[test]
fn idle_connection_releases_buffers_and_serves_again() {
    let (origin, _) = ScriptedUpstream::start_answering(OK);
    let proxy = proxy(origin.port(), &[]);
    let mut clients: Vec<WireConnection> = (0..20)
        .map(|_| WireConnection::connect(proxy.port()))
        .collect();
    for round in 0..3 {
        for client in &mut clients {
            let answer = client.ask(request("GET /", ""));
            assert_eq!(answer.status(), 200, "round {round}");
        }
        // Longer than it takes to release the buffers.
        if round < 2 {
            std::thread::sleep(Duration::from_secs(5));
        }
    }
}
