//! What a follower sees: paths, and what became of the members registered below each.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use super::member::{Format, Member, Refusal};
use super::name::Name;

/// How registrations are read, and what is kept of them: each becomes that as it is read, and is held once.
pub trait Decode: Debug + Clone + Eq + Hash + Send + Sync + 'static {
    /// What a registration becomes.
    type Kept: Debug + Clone + PartialEq + Send + Sync + 'static;

    /// What the children of a path are.
    fn format(&self) -> Format;

    /// What to keep of the child `name` of `path`, given what it says or why it cannot be read.
    fn keep(&self, path: &Arc<str>, name: &Name, said: Result<Member, Refusal>) -> Self::Kept;
}

/// A registration as it is, or why it cannot be read.
pub type Registered = Result<Arc<Member>, Arc<Refusal>>;

/// Keeps all that is registered.
impl Decode for Format {
    type Kept = Registered;

    fn format(&self) -> Format {
        *self
    }

    fn keep(&self, _: &Arc<str>, _: &Name, said: Result<Member, Refusal>) -> Registered {
        said.map(Arc::new).map_err(Arc::new)
    }
}

/// All that a pattern matches.
#[derive(Debug, Clone)]
pub struct Tree<T = Registered> {
    /// Paths that match and exist; of a pattern without `*`, the path itself even where it does not exist. A node is
    /// the same `Arc` until something about it changes.
    pub paths: BTreeMap<Arc<str>, Arc<Node<T>>>,
    /// When all of it was last known to agree with ZooKeeper, as time since boot; `None` before the first complete
    /// reading, when `paths` is not to be believed.
    pub synced: Option<Duration>,
    /// What keeps it from being current, naming the ensemble or the path.
    pub trouble: Option<String>,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self {
            paths: BTreeMap::new(),
            synced: None,
            trouble: None,
        }
    }
}

/// A path and what is registered below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<T = Registered> {
    /// Whether the path exists.
    pub exists: bool,
    /// Registrations by the name of their znode.
    pub members: BTreeMap<Name, Child<T>>,
    /// The data of the path itself; empty where there is none, and where it is larger than 64 KiB.
    pub data: Arc<[u8]>,
    /// The transaction that created the path. Below one incarnation of a path a sequence number is given out once.
    pub(super) created: i64,
}

impl<T> Default for Node<T> {
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
pub struct Child<T = Registered> {
    /// What became of it.
    pub kept: T,
    /// Whether its bytes cannot change: an ephemeral sequential znode.
    pub(super) settled: bool,
}

impl Child {
    /// The member, if it can be read.
    #[must_use]
    pub fn member(&self) -> Option<&Arc<Member>> {
        self.kept.as_ref().ok()
    }
}
