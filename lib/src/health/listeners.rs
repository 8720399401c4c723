//! The health port on both loopback addresses: Aurora connects to `localhost`, which may be either.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

use crate::Failure;
use crate::http::server::ListeningSocket;
use crate::listen::{bind_tcp, cannot_listen};
use crate::runtime::limit_connections;

/// Checks served at once. They share one probe, so each costs no more than its connection.
const MAX_CONNECTIONS: usize = 1024;

/// Binds `port` of 127.0.0.1 and, where the host has IPv6, of ::1. Also returns the bound addresses.
///
/// # Errors
/// The port is in use, or may not be bound (exit 73).
pub(super) fn bind(port: u16) -> Result<(Vec<ListeningSocket>, Vec<String>), Failure> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (socket, bound) = listen(v4).map_err(|error| cannot_listen(v4, "--port", error))?;
    let mut sockets = vec![ListeningSocket::Tcp(socket)];
    let mut addresses = vec![bound.to_string()];
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, bound.port()));
    match listen(v6) {
        Ok((socket, v6)) => {
            sockets.push(ListeningSocket::Tcp(socket));
            addresses.push(v6.to_string());
        }
        Err(error) if is_unsupported(&error) => {
            tracing::info!(%error, "IPv6 is not available");
        }
        Err(error) => return Err(cannot_listen(v6, "--port", error)),
    }
    Ok((sockets, addresses))
}

fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = TcpListener::from_std(bind_tcp(address, true)?)?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

/// Whether the host has no such addresses: IPv6 is not in the kernel, or it is turned off.
fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

/// Connections that may be open at once.
pub(super) fn max_connections() -> usize {
    limit_connections(MAX_CONNECTIONS)
}
