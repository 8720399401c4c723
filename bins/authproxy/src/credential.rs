//! The key of a request: where it stands, and how it is taken away.
//!
//! Owns reading keys from headers and queries, and what the server and the log see of a query that holds one. What a
//! key may do is `scope`'s. Nothing here keeps a key: what leaves is its hash.
//!
//! * Values are bytes: what is registered has to be what is sent, whatever its encoding. How long a key may be is said
//!   by `--max-head` alone.
//! * In a query, `&` and `;` both separate, since servers differ over `;`; names and values are percent-decoded once,
//!   and `+` is a space. A percent sign without two decode_hex digits stands for itself.
//! * A place that is empty holds no key, but counts when a repeated one is looked for.

use std::borrow::Cow;

use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::http::request::Parts;

use crate::grant::KeyHash;
use crate::request_error::RequestError;
use crate::settings::KeySources;

/// The hash of the key that a request carries, if it carries one. The same key may stand in several places.
///
/// # Errors
/// [`RequestError::AmbiguousKey`]: two places hold different keys, or one place is there twice.
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

/// The key in a value of `Authorization`; none in one of a scheme other than `Bearer` and `ApiKey`, which is for the
/// server.
#[must_use]
pub fn parse_authorization(value: &HeaderValue) -> Option<&[u8]> {
    let value = value.as_bytes();
    let space = value.iter().position(|byte| *byte == b' ');
    let (scheme, key) = value.split_at(space.unwrap_or(value.len()));
    let is_ours = scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"apikey");
    is_ours.then(|| key.trim_ascii())
}

/// A parameter that stands in a query once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryParameter<'q> {
    /// Its value, percent-decoded.
    pub value: Cow<'q, [u8]>,
    /// Whether a `;` stands before or behind it: servers that do not split there read something else.
    pub semicolon: bool,
}

/// A parameter stands in a query more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DuplicateParameter;

/// The parameter of this name, if there is one.
///
/// # Errors
/// There are several, equal or not.
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

/// The query without any parameter of this name, each with one separator; what is left stays byte for byte.
#[must_use]
pub fn remove_parameter<'q>(query: &'q str, name: &str) -> Cow<'q, str> {
    if !segments(query).any(|segment| segment.is_named(name)) {
        return Cow::Borrowed(query);
    }
    let mut left = String::with_capacity(query.len());
    let mut is_first = true;
    for segment in segments(query).filter(|segment| !segment.is_named(name)) {
        // With what separates it from the one before.
        let start = segment.start.saturating_sub(usize::from(!is_first));
        left.push_str(&query[start..segment.end()]);
        is_first = false;
    }
    Cow::Owned(left)
}

/// The query with `***` for the value of every parameter whose name ends like the key's, or like its header, also if the
/// case or the hyphens are others, or if what stands before is no separator: for people to read. A key that is sent under a
/// wrong name is one all the same, and so is one behind a second `?`.
#[must_use]
pub fn mask_query<'q>(query: &'q str, credentials: &KeySources) -> Cow<'q, str> {
    let mut shown = Cow::Borrowed(query);
    // From behind, so that what is before stays where it is.
    let found: Vec<(usize, usize)> = segments(query)
        .filter_map(|segment| {
            Some((
                segment.start + find_key_value(segment.text, credentials)?,
                segment.end(),
            ))
        })
        .collect();
    for (start, end) in found.into_iter().rev() {
        shown.to_mut().replace_range(start..end, "***");
    }
    shown
}

/// The path with `***` for what follows such a name in it: the `?` before it was forgotten, or encoded.
#[must_use]
pub fn mask_path<'p>(path: &'p str, credentials: &KeySources) -> Cow<'p, str> {
    match find_key_value(path, credentials) {
        Some(value) => Cow::Owned(format!("{}***", &path[..value])),
        None => Cow::Borrowed(path),
    }
}

/// Where what could be a key begins, if there is any: behind a name that ends like one of a place for keys, and `=`, which
/// may be percent-encoded.
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

/// Whether the letters and digits at the end of a text, percent-decoded, are those of a name.
fn ends_with_name(mut text: &[u8], name: &str) -> bool {
    let letters = name.bytes().rev().filter(u8::is_ascii_alphanumeric);
    for letter in letters {
        loop {
            let encoded = match text {
                [before @ .., b'%', high, low] => {
                    decode_hex(&[*high, *low]).map(|byte| (before, byte))
                }
                _ => None,
            };
            let Some((before, byte)) =
                encoded.or_else(|| text.split_last().map(|(last, before)| (before, *last)))
            else {
                return false;
            };
            text = before;
            if byte.eq_ignore_ascii_case(&letter) {
                break;
            }
            // What people write between the words of a name, and behind it.
            if !b"-_.+ []".contains(&byte) {
                return false;
            }
        }
    }
    true
}

/// What stands between two separators of a query.
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
        decode(own)
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
        Cow::Owned(decode(text).collect())
    } else {
        Cow::Borrowed(text.as_bytes())
    }
}

/// Percent-decoding, once (WHATWG URL, `application/x-www-form-urlencoded` parsing).
fn decode(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (first, after) = rest.split_first()?;
        rest = after;
        Some(match first {
            b'+' => b' ',
            b'%' => match after.first_chunk().and_then(decode_hex) {
                Some(byte) => {
                    rest = &after[2..];
                    byte
                }
                None => b'%',
            },
            other => *other,
        })
    })
}

fn decode_hex(&[high, low]: &[u8; 2]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

#[cfg(test)]
mod tests;
