//! What changed when, and why: the journal beside the state file. One JSON object per line in `journal.jsonl`, which
//! at 4 MiB becomes `journal.jsonl.1`; the one before that is gone. What happens to ten and more members of a service in
//! one step is one entry with the first of them: or the first reading of a thousand services would be all there is.
//!
//! Owns the entries and both files. Writing is [`Journal`]'s and never waits; reading is [`read`] and [`Follow`], from
//! another process while the first one writes.

mod reader;
mod writer;

use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use reader::{Filter, Follow, last, read};
pub use writer::Journal;

/// The file that is written.
const CURRENT: &str = "journal.jsonl";
/// The one before it.
const OLDER: &str = "journal.jsonl.1";
/// The size at which a file is full.
const FULL: u64 = 4 << 20;
/// The longest text in an entry: a znode's path is about 60.
const TEXT: usize = 512;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// synapse started.
    Start,
    /// synapse stopped, as it was told to.
    Stop,
    /// A member was found.
    MemberAdded,
    /// A member gets requests.
    MemberReady,
    /// A member gets no new requests.
    MemberDraining,
    /// A member has no slot any more.
    MemberRemoved,
    /// Members that vanished are kept.
    Held,
    /// Members that were kept are given up.
    Released,
    /// HAProxy was reloaded.
    Reload,
    /// HAProxy could not be reloaded, and the old configuration stands.
    ReloadFailed,
    /// The configuration was read.
    Config,
    /// A service was left out because HAProxy refuses what it says, or is in again.
    Quarantine,
    /// The audit put a server right.
    DriftRepaired,
    /// A ZooKeeper session changed its state.
    Zookeeper,
    /// Entries before this one were lost; `detail` has how many.
    Dropped,
    /// Something that a later version writes.
    #[serde(other)]
    Unknown,
}

/// One thing that happened. What does not apply is `None` and not written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in UTC to the millisecond (RFC 3339).
    #[serde(serialize_with = "to_rfc3339", deserialize_with = "from_rfc3339")]
    pub time: SystemTime,
    /// What.
    pub kind: Kind,
    /// To which service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// To which member, as `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Where that was found: a znode, a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its server in HAProxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The number of the reload, counted since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<u64>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// What else a person wants to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Entry {
    /// Something that happens now.
    #[must_use]
    pub fn now(kind: Kind) -> Self {
        Self {
            time: hostkit::clock::now(),
            kind,
            service: None,
            member: None,
            source: None,
            slot: None,
            cause: None,
            reload: None,
            duration_ms: None,
            detail: None,
        }
    }

    /// Texts come from registries too: each is cut at 512 bytes, so that a line is never long.
    fn cut(&mut self) {
        let texts = [
            &mut self.service,
            &mut self.member,
            &mut self.source,
            &mut self.slot,
            &mut self.cause,
            &mut self.detail,
        ];
        for text in texts.into_iter().flatten() {
            text.truncate(text.floor_char_boundary(TEXT));
        }
    }
}

fn to_rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

fn from_rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests;
