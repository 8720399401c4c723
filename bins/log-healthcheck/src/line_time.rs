//! The time that a line carries. Lines are hostile: no recursion, no allocation, each byte is read a bounded number of
//! times.
//!
//! A JSON object carries it in the first of `@timestamp`, `timestamp`, `time`; any other line at its beginning, bare or
//! in `[`. Ambiguous values are ignored: a `time` of 0.25 is a duration.

use memchr::memchr2;

use crate::wall_time::WallTime;

/// Members of a JSON object with its time, in order of precedence.
const TIME_MEMBERS: [&[u8]; 3] = [b"@timestamp", b"timestamp", b"time"];
/// The lowest time in seconds: September 2001.
const MIN_SECONDS: f64 = 1e9;
/// The lowest time in milliseconds: March 1973, or the year 5138 in seconds.
const MIN_MILLISECONDS: f64 = 1e11;
/// The end of times in milliseconds: the year 5138.
const MAX_MILLISECONDS: f64 = 1e14;

/// The time that `line` carries, if any. A time without a zone counts only with `assume_utc`.
pub(crate) fn parse_line_time(line: &[u8], assume_utc: bool) -> Option<WallTime> {
    match line {
        [b'{', members @ ..] => parse_object_time(members, assume_utc),
        [b'[', rest @ ..] => parse_iso8601(rest, assume_utc).map(|(moment, _)| moment),
        _ => parse_iso8601(line, assume_utc).map(|(moment, _)| moment),
    }
}

/// The time among the members of a JSON object, which may be truncated.
fn parse_object_time(mut rest: &[u8], assume_utc: bool) -> Option<WallTime> {
    let mut best: Option<(usize, WallTime)> = None;
    loop {
        rest = rest.trim_ascii_start();
        let Some((key, behind)) = parse_string(rest) else {
            break;
        };
        let Some(value) = behind.trim_ascii_start().strip_prefix(b":") else {
            break;
        };
        let value = value.trim_ascii_start();
        if let Some(rank) = TIME_MEMBERS.iter().position(|member| *member == key)
            && best.is_none_or(|(found, _)| rank < found)
            && let Some(moment) = parse_time_value(value, assume_utc)
        {
            if rank == 0 {
                return Some(moment);
            }
            best = Some((rank, moment));
        }
        let Some(next) = skip_value(value).map(<[u8]>::trim_ascii_start) else {
            break;
        };
        let Some(next) = next.strip_prefix(b",") else {
            break;
        };
        rest = next;
    }
    best.map(|(_, moment)| moment)
}

/// The time in a JSON value: a string in ISO 8601, or a number of seconds or milliseconds since 1970.
fn parse_time_value(value: &[u8], assume_utc: bool) -> Option<WallTime> {
    if let Some((text, _)) = parse_string(value) {
        return parse_iso8601(text, assume_utc)
            .filter(|(_, rest)| rest.is_empty())
            .map(|(moment, _)| moment);
    }
    let end = value
        .iter()
        .position(|byte| !matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))?;
    let number: f64 = std::str::from_utf8(&value[..end.min(40)])
        .ok()?
        .parse()
        .ok()?;
    match number {
        _ if (MIN_SECONDS..MIN_MILLISECONDS).contains(&number) => {
            Some(WallTime((number * 1000.0) as i64))
        }
        _ if (MIN_MILLISECONDS..MAX_MILLISECONDS).contains(&number) => {
            Some(WallTime(number as i64))
        }
        _ => None,
    }
}

/// The raw contents of the JSON string at the beginning of `text`, and the rest.
fn parse_string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let inside = text.strip_prefix(b"\"")?;
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', inside.get(at..)?)?;
        if inside[at] == b'"' {
            return Some((&inside[..at], &inside[at + 1..]));
        }
        at += 2;
    }
}

/// The rest of `text` after its first JSON value.
fn skip_value(mut text: &[u8]) -> Option<&[u8]> {
    let mut depth = 0_usize;
    loop {
        match text.first()? {
            b'"' => text = parse_string(text)?.1,
            b'{' | b'[' => {
                depth += 1;
                text = &text[1..];
                continue;
            }
            b'}' | b']' if depth == 0 => return Some(text),
            b'}' | b']' => {
                depth -= 1;
                text = &text[1..];
            }
            b',' if depth == 0 => return Some(text),
            _ => {
                text = &text[1..];
                continue;
            }
        }
        if depth == 0 {
            return Some(text);
        }
    }
}

/// The ISO 8601 date and time at the beginning of `text`, and the rest:
/// `2026-11-21T07:46:28[.123][Z|+01:00|+0100|+01]`, also with a space for `T`, a comma for the point, and a space
/// before the zone.
fn parse_iso8601(text: &[u8], assume_utc: bool) -> Option<(WallTime, &[u8])> {
    // Compared as a whole first: most lines begin otherwise.
    let [
        y1,
        y2,
        y3,
        y4,
        b'-',
        mo1,
        mo2,
        b'-',
        d1,
        d2,
        b'T' | b't' | b' ',
        h1,
        h2,
        b':',
        mi1,
        mi2,
        b':',
        s1,
        s2,
        rest @ ..,
    ] = text
    else {
        return None;
    };
    let year = parse_two_digits(*y1, *y2)? * 100 + parse_two_digits(*y3, *y4)?;
    let (month, day) = (parse_two_digits(*mo1, *mo2)?, parse_two_digits(*d1, *d2)?);
    let (hour, minute, second) = (
        parse_two_digits(*h1, *h2)?,
        parse_two_digits(*mi1, *mi2)?,
        parse_two_digits(*s1, *s2)?,
    );
    // 60 is a leap second.
    if !(1..=12).contains(&month) || day < 1 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if day > days_in_month(year, month) {
        return None;
    }
    let (millis, rest) = parse_fraction(rest)?;
    let (offset, rest) = match parse_zone(rest) {
        Some(found) => found,
        None if assume_utc => (0, rest),
        None => return None,
    };
    let minutes = (days_since_epoch(year, month, day) * 24 + hour) * 60 + minute - offset;
    Some((WallTime((minutes * 60 + second) * 1000 + millis), rest))
}

/// Two digits as a number.
fn parse_two_digits(tens: u8, ones: u8) -> Option<i64> {
    let digits = tens.is_ascii_digit() && ones.is_ascii_digit();
    digits.then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
}

/// The milliseconds of a fraction of a second, and the rest. A point without digits is invalid.
fn parse_fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let [b'.' | b',', digits @ ..] = text else {
        return Some((0, text));
    };
    let count = digits
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    if count == 0 {
        return None;
    }
    let digit = |place: usize| match digits[..count].get(place) {
        Some(digit) => i64::from(digit - b'0'),
        None => 0,
    };
    Some((digit(0) * 100 + digit(1) * 10 + digit(2), &digits[count..]))
}

/// The zone in minutes east of UTC, and the rest.
fn parse_zone(text: &[u8]) -> Option<(i64, &[u8])> {
    // A lone number after a space is more likely part of the message than a zone of whole hours.
    let (text, apart) = match text {
        [b' ', rest @ ..] => (rest, true),
        _ => (text, false),
    };
    let (sign, hours, minutes, rest) = match text {
        [b'Z' | b'z', rest @ ..] => return Some((0, rest)),
        [sign, h1, h2, b':', m1, m2, rest @ ..] => (
            sign,
            parse_two_digits(*h1, *h2)?,
            parse_two_digits(*m1, *m2)?,
            rest,
        ),
        [sign, h1, h2, m1, m2, rest @ ..] if m1.is_ascii_digit() => (
            sign,
            parse_two_digits(*h1, *h2)?,
            parse_two_digits(*m1, *m2)?,
            rest,
        ),
        [sign, h1, h2, rest @ ..] if !apart => (sign, parse_two_digits(*h1, *h2)?, 0, rest),
        _ => return None,
    };
    let east = match sign {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    (hours < 24 && minutes < 60).then_some((east * (hours * 60 + minutes), rest))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a day of the proleptic Gregorian calendar; `year` is not negative.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    // Counted in years that begin with March, so that the leap day is the last one.
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests;
