//! What `bind` lines bind (configuration manual, `bind`), for a preflight that tries new addresses before a reload does.
//!
//! Left out, because nobody can try them beforehand: file descriptors, abstract and datagram sockets, QUIC, and addresses
//! that hold environment variables.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use crate::settings::Place;

use super::words;

/// One address that HAProxy listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Kind and name of the section, as in `frontend eightball`.
    pub section: String,
    /// The service it belongs to.
    pub service: Option<Arc<str>>,
    /// Where it was written; that of the service when it was made from `port`.
    pub place: Option<Place>,
    /// The address.
    pub address: BindAddress,
    /// What follows the address: `ssl`, `v6only`, `interface`, ...
    pub options: Vec<String>,
}

/// Where a listener stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BindAddress {
    /// TCP.
    Tcp {
        /// A literal address (`0.0.0.0` and `::` for all of them) without brackets, or a name to resolve.
        host: String,
        /// The ports; a range is several listeners.
        ports: RangeInclusive<u16>,
    },
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp { host, ports } => {
                if host.contains(':') {
                    write!(f, "[{host}]:{}", ports.start())?;
                } else {
                    write!(f, "{host}:{}", ports.start())?;
                }
                if ports.start() < ports.end() {
                    write!(f, "-{}", ports.end())?;
                }
                Ok(())
            }
        }
    }
}

/// The addresses of a `bind` line, each with the line's options.
pub(super) fn parse(line: &str) -> Vec<(BindAddress, Vec<String>)> {
    let words = words::words(line);
    match words.as_slice() {
        [keyword, addresses, options @ ..] if keyword == "bind" => addresses
            .split(',')
            .filter_map(address)
            .map(|address| (address, options.to_vec()))
            .collect(),
        _ => Vec::new(),
    }
}

fn address(text: &str) -> Option<BindAddress> {
    if text.contains('$') {
        return None;
    }
    let (family, rest) = match text.split_once('@') {
        Some((family, rest)) => (Some(family), rest),
        None if text.starts_with('/') => (Some("unix"), text),
        None => (None, text),
    };
    let any = match family {
        Some("unix") => return Some(BindAddress::Unix(PathBuf::from(rest))),
        None | Some("ipv4" | "tcp4" | "tcp" | "stream+ipv4") => "0.0.0.0",
        Some("ipv6" | "tcp6" | "stream+ipv6") => "::",
        Some(_) => return None,
    };
    // The last colon is the port's, brackets or not: `::1:80` is port 80 of `::1`.
    let (host, ports) = rest.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let ports = first.parse().ok()?..=last.parse().ok()?;
    let host = if matches!(host, "" | "*") { any } else { host };
    (!ports.is_empty()).then(|| BindAddress::Tcp {
        host: host.to_owned(),
        ports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_address_is_read() {
        for (line, expected) in [
            (
                "bind 127.0.0.1:80,127.0.0.1:82-84 ssl",
                vec!["127.0.0.1:80", "127.0.0.1:82-84"],
            ),
            ("bind :80,*:81", vec!["0.0.0.0:80", "0.0.0.0:81"]),
            (
                "bind [::]:80,:::81,::1:82,ipv6@:83",
                vec!["[::]:80", "[::]:81", "[::1]:82", "[::]:83"],
            ),
            ("bind localhost:80", vec!["localhost:80"]),
            (
                "bind ipv4@127.0.0.1:1,ipv6@[::1]:2",
                vec!["127.0.0.1:1", "[::1]:2"],
            ),
            ("bind unix@/run/a,/run/b mode 600", vec!["/run/a", "/run/b"]),
            (
                "bind abns@x,fd@3,quic4@:443,\"${HOST}:80\",:99999,:9-8",
                vec![],
            ),
            ("bind \"127.0.0.1:80\" # :81", vec!["127.0.0.1:80"]),
            ("bind-process 1", vec![]),
            ("# bind :80", vec![]),
        ] {
            let shown: Vec<String> = parse(line).iter().map(|(a, _)| a.to_string()).collect();
            assert_eq!(shown, expected, "{line}");
        }
        assert_eq!(parse("bind :80 ssl crt x")[0].1, ["ssl", "crt", "x"]);
    }
}
