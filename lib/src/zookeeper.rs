//! Discovery: following registrations in ZooKeeper, for synapse and tsdb-collector.
//!
//! [`Sessions`] keeps one session per ensemble and hands out a [`Follow`] per path or pattern: a
//! [`watch::Receiver`](tokio::sync::watch::Receiver) of [`Tree`]s, each whole. Members are parsed here; which of them a
//! consumer may use (status, port, host), and what it keeps of them, it decides itself ([`Decode`]).
//!
//! What is known is never taken back because ZooKeeper is away: [`Tree::trouble`] says what is wrong, and the members
//! stay until ZooKeeper itself says that they are gone.
//!
//! Everything runs on the tokio runtime that called [`Sessions::follow`].

#[cfg(feature = "config")]
pub mod clusters;
mod ensemble;
mod follow;
mod live;
mod member;
mod name;
mod pattern;
mod payload;
mod reader;
mod scan;
mod session;
mod sessions;
mod tree;

pub use ensemble::Ensemble;
pub use member::{Endpoint, Format, Member, Port, Reason, Refusal, Registration, Status, sequence};
pub use name::Name;
pub use pattern::Pattern;
pub use payload::fuzz;
pub use session::{State, Stats};
pub use sessions::{Options, Sessions};
pub use tree::{Child, Decode, Node, Registered, Tree};

/// What a pattern matches, whole, again whenever it changes. Dropping it (and its clones) stops following.
pub type Follow<T = Registered> = tokio::sync::watch::Receiver<std::sync::Arc<Tree<T>>>;
