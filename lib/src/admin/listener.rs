//! The bound admin socket, TCP or a file.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use tokio::net::TcpListener;

use super::{Address, Routes};
use crate::Failure;
use crate::listen::{bind_tcp, bind_unix, cannot_listen};
use crate::server::{Bounds, Socket, serve};

/// Connections served at once; more wait in the backlog.
const CONNECTIONS: usize = 64;

/// A bound admin address that nothing is served on yet.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

impl Listener {
    /// Binds an address. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    /// The address is in use, is not this host's, or the socket file cannot be made (exit 73).
    pub async fn bind(address: &Address) -> Result<Self, Failure> {
        let bound = match address {
            Address::Tcp(tcp) => bind_tcp(*tcp, false).and_then(|socket| {
                let address = Address::Tcp(socket.local_addr()?);
                let socket = Socket::Tcp(TcpListener::from_std(socket)?);
                Ok(Self { socket, address })
            }),
            Address::Unix(path) => bind_unix(path).await.map(|socket| Self {
                socket: Socket::Unix(socket),
                address: address.clone(),
            }),
        };
        bound.map_err(|error| cannot_listen(address, "--admin", error))
    }

    /// Where it listens, with the port that was chosen for port 0.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Answers for ever. Dropping the future closes the listener and its connections.
    pub async fn serve(self, routes: Routes) -> Infallible {
        let bounds = Bounds {
            connections: CONNECTIONS,
            drain: Duration::ZERO,
        };
        serve(vec![self.socket], routes, bounds, pending()).await
    }
}
