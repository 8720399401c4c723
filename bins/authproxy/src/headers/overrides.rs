//! Headers that override the host or the method of a request.
//!
//! Frameworks trust them, so rules about hosts and methods must check them, too.

use hyper::header::{FORWARDED, HeaderMap};

use super::identity;
use crate::request_error::RequestError;

/// Headers with the original host, beside `Forwarded`.
const HOST_HEADERS: &[&str] = &[
    "x-forwarded-host",
    "x-original-host",
    "x-host",
    "x-http-host-override",
];

/// The hosts in headers of a trusted peer. An unreadable one is `?`, which no key allows. An empty member of a list is
/// returned, because servers differ; a header that is empty as a whole is not.
pub(crate) fn host_overrides(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let has_value = |name: &&&str| {
        let mut values = headers.get_all(**name).iter();
        values.next().is_some_and(|value| !value.is_empty()) || values.next().is_some()
    };
    let lists = HOST_HEADERS
        .iter()
        .filter(has_value)
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

/// The host in a part of `Forwarded` (RFC 7239 section 4). A quoted text with a separator is in two parts, and neither
/// is a valid host.
fn forwarded_host(part: &str) -> Option<&str> {
    let (name, value) = part.split_once('=')?;
    let value = value.trim();
    let host = match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or("?"),
        None => value,
    };
    name.trim().eq_ignore_ascii_case("host").then_some(host)
}

/// The methods in headers that override that of the request line in some frameworks.
///
/// # Errors
/// A value is not a method, or it is a list, of which frameworks use the first or the last.
pub(crate) fn method_overrides(
    headers: &HeaderMap,
) -> impl Iterator<Item = Result<&str, RequestError>> {
    let is_method_byte = |byte: u8| byte.is_ascii_alphabetic() || b"-_".contains(&byte);
    headers
        .iter()
        .filter(|(name, _)| identity::is_method_override_header(name.as_str()))
        .map(move |(_, value)| match value.to_str() {
            Ok(method) if !method.is_empty() && method.bytes().all(is_method_byte) => Ok(method),
            _ => Err(RequestError::InvalidRequest(
                "invalid method in a header that overrides the method",
            )),
        })
}
