//! Classes of bytes, and the search for the end of a line.
//!
//! Owns which bytes may stand where. What a line means is `head`'s, `field`'s and `chunked`'s.

/// A character of a token (RFC 9110 5.6.2): methods, names of headers.
const TOKEN: u8 = 1;
/// A character of a path that no server reads in two ways. RFC 3986 3.3, and what clients send without
/// percent-encoding it and hyper's `Uri` takes.
const PATH: u8 = 2;
/// The same of a query (RFC 3986 3.4).
const QUERY: u8 = 4;
/// A character of a host's name (RFC 3986 2.3): what DNS has, and what people have put beside it.
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

/// How many of the first bytes are of a class.
fn span(bytes: &[u8], class: u8) -> usize {
    bytes
        .iter()
        .position(|byte| !is(*byte, class))
        .unwrap_or(bytes.len())
}

/// How long the token is that these bytes begin with.
pub(super) fn token(bytes: &[u8]) -> usize {
    span(bytes, TOKEN)
}

/// How long the path and query are that these bytes begin with.
pub(super) fn path_and_query(bytes: &[u8]) -> usize {
    let path = span(bytes, PATH);
    match bytes.get(path) {
        Some(b'?') => path + 1 + span(&bytes[path + 1..], QUERY),
        _ => path,
    }
}

/// Whether this can be the name of a host.
pub(super) fn is_host(bytes: &[u8]) -> bool {
    !bytes.is_empty() && span(bytes, HOST) == bytes.len()
}

/// Finds the end of the line that `seen` is in: where its CR is. `seen` moves behind the CR LF, or behind what need not
/// be looked at again when the end is not there yet.
///
/// # Errors
/// A control character, other than a tab, stands in the line; RFC 9112 2.2 leaves it to a recipient whether a bare LF or
/// CR ends a line, and RFC 9110 5.5 what becomes of a NUL, so recipients differ.
pub(super) fn line_end(bytes: &[u8], seen: &mut usize) -> Result<Option<usize>, &'static str> {
    loop {
        let Some(at) = control(bytes, *seen) else {
            *seen = bytes.len();
            return Ok(None);
        };
        *seen = at;
        match (bytes[at], bytes.get(at + 1)) {
            (b'\t', _) => *seen = at + 1,
            (b'\r', Some(b'\n')) => {
                *seen = at + 2;
                return Ok(Some(at));
            }
            (b'\r', None) => return Ok(None),
            (b'\r', Some(_)) => return Err("a CR without LF stands in the request"),
            (b'\n', _) => return Err("a line of the request ends without CR"),
            (b'\0', _) => return Err("a NUL stands in the request"),
            _ => return Err("a control character stands in the request"),
        }
    }
}

/// Where the first control character is, from an index on. Eight bytes at a time: a head has two of them per line.
fn control(bytes: &[u8], from: usize) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    let mut at = from;
    while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*eight);
        let delete = word ^ (ONES * 0x7f);
        // A borrow can mark a byte that is none, but only behind one that is: the first mark is right.
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

    use super::control;

    proptest! {
        #[test]
        fn the_first_control_character_is_found(bytes: Vec<u8>, from in 0_usize..20) {
            let slow = (from..bytes.len()).find(|at| bytes[*at].is_ascii_control());
            prop_assert_eq!(control(&bytes, from), slow);
        }

        #[test]
        fn text_has_none(text in "[ -~\u{80}-\u{ff}]{0,64}", at: prop::sample::Index, byte in 0_u8..=0x7f) {
            let mut bytes = text.into_bytes();
            prop_assert_eq!(control(&bytes, 0), None);
            let at = at.index(bytes.len() + 1);
            bytes.insert(at, byte);
            prop_assert_eq!(control(&bytes, 0), byte.is_ascii_control().then_some(at));
        }
    }
}
