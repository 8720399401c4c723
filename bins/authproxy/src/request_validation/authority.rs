//! `host[:port]`, in Host and in a target in absolute form.
//!
//! Narrower than RFC 3986 3.2.2: no percent-encoding, no `,`, `;` or `@`, no future IP version. Some servers read a
//! list, a user or a path from a Host with these.

use std::net::Ipv6Addr;

use super::byte_class;

/// The port may be empty (RFC 3986 3.2.3): every server reads that as the default port.
pub(super) fn is_authority(bytes: &[u8]) -> bool {
    let (is_host, port) = match bytes {
        [b'[', literal @ ..] => {
            let Some(end) = literal.iter().position(|byte| *byte == b']') else {
                return false;
            };
            let port = match &literal[end + 1..] {
                [] => None,
                [b':', port @ ..] => Some(port),
                _ => return false,
            };
            (is_ipv6(&literal[..end]), port)
        }
        _ => match bytes.iter().position(|byte| *byte == b':') {
            Some(colon) => (
                byte_class::is_host(&bytes[..colon]),
                Some(&bytes[colon + 1..]),
            ),
            None => (byte_class::is_host(bytes), None),
        },
    };
    is_host && port.is_none_or(is_port)
}

fn is_port(digits: &[u8]) -> bool {
    digits.is_empty()
        || digits.iter().all(u8::is_ascii_digit)
            && std::str::from_utf8(digits).is_ok_and(|port| port.parse::<u16>().is_ok())
}

fn is_ipv6(literal: &[u8]) -> bool {
    std::str::from_utf8(literal).is_ok_and(|literal| literal.parse::<Ipv6Addr>().is_ok())
}
