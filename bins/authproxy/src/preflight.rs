//! CORS preflights: which requests are preflights, and what of them is passed on.
//!
//! A preflight has no key, and most servers that do not expect one serve it like a GET. So a preflight that passes
//! without a key is reduced to headers that cannot turn it into another request.

use hyper::header::{
    self, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CONTENT_LENGTH, EXPECT,
    HeaderMap, HeaderName, ORIGIN, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::{Method, Uri};

use crate::headers;

/// The method in `Access-Control-Request-Method`, if this is a well-formed preflight (Fetch standard, "CORS-preflight
/// fetch").
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

/// Keeps the headers that browsers send with preflights and those of trusted proxies. Removes the query, where a key
/// or, for some frameworks, a method override can be.
pub(crate) fn strip_request(parts: &mut Parts) {
    let removed: Vec<HeaderName> = parts
        .headers
        .keys()
        .filter(|name| !is_kept(name))
        .cloned()
        .collect();
    for name in &removed {
        parts.headers.remove(name);
    }
    if parts.uri.query().is_some() {
        // The path of a valid target is a valid target.
        parts.uri = Uri::try_from(parts.uri.path()).unwrap_or_default();
    }
}

fn is_kept(name: &HeaderName) -> bool {
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

/// The value of a header that occurs once.
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
