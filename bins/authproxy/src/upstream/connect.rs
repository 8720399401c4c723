//! New connections to the server.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

use crate::settings::Server;

/// How many addresses of a name are tried.
const ADDRESSES: usize = 8;

/// How much of a body waits in the kernel.
const UNSENT: u32 = 64 << 10;

/// A connection to the server.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Connects to the first address that takes the connection. Without a deadline: that is the caller's.
///
/// # Errors
/// The error of the first address.
pub(super) async fn connect(server: &Server) -> io::Result<Stream> {
    let (host, port) = match server {
        Server::Unix(path) => return UnixStream::connect(path).await.map(Stream::Unix),
        Server::Tcp { host, port } => (host.as_str(), *port),
    };
    let addresses = if host == "localhost" {
        vec![
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ]
    } else if let Ok(address) = host.parse() {
        vec![SocketAddr::new(address, port)]
    } else {
        look_up(host, port).await?
    };
    let mut first = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            // Where nobody listens on a port that is also one for outgoing connections, TCP can connect to itself.
            Ok(stream) if stream.local_addr()? == address => {
                first.get_or_insert(io::ErrorKind::ConnectionRefused.into());
            }
            Ok(stream) => {
                stream.set_nodelay(true)?;
                // How much of a body it takes shows: without this the kernel grows its buffer to megabytes, and reports
                // nothing until a third of it has gone.
                let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
                return Ok(Stream::Tcp(stream));
            }
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// The system's resolver blocks, so a thread asks it. There is never more than one question: while one is not answered,
/// nobody asks another.
async fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    static TURN: Semaphore = Semaphore::const_new(1);
    let turn = TURN.acquire().await.map_err(io::Error::other)?;
    let name = name.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let found = (name.as_str(), port).to_socket_addrs();
        drop(turn);
        found.map(|found| found.take(ADDRESSES).collect())
    });
    asked.await?
}

impl Stream {
    /// Whether the server has closed this connection, asked of the kernel and not of what the runtime knew a moment
    /// ago. Bytes that nobody asked for are as bad.
    pub(super) fn is_stale(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = match self {
            Self::Tcp(stream) => SockRef::from(stream).peek(&mut byte),
            Self::Unix(stream) => SockRef::from(stream).peek(&mut byte),
        };
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncRead for Stream {
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

impl AsyncWrite for Stream {
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
