//! The key of a request: extracts it from headers and queries, removes it, and masks it in logs.
//!
//! Only the hash of a key leaves this module.
//!
//! * Keys are bytes: the registered and the sent key must be equal, whatever the encoding. `--max-head` limits their length.
//! * In a query, `&` and `;` both separate, because servers differ over `;`. Names and values are percent-decoded once, and
//!   `+` is a space. A percent sign without two hex digits stands for itself.
//! * An empty value holds no key, but makes a second value of the same parameter or header ambiguous.

use std::borrow::Cow;

use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::http::request::Parts;

use crate::grant::KeyHash;
use crate::percent::{decode_form, leading_escape};
use crate::request_error::RequestError;
use crate::settings::KeySources;

/// The hash of the key of a request, if it has one. The same key may be in several places.
///
/// # Errors
/// [`RequestError::AmbiguousKey`]: two places hold different keys, or a header or parameter is repeated.
pub fn extract_key(
    parts: &Parts,
    credentials: &KeySources,
) -> Result<Option<KeyHash>, RequestError> {
    let mut headers = parts.headers.get_all(&credentials.header).iter();
    let header = headers.next().map(|value| Cow::Borrowed(value.as_bytes()));
    if headers.next().is_some() {
        return Err(RequestError::AmbiguousKey);
    }
    let authorizations = parts.headers.get_all(AUTHORIZATION);
    let authorization = authorizations.iter().find_map(parse_authorization);
    if authorization.is_some() && authorizations.iter().nth(1).is_some() {
        return Err(RequestError::AmbiguousKey);
    }
    let query = parts.uri.query().unwrap_or_default();
    let parameter = find_parameter(query, &credentials.parameter)
        .map_err(|DuplicateParameter| RequestError::AmbiguousKey)?
        .map(|found| found.value);
    let mut keys = [header, authorization.map(Cow::Borrowed), parameter]
        .into_iter()
        .flatten()
        .filter(|key| !key.is_empty());
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    if keys.any(|other| other != key) {
        return Err(RequestError::AmbiguousKey);
    }
    Ok(Some(KeyHash::of(&key)))
}

/// The key in a value of `Authorization`. `None` for a scheme other than `Bearer` and `ApiKey`, which is for the upstream.
pub fn parse_authorization(value: &HeaderValue) -> Option<&[u8]> {
    let value = value.as_bytes();
    let space = value.iter().position(|byte| *byte == b' ');
    let (scheme, key) = value.split_at(space.unwrap_or(value.len()));
    let is_key = scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"apikey");
    is_key.then(|| key.trim_ascii())
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryParameter<'q> {
    /// Percent-decoded.
    pub value: Cow<'q, [u8]>,
    /// Whether a `;` is next to it: servers that do not split there see another value.
    pub semicolon: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DuplicateParameter;

/// # Errors
/// The parameter is repeated, with equal values or not.
pub fn find_parameter<'q>(
    query: &'q str,
    name: &str,
) -> Result<Option<QueryParameter<'q>>, DuplicateParameter> {
    let mut found = segments(query).filter(|segment| segment.is_named(name));
    let Some(segment) = found.next() else {
        return Ok(None);
    };
    if found.next().is_some() {
        return Err(DuplicateParameter);
    }
    let is_semicolon = |at: usize| query.as_bytes().get(at) == Some(&b';');
    let before = segment.start.checked_sub(1);
    Ok(Some(QueryParameter {
        value: decode_value(segment.value()),
        semicolon: before.is_some_and(is_semicolon) || is_semicolon(segment.end()),
    }))
}

/// The query without the parameters of this name and one separator each; the rest is not changed.
pub fn remove_parameter<'q>(query: &'q str, name: &str) -> Cow<'q, str> {
    if !segments(query).any(|segment| segment.is_named(name)) {
        return Cow::Borrowed(query);
    }
    let mut rest = String::with_capacity(query.len());
    let mut is_first = true;
    for segment in segments(query).filter(|segment| !segment.is_named(name)) {
        // With the separator before it.
        let start = segment.start.saturating_sub(usize::from(!is_first));
        rest.push_str(&query[start..segment.end()]);
        is_first = false;
    }
    Cow::Owned(rest)
}

/// The query with `***` for the value of every parameter whose name ends like the key parameter or header, in any case and
/// with any hyphens: a key under a misspelt name, or after a second `?`, must not be logged.
pub fn mask_query<'q>(query: &'q str, credentials: &KeySources) -> Cow<'q, str> {
    let mut masked = Cow::Borrowed(query);
    let values: Vec<(usize, usize)> = segments(query)
        .filter_map(|segment| {
            Some((
                segment.start + find_key_value(segment.text, credentials)?,
                segment.end(),
            ))
        })
        .collect();
    // From the end, so that the positions before it stay valid.
    for (start, end) in values.into_iter().rev() {
        masked.to_mut().replace_range(start..end, "***");
    }
    masked
}

/// The path with `***` after such a name in it, for example where the `?` was forgotten or encoded.
pub(crate) fn mask_path<'p>(path: &'p str, credentials: &KeySources) -> Cow<'p, str> {
    match find_key_value(path, credentials) {
        Some(value) => Cow::Owned(format!("{}***", &path[..value])),
        None => Cow::Borrowed(path),
    }
}

/// The start of a possible key: after a name that ends like the key parameter or header, and `=`, which may be
/// percent-encoded.
fn find_key_value(text: &str, credentials: &KeySources) -> Option<usize> {
    let names = [&credentials.parameter, credentials.header.as_str()];
    text.match_indices(['=', '%']).find_map(|(at, sign)| {
        let (before, rest) = text.as_bytes().split_at(at);
        let length = match (sign, rest.get(1..3)) {
            ("=", _) => 1,
            (_, Some(digits)) if digits.eq_ignore_ascii_case(b"3d") => 3,
            _ => return None,
        };
        let is_name = names.iter().any(|name| ends_with_name(before, name));
        (is_name && rest.len() > length).then_some(at + length)
    })
}

/// Whether a text, percent-decoded, ends with the letters and digits of a name.
fn ends_with_name(mut text: &[u8], name: &str) -> bool {
    let letters = name.bytes().rev().filter(u8::is_ascii_alphanumeric);
    for letter in letters {
        loop {
            let encoded = text
                .split_last_chunk::<3>()
                .and_then(|(before, last)| Some((before, leading_escape(last)?)));
            let Some((before, byte)) =
                encoded.or_else(|| text.split_last().map(|(last, before)| (before, *last)))
            else {
                return false;
            };
            text = before;
            if byte.eq_ignore_ascii_case(&letter) {
                break;
            }
            // Separators that are common between the words of a name, and after it.
            if !b"-_.+ []".contains(&byte) {
                return false;
            }
        }
    }
    true
}

/// The text between two separators of a query.
#[derive(Debug, Clone, Copy)]
struct QuerySegment<'q> {
    start: usize,
    text: &'q str,
}

impl<'q> QuerySegment<'q> {
    const fn end(self) -> usize {
        self.start + self.text.len()
    }

    fn value(self) -> &'q str {
        self.text.split_once('=').map_or("", |(_, value)| value)
    }

    fn name(self) -> impl Iterator<Item = u8> {
        let own = self.text.split_once('=').map_or(self.text, |(own, _)| own);
        decode_form(own)
    }

    fn is_named(self, name: &str) -> bool {
        self.name().eq(name.bytes())
    }
}

fn segments(query: &str) -> impl Iterator<Item = QuerySegment<'_>> {
    query.split(['&', ';']).scan(0, |next, text| {
        let start = *next;
        *next = start + text.len() + 1;
        Some(QuerySegment { start, text })
    })
}

fn decode_value(text: &str) -> Cow<'_, [u8]> {
    if text.contains(['%', '+']) {
        Cow::Owned(decode_form(text).collect())
    } else {
        Cow::Borrowed(text.as_bytes())
    }
}

#[cfg(test)]
mod tests;
