//! One connection to the server: bytes out, bytes in, and how many.

use std::cell::Cell;
use std::future::Future as _;
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::thread::LocalKey;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};

use super::stream::UpstreamStream;
use crate::record::Telemetry;

/// How much is read at once, at first: more than most answers have. A read that does not fill it tells tokio that nothing
/// is left, which saves the read that would find that out.
const ROOM: usize = 8 << 10;
/// How much is read at once when there is more than that, and the most that waits to be written.
pub(super) const MOST: usize = 64 << 10;

thread_local! {
    /// Room to read into and to write from, for whichever connection needs it next: one that waits for an answer, or
    /// rests, holds none.
    static INPUT: Cell<BytesMut> = Cell::default();
    static OUTPUT: Cell<BytesMut> = Cell::default();
}

/// Hands over what is empty, unless it has grown large.
fn recycle(buffer: &mut BytesMut, to: &'static LocalKey<Cell<BytesMut>>) {
    let buffer = mem::take(buffer);
    if (1..=2 * ROOM).contains(&buffer.capacity()) {
        to.set(buffer);
    }
}

/// A connection, and what is under way on it.
pub(super) struct UpstreamConnection {
    stream: UpstreamStream,
    /// What has come and was not used yet.
    pub(super) input: BytesMut,
    /// What goes out next.
    output: BytesMut,
    /// How much is read at once.
    room: usize,
    /// Bytes both ways since the connection was opened.
    pub(super) moved: u64,
    /// The sweep before which it became idle.
    pub(super) epoch: u64,
    _open: OpenConnectionGuard,
}

impl UpstreamConnection {
    pub(super) fn new(stream: UpstreamStream, telemetry: Arc<Telemetry>) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            room: ROOM,
            moved: 0,
            epoch: 0,
            _open: OpenConnectionGuard::new(telemetry),
        }
    }

    /// What goes out next, to be added to.
    pub(super) fn output(&mut self) -> &mut BytesMut {
        if self.output.capacity() == 0 {
            self.output = OUTPUT.take();
        }
        &mut self.output
    }

    /// Writes what there is to write; ready when nothing is left.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
            self.moved += written as u64;
        }
        recycle(&mut self.output, &OUTPUT);
        Poll::Ready(Ok(()))
    }

    /// Reads once, behind what is there; how much. Nothing is the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() == 0 {
            self.input = INPUT.take();
        }
        self.input.reserve(self.room);
        let room = self.input.capacity() - self.input.len();
        let Poll::Ready(read) = pin!(self.stream.read_buf(&mut self.input)).poll(cx) else {
            if self.input.is_empty() {
                recycle(&mut self.input, &INPUT);
            }
            return Poll::Pending;
        };
        let read = read?;
        self.moved += read as u64;
        if read == room {
            self.room = MOST;
        }
        Poll::Ready(Ok(read))
    }

    /// Whether nothing waits to be written.
    pub(super) fn is_written(&self) -> bool {
        self.output.is_empty()
    }

    /// Whether the server has closed the connection, or has said what nobody asked for. What the runtime knows decides,
    /// at no cost; with `surely` the kernel is asked.
    pub(super) fn is_stale(&mut self, surely: bool) -> bool {
        // Nobody is to be woken.
        let mut quiet = Context::from_waker(Waker::noop());
        self.poll_read(&mut quiet).is_ready() || (surely && self.stream.is_stale())
    }

    /// Made ready to rest.
    pub(super) fn rest(&mut self) {
        self.room = ROOM;
        recycle(&mut self.input, &INPUT);
    }

    /// The connection itself, and what has come over it and was not used.
    pub(super) fn into_parts(self) -> (UpstreamStream, Bytes) {
        (self.stream, self.input.freeze())
    }
}

/// Counts a connection for as long as it is open.
struct OpenConnectionGuard(Arc<Telemetry>);

impl OpenConnectionGuard {
    fn new(telemetry: Arc<Telemetry>) -> Self {
        telemetry.metrics.upstream_connections.add(1);
        Self(telemetry)
    }
}

impl Drop for OpenConnectionGuard {
    fn drop(&mut self) {
        self.0.metrics.upstream_connections.add(-1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn what_the_runtime_has_not_heard_of_yet_the_kernel_knows() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut live = UpstreamConnection::new(UpstreamStream::Unix(here), Arc::default());
        assert!(!live.is_stale(true));
        // Nothing is awaited from here on: the runtime hears of nothing.
        drop(there);
        assert!(!live.is_stale(false));
        assert!(live.is_stale(true));
    }

    #[tokio::test]
    async fn bytes_that_nobody_asked_for_make_a_connection_stale() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut live = UpstreamConnection::new(UpstreamStream::Unix(here), Arc::default());
        there.try_write(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        tokio::task::yield_now().await;
        assert!(live.is_stale(true));
    }
}
