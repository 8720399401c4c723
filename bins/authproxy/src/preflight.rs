//! CORS preflights: which requests are one, and what of one the server gets.
//!
//! A preflight carries no key, and most servers that do not expect one serve it as any other request, since they do not
//! look at the method. So one that passes without a key has nothing that could make it more than a question. What
//! becomes of it is `door`'s, the answer to it `answer`'s.

use hyper::header::{
    self, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CONTENT_LENGTH, EXPECT,
    HeaderMap, HeaderName, ORIGIN, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::{Method, Uri};

use crate::headers;

/// The method that a browser asks about, if this is a well-formed preflight (Fetch standard, "CORS-preflight fetch").
pub(crate) fn requested_method(parts: &Parts) -> Option<&str> {
    let headers = &parts.headers;
    if parts.method != Method::OPTIONS || !parts.uri.path().starts_with('/') {
        return None;
    }
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers
            .get(CONTENT_LENGTH)
            .is_some_and(|length| length != "0");
    if has_body || headers.contains_key(UPGRADE) || headers.contains_key(EXPECT) {
        return None;
    }
    let method = single(headers, &ACCESS_CONTROL_REQUEST_METHOD)?;
    if headers.contains_key(ACCESS_CONTROL_REQUEST_HEADERS) {
        let names = single(headers, &ACCESS_CONTROL_REQUEST_HEADERS)?;
        if !names.split(',').map(str::trim).all(is_token) {
            return None;
        }
    }
    (is_origin(single(headers, &ORIGIN)?) && is_token(method)).then_some(method)
}

/// Leaves of a preflight what a browser says in one and what trusted proxies add; not the query, where a key can be, and
/// with some frameworks another method.
pub(crate) fn strip(parts: &mut Parts) {
    let gone: Vec<HeaderName> = parts
        .headers
        .keys()
        .filter(|name| !stays(name))
        .cloned()
        .collect();
    for name in &gone {
        parts.headers.remove(name);
    }
    if parts.uri.query().is_some() {
        // The path of what was a target is one.
        parts.uri = Uri::try_from(parts.uri.path()).unwrap_or_default();
    }
}

fn stays(name: &HeaderName) -> bool {
    [
        header::ACCEPT,
        header::ACCEPT_ENCODING,
        header::ACCEPT_LANGUAGE,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::HOST,
        header::ORIGIN,
        header::PRAGMA,
        header::REFERER,
        header::USER_AGENT,
        header::VIA,
    ]
    .contains(name)
        || ["access-control-request-", "sec-fetch-"]
            .iter()
            .any(|start| name.as_str().starts_with(start))
        || matches!(name.as_str(), "traceparent" | "tracestate")
        || headers::is_identity_header(name.as_str())
}

/// The value of a header that stands there once.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(fits)
}

/// `null`, or a scheme and an authority (RFC 6454 section 7.1).
pub(crate) fn is_origin(text: &str) -> bool {
    let authority = |text: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%:[]!$&'()*+=".contains(&byte);
        !text.is_empty() && text.bytes().all(fits)
    };
    text == "null"
        || text
            .split_once("://")
            .is_some_and(|(scheme, rest)| is_token(scheme) && authority(rest))
}
