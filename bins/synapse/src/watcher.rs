//! Watchers: each follows one kind of source and publishes what it knows, whole, whenever that changes.
//!
//! A watcher never ends by itself and never takes back what it said because its source is away: it keeps the last
//! answer and sets `trouble`.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::Discovered;

pub mod base;
pub mod dns;
pub mod file;
pub mod multi;
pub mod resolve;
pub mod zookeeper;

/// What a watcher found, by path: one entry under `""` for a source without paths, one for each path that matches a
/// pattern.
pub type Found = BTreeMap<String, Arc<Discovered>>;

/// Something that follows a source.
pub trait Watcher: Send {
    /// Follows the source for ever, and puts what it knows into `out` whenever that changes. It ends when the receiver
    /// is gone; dropping the future stops it at once.
    fn watch(
        self: Box<Self>,
        out: watch::Sender<Arc<Found>>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}
