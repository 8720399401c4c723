//! The gate alone: what it passes on and what it refuses, however the bytes arrive. `rules` runs the bytes of
//! `table`, `server` has hyper behind the gate.

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

/// A client whose bytes arrive in these pieces, and who then says nothing more.
#[derive(Debug)]
struct Client(VecDeque<Vec<u8>>);

impl AsyncRead for Client {
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

/// What became of some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    passed: Vec<u8>,
    fault: Option<RequestError>,
    body_fault: Option<RequestError>,
}

/// A gate, and what it says, until it waits or fails.
fn read_all(gate: &mut RequestValidator<Client>, watch: &ValidatorHandle, room: usize) -> Outcome {
    let mut passed = Vec::new();
    let mut buffer = vec![0; room];
    loop {
        let mut buf = hyper::rt::ReadBuf::new(&mut buffer);
        let cx = &mut Context::from_waker(Waker::noop());
        match Pin::new(&mut *gate).poll_read(cx, buf.unfilled()) {
            Poll::Ready(Ok(())) => {
                assert!(!buf.filled().is_empty(), "no end was sent");
                passed.extend_from_slice(buf.filled());
            }
            Poll::Ready(Err(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                break;
            }
            Poll::Pending => break,
        }
    }
    Outcome {
        passed,
        fault: watch.take_fault(),
        body_fault: watch.body_fault(),
    }
}

/// What becomes of these pieces, read by something that has so much room.
fn outcome(pieces: Vec<Vec<u8>>, room: usize) -> Outcome {
    let (mut gate, watch) = RequestValidator::new(Client(pieces.into()), LIMIT);
    read_all(&mut gate, &watch, room)
}

fn gate(pieces: &[&[u8]]) -> (RequestValidator<Client>, ValidatorHandle) {
    let pieces = pieces.iter().map(|piece| piece.to_vec()).collect();
    RequestValidator::new(Client(pieces), LIMIT)
}

/// What is passed on of these pieces before the client is waited for, and with what it is waited for.
fn reading(pieces: &[&[u8]]) -> (Vec<u8>, ReadPhase) {
    let (mut gate, watch) = gate(pieces);
    let outcome = read_all(&mut gate, &watch, 8192);
    (outcome.passed, watch.reading())
}

#[test]
fn what_the_client_is_waited_for_with() {
    let head: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let post: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
    assert_eq!(reading(&[]), (vec![], ReadPhase::Idle));
    assert_eq!(reading(&[head]), (head.to_vec(), ReadPhase::Idle));
    assert_eq!(reading(&[b"\r\n"]), (vec![], ReadPhase::Idle));
    assert_eq!(reading(&[&head[..5]]), (vec![], ReadPhase::Head));
    assert_eq!(
        reading(&[head, &head[..1]]),
        (head.to_vec(), ReadPhase::Head)
    );
    assert_eq!(reading(&[post]), (post.to_vec(), ReadPhase::Body));
    assert_eq!(reading(&[post, b"body"]).1, ReadPhase::Idle);
    assert_eq!(reading(&[post, b"bodyG"]).1, ReadPhase::Head);
    let chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
    assert_eq!(
        reading(&[chunked, b"X: "]),
        (chunked.to_vec(), ReadPhase::Body)
    );
    assert_eq!(reading(&[b"\n"]).1, ReadPhase::Idle);
}

#[test]
fn nothing_is_waited_for_while_what_came_is_not_taken() {
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo";
    let (mut gate, watch) = gate(&[post]);
    let mut buffer = [0; 32];
    let mut buf = hyper::rt::ReadBuf::new(&mut buffer);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut gate).poll_read(cx, buf.unfilled()).is_ready());
    assert_eq!(watch.reading(), ReadPhase::Idle);
    assert_eq!(watch.progress(), (post.len() as u64, 0));
}

#[test]
fn a_request_that_is_not_taken_yet_is_not_idleness() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (mut gate, watch) = gate(&[&head.repeat(2)]);
    let mut buffer = [0; 512];
    let cx = &mut Context::from_waker(Waker::noop());
    for expected in [ReadPhase::Head, ReadPhase::Idle] {
        let mut buf = hyper::rt::ReadBuf::new(&mut buffer);
        assert!(Pin::new(&mut gate).poll_read(cx, buf.unfilled()).is_ready());
        assert_eq!(buf.filled(), head);
        assert_eq!(watch.reading(), expected);
    }
}

#[test]
fn what_was_read_is_not_shown() {
    let (mut gate, watch) = gate(&[b"GET /?apikey=secret HTTP/1.1\r\nHost: a\r\nX"]);
    read_all(&mut gate, &watch, 8192);
    assert!(!format!("{gate:?} {watch:?}").contains("secret"));
    assert!(gate.rest.starts_with(b"GET /?apikey=secret"));
}

#[test]
fn a_gate_that_is_idle_holds_no_memory() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (mut gate, watch) = gate(&[&head.repeat(5), &head[..3]]);
    read_all(&mut gate, &watch, 8192);
    assert_ne!(gate.rest.capacity(), 0);
    gate.stream
        .0
        .extend(head[3..].iter().map(|byte| vec![*byte]));
    read_all(&mut gate, &watch, 8192);
    assert_eq!(gate.rest.capacity(), 0);
    assert!(size_of::<RequestValidator<tokio::net::TcpStream>>() <= 256);
}

#[test]
fn behind_an_upgrade_bytes_pass_as_they_are() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
    let (mut gate, watch) = gate(&[head, b"he"]);
    let rested = read_all(&mut gate, &watch, 48).passed;
    assert_eq!(rested, head);
    gate.stream.0.push_back(b"\0\n\r".to_vec());
    watch.open();
    assert_eq!(read_all(&mut gate, &watch, 3).passed, b"he\0\n\r");
    assert_eq!(watch.reading(), ReadPhase::Idle);
}

#[test]
fn after_a_fault_nothing_is_read_nor_opened() {
    for sent in [
        &b"GET /\n"[..],
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n|\r\n",
    ] {
        let (mut gate, watch) = gate(&[sent]);
        let first = read_all(&mut gate, &watch, 8192);
        assert!(first.fault.is_some() || first.body_fault.is_some());
        gate.stream
            .0
            .push_back(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec());
        watch.open();
        let second = read_all(&mut gate, &watch, 8192);
        assert_eq!(second.passed, b"");
        assert_eq!(second.fault, None, "told twice");
        assert_eq!(gate.stream.0.len(), 1);
    }
}

#[test]
fn head_that_is_not_whole_is_kept_outside_of_gate() {
    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut cx = Context::from_waker(Waker::noop());
    let (mut gate, _) = RequestValidator::new(Client(VecDeque::new()), LIMIT);
    let mut part = BytesMut::new();
    assert!(gate.is_between_requests());
    let bytes = [b"\r\n", HEAD].concat();
    for (at, byte) in bytes.iter().enumerate() {
        gate.stream.0.push_back(vec![*byte]);
        let polled = gate.poll_head(&mut cx, &mut part);
        if at + 1 < bytes.len() {
            assert!(polled.is_pending() && gate.rest.is_empty(), "{at}");
            assert!(!part.is_empty() || !gate.is_between_requests(), "{at}");
        } else {
            assert!(matches!(polled, Poll::Ready(Ok(true))));
        }
    }
    assert_eq!(
        (&gate.rest[..], gate.sound, part.len()),
        (HEAD, HEAD.len(), 0)
    );
    let (mut ended, _) = RequestValidator::new(tokio::io::empty(), LIMIT);
    let polled = ended.poll_head(&mut cx, &mut part);
    assert!(matches!(polled, Poll::Ready(Ok(false))));
}
