//! Streaming responses may be silent for longer than others, but not for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::wait_until;

use super::wire::{ScriptedUpstream, WireConnection, proxy, request};

const EVENTS: &str = "text/event-stream; charset=utf-8";
const FIRST: &str = "5\r\nfirst\r\n";
/// The last chunk of a complete body.
const END: &str = "0\r\n\r\n";

fn head(content_type: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n")
}

/// An upstream whose response pauses after its first part, and ends once it is released; that of `/stalled` never does.
fn start_silent_upstream(
    content_type: &'static str,
    first: &'static str,
    outcome: Arc<AtomicBool>,
) -> ScriptedUpstream {
    ScriptedUpstream::start(move |wire, _| {
        let Some(request) = wire.head() else { return };
        if request.starts_with("GET /stalled") {
            wire.send(head("text/plain"));
            wire.read_rest();
            return;
        }
        wire.send(head(content_type) + first);
        wait_until("the upstream continues", || outcome.load(Ordering::SeqCst));
        wire.send(format!("6\r\nsecond\r\n{END}"));
    })
}

/// Lets `--timeout` pass several times.
fn wait_past_timeout(proxy: &AuthproxyProcess) {
    for _ in 0..4 {
        let mut client = WireConnection::connect(proxy.port());
        client.send(request("GET /stalled", ""));
        let response = String::from_utf8(client.read_rest()).unwrap();
        assert!(!response.ends_with(END), "{response}");
    }
}

#[test]
fn streaming_response_outlives_the_timeout_of_others() {
    let timeouts = ["--timeout=300ms", "--stream-timeout=1h"];
    for (content_type, first, args) in [
        (EVENTS, FIRST, &timeouts[..1]),
        (EVENTS, "", &timeouts),
        ("text/plain", FIRST, &["--timeout=300ms", "--stream-all"]),
    ] {
        let outcome = Arc::new(AtomicBool::new(false));
        let origin = start_silent_upstream(content_type, first, outcome.clone());
        let proxy = proxy(origin.port(), args);
        let mut client = WireConnection::connect(proxy.port());
        client.send(request("GET /", ""));
        assert!(client.head().unwrap().starts_with("HTTP/1.1 200"));
        assert_eq!(client.read_exactly(first.len()), first.as_bytes());
        wait_past_timeout(&proxy);
        outcome.store(true, Ordering::SeqCst);
        let rest = String::from_utf8(client.read_exactly(11 + END.len())).unwrap();
        assert_eq!(
            rest,
            format!("6\r\nsecond\r\n{END}"),
            "{content_type} {args:?}"
        );
    }
}

#[test]
fn non_streaming_or_silent_response_is_truncated_at_timeout() {
    for (content_type, first, args) in [
        ("text/plain", FIRST, &["--timeout=300ms"][..]),
        // Before its first byte it is like any other.
        ("text/plain", "", &["--timeout=300ms", "--stream-all"]),
        (EVENTS, FIRST, &["--timeout=1h", "--stream-timeout=300ms"]),
        (EVENTS, "", &["--timeout=1h", "--stream-timeout=300ms"]),
    ] {
        let outcome = Arc::new(AtomicBool::new(false));
        let origin = start_silent_upstream(content_type, first, outcome.clone());
        let proxy = proxy(origin.port(), args);
        let mut client = WireConnection::connect(proxy.port());
        client.send(request("GET /", ""));
        assert!(client.head().unwrap().starts_with("HTTP/1.1 200"));
        assert_eq!(
            client.read_rest(),
            first.as_bytes(),
            "{content_type} {args:?}"
        );
        let cause = "authproxy_truncated_responses_total{reason=\"upstream_timeout\"}";
        wait_until("the truncation is counted", || {
            proxy.metric(cause) == Some(1.0)
        });
        outcome.store(true, Ordering::SeqCst);
    }
}

#[test]
fn client_leaving_silent_stream_frees_upstream_connection() {
    let outcome = Arc::new(AtomicBool::new(false));
    let origin = start_silent_upstream(EVENTS, FIRST, outcome.clone());
    let proxy = proxy(origin.port(), &[]);
    let mut client = WireConnection::connect(proxy.port());
    client.send(request("GET /", ""));
    assert!(client.head().unwrap().starts_with("HTTP/1.1 200"));
    drop(client);
    wait_until("all connections are released", || {
        proxy.metric_sum("authproxy_client_connections") == 0.0
            && proxy.metric_sum("authproxy_upstream_connections") == 0.0
    });
    outcome.store(true, Ordering::SeqCst);
}
