//! Complete, partial and hostile replies.

use proptest::prelude::*;

use super::*;

/// Checks that no part of a reply is parsed before all of it is there, and nothing behind it; parses it.
fn parse_complete(expected: ExpectedReply<'_>, whole: &[u8]) -> MemcachedReply {
    for cut in 0..whole.len() {
        assert_eq!(
            parse(expected, &whole[..cut]),
            MemcachedReply::Incomplete,
            "{:?}",
            String::from_utf8_lossy(&whole[..cut])
        );
    }
    let more = [whole, b"STORED\r\n"].concat();
    assert_eq!(parse(expected, &more), parse(expected, whole));
    parse(expected, whole)
}

#[test]
fn complete_replies_are_parsed() {
    let get = ExpectedReply::Get("p:1:ab");
    assert_eq!(
        parse_complete(get, b"END\r\n"),
        MemcachedReply::Done { end: 5 }
    );
    assert_eq!(
        parse_complete(get, b"VALUE p:1:ab 0 4\r\n\r\nE\0\r\nEND\r\n"),
        MemcachedReply::Value {
            at: 18..22,
            end: 29
        }
    );
    assert_eq!(
        parse_complete(get, b"VALUE p:1:ab 7 0\r\n\r\nEND\r\n"),
        MemcachedReply::Value {
            at: 18..18,
            end: 25
        }
    );
    for line in [
        "STORED",
        "NOT_STORED",
        "DELETED",
        "NOT_FOUND",
        "SERVER_ERROR out of memory",
    ] {
        let whole = format!("{line}\r\n");
        assert_eq!(
            parse_complete(ExpectedReply::Change, whole.as_bytes()),
            MemcachedReply::Done { end: whole.len() }
        );
    }
}

#[test]
fn reply_to_another_command_is_invalid() {
    let long = "x".repeat(MAX_LINE_BYTES);
    let large = format!("VALUE k 0 {}\r\n", MAX_VALUE_BYTES + 1);
    for (expected, bytes) in [
        (ExpectedReply::Get("k"), "STORED\r\n"),
        (ExpectedReply::Get("k"), "END\n"),
        (ExpectedReply::Get("k"), "\r\n"),
        (ExpectedReply::Get("k"), "ERROR\r\n"),
        (ExpectedReply::Get("k"), "SERVER_ERROR out of memory\r\n"),
        (ExpectedReply::Get("k"), "VALUE j 0 1\r\nx\r\nEND\r\n"),
        (ExpectedReply::Get("k"), "VALUE kk 0 1\r\nx\r\nEND\r\n"),
        (ExpectedReply::Get("k"), "VALUE k 0 -1\r\nx\r\nEND\r\n"),
        (ExpectedReply::Get("k"), "VALUE k 0 +1\r\nx\r\nEND\r\n"),
        (ExpectedReply::Get("k"), "VALUE k 0 1 9\r\nx\r\nEND\r\n"),
        (ExpectedReply::Get("k"), "VALUE k 0\r\n"),
        (ExpectedReply::Get("k"), "VALUE k  1\r\n"),
        (
            ExpectedReply::Get("k"),
            "VALUE k 0 99999999999999999999999\r\n",
        ),
        (ExpectedReply::Get("k"), &large),
        (ExpectedReply::Get("k"), &long),
        (ExpectedReply::Get("k"), "VALUE k 0 1\r\nxy\r\nEND\r\n"),
        (
            ExpectedReply::Get("k"),
            "VALUE k 0 1\r\nx\r\nVALUE k 0 1\r\nx\r\nEND\r\n",
        ),
        (ExpectedReply::Change, "END\r\n"),
        (ExpectedReply::Change, "ERROR\r\n"),
        (ExpectedReply::Change, "CLIENT_ERROR bad data chunk\r\n"),
        (ExpectedReply::Change, &long),
    ] {
        assert_eq!(
            parse(expected, bytes.as_bytes()),
            MemcachedReply::Invalid,
            "{expected:?} {bytes:?}"
        );
    }
}

proptest! {
    /// However a server answers and wherever its bytes are cut: what has been said is not taken back.
    #[test]
    fn more_bytes_change_nothing_that_was_said(
        bytes in r"(VALUE k 0 [0-9]|END|STORED|SERVER_ERROR x|\r\n|\r|\n|x){0,8}", cut in 0..64_usize
    ) {
        let bytes = bytes.as_bytes();
        let cut = &bytes[..cut.min(bytes.len())];
        for expected in [ExpectedReply::Get("k"), ExpectedReply::Change] {
            let early = parse(expected, cut);
            prop_assert!(early == MemcachedReply::Incomplete || early == parse(expected, bytes));
            if let MemcachedReply::Value { at, end } = &early {
                prop_assert!(at.start <= at.end && at.end < *end && *end <= cut.len());
            }
        }
    }
}
