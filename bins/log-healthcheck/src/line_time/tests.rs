//! Times of lines: a table, an independent calendar, and hostile bytes.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;

/// 2026-11-21T07:46:28Z
const THEN: i64 = 1_795_247_188_000;

#[test]
fn line_with_a_time_is_parsed() {
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
            parse_line_time(line.as_bytes(), false),
            Some(WallTime(THEN + millis)),
            "{line}"
        );
    }
}

#[test]
fn line_without_a_time_has_none() {
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
        assert_eq!(parse_line_time(line.as_bytes(), false), None, "{line}");
    }
}

#[test]
fn time_without_a_zone_counts_only_with_assume_utc() {
    for line in [
        r#"{"timestamp":"2026-11-21 07:46:28,123"}"#,
        "2026-11-21 07:46:28,123 INFO x",
        "2026-11-21T07:46:28.123 - x",
    ] {
        assert_eq!(parse_line_time(line.as_bytes(), false), None, "{line}");
        assert_eq!(
            parse_line_time(line.as_bytes(), true),
            Some(WallTime(THEN + 123)),
            "{line}"
        );
    }
}

proptest! {
    #[test]
    fn iso_8601_agrees_with_another_calendar(millis in 0..253_402_300_800_000_u64, east in -1439..1440_i64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let text = humantime::format_rfc3339_millis(time).to_string();
        let millis = millis as i64;
        prop_assert_eq!(parse_line_time(text.as_bytes(), false), Some(WallTime(millis)));
        let sign = if east < 0 { '-' } else { '+' };
        let there = format!("{}{sign}{:02}:{:02}", text.trim_end_matches('Z'), east.abs() / 60, east.abs() % 60);
        prop_assert_eq!(parse_line_time(there.as_bytes(), false), Some(WallTime(millis - east * 60_000)));
    }

    #[test]
    fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), utc: bool) {
        let _ = parse_line_time(&bytes, utc);
    }

    #[test]
    fn almost_json_does_not_panic(text in r#"\{("(@?time(stamp)?|\\.|x)"?|[:,{}\[\]" ]|[0-9.eE+-]{1,12}|2026-11-21T07:46:28Z?){0,30}"#) {
        let _ = parse_line_time(text.as_bytes(), false);
    }

    #[test]
    fn truncated_line_has_the_same_time_or_none(cut in 0..60_usize) {
        let line = br#"{"a":[1],"timestamp":"2026-11-21T07:46:28.000Z","message":"x"}"#;
        let found = parse_line_time(&line[..cut.min(line.len())], false);
        prop_assert!(found.is_none() || found == Some(WallTime(THEN)));
    }
}
