//! Addresses of admin listeners: on this host or in a private network, never one that the Internet can reach.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// The address of an admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// A loopback or private address. The kernel chooses a port for port 0.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("write a path behind `unix:`".to_owned()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let address = match text.strip_prefix("localhost:") {
            Some(port) => port
                .parse()
                .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
                .ok(),
            None => text.parse().ok(),
        };
        let address: SocketAddr = address
            .ok_or("write 127.0.0.1:PORT, another private address and port, or unix:PATH")?;
        if address.ip().is_unspecified() {
            return Err(format!(
                "{} is every address of the host, public ones too: give a loopback or private one",
                address.ip()
            ));
        }
        if !is_private(address.ip()) {
            return Err(format!(
                "{} is a public address: give a loopback or private one",
                address.ip()
            ));
        }
        Ok(Self::Tcp(address))
    }
}

/// Whether the Internet does not route to an address: loopback, RFC 1918, the shared range of RFC 6598, link-local, and
/// IPv6 unique local addresses (RFC 4193).
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_private_addresses_are_accepted() {
        for (text, shown) in [
            ("127.0.0.1:9101", "127.0.0.1:9101"),
            ("localhost:9101", "127.0.0.1:9101"),
            ("[::1]:0", "[::1]:0"),
            ("10.1.2.3:80", "10.1.2.3:80"),
            ("100.64.0.1:80", "100.64.0.1:80"),
            ("192.168.0.9:80", "192.168.0.9:80"),
            ("[fd00::5]:80", "[fd00::5]:80"),
            (
                "unix:/run/synapse/admin.sock",
                "unix:/run/synapse/admin.sock",
            ),
        ] {
            let address: AdminAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
        }
    }

    #[test]
    fn public_and_wildcard_addresses_are_rejected() {
        for text in ["0.0.0.0:80", "[::]:80"] {
            let error = text.parse::<AdminAddress>().unwrap_err();
            assert!(error.contains("every address"), "{error}");
        }
        for text in [
            "8.8.8.8:80",
            "100.128.0.1:80",
            "172.32.0.1:1",
            "[2001:db8::1]:80",
            "[::ffff:8.8.8.8]:80",
        ] {
            let error = text.parse::<AdminAddress>().unwrap_err();
            assert!(error.contains("public address"), "{error}");
        }
        for text in [
            "",
            "9101",
            "127.0.0.1",
            "unix:",
            "example.com:80",
            "127.0.0.1:70000",
            "localhost:x",
        ] {
            assert!(text.parse::<AdminAddress>().is_err(), "{text}");
        }
    }
}
