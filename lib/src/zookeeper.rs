//! Discovery: following registrations in ZooKeeper, for synapse and tsdb-collector.
//!
//! [`SessionPool`] keeps one session per ensemble and returns a [`SnapshotReceiver`] per path or pattern: a
//! [`watch::Receiver`](tokio::sync::watch::Receiver) of complete [`DiscoverySnapshot`]s. Members are parsed here; which
//! of them a consumer may use (status, port, host), and what it keeps of them, is its own decision ([`MemberDecoder`]).
//!
//! A ZooKeeper outage removes no member: [`DiscoverySnapshot::problem`] describes the outage, and the members stay
//! until ZooKeeper itself reports that they are gone.
//!
//! Everything runs on the tokio runtime that called [`SessionPool::follow`].

#[cfg(feature = "config")]
pub mod clusters;
mod ensemble;
mod follower;
mod follower_state;
mod member;
mod path_pattern;
pub(crate) mod payload;
mod reader;
mod scan;
mod session;
mod session_pool;
mod snapshot;
mod znode_name;

pub use ensemble::Ensemble;
pub use member::{
    Member, MemberEndpoint, MemberError, MemberErrorKind, MemberFormat, MemberPort, MemberStatus,
    NerveAttributes,
};
pub use path_pattern::PathPattern;
pub use session::{ConnectionState, EnsembleStats};
pub use session_pool::{SessionOptions, SessionPool};
pub use snapshot::{DiscoverySnapshot, MemberDecoder, MemberNode, MemberResult, PathNode};
pub use znode_name::ZnodeName;

/// The latest complete snapshot of what a pattern matches. Dropping it and its clones stops following.
pub type SnapshotReceiver<T = MemberResult> =
    tokio::sync::watch::Receiver<std::sync::Arc<DiscoverySnapshot<T>>>;
