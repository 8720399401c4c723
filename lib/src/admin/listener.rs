//! The bound socket. A socket file has mode 0660 from the moment it exists, whatever the umask is.

use std::convert::Infallible;
use std::fs::Permissions;
use std::future::pending;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::{Mode, fchmod};
use tokio::net::{TcpListener, UnixListener, UnixSocket, UnixStream};
use tokio::time::timeout;

use super::{Address, Routes};
use crate::server::{Bounds, DEADLINE, Socket, serve};
use crate::{Exit, Failure};

/// Who may connect to a socket file: its owner and group.
const MODE: u32 = 0o660;
/// Connections served at once; more wait in the backlog.
const CONNECTIONS: usize = 64;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;

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
            Address::Tcp(tcp) => TcpListener::bind(tcp).await.and_then(|socket| {
                let address = Address::Tcp(socket.local_addr()?);
                let socket = Socket::Tcp(socket);
                Ok(Self { socket, address })
            }),
            Address::Unix(path) => bind_unix(path).await.map(|socket| Self {
                socket: Socket::Unix(socket),
                address: address.clone(),
            }),
        };
        bound.map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "something else listens there: stop it, or choose another --admin"
                }
                io::ErrorKind::AddrNotAvailable => "this host does not have that address",
                _ => "choose an --admin that this user can bind",
            };
            Failure::new(Exit::CANNOT_CREATE, format!("cannot listen on {address}"))
                .remedy(remedy)
                .because(error)
        })
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

async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is not a socket is in the way",
            ));
        }
        // A peer that does not answer in time is alive, only busy.
        let refused = match timeout(DEADLINE, UnixStream::connect(path)).await {
            Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
            Ok(Ok(_)) | Err(_) => false,
        };
        if !refused {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let socket = UnixSocket::new_stream()?;
    // bind(2) gives the file the mode of the socket less the umask, so nobody gets in before the mode is exact.
    fchmod(&socket, Mode::from_bits_truncate(MODE))?;
    socket.bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)
}
