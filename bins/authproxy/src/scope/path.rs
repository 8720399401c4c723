//! Paths that all servers read alike, and their beginnings.
//!
//! A rule about `/admin` is worth nothing if the server also serves it as `/x/../admin`, `//admin` or `/admin;x`, and
//! whether it does depends on the server. So such a path is not judged.

use std::borrow::Cow;

/// A path that all servers read alike, without its percent-encoding.
#[derive(Debug)]
pub(super) struct Plain<'a>(Cow<'a, [u8]>);

impl Plain<'_> {
    /// Whether it is `prefix` or something below it. `/a/` means the same as `/a`.
    pub(super) fn begins(&self, prefix: &str) -> bool {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        match self.0.strip_prefix(prefix.as_bytes()) {
            Some(rest) => matches!(rest.first(), None | Some(b'/')),
            None => false,
        }
    }
}

/// Whether a prefix is about all paths, and so no rule about paths.
pub(super) fn is_root(prefix: &str) -> bool {
    prefix == "/"
}

/// How much of a path a prefix decides.
pub(super) fn length(prefix: &str) -> usize {
    prefix.strip_suffix('/').unwrap_or(prefix).len()
}

/// Whether all servers read a path alike. `*` (of `OPTIONS`) is such a path, and begins with no prefix.
#[must_use]
pub fn is_plain(path: &str) -> bool {
    plain(path).is_some()
}

/// The form in which a prefix of paths is kept and compared: without percent-encoding and without a slash at its end.
///
/// # Errors
/// It is longer than 1 KiB, does not begin with a slash, or servers would read it differently.
pub fn prefix(text: &str) -> Result<String, String> {
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
    let plain = plain(text).ok_or_else(wrong)?;
    let mut kept = String::from_utf8(plain.0.into_owned()).map_err(|_| wrong())?;
    if kept.len() > 1 && kept.ends_with('/') {
        kept.pop();
    }
    Ok(kept)
}

/// The path without its percent-encoding; none if servers differ over what it means.
pub(super) fn plain(path: &str) -> Option<Plain<'_>> {
    if path == "*" {
        return Some(Plain(Cow::Borrowed(path.as_bytes())));
    }
    let decoded = if path.contains('%') {
        let decoded = decode(path.as_bytes())?;
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
    decoded.iter().all(clear).then_some(Plain(decoded))
}

/// Percent-decodes once. None for a broken escape, and for an escape of what a second reading would take for syntax: a
/// separator, or the percent sign of another escape.
fn decode(path: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let meant = escape(rest)?;
        rest = rest.get(2..)?;
        let again = meant == b'%' && escape(rest).is_some();
        if again || matches!(meant, b'/' | b'\\' | b'?' | b'#' | 0) {
            return None;
        }
        decoded.push(meant);
    }
    Some(decoded)
}

/// The byte that two hex digits stand for.
fn escape(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| (*digits.get(at)? as char).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}
