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
pub mod expand;
mod fields;
pub mod file;
mod lookup;
pub mod merge;
pub mod multi;
pub mod resolve;
pub mod select;
mod start;
#[cfg(test)]
pub(crate) mod testing;
pub mod zookeeper;

pub use start::{Context, Watch, start};

/// What a watcher found, by path: one entry under `""` for a source without paths, one for each path that matches a
/// pattern. Where no path matches a pattern, an entry under `""` without backends says since when that is known, or
/// why it is not. It is empty until there is anything to say.
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

/// Puts `found` into `out`, and wakes whoever waits for it unless only the time of the last answer differs.
fn publish(out: &watch::Sender<Arc<Found>>, found: Found) {
    out.send_if_modified(|before| {
        let news = !same_but_time(before, &found);
        *before = Arc::new(found);
        news
    });
}

fn same_but_time(before: &Found, after: &Found) -> bool {
    before.len() == after.len()
        && before.iter().zip(after).all(|(before, after)| {
            let (old, new) = (before.1, after.1);
            before.0 == after.0 && Arc::ptr_eq(old, new)
                || before.0 == after.0
                    && old.synced.is_some() == new.synced.is_some()
                    && old.partial == new.partial
                    && old.backends == new.backends
                    && old.rejects == new.rejects
                    && old.trouble == new.trouble
                    && old.job == new.job
                    && old.generator_config == new.generator_config
        })
}

/// What a source without paths found.
fn single(discovered: Discovered) -> Found {
    Found::from([(String::new(), Arc::new(discovered))])
}
