//! What becomes of a connection after `101 Switching Protocols`: bytes, both ways.
//!
//! Owns the copying. That there may be a tunnel is `proxy`'s decision.

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
use crate::upstream::UpstreamStream;

/// After this much silence the kernel asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What is on its way in one direction.
const ROOM: usize = 8 << 10;

/// The server's side of a tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The connection.
    pub(crate) server: UpstreamStream,
    /// What was read of it beyond the answer's head.
    pub(crate) ahead: Bytes,
}

impl Tunnel {
    /// Copies both ways. `ahead` is what was read of the client beyond the request's head. When one direction has ended,
    /// that is passed on, and the other one has `patience` to end too. Who does not take what there is for it within
    /// `patience` ends the tunnel.
    ///
    /// There is no limit on silence: a WebSocket may have nothing to say for hours, and has pings of its own. What is
    /// gone without a word is found by TCP's keepalive, on both sides.
    pub(crate) async fn run(
        self,
        client: RequestValidator<ClientStream>,
        ahead: Bytes,
        patience: Duration,
    ) -> io::Result<()> {
        let Self {
            mut server,
            ahead: answered,
        } = self;
        watch(client.get_ref().get_ref());
        if let UpstreamStream::Tcp(stream) = &server {
            watch(stream);
        }
        let mut client = TokioIo::new(client);
        timeout(patience, server.write_all(&ahead)).await??;
        timeout(patience, client.write_all(&answered)).await??;
        let (from_client, to_client) = split(client);
        let (from_server, to_server) = split(server);
        let (mut up, mut down) = (
            pin!(pass(from_client, to_server, patience)),
            pin!(pass(from_server, to_client, patience)),
        );
        tokio::select! {
            ended = &mut up => { ended?; timeout(patience, down).await? }
            ended = &mut down => { ended?; timeout(patience, up).await? }
        }
    }
}

/// Copies one way, and passes on the end.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    patience: Duration,
) -> io::Result<()> {
    let mut room = vec![0; ROOM];
    loop {
        let length = from.read(&mut room).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        timeout(patience, to.write_all(&room[..length])).await??;
    }
}

fn watch(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 4)
        .with_retries(4);
    // Without it the tunnel works too.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}
