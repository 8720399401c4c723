//! Character classes, and the search for the end of a line.

/// Characters of a token (RFC 9110 5.6.2): methods, header names.
const TOKEN: u8 = 1;
/// Characters of a path that all servers read alike: RFC 3986 3.3, and those that clients send without percent-encoding
/// and hyper's `Uri` accepts.
const PATH: u8 = 2;
/// The same of a query (RFC 3986 3.4).
const QUERY: u8 = 4;
/// Characters of a host name (RFC 3986 2.3): those of DNS, and `_` and `~`, which are used all the same.
const HOST: u8 = 8;

static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0x21;
    while byte < 0x7f_u8 {
        let mut class = 0;
        if byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.'
            )
            || matches!(byte, b'^' | b'_' | b'`' | b'|' | b'~')
        {
            class |= TOKEN;
        }
        if !matches!(byte, b'#' | b'<' | b'>' | b'?' | b'`') {
            class |= PATH;
        }
        if !matches!(byte, b'"' | b'#' | b'<' | b'>') {
            class |= QUERY;
        }
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            class |= HOST;
        }
        table[byte as usize] = class;
        byte += 1;
    }
    table
}

const fn is(byte: u8, class: u8) -> bool {
    CLASS[byte as usize] & class != 0
}

/// The length of the prefix of bytes in a class.
fn prefix_length(bytes: &[u8], class: u8) -> usize {
    bytes
        .iter()
        .position(|byte| !is(*byte, class))
        .unwrap_or(bytes.len())
}

pub(super) fn token_length(bytes: &[u8]) -> usize {
    prefix_length(bytes, TOKEN)
}

pub(super) fn path_and_query_length(bytes: &[u8]) -> usize {
    let path = prefix_length(bytes, PATH);
    match bytes.get(path) {
        Some(b'?') => path + 1 + prefix_length(&bytes[path + 1..], QUERY),
        _ => path,
    }
}

pub(super) fn is_host(bytes: &[u8]) -> bool {
    !bytes.is_empty() && prefix_length(bytes, HOST) == bytes.len()
}

/// Finds the end of the line that `scanned` is in: the index of its CR. `scanned` moves behind the CR LF, or to the end
/// of the bytes when there is no end of line yet.
///
/// # Errors The line has a control character other than a tab. RFC 9112 2.2 leaves it to the recipient whether a bare
/// LF or CR ends a line, and RFC 9110 5.5 what to do with a NUL, so servers differ.
pub(super) fn find_line_end(
    bytes: &[u8],
    scanned: &mut usize,
) -> Result<Option<usize>, &'static str> {
    loop {
        let Some(at) = find_control(bytes, *scanned) else {
            *scanned = bytes.len();
            return Ok(None);
        };
        *scanned = at;
        match (bytes[at], bytes.get(at + 1)) {
            (b'\t', _) => *scanned = at + 1,
            (b'\r', Some(b'\n')) => {
                *scanned = at + 2;
                return Ok(Some(at));
            }
            (b'\r', None) => return Ok(None),
            (b'\r', Some(_)) => return Err("the request has a CR without LF"),
            (b'\n', _) => return Err("a line of the request ends without CR"),
            (b'\0', _) => return Err("the request has a NUL"),
            _ => return Err("the request has a control character"),
        }
    }
}

/// The index of the first control character at or after `from`, eight bytes at a time.
fn find_control(bytes: &[u8], from: usize) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    let mut at = from;
    while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*eight);
        let delete = word ^ (ONES * 0x7f);
        // A borrow can produce a false mark, but only behind a true one: the first mark is correct.
        let below = word.wrapping_sub(ONES * 0x20) & !word;
        let equal = delete.wrapping_sub(ONES) & !delete;
        let marks = (below | equal) & HIGHS;
        if marks != 0 {
            return Some(at + marks.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let tail = bytes.get(at..)?;
    Some(at + tail.iter().position(u8::is_ascii_control)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::find_control;

    proptest! {
        #[test]
        fn first_control_character_is_found(bytes: Vec<u8>, from in 0_usize..20) {
            let slow = (from..bytes.len()).find(|at| bytes[*at].is_ascii_control());
            prop_assert_eq!(find_control(&bytes, from), slow);
        }

        #[test]
        fn text_without_control_characters_has_no_match(text in "[ -~\u{80}-\u{ff}]{0,64}", at: prop::sample::Index, byte in 0_u8..=0x7f) {
            let mut bytes = text.into_bytes();
            prop_assert_eq!(find_control(&bytes, 0), None);
            let at = at.index(bytes.len() + 1);
            bytes.insert(at, byte);
            prop_assert_eq!(find_control(&bytes, 0), byte.is_ascii_control().then_some(at));
        }
    }
}
