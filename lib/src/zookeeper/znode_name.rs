//! Names of member znodes. There may be hundreds of thousands, and nearly all differ only in their number.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::member::sequence_number;

/// The name of a child of a path; that of a ServerSet member needs no memory of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZnodeName(NameEncoding);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum NameEncoding {
    /// `member_` and ten digits.
    Member(u32),
    Other(Arc<str>),
}

impl ZnodeName {
    /// The name as text.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match &self.0 {
            NameEncoding::Member(number) => Cow::Owned(format!("member_{number:010}")),
            NameEncoding::Other(text) => Cow::Borrowed(text),
        }
    }
}

impl From<&str> for ZnodeName {
    fn from(text: &str) -> Self {
        let digits = text.strip_prefix("member_").filter(|rest| rest.len() == 10);
        let number = digits.and_then(sequence_number);
        Self(match number.and_then(|number| number.try_into().ok()) {
            Some(number) => NameEncoding::Member(number),
            None => NameEncoding::Other(text.into()),
        })
    }
}

impl fmt::Display for ZnodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_round_trips_through_text() {
        assert_eq!(size_of::<ZnodeName>(), 16);
        assert_eq!(
            ZnodeName::from("member_4294967295").0,
            NameEncoding::Member(u32::MAX)
        );
        for text in [
            "",
            "member_0000000000",
            "member_0000000042",
            "member_4294967295",
            "member_4294967296",
            "member_-2147483648",
            "member_+000000001",
            "member_42",
            "member_00000000042",
            "amember_0000000042",
            "i-0abc_0000000042",
            "größe",
        ] {
            assert_eq!(ZnodeName::from(text).to_string(), text);
        }
    }
}
