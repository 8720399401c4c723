//! The validator alone: what it passes and what it refuses, however the bytes arrive. `rules` runs the bytes of
//! `cases`; `hyper_server` has hyper behind the validator.

mod cases;
mod hyper_server;
mod rules;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use hyper::rt::Read as _;
use tokio::io::{AsyncRead, ReadBuf};

use super::{ReadPhase, RequestValidator, ValidatorHandle};
use crate::request_error::RequestError;

const LIMIT: usize = 1024;

/// A client whose bytes arrive in these pieces, and which then stays silent.
#[derive(Debug)]
struct ScriptedClient(VecDeque<Vec<u8>>);

impl AsyncRead for ScriptedClient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.0.pop_front() else {
            return Poll::Pending;
        };
        let later = piece.split_off(piece.len().min(buf.remaining()));
        buf.put_slice(&piece);
        if !later.is_empty() {
            self.0.push_front(later);
        }
        Poll::Ready(Ok(()))
    }
}

/// The bytes that were passed on, and the errors.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ValidationOutcome {
    passed: Vec<u8>,
    head_error: Option<RequestError>,
    body_error: Option<RequestError>,
}

/// Reads until the validator waits or fails.
fn read_all(
    validator: &mut RequestValidator<ScriptedClient>,
    handle: &ValidatorHandle,
    space: usize,
) -> ValidationOutcome {
    let mut passed = Vec::new();
    let mut buffer = vec![0; space];
    loop {
        let mut buf = hyper::rt::ReadBuf::new(&mut buffer);
        let cx = &mut Context::from_waker(Waker::noop());
        match Pin::new(&mut *validator).poll_read(cx, buf.unfilled()) {
            Poll::Ready(Ok(())) => {
                assert!(!buf.filled().is_empty(), "end of stream");
                passed.extend_from_slice(buf.filled());
            }
            Poll::Ready(Err(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                break;
            }
            Poll::Pending => break,
        }
    }
    ValidationOutcome {
        passed,
        head_error: handle.take_head_error(),
        body_error: handle.body_error(),
    }
}

/// Validates pieces, with reads of `space` bytes.
fn validate(pieces: Vec<Vec<u8>>, space: usize) -> ValidationOutcome {
    let (mut validator, handle) = RequestValidator::new(ScriptedClient(pieces.into()), LIMIT);
    read_all(&mut validator, &handle, space)
}

fn validator(pieces: &[&[u8]]) -> (RequestValidator<ScriptedClient>, ValidatorHandle) {
    let pieces = pieces.iter().map(|piece| piece.to_vec()).collect();
    RequestValidator::new(ScriptedClient(pieces), LIMIT)
}

/// The bytes that are passed on before the client is waited for, and the phase.
fn read_phase(pieces: &[&[u8]]) -> (Vec<u8>, ReadPhase) {
    let (mut validator, handle) = validator(pieces);
    let outcome = read_all(&mut validator, &handle, 8192);
    (outcome.passed, handle.read_phase())
}

#[test]
fn read_phase_is_that_of_the_incomplete_message() {
    let head: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let post: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
    assert_eq!(read_phase(&[]), (vec![], ReadPhase::Idle));
    assert_eq!(read_phase(&[head]), (head.to_vec(), ReadPhase::Idle));
    assert_eq!(read_phase(&[b"\r\n"]), (vec![], ReadPhase::Idle));
    assert_eq!(read_phase(&[&head[..5]]), (vec![], ReadPhase::Head));
    assert_eq!(
        read_phase(&[head, &head[..1]]),
        (head.to_vec(), ReadPhase::Head)
    );
    assert_eq!(read_phase(&[post]), (post.to_vec(), ReadPhase::Body));
    assert_eq!(read_phase(&[post, b"body"]).1, ReadPhase::Idle);
    assert_eq!(read_phase(&[post, b"bodyG"]).1, ReadPhase::Head);
    let chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
    assert_eq!(
        read_phase(&[chunked, b"X: "]),
        (chunked.to_vec(), ReadPhase::Body)
    );
    assert_eq!(read_phase(&[b"\n"]).1, ReadPhase::Idle);
}

#[test]
fn read_phase_is_idle_while_received_bytes_are_not_taken() {
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo";
    let (mut validator, handle) = validator(&[post]);
    let mut buffer = [0; 32];
    let mut buf = hyper::rt::ReadBuf::new(&mut buffer);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(
        Pin::new(&mut validator)
            .poll_read(cx, buf.unfilled())
            .is_ready()
    );
    assert_eq!(handle.read_phase(), ReadPhase::Idle);
    assert_eq!(handle.transferred(), (post.len() as u64, 0));
}

#[test]
fn read_phase_is_head_while_a_whole_request_is_not_taken() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (mut validator, handle) = validator(&[&head.repeat(2)]);
    let mut buffer = [0; 512];
    let cx = &mut Context::from_waker(Waker::noop());
    for expected in [ReadPhase::Head, ReadPhase::Idle] {
        let mut buf = hyper::rt::ReadBuf::new(&mut buffer);
        assert!(
            Pin::new(&mut validator)
                .poll_read(cx, buf.unfilled())
                .is_ready()
        );
        assert_eq!(buf.filled(), head);
        assert_eq!(handle.read_phase(), expected);
    }
}

#[test]
fn debug_output_has_no_received_bytes() {
    let (mut validator, handle) = validator(&[b"GET /?apikey=secret HTTP/1.1\r\nHost: a\r\nX"]);
    read_all(&mut validator, &handle, 8192);
    assert!(!format!("{validator:?} {handle:?}").contains("secret"));
    assert!(validator.pending.starts_with(b"GET /?apikey=secret"));
}

#[test]
fn idle_validator_holds_no_memory() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (mut validator, handle) = validator(&[&head.repeat(5), &head[..3]]);
    read_all(&mut validator, &handle, 8192);
    assert_ne!(validator.pending.capacity(), 0);
    validator
        .stream
        .0
        .extend(head[3..].iter().map(|byte| vec![*byte]));
    read_all(&mut validator, &handle, 8192);
    assert_eq!(validator.pending.capacity(), 0);
    assert!(size_of::<RequestValidator<tokio::net::TcpStream>>() <= 256);
}

#[test]
fn bytes_after_an_upgrade_pass_without_validation() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
    let (mut validator, handle) = validator(&[head, b"he"]);
    let passed = read_all(&mut validator, &handle, 48).passed;
    assert_eq!(passed, head);
    validator.stream.0.push_back(b"\0\n\r".to_vec());
    handle.begin_tunnel();
    assert_eq!(read_all(&mut validator, &handle, 3).passed, b"he\0\n\r");
    assert_eq!(handle.read_phase(), ReadPhase::Idle);
}

#[test]
fn after_an_error_nothing_is_read_and_no_tunnel_begins() {
    for sent in [
        &b"GET /\n"[..],
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n|\r\n",
    ] {
        let (mut validator, handle) = validator(&[sent]);
        let first = read_all(&mut validator, &handle, 8192);
        assert!(first.head_error.is_some() || first.body_error.is_some());
        validator
            .stream
            .0
            .push_back(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec());
        handle.begin_tunnel();
        let second = read_all(&mut validator, &handle, 8192);
        assert_eq!(second.passed, b"");
        assert_eq!(second.head_error, None, "returned twice");
        assert_eq!(validator.stream.0.len(), 1);
    }
}

#[test]
fn partial_head_is_kept_outside_of_the_validator() {
    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut cx = Context::from_waker(Waker::noop());
    let (mut validator, _) = RequestValidator::new(ScriptedClient(VecDeque::new()), LIMIT);
    let mut part = BytesMut::new();
    assert!(validator.is_between_requests());
    let bytes = [b"\r\n", HEAD].concat();
    for (at, byte) in bytes.iter().enumerate() {
        validator.stream.0.push_back(vec![*byte]);
        let polled = validator.poll_head(&mut cx, &mut part);
        if at + 1 < bytes.len() {
            assert!(polled.is_pending() && validator.pending.is_empty(), "{at}");
            assert!(!part.is_empty() || !validator.is_between_requests(), "{at}");
        } else {
            assert!(matches!(polled, Poll::Ready(Ok(true))));
        }
    }
    assert_eq!(
        (&validator.pending[..], validator.valid, part.len()),
        (HEAD, HEAD.len(), 0)
    );
    let (mut ended, _) = RequestValidator::new(tokio::io::empty(), LIMIT);
    let polled = ended.poll_head(&mut cx, &mut part);
    assert!(matches!(polled, Poll::Ready(Ok(false))));
}
