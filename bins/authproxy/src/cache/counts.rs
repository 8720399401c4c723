//! What the cache has done.
//!
//! Owns the numbers. Their names in `/metrics` are `metrics`'.

use hostkit::metrics::Counter;

use super::KeyLookup;
use super::memcached::ServerSnapshot;

/// The numbers of one cache.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) hits: Counter,
    pub(super) stale: Counter,
    pub(super) misses: Counter,
    pub(super) coalesced: Counter,
    pub(super) resting: Counter,
    pub(super) crowded: Counter,
    pub(super) shared_hits: Counter,
    pub(super) questions: Counter,
    pub(super) failures: Counter,
    pub(super) purges: Counter,
}

impl Counts {
    /// An answer from what is remembered.
    pub(super) fn hit(&self, known: &KeyLookup) {
        match known {
            KeyLookup::Grant { stale: true, .. } => self.stale.add(1),
            KeyLookup::Grant { .. } | KeyLookup::UnknownKey => self.hits.add(1),
        };
    }
}

/// What the cache has done since the start, and what it holds now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Look-ups answered at once from what this process remembers.
    pub hits: u64,
    /// Look-ups answered with a grant that is over, since the engine fails.
    pub stale: u64,
    /// Lookups that started a query.
    pub misses: u64,
    /// Lookups that waited for a query in progress.
    pub coalesced: u64,
    /// Look-ups refused since the engine had failed a moment ago.
    pub resting: u64,
    /// Questions not asked since too many were under way.
    pub crowded: u64,
    /// Questions that memcached had the answer to.
    pub shared_hits: u64,
    /// Questions to the engine.
    pub questions: u64,
    /// Those of them that it failed to answer.
    pub failures: u64,
    /// Purges.
    pub purges: u64,
    /// Keys remembered now that somebody has.
    pub known: usize,
    /// Keys remembered now that nobody has, or that the engine failed about.
    pub unknown: usize,
    /// Questions under way now, also to memcached.
    pub flights: usize,
    /// memcached entries that were over, or signed by nobody we know.
    pub shared_refused: u64,
    /// The memcached servers, as they are configured.
    pub servers: Vec<ServerSnapshot>,
}
