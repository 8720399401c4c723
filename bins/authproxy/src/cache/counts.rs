//! What the cache has done.
//!
//! Owns the numbers. Their names in `/metrics` are `metrics`'.

use std::sync::atomic::{AtomicU64, Ordering};

use super::KeyLookup;
use super::memcached::ServerSnapshot;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// One more; returns how many there were.
    pub(super) fn add(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The numbers of one cache.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) hits: Count,
    pub(super) stale: Count,
    pub(super) misses: Count,
    pub(super) resting: Count,
    pub(super) crowded: Count,
    pub(super) shared_hits: Count,
    pub(super) questions: Count,
    pub(super) failures: Count,
    pub(super) purges: Count,
}

impl Counts {
    /// An answer from what is remembered.
    pub(super) fn hit(&self, known: &KeyLookup) {
        match known {
            KeyLookup::Grant { stale: true, .. } => self.stale.add(),
            KeyLookup::Grant { .. } | KeyLookup::UnknownKey => self.hits.add(),
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
    /// Look-ups that had to wait for an answer.
    pub misses: u64,
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
