//! Responses sent before the request is complete: they reach clients that send everything before they read.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::Duration;

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::{find_program, is_long_run, or_skip, wait_limit, wait_until, wait_within};

use super::wire::{ScriptedUpstream, WireConnection, ok, proxy, request};

/// More than the kernel buffers on both sides.
const UPLOAD: usize = 24 << 20;

/// A request without a key.
fn request_without_key(line: &str, lines: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: here\r\n{lines}\r\n")
}

fn chunk(length: usize) -> Vec<u8> {
    let mut chunk = format!("{length:x}\r\n").into_bytes();
    chunk.resize(chunk.len() + length, b'x');
    chunk.extend(b"\r\n");
    chunk
}

#[test]
fn early_response_reaches_client_that_uploads_before_it_reads() {
    let origin = ScriptedUpstream::start(|wire, _| {
        // It answers from the head alone, and closes.
        let head = wire.head().unwrap_or_default();
        if head.contains("/early") {
            wire.send("HTTP/1.1 422 No\r\nContent-Length: 5\r\n\r\nearly");
        } else {
            wire.read_rest();
        }
    });
    let proxy = proxy(origin.port(), &["--max-body=30M"]);
    let length = format!("Content-Length: {UPLOAD}\r\n");
    let chunked = "Transfer-Encoding: chunked\r\n";
    let body = || vec![b'x'; UPLOAD];
    for (head, body, status) in [
        (request_without_key("POST /", &length), body(), 401),
        (request_without_key("POST /", chunked), chunk(UPLOAD), 401),
        (
            request_without_key("POST /", &(length.clone() + "Expect: 100-continue\r\n")),
            body(),
            401,
        ),
        (
            request("POST /", "Content-Length: 50000000\r\n"),
            body(),
            413,
        ),
        // Too long only when most of it has come.
        (request("POST /", chunked), chunk(50_000_000), 413),
        // A body with invalid framing is not read further.
        (request("POST /", chunked), body(), 400),
        (request_without_key("POST /\x01", &length), body(), 400),
        (
            request_without_key("POST /", &format!("X: {}\r\n", "x".repeat(70_000))),
            body(),
            431,
        ),
        (request("POST /early", &length), body(), 422),
        (request("POST /early", chunked), chunk(UPLOAD), 422),
        // An upload that was answered, as the next request of a connection.
        (
            request("GET /early", "") + &request_without_key("POST /", &length),
            body(),
            422,
        ),
    ] {
        let named = format!("{status} for {:.80}", head.replace(&"x".repeat(70_000), ""));
        let mut client = WireConnection::connect(proxy.port());
        assert!(client.send(&head) && client.send(body), "reset: {named}");
        let answer = client.message();
        let answer = answer.unwrap_or_else(|| panic!("no answer: {named}"));
        assert_eq!(answer.status(), status, "{named}");
    }
}

#[test]
fn clients_of_others_see_refusal_of_large_upload() {
    let (origin, _) = ScriptedUpstream::start_answering(ok("ok"));
    let proxy = proxy(origin.port(), &[]);
    let programs = [
        (
            "http.client",
            "/usr/bin/python3",
            "-c",
            "import http.client, sys\n\
             c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]))\n\
             c.request('POST', '/', body=b'x' * int(sys.argv[2]))\n\
             print(c.getresponse().status)",
        ),
        (
            "aiohttp",
            "/usr/bin/python3",
            "-c",
            "import aiohttp, asyncio, sys\n\
             async def main():\n\
             \x20 async with aiohttp.ClientSession() as s:\n\
             \x20   async with s.post(f'http://127.0.0.1:{sys.argv[1]}/', data=b'x' * int(sys.argv[2])) as r:\n\
             \x20     print(r.status)\n\
             asyncio.run(main())",
        ),
        (
            "node",
            "node",
            "-e",
            "const r = require('http').request({host: '127.0.0.1', port: process.argv[1], method: 'POST'},\n\
             \x20 r => { console.log(r.statusCode); process.exit() });\n\
             r.end(Buffer.alloc(+process.argv[2]))",
        ),
    ];
    for (name, program, option, script) in programs {
        let Some(program) = or_skip(name, find_program(program)) else {
            continue;
        };
        let run = Command::new(program)
            .args([option, script, &proxy.port().to_string()])
            .arg(UPLOAD.to_string())
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{name}: {printed}");
        assert_eq!(String::from_utf8_lossy(&run.stdout), "401\n", "{name}");
    }
}

/// Waits until all client connections are closed.
fn wait_until_closed(proxy: &AuthproxyProcess, longest: Duration) {
    let left = || proxy.metric_sum("authproxy_client_connections") > 0.0;
    assert!(
        wait_within(longest, || !left()),
        "a connection lingers without end"
    );
}

#[test]
fn lingering_connection_ends_without_progress_and_in_any_case() {
    let (origin, _) = ScriptedUpstream::start_answering(ok("ok"));
    let proxy = proxy(origin.port(), &["--client-timeout=1h", "--idle-timeout=1h"]);
    let refused = || {
        let mut client = WireConnection::connect(proxy.port());
        let answer = client.ask(request_without_key("POST /", "Content-Length: 1000000\r\n"));
        assert_eq!(answer.status(), 401);
        assert_eq!(answer.header("connection"), Some("close"));
        client
    };
    let silent = refused();
    wait_until_closed(&proxy, wait_limit());
    drop(silent);
    // 30 s.
    if is_long_run() {
        let mut dripping = refused();
        wait_until("the sending connection is closed", || !dripping.send("x"));
    }
}

/// A client that is denied, and goes on to send until its connection is closed.
fn start_refused_upload(proxy: &AuthproxyProcess) -> (JoinHandle<()>, Arc<AtomicBool>) {
    let mut client = WireConnection::connect(proxy.port());
    let answer = client.ask(request_without_key(
        "POST /",
        "Content-Length: 1000000000\r\n",
    ));
    assert_eq!(answer.status(), 401);
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, begun) = (stop.clone(), Arc::new(Barrier::new(2)));
    let first = begun.clone();
    let thread = std::thread::spawn(move || {
        client.send("x");
        first.wait();
        while !stopped.load(Ordering::SeqCst) && client.send("x") {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    begun.wait();
    (thread, stop)
}

#[test]
fn oldest_lingering_connection_is_closed_for_new_client() {
    let (origin, _) = ScriptedUpstream::start_answering(ok("ok"));
    let proxy = proxy(origin.port(), &["--max-connections=3"]);
    let lingering: Vec<_> = (0..3).map(|_| start_refused_upload(&proxy)).collect();
    assert_eq!(proxy.metric_sum("authproxy_client_connections"), 3.0);
    let mut client = WireConnection::connect(proxy.port());
    // Long before a connection with progress would end by itself.
    let soon = Some(Duration::from_secs(20));
    client.stream.set_read_timeout(soon).unwrap();
    assert_eq!(client.ask(request("GET /", "")).status(), 200);
    wait_until("the oldest is closed", || lingering[0].0.is_finished());
    assert!(!lingering[2].0.is_finished(), "the newest is closed too");
    for (thread, stop) in lingering {
        stop.store(true, Ordering::SeqCst);
        thread.join().unwrap();
    }
}
