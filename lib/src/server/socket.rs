//! A listening socket and its connections, of either kind.

use std::io;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// A connection, of either kind: one type, so that HTTP is compiled once.
pub(crate) type Stream = Box<dyn Duplex>;

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    pub(super) fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        fn boxed<S: Duplex + 'static, A>((stream, _): (S, A)) -> Stream {
            Box::new(stream)
        }
        match self {
            Self::Tcp(socket) => socket.poll_accept(context).map_ok(boxed),
            Self::Unix(socket) => socket.poll_accept(context).map_ok(boxed),
        }
    }
}
