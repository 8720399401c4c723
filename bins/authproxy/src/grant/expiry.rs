//! When a grant ends: a time of RFC 3339 outside, seconds inside.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Serialize as _, Serializer};

/// The last second that a time of RFC 3339 can say: 9999-12-31T23:59:59Z.
pub(crate) const LAST_SECOND: u64 = 253_402_300_799;

/// The seconds since 1970 UTC of a time: RFC 3339 with any offset, UTC if it has none, the beginning of the day if it is
/// only a date.
///
/// # Errors
/// It is no such time, or before 1970.
pub fn parse(text: &str) -> Result<u64, String> {
    let shown: String = text.chars().take(40).collect();
    let wrong = || format!("{shown:?} is no time: write it like 2027-01-31T00:00:00Z");
    let (time, behind) = offset(text);
    let midnight;
    let time = if time.len() == "2027-01-31".len() {
        midnight = format!("{time}T00:00:00");
        &midnight
    } else {
        time
    };
    let time = humantime::parse_rfc3339_weak(time).map_err(|_| wrong())?;
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Ok(since
        .as_secs()
        .saturating_add_signed(behind)
        .min(LAST_SECOND))
}

/// A time without its offset, and the seconds that lead from it to UTC.
fn offset(text: &str) -> (&str, i64) {
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

/// Seconds since 1970 UTC as a time of RFC 3339.
pub(crate) fn show(seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND));
    humantime::format_rfc3339_seconds(time).to_string()
}

pub(super) fn serialize<S: Serializer>(seconds: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    seconds.map(show).serialize(to)
}
