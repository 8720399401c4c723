//! Times of lines: a table, a clock that somebody else wrote, and hostile bytes.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;

/// 2026-11-21T07:46:28Z
const THEN: i64 = 1_795_247_188_000;

#[test]
fn what_carries_a_time() {
    for (line, millis) in [
        (r#"{"@timestamp":"2026-11-21T07:46:28Z","m":1}"#, 0),
        (
            r#"{"a":{"time":1},"b":[1,"]}"],"@timestamp": "2026-11-21T07:46:28.123Z""#,
            123,
        ),
        (
            r#"{"time":"2026-11-21T06:00:00Z","timestamp":"2026-11-21T07:46:28,5Z"}"#,
            500,
        ),
        (
            r#"{"time":"2026-11-21T06:00:00Z","x":"\"","@timestamp":1795247188}"#,
            0,
        ),
        (r#"{"timestamp":1795247188.25}"#, 250),
        (r#"{"time":1795247188250}"#, 250),
        (r#"{ "timestamp" : 1.795247188e9 , "#, 0),
        ("2026-11-21T07:46:28.1234567Z x", 123),
        ("2026-11-21 08:46:28,123 +0100 x", 123),
        ("[2026-11-21T02:16:28.9-05:30] x", 900),
        ("2026-11-21t08:46:28+01", 0),
        ("2026-11-20T23:46:28 -08:00", 0),
    ] {
        assert_eq!(
            of(line.as_bytes(), false),
            Some(Moment(THEN + millis)),
            "{line}"
        );
    }
}

#[test]
fn what_carries_none() {
    for line in [
        "",
        "{",
        "{}",
        r#"{"@timestamp":"#,
        r#"{"@timestamp":"2026-11-21T07:46:28Z"#,
        r#"{"@timestamp":"2026-11-21T07:46:28Zx"}"#,
        r#"{"@timestamp":1795247188"#,
        r#"{"x":{"@timestamp":"2026-11-21T07:46:28Z"}}"#,
        r#"{"x":"\"@timestamp\":1795247188"}"#,
        r#"{"time":0.25}"#,
        r#"{"time":12}"#,
        r#"{"time":-1795247188}"#,
        r#"{"time":1795247188000000}"#,
        r#"{"time":"07:46:28"}"#,
        r#"{"timestamp":null}"#,
        "2026-11-21T07:46:28 -12 degrees",
        "2026-11-21T07:46:28.Z",
        "2026-13-21T07:46:28Z",
        "2026-02-29T07:46:28Z",
        "2026-11-21T24:00:00Z",
        "2026-11-21T07:46:28+24:00",
        "x 2026-11-21T07:46:28Z",
        "INFO 2026-11-21T07:46:28Z",
    ] {
        assert_eq!(of(line.as_bytes(), false), None, "{line}");
    }
}

#[test]
fn a_time_without_a_zone_counts_only_when_told_so() {
    for line in [
        r#"{"timestamp":"2026-11-21 07:46:28,123"}"#,
        "2026-11-21 07:46:28,123 INFO x",
        "2026-11-21T07:46:28.123 - x",
    ] {
        assert_eq!(of(line.as_bytes(), false), None, "{line}");
        assert_eq!(
            of(line.as_bytes(), true),
            Some(Moment(THEN + 123)),
            "{line}"
        );
    }
}

proptest! {
    #[test]
    fn agrees_with_another_calendar(millis in 0..253_402_300_800_000_u64, east in -1439..1440_i64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let text = humantime::format_rfc3339_millis(time).to_string();
        let millis = millis as i64;
        prop_assert_eq!(of(text.as_bytes(), false), Some(Moment(millis)));
        let sign = if east < 0 { '-' } else { '+' };
        let there = format!("{}{sign}{:02}:{:02}", text.trim_end_matches('Z'), east.abs() / 60, east.abs() % 60);
        prop_assert_eq!(of(there.as_bytes(), false), Some(Moment(millis - east * 60_000)));
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), utc: bool) {
        let _ = of(&bytes, utc);
    }

    #[test]
    fn what_is_almost_json_is_survived(text in r#"\{("(@?time(stamp)?|\\.|x)"?|[:,{}\[\]" ]|[0-9.eE+-]{1,12}|2026-11-21T07:46:28Z?){0,30}"#) {
        let _ = of(text.as_bytes(), false);
    }

    #[test]
    fn a_line_that_is_cut_says_the_same_or_nothing(cut in 0..60_usize) {
        let line = br#"{"a":[1],"timestamp":"2026-11-21T07:46:28.000Z","message":"x"}"#;
        let found = of(&line[..cut.min(line.len())], false);
        prop_assert!(found.is_none() || found == Some(Moment(THEN)));
    }
}
