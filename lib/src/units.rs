//! Durations and sizes: parsing those of command lines and configuration files, and formatting.

use std::time::Duration;

/// Parses a duration: a number of seconds, or a number with `ms`, `s`, `m`, `h` or `d`. Fractions are allowed.
///
/// # Errors
/// Not such a number, negative, or over a century.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}: write seconds, or a number with ms, s, m, h or d"
            ));
        }
    };
    let value: f64 = number
        .parse()
        .map_err(|_| "write seconds, or a number with ms, s, m, h or d".to_owned())?;
    Duration::try_from_secs_f64(value * seconds)
        .ok()
        .filter(|duration| duration.as_secs() <= 100 * 365 * 86_400)
        .ok_or_else(|| "expected a duration from 0 to 100 years".to_owned())
}

/// Parses a timeout: a duration that is not 0.
///
/// # Errors
/// As [`parse_duration`], or it is 0.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("a timeout of 0 would expire at once: raise it".to_owned()),
        duration => Ok(duration),
    }
}

/// Parses a size in bytes: a number, or a number with `K`, `M`, `G` or `T` (also `KiB` and so on) as powers of 1024.
///
/// # Errors
/// Not such a number, or too large.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "m" | "MiB" => 1 << 20,
        "G" | "g" | "GiB" => 1 << 30,
        "T" | "t" | "TiB" => 1 << 40,
        // Ambiguous: powers of 1000 or of 1024.
        "KB" | "kB" | "MB" | "GB" | "TB" => {
            let letter = unit[..1].to_uppercase();
            return Err(format!(
                "ambiguous unit {unit:?}: write {number}{letter} (powers of 1024)"
            ));
        }
        _ => {
            return Err(format!(
                "unknown unit {unit:?}: write bytes, or a number with K, M, G or T"
            ));
        }
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole
            .checked_mul(factor)
            .ok_or_else(|| "too large".to_owned());
    }
    let value: f64 = number
        .parse()
        .map_err(|_| "write bytes, or a number with K, M, G or T".to_owned())?;
    let bytes = value * factor as f64;
    if (0.0..9e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("too large or negative".to_owned())
    }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    (text[..end].trim(), &text[end..])
}

/// Formats a size for people: `1.5 GiB`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Formats a duration for people, in its largest unit: `3d`, `2h`, `40s`, `12ms`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{}ms", duration.as_millis()),
        seconds @ 1..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Formats a duration exactly, in the largest unit of which it is a whole number.
#[must_use]
pub fn format_setting(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
    ]
    .into_iter()
    .find(|(unit, _)| milliseconds > 0 && milliseconds.is_multiple_of(*unit))
    .map_or_else(
        || format!("{milliseconds}ms"),
        |(unit, name)| format!("{}{name}", milliseconds / unit),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed() {
        for (text, expected) in [
            ("15", 15_000),
            ("1.5", 1500),
            ("250ms", 250),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("30d", 2_592_000_000),
            ("0", 0),
        ] {
            assert_eq!(
                parse_duration(text).unwrap(),
                Duration::from_millis(expected),
                "{text}"
            );
        }
        for text in ["", "x", "-1", "5w", "40000d", "1e300", "NaN", "inf"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_parsed() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 65_536),
            ("1.5G", 3 << 29),
            ("2T", 2 << 40),
            ("512KiB", 512 << 10),
            ("1.5 GiB", 3 << 29),
        ] {
            assert_eq!(parse_size(text).unwrap(), expected, "{text}");
        }
        for text in ["", "K", "-1", "1P", "99999999999T", "1e30"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_size("2GB").unwrap_err().contains("write 2G "));
    }

    #[test]
    fn sizes_and_durations_are_formatted() {
        assert_eq!(format_size(512), "512 B");
        assert_eq!(format_size(3 << 29), "1.5 GiB");
        assert_eq!(format_duration(Duration::from_millis(12)), "12ms");
        assert_eq!(format_duration(Duration::from_secs(259_200)), "3d");
        for text in ["3d", "1h", "90m", "150s", "1500ms", "0ms"] {
            assert_eq!(format_setting(parse_duration(text).unwrap()), text);
        }
    }
}
