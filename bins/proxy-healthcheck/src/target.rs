//! What is asked: URLs as people write them, made into an address, a path and a Host header before anything is sent.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use hostkit::http::{HostAddress, HostPort};
use hostkit::mask;
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;

/// What is asked of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub endpoint: HostPort,
    /// Path and query.
    pub path: PathAndQuery,
    /// The Host header.
    pub host_header: HeaderValue,
}

impl Target {
    /// A path on `test_port` of this host, or an absolute URL.
    ///
    /// # Errors
    /// What is wrong with it, and what to write instead.
    pub fn new(text: &str, test_port: Option<u16>) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Self::absolute(text);
        }
        let port = test_port.ok_or("a path needs --test-port, the port of the server")?;
        let endpoint = HostPort::local(port);
        Ok(Self {
            path: without_fragment(text)
                .parse()
                .map_err(|error| format!("{error}"))?,
            host_header: header(&endpoint.to_string())?,
            endpoint,
        })
    }

    fn absolute(text: &str) -> Result<Self, String> {
        let remedy = "write a path that begins with /, or http://HOST:PORT/PATH";
        let (text, zone) = without_zone(without_fragment(text));
        let uri: Uri = text.parse().map_err(|error| format!("{error}: {remedy}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err("https is not spoken here: give the server's plain http port, or --tcp to only connect".to_owned());
            }
            _ => return Err(remedy.to_owned()),
        }
        let authority = uri.authority().ok_or(remedy)?;
        if authority.as_str().contains('@') {
            return Err(
                "a name and password are not sent: leave out what stands before @".to_owned(),
            );
        }
        let name = authority.host();
        let port = match authority.as_str().strip_prefix(name) {
            Some("") => 80,
            port => port
                .and_then(|port| port.strip_prefix(':')?.parse().ok())
                .filter(|port| *port != 0)
                .ok_or(remedy)?,
        };
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let host = match (HostAddress::from(bare), zone) {
            // The resolver reads zones, and sends no query for an address.
            (HostAddress::Ip(IpAddr::V6(address)), Some(zone)) => {
                HostAddress::Name(format!("{address}%{zone}"))
            }
            (HostAddress::Name(_), _) if name.is_empty() || bare != name => {
                return Err(remedy.to_owned());
            }
            (host, None) => host,
            _ => return Err(remedy.to_owned()),
        };
        Ok(Self {
            endpoint: HostPort { host, port },
            path: uri
                .path_and_query()
                .cloned()
                .unwrap_or(PathAndQuery::from_static("/")),
            host_header: header(authority.as_str())?,
        })
    }
}

/// The URL without the zone of an IPv6 address, which is nothing to its server, and the zone: `http://[fe80::1%25eth0]/`
/// (RFC 6874), also with a bare `%`.
fn without_zone(url: &str) -> (Cow<'_, str>, Option<&str>) {
    let found = || {
        let (before, rest) = url.split_once("://[")?;
        let (address, rest) = rest.split_once(']')?;
        let (address, zone) = address.split_once('%')?;
        let zone = zone.strip_prefix("25").unwrap_or(zone);
        let is_zone = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        let is_valid = !zone.is_empty() && zone.chars().all(is_zone) && !before.contains('/');
        is_valid.then(|| {
            (
                Cow::Owned(format!("{before}://[{address}]{rest}")),
                Some(zone),
            )
        })
    };
    found().unwrap_or((Cow::Borrowed(url), None))
}

fn without_fragment(url: &str) -> &str {
    url.split_once('#').map_or(url, |(url, _)| url)
}

/// A Host header.
///
/// # Errors
/// It cannot be one.
pub(crate) fn header(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text)
        .ok()
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("{text:?} cannot be a Host header"))
}

/// The URL, with the values of its query hidden.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&mask::mask_url(&format!(
            "http://{}{}",
            self.endpoint, self.path
        )))
    }
}

/// Who is told that the task ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notify {
    /// By POST to a URL.
    Http(Target),
    /// By `POST /drain` over a socket file: the admin listener of authproxy.
    Unix(PathBuf),
}

impl FromStr for Notify {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("write a path behind `unix:`".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None if text.starts_with('/') => {
                Err("write http://127.0.0.1:PORT/PATH, or unix:PATH".to_owned())
            }
            None => Target::new(text, None).map(Self::Http),
        }
    }
}

impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(target) => target.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_name_an_endpoint_a_path_and_a_host() {
        for (text, shown, host, path) in [
            (
                "/private/stats/",
                "http://localhost:8080/private/stats/",
                "localhost:8080",
                "/private/stats/",
            ),
            (
                "/a?key=secret#top",
                "http://localhost:8080/a?key=***",
                "localhost:8080",
                "/a?key=secret",
            ),
            (
                "http://localhost:81/x",
                "http://localhost:81/x",
                "localhost:81",
                "/x",
            ),
            ("http://LOCALHOST", "http://localhost:80/", "LOCALHOST", "/"),
            (
                "http://127.0.0.2:9/",
                "http://127.0.0.2:9/",
                "127.0.0.2:9",
                "/",
            ),
            ("http://[::1]:9/", "http://[::1]:9/", "[::1]:9", "/"),
            // A zone is not sent.
            (
                "http://[fe80::1%25eth0]:9/x",
                "http://[fe80::1%eth0]:9/x",
                "[fe80::1]:9",
                "/x",
            ),
            (
                "http://[FE80::1%vlan-7.2]/",
                "http://[fe80::1%vlan-7.2]:80/",
                "[FE80::1]",
                "/",
            ),
            (
                "http://[fe80::1%252]:9/?u=[a%25b]",
                "http://[fe80::1%2]:9/?u=***",
                "[fe80::1]:9",
                "/?u=[a%25b]",
            ),
            (
                "HTTP://api7.example:9?q",
                "http://api7.example:9/?***",
                "api7.example:9",
                "/?q",
            ),
        ] {
            let target = Target::new(text, Some(8080)).unwrap();
            assert_eq!(target.to_string(), shown, "{text}");
            assert_eq!(target.host_header, host, "{text}");
            assert_eq!(target.path.to_string(), path, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_a_remedy() {
        for (text, said) in [
            ("https://localhost:8443/", "https is not spoken"),
            (
                "http://me:pw@localhost/",
                "a name and password are not sent",
            ),
            ("ftp://localhost/", "write a path"),
            ("private/stats", "write a path"),
            ("localhost:8080/x", "write a path"),
            ("localhost:8080", "write a path"),
            ("", "write a path"),
            ("http://", "write a path"),
            ("http://localhost:/", "write a path"),
            ("http://localhost:70000/", "write a path"),
            ("http://localhost:0/", "write a path"),
            ("http://[x]/", "write a path"),
            ("http://[x%25eth0]/", "write a path"),
            ("http://[127.0.0.1%25eth0]/", "write a path"),
            ("http://[fe80::1%25]/", "write a path"),
            ("http://[fe80::1%]/", "write a path"),
            ("http://[fe80::1%25a b]/", "write a path"),
        ] {
            let error = Target::new(text, Some(8080)).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(Target::new("/a b", Some(1)).is_err());
        assert!(Target::new("/", None).unwrap_err().contains("--test-port"));
    }

    #[test]
    fn siblings_have_a_url_or_a_socket() {
        for text in ["http://127.0.0.1:9101/drain", "unix:/run/authproxy.sock"] {
            assert_eq!(text.parse::<Notify>().unwrap().to_string(), text);
        }
        for text in ["unix:", "/run/x.sock", "https://h/", ""] {
            assert!(text.parse::<Notify>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_target_or_an_error(text in ".{0,40}", start in "(/|http://|http://\\[|)") {
            let _ = Target::new(&format!("{start}{text}"), Some(1));
        }
    }
}
