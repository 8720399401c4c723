//! Replies of memcached's text protocol (its `doc/protocol.txt`).
//!
//! Parses one reply from the bytes received so far. The bytes are hostile: a value is accepted only for the requested
//! name, and up to [`MAX_VALUE_BYTES`].

use std::ops::Range;

/// The longest value, in bytes: a grant with a thousand paths.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// The longest line: `VALUE`, a name of 250 bytes, and two numbers.
const MAX_LINE_BYTES: usize = 512;

/// The command that a reply is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedReply<'a> {
    /// `get NAME`.
    Get(&'a str),
    /// `set` or `delete`.
    Change,
}

/// A parsed reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemcachedReply {
    /// There are not enough bytes yet.
    Incomplete,
    /// A value.
    Value {
        /// Its place in the bytes.
        at: Range<usize>,
        /// Where the next reply begins.
        end: usize,
    },
    /// No entry, a change that was made, or one that the server did not make.
    Done {
        /// Where the next reply begins.
        end: usize,
    },
    /// Not a reply to that command.
    Invalid,
}

/// Parses the reply at the beginning of `bytes`.
#[must_use]
pub fn parse(expected: ExpectedReply<'_>, bytes: &[u8]) -> MemcachedReply {
    let Some(line) = bytes
        .iter()
        .take(MAX_LINE_BYTES)
        .position(|byte| *byte == b'\n')
    else {
        return if bytes.len() < MAX_LINE_BYTES {
            MemcachedReply::Incomplete
        } else {
            MemcachedReply::Invalid
        };
    };
    let end = line + 1;
    let Some(line) = bytes[..line].strip_suffix(b"\r") else {
        return MemcachedReply::Invalid;
    };
    match (expected, line) {
        (ExpectedReply::Get(_), b"END")
        | (ExpectedReply::Change, b"STORED" | b"NOT_STORED" | b"DELETED" | b"NOT_FOUND") => {
            MemcachedReply::Done { end }
        }
        // Too large, or out of memory: the command was understood, and its data swallowed.
        (ExpectedReply::Change, refused) if refused.starts_with(b"SERVER_ERROR ") => {
            MemcachedReply::Done { end }
        }
        (ExpectedReply::Get(name), line) => match length(name, line) {
            Some(length) => value(bytes, end..end + length),
            None => MemcachedReply::Invalid,
        },
        (ExpectedReply::Change, _) => MemcachedReply::Invalid,
    }
}

/// The length in `VALUE NAME FLAGS LENGTH`; none if it is the line of another name, or too long.
fn length(name: &str, line: &[u8]) -> Option<usize> {
    let rest = line
        .strip_prefix(b"VALUE ")?
        .strip_prefix(name.as_bytes())?;
    let rest = std::str::from_utf8(rest.strip_prefix(b" ")?).ok()?;
    let (flags, length) = rest.split_once(' ')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(flags) && is_number(length))
        .then(|| length.parse().ok())?
        .filter(|length| *length <= MAX_VALUE_BYTES)
}

fn value(bytes: &[u8], at: Range<usize>) -> MemcachedReply {
    const END: &[u8] = b"\r\nEND\r\n";
    let Some(rest) = bytes.get(at.end..) else {
        return MemcachedReply::Incomplete;
    };
    if rest.starts_with(END) {
        let end = at.end + END.len();
        MemcachedReply::Value { at, end }
    } else if END.starts_with(rest) {
        MemcachedReply::Incomplete
    } else {
        MemcachedReply::Invalid
    }
}

#[cfg(test)]
mod tests;
