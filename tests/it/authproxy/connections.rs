//! Connections: their limits on both sides, their reuse, and the retry of requests.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::{ChildGuard, free_port, wait_until};

use super::wire::{
    KEY, OTHER, ScriptedUpstream, WireConnection, WireMessage, ok, proxy, request, with_key,
};

#[test]
fn client_disconnect_closes_upstream_connection() {
    let (gone, came) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, arrived) = (gone.clone(), came.clone());
    let origin = ScriptedUpstream::start(move |wire, _| {
        wire.head();
        arrived.fetch_add(1, Ordering::SeqCst);
        // Never answers; ends when the proxy gives up.
        wire.read_rest();
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let proxy = proxy(origin.port(), &[]);
    for unfinished in [
        request("GET /", ""),
        request("POST /", "Content-Length: 100\r\n") + "half",
    ] {
        let before = came.load(Ordering::SeqCst);
        let mut client = WireConnection::connect(proxy.port());
        client.send(unfinished);
        wait_until("the request arrives", || {
            came.load(Ordering::SeqCst) > before
        });
        drop(client);
        wait_until("the upstream connection is closed", || {
            gone.load(Ordering::SeqCst) > before
        });
    }
}

/// A server that closes every connection after one response without `Connection: close`, as one that restarts does.
fn start_forgetful_upstream(answered: Arc<Mutex<Vec<WireMessage>>>) -> ScriptedUpstream {
    ScriptedUpstream::start(move |wire, _| {
        let Some(request) = wire.message() else {
            return;
        };
        answered.lock().unwrap().push(request);
        wire.send(ok("ok"));
        // The next request finds the connection dying.
        if let Some(request) = wire.message() {
            answered.lock().unwrap().push(request);
        }
    })
}

#[test]
fn only_idempotent_requests_without_body_are_retried_on_stale_connection() {
    for (method, lines, body, repeats) in [
        ("GET", "", "", true),
        ("HEAD", "", "", true),
        ("OPTIONS", "", "", true),
        ("DELETE", "", "", true),
        ("PUT", "Content-Length: 0\r\n", "", true),
        ("PUT", "Content-Length: 4\r\n", "body", false),
        ("POST", "Content-Length: 0\r\n", "", false),
        ("POST", "Content-Length: 4\r\n", "body", false),
        ("PATCH", "Content-Length: 0\r\n", "", false),
    ] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let origin = start_forgetful_upstream(seen.clone());
        let proxy = proxy(origin.port(), &[]);
        let mut client = WireConnection::connect(proxy.port());
        assert_eq!(client.ask(request("GET /", "")).status(), 200);
        let asked = request(&format!("{method} /again"), lines) + body;
        let answer = if method == "HEAD" {
            client.ask_head(asked)
        } else {
            client.ask(asked)
        };
        let again = {
            let seen = seen.lock().unwrap();
            seen.iter()
                .filter(|seen| seen.head.contains("/again"))
                .count()
        };
        if repeats {
            assert_eq!((answer.status(), again), (200, 2), "{method}");
            assert_eq!(proxy.metric_sum("authproxy_upstream_retries_total"), 1.0);
        } else {
            assert_eq!((answer.status(), again), (502, 1), "{method} {body:?}");
        }
    }
}

#[test]
fn request_is_retried_once_and_never_on_new_connection() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let origin = ScriptedUpstream::start(move |wire, number| {
        if number == 0 {
            wire.message();
            wire.send(ok("ok"));
        }
        // Every other connection dies.
        if wire.message().is_some() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    assert_eq!(client.ask(request("GET /", "")).status(), 200);
    let answer = client.ask(request("GET /", ""));
    assert_eq!(
        (answer.status(), answer.reason().as_str()),
        (502, "bad_gateway")
    );
    assert_eq!(
        requests.load(Ordering::SeqCst),
        2,
        "the kept connection and a new one are used"
    );
    assert_eq!(client.ask(request("GET /", "")).status(), 502);
    assert_eq!(
        requests.load(Ordering::SeqCst),
        3,
        "only a new connection is used"
    );
}

#[test]
fn request_with_partial_response_is_not_retried() {
    let origin = ScriptedUpstream::start(move |wire, _| {
        wire.message();
        wire.send(ok("ok"));
        if wire.message().is_some() {
            wire.send("HTTP/1.1 200 OK\r\nContent-");
        }
    });
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    assert_eq!(client.ask(request("GET /", "")).status(), 200);
    assert_eq!(client.ask(request("GET /", "")).status(), 502);
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn closed_upstream_connection_is_not_reused() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let origin = ScriptedUpstream::start(move |wire, _| {
        wire.message();
        counted.fetch_add(1, Ordering::SeqCst);
        wire.send(ok("ok"));
    });
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    // Each finds the previous connection closed, and cannot be retried.
    for number in 1..=20 {
        let answer = client.ask(request("POST /", "Content-Length: 4\r\n") + "body");
        assert_eq!(answer.status(), 200, "request {number}");
        wait_until("the server has closed", || {
            !has_open_connection(origin.port())
        });
    }
    assert_eq!((seen.load(Ordering::SeqCst), origin.accepted()), (20, 20));
}

/// Whether any connection of a port of 127.0.0.1 is open on the server's side (`ESTABLISHED` is 01 in proc(5)).
fn has_open_connection(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(local.as_str()) && words.nth(1) == Some("01")
    })
}

#[test]
fn unreachable_or_non_http_upstream_is_502() {
    let proxy_to_nobody = proxy(free_port(), &[]);
    let answer = proxy_to_nobody.get_with_key("/", KEY);
    assert_eq!(
        (answer.status, answer.reason().as_deref()),
        (502, Some("bad_gateway"))
    );
    for nonsense in [
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "HTTP/1.1 200 OK\r\nA Header: x\r\n\r\n",
        "",
    ] {
        let origin = ScriptedUpstream::start(move |wire, _| {
            wire.head();
            wire.send(nonsense);
        });
        let proxy = proxy(origin.port(), &[]);
        let answer = proxy.get_with_key("/", KEY);
        assert_eq!(answer.status, 502, "{nonsense:?}");
    }
}

#[test]
fn connection_with_surplus_bytes_is_not_reused() {
    let origin = ScriptedUpstream::start(move |wire, number| {
        wire.message();
        // A second response, which must not become that of the next request.
        wire.send(ok(&format!("first {number}")) + &ok("poison"));
        wire.read_rest();
    });
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    for number in 0..3 {
        let answer = client.ask(request("GET /", ""));
        assert_eq!(answer.text(), format!("first {number}"));
    }
}

#[test]
fn upstream_is_reached_by_name_and_by_unix_socket() {
    let (origin, _) = ScriptedUpstream::start_answering(ok("by name"));
    let named = with_key(&format!("--server=http://localhost:{}", origin.port()), &[]);
    assert_eq!(named.get_with_key("/", KEY).body, "by name");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut room = [0; 4096];
            while std::io::Read::read(&mut stream, &mut room).is_ok_and(|read| read > 0) {
                stream.write_all(ok("by socket").as_bytes()).unwrap();
            }
        }
    });
    let socket = with_key(&format!("--server=unix:{}", path.display()), &[]);
    let mut client = WireConnection::connect(socket.port());
    for _ in 0..2 {
        assert_eq!(client.ask(request("GET /", "")).text(), "by socket");
    }
}

#[test]
fn connections_above_limit_wait() {
    let (origin, _) = ScriptedUpstream::start_answering(ok("ok"));
    let proxy = proxy(origin.port(), &["--max-connections=2"]);
    let mut first = WireConnection::connect(proxy.port());
    let mut second = WireConnection::connect(proxy.port());
    assert_eq!(first.ask(request("GET /", "")).status(), 200);
    assert_eq!(second.ask(request("GET /", "")).status(), 200);
    let mut third = WireConnection::connect(proxy.port());
    third.send(request("GET /", ""));
    third.stream.set_nonblocking(true).unwrap();
    assert_eq!(proxy.metric_sum("authproxy_client_connections"), 2.0);
    let nothing = third.stream.peek(&mut [0]);
    assert_eq!(nothing.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    third.stream.set_nonblocking(false).unwrap();
    assert_eq!(third.message().unwrap().status(), 200);
}

#[test]
fn upstream_exchanges_and_their_queue_are_bounded() {
    let (held, freed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, released) = (held.clone(), freed.clone());
    let origin = ScriptedUpstream::start(move |wire, _| {
        while wire.message().is_some() {
            let turn = counted.fetch_add(1, Ordering::SeqCst);
            wait_until("released", || released.load(Ordering::SeqCst) > turn);
            wire.send(ok("ok"));
        }
    });
    let proxy = proxy(origin.port(), &["--server-connections=1"]);
    let mut clients: Vec<WireConnection> = (0..3)
        .map(|_| WireConnection::connect(proxy.port()))
        .collect();
    clients[0].send(request("GET /", ""));
    wait_until("the first request arrives", || {
        held.load(Ordering::SeqCst) == 1
    });
    clients[1].send(request("GET /", ""));
    wait_until("the second waits", || {
        proxy.metric_sum("authproxy_upstream_queued_requests") > 0.0
    });
    // This key's only place in the queue is taken.
    let answer = clients[2].ask(request("GET /", ""));
    assert_eq!(
        (answer.status(), answer.reason().as_str()),
        (429, "too_many_requests")
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
    let answer = clients[2].ask(request("GET /", "").replace(KEY, OTHER));
    assert_eq!(
        (answer.status(), answer.reason().as_str()),
        (503, "overloaded")
    );
    freed.store(2, Ordering::SeqCst);
    for client in &mut clients[..2] {
        assert_eq!(client.message().unwrap().status(), 200);
    }
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn second_process_on_port_is_error_with_remedy() {
    let (origin, _) = ScriptedUpstream::start_answering(ok("ok"));
    let proxy = proxy(origin.port(), &[]);
    let second = std::process::Command::new(hostkit_tests::bin("authproxy"))
        .arg(format!("--port={}", proxy.port()))
        .args(["--server=http://127.0.0.1:1", "--right=all"])
        .arg(format!("--acl-file={}", super::wire::acl_file().display()))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut second = ChildGuard(second);
    let mut status = None;
    wait_until("the second ends", || {
        status = second.0.try_wait().unwrap();
        status.is_some()
    });
    let output = std::io::read_to_string(second.0.stderr.take().unwrap()).unwrap();
    assert_eq!(
        status.and_then(|status| status.code()),
        Some(73),
        "{output}"
    );
    assert!(
        output.contains("stop the process that listens there"),
        "{output}"
    );
    assert_eq!(proxy.get_with_key("/", KEY).status, 200);
}

#[test]
fn threads_share_port() {
    let (origin, _) = ScriptedUpstream::start_answering(ok("ok"));
    let proxy = proxy(origin.port(), &["--threads=2"]);
    let mut clients: Vec<WireConnection> = (0..20)
        .map(|_| WireConnection::connect(proxy.port()))
        .collect();
    for client in &mut clients {
        assert_eq!(client.ask(request("GET /", "")).status(), 200);
    }
}

#[test]
fn exhausted_file_descriptors_delay_new_connections() {
    let (origin, _) = ScriptedUpstream::start_answering(ok("ok"));
    let acl = format!("--acl-file={}", super::wire::acl_file().display());
    let server = format!("--server=http://127.0.0.1:{}", origin.port());
    let proxy = AuthproxyProcess::start_with_launcher(
        &["prlimit", "--nofile=40:40"],
        &[&server, "--right=all", "--access-log=off", &acl],
    );
    let mut clients: Vec<WireConnection> = (0..60)
        .map(|_| WireConnection::connect(proxy.port()))
        .collect();
    proxy.logs("cannot accept connections");
    let served = clients.split_off(59);
    drop(clients);
    for mut client in served {
        assert_eq!(client.ask(request("GET /", "")).status(), 200);
    }
    let output = proxy.log().matches("cannot accept connections").count();
    assert!(output < 5, "{output} times");
}
