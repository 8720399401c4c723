//! What headers say of a request in place of its own line and Host: which host it is about, and which method it is.
//!
//! Frameworks believe them, so a rule that asks only the Host header or the request line could be undone by them.

use hyper::header::{FORWARDED, HeaderMap};

use super::identity;
use crate::request_error::RequestError;

/// Headers that name the host that a client asked a proxy for, beside `Forwarded`.
const HOSTS: &[&str] = &[
    "x-forwarded-host",
    "x-original-host",
    "x-host",
    "x-http-host-override",
];

/// The hosts that headers of a trusted peer name. What cannot be read is `?`, which no key is for. So is an empty member of a
/// list, which servers take for no host at all; an empty header alone says nothing.
pub(crate) fn host_overrides(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let says_something = |name: &&&str| {
        let mut values = headers.get_all(**name).iter();
        values.next().is_some_and(|value| !value.is_empty()) || values.next().is_some()
    };
    let lists = HOSTS
        .iter()
        .filter(says_something)
        .flat_map(|name| headers.get_all(*name))
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .map(str::trim);
    let forwarded = headers
        .get_all(FORWARDED)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("host=?").split([',', ';']))
        .filter_map(forwarded_host);
    lists.chain(forwarded)
}

/// The host in a piece of `Forwarded` (RFC 7239 section 4). A quoted text with a separator in it is in two pieces, of
/// which neither is a host.
fn forwarded_host(piece: &str) -> Option<&str> {
    let (name, value) = piece.split_once('=')?;
    let value = value.trim();
    let host = match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or("?"),
        None => value,
    };
    name.trim().eq_ignore_ascii_case("host").then_some(host)
}

/// The methods that headers name for frameworks that let them replace the one of the request line.
///
/// # Errors
/// One of them names no method, or a list, of which frameworks take the first or the last.
pub(crate) fn method_overrides(
    headers: &HeaderMap,
) -> impl Iterator<Item = Result<&str, RequestError>> {
    let fits = |byte: u8| byte.is_ascii_alphabetic() || b"-_".contains(&byte);
    headers
        .iter()
        .filter(|(name, _)| identity::is_method_override_header(name.as_str()))
        .map(move |(_, value)| match value.to_str() {
            Ok(method) if !method.is_empty() && method.bytes().all(fits) => Ok(method),
            _ => Err(RequestError::InvalidRequest(
                "a header that replaces the method does not name one",
            )),
        })
}
