//! WebSockets, and no other upgrade.

use std::process::{Command, Stdio};
use std::time::Duration;

use hostkit_tests::{ChildGuard, free_port, skip, wait_until};

use super::wire::{KEY, ScriptedUpstream, WireConnection, WireMessage, proxy, request};

const ASKED: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An upstream that switches, and then echoes until the end of the stream; `ahead` is sent with the head.
fn start_echo_upstream(ahead: &'static str) -> ScriptedUpstream {
    ScriptedUpstream::start(move |wire, _| {
        let head = wire.head().unwrap_or_default();
        if !head.to_lowercase().contains("\r\nupgrade: websocket\r\n") {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain");
            return;
        }
        wire.send(SWITCHED.to_owned() + ahead);
        loop {
            let byte = wire.read_exactly(1);
            if byte.is_empty() {
                break;
            }
            wire.send(byte);
        }
        wire.send("end");
    })
}

fn switch(client: &mut WireConnection, lines: &str) -> WireMessage {
    client.ask_head(request("GET /chat", lines))
}

#[test]
fn websocket_passes_bytes_and_end_of_stream_both_ways() {
    let origin = start_echo_upstream("ahead ");
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    let answer = switch(&mut client, ASKED);
    assert_eq!(answer.status(), 101);
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    ] {
        assert_eq!(
            answer.header(name).map(str::to_lowercase),
            Some(value.to_lowercase())
        );
    }
    assert_eq!(client.read_exactly(6), b"ahead ");
    // None of these is HTTP, and some look like invalid HTTP.
    for frame in ["\0\n\r\n", "GET / HTTP/1.1\r\n\r\n", "\u{fffd}"] {
        client.send(frame);
        assert_eq!(client.read_exactly(frame.len()), frame.as_bytes());
    }
    client.finish();
    assert_eq!(client.read_rest(), b"end", "the server may go on");
}

#[test]
fn bytes_sent_with_upgrade_request_are_forwarded() {
    let origin = start_echo_upstream("");
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("GET /chat", ASKED) + "at once");
    assert!(client.head().unwrap().starts_with("HTTP/1.1 101"));
    assert_eq!(client.read_exactly(7), b"at once");
}

#[test]
fn large_websocket_messages_pass() {
    const SIZE: usize = 8 << 20;
    let origin = ScriptedUpstream::start(|wire, _| {
        wire.head();
        wire.send(SWITCHED);
        let got = wire.read_exactly(SIZE);
        wire.send(got);
        wire.read_rest();
    });
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    assert_eq!(switch(&mut client, ASKED).status(), 101);
    let sent: Vec<u8> = (0..SIZE).map(|at| (at * 7 % 251) as u8).collect();
    client.send(&sent);
    assert!(
        client.read_exactly(SIZE) == sent,
        "the echoed bytes are equal"
    );
}

#[test]
fn other_upgrades_do_not_reach_upstream() {
    for lines in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        // Without the `Connection: upgrade` option the header is for another hop.
        "Upgrade: websocket\r\n",
    ] {
        let (origin, requests) =
            ScriptedUpstream::start_answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain");
        let proxy = proxy(origin.port(), &[]);
        let mut client = WireConnection::connect(proxy.port());
        let answer = client.ask(request("GET /", lines));
        assert_eq!(
            (answer.status(), answer.text().as_str()),
            (200, "plain"),
            "{lines:?}"
        );
        let seen = requests.lock().unwrap().remove(0);
        for name in ["upgrade", "http2-settings", "connection"] {
            assert_eq!(seen.header(name), None, "{lines:?}");
        }
        // The connection is still HTTP, and continues.
        assert_eq!(client.ask(request("GET /", "")).status(), 200);
    }
}

#[test]
fn invalid_websocket_request_is_not_upgraded() {
    let proxied = |asked: String, connection: Option<&str>| {
        let (origin, requests) =
            ScriptedUpstream::start_answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain");
        let proxy = proxy(origin.port(), &[]);
        let answer = WireConnection::connect(proxy.port()).ask(asked);
        assert_eq!(answer.text(), "plain");
        let seen = requests.lock().unwrap().remove(0);
        assert_eq!(
            (seen.header("upgrade"), seen.header("connection")),
            (None, connection),
            "{seen:?}"
        );
    };
    let body = format!("{ASKED}Content-Length: 2\r\n");
    proxied(request("POST /", &body) + "{}", None);
    // A server may leave the body of a GET unread.
    proxied(request("GET /", &body) + "{}", Some("close"));
    let old = format!("GET / HTTP/1.0\r\nHost: h\r\nX-API-Key: {KEY}\r\n{ASKED}\r\n");
    proxied(old, None);
}

#[test]
fn websocket_without_key_is_denied() {
    let origin = start_echo_upstream("");
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    let answer = client.ask(format!("GET /chat HTTP/1.1\r\nHost: h\r\n{ASKED}\r\n"));
    assert_eq!(answer.status(), 401);
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn upstream_refusal_of_upgrade_is_forwarded() {
    let (origin, _) = ScriptedUpstream::start_answering(
        "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno",
    );
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    for _ in 0..2 {
        let answer = client.ask(request("GET /", ASKED));
        assert_eq!((answer.status(), answer.text().as_str()), (426, "no"));
    }
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn upstream_switch_to_unrequested_protocol_is_502() {
    for (lines, answer) in [
        ("", SWITCHED),
        (
            ASKED,
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        ),
        (ASKED, "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    ] {
        let origin = ScriptedUpstream::start(move |wire, _| {
            wire.head();
            wire.send(answer);
            wire.read_rest();
        });
        let proxy = proxy(origin.port(), &[]);
        let got = WireConnection::connect(proxy.port()).ask(request("GET /", lines));
        assert_eq!(
            (got.status(), got.reason().as_str()),
            (502, "bad_gateway"),
            "{answer:?}"
        );
    }
}

#[test]
fn tunnel_ends_when_either_side_closes() {
    let origin = ScriptedUpstream::start(|wire, _| {
        wire.head();
        wire.send(SWITCHED);
        // Until it reads "bye", or the peer closes.
        wire.read_until("bye");
    });
    let proxy = proxy(origin.port(), &["--client-timeout=400ms"]);
    // A peer that does not close after the end of the other side has some time, and silence is not the subject here.
    let mut stays = WireConnection::connect(proxy.port());
    switch(&mut stays, ASKED);
    std::thread::sleep(Duration::from_secs(1));
    stays.send("bye");
    stays.expect_close();
    wait_until("the tunnel ends", || {
        proxy.metric_sum("authproxy_client_connections") == 0.0
    });

    let mut leaves = WireConnection::connect(proxy.port());
    switch(&mut leaves, ASKED);
    drop(leaves);
    wait_until("the tunnel ends", || {
        proxy.metric_sum("authproxy_client_connections") == 0.0
    });
}

#[test]
fn peer_that_does_not_read_ends_tunnel() {
    let origin = ScriptedUpstream::start(|wire, _| {
        wire.head();
        wire.send(SWITCHED);
        while wire.send([0; 64 << 10]) {}
    });
    let proxy = proxy(origin.port(), &["--client-timeout=400ms"]);
    let mut client = WireConnection::connect(proxy.port());
    assert_eq!(switch(&mut client, ASKED).status(), 101);
    wait_until("the tunnel ends", || {
        proxy.metric_sum("authproxy_client_connections") == 0.0
    });
}

#[test]
fn real_websocket_client_and_server_exchange_messages() {
    let python = |code: &str, arguments: &[String]| {
        // The Debian package belongs to this interpreter; another may come first in PATH.
        let mut command = Command::new("/usr/bin/python3");
        command.arg("-c").arg(code).args(arguments);
        command
    };
    let known = python("import websockets", &[])
        .stderr(Stdio::null())
        .status();
    if !known.is_ok_and(|status| status.success()) {
        skip(
            "a real WebSocket client",
            "python3-websockets is not installed",
        );
        return;
    }
    let port = free_port();
    let server = "import asyncio, sys, websockets\n\
                  async def echo(peer, *_):\n\
                  \x20   async for message in peer: await peer.send(message)\n\
                  async def main():\n\
                  \x20   async with websockets.serve(echo, '127.0.0.1', int(sys.argv[1]), max_size=None): await asyncio.Future()\n\
                  asyncio.run(main())\n";
    let _server = ChildGuard(python(server, &[port.to_string()]).spawn().unwrap());
    wait_until("the server listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let proxy = proxy(port, &[]);
    let client = "import asyncio, sys, websockets\n\
                  async def main():\n\
                  \x20   async with websockets.connect(sys.argv[1], max_size=None) as peer:\n\
                  \x20       for size in [0, 1, 125, 126, 65536, 3000000]:\n\
                  \x20           for message in ['x' * size, b'y' * size]:\n\
                  \x20               await peer.send(message)\n\
                  \x20               assert await peer.recv() == message\n\
                  \x20       await (await peer.ping())\n\
                  asyncio.run(main())\n";
    let url = format!("ws://127.0.0.1:{}/chat?apikey={KEY}", proxy.port());
    let status = python(client, &[url]).status().unwrap();
    assert!(status.success());
}
