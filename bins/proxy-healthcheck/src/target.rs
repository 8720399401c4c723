//! URLs as people write them, parsed into an address, a path and a Host header before anything is sent.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use hostkit::http::client::ClientRequest;
use hostkit::http::{HostAddress, HostPort, ServerAddress};
use hostkit::mask;
use hyper::header::{HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Uri};

/// The endpoint of a socket file that is posted to: that of authproxy's admin listener.
const DRAIN_PATH: PathAndQuery = PathAndQuery::from_static("/drain");

/// A URL that requests are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpTarget {
    pub(crate) address: ServerAddress,
    pub(crate) path: PathAndQuery,
    pub(crate) host_header: HeaderValue,
}

impl HttpTarget {
    /// Parses a path on `test_port` of this host, or an absolute URL.
    ///
    /// # Errors
    /// The defect, and what to write instead.
    pub(crate) fn parse(text: &str, test_port: Option<u16>) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Self::parse_absolute(
                text,
                "write a path that begins with /, or http://HOST:PORT/PATH",
            );
        }
        let port = test_port.ok_or("a path needs --test-port, the port of the server")?;
        let address = HostPort::local(port);
        Ok(Self {
            path: without_fragment(text)
                .parse()
                .map_err(|error| format!("{error}"))?,
            host_header: parse_host_header(&address.to_string())?,
            address: ServerAddress::Tcp(address),
        })
    }

    /// Parses an absolute URL, or `unix:PATH` for the `/drain` of a socket file.
    ///
    /// # Errors
    /// The defect, and what to write instead.
    pub(crate) fn parse_notification(text: &str) -> Result<Self, String> {
        let remedy = "write http://127.0.0.1:PORT/PATH, or unix:PATH";
        match text.strip_prefix("unix:") {
            Some("") => Err("write a path behind `unix:`".to_owned()),
            Some(path) => Ok(Self {
                address: ServerAddress::Unix(path.into()),
                path: DRAIN_PATH,
                host_header: HeaderValue::from_static("localhost"),
            }),
            None if text.starts_with('/') => Err(remedy.to_owned()),
            None => Self::parse_absolute(text, remedy),
        }
    }

    fn parse_absolute(text: &str, remedy: &str) -> Result<Self, String> {
        let (text, zone) = split_zone(without_fragment(text));
        let uri: Uri = text.parse().map_err(|error| format!("{error}: {remedy}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err("https is not supported: give the server's plain http port, or --tcp to only connect".to_owned());
            }
            _ => return Err(remedy.to_owned()),
        }
        let authority = uri.authority().ok_or(remedy)?;
        if authority.as_str().contains('@') {
            return Err("user and password are not supported: remove the part before @".to_owned());
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
            // The resolver parses zones, and sends no query for an address.
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
            address: ServerAddress::Tcp(HostPort { host, port }),
            path: uri
                .path_and_query()
                .cloned()
                .unwrap_or(PathAndQuery::from_static("/")),
            host_header: parse_host_header(authority.as_str())?,
        })
    }

    pub(crate) fn request(&self, method: Method) -> ClientRequest {
        let user_agent = HeaderValue::from_static("proxy-healthcheck");
        ClientRequest::new(method, self.path.clone(), self.host_header.clone())
            .with_header(USER_AGENT, user_agent)
    }
}

/// The URL without the zone of an IPv6 address, which its server must not get (RFC 6874), and the zone:
/// `http://[fe80::1%25eth0]/`, also with a bare `%`.
fn split_zone(url: &str) -> (Cow<'_, str>, Option<&str>) {
    let split = || {
        let (before, rest) = url.split_once("://[")?;
        let (address, rest) = rest.split_once(']')?;
        let (address, zone) = address.split_once('%')?;
        let zone = zone.strip_prefix("25").unwrap_or(zone);
        let is_zone = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        let is_valid = !zone.is_empty() && zone.chars().all(is_zone) && !before.contains('/');
        let url = Cow::Owned(format!("{before}://[{address}]{rest}"));
        is_valid.then_some((url, Some(zone)))
    };
    split().unwrap_or((Cow::Borrowed(url), None))
}

fn without_fragment(url: &str) -> &str {
    url.split_once('#').map_or(url, |(url, _)| url)
}

/// Parses a Host header.
///
/// # Errors
/// It is empty, or has characters that a header cannot have.
pub(crate) fn parse_host_header(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text)
        .ok()
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("invalid Host header {text:?}"))
}

/// The URL with the values of its query masked; a socket file as it was given.
impl fmt::Display for HttpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            ServerAddress::Tcp(address) => {
                let url = format!("http://{address}{}", self.path);
                f.write_str(&mask::mask_url(&url))
            }
            ServerAddress::Unix(_) => self.address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_parsed_into_address_path_and_host_header() {
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
            // The Host header has no zone.
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
            let target = HttpTarget::parse(text, Some(8080)).unwrap();
            assert_eq!(target.to_string(), shown, "{text}");
            assert_eq!(target.host_header, host, "{text}");
            assert_eq!(target.path.to_string(), path, "{text}");
        }
    }

    #[test]
    fn invalid_url_is_rejected_with_a_remedy() {
        for (text, remedy) in [
            ("https://localhost:8443/", "https is not supported"),
            (
                "http://me:pw@localhost/",
                "user and password are not supported",
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
            let error = HttpTarget::parse(text, Some(8080)).unwrap_err();
            assert!(error.contains(remedy), "{text}: {error}");
        }
        assert!(HttpTarget::parse("/a b", Some(1)).is_err());
        assert!(
            HttpTarget::parse("/", None)
                .unwrap_err()
                .contains("--test-port")
        );
    }

    #[test]
    fn notification_target_is_a_url_or_a_socket_file() {
        for text in ["http://127.0.0.1:9101/drain", "unix:/run/authproxy.sock"] {
            assert_eq!(
                HttpTarget::parse_notification(text).unwrap().to_string(),
                text
            );
        }
        for text in ["unix:", "https://h/"] {
            assert!(HttpTarget::parse_notification(text).is_err(), "{text}");
        }
        for text in ["/run/x.sock", "127.0.0.1:9101", ""] {
            let error = HttpTarget::parse_notification(text).unwrap_err();
            assert!(
                error.ends_with("write http://127.0.0.1:PORT/PATH, or unix:PATH"),
                "{error}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_target_or_an_error(text in ".{0,40}", start in "(/|http://|http://\\[|)") {
            let _ = HttpTarget::parse(&format!("{start}{text}"), Some(1));
        }
    }
}
