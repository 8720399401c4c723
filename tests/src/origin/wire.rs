//! The connection and its bodies: bytes leave in small pieces, and a fault takes effect only when all bytes before it
//! have been handed to the kernel.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// The largest write.
const PIECE: usize = 64 << 10;
/// How many pieces per second a paced body has.
const PIECES_PER_SECOND: u64 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyEnd {
    Clean,
    Close,
    Reset,
    Stall,
}

/// Coordinates a body with the socket below it.
#[derive(Debug, Default)]
pub(super) struct WireSignals {
    /// Set by a body that waits until its bytes have been written.
    waiting: Mutex<Option<Waker>>,
    flushed: AtomicBool,
    reset: AtomicBool,
}

#[derive(Debug)]
pub(super) struct OriginSocket {
    tcp: TcpStream,
    signals: Arc<WireSignals>,
}

impl OriginSocket {
    pub(super) fn new(tcp: TcpStream) -> (Self, Arc<WireSignals>) {
        let signals = Arc::new(WireSignals::default());
        (
            Self {
                tcp,
                signals: signals.clone(),
            },
            signals,
        )
    }
}

impl Drop for OriginSocket {
    fn drop(&mut self) {
        if self.signals.reset.load(Ordering::Acquire) {
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for OriginSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for OriginSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.tcp).poll_flush(cx));
        if let Some(waker) = self.signals.waiting.lock().unwrap().take() {
            self.signals.flushed.store(true, Ordering::Release);
            waker.wake();
        }
        Poll::Ready(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[derive(Debug)]
pub(super) struct OriginBody {
    pub(super) data: Bytes,
    pub(super) end: BodyEnd,
    /// The offset in `data` of a byte to invert.
    pub(super) flip: Option<u64>,
    pub(super) pace: Option<SendPace>,
    pub(super) signals: Arc<WireSignals>,
    /// The counter of sent bytes.
    pub(super) count: Arc<AtomicU64>,
}

impl hyper::body::Body for OriginBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.data.is_empty() {
            return self.poll_end(cx);
        }
        let mut length = PIECE;
        if let Some(pace) = &mut self.pace {
            length = ready!(pace.poll(cx));
        }
        let length = length.min(self.data.len());
        let piece = self.data.split_to(length);
        self.count.fetch_add(length as u64, Ordering::Relaxed);
        let piece = match self.flip {
            Some(offset) if offset < length as u64 => {
                self.flip = None;
                inverted_at(&piece, offset as usize)
            }
            Some(offset) => {
                self.flip = Some(offset - length as u64);
                piece
            }
            None => piece,
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.end == BodyEnd::Clean
    }
}

impl OriginBody {
    fn poll_end(&self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.end {
            BodyEnd::Clean => return Poll::Ready(None),
            BodyEnd::Stall => return Poll::Pending,
            BodyEnd::Close | BodyEnd::Reset => {}
        }
        if !self.signals.flushed.load(Ordering::Acquire) {
            *self.signals.waiting.lock().unwrap() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let reset = self.end == BodyEnd::Reset;
        self.signals.reset.store(reset, Ordering::Release);
        Poll::Ready(Some(Err(io::Error::other("a fault ends this connection"))))
    }
}

fn inverted_at(piece: &Bytes, offset: usize) -> Bytes {
    let mut copy = piece.to_vec();
    copy[offset] = !copy[offset];
    copy.into()
}

/// Paces bytes at a steady rate.
#[derive(Debug)]
pub(super) struct SendPace {
    bytes: usize,
    every: Duration,
    due: Pin<Box<Sleep>>,
}

impl SendPace {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        let bytes = (bytes_per_second / PIECES_PER_SECOND).clamp(1, PIECE as u64);
        Self {
            bytes: bytes as usize,
            every: Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1) as f64),
            due: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        ready!(self.due.as_mut().poll(cx));
        let next = self.due.deadline().max(Instant::now() - self.every) + self.every;
        self.due.as_mut().reset(next);
        Poll::Ready(self.bytes)
    }
}
