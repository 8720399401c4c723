//! Which headers go: those of the hop, and those that say who the client is.
//!
//! CGI, WSGI and Rack turn header names into variables, and what is no letter or digit into `_`: to such a server
//! `X_Auth.Id` is `X-Auth-Id`. So every spelling that could become one of ours counts as ours.

use hyper::header::{FORWARDED as STANDARD, HeaderName};

pub(super) const FORWARDED: HeaderName = STANDARD;
pub(super) const X_AUTH_ID: HeaderName = HeaderName::from_static("x-auth-id");
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whether a header, in lower case, says who the client is or what it asked for, in whatever spelling.
#[must_use]
pub fn is_identity_header(name: &str) -> bool {
    is_ours(name) || is_of_proxies(name)
}

/// What nobody but we may say. `X-Original-Url` and `X-Rewrite-Url` make some frameworks serve another path than the
/// one that was judged.
fn is_ours(name: &str) -> bool {
    begins(name, "x-auth-")
        || is(name, "x-auth")
        || is(name, "x-original-url")
        || is(name, "x-rewrite-url")
}

/// What trusted proxies may say.
fn is_of_proxies(name: &str) -> bool {
    begins(name, "x-forwarded-")
        || is(name, "x-forwarded")
        || is(name, "forwarded")
        || is(name, "x-real-ip")
        || is(name, "x-request-id")
        || is(name, "x-host")
        || is(name, "x-original-host")
        || is(name, "x-http-host-override")
}

/// Whether a header, in lower case, makes some frameworks take another method than that of the request line.
pub fn is_method_override_header(name: &str) -> bool {
    is(name, "x-http-method-override") || is(name, "x-http-method") || is(name, "x-method-override")
}

/// Whether a header, in lower case, does not go on to the server. What a trusted peer may say it has to spell right.
pub(super) fn goes(name: &str, trusted: bool) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => is_ours(name) || (is_of_proxies(name) && !(trusted && is_exact(name))),
        Some(b'f') => is_of_proxies(name) && !(trusted && is_exact(name)),
        Some(b'c') => name == "connection",
        Some(b'e') => name == "expect",
        Some(b'h') => name == "http2-settings",
        Some(b'k') => name == "keep-alive",
        // `Proxy` itself becomes HTTP_PROXY, which programs take for the address of a proxy.
        Some(b'p') => is(name, "proxy") || begins(name, "proxy-"),
        Some(b't') => name == "te",
        Some(b'u') => name == "upgrade",
        _ => false,
    }
}

/// Whether a header, in lower case, does not go on to the client: those of the hop, and what only we say, because a
/// server must not seem to be us.
pub(super) fn returns_not(name: &str) -> bool {
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

pub(super) fn is_exact(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

pub(super) fn is(name: &str, ours: &str) -> bool {
    name.len() == ours.len() && begins(name, ours)
}

/// Whether a name begins like one of ours, when all that is no letter or digit is a hyphen.
pub(super) fn begins(name: &str, ours: &str) -> bool {
    let same =
        |(byte, ours): (u8, u8)| byte == ours || (ours == b'-' && !byte.is_ascii_alphanumeric());
    name.len() >= ours.len() && name.bytes().zip(ours.bytes()).all(same)
}
