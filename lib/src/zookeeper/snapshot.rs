//! What a follower sees: paths, and what became of the members registered below each.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use super::member::{Member, MemberError, MemberFormat};
use super::znode_name::ZnodeName;

/// How registrations are read, and what is kept of them: each becomes that as it is read, and is held once.
pub trait MemberDecoder: Debug + Clone + Eq + Hash + Send + Sync + 'static {
    /// What a registration becomes.
    type Output: Debug + Clone + PartialEq + Send + Sync + 'static;

    /// What the children of a path are.
    fn format(&self) -> MemberFormat;

    /// What to keep of the child `name` of `path`, given what it says or why it cannot be read.
    fn decode(
        &self,
        path: &Arc<str>,
        name: &ZnodeName,
        result: Result<Member, MemberError>,
    ) -> Self::Output;
}

/// A registration as it is, or why it cannot be read.
pub type MemberResult = Result<Arc<Member>, Arc<MemberError>>;

/// Keeps all that is registered.
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
    /// Paths that match and exist; of a pattern without `*`, the path itself even where it does not exist. A node is
    /// the same `Arc` until something about it changes.
    pub paths: BTreeMap<Arc<str>, Arc<PathNode<T>>>,
    /// When all of it was last known to agree with ZooKeeper, as time since boot; `None` before the first complete
    /// reading, when `paths` is not to be believed.
    pub synced_at: Option<Duration>,
    /// What keeps it from being current, naming the ensemble or the path.
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

/// A path and what is registered below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathNode<T = MemberResult> {
    /// Whether the path exists.
    pub exists: bool,
    /// Registrations by the name of their znode.
    pub members: BTreeMap<ZnodeName, MemberNode<T>>,
    /// The data of the path itself; empty where there is none, and where it is larger than 64 KiB.
    pub data: Arc<[u8]>,
    /// The transaction that created the path. Below one incarnation of a path a sequence number is given out once.
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

/// A registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberNode<T = MemberResult> {
    /// What became of it.
    pub value: T,
    /// Whether its bytes cannot change: an ephemeral sequential znode.
    pub(super) immutable: bool,
}

impl MemberNode {
    /// The member, if it can be read.
    #[must_use]
    pub fn member(&self) -> Option<&Arc<Member>> {
        self.value.as_ref().ok()
    }
}
