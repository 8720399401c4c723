//! What becomes of a connection after `101 Switching Protocols`: bytes, both ways.
//!
//! Owns the copying. That there may be a tunnel is `proxy`'s decision.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;

use crate::conn::Plain;
use crate::gate::Gate;
use crate::upstream::Stream;

/// After this much silence the kernel asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The server's side of a tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The connection.
    pub(crate) server: Stream,
    /// What was read of it beyond the answer's head.
    pub(crate) ahead: Bytes,
}

impl Tunnel {
    /// Copies both ways until both have ended, or either fails. `ahead` is what was read of the client beyond the
    /// request's head.
    ///
    /// There is no limit on silence: a WebSocket may have nothing to say for hours, and has pings of its own. What is
    /// gone without a word is found by TCP's keepalive, on both sides.
    pub(crate) async fn run(self, client: Gate<Plain>, ahead: Bytes) -> io::Result<()> {
        let Self {
            mut server,
            ahead: answered,
        } = self;
        watch(client.get_ref().get_ref());
        if let Stream::Tcp(stream) = &server {
            watch(stream);
        }
        let mut client = TokioIo::new(client);
        server.write_all(&ahead).await?;
        client.write_all(&answered).await?;
        copy_bidirectional(&mut client, &mut server).await?;
        Ok(())
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
