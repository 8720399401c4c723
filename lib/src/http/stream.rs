//! A connection over TCP, TLS or a socket file as one type, so that HTTP is compiled once.

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream of any transport.
pub type BoxedStream = Box<dyn ByteStream>;

/// What HTTP needs of a transport.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}
