//! Paths that all servers interpret alike, and their prefixes.
//!
//! A rule for `/admin` is useless if the server also serves it as `/x/../admin`, `//admin` or `/admin;x`, which depends on
//! the server. Such paths are ambiguous and denied. `/%61dmin` has only two interpretations, and both are checked.

use std::borrow::Cow;
use std::iter;

use crate::percent::leading_escape;

/// A path whose segments are the same for all servers.
#[derive(Debug)]
pub(super) struct UnambiguousPath<'a> {
    decoded: Cow<'a, [u8]>,
    /// As sent, if some of its percent-encoding was unnecessary: some servers compare it without decoding.
    sent: Option<&'a [u8]>,
}

impl UnambiguousPath<'_> {
    pub(super) fn interpretations(&self) -> impl Iterator<Item = &[u8]> {
        iter::once(&*self.decoded).chain(self.sent)
    }
}

/// Whether the case of ASCII letters is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaseSensitivity {
    Sensitive,
    Insensitive,
}

/// Whether a path is `prefix` or below it. `/a/` means the same as `/a`.
pub(super) fn starts_with(path: &[u8], prefix: &str, case: CaseSensitivity) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix).as_bytes();
    let Some((start, rest)) = path.split_at_checked(prefix.len()) else {
        return false;
    };
    let is_equal = match case {
        CaseSensitivity::Sensitive => start == prefix,
        CaseSensitivity::Insensitive => start.eq_ignore_ascii_case(prefix),
    };
    is_equal && matches!(rest.first(), None | Some(b'/'))
}

/// Whether a prefix matches all paths, and thus does not restrict them.
pub(super) fn is_root(prefix: &str) -> bool {
    prefix == "/"
}

pub(super) fn prefix_length(prefix: &str) -> usize {
    prefix.strip_suffix('/').unwrap_or(prefix).len()
}

/// Whether all servers see the same segments in a path. `*` (of `OPTIONS`) is unambiguous, and matches no prefix.
pub(crate) fn is_unambiguous_path(path: &str) -> bool {
    parse_path(path).is_some()
}

/// Validates a path prefix, and returns it decoded and without a final slash.
pub(crate) fn normalize_path_prefix(text: &str) -> Result<String, String> {
    if text.len() > 1024 {
        return Err("invalid path: it is longer than 1024 bytes".to_owned());
    }
    if !text.starts_with('/') {
        return Err(format!("invalid path {text:?}: it must begin with a slash"));
    }
    let ambiguous = || {
        format!(
            "ambiguous path {text:?}: write it without dot segments, empty segments, `\\`, `;` and encoded separators"
        )
    };
    let path = parse_path(text).ok_or_else(ambiguous)?;
    let mut prefix = String::from_utf8(path.decoded.into_owned()).map_err(|_| ambiguous())?;
    if prefix.len() > 1 && prefix.ends_with('/') {
        prefix.pop();
    }
    Ok(prefix)
}

/// Decodes a path; `None` if servers would see different segments.
pub(super) fn parse_path(path: &str) -> Option<UnambiguousPath<'_>> {
    let mut sent = None;
    if path == "*" {
        let decoded = Cow::Borrowed(path.as_bytes());
        return Some(UnambiguousPath { decoded, sent });
    }
    let decoded = if path.contains('%') {
        let (decoded, is_unnecessary) = decode_percent(path.as_bytes())?;
        sent = is_unnecessary.then_some(path.as_bytes());
        // Overlong forms of `/` and `.` are not UTF-8, but some servers decode them.
        std::str::from_utf8(&decoded).ok()?;
        Cow::Owned(decoded)
    } else {
        Cow::Borrowed(path.as_bytes())
    };
    let mut segments = decoded
        .strip_prefix(b"/")?
        .split(|byte| *byte == b'/')
        .peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        if (segment.is_empty() && !is_last) || matches!(segment, b"." | b"..") {
            return None;
        }
    }
    let is_safe = |byte: &u8| !matches!(byte, b'\\' | b';' | 0x7f | ..=0x1f);
    decoded
        .iter()
        .all(is_safe)
        .then_some(UnambiguousPath { decoded, sent })
}

/// Percent-decodes once, and returns whether a character was encoded that never has to be (RFC 3986 section 2.3). `None`
/// for an invalid escape, and for an escaped separator or percent sign, which a second decoding would turn into syntax.
fn decode_percent(path: &[u8]) -> Option<(Vec<u8>, bool)> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut is_unnecessary = false;
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            decoded.push(byte);
            rest = tail;
            continue;
        }
        let byte = leading_escape(rest)?;
        rest = rest.get(3..)?;
        if matches!(byte, b'/' | b'\\' | b'?' | b'#' | 0) {
            return None;
        }
        is_unnecessary |= byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        decoded.push(byte);
    }
    // The digits of an escape may have been encoded themselves.
    let is_double = (0..decoded.len()).any(|at| leading_escape(&decoded[at..]).is_some());
    (!is_double).then_some((decoded, is_unnecessary))
}
