//! Rewrites the headers of requests and responses.
//!
//! Owns hop-by-hop headers (RFC 9110 section 7.6.1), headers that identify the client, and request ids.

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

pub(crate) use identity::{is_identity_header, is_method_override_header};
pub(crate) use request_id::request_id;

use identity::{FORWARDED, X_AUTH_ID, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};

/// The id of a request, in both directions.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `1` on responses to requests that passed because of `--fail-open`.
const X_AUTH_FAIL_OPEN: HeaderName = HeaderName::from_static("x-auth-fail-open");
/// `1` on responses to requests that passed with a stale grant.
const X_AUTH_STALE: HeaderName = HeaderName::from_static("x-auth-stale");
/// The most headers that are added to a request.
const MAX_ADDED: usize = 5;
const ONE: HeaderValue = HeaderValue::from_static("1");

/// The address of a connection's peer. Created once per connection.
#[derive(Debug, Clone)]
pub(crate) struct PeerAddress {
    /// IPv4-mapped IPv6 addresses are IPv4 here.
    pub(crate) ip: IpAddr,
    /// Whether headers of this peer identify the client.
    pub(crate) trusted: bool,
    /// For `X-Forwarded-For`.
    header_value: HeaderValue,
}

impl PeerAddress {
    pub(crate) fn new(peer: SocketAddr, site: &SiteSettings) -> Self {
        let peer = peer.ip().to_canonical();
        Self {
            ip: peer,
            trusted: site.trusts(peer),
            // Never fails: an address is visible ASCII.
            header_value: HeaderValue::try_from(peer.to_string())
                .unwrap_or(HeaderValue::from_static("unknown")),
        }
    }
}

/// Prepares an allowed request for upstream: removes hop-by-hop headers, identity headers of untrusted peers and, with
/// `--hide-credentials`, the key; adds our identity headers. `id` is that of [`request_id`].
///
/// `Transfer-Encoding`, `Content-Length`, `Trailer` and `Host` stay: request validation has made them unambiguous.
pub(crate) fn rewrite_request(
    parts: &mut request::Parts,
    allowed: &AllowDecision,
    peer: &PeerAddress,
    id: &HeaderValue,
    site: &SiteSettings,
) {
    let headers = &mut parts.headers;
    // Once: the map rehashes its names whenever it grows.
    headers.reserve(MAX_ADDED);
    // Usually empty: then nothing is allocated, and no header is looked up.
    let removed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            // A proxy in front replaces a header that it sets, but not other spellings of it.
            identity::is_removed_from_request(name, peer.trusted)
                || (!identity::is_exact(name) && is_protected_misspelling(name, site))
        })
        .cloned()
        .collect();
    if !removed.is_empty() {
        let upgrades = is_websocket(headers);
        let trailers = wants_trailers(headers);
        remove_connection_options(headers);
        for name in &removed {
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
    add_forwarded(headers, peer);
    headers.insert(X_REQUEST_ID, id.clone());
    if let Some(grant) = &allowed.grant
        && let Ok(value) = HeaderValue::from_str(&grant.id)
    {
        headers.insert(X_AUTH_ID, value);
    }
    if site.credentials.hide {
        hide_key(parts, &site.credentials);
    }
}

/// The client's address: the last one in `X-Forwarded-For` and the peer that is not a trusted proxy's. What precedes it
/// is the client's own claim. If all are trusted, the first one.
pub(crate) fn client_address(
    headers: &HeaderMap,
    peer: &PeerAddress,
    site: &SiteSettings,
) -> IpAddr {
    if !peer.trusted {
        return peer.ip;
    }
    let mut found = peer.ip;
    // A proxy appends its peer to the last line, or adds a line.
    for line in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for node in line.as_bytes().rsplit(|byte| *byte == b',') {
            if let Some(address) = parse_address(node.trim_ascii()) {
                found = address;
                if !site.trusts(address) {
                    return found;
                }
            }
        }
    }
    found
}

/// An address with or without a port.
fn parse_address(node: &[u8]) -> Option<IpAddr> {
    let node = std::str::from_utf8(node).ok()?;
    let in_brackets = |node: &str| node.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address: IpAddr = node
        .parse()
        .ok()
        .or_else(|| in_brackets(node))
        .or_else(|| node.parse().ok().map(|socket: SocketAddr| socket.ip()))?;
    Some(address.to_canonical())
}

/// Removes trailers, in both directions, that concern framing, the hop or the client's identity, or that override the
/// method, which was authorized before.
pub(crate) fn filter_trailers(trailers: &mut HeaderMap) {
    let is_framing = |name: &HeaderName| {
        [
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::HOST,
            header::TRAILER,
            header::AUTHORIZATION,
        ]
        .contains(name)
    };
    let removed: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            let name_str = name.as_str();
            identity::is_removed_from_request(name_str, false)
                || identity::is_method_override_header(name_str)
                || is_framing(name)
        })
        .cloned()
        .collect();
    for name in &removed {
        trailers.remove(name);
    }
}

/// Prepares a response for the client: removes hop-by-hop headers, adds the request's id and the headers about stale
/// grants and fail-open.
pub(crate) fn rewrite_response(
    head: &mut response::Parts,
    id: &HeaderValue,
    allow_reason: AllowReason,
) {
    let headers = &mut head.headers;
    let upgrades = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let is_removed = |name: &&HeaderName| {
        identity::is_removed_from_response(name.as_str())
            && !(upgrades && **name == header::UPGRADE)
    };
    // Usually there is one: scanning all names is faster than looking up each of ours, or than collecting a list.
    while let Some(name) = headers.keys().find(is_removed).cloned() {
        if name == header::CONNECTION {
            remove_connection_options(headers);
        }
        headers.remove(name);
    }
    if upgrades {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    headers.insert(X_REQUEST_ID, id.clone());
    match allow_reason {
        AllowReason::FailOpen => headers.insert(X_AUTH_FAIL_OPEN, ONE),
        AllowReason::StaleGrant => headers.insert(X_AUTH_STALE, ONE),
        AllowReason::ValidKey
        | AllowReason::OpenPath
        | AllowReason::ForwardedPreflight
        | AllowReason::AnsweredPreflight => None,
    };
}

/// Whether a message upgrades to WebSocket only: the one upgrade that is passed on.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let (Some(protocol), None) = (protocols.next(), protocols.next()) else {
        return false;
    };
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
        && tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Whether a response is a stream of server-sent events (HTML Standard, section 9.2).
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let media_type = value.as_bytes().split(|byte| *byte == b';').next();
        media_type.is_some_and(|of| of.trim_ascii().eq_ignore_ascii_case(b"text/event-stream"))
    })
}

/// Refuses a request whose `Connection` names a header that a proxy in front may have set: it stays here, but the next
/// proxy would remove it.
pub(crate) fn check_connection(
    headers: &HeaderMap,
    site: &SiteSettings,
) -> Result<(), RequestError> {
    if has_only_usual_options(headers) {
        return Ok(());
    }
    let is_set_by_proxies = |option: &str| {
        let option = option.to_ascii_lowercase();
        is_identity_header(&option) || is_protected(&option, site)
    };
    if tokens(headers, &header::CONNECTION).any(is_set_by_proxies) {
        return Err(RequestError::InvalidRequest(
            "Connection names a header that proxies set",
        ));
    }
    Ok(())
}

/// Whether a header, in lower case, is one that proxies in front set, in any spelling.
fn is_protected(name: &str, site: &SiteSettings) -> bool {
    let matches = |protected: &String| match protected.strip_suffix('*') {
        Some(start) => identity::resembles_prefix(name, start),
        None => identity::resembles(name, protected),
    };
    site.protected.iter().any(matches)
}

/// Whether a header, in lower case, is another spelling of one that proxies in front set.
fn is_protected_misspelling(name: &str, site: &SiteSettings) -> bool {
    let is_exact = |protected: &String| match protected.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == protected,
    };
    is_protected(name, site) && !site.protected.iter().any(is_exact)
}

/// Removes the headers that `Connection` names, except end-to-end headers: a client must not be able to remove framing,
/// or what proxies in front have added.
fn remove_connection_options(headers: &mut HeaderMap) {
    if has_only_usual_options(headers) {
        return;
    }
    let is_kept = |name: &HeaderName| {
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
        .filter(|name| !is_kept(name))
        .collect();
    for name in &named {
        headers.remove(name);
    }
}

/// Whether `Connection` has only `keep-alive` and `close`, as it usually does.
fn has_only_usual_options(headers: &HeaderMap) -> bool {
    let is_usual = |value: &HeaderValue| {
        let value = value.as_bytes();
        value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
    };
    headers.get_all(header::CONNECTION).iter().all(is_usual)
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

/// Adds the forwarding headers.
fn add_forwarded(headers: &mut HeaderMap, peer: &PeerAddress) {
    let host = headers.get(header::HOST).cloned();
    let chain = peer.trusted.then(|| extend_chain(headers, peer)).flatten();
    headers.insert(
        X_FORWARDED_FOR,
        chain.unwrap_or_else(|| peer.header_value.clone()),
    );
    // An existing header is that of a trusted peer.
    let is_new = |headers: &HeaderMap, name| !peer.trusted || !headers.contains_key(name);
    if is_new(headers, X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if let Some(host) = host
        && is_new(headers, X_FORWARDED_HOST)
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

/// Appends the peer to `Forwarded`, if that is present, and to the chain of a trusted peer; returns the value of
/// `X-Forwarded-For`.
fn extend_chain(headers: &mut HeaderMap, peer: &PeerAddress) -> Option<HeaderValue> {
    if let Entry::Occupied(mut chain) = headers.entry(FORWARDED) {
        let node = match peer.ip {
            IpAddr::V4(ip) => format!("for={ip}"),
            IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
        };
        // RFC 7239 section 4: a new value and a comma are equivalent.
        if let Ok(node) = HeaderValue::try_from(node) {
            chain.append(node);
        }
    }
    let mut value = Vec::with_capacity(64);
    for part in headers.get_all(X_FORWARDED_FOR) {
        value.extend_from_slice(part.as_bytes());
        value.extend_from_slice(b", ");
    }
    value.extend_from_slice(peer.header_value.as_bytes());
    HeaderValue::from_maybe_shared(bytes::Bytes::from(value)).ok()
}

/// Removes the key from all places of a request.
fn hide_key(parts: &mut request::Parts, credentials: &KeySources) {
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
        // A part of a valid target is a valid target.
        parts.uri = Uri::try_from(uri).unwrap_or_default();
    }
}
