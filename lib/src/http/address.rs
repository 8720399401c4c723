//! A host and a port, and connections to it.
//!
//! Owns how a host is reached: this one by both of its loopback addresses and without a resolver, names by the system's.
//! What is said on a connection, and until when it may take, is the caller's.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};

use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// How many addresses of a name are tried.
const ADDRESSES: usize = 8;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The host.
    pub host: HostAddress,
    /// The port.
    pub port: u16,
}

/// A host, by what has to be done to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAddress {
    /// This one: 127.0.0.1 or ::1, whichever the server listens on.
    Local,
    /// An address.
    Ip(IpAddr),
    /// A name, looked up for each connection; also an IPv6 address with a zone (`fe80::1%eth0`), which only the resolver
    /// can read.
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

impl HostPort {
    /// A port of this host.
    #[must_use]
    pub const fn local(port: u16) -> Self {
        let host = HostAddress::Local;
        Self { host, port }
    }

    /// The addresses that are tried, in order; none for a name.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        match self.host {
            HostAddress::Local => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            HostAddress::Ip(address) => vec![address],
            HostAddress::Name(_) => Vec::new(),
        }
    }

    /// Connects to the first address that takes the connection. Without a deadline.
    ///
    /// # Errors
    /// The error of the first address. [`io::ErrorKind::NotFound`] is a name without an address.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let port = self.port;
        let addresses = match &self.host {
            HostAddress::Name(name) => look_up(name, port).await?,
            _ => {
                let addresses = self.addresses().into_iter();
                addresses.map(|ip| SocketAddr::new(ip, port)).collect()
            }
        };
        let mut first = None;
        for address in addresses {
            match TcpStream::connect(address).await {
                // Where nobody listens on a port that is also one for outgoing connections, TCP can connect to itself.
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

/// The system's resolver blocks, so a thread asks it. There is never more than one question: while one is not answered,
/// nobody asks another.
async fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    static TURN: Semaphore = Semaphore::const_new(1);
    let turn = TURN.acquire().await.map_err(io::Error::other)?;
    let name = name.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let found = (name.as_str(), port).to_socket_addrs();
        drop(turn);
        found.map(|found| found.take(ADDRESSES).collect())
    });
    asked
        .await?
        .map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))
}
