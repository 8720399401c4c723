//! Listening sockets: bound here by every tool, so that each failure names the address and the flag that chooses another.

use std::fmt::Display;
use std::fs::Permissions;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, Socket, Type};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::timeout;

use crate::{Exit, Failure};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Mode of a socket file: its owner and group may connect.
const SOCKET_FILE_MODE: u32 = 0o660;
/// A process that does not accept within this time still owns its socket file.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds a non-blocking listener; the kernel chooses a port for port 0. `[::]` accepts IPv4 too, unless `only_v6`, and is
/// `0.0.0.0` on a host without IPv6. A second listener on the same port is an error (no `SO_REUSEPORT`): it would
/// silently take half of the connections.
///
/// # Errors
/// As socket(2), bind(2) and listen(2).
pub fn bind_tcp(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let (address, socket) = match Socket::new(Domain::for_address(address), Type::STREAM, None) {
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            (address, Socket::new(Domain::IPV4, Type::STREAM, None)?)
        }
        socket => (address, socket?),
    };
    // Connections of a process that has just ended, in TIME-WAIT, do not hold the port.
    socket.set_reuse_address(true)?;
    // Accepted connections inherit it: of two pipelined responses the second would wait for an ACK, up to 40 ms.
    socket.set_tcp_nodelay(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG as i32)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Binds a socket file, mode 0660 from the moment it exists. A file that no process listens on is replaced.
///
/// # Errors
/// As bind(2) and listen(2); `AlreadyExists` if the path is not a socket, `AddrInUse` if a process listens on it.
pub async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            let cause = "the path exists and is not a socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, cause));
        }
        let is_refused = match timeout(PROBE_TIMEOUT, UnixStream::connect(path)).await {
            Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
            Ok(Ok(_)) | Err(_) => false,
        };
        if !is_refused {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let socket = UnixSocket::new_stream()?;
    // bind(2) gives the file the mode of the socket less the umask: no moment in which others may connect.
    fchmod(&socket, Mode::from_bits_truncate(SOCKET_FILE_MODE))?;
    socket.bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(SOCKET_FILE_MODE))?;
    socket.listen(BACKLOG)
}

/// The failure to listen on `address`, which `flag` chooses (exit 73).
#[must_use]
pub fn cannot_listen(address: impl Display, flag: &str, error: io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("stop the process that listens there, or choose another {flag}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("choose an address of this host, with another {flag}")
        }
        io::ErrorKind::PermissionDenied => format!("choose a {flag} that this user may bind"),
        _ => format!("choose another {flag}"),
    };
    Failure::new(Exit::CANNOT_CREATE, format!("cannot listen on {address}"))
        .remedy(remedy)
        .because(error)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn bind_failure_names_the_address_and_the_remedy() {
        let first = bind_tcp((Ipv4Addr::LOCALHOST, 0).into(), false).unwrap();
        let address = first.local_addr().unwrap();
        assert_ne!(address.port(), 0);
        let foreign = SocketAddr::from(([192, 0, 2, 1], 0));
        for (address, remedy) in [
            (
                address,
                "stop the process that listens there, or choose another --port",
            ),
            (
                foreign,
                "choose an address of this host, with another --port",
            ),
        ] {
            let error = bind_tcp(address, false).unwrap_err();
            let failure = cannot_listen(address, "--port", error);
            assert_eq!(failure.exit(), Exit::CANNOT_CREATE);
            let expected = format!("cannot listen on {address}: {remedy}");
            assert_eq!(failure.to_string(), expected);
        }
    }

    #[test]
    fn accepted_connection_sends_small_writes_at_once() {
        let listener = bind_tcp((Ipv4Addr::LOCALHOST, 0).into(), false).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        assert!(listener.accept().unwrap().0.nodelay().unwrap());
    }

    #[tokio::test]
    async fn socket_file_is_replaced_only_if_no_process_listens_on_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("socket");
        let first = bind_unix(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_FILE_MODE);
        let error = bind_unix(&path).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        bind_unix(&path).await.unwrap();
        std::fs::write(temp.path().join("file"), "").unwrap();
        let error = bind_unix(&temp.path().join("file")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}
