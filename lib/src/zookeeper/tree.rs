//! What a follower sees: paths, and the members registered below each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::member::{Member, Refusal};

/// All that a pattern matches.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// Paths that match and exist; of a pattern without `*`, the path itself even where it does not exist. A node is
    /// the same `Arc` until something about it changes.
    pub paths: BTreeMap<Arc<str>, Arc<Node>>,
    /// When all of it was last known to agree with ZooKeeper, as time since boot; `None` before the first complete
    /// reading, when `paths` is not to be believed.
    pub synced: Option<Duration>,
    /// What keeps it from being current, naming the ensemble or the path.
    pub trouble: Option<String>,
}

/// A path and what is registered below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Whether the path exists.
    pub exists: bool,
    /// Registrations by the name of their znode.
    pub members: BTreeMap<Arc<str>, Child>,
    /// The data of the path itself; empty where there is none, and where it is larger than 64 KiB.
    pub data: Arc<[u8]>,
    /// The transaction that created the path. Below one incarnation of a path a sequence number is given out once.
    pub(super) created: i64,
}

/// A registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Child {
    /// One that can be read.
    Member(Arc<Member>),
    /// One that cannot.
    Refused(Arc<Refusal>),
}

impl Child {
    /// The member, if it is one.
    #[must_use]
    pub fn member(&self) -> Option<&Arc<Member>> {
        match self {
            Self::Member(member) => Some(member),
            Self::Refused(_) => None,
        }
    }
}
