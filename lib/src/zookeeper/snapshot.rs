//! Discovery snapshots: paths, and the decoded members registered below each.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use super::member::{Member, MemberError, MemberFormat};
use super::znode_name::ZnodeName;

/// Decodes registrations. Each is converted as it is read, and only the result is stored.
pub trait MemberDecoder: Debug + Clone + Eq + Hash + Send + Sync + 'static {
    /// What a registration is converted to.
    type Output: Debug + Clone + PartialEq + Send + Sync + 'static;

    /// The format of the registrations.
    fn format(&self) -> MemberFormat;

    /// Converts the child `name` of `path`, or the error of reading it.
    fn decode(
        &self,
        path: &Arc<str>,
        name: &ZnodeName,
        result: Result<Member, MemberError>,
    ) -> Self::Output;
}

/// A registration as it was registered, or the error of reading it.
pub type MemberResult = Result<Arc<Member>, Arc<MemberError>>;

/// Stores registrations as they are.
impl MemberDecoder for MemberFormat {
    type Output = MemberResult;

    fn format(&self) -> MemberFormat {
        *self
    }

    fn decode(
        &self,
        _: &Arc<str>,
        _: &ZnodeName,
        result: Result<Member, MemberError>,
    ) -> MemberResult {
        result.map(Arc::new).map_err(Arc::new)
    }
}

/// All that a pattern matches.
#[derive(Debug, Clone)]
pub struct DiscoverySnapshot<T = MemberResult> {
    /// The matching paths; for a pattern without `*`, the path itself even if it does not exist. A node stays the same
    /// `Arc` until it changes.
    pub paths: BTreeMap<Arc<str>, Arc<PathNode<T>>>,
    /// When all of it last agreed with ZooKeeper, as time since boot; `None` before the first complete scan, when
    /// `paths` is incomplete.
    pub synced_at: Option<Duration>,
    /// The problem that keeps it from being current, with the ensemble or path.
    pub problem: Option<String>,
}

impl<T> Default for DiscoverySnapshot<T> {
    fn default() -> Self {
        Self {
            paths: BTreeMap::new(),
            synced_at: None,
            problem: None,
        }
    }
}

/// A path and the members registered below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathNode<T = MemberResult> {
    /// Whether the path exists.
    pub exists: bool,
    /// The members by the name of their znode.
    pub members: BTreeMap<ZnodeName, MemberNode<T>>,
    /// The data of the path itself; empty if it has more than 64 KiB.
    pub data: Arc<[u8]>,
    /// The transaction that created the path. Sequence numbers are unique only within one incarnation of a path.
    pub(super) created: i64,
}

impl<T> Default for PathNode<T> {
    fn default() -> Self {
        Self {
            exists: false,
            members: BTreeMap::new(),
            data: Arc::default(),
            created: 0,
        }
    }
}

/// The znode of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberNode<T = MemberResult> {
    /// The result of [`MemberDecoder::decode`].
    pub value: T,
    /// Whether its data cannot change: an ephemeral sequential znode.
    pub(super) immutable: bool,
}

impl MemberNode {
    /// The member, unless reading it failed.
    #[must_use]
    pub fn member(&self) -> Option<&Arc<Member>> {
        self.value.as_ref().ok()
    }
}
