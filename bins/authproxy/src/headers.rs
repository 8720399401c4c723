//! Headers on their way: what the server sees of a request, and the client of an answer.
//!
//! Owns hop-by-hop headers (RFC 9110 section 7.6.1), who the client is said to be, and the id of a request. Framing is
//! the gate's and hyper's; keys are `credential`'s.

mod identity;
pub(crate) mod overrides;
mod request_id;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use hyper::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use hyper::http::{request, response};
use hyper::{StatusCode, Uri};

use crate::authorizer::{AllowDecision, AllowReason};
use crate::credential;
use crate::request_error::RequestError;
use crate::settings::{KeySources, SiteSettings};

pub use identity::{is_identity_header, is_method_override_header};
pub use request_id::request_id;

use identity::{FORWARDED, X_AUTH_ID, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};

/// The header that names a request, in both directions.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `1` on answers to requests that `--fail-open` let pass.
const X_AUTH_FAIL_OPEN: HeaderName = HeaderName::from_static("x-auth-fail-open");
/// `1` on answers to requests whose key was known when the permissions engine was last heard of.
const X_AUTH_STALE: HeaderName = HeaderName::from_static("x-auth-stale");
/// How many headers a request gets here.
const ADDED: usize = 5;
const ONE: HeaderValue = HeaderValue::from_static("1");

/// Who is at the other end of a connection. Made once per connection.
#[derive(Debug, Clone)]
pub struct PeerAddress {
    /// Its address; an IPv4 one even where it came over an IPv6 socket.
    pub ip: IpAddr,
    /// Whether it may say who the client is.
    pub trusted: bool,
    /// The address as `X-Forwarded-For` has it.
    header_value: HeaderValue,
}

impl PeerAddress {
    /// The peer of a connection, as the site in force sees it.
    #[must_use]
    pub fn new(peer: SocketAddr, site: &SiteSettings) -> Self {
        let peer = peer.ip().to_canonical();
        Self {
            ip: peer,
            trusted: site.trusts(peer),
            // An address is visible ASCII.
            header_value: HeaderValue::try_from(peer.to_string())
                .unwrap_or(HeaderValue::from_static("unknown")),
        }
    }
}

/// What the server gets of a request that may go on: nothing of the hop, nobody's word on who the client is but ours
/// and that of trusted peers, and no key with `--hide-credentials`. `id` is that of [`request_id`].
///
/// `Transfer-Encoding`, `Content-Length`, `Trailer` and `Host` stay: the gate has seen to it that they say one thing.
pub fn to_server(
    parts: &mut request::Parts,
    pass: &AllowDecision,
    client: &PeerAddress,
    id: &HeaderValue,
    site: &SiteSettings,
) {
    let headers = &mut parts.headers;
    // At once: each time it grows, the map hashes its names anew.
    headers.reserve(ADDED);
    // Mostly there is none: nothing is allocated, and nothing more looked for.
    let gone: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            // A proxy in front replaces the one that it sets, and not another spelling of it.
            identity::goes(name, client.trusted)
                || (!identity::is_exact(name) && is_misspelled(name, site))
        })
        .cloned()
        .collect();
    if !gone.is_empty() {
        let upgrades = is_websocket(headers);
        let trailers = wants_trailers(headers);
        remove_named(headers);
        for name in &gone {
            headers.remove(name);
        }
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if upgrades {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
    }
    forwarded(headers, client);
    headers.insert(X_REQUEST_ID, id.clone());
    if let Some(grant) = &pass.grant
        && let Ok(value) = HeaderValue::from_str(&grant.id)
    {
        headers.insert(X_AUTH_ID, value);
    }
    if site.credentials.hide {
        hide(parts, &site.credentials);
    }
}

/// The address that a request came from: of those that trusted proxies name, and the peer, the last that is not one of
/// a trusted proxy. What stands before it is what a client says of itself. If all are trusted, the first one.
pub(crate) fn client_address(
    headers: &HeaderMap,
    client: &PeerAddress,
    site: &SiteSettings,
) -> IpAddr {
    if !client.trusted {
        return client.ip;
    }
    let mut found = client.ip;
    // A proxy adds its peer to the last line, or in a line of its own.
    for line in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for node in line.as_bytes().rsplit(|byte| *byte == b',') {
            if let Some(address) = address(node.trim_ascii()) {
                found = address;
                if !site.trusts(address) {
                    return found;
                }
            }
        }
    }
    found
}

/// An address, with or without a port.
fn address(node: &[u8]) -> Option<IpAddr> {
    let node = std::str::from_utf8(node).ok()?;
    let in_brackets = |node: &str| node.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address: IpAddr = node
        .parse()
        .ok()
        .or_else(|| in_brackets(node))
        .or_else(|| node.parse().ok().map(|socket: SocketAddr| socket.ip()))?;
    Some(address.to_canonical())
}

/// What of the trailers of a body goes on, either way: no framing, nothing of the hop, nobody's word on who the client is,
/// and nothing that replaces the method, which is judged before trailers come.
pub fn trailers(trailers: &mut HeaderMap) {
    let framing = |name: &HeaderName| {
        [
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::HOST,
            header::TRAILER,
            header::AUTHORIZATION,
        ]
        .contains(name)
    };
    let gone: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            let is_judged = identity::is_method_override_header(name.as_str());
            identity::goes(name.as_str(), false) || is_judged || framing(name)
        })
        .cloned()
        .collect();
    for name in &gone {
        trailers.remove(name);
    }
}

/// What the client gets of an answer: nothing of the hop, the request's id, and how certain its key was.
pub fn to_client(head: &mut response::Parts, id: &HeaderValue, mark: AllowReason) {
    let headers = &mut head.headers;
    let upgrades = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let goes = |name: &&HeaderName| {
        identity::returns_not(name.as_str()) && !(upgrades && **name == header::UPGRADE)
    };
    // Mostly there is one. A look at all names takes less time than asking for each of ours, or a list of those found.
    while let Some(name) = headers.keys().find(goes).cloned() {
        if name == header::CONNECTION {
            remove_named(headers);
        }
        headers.remove(name);
    }
    if upgrades {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    headers.insert(X_REQUEST_ID, id.clone());
    match mark {
        AllowReason::FailOpen => headers.insert(X_AUTH_FAIL_OPEN, ONE),
        AllowReason::StaleGrant => headers.insert(X_AUTH_STALE, ONE),
        AllowReason::ValidKey
        | AllowReason::OpenPath
        | AllowReason::ForwardedPreflight
        | AllowReason::AnsweredPreflight => None,
    };
}

/// Whether a request asks for a WebSocket, and for nothing else: the one upgrade that is passed on.
#[must_use]
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let mut asked = headers.get_all(header::UPGRADE).iter();
    let (Some(protocol), None) = (asked.next(), asked.next()) else {
        return false;
    };
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
        && tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Whether a response is a stream of server-sent events (HTML Standard, section 9.2).
#[must_use]
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let media_type = value.as_bytes().split(|byte| *byte == b';').next();
        media_type.is_some_and(|of| of.trim_ascii().eq_ignore_ascii_case(b"text/event-stream"))
    })
}

/// Refuses a request whose `Connection` names a header that a proxy in front may have set: here it would stay, and a
/// server behind the next proxy would not see it.
///
/// # Errors
/// It names one.
pub fn check_connection(headers: &HeaderMap, site: &SiteSettings) -> Result<(), RequestError> {
    if names_nothing(headers) {
        return Ok(());
    }
    let is_named = |option: &str| {
        let option = option.to_ascii_lowercase();
        is_identity_header(&option) || is_protected(&option, site)
    };
    if tokens(headers, &header::CONNECTION).any(is_named) {
        return Err(RequestError::InvalidRequest(
            "Connection names a header that proxies set",
        ));
    }
    Ok(())
}

/// Whether a header, in lower case, is one that proxies in front set, in whatever spelling.
fn is_protected(name: &str, site: &SiteSettings) -> bool {
    let is = |protected: &String| match protected.strip_suffix('*') {
        Some(start) => identity::begins(name, start),
        None => identity::is(name, protected),
    };
    site.protected.iter().any(is)
}

/// Whether a header, in lower case, is one that proxies in front set, and in another spelling than theirs.
fn is_misspelled(name: &str, site: &SiteSettings) -> bool {
    let is_exact = |protected: &String| match protected.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == protected,
    };
    is_protected(name, site) && !site.protected.iter().any(is_exact)
}

/// Removes what `Connection` names. What is not of a hop stays, whatever a client says: it must not be able to take
/// away what proxies in front of this one have added, nor where a body ends.
fn remove_named(headers: &mut HeaderMap) {
    if names_nothing(headers) {
        return;
    }
    let kept = |name: &HeaderName| {
        [
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::TE,
            header::UPGRADE,
            header::HOST,
            header::AUTHORIZATION,
            header::COOKIE,
        ]
        .contains(name)
            || is_identity_header(name.as_str())
    };
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|token| token.parse().ok())
        .filter(|name| !kept(name))
        .collect();
    for name in &named {
        headers.remove(name);
    }
}

/// Whether `Connection` names nothing but what goes anyway, as it mostly does.
fn names_nothing(headers: &HeaderMap) -> bool {
    let usual = |value: &HeaderValue| {
        let value = value.as_bytes();
        value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
    };
    headers.get_all(header::CONNECTION).iter().all(usual)
}

/// The members of a list header (RFC 9110 section 5.6.1).
fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &header::TE).any(|token| {
        let name = token.split(';').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case("trailers")
    })
}

/// Says where the request came from.
fn forwarded(headers: &mut HeaderMap, client: &PeerAddress) {
    let host = headers.get(header::HOST).cloned();
    let chain = client.trusted.then(|| longer(headers, client)).flatten();
    headers.insert(
        X_FORWARDED_FOR,
        chain.unwrap_or_else(|| client.header_value.clone()),
    );
    // What is there is that of a trusted peer.
    let is_new = |headers: &HeaderMap, name| !client.trusted || !headers.contains_key(name);
    if is_new(headers, X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if let Some(host) = host
        && is_new(headers, X_FORWARDED_HOST)
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

/// What a trusted peer says of where the request came from, and the peer: as `Forwarded`, if that is there, and as the
/// value of `X-Forwarded-For`.
fn longer(headers: &mut HeaderMap, client: &PeerAddress) -> Option<HeaderValue> {
    if let Entry::Occupied(mut chain) = headers.entry(FORWARDED) {
        let node = match client.ip {
            IpAddr::V4(ip) => format!("for={ip}"),
            IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
        };
        // RFC 7239 section 4: one more element, in a value of its own or behind a comma, is the same.
        if let Ok(node) = HeaderValue::try_from(node) {
            chain.append(node);
        }
    }
    let mut value = Vec::with_capacity(64);
    for part in headers.get_all(X_FORWARDED_FOR) {
        value.extend_from_slice(part.as_bytes());
        value.extend_from_slice(b", ");
    }
    value.extend_from_slice(client.header_value.as_bytes());
    HeaderValue::from_maybe_shared(bytes::Bytes::from(value)).ok()
}

/// Takes the key out of a request, wherever one can be.
fn hide(parts: &mut request::Parts, credentials: &KeySources) {
    parts.headers.remove(&credentials.header);
    let authorizations = parts.headers.get_all(header::AUTHORIZATION);
    if authorizations
        .iter()
        .any(|value| credential::parse_authorization(value).is_some())
    {
        parts.headers.remove(header::AUTHORIZATION);
    }
    let Some(query) = parts.uri.query() else {
        return;
    };
    let left = credential::remove_parameter(query, &credentials.parameter);
    if let Cow::Owned(left) = left {
        let path = parts.uri.path();
        let uri = match left.as_str() {
            "" => path.to_owned(),
            left => format!("{path}?{left}"),
        };
        // A part of what was a target is one.
        parts.uri = Uri::try_from(uri).unwrap_or_default();
    }
}
