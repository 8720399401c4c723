//! Bytes of a client, and all who may come to read what authproxy's gate passes on of them: hyper behind it, and the
//! four kinds of servers of [`crate::upstream::parser`]. One request that only one of them sees is a way past the keys.

use std::convert::Infallible;
use std::sync::Mutex;

use authproxy::request_error::RequestError;
use authproxy::request_validation::RequestValidator;
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

/// What hyper is given in place of a head that is refused.
const SUBSTITUTE_HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: -\r\nconnection: close\r\n\r\n";

/// What became of a client's bytes.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    passed: Vec<u8>,
    fault: Option<RequestError>,
    body_fault: Option<RequestError>,
}

/// The body of the fuzz target.
///
/// # Panics
/// Two readers differ, or how the bytes arrived made a difference.
pub(super) fn run(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let (outcome, slow, seen) = runtime.expect("a runtime").block_on(async {
        let outcome = pass(bytes, 64 * 1024).await;
        (outcome, pass(bytes, 1).await, serve(bytes).await)
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
    for (own, other) in seen.iter().zip(&whole) {
        assert_eq!((&own.0, &own.1), (&other.0, other.1), "hyper, and others");
    }
    assert!(seen.len() <= whole.len(), "only hyper sees {seen:?}");
    if seen.len() < whole.len() {
        let last = seen.len().checked_sub(1).expect("hyper sees the first");
        let last = &reading.whole()[last];
        let may_close = last.line.ends_with("1.0") || last.header("connection").is_some();
        assert!(may_close, "hyper sees nothing behind {last:?}");
    }
}

/// What the four see, which is the same and sound.
fn read_alike(passed: &[u8]) -> ParsedStream {
    let [first, others @ ..] = ParserProfile::ALL.map(|reader| reader.read(passed));
    assert!(
        others.iter().all(|other| *other == first),
        "{first:#?}\n{others:#?}"
    );
    assert!(!first.broken, "{first:?}");
    first
}

/// What the gate passes on, through a pipe of this size.
async fn pass(bytes: &[u8], pipe: usize) -> Outcome {
    let (client, server) = duplex(pipe);
    let (gate, watch) = RequestValidator::new(server, HEAD_LIMIT);
    let read = async {
        let mut gate = TokioIo::new(gate);
        // Room for all of it, so that the gate's own head comes whole.
        let mut passed = Vec::with_capacity(bytes.len() + SUBSTITUTE_HEAD.len());
        let mut fault = None;
        while fault.is_none() && matches!(gate.read_buf(&mut passed).await, Ok(1..)) {
            fault = watch.take_fault();
        }
        if fault.is_some() {
            let sound = passed
                .strip_suffix(SUBSTITUTE_HEAD)
                .expect("the gate's own head");
            passed.truncate(sound.len());
        }
        Outcome {
            passed,
            fault,
            body_fault: watch.body_fault(),
        }
    };
    tokio::join!(read, send(client, bytes)).0
}

/// Sends everything, or as much as is taken, and reads what is answered.
async fn send(client: DuplexStream, bytes: &[u8]) {
    let (mut answers, mut requests) = tokio::io::split(client);
    let send = async {
        let _ = requests.write_all(bytes).await;
        let _ = requests.shutdown().await;
    };
    let mut answer = Vec::new();
    let _ = tokio::join!(send, answers.read_to_end(&mut answer));
}

/// The whole requests, with their bodies, that hyper sees behind the gate.
async fn serve(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let (client, server) = duplex(64 * 1024);
    let (gate, watch) = RequestValidator::new(server, HEAD_LIMIT);
    let seen = Mutex::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        let refused = watch.take_fault().is_some();
        let seen = &seen;
        async move {
            let line = format!(
                "{} {} {:?}",
                request.method(),
                request.uri(),
                request.version()
            );
            if let (false, Ok(body)) = (refused, request.into_body().collect().await) {
                let body = body.to_bytes().to_vec();
                seen.lock().expect("one thread").push((line, body));
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
        }
    });
    let mut http = http1::Builder::new();
    // The client says everything at once and then no more.
    let connection = http.half_close(true).serve_connection(gate, service);
    let _ = tokio::join!(connection, send(client, bytes));
    seen.into_inner().expect("one thread")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::run;

    /// Requests that nobody can misread.
    const CLEAR: &[&str] = &[
        "GET /a?b=c HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
        "GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n0\r\n\r\nGE",
        "POST /a HTTP/1.1\r\nContent-Length: 28\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n1c\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\n\r\n",
    ];

    /// What makes servers differ.
    const SPOILERS: &[&[u8]] = &[
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

    /// Lines that make servers differ, where they are headers.
    const LINES: &[&[u8]] = &[
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
    enum Edit {
        /// Behind the end of a line.
        Line(Index, &'static [u8]),
        Insert(Index, &'static [u8]),
        Replace(Index, u8),
        Remove(Index, usize),
        Repeat(Index, Index),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        prop_oneof![
            4 => (any::<Index>(), select(LINES)).prop_map(|(at, line)| Edit::Line(at, line)),
            4 => (any::<Index>(), select(SPOILERS)).prop_map(|(at, what)| Edit::Insert(at, what)),
            2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Replace(at, byte)),
            2 => (any::<Index>(), 1_usize..5).prop_map(|(at, length)| Edit::Remove(at, length)),
            1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Edit::Repeat(from, to)),
        ]
    }

    fn apply(edit: Edit, bytes: &mut Vec<u8>) {
        let end = bytes.len();
        match edit {
            Edit::Line(at, line) => {
                let ends = (0..end).filter(|at| bytes[..*at].ends_with(b"\r\n"));
                let ends: Vec<usize> = ends.collect();
                if !ends.is_empty() {
                    let at = *at.get(&ends);
                    bytes.splice(at..at, line.iter().copied());
                }
            }
            Edit::Insert(at, what) => {
                let at = at.index(end + 1);
                bytes.splice(at..at, what.iter().copied());
            }
            Edit::Replace(at, byte) if end > 0 => bytes[at.index(end)] = byte,
            Edit::Remove(at, length) if end > 0 => {
                let at = at.index(end);
                bytes.drain(at..end.min(at + length));
            }
            Edit::Repeat(from, to) if end > 0 => {
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
        fn all_read_the_same_of_requests_that_were_spoilt(
            clear in prop::collection::vec(select(CLEAR), 1..4),
            edits in prop::collection::vec(edit(), 0..4),
        ) {
            let mut bytes = clear.concat().into_bytes();
            for edit in edits {
                apply(edit, &mut bytes);
            }
            run(&bytes);
        }
    }
}
