//! The gate: bytes of a client are judged before hyper reads them.
//!
//! hyper takes what RFC 9112 lets a lenient recipient take, and then two servers in a row can differ over where a request
//! ends: what one reads as a body is a request, without a key, to the other. The gate stands between the socket and hyper,
//! follows the framing itself, and lets pass only what all servers read alike. hyper gets whole heads, one message at a
//! time, and never a byte of what was refused:
//!
//! * A head that breaks a rule is replaced by one of the gate's own, which makes hyper close after the answer;
//!   [`ValidatorHandle::take_fault`] says what to answer.
//! * A body that breaks a rule fails to be read, before the line that broke it; [`ValidatorHandle::body_fault`] says why.
//!
//! Owns the rules (RFC 9110, 9112, where they leave a choice: the narrow one) and which byte goes on when. Who may send
//! what is `door`'s, deadlines are `conn`'s.

mod authority;
mod byte_class;
mod chunked_body;
mod handle;
mod header_field;
mod request_head;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::request_error::RequestError;

use chunked_body::{ChunkedScanner, ValidPiece};
pub use handle::{ReadPhase, ValidatorHandle};
use handle::{ValidationError, ValidatorStatus};
use request_head::{BodyFraming, HeadScanner};

/// The longest head that can be allowed. No target or name of a header in it is longer than hyper takes.
pub const MAX_HEAD: usize = 64 * 1024;

/// What hyper reads in place of a head that was refused: the answer is an HTTP/1.1 one, and says that it is the last.
const SUBSTITUTE_HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: -\r\nconnection: close\r\n\r\n";

/// How much is read at once, at most.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    /// What all connections of a thread are read into, one at a time; nothing stays in it.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Reads once, and throws away what came. Whether there may be more.
pub(crate) fn poll_discard(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
) -> Poll<io::Result<bool>> {
    let mut scratch = BUFFER.take();
    scratch.resize(SCRATCH, 0);
    let mut buf = ReadBuf::new(&mut scratch);
    let polled = Pin::new(stream).poll_read(cx, &mut buf);
    let more = !buf.filled().is_empty();
    BUFFER.set(scratch);
    polled.map_ok(|()| more)
}

/// A connection as hyper sees it.
pub struct RequestValidator<S> {
    stream: S,
    state: ValidatorState,
    /// What was read and could not go on: part of a head or of a line, or the next message. At most a head and one read.
    /// Holds no memory while it is empty.
    rest: BytesMut,
    /// How many bytes of `rest` were judged already.
    sound: usize,
    head_limit: usize,
    shared: Arc<ValidatorStatus>,
}

/// What the next byte belongs to.
enum ValidatorState {
    Head {
        head: HeadScanner,
        /// The empty line that may precede it was dropped.
        skipped: bool,
    },
    Length(u64),
    Chunked(ChunkedScanner),
    /// Nothing: a head was refused. What is left of the request in its place.
    Refused(&'static [u8]),
    /// Nothing: a body was refused.
    Broken,
    /// Something that is not HTTP any more.
    Open,
}

impl ValidatorState {
    const fn idle() -> Self {
        Self::Head {
            head: HeadScanner::new(),
            skipped: false,
        }
    }

    fn body(framing: BodyFraming, limit: usize) -> Self {
        match framing {
            BodyFraming::Length(0) => Self::idle(),
            BodyFraming::Length(length) => Self::Length(length),
            BodyFraming::Chunked => Self::Chunked(ChunkedScanner::new(limit)),
        }
    }
}

/// Judges a head on its own, as the gate does one that arrives.
///
/// # Errors
/// The rule that it breaks.
pub(crate) fn validate_head(head: &[u8], limit: usize) -> Result<(), RequestError> {
    HeadScanner::new().scan(head, limit).map(|_| ())
}

/// What the first of some bytes are good for.
struct ScanResult {
    /// So many are dropped,
    dropped: usize,
    /// and so many behind them go on.
    sound: usize,
}

impl<S> RequestValidator<S> {
    /// A gate before a connection that was just accepted. `head_limit`: bytes of a head, at most [`MAX_HEAD`].
    #[must_use]
    pub fn new(stream: S, head_limit: usize) -> (Self, ValidatorHandle) {
        let shared = Arc::new(ValidatorStatus::default());
        let gate = Self {
            stream,
            state: ValidatorState::idle(),
            rest: BytesMut::new(),
            sound: 0,
            head_limit: head_limit.min(MAX_HEAD),
            shared: Arc::clone(&shared),
        };
        (gate, ValidatorHandle(shared))
    }

    /// The connection.
    #[must_use]
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Whether the client is between two requests: all that it has sent belongs to whole ones.
    pub(crate) fn is_between_requests(&self) -> bool {
        matches!(self.state, ValidatorState::Head { skipped: false, .. }) && self.rest.is_empty()
    }

    /// What has come of a head that is not whole, for [`RequestValidator::poll_head`] to go on with.
    pub(crate) fn take_unfinished(&mut self) -> BytesMut {
        mem::take(&mut self.rest)
    }

    /// The connection, and what was read from it and not passed on: after an upgrade its first bytes, after a refusal
    /// what is to be thrown away.
    #[must_use]
    pub fn into_inner(self) -> (S, Bytes) {
        (self.stream, self.rest.freeze())
    }

    /// Judges bytes, up to the end of a message. They begin with what the time before did not go on.
    fn scan(&mut self, bytes: &[u8]) -> ScanResult {
        let mut dropped = 0;
        let mut at = 0;
        while at < bytes.len() {
            let bytes = &bytes[at..];
            match &mut self.state {
                // RFC 9112 2.2: one empty line, which old clients send behind a body.
                ValidatorState::Head { skipped, .. } if !*skipped && bytes.starts_with(b"\r\n") => {
                    *skipped = true;
                    dropped = 2;
                    at = 2;
                }
                ValidatorState::Head { skipped: false, .. } if bytes == b"\r" => break,
                ValidatorState::Head { head, .. } => match head.scan(bytes, self.head_limit) {
                    Ok(None) => break,
                    Ok(Some(whole)) => {
                        at += whole.length;
                        self.state = ValidatorState::body(whole.body, self.head_limit);
                    }
                    Err(refusal) => {
                        self.state = ValidatorState::Refused(SUBSTITUTE_HEAD);
                        self.shared.fault(ValidationError::Head(refusal));
                    }
                },
                ValidatorState::Length(left) => {
                    let length = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    at += length;
                    *left -= length as u64;
                    if *left == 0 {
                        self.state = ValidatorState::idle();
                    }
                }
                ValidatorState::Chunked(body) => match body.piece(bytes) {
                    Ok(ValidPiece { length: 0, .. }) => break,
                    Ok(piece) => {
                        at += piece.length;
                        if piece.last {
                            self.state = ValidatorState::idle();
                        }
                    }
                    Err(refusal) => {
                        self.state = ValidatorState::Broken;
                        self.shared.fault(ValidationError::Body(refusal));
                    }
                },
                ValidatorState::Open => at += bytes.len(),
                ValidatorState::Refused(_) | ValidatorState::Broken => break,
            }
            // One message at a time.
            if at > dropped && matches!(self.state, ValidatorState::Head { .. }) {
                break;
            }
        }
        ScanResult {
            dropped,
            sound: at - dropped,
        }
    }

    /// Passes on what is sound of some bytes, as far as there is room. They are those that rest, or the first ones when
    /// none do. How many are done with; the others are to rest.
    fn pass(&mut self, bytes: &[u8], out: &mut ReadBufCursor<'_>) -> usize {
        let mut done = 0;
        if self.sound == 0 {
            let judged = self.scan(bytes);
            done = judged.dropped;
            self.sound = judged.sound;
        }
        let now = self.sound.min(out.remaining());
        out.put_slice(&bytes[done..done + now]);
        self.sound -= now;
        done + now
    }

    /// Passes on what is sound of what rests.
    fn pass_rest(&mut self, out: &mut ReadBufCursor<'_>) {
        let mut rest = mem::take(&mut self.rest);
        let done = self.pass(&rest, out);
        if done < rest.len() {
            rest.advance(done);
            self.rest = rest;
        }
    }

    /// What the client is waited for with, if it is.
    fn reading(&self, waits: bool) -> ReadPhase {
        match self.state {
            ValidatorState::Head { .. } if self.sound == 0 && !self.rest.is_empty() => {
                ReadPhase::Head
            }
            ValidatorState::Length(_) | ValidatorState::Chunked(_) if waits => ReadPhase::Body,
            _ => ReadPhase::Idle,
        }
    }
}

// Never what was read: there are keys in it.
impl<S: fmt::Debug> fmt::Debug for RequestValidator<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestValidator")
            .field("stream", &self.stream)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> RequestValidator<S> {
    /// Reads until there is something for hyper: a whole head, or one that breaks a rule. `unfinished` keeps what has come
    /// of a head in between. Whether there is; else the client has ended.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        unfinished: &mut BytesMut,
    ) -> Poll<io::Result<bool>> {
        mem::swap(&mut self.rest, unfinished);
        loop {
            if self.sound == 0 && !self.rest.is_empty() {
                let mut rest = mem::take(&mut self.rest);
                let judged = self.scan(&rest);
                rest.advance(judged.dropped);
                self.rest = rest;
                self.sound = judged.sound;
            }
            if self.sound > 0 || !matches!(self.state, ValidatorState::Head { .. }) {
                return Poll::Ready(Ok(true));
            }
            let mut scratch = BUFFER.take();
            scratch.resize(SCRATCH, 0);
            let mut buf = ReadBuf::new(&mut scratch[..self.head_limit]);
            let polled = Pin::new(&mut self.stream).poll_read(cx, &mut buf);
            let came = buf.filled().len();
            self.shared.count_read(came);
            self.rest.extend_from_slice(buf.filled());
            BUFFER.set(scratch);
            match polled {
                Poll::Pending => {
                    mem::swap(&mut self.rest, unfinished);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if came > 0 => {}
                Poll::Ready(ended) => return Poll::Ready(ended.map(|()| false)),
            }
        }
    }

    /// Reads once, and passes on what is sound. Whether the client has anything more to say.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<bool>> {
        let mut scratch = BUFFER.take();
        scratch.resize(SCRATCH, 0);
        // No more than there is room for, which is more than a request usually has: a read that does not fill it tells
        // tokio that nothing is left, and saves the read that would find that out.
        let mut buf = ReadBuf::new(&mut scratch[..SCRATCH.min(out.remaining())]);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut buf);
        let bytes = buf.filled();
        let more = !bytes.is_empty();
        if more {
            self.shared.count_read(bytes.len());
            if self.rest.is_empty() {
                let done = self.pass(bytes, out);
                self.rest.extend_from_slice(&bytes[done..]);
            } else {
                self.rest.extend_from_slice(bytes);
                self.pass_rest(out);
            }
        }
        BUFFER.set(scratch);
        polled.map_ok(|()| more)
    }

    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let room = out.remaining();
        if self.shared.is_open()
            && !matches!(
                self.state,
                ValidatorState::Refused(_) | ValidatorState::Broken
            )
        {
            self.state = ValidatorState::Open;
        }
        if !self.rest.is_empty() {
            self.pass_rest(out);
        }
        loop {
            if out.remaining() < room || room == 0 {
                return Poll::Ready(Ok(()));
            }
            match &mut self.state {
                // The client is not read any more. hyper goes on when the answer is there, and then closes; an end of
                // the stream would make it give up the answer.
                ValidatorState::Refused([]) => return Poll::Pending,
                ValidatorState::Refused(left) => {
                    let now = left.len().min(room);
                    out.put_slice(&left[..now]);
                    *left = &left[now..];
                    return Poll::Ready(Ok(()));
                }
                ValidatorState::Broken => {
                    let fault = "the request's body breaks a rule of HTTP";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
                }
                _ => {}
            }
            if !ready!(self.poll_fill(cx, out))? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> hyper::rt::Read for RequestValidator<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let polled = gate.poll_pass(cx, &mut out);
        gate.shared.reads(gate.reading(polled.is_pending()));
        polled
    }
}

impl<S: AsyncWrite + Unpin> hyper::rt::Write for RequestValidator<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = ready!(Pin::new(&mut gate.stream).poll_write(cx, bytes))?;
        gate.shared.count_written(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = ready!(Pin::new(&mut gate.stream).poll_write_vectored(cx, slices))?;
        gate.shared.count_written(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
