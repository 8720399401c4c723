//! What a healthy answer looks like.

use std::fmt;
use std::str::FromStr;

use regex_lite::Regex;

/// A set of HTTP statuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses(Vec<(u16, u16)>);

impl Statuses {
    /// Whether a status is one of them.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0
            .iter()
            .any(|&(first, last)| (first..=last).contains(&status))
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(|item| range(item.trim()))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// One item of a list: `200`, `2xx` or `200-399`.
fn range(text: &str) -> Result<(u16, u16), String> {
    let status = |text: &str| {
        let status = text.parse().ok().filter(|_| text.len() == 3)?;
        (100..=599).contains(&status).then_some(status)
    };
    let found = match (text.strip_suffix("xx"), text.split_once('-')) {
        (Some(class), _) => status(&format!("{class}00")).map(|first| (first, first + 99)),
        (None, Some((first, last))) => status(first).zip(status(last)),
        (None, None) => status(text).map(|status| (status, status)),
    };
    found.filter(|(first, last)| first <= last).ok_or_else(|| {
        format!("{text:?} is no status: write 200, 2xx, 200-399, or several with commas")
    })
}

impl fmt::Display for Statuses {
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

/// What the body has to be.
#[derive(Debug, Clone)]
pub enum Body {
    /// This, and nothing but white space around it.
    Exactly(String),
    /// Something in which this is found.
    Matching(Regex),
}

impl Body {
    /// Whether `body` is as expected. It is the whole body, unless it `is_cut`: then it is the beginning of it.
    #[must_use]
    pub fn accepts(&self, body: &[u8], is_cut: bool) -> bool {
        match self {
            Self::Exactly(expected) => {
                !is_cut && body.trim_ascii() == expected.as_bytes().trim_ascii()
            }
            Self::Matching(pattern) => pattern.is_match(&String::from_utf8_lossy(body)),
        }
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(expected) => write!(f, "{expected:?}"),
            Self::Matching(pattern) => write!(f, "a match of {pattern}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_single_ones_classes_ranges_and_lists() {
        for (text, inside, outside) in [
            ("200", &[200][..], &[199, 201, 404][..]),
            ("2xx", &[200, 204, 299], &[199, 300]),
            ("200-399", &[200, 302, 399], &[199, 400]),
            ("200,404, 5xx", &[200, 404, 503], &[201, 405]),
        ] {
            let statuses: Statuses = text.parse().unwrap();
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
    fn what_is_no_status_is_refused() {
        for text in [
            "", "2", "ok", "2xx,", "600", "99", "6xx", "399-200", "xx", "2Xx", "-200", "200-",
            "+200", "é",
        ] {
            assert!(text.parse::<Statuses>().is_err(), "{text}");
        }
    }

    #[test]
    fn bodies_are_compared_whole_or_searched() {
        let ok = Body::Exactly("ok".to_owned());
        assert!(ok.accepts(b" ok\r\n", false));
        assert!(!ok.accepts(b"OK", false) && !ok.accepts(b"ok computer", false));
        assert!(!ok.accepts(b"ok", true), "there is more of it");
        let green = Body::Matching(Regex::new("status: *green").unwrap());
        assert!(green.accepts(b"\xff {status:  green}", true));
        assert!(!green.accepts(b"status: red", false));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_set_of_statuses_or_an_error(text in "[0-9x,-]{0,12}") {
            if let Ok(statuses) = text.parse::<Statuses>() {
                proptest::prop_assert_eq!(statuses.to_string().parse(), Ok(statuses));
            }
        }
    }
}
