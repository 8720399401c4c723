//! A listening socket and its connections, of either kind.

use std::io;
use std::task::{Context, Poll};

use tokio::net::{TcpListener, UnixListener};

use crate::http::{BoxedStream, ByteStream};

#[derive(Debug)]
pub(crate) enum ListeningSocket {
    Tcp(TcpListener),
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
