//! What a memcached answers (its `doc/protocol.txt`, text protocol).
//!
//! Owns reading one reply from the bytes that have come so far. The bytes are anybody's: nothing is kept that was not
//! asked for, and nothing is longer than [`LONGEST_VALUE`].

use std::ops::Range;

/// The longest value, in bytes: a grant with a thousand paths.
pub const LONGEST_VALUE: usize = 64 * 1024;

/// The longest line: `VALUE`, a name of 250 bytes, and two numbers.
const LONGEST_LINE: usize = 512;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked<'a> {
    /// `get NAME`.
    Get(&'a str),
    /// `set` or `delete`.
    Change,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// There are not enough bytes yet.
    Incomplete,
    /// The value lies here in the bytes; the reply ends at `end`.
    Value {
        /// Where the value is.
        at: Range<usize>,
        /// Where the next reply begins.
        end: usize,
    },
    /// The reply without a value ends here: there is no entry, the change was made, or the server would not make it.
    Done {
        /// Where the next reply begins.
        end: usize,
    },
    /// This is no answer to that.
    Wrong,
}

/// Reads the reply to what was asked from the beginning of `bytes`.
#[must_use]
pub fn parse(asked: Asked<'_>, bytes: &[u8]) -> Reply {
    let Some(line) = bytes
        .iter()
        .take(LONGEST_LINE)
        .position(|byte| *byte == b'\n')
    else {
        return if bytes.len() < LONGEST_LINE {
            Reply::Incomplete
        } else {
            Reply::Wrong
        };
    };
    let end = line + 1;
    let Some(line) = bytes[..line].strip_suffix(b"\r") else {
        return Reply::Wrong;
    };
    match (asked, line) {
        (Asked::Get(_), b"END")
        | (Asked::Change, b"STORED" | b"NOT_STORED" | b"DELETED" | b"NOT_FOUND") => {
            Reply::Done { end }
        }
        // Too large, or out of memory: the command was understood, and its data swallowed.
        (Asked::Change, refused) if refused.starts_with(b"SERVER_ERROR ") => Reply::Done { end },
        (Asked::Get(name), line) => match length(name, line) {
            Some(length) => value(bytes, end..end + length),
            None => Reply::Wrong,
        },
        (Asked::Change, _) => Reply::Wrong,
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
        .filter(|length| *length <= LONGEST_VALUE)
}

fn value(bytes: &[u8], at: Range<usize>) -> Reply {
    const END: &[u8] = b"\r\nEND\r\n";
    let Some(rest) = bytes.get(at.end..) else {
        return Reply::Incomplete;
    };
    if rest.starts_with(END) {
        let end = at.end + END.len();
        Reply::Value { at, end }
    } else if END.starts_with(rest) {
        Reply::Incomplete
    } else {
        Reply::Wrong
    }
}

#[cfg(test)]
mod tests;
