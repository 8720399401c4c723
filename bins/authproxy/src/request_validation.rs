//! Validates the framing of requests before hyper reads them.
//!
//! hyper is as lenient as RFC 9112 allows, and then two servers in a row can disagree where a request ends: the body of
//! one is a request without a key to the other. The validator sits between the socket and hyper, follows the framing
//! itself, and passes only what all servers read alike (where RFC 9110 and 9112 leave a choice: the narrow one). hyper
//! gets whole heads, one message at a time, and no byte of an invalid request:
//!
//! * An invalid head is replaced by a substitute, which makes hyper close after the response;
//!   [`ValidatorHandle::take_head_error`] returns the error.
//! * Reading an invalid body fails before the invalid line; [`ValidatorHandle::body_error`] returns the error.

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
pub(crate) use handle::ReadPhase;
pub(crate) use handle::ValidatorHandle;
use handle::{ValidationError, ValidatorStatus};
use request_head::{BodyFraming, HeadScanner};

/// The upper limit of `--max-head`: no target or header name within it is too long for hyper.
pub(crate) const MAX_HEAD: usize = 64 * 1024;

/// What hyper reads in place of an invalid head: the response is HTTP/1.1, and closes the connection.
const SUBSTITUTE_HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: -\r\nconnection: close\r\n\r\n";

/// The largest read.
const READ_SIZE: usize = 64 * 1024;

thread_local! {
    /// The read buffer that all connections of a thread share; empty between reads.
    static READ_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Reads once and discards the bytes; returns whether the stream may have more.
pub(crate) fn poll_discard(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
) -> Poll<io::Result<bool>> {
    let mut scratch = READ_BUFFER.take();
    scratch.resize(READ_SIZE, 0);
    let mut buf = ReadBuf::new(&mut scratch);
    let polled = Pin::new(stream).poll_read(cx, &mut buf);
    let more = !buf.filled().is_empty();
    READ_BUFFER.set(scratch);
    polled.map_ok(|()| more)
}

/// The stream that hyper reads: a client's bytes after validation.
pub struct RequestValidator<S> {
    stream: S,
    state: ValidatorState,
    /// Bytes that were read and not passed on: part of a head or of a line, or the next message. At most a head and one
    /// read. Holds no memory while it is empty.
    pending: BytesMut,
    /// How many bytes of `pending` are valid.
    valid: usize,
    head_limit: usize,
    status: Arc<ValidatorStatus>,
}

/// The part of a message that the next byte belongs to.
enum ValidatorState {
    Head {
        head: HeadScanner,
        /// An empty line before it was dropped.
        skipped: bool,
    },
    Length(u64),
    Chunked(ChunkedScanner),
    /// A head was invalid. The rest of its substitute.
    InvalidHead(&'static [u8]),
    InvalidBody,
    /// After an upgrade.
    Tunnel,
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

/// Validates a head on its own.
pub(crate) fn validate_head(head: &[u8], limit: usize) -> Result<(), RequestError> {
    HeadScanner::new().scan(head, limit).map(|_| ())
}

/// How many bytes to drop, and how many behind those are valid.
struct ScanResult {
    dropped: usize,
    valid: usize,
}

impl<S> RequestValidator<S> {
    /// A validator for a new connection. `head_limit`: bytes of a head, at most [`MAX_HEAD`].
    #[must_use]
    pub fn new(stream: S, head_limit: usize) -> (Self, ValidatorHandle) {
        let status = Arc::new(ValidatorStatus::default());
        let validator = Self {
            stream,
            state: ValidatorState::idle(),
            pending: BytesMut::new(),
            valid: 0,
            head_limit: head_limit.min(MAX_HEAD),
            status: Arc::clone(&status),
        };
        (validator, ValidatorHandle(status))
    }

    pub(crate) const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Whether all bytes of the client belong to complete requests.
    pub(crate) fn is_between_requests(&self) -> bool {
        matches!(self.state, ValidatorState::Head { skipped: false, .. }) && self.pending.is_empty()
    }

    /// A partial head, for [`RequestValidator::poll_head`] to continue with.
    pub(crate) fn take_partial_head(&mut self) -> BytesMut {
        mem::take(&mut self.pending)
    }

    /// The socket, and the bytes that were read and not passed on: the first ones of a tunnel, or of an invalid
    /// request.
    pub(crate) fn into_inner(self) -> (S, Bytes) {
        (self.stream, self.pending.freeze())
    }

    /// Validates bytes up to the end of a message. They begin with those that the call before left over.
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
                    Ok(Some(head)) => {
                        at += head.length;
                        self.state = ValidatorState::body(head.body, self.head_limit);
                    }
                    Err(error) => {
                        self.state = ValidatorState::InvalidHead(SUBSTITUTE_HEAD);
                        self.status.set_error(ValidationError::Head(error));
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
                ValidatorState::Chunked(body) => match body.scan(bytes) {
                    Ok(ValidPiece { length: 0, .. }) => break,
                    Ok(piece) => {
                        at += piece.length;
                        if piece.last {
                            self.state = ValidatorState::idle();
                        }
                    }
                    Err(error) => {
                        self.state = ValidatorState::InvalidBody;
                        self.status.set_error(ValidationError::Body(error));
                    }
                },
                ValidatorState::Tunnel => at += bytes.len(),
                ValidatorState::InvalidHead(_) | ValidatorState::InvalidBody => break,
            }
            // One message at a time.
            if at > dropped && matches!(self.state, ValidatorState::Head { .. }) {
                break;
            }
        }
        ScanResult {
            dropped,
            valid: at - dropped,
        }
    }

    /// Passes on the valid part of the pending bytes, or of new ones when none are pending, as far as `out` has space.
    /// Returns how many bytes are consumed; the others stay pending.
    fn pass(&mut self, bytes: &[u8], out: &mut ReadBufCursor<'_>) -> usize {
        let mut done = 0;
        if self.valid == 0 {
            let scanned = self.scan(bytes);
            done = scanned.dropped;
            self.valid = scanned.valid;
        }
        let now = self.valid.min(out.remaining());
        out.put_slice(&bytes[done..done + now]);
        self.valid -= now;
        done + now
    }

    fn pass_pending(&mut self, out: &mut ReadBufCursor<'_>) {
        let mut pending = mem::take(&mut self.pending);
        let done = self.pass(&pending, out);
        if done < pending.len() {
            pending.advance(done);
            self.pending = pending;
        }
    }

    fn read_phase(&self, is_waiting: bool) -> ReadPhase {
        match self.state {
            ValidatorState::Head { .. } if self.valid == 0 && !self.pending.is_empty() => {
                ReadPhase::Head
            }
            ValidatorState::Length(_) | ValidatorState::Chunked(_) if is_waiting => ReadPhase::Body,
            _ => ReadPhase::Idle,
        }
    }
}

// Without the bytes: they have keys in them.
impl<S: fmt::Debug> fmt::Debug for RequestValidator<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestValidator")
            .field("stream", &self.stream)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> RequestValidator<S> {
    /// Reads until there is a whole or an invalid head for hyper; returns false at the end of the stream.
    /// `partial_head` keeps the bytes of a head in between.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        partial_head: &mut BytesMut,
    ) -> Poll<io::Result<bool>> {
        mem::swap(&mut self.pending, partial_head);
        loop {
            if self.valid == 0 && !self.pending.is_empty() {
                let mut pending = mem::take(&mut self.pending);
                let scanned = self.scan(&pending);
                pending.advance(scanned.dropped);
                self.pending = pending;
                self.valid = scanned.valid;
            }
            if self.valid > 0 || !matches!(self.state, ValidatorState::Head { .. }) {
                return Poll::Ready(Ok(true));
            }
            let mut scratch = READ_BUFFER.take();
            scratch.resize(READ_SIZE, 0);
            let mut buf = ReadBuf::new(&mut scratch[..self.head_limit]);
            let polled = Pin::new(&mut self.stream).poll_read(cx, &mut buf);
            let received = buf.filled().len();
            self.status.count_read(received);
            self.pending.extend_from_slice(buf.filled());
            READ_BUFFER.set(scratch);
            match polled {
                Poll::Pending => {
                    mem::swap(&mut self.pending, partial_head);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if received > 0 => {}
                Poll::Ready(ended) => return Poll::Ready(ended.map(|()| false)),
            }
        }
    }

    /// Reads once and passes on the valid bytes; returns false at the end of the stream.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<bool>> {
        let mut scratch = READ_BUFFER.take();
        scratch.resize(READ_SIZE, 0);
        // At most the space in `out`, which is more than a request usually has: a read that does not fill it tells
        // tokio that the socket is empty, and saves one more read.
        let mut buf = ReadBuf::new(&mut scratch[..READ_SIZE.min(out.remaining())]);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut buf);
        let bytes = buf.filled();
        let more = !bytes.is_empty();
        if more {
            self.status.count_read(bytes.len());
            if self.pending.is_empty() {
                let done = self.pass(bytes, out);
                self.pending.extend_from_slice(&bytes[done..]);
            } else {
                self.pending.extend_from_slice(bytes);
                self.pass_pending(out);
            }
        }
        READ_BUFFER.set(scratch);
        polled.map_ok(|()| more)
    }

    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let space = out.remaining();
        if self.status.is_tunnel()
            && !matches!(
                self.state,
                ValidatorState::InvalidHead(_) | ValidatorState::InvalidBody
            )
        {
            self.state = ValidatorState::Tunnel;
        }
        if !self.pending.is_empty() {
            self.pass_pending(out);
        }
        loop {
            if out.remaining() < space || space == 0 {
                return Poll::Ready(Ok(()));
            }
            match &mut self.state {
                // The client is not read any more. hyper continues with the response and then closes; at the end of the
                // stream it would drop the response.
                ValidatorState::InvalidHead([]) => return Poll::Pending,
                ValidatorState::InvalidHead(left) => {
                    let now = left.len().min(space);
                    out.put_slice(&left[..now]);
                    *left = &left[now..];
                    return Poll::Ready(Ok(()));
                }
                ValidatorState::InvalidBody => {
                    let error = "invalid request body";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
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
        let validator = self.get_mut();
        let polled = validator.poll_pass(cx, &mut out);
        let read_phase = validator.read_phase(polled.is_pending());
        validator.status.set_read_phase(read_phase);
        polled
    }
}

impl<S: AsyncWrite + Unpin> hyper::rt::Write for RequestValidator<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let validator = self.get_mut();
        let written = ready!(Pin::new(&mut validator.stream).poll_write(cx, bytes))?;
        validator.status.count_written(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let validator = self.get_mut();
        let written = ready!(Pin::new(&mut validator.stream).poll_write_vectored(cx, slices))?;
        validator.status.count_written(written);
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
