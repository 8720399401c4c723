//! One connection to the server with hyper's state, polled by whoever has an exchange on it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use hyper::client::conn::http1::{self, Connection, Parts, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connect::Stream;
use crate::body::ToServer;
use crate::record::Telemetry;

/// The longest head of an answer, and the most that is read ahead of a client.
const BUFFER: usize = 64 << 10;

/// A connection. hyper's `Connection` is not spawned: there is no other task to be woken, and none to wake.
pub(super) struct Live {
    pub(super) sender: SendRequest<ToServer>,
    connection: Option<Connection<TokioIo<Metered>, ToServer>>,
    pub(super) meter: Arc<Meter>,
    /// hyper has ended the connection.
    over: bool,
    /// An exchange has ended well on it.
    pub(super) used: bool,
    /// The sweep before which it became idle.
    pub(super) epoch: u64,
}

impl Live {
    /// Begins HTTP on a connection.
    pub(super) async fn new(stream: Stream, telemetry: Arc<Telemetry>) -> hyper::Result<Self> {
        let meter = Arc::new(Meter::default());
        let io = TokioIo::new(Metered {
            stream,
            meter: Arc::clone(&meter),
            _open: Open::new(telemetry),
        });
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER)
            .handshake(io)
            .await?;
        Ok(Self {
            sender,
            connection: Some(connection),
            meter,
            over: false,
            used: false,
            epoch: 0,
        })
    }

    /// Lets hyper go on; ready when it has ended the connection.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(connection) = self.connection.as_mut().filter(|_| !self.over) {
            // What the exchange gets to see says why.
            self.over = connection.poll_without_shutdown(cx).is_ready();
        }
        if self.over {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Whether the connection can take another exchange. Nobody is woken by it from here on.
    pub(super) fn settle(&mut self) -> bool {
        self.poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
            && self.sender.is_ready()
    }

    /// Has hyper give back a request that it has not begun to send.
    pub(super) fn give_up(&mut self) {
        self.over = true;
        self.connection = None;
    }

    /// The connection itself, and what was read of it beyond the answer.
    pub(super) fn into_parts(self) -> Option<(Stream, bytes::Bytes)> {
        let Parts { io, read_buf, .. } = self.connection?.into_parts();
        Some((io.into_inner().stream, read_buf))
    }
}

/// What has gone over a connection since it was opened.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) read: AtomicU64,
    pub(super) written: AtomicU64,
    /// Whether the next read asks the kernel if the server has closed the connection.
    pub(super) probe: AtomicBool,
}

/// Counts a connection for as long as it is open.
#[derive(Debug)]
pub(crate) struct Open(Arc<Telemetry>);

impl Open {
    fn new(telemetry: Arc<Telemetry>) -> Self {
        telemetry.metrics.server_connections.add(1);
        Self(telemetry)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.metrics.server_connections.add(-1);
    }
}

/// A connection with a meter.
#[derive(Debug)]
struct Metered {
    stream: Stream,
    meter: Arc<Meter>,
    _open: Open,
}

impl Metered {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            let written = self.meter.written.load(Relaxed);
            self.meter.written.store(written + *bytes as u64, Relaxed);
        }
        polled
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.probe.load(Relaxed) {
            self.meter.probe.store(false, Relaxed);
            if self.stream.is_stale() {
                return Poll::Ready(Ok(()));
            }
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = self.meter.read.load(Relaxed);
        let bytes = buf.filled().len() - before;
        self.meter.read.store(read + bytes as u64, Relaxed);
        polled
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
