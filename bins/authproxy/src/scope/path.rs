//! Paths that all servers read alike, and their beginnings.
//!
//! A rule about `/admin` is worth nothing if the server also serves it as `/x/../admin`, `//admin` or `/admin;x`, and
//! whether it does depends on the server. So such a path is not judged. Of `/%61dmin` there are only two readings, and
//! both are judged.

use std::borrow::Cow;
use std::iter;

/// A path of which servers agree where its segments are.
#[derive(Debug)]
pub(super) struct UnambiguousPath<'a> {
    /// Without its percent-encoding.
    decoded: Cow<'a, [u8]>,
    /// As it was sent, if some of its percent-encoding was not needed: there are servers that compare it so.
    sent: Option<&'a [u8]>,
}

impl UnambiguousPath<'_> {
    /// What servers take it for.
    pub(super) fn readings(&self) -> impl Iterator<Item = &[u8]> {
        iter::once(&*self.decoded).chain(self.sent)
    }
}

/// Whether the case of ASCII letters matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaseSensitivity {
    /// As it was sent.
    Sensitive,
    /// It does not.
    Insensitive,
}

/// Whether a reading of a path is `prefix` or something below it. `/a/` means the same as `/a`.
pub(super) fn starts_with(path: &[u8], prefix: &str, case: CaseSensitivity) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix).as_bytes();
    let Some((start, rest)) = path.split_at_checked(prefix.len()) else {
        return false;
    };
    let same = match case {
        CaseSensitivity::Sensitive => start == prefix,
        CaseSensitivity::Insensitive => start.eq_ignore_ascii_case(prefix),
    };
    same && matches!(rest.first(), None | Some(b'/'))
}

/// Whether a prefix is about all paths, and so no rule about paths.
pub(super) fn is_root(prefix: &str) -> bool {
    prefix == "/"
}

/// How much of a path a prefix decides.
pub(super) fn prefix_length(prefix: &str) -> usize {
    prefix.strip_suffix('/').unwrap_or(prefix).len()
}

/// Whether servers agree over the segments of a path. `*` (of `OPTIONS`) is such a path, and begins with no prefix.
#[must_use]
pub fn is_unambiguous_path(path: &str) -> bool {
    parse_path(path).is_some()
}

/// The form in which a prefix of paths is kept and compared: without percent-encoding and without a slash at its end.
///
/// # Errors
/// It is longer than 1 KiB, does not begin with a slash, or servers would read it differently.
pub fn normalize_path_prefix(text: &str) -> Result<String, String> {
    if text.len() > 1024 {
        return Err("a path is longer than 1024 bytes".to_owned());
    }
    if !text.starts_with('/') {
        return Err(format!("the path {text:?} does not begin with a slash"));
    }
    let wrong = || {
        format!(
            "the path {text:?} can be read in more than one way: write it without dot segments, empty segments, \
             `\\`, `;` and encoded separators"
        )
    };
    let plain = parse_path(text).ok_or_else(wrong)?;
    let mut kept = String::from_utf8(plain.decoded.into_owned()).map_err(|_| wrong())?;
    if kept.len() > 1 && kept.ends_with('/') {
        kept.pop();
    }
    Ok(kept)
}

/// The path without its percent-encoding; none if servers differ over where its segments are.
pub(super) fn parse_path(path: &str) -> Option<UnambiguousPath<'_>> {
    let mut sent = None;
    if path == "*" {
        let decoded = Cow::Borrowed(path.as_bytes());
        return Some(UnambiguousPath { decoded, sent });
    }
    let decoded = if path.contains('%') {
        let (decoded, needless) = decode_percent(path.as_bytes())?;
        sent = needless.then_some(path.as_bytes());
        // Overlong forms of `/` and `.` are no UTF-8, and some servers read them all the same.
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
        let last = segments.peek().is_none();
        if (segment.is_empty() && !last) || matches!(segment, b"." | b"..") {
            return None;
        }
    }
    let clear = |byte: &u8| !matches!(byte, b'\\' | b';' | 0x7f | ..=0x1f);
    decoded
        .iter()
        .all(clear)
        .then_some(UnambiguousPath { decoded, sent })
}

/// Percent-decodes once; and whether a character was encoded that never has to be (RFC 3986 section 2.3). None for a
/// broken escape, and for an escape of what a second reading would take for syntax: a separator, or the percent sign of
/// another escape.
fn decode_percent(path: &[u8]) -> Option<(Vec<u8>, bool)> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut needless = false;
    let mut rest = path;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let meant = decode_escape(rest)?;
        rest = rest.get(2..)?;
        if matches!(meant, b'/' | b'\\' | b'?' | b'#' | 0) {
            return None;
        }
        needless |= meant.is_ascii_alphanumeric() || b"-._~".contains(&meant);
        decoded.push(meant);
    }
    // Its digits may have been encoded themselves.
    let mut signs = decoded.split(|byte| *byte == b'%').skip(1);
    let again = signs.any(|behind| decode_escape(behind).is_some());
    (!again).then_some((decoded, needless))
}

/// The byte that two hex digits stand for.
fn decode_escape(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| (*digits.get(at)? as char).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}
