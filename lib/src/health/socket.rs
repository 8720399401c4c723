//! The health port on both loopback addresses: Aurora connects to `localhost`, which may be either.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

use crate::Failure;
use crate::http::server::ListeningSocket;
use crate::listen::{bind_tcp, cannot_listen};
use crate::runtime::raise_open_files;

/// Checks served at once. They share one probe, so each costs no more than its connection.
const CONNECTIONS: usize = 1024;
/// File descriptors for everything else: a probe must not fail for want of one.
const OTHERS: usize = 64;

/// Binds `port` of 127.0.0.1 and, where the host has IPv6, of ::1. Also returns what was bound.
///
/// # Errors
/// The port is taken, or may not be bound (exit 73).
pub(super) async fn bind(port: u16) -> Result<(Vec<ListeningSocket>, Vec<String>), Failure> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v4 = listen(v4).map_err(|error| refuse(v4, error))?;
    let bound = v4
        .local_addr()
        .map_err(|error| refuse((Ipv4Addr::LOCALHOST, port).into(), error))?;
    let mut sockets = vec![ListeningSocket::Tcp(v4)];
    let mut addresses = vec![bound.to_string()];
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, bound.port()));
    match listen(v6) {
        Ok(socket) => {
            sockets.push(ListeningSocket::Tcp(socket));
            addresses.push(v6.to_string());
        }
        Err(error) if is_absent(&error) => {
            tracing::info!(%error, "no IPv6 on this host: listening on {bound} only");
        }
        Err(error) => return Err(refuse(v6, error)),
    }
    Ok((sockets, addresses))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bind_tcp(address, true).and_then(TcpListener::from_std)
}

/// Whether the host has no such addresses: IPv6 is not in the kernel, or it is turned off.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

fn refuse(address: SocketAddr, error: io::Error) -> Failure {
    cannot_listen(address, "--port", error)
}

/// How many connections may be open at once, after the limit of open files has been raised as far as that needs.
pub(super) fn connections() -> usize {
    let limit = raise_open_files((CONNECTIONS + OTHERS) as u64);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    limit.saturating_sub(OTHERS).clamp(1, CONNECTIONS)
}
