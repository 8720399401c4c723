//! A registration: what ServerSet and Nerve members say of themselves. [`super::payload`] reads them.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

/// What the children of a path are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberFormat {
    /// Twitter commons' ServerSet, as Aurora's executor writes it: children `member_<sequence>`, all others are
    /// somebody else's (locks, elections) and ignored.
    ServerSet,
    /// Nerve's: children of any name; `base64_<length>_<payload>_<sequence>` carry their payload.
    Nerve,
}

impl MemberFormat {
    /// Whether a child of this name is a registration.
    #[must_use]
    pub fn is_member(self, name: &str) -> bool {
        match self {
            Self::ServerSet => name.starts_with("member_"),
            Self::Nerve => true,
        }
    }
}

/// One registration. Nothing of it has been checked against what a consumer may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The number at the end of its znode's name, which grows with every registration below one path.
    pub sequence: Option<u64>,
    /// What it says of itself; a Nerve registration is alive while it is there.
    pub status: MemberStatus,
    /// Aurora's instance number.
    pub shard: Option<u32>,
    /// Where it is: `serviceEndpoint`, or Nerve's host and port.
    pub service: Option<MemberEndpoint>,
    /// Its other endpoints, by name, in that order.
    pub additional: Box<[(Arc<str>, MemberEndpoint)]>,
    /// What only Nerve registers.
    pub nerve: Option<Box<NerveAttributes>>,
}

impl Member {
    /// Whether it says that it serves (`ALIVE`).
    #[must_use]
    pub fn alive(&self) -> bool {
        self.status == MemberStatus::Alive
    }

    /// The additional endpoint of that name, or without a name the service endpoint.
    #[must_use]
    pub fn endpoint(&self, name: Option<&str>) -> Option<&MemberEndpoint> {
        let Some(name) = name else {
            return self.service.as_ref();
        };
        let index = self
            .additional
            .binary_search_by(|(known, _)| (**known).cmp(name));
        index.ok().map(|index| &self.additional[index].1)
    }
}

/// A host and a port as they were registered: any text, any number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberEndpoint {
    /// A DNS name or an address, if all is well.
    pub host: Arc<str>,
    /// The port.
    pub port: MemberPort,
}

/// What was registered as a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberPort {
    /// A number; 0 is what Aurora's executor registers when the primary port was not allocated.
    Number(u16),
    /// A number that no port has.
    OutOfRange,
    /// Nothing, a string, or something else.
    NotANumber,
}

impl MemberPort {
    /// The port, if it can be connected to.
    #[must_use]
    pub fn get(self) -> Option<NonZeroU16> {
        match self {
            Self::Number(number) => NonZeroU16::new(number),
            Self::OutOfRange | Self::NotANumber => None,
        }
    }
}

impl fmt::Display for MemberPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "port {number}"),
            Self::OutOfRange => f.write_str("a port beyond 65535"),
            Self::NotANumber => f.write_str("a port that is not a number"),
        }
    }
}

/// The status of a ServerSet member (commons' `Status` enumeration).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberStatus {
    /// It is gone.
    Dead,
    /// It does not serve yet.
    Starting,
    /// It serves. Aurora's executor registers nothing else.
    Alive,
    /// It is about to stop.
    Stopping,
    /// It has stopped.
    Stopped,
    /// It serves, but something is wrong.
    Warning,
    /// It says nothing, or something that is not in the enumeration.
    Unknown,
}

impl MemberStatus {
    /// The word, as it is registered.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dead => "DEAD",
            Self::Starting => "STARTING",
            Self::Alive => "ALIVE",
            Self::Stopping => "STOPPING",
            Self::Stopped => "STOPPED",
            Self::Warning => "WARNING",
            Self::Unknown => "UNKNOWN",
        }
    }

    pub(super) fn from_word(word: &str) -> Self {
        let all = [
            Self::Dead,
            Self::Starting,
            Self::Alive,
            Self::Stopping,
            Self::Stopped,
            Self::Warning,
        ];
        let known = all.into_iter().find(|status| status.word() == word);
        known.unwrap_or(Self::Unknown)
    }
}

/// What a Nerve registration says beside host and port. Any text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NerveAttributes {
    /// The instance's name.
    pub name: Option<String>,
    /// Its weight.
    pub weight: Option<u32>,
    /// Options for its HAProxy server line.
    pub options: Option<String>,
    /// Its HAProxy server id.
    pub server_id: Option<u32>,
    /// Its labels; at most 64.
    pub labels: BTreeMap<String, String>,
}

/// A registration that cannot be read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberError {
    /// The machine word.
    pub kind: MemberErrorKind,
    /// What a person needs beside it; printable, at most 200 characters.
    pub detail: String,
}

impl MemberError {
    pub(super) fn new(kind: MemberErrorKind, detail: impl AsRef<str>) -> Self {
        let detail = detail.as_ref().escape_debug().take(200).collect();
        Self { kind, detail }
    }
}

/// Why a registration cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberErrorKind {
    /// Its bytes are not what the format says: empty, not UTF-8, no JSON object, a wrong type, Thrift, more endpoints
    /// or labels than any task has.
    Malformed,
    /// It has more than 1 MiB.
    Oversized,
    /// ZooKeeper does not let this session read it.
    Unreadable,
}

impl MemberErrorKind {
    /// The word, as metrics have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Oversized => "oversized",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The sequence number of a znode's name: its last ten digits, if it ends with ten (ZooKeeper Programmer's Guide,
/// "Sequence Nodes").
#[must_use]
pub fn sequence_number(name: &str) -> Option<u64> {
    let digits = name.as_bytes().last_chunk::<10>()?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_number_is_ten_digits_at_the_end() {
        assert_eq!(sequence_number("member_0000000042"), Some(42));
        assert_eq!(sequence_number("0000000042"), Some(42));
        assert_eq!(sequence_number("i-abc_9999999999"), Some(9_999_999_999));
        for name in ["member_", "member_42", "member_00000000x2", "", "größe"] {
            assert_eq!(sequence_number(name), None, "{name}");
        }
    }

    #[test]
    fn only_member_children_are_a_server_sets() {
        assert!(MemberFormat::ServerSet.is_member("member_0000000001"));
        for name in [
            "base64_4_e30=_0000000001",
            "lock-0000000001",
            "a-member_0000000001",
        ] {
            assert!(!MemberFormat::ServerSet.is_member(name), "{name}");
            assert!(MemberFormat::Nerve.is_member(name), "{name}");
        }
    }
}
