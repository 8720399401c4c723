//! Replies whole, cut, and of anybody.

use proptest::prelude::*;

use super::*;

/// What is said of every beginning of a reply: nothing until it is whole.
fn only_whole(asked: Asked<'_>, whole: &[u8]) -> Reply {
    for cut in 0..whole.len() {
        assert_eq!(
            parse(asked, &whole[..cut]),
            Reply::Incomplete,
            "{:?}",
            String::from_utf8_lossy(&whole[..cut])
        );
    }
    // And nothing of what comes behind it.
    let more = [whole, b"STORED\r\n"].concat();
    assert_eq!(parse(asked, &more), parse(asked, whole));
    parse(asked, whole)
}

#[test]
fn replies_count_when_they_are_whole() {
    let get = Asked::Get("p:1:ab");
    assert_eq!(only_whole(get, b"END\r\n"), Reply::Done { end: 5 });
    assert_eq!(
        only_whole(get, b"VALUE p:1:ab 0 4\r\n\r\nE\0\r\nEND\r\n"),
        Reply::Value {
            at: 18..22,
            end: 29
        }
    );
    assert_eq!(
        only_whole(get, b"VALUE p:1:ab 7 0\r\n\r\nEND\r\n"),
        Reply::Value {
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
            only_whole(Asked::Change, whole.as_bytes()),
            Reply::Done { end: whole.len() }
        );
    }
}

#[test]
fn what_was_not_asked_for_is_wrong() {
    let long = "x".repeat(LONGEST_LINE);
    let large = format!("VALUE k 0 {}\r\n", LONGEST_VALUE + 1);
    for (asked, bytes) in [
        (Asked::Get("k"), "STORED\r\n"),
        (Asked::Get("k"), "END\n"),
        (Asked::Get("k"), "\r\n"),
        (Asked::Get("k"), "ERROR\r\n"),
        (Asked::Get("k"), "SERVER_ERROR out of memory\r\n"),
        (Asked::Get("k"), "VALUE j 0 1\r\nx\r\nEND\r\n"),
        (Asked::Get("k"), "VALUE kk 0 1\r\nx\r\nEND\r\n"),
        (Asked::Get("k"), "VALUE k 0 -1\r\nx\r\nEND\r\n"),
        (Asked::Get("k"), "VALUE k 0 +1\r\nx\r\nEND\r\n"),
        (Asked::Get("k"), "VALUE k 0 1 9\r\nx\r\nEND\r\n"),
        (Asked::Get("k"), "VALUE k 0\r\n"),
        (Asked::Get("k"), "VALUE k  1\r\n"),
        (Asked::Get("k"), "VALUE k 0 99999999999999999999999\r\n"),
        (Asked::Get("k"), &large),
        (Asked::Get("k"), &long),
        (Asked::Get("k"), "VALUE k 0 1\r\nxy\r\nEND\r\n"),
        (
            Asked::Get("k"),
            "VALUE k 0 1\r\nx\r\nVALUE k 0 1\r\nx\r\nEND\r\n",
        ),
        (Asked::Change, "END\r\n"),
        (Asked::Change, "ERROR\r\n"),
        (Asked::Change, "CLIENT_ERROR bad data chunk\r\n"),
        (Asked::Change, &long),
    ] {
        assert_eq!(
            parse(asked, bytes.as_bytes()),
            Reply::Wrong,
            "{asked:?} {bytes:?}"
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
        for asked in [Asked::Get("k"), Asked::Change] {
            let early = parse(asked, cut);
            prop_assert!(early == Reply::Incomplete || early == parse(asked, bytes));
            if let Reply::Value { at, end } = &early {
                prop_assert!(at.start <= at.end && at.end < *end && *end <= cut.len());
            }
        }
    }
}
