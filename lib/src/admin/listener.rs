//! The bound admin socket, TCP or a file.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use tokio::net::TcpListener;

use super::AdminAddress;
use crate::Failure;
use crate::http::Router;
use crate::http::server::{ListeningSocket, ServerLimits, serve};
use crate::listen::{bind_tcp, bind_unix, cannot_listen};

/// Connections served at once; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// The longest body of a request.
const MAX_BODY: usize = 64 << 10;

/// A bound admin address that does not accept connections yet.
#[derive(Debug)]
pub struct AdminListener {
    socket: ListeningSocket,
    address: AdminAddress,
}

impl AdminListener {
    /// Binds an address. A socket file that no process listens on is replaced.
    ///
    /// # Errors
    /// The address is in use or not of this host, or the socket file cannot be created (exit 73).
    pub async fn bind(address: &AdminAddress) -> Result<Self, Failure> {
        let bound = match address {
            AdminAddress::Tcp(tcp) => bind_tcp(*tcp, false).and_then(|socket| {
                let address = AdminAddress::Tcp(socket.local_addr()?);
                let socket = ListeningSocket::Tcp(TcpListener::from_std(socket)?);
                Ok(Self { socket, address })
            }),
            AdminAddress::Unix(path) => bind_unix(path).await.map(|socket| Self {
                socket: ListeningSocket::Unix(socket),
                address: address.clone(),
            }),
        };
        bound.map_err(|error| cannot_listen(address, "--admin", error))
    }

    /// The bound address, with the port that the kernel chose for port 0.
    #[must_use]
    pub const fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// Serves forever. Dropping the future closes the listener and its connections.
    pub async fn serve(self, router: Router) -> Infallible {
        let limits = ServerLimits {
            max_connections: MAX_CONNECTIONS,
            max_body: MAX_BODY,
            idle_timeout: None,
            drain_timeout: Duration::ZERO,
        };
        serve(vec![self.socket], router, limits, pending()).await
    }
}
