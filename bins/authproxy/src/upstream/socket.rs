//! Sockets to upstream, TCP or Unix.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hostkit::http::HostPort;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::settings::UpstreamAddress;

/// The most unsent bytes in the kernel.
const MAX_UNSENT: u32 = 64 << 10;

#[derive(Debug)]
pub(crate) enum UpstreamSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Connects. The caller has the deadline.
pub(super) async fn connect(server: &UpstreamAddress) -> io::Result<UpstreamSocket> {
    let (host, port) = match server {
        UpstreamAddress::Unix(path) => {
            return UnixStream::connect(path).await.map(UpstreamSocket::Unix);
        }
        UpstreamAddress::Tcp { host, port } => (host.as_str(), *port),
    };
    let stream = HostPort {
        host: host.into(),
        port,
    }
    .connect()
    .await?;
    stream.set_nodelay(true)?;
    // Makes progress visible: otherwise the kernel grows its buffer to megabytes, and reports the socket as writable
    // only when a third of it was sent.
    let _ = SockRef::from(&stream).set_tcp_notsent_lowat(MAX_UNSENT);
    Ok(UpstreamSocket::Tcp(stream))
}

impl UpstreamSocket {
    /// Whether upstream has closed this connection, or sent bytes without a request. Queries the kernel, because the
    /// runtime learns of it later.
    pub(super) fn is_stale(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = match self {
            Self::Tcp(stream) => SockRef::from(stream).peek(&mut byte),
            Self::Unix(stream) => SockRef::from(stream).peek(&mut byte),
        };
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncRead for UpstreamSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
