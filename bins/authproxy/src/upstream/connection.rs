//! One connection to upstream: buffers, reads, writes and byte counter.

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

use super::socket::UpstreamSocket;
use crate::record::Telemetry;

/// The size of a read at first: larger than most responses. A read that does not fill the buffer tells tokio that the
/// socket is empty, which saves one more read.
const READ_SIZE: usize = 8 << 10;
/// The size of a read after one that filled its buffer, and the most bytes that wait to be written.
pub(super) const MAX_BUFFER: usize = 64 << 10;

thread_local! {
    /// Buffers for the next connection that needs one: a connection that is idle or waits for a response holds none.
    static INPUT: Cell<BytesMut> = Cell::default();
    static OUTPUT: Cell<BytesMut> = Cell::default();
}

/// Returns an empty buffer to the thread, unless it has grown large.
fn recycle(buffer: &mut BytesMut, to: &'static LocalKey<Cell<BytesMut>>) {
    let buffer = mem::take(buffer);
    if (1..=2 * READ_SIZE).contains(&buffer.capacity()) {
        to.set(buffer);
    }
}

pub(super) struct UpstreamConnection {
    stream: UpstreamSocket,
    /// Bytes that were received and not consumed.
    pub(super) input: BytesMut,
    output: BytesMut,
    read_size: usize,
    /// Bytes in both directions since the connection was opened.
    pub(super) transferred: u64,
    /// The number of sweeps when it became idle.
    pub(super) epoch: u64,
    _guard: OpenConnectionGuard,
}

impl UpstreamConnection {
    pub(super) fn new(stream: UpstreamSocket, telemetry: Arc<Telemetry>) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            read_size: READ_SIZE,
            transferred: 0,
            epoch: 0,
            _guard: OpenConnectionGuard::new(telemetry),
        }
    }

    /// The output buffer, to append to.
    pub(super) fn output(&mut self) -> &mut BytesMut {
        if self.output.capacity() == 0 {
            self.output = OUTPUT.take();
        }
        &mut self.output
    }

    /// Writes the output; ready once all of it is written.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
            self.transferred += written as u64;
        }
        recycle(&mut self.output, &OUTPUT);
        Poll::Ready(Ok(()))
    }

    /// Reads once, behind the input; returns the number of bytes, 0 at the end of the stream.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() == 0 {
            self.input = INPUT.take();
        }
        self.input.reserve(self.read_size);
        let space = self.input.capacity() - self.input.len();
        let Poll::Ready(read) = pin!(self.stream.read_buf(&mut self.input)).poll(cx) else {
            if self.input.is_empty() {
                recycle(&mut self.input, &INPUT);
            }
            return Poll::Pending;
        };
        let read = read?;
        self.transferred += read as u64;
        if read == space {
            self.read_size = MAX_BUFFER;
        }
        Poll::Ready(Ok(read))
    }

    pub(super) fn is_written(&self) -> bool {
        self.output.is_empty()
    }

    /// Whether upstream has closed the connection, or sent bytes without a request. The runtime's readiness decides, at
    /// no cost; with `query_kernel` the kernel's does.
    pub(super) fn is_stale(&mut self, query_kernel: bool) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.poll_read(&mut cx).is_ready() || (query_kernel && self.stream.is_stale())
    }

    /// Prepares the connection for being idle.
    pub(super) fn park(&mut self) {
        self.read_size = READ_SIZE;
        recycle(&mut self.input, &INPUT);
    }

    /// The socket, and the input that was not consumed.
    pub(super) fn into_parts(self) -> (UpstreamSocket, Bytes) {
        (self.stream, self.input.freeze())
    }
}

/// Counts an open connection.
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
    async fn closed_connection_is_stale_to_the_kernel_before_the_runtime_learns_of_it() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut connection = UpstreamConnection::new(UpstreamSocket::Unix(here), Arc::default());
        assert!(!connection.is_stale(true));
        // Nothing is awaited from here on, so the runtime learns nothing.
        drop(there);
        assert!(!connection.is_stale(false));
        assert!(connection.is_stale(true));
    }

    #[tokio::test]
    async fn bytes_without_a_request_make_a_connection_stale() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut connection = UpstreamConnection::new(UpstreamSocket::Unix(here), Arc::default());
        there.try_write(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        tokio::task::yield_now().await;
        assert!(connection.is_stale(true));
    }
}
