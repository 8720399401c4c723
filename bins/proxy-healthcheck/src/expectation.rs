//! The status and the body that a healthy response has.

use std::fmt;
use std::str::FromStr;

use regex_lite::Regex;

/// A set of HTTP statuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StatusSet(Vec<(u16, u16)>);

impl StatusSet {
    pub(crate) fn contains(&self, status: u16) -> bool {
        self.0
            .iter()
            .any(|&(first, last)| (first..=last).contains(&status))
    }
}

impl FromStr for StatusSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(|item| parse_range(item.trim()))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// One item of a list: `200`, `2xx` or `200-399`.
fn parse_range(text: &str) -> Result<(u16, u16), String> {
    let status = |text: &str| {
        let status = text.parse().ok().filter(|_| text.len() == 3)?;
        (100..=599).contains(&status).then_some(status)
    };
    let range = match (text.strip_suffix("xx"), text.split_once('-')) {
        (Some(class), _) => status(&format!("{class}00")).map(|first| (first, first + 99)),
        (None, Some((first, last))) => status(first).zip(status(last)),
        (None, None) => status(text).map(|status| (status, status)),
    };
    range.filter(|(first, last)| first <= last).ok_or_else(|| {
        format!("invalid status {text:?}: write 200, 2xx, 200-399, or several with commas")
    })
}

impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, &(first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                99 if first % 100 == 0 => write!(f, "{comma}{}xx", first / 100)?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The body of a healthy response.
#[derive(Debug, Clone)]
pub(crate) enum ExpectedBody {
    /// This text, white space around it aside.
    Exact(String),
    /// A text with a match of this pattern.
    Match(Regex),
}

impl ExpectedBody {
    /// Whether `body` is as expected. If it `is_truncated`, it is only the beginning of the body.
    pub(crate) fn accepts(&self, body: &[u8], is_truncated: bool) -> bool {
        match self {
            Self::Exact(expected) => {
                !is_truncated && body.trim_ascii() == expected.as_bytes().trim_ascii()
            }
            Self::Match(pattern) => pattern.is_match(&String::from_utf8_lossy(body)),
        }
    }
}

impl fmt::Display for ExpectedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(expected) => write!(f, "{expected:?}"),
            Self::Match(pattern) => write!(f, "a match of {pattern}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_set_has_single_statuses_classes_and_ranges() {
        for (text, inside, outside) in [
            ("200", &[200][..], &[199, 201, 404][..]),
            ("2xx", &[200, 204, 299], &[199, 300]),
            ("200-399", &[200, 302, 399], &[199, 400]),
            ("200,404, 5xx", &[200, 404, 503], &[201, 405]),
        ] {
            let statuses: StatusSet = text.parse().unwrap();
            assert!(
                inside.iter().all(|status| statuses.contains(*status)),
                "{text}"
            );
            assert!(
                !outside.iter().any(|status| statuses.contains(*status)),
                "{text}"
            );
            assert_eq!(statuses.to_string(), text.replace(' ', ""));
        }
    }

    #[test]
    fn invalid_status_is_rejected() {
        for text in [
            "", "2", "ok", "2xx,", "600", "99", "6xx", "399-200", "xx", "2Xx", "-200", "200-",
            "+200", "é",
        ] {
            assert!(text.parse::<StatusSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn body_is_compared_whole_or_searched() {
        let ok = ExpectedBody::Exact("ok".to_owned());
        assert!(ok.accepts(b" ok\r\n", false));
        assert!(!ok.accepts(b"OK", false) && !ok.accepts(b"ok computer", false));
        assert!(!ok.accepts(b"ok", true), "there is more of it");
        let green = ExpectedBody::Match(Regex::new("status: *green").unwrap());
        assert!(green.accepts(b"\xff {status:  green}", true));
        assert!(!green.accepts(b"status: red", false));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_status_set_or_an_error(text in "[0-9x,-]{0,12}") {
            if let Ok(statuses) = text.parse::<StatusSet>() {
                proptest::prop_assert_eq!(statuses.to_string().parse(), Ok(statuses));
            }
        }
    }
}
