//! Queries and headers that may contain keys, and replies of memcached.

use authproxy::testing::{
    ExpectedReply, KeyHash, KeySources, MAX_VALUE_BYTES, MemcachedReply, RequestError, extract_key,
    find_parameter, mask_query, parse_authorization, parse_reply, remove_parameter,
};
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Uri};

const PARAMETER: &str = "apikey";
const HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// A request: its query in the first line, then lines of `Authorization`, which begin with `a`, and of keys.
fn request(bytes: &[u8]) -> Option<Parts> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let target = [b"/?", lines.next()?].concat();
    let mut parts = Request::new(()).into_parts().0;
    parts.uri = Uri::try_from(target).ok()?;
    for line in lines {
        let (kind, value) = line.split_first()?;
        let name = if *kind == b'a' { AUTHORIZATION } else { HEADER };
        parts
            .headers
            .append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(parts)
}

/// A request with keys anywhere: none is found after all are removed, and no spelling of a query hides one.
pub(super) fn run(bytes: &[u8]) {
    let Some(mut parts) = request(bytes) else {
        return;
    };
    let credentials = KeySources {
        header: HEADER,
        parameter: PARAMETER.to_owned(),
        hide: true,
    };
    let key = extract_key(&parts, &credentials);
    assert!(matches!(key, Ok(_) | Err(RequestError::AmbiguousKey)));

    let query = parts.uri.query().unwrap_or_default().to_owned();
    let in_query = find_parameter(&query, PARAMETER);
    let shown = mask_query(&query, &credentials);
    if let Ok(Some(found)) = &in_query
        && !found.value.is_empty()
    {
        let shown = find_parameter(&shown, PARAMETER).unwrap().unwrap();
        assert_eq!(&*shown.value, b"***");
        if let Ok(Some(key)) = key {
            assert_eq!(key, KeyHash::of(&found.value), "{query}");
        }
    }
    assert_eq!(mask_query(&shown, &credentials), shown);
    let left = remove_parameter(&query, PARAMETER);
    assert_eq!(find_parameter(&left, PARAMETER), Ok(None), "{query}");
    parts.uri = Uri::try_from(format!("/?{left}")).unwrap();
    parts.headers.remove(HEADER);
    let is_for_server = |value: &&HeaderValue| parse_authorization(value).is_none();
    let authorizations = parts.headers.get_all(AUTHORIZATION);
    if authorizations.iter().all(|value| is_for_server(&value)) {
        assert_eq!(extract_key(&parts, &credentials), Ok(None));
    }
}

/// A reply of memcached. The first byte selects the command.
pub(super) fn memcached(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let asked = match kind {
        b'g' => ExpectedReply::Get("p:1:ab"),
        _ => ExpectedReply::Change,
    };
    let reply = parse_reply(asked, bytes);
    match &reply {
        MemcachedReply::Value { at, end } => {
            assert_ne!(asked, ExpectedReply::Change);
            assert!(at.len() <= MAX_VALUE_BYTES && at.end < *end && *end <= bytes.len());
            assert!(bytes.starts_with(b"VALUE p:1:ab ") && bytes[..*end].ends_with(b"\r\nEND\r\n"));
        }
        MemcachedReply::Done { end } => assert!(bytes[..*end].ends_with(b"\r\n")),
        // Not unbounded.
        MemcachedReply::Incomplete => assert!(bytes.len() <= MAX_VALUE_BYTES + 1024),
        MemcachedReply::Invalid => {}
    }
    // The reply does not depend on how the bytes arrive.
    for cut in 0..bytes.len().min(100) {
        let early = parse_reply(asked, &bytes[..cut]);
        assert!(
            early == MemcachedReply::Incomplete || early == reply,
            "{cut} bytes: {early:?}"
        );
    }
}
