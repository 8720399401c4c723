//! Bytes of a client, and all readers of what authproxy's request validation passes on: hyper, and the four kinds of
//! servers of [`crate::upstream::parser`]. A request that only one of them sees would bypass authorization.

use std::convert::Infallible;
use std::sync::Mutex;

use authproxy::testing::{RequestError, RequestValidator};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::upstream::parser::{ParsedStream, ParserProfile};

const HEAD_LIMIT: usize = 16 * 1024;

/// What hyper gets in place of an invalid head.
const SUBSTITUTE_HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: -\r\nconnection: close\r\n\r\n";

/// The bytes that pass, and the errors.
#[derive(Debug, PartialEq, Eq)]
struct ValidationOutcome {
    passed: Vec<u8>,
    head_error: Option<RequestError>,
    body_error: Option<RequestError>,
}

/// The body of the fuzz target.
///
/// # Panics
/// Two readers differ, or the outcome depends on how the bytes arrived.
pub(super) fn run(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let (outcome, slow, served) = runtime.expect("a runtime").block_on(async {
        let outcome = validate(bytes, 64 * 1024).await;
        (outcome, validate(bytes, 1).await, serve(bytes).await)
    });
    assert_eq!(outcome, slow, "whole, and byte by byte");
    let reading = read_alike(&outcome.passed);
    let whole = reading.whole().iter().map(|request| {
        let (method, rest) = request.line.split_once(' ').expect("a method");
        let (target, version) = rest.rsplit_once(' ').expect("a version");
        let target: Uri = target.parse().expect("a target that hyper takes");
        (format!("{method} {target} {version}"), &request.body)
    });
    let whole: Vec<_> = whole.collect();
    for (own, other) in served.iter().zip(&whole) {
        assert_eq!(
            (&own.0, &own.1),
            (&other.0, other.1),
            "hyper, and the other readers"
        );
    }
    assert!(served.len() <= whole.len(), "only hyper sees {served:?}");
    if served.len() < whole.len() {
        let last = served.len().checked_sub(1).expect("hyper sees the first");
        let last = &reading.whole()[last];
        let may_close = last.line.ends_with("1.0") || last.header("connection").is_some();
        assert!(may_close, "hyper sees nothing behind {last:?}");
    }
}

/// The requests that all four readers see alike.
fn read_alike(passed: &[u8]) -> ParsedStream {
    let [first, others @ ..] = ParserProfile::ALL.map(|reader| reader.read(passed));
    assert!(
        others.iter().all(|other| *other == first),
        "{first:#?}\n{others:#?}"
    );
    assert!(!first.broken, "{first:?}");
    first
}

/// The outcome of validation, through a pipe of `pipe` bytes.
async fn validate(bytes: &[u8], pipe: usize) -> ValidationOutcome {
    let (client, server) = duplex(pipe);
    let (validator, handle) = RequestValidator::new(server, HEAD_LIMIT);
    let read = async {
        let mut validator = TokioIo::new(validator);
        // Space for all of it, so that the substitute head arrives whole.
        let mut passed = Vec::with_capacity(bytes.len() + SUBSTITUTE_HEAD.len());
        let mut head_error = None;
        while head_error.is_none() && matches!(validator.read_buf(&mut passed).await, Ok(1..)) {
            head_error = handle.take_head_error();
        }
        if head_error.is_some() {
            let valid = passed
                .strip_suffix(SUBSTITUTE_HEAD)
                .expect("the substitute head");
            passed.truncate(valid.len());
        }
        ValidationOutcome {
            passed,
            head_error,
            body_error: handle.body_error(),
        }
    };
    tokio::join!(read, send(client, bytes)).0
}

/// Sends all bytes, or as many as are taken, and reads the responses.
async fn send(client: DuplexStream, bytes: &[u8]) {
    let (mut answers, mut requests) = tokio::io::split(client);
    let send = async {
        let _ = requests.write_all(bytes).await;
        let _ = requests.shutdown().await;
    };
    let mut answer = Vec::new();
    let _ = tokio::join!(send, answers.read_to_end(&mut answer));
}

/// The whole requests, with their bodies, that hyper sees behind the validator.
async fn serve(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let (client, server) = duplex(64 * 1024);
    let (validator, handle) = RequestValidator::new(server, HEAD_LIMIT);
    let served = Mutex::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        let is_invalid = handle.take_head_error().is_some();
        let served = &served;
        async move {
            let line = format!(
                "{} {} {:?}",
                request.method(),
                request.uri(),
                request.version()
            );
            if let (false, Ok(body)) = (is_invalid, request.into_body().collect().await) {
                let body = body.to_bytes().to_vec();
                served.lock().expect("one thread").push((line, body));
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
        }
    });
    let mut http = http1::Builder::new();
    // The client sends everything at once and then closes its side.
    let connection = http.half_close(true).serve_connection(validator, service);
    let _ = tokio::join!(connection, send(client, bytes));
    served.into_inner().expect("one thread")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::run;

    /// Unambiguous requests.
    const VALID_REQUESTS: &[&str] = &[
        "GET /a?b=c HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
        "GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n0\r\n\r\nGE",
        "POST /a HTTP/1.1\r\nContent-Length: 28\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n1c\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\n\r\n",
    ];

    /// Bytes that servers read differently.
    const AMBIGUOUS_BYTES: &[&[u8]] = &[
        b"\r",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\r\r\n",
        b"\n\r\n",
        b"\r\n\r\n",
        b"\0",
        b"\x0b",
        b"\x7f",
        b"\x85",
        b"\xe9",
        b" ",
        b"\t",
        b"\r\n ",
        b"\n\t",
        b":",
        b",",
        b";",
        b"_",
        b"-",
        b"+",
        b"0",
        b"1",
        b"8",
        b"x",
        b"0x",
        b"\"",
        b"%",
        b"/",
        b"#",
        b"@",
        b".",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"chunked",
        b"identity",
        b"gzip, ",
        b";a=\"\r\n\"",
        b"0\r\n\r\n",
        b"5\r\n",
        b"GET /c HTTP/1.1\r\nHost: a\r\n\r\n",
    ];

    /// Header lines that servers read differently.
    const AMBIGUOUS_LINES: &[&[u8]] = &[
        b"Content-Length: 0\r\n",
        b"Content-Length: 7\r\n",
        b"content_length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b"Transfer-Encoding: x\r\n",
        b"Host: b\r\n",
        b"Connection: close\r\n",
        b"Connection: content-length\r\n",
        b"Expect: 100-continue\r\n",
        b"Content-Length : 5\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b" chunked\r\n",
    ];

    #[derive(Debug, Clone)]
    enum ByteEdit {
        /// Insert after a line.
        Line(Index, &'static [u8]),
        Insert(Index, &'static [u8]),
        Replace(Index, u8),
        Remove(Index, usize),
        Repeat(Index, Index),
    }

    fn edit() -> impl Strategy<Value = ByteEdit> {
        prop_oneof![
            4 => (any::<Index>(), select(AMBIGUOUS_LINES)).prop_map(|(at, line)| ByteEdit::Line(at, line)),
            4 => (any::<Index>(), select(AMBIGUOUS_BYTES)).prop_map(|(at, what)| ByteEdit::Insert(at, what)),
            2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| ByteEdit::Replace(at, byte)),
            2 => (any::<Index>(), 1_usize..5).prop_map(|(at, length)| ByteEdit::Remove(at, length)),
            1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| ByteEdit::Repeat(from, to)),
        ]
    }

    fn apply(edit: ByteEdit, bytes: &mut Vec<u8>) {
        let end = bytes.len();
        match edit {
            ByteEdit::Line(at, line) => {
                let ends = (0..end).filter(|at| bytes[..*at].ends_with(b"\r\n"));
                let ends: Vec<usize> = ends.collect();
                if !ends.is_empty() {
                    let at = *at.get(&ends);
                    bytes.splice(at..at, line.iter().copied());
                }
            }
            ByteEdit::Insert(at, what) => {
                let at = at.index(end + 1);
                bytes.splice(at..at, what.iter().copied());
            }
            ByteEdit::Replace(at, byte) if end > 0 => bytes[at.index(end)] = byte,
            ByteEdit::Remove(at, length) if end > 0 => {
                let at = at.index(end);
                bytes.drain(at..end.min(at + length));
            }
            ByteEdit::Repeat(from, to) if end > 0 => {
                let (from, to) = (from.index(end), to.index(end));
                bytes.extend_from_within(from.min(to)..from.max(to));
            }
            _ => {}
        }
    }

    fn cases() -> u32 {
        if crate::is_long_run() { 200_000 } else { 4_000 }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: cases(),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn edited_requests_are_read_alike(
            requests in prop::collection::vec(select(VALID_REQUESTS), 1..4),
            edits in prop::collection::vec(edit(), 0..4),
        ) {
            let mut bytes = requests.concat().into_bytes();
            for edit in edits {
                apply(edit, &mut bytes);
            }
            run(&bytes);
        }
    }
}
