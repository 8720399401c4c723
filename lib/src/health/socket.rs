//! The health port on both loopback addresses: Aurora connects to `localhost`, which may be either.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};

use crate::server::Socket;
use crate::{Exit, Failure};

/// Checks served at once. They share one probe, so each costs no more than its connection.
const CONNECTIONS: usize = 1024;
/// Connections that wait to be accepted, for each address.
const BACKLOG: u32 = 1024;
/// File descriptors for everything else: a probe must not fail for want of one.
const OTHERS: usize = 64;

/// Binds `port` of 127.0.0.1 and, where the host has IPv6, of ::1. Also returns what was bound.
///
/// # Errors
/// The port is taken, or may not be bound (exit 73).
pub(super) async fn bind(port: u16) -> Result<(Vec<Socket>, Vec<String>), Failure> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v4 = listen(v4).map_err(|error| refuse(v4, error))?;
    let bound = v4
        .local_addr()
        .map_err(|error| refuse((Ipv4Addr::LOCALHOST, port).into(), error))?;
    let mut sockets = vec![Socket::Tcp(v4)];
    let mut addresses = vec![bound.to_string()];
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, bound.port()));
    match listen(v6) {
        Ok(socket) => {
            sockets.push(Socket::Tcp(socket));
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
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether the host has no such addresses: IPv6 is not in the kernel, or it is turned off.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

fn refuse(address: SocketAddr, error: io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "something else listens there: stop it, or choose another --port"
        }
        io::ErrorKind::PermissionDenied => "choose a --port that this user can bind",
        _ => "choose another --port",
    };
    Failure::new(Exit::CANNOT_CREATE, format!("cannot listen on {address}"))
        .remedy(remedy)
        .because(error)
}

/// How many connections may be open at once, after the limit of open files has been raised as far as that needs.
pub(super) fn connections() -> usize {
    let wanted = (CONNECTIONS + OTHERS) as u64;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return CONNECTIONS;
    };
    let raised = wanted.min(hard);
    let limit = if soft < raised && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() {
        raised
    } else {
        soft
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    limit.saturating_sub(OTHERS).clamp(1, CONNECTIONS)
}
