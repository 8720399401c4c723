//! Copies bytes in both directions after `101 Switching Protocols`.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::connection::ClientStream;
use crate::request_validation::RequestValidator;
use crate::upstream::UpstreamSocket;

/// TCP keep-alive probes start after this much silence.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The buffer of one direction.
const BUFFER_SIZE: usize = 8 << 10;

#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) upstream: UpstreamSocket,
    /// Bytes of upstream behind the response head.
    pub(crate) early_bytes: Bytes,
}

impl Tunnel {
    /// Copies in both directions. `client_bytes` are those of the client behind the request head. When one direction
    /// ends, the other one has to end within `write_timeout`, as has every write.
    ///
    /// There is no idle timeout: a WebSocket may be silent for hours, and has its own pings. TCP keep-alive detects
    /// dead peers on both sides.
    pub(crate) async fn run(
        self,
        client: RequestValidator<ClientStream>,
        client_bytes: Bytes,
        write_timeout: Duration,
    ) -> io::Result<()> {
        let Self {
            mut upstream,
            early_bytes,
        } = self;
        set_keepalive(client.get_ref().get_ref());
        if let UpstreamSocket::Tcp(stream) = &upstream {
            set_keepalive(stream);
        }
        let mut client = TokioIo::new(client);
        timeout(write_timeout, upstream.write_all(&client_bytes)).await??;
        timeout(write_timeout, client.write_all(&early_bytes)).await??;
        let (from_client, to_client) = split(client);
        let (from_upstream, to_upstream) = split(upstream);
        let (mut up, mut down) = (
            pin!(copy(from_client, to_upstream, write_timeout)),
            pin!(copy(from_upstream, to_client, write_timeout)),
        );
        tokio::select! {
            ended = &mut up => { ended?; timeout(write_timeout, down).await? }
            ended = &mut down => { ended?; timeout(write_timeout, up).await? }
        }
    }
}

/// Copies one direction, and passes on its end.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    write_timeout: Duration,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        timeout(write_timeout, to.write_all(&buffer[..length])).await??;
    }
}

fn set_keepalive(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 4)
        .with_retries(4);
    // The tunnel works without it.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}
