//! The `bind` lines of an HAProxy file, read from its text: where it will listen, whoever wrote the line.
//!
//! Only what is needed to try them; what is no address HAProxy would take is left to `haproxy -c`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// How many ports one file is read for: a range may span all of them.
const LIMIT: usize = 4096;

/// One place that HAProxy listens at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bind {
    /// The section that has it: `frontend web`.
    pub section: String,
    /// Its line in the file, from 1.
    pub line: usize,
    /// The place.
    pub at: At,
}

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum At {
    /// A TCP port.
    Tcp {
        /// On which address.
        host: Host,
        /// Never 0.
        port: u16,
        /// Whether the address need not be there yet (`transparent`).
        foreign: bool,
    },
    /// A unix socket.
    Unix(PathBuf),
    /// What cannot be tried from here, as written: another namespace, an inherited or abstract socket, UDP.
    Other(String),
}

/// The address of a TCP bind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address; a wildcard IPv6 one takes no IPv4.
    Ip(IpAddr),
    /// All of IPv6 and of IPv4 (`v4v6`).
    Both,
    /// A name, which HAProxy resolves when it starts.
    Name(String),
}

impl Bind {
    /// Whether both are the same place, whatever section has it.
    #[must_use]
    pub fn same_place(&self, other: &Self) -> bool {
        self.at == other.at
    }

    /// Whether a socket at one of them stands in the way of the other.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (
            At::Tcp {
                host: a, port: p, ..
            },
            At::Tcp {
                host: b, port: q, ..
            },
        ) = (&self.at, &other.at)
        else {
            return self.at == other.at;
        };
        p == q && a.overlaps(b)
    }
}

impl Host {
    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Both, _) | (_, Self::Both) => true,
            (Self::Ip(a), Self::Ip(b)) => {
                a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())
            }
            // A name may stand for any address.
            _ => true,
        }
    }
}

impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.at {
            At::Tcp { host, port, .. } => match host {
                Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{port}")?,
                Host::Ip(ip) => write!(f, "{ip}:{port}")?,
                Host::Both => write!(f, "[::]:{port} v4v6")?,
                Host::Name(name) => write!(f, "{name}:{port}")?,
            },
            At::Unix(path) => write!(f, "{}", path.display())?,
            At::Other(text) => f.write_str(text)?,
        }
        write!(f, " of {}", self.section)
    }
}

/// The first words of lines that begin a section.
#[must_use]
pub fn is_section(word: &str) -> bool {
    const SECTIONS: [&str; 19] = [
        "global",
        "defaults",
        "frontend",
        "backend",
        "listen",
        "peers",
        "mailers",
        "resolvers",
        "userlist",
        "program",
        "cache",
        "ring",
        "http-errors",
        "fcgi-app",
        "log-forward",
        "log-profile",
        "crt-store",
        "traces",
        "acme",
    ];
    SECTIONS.contains(&word)
}

/// All places in a file, in the order of its lines.
#[must_use]
pub fn binds(text: &str) -> Vec<Bind> {
    let (mut found, mut section, mut relevant) = (Vec::new(), String::new(), false);
    for (index, line) in text.lines().enumerate() {
        let line = line.split(" #").next().unwrap_or_default();
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let Some(first) = words.first() else { continue };
        if is_section(first) {
            relevant = ["frontend", "listen"].contains(first);
            section = words[..words.len().min(2)].join(" ");
            continue;
        }
        if !relevant || *first != "bind" || words.len() < 2 {
            continue;
        }
        for address in words[1].split(',') {
            for at in places(address, &words[2..]) {
                if found.len() == LIMIT {
                    return found;
                }
                found.push(Bind {
                    section: section.clone(),
                    line: index + 1,
                    at,
                });
            }
        }
    }
    found
}

/// The places that one address of a bind line stands for.
fn places(text: &str, options: &[&str]) -> Vec<At> {
    let other = || vec![At::Other(text.to_owned())];
    if ["interface", "namespace"]
        .iter()
        .any(|word| options.contains(word))
        || text.contains(['"', '\'', '$', '\\'])
    {
        return other();
    }
    let (family, address) = text.split_once('@').unwrap_or(("", text));
    match family {
        "unix" | "uxst" => return vec![At::Unix(PathBuf::from(address))],
        "" if address.starts_with('/') => return vec![At::Unix(PathBuf::from(address))],
        "" | "ipv4" | "ipv6" | "tcp" | "tcp4" | "tcp6" => {}
        _ => return other(),
    }
    let Some((host, ports)) = address.rsplit_once(':') else {
        return other();
    };
    let Some(host) = host_of(host, family, options) else {
        return other();
    };
    let (low, high) = ports.split_once('-').unwrap_or((ports, ports));
    let (Ok(low), Ok(high)) = (low.parse::<u16>(), high.parse::<u16>()) else {
        return other();
    };
    if low == 0 || low > high {
        return other();
    }
    let foreign = options.contains(&"transparent");
    (low..=high)
        .take(LIMIT)
        .map(|port| At::Tcp {
            host: host.clone(),
            port,
            foreign,
        })
        .collect()
}

fn host_of(text: &str, family: &str, options: &[&str]) -> Option<Host> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let six = family.ends_with('6');
    let ip = match bare {
        "" | "*" if six => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        "" | "*" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => match bare.parse() {
            Ok(ip) => ip,
            Err(_) if crate::model::safe_host(bare) => return Some(Host::Name(bare.to_owned())),
            Err(_) => return None,
        },
    };
    if ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        && options.contains(&"v4v6")
        && !options.contains(&"v6only")
    {
        return Some(Host::Both);
    }
    Some(Host::Ip(ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(line: &str) -> Vec<String> {
        let found = binds(&format!("frontend f\n    bind {line}\n"));
        found
            .iter()
            .map(|bind| {
                let text = bind.to_string();
                let text = text.strip_suffix(" of frontend f").unwrap().to_owned();
                match bind.at {
                    At::Other(_) => format!("?{text}"),
                    _ => text,
                }
            })
            .collect()
    }

    #[test]
    fn addresses_are_read_as_haproxy_reads_them() {
        for (line, expected) in [
            ("127.0.0.1:80", vec!["127.0.0.1:80"]),
            (":80", vec!["0.0.0.0:80"]),
            ("*:80 ssl crt /x", vec!["0.0.0.0:80"]),
            (":::80", vec!["[::]:80"]),
            ("[::1]:80", vec!["[::1]:80"]),
            (":::80 v4v6", vec!["[::]:80 v4v6"]),
            (":::80 v4v6 v6only", vec!["[::]:80"]),
            ("ipv6@*:80", vec!["[::]:80"]),
            ("localhost:8080", vec!["localhost:8080"]),
            (
                "10.0.0.1:80,10.0.0.2:81",
                vec!["10.0.0.1:80", "10.0.0.2:81"],
            ),
            ("*:80-82", vec!["0.0.0.0:80", "0.0.0.0:81", "0.0.0.0:82"]),
            ("/run/x.sock mode 600", vec!["/run/x.sock"]),
            ("unix@/run/x.sock", vec!["/run/x.sock"]),
            ("abns@x", vec!["?abns@x"]),
            ("fd@3", vec!["?fd@3"]),
            ("quic4@:443 ssl", vec!["?quic4@:443"]),
            ("${IP}:80", vec!["?${IP}:80"]),
            ("*:80 interface eth0", vec!["?*:80"]),
            ("*:99999", vec!["?*:99999"]),
        ] {
            assert_eq!(at(line), expected, "{line}");
        }
        assert_eq!(at("*:1-65535").len(), LIMIT);
    }

    #[test]
    fn only_proxies_have_binds() {
        let text = "global\n bind 1.1.1.1:1\npeers p\n bind 1.1.1.1:2\nlisten l\n # bind 1.1.1.1:3\n bind 1.1.1.1:4 # x\n\
                    backend b\n bind 1.1.1.1:5\n";
        let found = binds(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].section.as_str()), (7, "listen l"));
    }

    #[test]
    fn overlaps() {
        let bind = |line: &str| binds(&format!("frontend f\n bind {line}\n")).remove(0);
        for (a, b, expected) in [
            ("*:80", "127.0.0.1:80", true),
            ("*:80", "127.0.0.1:81", false),
            ("*:80", "[::1]:80", false),
            (":::80", "*:80", false),
            (":::80 v4v6", "127.0.0.1:80", true),
            ("10.0.0.1:80", "10.0.0.2:80", false),
            ("10.0.0.1:80", "10.0.0.1:80", true),
            ("/a", "/a", true),
            ("/a", "/b", false),
        ] {
            assert_eq!(bind(a).overlaps(&bind(b)), expected, "{a} {b}");
            assert_eq!(bind(b).overlaps(&bind(a)), expected, "{b} {a}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text: String, line in "[-0-9a-z:@*,\\[\\] /.]{0,40}") {
            let _ = binds(&text);
            let found = binds(&format!("frontend f\nbind {line}\n{text}"));
            prop_assert!(found.len() <= LIMIT);
        }
    }
}
