//! Listening sockets over TCP and over a socket file.

use std::io;
use std::task::{Context, Poll};

use tokio::net::{TcpListener, UnixListener};

use crate::http::{BoxedStream, ByteStream};

/// A bound socket.
#[derive(Debug)]
pub enum ListeningSocket {
    /// A TCP port.
    Tcp(TcpListener),
    /// A socket file.
    Unix(UnixListener),
}

impl ListeningSocket {
    pub(super) fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<BoxedStream>> {
        fn boxed<S: ByteStream + 'static, A>((stream, _): (S, A)) -> BoxedStream {
            Box::new(stream)
        }
        match self {
            Self::Tcp(socket) => socket.poll_accept(context).map_ok(boxed),
            Self::Unix(socket) => socket.poll_accept(context).map_ok(boxed),
        }
    }
}
