//! The expiry of a grant: an RFC 3339 time in JSON and YAML, seconds since 1970 UTC in memory.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Serialize as _, Serializer};

/// The latest RFC 3339 time: 9999-12-31T23:59:59Z.
pub(crate) const MAX_EXPIRY: u64 = 253_402_300_799;

/// Parses RFC 3339 with any offset; without an offset it is UTC, and a date is the beginning of that day.
pub(crate) fn parse_expiry(text: &str) -> Result<u64, String> {
    let shown: String = text.chars().take(40).collect();
    let invalid = || format!("invalid time {shown:?}: write it as 2027-01-31T00:00:00Z");
    let (time, offset) = split_offset(text);
    let midnight;
    let time = if time.len() == "2027-01-31".len() {
        midnight = format!("{time}T00:00:00");
        &midnight
    } else {
        time
    };
    let time = humantime::parse_rfc3339_weak(time).map_err(|_| invalid())?;
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Ok(since
        .as_secs()
        .saturating_add_signed(offset)
        .min(MAX_EXPIRY))
}

/// A time without its offset, and the seconds to add for UTC.
fn split_offset(text: &str) -> (&str, i64) {
    let split = || {
        let (time, offset) = text.split_at_checked(text.len().checked_sub("+01:00".len())?)?;
        let sign = match offset.as_bytes() {
            [b'+', _, _, b':', _, _] => -1,
            [b'-', _, _, b':', _, _] => 1,
            _ => return None,
        };
        let number = |digits: &str| digits.parse::<u8>().ok().map(i64::from);
        let (hours, minutes) = (number(&offset[1..3])?, number(&offset[4..6])?);
        (!time.ends_with('Z') && hours < 24 && minutes < 60)
            .then_some((time, sign * (hours * 3600 + minutes * 60)))
    };
    split().unwrap_or((text, 0))
}

pub(crate) fn format_expiry(seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(MAX_EXPIRY));
    humantime::format_rfc3339_seconds(time).to_string()
}

pub(super) fn serialize<S: Serializer>(seconds: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    seconds.map(format_expiry).serialize(to)
}
