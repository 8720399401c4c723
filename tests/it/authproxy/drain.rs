//! Graceful shutdown: no request is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::load::{ConnectionReuse, LoadGenerator, LoadPlan};
use hostkit_tests::wait_until;
use nix::sys::signal::Signal;

use super::wire::{KEY, ScriptedUpstream, WireConnection, acl_file, proxy, request};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nservice \n";

/// An upstream that answers once it is released, and counts requests.
struct HeldUpstream {
    origin: ScriptedUpstream,
    here: Arc<AtomicUsize>,
    free: Arc<AtomicBool>,
}

impl HeldUpstream {
    fn start() -> Self {
        let (here, free) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counted, freed) = (here.clone(), free.clone());
        let origin = ScriptedUpstream::start(move |wire, _| {
            while wire.message().is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
                wait_until("the server answers", || freed.load(Ordering::SeqCst));
                wire.send(OK);
            }
        });
        Self { origin, here, free }
    }

    fn has(&self, requests: usize) {
        wait_until("the requests reach the upstream", || {
            self.here.load(Ordering::SeqCst) == requests
        });
    }

    fn answer(&self) {
        self.free.store(true, Ordering::SeqCst);
    }
}

fn load(proxy: &AuthproxyProcess, connections: ConnectionReuse) -> LoadGenerator {
    let mut plan = LoadPlan::new(
        ([127, 0, 0, 1], proxy.port()).into(),
        "service",
        connections,
    );
    plan.path = format!("/?apikey={KEY}");
    LoadGenerator::start(plan)
}

/// Whether a process accepts connections on a port.
fn accepts_connections(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn drain_under_load_fails_no_request() {
    for threads in ["--threads=1", "--threads=2"] {
        for connections in [ConnectionReuse::Fresh, ConnectionReuse::KeepAlive] {
            let (origin, _) = ScriptedUpstream::start_answering(OK);
            let proxy = proxy(origin.port(), &["--lame-duck=2s", threads]);
            let load = load(&proxy, connections);
            load.await_attempts(200);
            proxy.signal(Signal::SIGTERM);
            // The route is withdrawn during the lame duck.
            load.await_attempts(300);
            let report = load.stop();
            assert_eq!(report.failed(), 0, "{report}");
            let log = proxy.log();
            assert!(!log.contains("drain timeout expired"), "{log}");
            assert_eq!(proxy.wait_exit(), 0);
        }
    }
}

#[test]
fn queued_requests_are_served_before_exit() {
    for threads in ["--threads=1", "--threads=2"] {
        let server = HeldUpstream::start();
        let proxy = proxy(
            server.origin.port(),
            &[
                "--lame-duck=0",
                "--max-connections=2",
                "--drain-timeout=20s",
                threads,
            ],
        );
        let mut clients: Vec<WireConnection> = (0..10)
            .map(|_| WireConnection::connect(proxy.port()))
            .collect();
        for client in &mut clients {
            client.send(request("GET /", ""));
        }
        // Two are at the upstream, eight in the backlog of the kernel.
        server.has(2);
        proxy.signal(Signal::SIGTERM);
        proxy.logs("graceful shutdown started");
        server.answer();
        for client in &mut clients {
            let answer = client.message().expect("an answer");
            assert_eq!(
                (answer.status(), answer.header("connection")),
                (200, Some("close"))
            );
            client.expect_close();
        }
        assert_eq!(proxy.wait_exit(), 0);
        server.has(10);
    }
}

#[test]
fn lame_duck_serves_with_unhealthy_check_and_closes_connections() {
    let (origin, _) = ScriptedUpstream::start_answering(OK);
    let args = [
        "--lame-duck=20s",
        "--drain-timeout=20s",
        "--health-path=/health",
    ];
    let proxy = proxy(origin.port(), &args);
    let health = proxy.get("/health", &[]);
    assert_eq!((health.status, health.body.as_str()), (200, "ok"));
    let mut kept = WireConnection::connect(proxy.port());
    assert_eq!(kept.ask(request("GET /", "")).header("connection"), None);
    let outcome = proxy.request_admin("POST", "/drain");
    assert!((200..300).contains(&outcome.status), "{outcome:?}");
    let health = proxy.get("/health", &[]);
    assert_eq!(health.status, 503);
    // A kept connection may be used once more, and then gets `Connection: close`.
    let answer = kept.ask(request("GET /", ""));
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("close"))
    );
    kept.expect_close();
    let mut new = WireConnection::connect(proxy.port());
    let answer = new.ask(request("GET /", ""));
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("close"))
    );
    new.expect_close();
}

#[test]
fn drain_waits_only_for_requests_under_way() {
    let server = HeldUpstream::start();
    let proxy = proxy(
        server.origin.port(),
        &["--lame-duck=0", "--drain-timeout=60s"],
    );
    let mut busy = WireConnection::connect(proxy.port());
    busy.send(request("GET /", ""));
    server.has(1);
    // An unused connection, a used one, and one in the middle of a head.
    let mut silent = WireConnection::connect(proxy.port());
    let mut used = WireConnection::connect(proxy.port());
    assert_eq!(used.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status(), 401);
    let mut late = WireConnection::connect(proxy.port());
    late.send("GET / HTTP/1.1\r\nHost: h\r\n");
    wait_until("all keys are cached", || {
        proxy.metric_sum("authproxy_client_connections") == 4.0
    });
    proxy.signal(Signal::SIGTERM);
    silent.expect_close();
    used.expect_close();
    wait_until("the port is closed", || !accepts_connections(proxy.port()));
    late.send("\r\n");
    let answer = late.message().unwrap();
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (401, Some("close"))
    );
    server.answer();
    let answer = busy.message().unwrap();
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(proxy.wait_exit(), 0);
}

#[test]
fn drain_ends_at_its_timeout() {
    let server = HeldUpstream::start();
    let args = ["--lame-duck=0", "--drain-timeout=500ms", "--threads=2"];
    let proxy = proxy(server.origin.port(), &args);
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("GET /", ""));
    server.has(1);
    proxy.signal(Signal::SIGTERM);
    client.expect_close();
    proxy.logs("drain timeout expired");
    assert_eq!(proxy.wait_exit(), 0);
}

#[test]
fn request_cut_off_by_drain_timeout_is_in_access_log() {
    let origin = ScriptedUpstream::start(|wire, _| {
        let asked = wire.message().expect("a request");
        if asked.head.contains("/stream") {
            wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
        }
        wire.read_rest();
    });
    let proxy = AuthproxyProcess::start(&[
        &format!("--server=http://127.0.0.1:{}", origin.port()),
        &format!("--acl-file={}", acl_file().display()),
        "--right=all",
        "--lame-duck=0",
        "--drain-timeout=100ms",
    ]);
    let (mut silent, mut stream) = (
        WireConnection::connect(proxy.port()),
        WireConnection::connect(proxy.port()),
    );
    silent.send(request("GET /silent", ""));
    stream.send(request("GET /stream", ""));
    assert!(stream.head().is_some());
    wait_until("both requests reach the upstream", || {
        origin.accepted() == 2
    });
    proxy.signal(Signal::SIGTERM);
    proxy.logs("drain timeout expired");
    proxy.logs("GET /silent 0 ");
    proxy.logs("truncated=drain_timeout");
    assert_eq!(proxy.wait_exit(), 0);
}

#[test]
fn second_sigterm_exits_at_once() {
    let server = HeldUpstream::start();
    let proxy = proxy(
        server.origin.port(),
        &["--lame-duck=60s", "--drain-timeout=60s"],
    );
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("GET /", ""));
    server.has(1);
    proxy.signal(Signal::SIGTERM);
    proxy.logs("graceful shutdown started");
    proxy.signal(Signal::SIGTERM);
    client.expect_close();
    assert_eq!(proxy.wait_exit(), -(Signal::SIGTERM as i32));
}

#[test]
fn tunnel_stays_open_until_drain_timeout() {
    let origin = ScriptedUpstream::start(|wire, _| {
        wire.head();
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        while wire.read_until("ping").is_some() {
            wire.send("pong");
        }
    });
    let proxy = proxy(origin.port(), &["--lame-duck=0", "--drain-timeout=60s"]);
    let mut client = WireConnection::connect(proxy.port());
    let lines = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(client.ask_head(request("GET /", lines)).status(), 101);
    proxy.signal(Signal::SIGTERM);
    wait_until("the port is closed", || !accepts_connections(proxy.port()));
    for _ in 0..3 {
        client.send("ping");
        assert_eq!(client.read_exactly(4), b"pong");
    }
    drop(client);
    assert_eq!(proxy.wait_exit(), 0);
}
