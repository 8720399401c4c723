//! The counters of the cache. Their names in `/metrics` are in `metrics`.

use hostkit::metrics::Counter;

use super::KeyLookup;
use super::memcached::MemcachedStatus;

#[derive(Debug, Default)]
pub(super) struct CacheCounters {
    pub(super) hits: Counter,
    pub(super) stale: Counter,
    pub(super) misses: Counter,
    pub(super) coalesced: Counter,
    pub(super) cached_errors: Counter,
    pub(super) rejected_queries: Counter,
    pub(super) memcached_hits: Counter,
    pub(super) backend_queries: Counter,
    pub(super) failed_queries: Counter,
    pub(super) purges: Counter,
}

impl CacheCounters {
    pub(super) fn hit(&self, lookup: &KeyLookup) {
        match lookup {
            KeyLookup::Grant { stale: true, .. } => self.stale.add(1),
            KeyLookup::Grant { .. } | KeyLookup::UnknownKey => self.hits.add(1),
        };
    }
}

/// The counters since the start, and the sizes now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheSnapshot {
    /// Lookups with a current entry in this process.
    pub hits: u64,
    /// Lookups with an expired grant, because the backend fails (stale-if-error).
    pub stale: u64,
    /// Lookups that started a query.
    pub misses: u64,
    /// Lookups that waited for a query in progress.
    pub coalesced: u64,
    /// Lookups denied because a query had failed a moment ago.
    pub cached_errors: u64,
    /// Queries that were not sent because too many were in progress.
    pub rejected_queries: u64,
    /// Queries answered by memcached.
    pub memcached_hits: u64,
    pub backend_queries: u64,
    /// Backend queries without a valid response.
    pub failed_queries: u64,
    pub purges: u64,
    /// Entries of known keys.
    pub positive_entries: usize,
    /// Entries of unknown keys and of errors.
    pub negative_entries: usize,
    /// Queries in progress, also to memcached.
    pub queries_in_flight: usize,
    /// memcached entries that were expired or not signed with our secret.
    pub invalid_entries: u64,
    pub servers: Vec<MemcachedStatus>,
}
