//! Classes of headers: hop-by-hop, client identity, method override.
//!
//! CGI, WSGI and Rack turn header names into variables, with `_` for every character other than letters and digits: to
//! such a server `X_Auth.Id` is `X-Auth-Id`. So every spelling that maps to the same variable counts as the same
//! header.

use hyper::header::{FORWARDED as STANDARD_FORWARDED, HeaderName};

pub(super) const FORWARDED: HeaderName = STANDARD_FORWARDED;
pub(super) const X_AUTH_ID: HeaderName = HeaderName::from_static("x-auth-id");
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whether a header, in lower case and any spelling, identifies the client or its original request.
pub(crate) fn is_identity_header(name: &str) -> bool {
    is_set_by_us(name) || is_set_by_proxies(name)
}

/// Headers that only authproxy sets. `X-Original-Url` and `X-Rewrite-Url` make some frameworks serve another path than
/// the one that was authorized.
fn is_set_by_us(name: &str) -> bool {
    resembles_prefix(name, "x-auth-")
        || resembles(name, "x-auth")
        || resembles(name, "x-original-url")
        || resembles(name, "x-rewrite-url")
}

/// Headers that trusted proxies may set.
fn is_set_by_proxies(name: &str) -> bool {
    resembles_prefix(name, "x-forwarded-")
        || resembles(name, "x-forwarded")
        || resembles(name, "forwarded")
        || resembles(name, "x-real-ip")
        || resembles(name, "x-request-id")
        || resembles(name, "x-host")
        || resembles(name, "x-original-host")
        || resembles(name, "x-http-host-override")
}

/// Whether a header, in lower case, overrides the method of the request line in some frameworks.
pub(crate) fn is_method_override_header(name: &str) -> bool {
    resembles(name, "x-http-method-override")
        || resembles(name, "x-http-method")
        || resembles(name, "x-method-override")
}

/// Whether a header, in lower case, is removed from requests. Those of a trusted peer stay if they have the exact
/// spelling.
pub(super) fn is_removed_from_request(name: &str, trusted: bool) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => {
            is_set_by_us(name) || (is_set_by_proxies(name) && !(trusted && is_exact(name)))
        }
        Some(b'f') => is_set_by_proxies(name) && !(trusted && is_exact(name)),
        Some(b'c') => name == "connection",
        Some(b'e') => name == "expect",
        Some(b'h') => name == "http2-settings",
        Some(b'k') => name == "keep-alive",
        // CGI turns `Proxy` into HTTP_PROXY, which programs use as the address of a proxy.
        Some(b'p') => resembles(name, "proxy") || resembles_prefix(name, "proxy-"),
        Some(b't') => name == "te",
        Some(b'u') => name == "upgrade",
        _ => false,
    }
}

/// Whether a header, in lower case, is removed from responses: hop-by-hop headers, and those that only authproxy sets.
pub(super) fn is_removed_from_response(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'c') => name == "connection",
        Some(b'k') => name == "keep-alive",
        Some(b'p') => name == "proxy-connection",
        Some(b't') => matches!(name, "te" | "transfer-encoding"),
        Some(b'u') => name == "upgrade",
        Some(b'x') => matches!(name, "x-auth-fail-open" | "x-auth-stale"),
        _ => false,
    }
}

/// Whether a name has no special characters but hyphens.
pub(super) fn is_exact(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

pub(super) fn resembles(name: &str, other: &str) -> bool {
    name.len() == other.len() && resembles_prefix(name, other)
}

/// Whether a name begins with `prefix`, when every special character counts as a hyphen.
pub(super) fn resembles_prefix(name: &str, prefix: &str) -> bool {
    let same =
        |(byte, other): (u8, u8)| byte == other || (other == b'-' && !byte.is_ascii_alphanumeric());
    name.len() >= prefix.len() && name.bytes().zip(prefix.bytes()).all(same)
}
