//! Registrations of ServerSet and Nerve members. [`super::payload`] decodes them.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

/// The format of the registrations below a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberFormat {
    /// Twitter commons' ServerSet, as Aurora's executor writes it: children `member_<sequence>`; others (locks,
    /// elections) are ignored.
    ServerSet,
    /// Nerve's: children of any name; `base64_<length>_<payload>_<sequence>` carry their payload.
    Nerve,
}

impl MemberFormat {
    /// Whether a child of this name is a registration.
    pub(super) fn is_member(self, name: &str) -> bool {
        match self {
            Self::ServerSet => name.starts_with("member_"),
            Self::Nerve => true,
        }
    }
}

/// A registration. Its fields are not validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The number at the end of the znode's name, which grows with every registration below one path.
    pub sequence: Option<u64>,
    /// The registered status; a Nerve registration is always alive.
    pub status: MemberStatus,
    /// Aurora's instance number.
    pub shard: Option<u32>,
    /// The `serviceEndpoint`, or Nerve's host and port.
    pub service: Option<MemberEndpoint>,
    /// The other endpoints, sorted by name.
    pub additional: Box<[(Arc<str>, MemberEndpoint)]>,
    /// The attributes that only Nerve registers.
    pub nerve: Option<Box<NerveAttributes>>,
}

impl Member {
    /// Whether the status is `ALIVE`.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.status == MemberStatus::Alive
    }

    /// The additional endpoint of this name; without a name, the service endpoint.
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

/// A registered host and port, not validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberEndpoint {
    /// A DNS name or an address.
    pub host: Arc<str>,
    /// The port.
    pub port: MemberPort,
}

/// A registered port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberPort {
    /// A number; Aurora's executor registers 0 if the primary port was not allocated.
    Number(u16),
    /// A number outside 0 to 65535.
    OutOfRange,
    /// Missing, a string, or another type.
    NotANumber,
}

impl MemberPort {
    /// The port, if a client can connect to it.
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
    /// Gone.
    Dead,
    /// Not serving yet.
    Starting,
    /// Serving. Aurora's executor registers no other status.
    Alive,
    /// About to stop.
    Stopping,
    /// Stopped.
    Stopped,
    /// Serving with a problem.
    Warning,
    /// Missing, or not in the enumeration.
    Unknown,
}

impl MemberStatus {
    /// The registered value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
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

    pub(super) fn parse(word: &str) -> Self {
        let all = [
            Self::Dead,
            Self::Starting,
            Self::Alive,
            Self::Stopping,
            Self::Stopped,
            Self::Warning,
        ];
        let known = all.into_iter().find(|status| status.as_str() == word);
        known.unwrap_or(Self::Unknown)
    }
}

/// The attributes of a Nerve registration beside host and port, not validated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NerveAttributes {
    /// The name of the instance.
    pub name: Option<String>,
    /// The weight.
    pub weight: Option<u32>,
    /// Options for the HAProxy server line.
    pub options: Option<String>,
    /// The HAProxy server id.
    pub server_id: Option<u32>,
    /// The labels; at most 64.
    pub labels: BTreeMap<String, String>,
}

/// A registration that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberError {
    /// The category.
    pub kind: MemberErrorKind,
    /// The cause, for people; printable, at most 200 characters.
    pub detail: String,
}

impl MemberError {
    pub(super) fn new(kind: MemberErrorKind, detail: impl AsRef<str>) -> Self {
        let detail = detail.as_ref().escape_debug().take(200).collect();
        Self { kind, detail }
    }
}

/// The category of a [`MemberError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberErrorKind {
    /// Data that does not match the format: empty, not UTF-8, not a JSON object, a wrong type, Thrift, too many
    /// endpoints or labels.
    Malformed,
    /// More than 1 MiB.
    Oversized,
    /// ZooKeeper denies this session access.
    Unreadable,
}

/// The sequence number of a znode's name: its last ten digits (ZooKeeper Programmer's Guide, "Sequence Nodes").
pub(super) fn sequence_number(name: &str) -> Option<u64> {
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
    fn sequence_number_is_the_last_ten_digits() {
        assert_eq!(sequence_number("member_0000000042"), Some(42));
        assert_eq!(sequence_number("0000000042"), Some(42));
        assert_eq!(sequence_number("i-abc_9999999999"), Some(9_999_999_999));
        for name in ["member_", "member_42", "member_00000000x2", "", "größe"] {
            assert_eq!(sequence_number(name), None, "{name}");
        }
    }

    #[test]
    fn server_set_members_have_the_prefix_member() {
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
