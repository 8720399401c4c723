//! Addresses of servers, and connections to them, without a deadline: that is the caller's.
//!
//! Owns how a host is reached: this one by both of its loopback addresses and without a resolver, a name by the system's
//! resolver.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};

use super::BoxedStream;

/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    /// Over TCP.
    Tcp(HostPort),
    /// A socket file.
    Unix(PathBuf),
}

impl ServerAddress {
    /// Connects. Small writes are sent at once (`TCP_NODELAY`).
    ///
    /// # Errors
    /// As [`HostPort::connect`] and connect(2).
    pub async fn connect(&self) -> io::Result<BoxedStream> {
        match self {
            Self::Tcp(address) => {
                let stream = address.connect().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A host and a TCP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The host.
    pub host: HostAddress,
    /// The port.
    pub port: u16,
}

/// A host, by how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAddress {
    /// This host: 127.0.0.1 or ::1, whichever the server listens on.
    Local,
    /// An IP address.
    Ip(IpAddr),
    /// A name, resolved for each connection; also an IPv6 address with a zone (`fe80::1%eth0`), which only the resolver
    /// can parse.
    Name(String),
}

impl From<&str> for HostAddress {
    /// An address (IPv6 without brackets), `localhost`, or another name.
    fn from(text: &str) -> Self {
        match text.parse() {
            Ok(address) => Self::Ip(address),
            Err(_) if text.eq_ignore_ascii_case("localhost") => Self::Local,
            Err(_) => Self::Name(text.to_owned()),
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        let (host, port) = (HostAddress::Ip(address.ip()), address.port());
        Self { host, port }
    }
}

impl HostPort {
    /// A port of this host.
    #[must_use]
    pub const fn local(port: u16) -> Self {
        let host = HostAddress::Local;
        Self { host, port }
    }

    /// Connects to the first address that accepts.
    ///
    /// # Errors
    /// The error of the first address. [`io::ErrorKind::NotFound`] is a name without an address.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let with_port = |ip: IpAddr| SocketAddr::new(ip, self.port);
        let addresses = match &self.host {
            HostAddress::Local => vec![
                with_port(Ipv4Addr::LOCALHOST.into()),
                with_port(Ipv6Addr::LOCALHOST.into()),
            ],
            HostAddress::Ip(ip) => vec![with_port(*ip)],
            HostAddress::Name(name) => resolve(name, self.port).await?,
        };
        let mut first = None;
        for address in addresses {
            match TcpStream::connect(address).await {
                // On a port of the ephemeral range that has no listener, TCP can connect to itself.
                Ok(stream) if stream.local_addr()? == address => {
                    first.get_or_insert(io::ErrorKind::ConnectionRefused.into());
                }
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or(io::ErrorKind::NotFound.into()))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match &self.host {
            HostAddress::Local => write!(f, "localhost:{port}"),
            HostAddress::Ip(IpAddr::V6(address)) => write!(f, "[{address}]:{port}"),
            HostAddress::Ip(address) => write!(f, "{address}:{port}"),
            // An IPv6 address with a zone.
            HostAddress::Name(name) if name.contains(':') => write!(f, "[{name}]:{port}"),
            HostAddress::Name(name) => write!(f, "{name}:{port}"),
        }
    }
}

/// The lookups under way, by name and port: connections that are made at once share one.
static LOOKUPS: Mutex<BTreeMap<(String, u16), PendingLookup>> = Mutex::new(BTreeMap::new());
/// Lookups at once. The system's resolver blocks, and name servers that do not answer must not hold every thread.
static RESOLVER: Semaphore = Semaphore::const_new(2);

type PendingLookup = watch::Receiver<Option<LookupResult>>;
type LookupResult = Result<Vec<SocketAddr>, Arc<io::Error>>;

async fn resolve(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut pending = start_or_join_lookup(name, port);
    let result = pending.wait_for(Option::is_some).await;
    match result.ok().and_then(|result| result.clone()) {
        Some(Ok(addresses)) => Ok(addresses),
        Some(Err(error)) => Err(io::Error::new(io::ErrorKind::NotFound, error)),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

fn start_or_join_lookup(name: &str, port: u16) -> PendingLookup {
    let mut lookups = LOOKUPS.lock().unwrap_or_else(PoisonError::into_inner);
    // A lookup that is over has dropped its sender.
    lookups.retain(|_, pending| pending.has_changed().is_ok());
    let key = (name.to_owned(), port);
    if let Some(pending) = lookups.get(&key) {
        return pending.clone();
    }
    let (sender, pending) = watch::channel(None);
    lookups.insert(key.clone(), pending.clone());
    // A task of its own: the connection that started it may be given up before its end.
    tokio::spawn(async move {
        let _permit = RESOLVER.acquire().await;
        let resolved = tokio::task::spawn_blocking(move || {
            let (name, port) = key;
            let addresses = (name, port).to_socket_addrs();
            addresses.map(|addresses| addresses.take(MAX_ADDRESSES).collect())
        });
        let result = resolved.await.unwrap_or_else(|error| Err(error.into()));
        sender.send(Some(result.map_err(Arc::new)))
    });
    pending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_to_one_name_share_a_lookup() {
        let first = start_or_join_lookup("first.invalid", 1);
        assert!(first.same_channel(&start_or_join_lookup("first.invalid", 1)));
        assert!(!first.same_channel(&start_or_join_lookup("second.invalid", 1)));
        drop(first);
    }
}
