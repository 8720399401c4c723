//! Addresses: where to listen, the upstream server, and trusted peers.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use url::Url;

/// Parses the URL of a permissions server.
///
/// # Errors
/// The defect, and what to write instead.
pub(crate) fn parse_permissions_url(text: &str) -> Result<Url, String> {
    let remedy = "write http://HOST:PORT/, https://HOST/ or unix:/PATH";
    text.parse().map_err(|error| match error {
        url::ParseError::RelativeUrlWithoutBase => remedy.to_owned(),
        error => format!("{error}: {remedy}"),
    })
}

/// The upstream server. HTTP/1.1 without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UpstreamAddress {
    /// A host and a port. `localhost` is 127.0.0.1 and then ::1, without asking a resolver.
    Tcp {
        /// A name or an address, IPv6 without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket file.
    Unix(PathBuf),
}

impl FromStr for UpstreamAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let remedy = "write http://HOST:PORT, or unix:PATH";
        if let Some(path) = text.strip_prefix("unix:") {
            // unix:///path is what some write.
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => Err("write a path behind `unix:`".to_owned()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(remedy.to_owned());
        };
        match scheme.to_ascii_lowercase().as_str() {
            "http" => {}
            "https" => {
                return Err(
                    "TLS to the upstream server is not supported: give its plain http port on this host"
                        .to_owned(),
                );
            }
            _ => return Err(remedy.to_owned()),
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(
                "a name and a password are not sent: leave out the part before @".to_owned(),
            );
        }
        if !matches!(path, "" | "/") {
            return Err(format!(
                "requests keep their own paths: leave out {path:?}, or let the server know its prefix"
            ));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
            _ => (authority, Some(80)),
        };
        let port = port.filter(|port| *port != 0).ok_or(remedy)?;
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(inner) => match inner.parse::<Ipv6Addr>() {
                Ok(_) => inner,
                Err(_) => return Err(remedy.to_owned()),
            },
            None => host,
        };
        let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || (!host.chars().all(name) && host.parse::<Ipv6Addr>().is_err()) {
            return Err(remedy.to_owned());
        }
        let host = host.to_ascii_lowercase();
        Ok(Self::Tcp { host, port })
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address to listen on, and its port unless that is `--port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListenAddress {
    /// The address.
    pub ip: IpAddr,
    /// The port; without it that of `--port`.
    pub port: Option<u16>,
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
        if let Ok(ip) = bare.unwrap_or(text).parse() {
            return Ok(Self { ip, port: None });
        }
        let text = match text.strip_prefix("localhost") {
            Some("") => return "127.0.0.1".parse(),
            Some(port) => format!("127.0.0.1{port}"),
            None => text.to_owned(),
        };
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self {
                ip: address.ip(),
                port: Some(address.port()),
            }),
            _ => Err("write an address of this host, or ADDR:PORT; IPv6 as [ADDR]:PORT".to_owned()),
        }
    }
}

/// A peer whose X-Forwarded-* are trusted, or `none` for no peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrustedNetwork {
    /// `none`.
    None,
    /// A network, or one address.
    Network(IpNet),
}

impl TrustedNetwork {
    /// The networks of a list in which `none` stands alone, if at all.
    pub(super) fn networks(list: &[Self]) -> Result<Vec<IpNet>, String> {
        let networks: Vec<IpNet> = list
            .iter()
            .filter_map(|network| match network {
                Self::None => None,
                Self::Network(network) => Some(network.trunc()),
            })
            .collect();
        match networks.len() < list.len() && list.len() > 1 {
            true => Err("`none` is listed beside a network".to_owned()),
            false => Ok(networks),
        }
    }
}

impl FromStr for TrustedNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "none" {
            return Ok(Self::None);
        }
        let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
        let network = text.parse().ok().or_else(address);
        network
            .map(Self::Network)
            .ok_or_else(|| "write a network like 10.0.0.0/8, or an address".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_address_is_a_host_and_a_port_or_a_socket() {
        for (text, shown) in [
            ("http://localhost:8080", "http://localhost:8080"),
            ("HTTP://LocalHost:8080/", "http://localhost:8080"),
            ("http://api7", "http://api7:80"),
            ("http://[::1]:9", "http://[::1]:9"),
            ("http://[::1]", "http://[::1]:80"),
            ("http://10.0.0.1:9", "http://10.0.0.1:9"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("unix:///run/app.sock", "unix:/run/app.sock"),
            ("unix:app.sock", "unix:app.sock"),
        ] {
            assert_eq!(
                text.parse::<UpstreamAddress>().unwrap().to_string(),
                shown,
                "{text}"
            );
        }
    }

    #[test]
    fn invalid_upstream_address_is_refused_with_a_remedy() {
        for (text, said) in [
            ("https://h:1", "plain http port"),
            ("http://me:pw@h:1", "leave out the part before @"),
            ("http://h:1/prefix", "leave out \"/prefix\""),
            ("http://h:1?x", "leave out"),
            ("localhost:8080", "write http://"),
            ("8080", "write http://"),
            ("", "write http://"),
            ("ftp://h", "write http://"),
            ("http://", "write http://"),
            ("http://:80", "write http://"),
            ("http://h:", "write http://"),
            ("http://h:0", "write http://"),
            ("http://h:70000", "write http://"),
            ("http://[x]:1", "write http://"),
            ("http://h h:1", "write http://"),
            ("unix:", "write a path"),
        ] {
            let error = text.parse::<UpstreamAddress>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn listen_address_may_have_a_port() {
        for (text, ip, port) in [
            ("0.0.0.0", "0.0.0.0", None),
            ("::", "::", None),
            ("[::1]", "::1", None),
            ("[::1]:80", "::1", Some(80)),
            ("127.0.0.1:80", "127.0.0.1", Some(80)),
            ("localhost", "127.0.0.1", None),
            ("localhost:80", "127.0.0.1", Some(80)),
        ] {
            let listen: ListenAddress = text.parse().unwrap();
            assert_eq!(
                (listen.ip, listen.port),
                (ip.parse().unwrap(), port),
                "{text}"
            );
        }
        for text in [
            "",
            "host",
            "127.0.0.1:",
            "127.0.0.1:0",
            ":80",
            "localhostile:1",
        ] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }
}
