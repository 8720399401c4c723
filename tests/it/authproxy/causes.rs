//! Causes of failed or truncated responses: the access log has the cause beside the request's id, a warning is logged
//! once, and metrics count it.

use std::any::Any;

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::misbehavior::FullBacklog;
use hostkit_tests::{free_port, wait_until};

use super::wire::{KEY, OTHER, ScriptedUpstream, WireConnection, acl_file, request};

/// The address of a server, which behaves in one way until the second part is dropped.
type FaultyUpstream = (String, Box<dyn Any>);

fn on_port(port: u16, server: impl Any) -> FaultyUpstream {
    (format!("http://127.0.0.1:{port}"), Box::new(server))
}

fn scripted(script: impl Fn(&mut WireConnection) + Send + Sync + 'static) -> FaultyUpstream {
    let origin = ScriptedUpstream::start(move |wire, _| script(wire));
    on_port(origin.port(), origin)
}

/// A server that sends these bytes after a request's head, and closes.
fn send_and_close(bytes: &'static str) -> FaultyUpstream {
    scripted(move |wire| {
        wire.head();
        wire.send(bytes);
    })
}

/// A server that sends these bytes after a request's head, and is silent afterwards.
fn send_and_stall(bytes: &'static str) -> FaultyUpstream {
    scripted(move |wire| {
        wire.head();
        wire.send(bytes);
        wire.read_rest();
    })
}

/// Starts authproxy with an access log, and with a file of two keys unless `args` names another permissions backend.
fn start(server: &str, args: &[&str]) -> AuthproxyProcess {
    let server = format!("--server={server}");
    let file = format!("--acl-file={}", acl_file().display());
    let mut all = vec![server.as_str(), "--right=all"];
    if !args.iter().any(|arg| arg.contains("acl")) {
        all.push(&file);
    }
    all.extend(args);
    AuthproxyProcess::start(&all)
}

/// Waits for the access log line with this id and these words.
#[track_caller]
fn wait_for_access_log(proxy: &AuthproxyProcess, id: &str, words: &[&str]) {
    let mut line = String::new();
    wait_until("the access log has the line", || {
        let log = proxy.log();
        let found = log
            .lines()
            .find(|line| line.contains("authproxy.access") && line.contains(id));
        line = found.unwrap_or_default().to_owned();
        found.is_some()
    });
    for word in words {
        assert!(line.contains(word), "{word}: {line}");
    }
}

/// The number of warnings with a reason.
fn count_warnings(proxy: &AuthproxyProcess, cause: &str) -> usize {
    let (log, cause) = (proxy.log(), format!(" reason={cause} "));
    log.lines()
        .filter(|line| line.contains(" WARNING authproxy: ") && line.contains(&cause))
        .count()
}

#[test]
fn failed_request_is_logged_with_id_and_cause() {
    let soon: &[&str] = &["--timeout=300ms"];
    let unreachable = format!("--acl-server=http://127.0.0.1:{}/", free_port());
    let engine = || send_and_close("");
    for (server, args, status, word, cause, detail) in [
        (
            on_port(free_port(), ()),
            &[][..],
            502,
            "bad_gateway",
            "upstream_refused",
            "",
        ),
        (
            ("unix:/nowhere/socket".to_owned(), Box::new(()) as Box<_>),
            &[],
            502,
            "bad_gateway",
            "upstream_unreachable",
            "detail=\"No such file or directory",
        ),
        (
            send_and_close(""),
            &[],
            502,
            "bad_gateway",
            "upstream_closed",
            "",
        ),
        (
            send_and_close("HTTP/1.1 200 OK\r\nContent-"),
            &[],
            502,
            "bad_gateway",
            "upstream_closed",
            "",
        ),
        (
            send_and_close("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
            &[],
            502,
            "bad_gateway",
            "upstream_invalid_head",
            "detail=\"different values of Content-Length\"",
        ),
        (
            send_and_close("SSH-2.0-OpenSSH\r\n"),
            &[],
            502,
            "bad_gateway",
            "upstream_invalid_head",
            "detail=\"not HTTP/1.0 or HTTP/1.1\"",
        ),
        (
            send_and_close(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            ),
            &[],
            502,
            "bad_gateway",
            "upstream_invalid_head",
            "key_id=wire detail=\"switched to a protocol",
        ),
        (
            {
                let full = FullBacklog::start();
                on_port(full.port(), full)
            },
            soon,
            504,
            "gateway_timeout",
            "upstream_connect_timeout",
            "",
        ),
        (
            send_and_stall(""),
            soon,
            504,
            "gateway_timeout",
            "upstream_response_timeout",
            "",
        ),
        (
            engine(),
            &[&unreachable],
            503,
            "permissions_unavailable",
            "permissions_failed",
            "Connection refused",
        ),
        (
            engine(),
            &["--use_liveconf_aclserver", "--liveconf=/nowhere"],
            503,
            "permissions_unavailable",
            "permissions_not_configured",
            "/nowhere",
        ),
    ] {
        let (url, _server) = server;
        let proxy = start(&url, args);
        let mut client = WireConnection::connect(proxy.port());
        for _ in 0..3 {
            let answer = client.ask(request("GET /", ""));
            assert_eq!((answer.status(), answer.reason().as_str()), (status, word));
            let id = answer.header("x-request-id").unwrap();
            wait_for_access_log(&proxy, id, &[&format!(" reason={cause} "), detail]);
        }
        assert_eq!(count_warnings(&proxy, cause), 1, "{}", proxy.log());
        let metric = format!("authproxy_error_responses_total{{reason=\"{cause}\"}}");
        assert_eq!(proxy.metric(&metric), Some(3.0), "{cause}");
    }
}

#[test]
fn request_without_connection_names_exceeded_limit() {
    let args = ["--server-connections=1", "--timeout=3s"];
    let (url, _server) = send_and_stall("");
    let proxy = start(&url, &args);
    // It holds the only connection until it sends the rest.
    let mut holder = WireConnection::connect(proxy.port());
    holder.send(request("POST /", "Content-Length: 100\r\n") + "some");
    wait_until("the connection is taken", || {
        proxy.metric_sum("authproxy_upstream_connections") == 1.0
    });
    let mut waiting = WireConnection::connect(proxy.port());
    waiting.send(request("GET /", ""));
    wait_until("a request waits", || {
        proxy.metric_sum("authproxy_upstream_queued_requests") == 1.0
    });
    let other = request("GET /", "").replace(KEY, OTHER);
    let refused = WireConnection::connect(proxy.port()).ask(other);
    let expired = waiting.message().unwrap();
    for (answer, cause) in [
        (refused, "upstream_queue_full"),
        (expired, "upstream_queue_timeout"),
    ] {
        assert_eq!(
            (answer.status(), answer.reason().as_str()),
            (503, "overloaded")
        );
        let id = answer.header("x-request-id").unwrap();
        wait_for_access_log(&proxy, id, &[&format!(" reason={cause} ")]);
        assert_eq!(count_warnings(&proxy, cause), 1, "{}", proxy.log());
    }
}

#[test]
fn truncated_response_names_side_that_closed() {
    const LONG: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this";
    let endless = || {
        scripted(|wire| {
            wire.head();
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
            while wire.send(&chunk) {}
        })
    };
    for (server, args, leaves, cause, warned) in [
        (send_and_close(LONG), &[][..], false, "upstream_closed", 1),
        (
            send_and_close("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"),
            &[],
            false,
            "upstream_invalid_body",
            1,
        ),
        (
            send_and_stall(LONG),
            &["--timeout=300ms"],
            false,
            "upstream_timeout",
            1,
        ),
        (
            endless(),
            &["--client-timeout=400ms"],
            false,
            "client_timeout",
            0,
        ),
        (endless(), &[], true, "client_closed", 0),
    ] {
        let (url, _server) = server;
        let proxy = start(&url, args);
        let mut client = WireConnection::connect(proxy.port());
        client.send(request("GET /", "X-Request-Id: of-this-one\r\n"));
        assert!(client.head().unwrap().starts_with("HTTP/1.1 200"));
        let kept = (!leaves).then_some(client);
        wait_for_access_log(
            &proxy,
            "of-this-one",
            &[" 200 ", &format!(" truncated={cause} ")],
        );
        drop(kept);
        assert_eq!(count_warnings(&proxy, cause), warned, "{}", proxy.log());
        let metric = format!("authproxy_truncated_responses_total{{reason=\"{cause}\"}}");
        assert_eq!(proxy.metric(&metric), Some(1.0), "{cause}");
    }
}

#[test]
fn upload_aborted_by_client_is_not_upstream_failure() {
    let (url, _server) = send_and_stall("");
    let proxy = start(&url, &[]);
    for body in ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut client = WireConnection::connect(proxy.port());
        let id = format!("X-Request-Id: broken-{}\r\n", body.len());
        client.send(request("POST /", &format!("{id}{body}")) + "4\r\nsome\r\n");
        wait_until("the request is under way", || {
            proxy.metric_sum("authproxy_upstream_connections") == 1.0
        });
        client.finish();
        let answer = client.message().unwrap();
        assert_eq!(
            (answer.status(), answer.reason().as_str()),
            (400, "invalid_request")
        );
        let words = [" reason=invalid_request ", "detail=\"the body ended"];
        wait_for_access_log(&proxy, &format!("broken-{}", body.len()), &words);
        wait_until("the connection is closed", || {
            proxy.metric_sum("authproxy_upstream_connections") == 0.0
        });
    }
    assert!(!proxy.log().contains("WARNING"), "{}", proxy.log());
}
