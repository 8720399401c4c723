//! The lookup results that this process has cached.
//!
//! Owns positive, negative and error TTLs, refresh-ahead and stale-if-error. Pure: the time is an argument. Positive and
//! negative entries have separate bounds, so that made-up keys evict only each other.

use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::{KeyLookup, PurgeTarget};
use crate::grant::{BackendResponse, Grant, KeyHash};
use crate::settings;

/// An operator may write any duration for "always": it must not overflow a clock.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// A response of the backend with its remaining lifetimes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CachedResult {
    /// `None` for an unknown key.
    pub(super) grant: Option<Arc<Grant>>,
    /// The first request after this starts a refresh, without waiting for it.
    pub(super) refresh_in: Duration,
    /// Requests after this wait for a new result.
    pub(super) expires_in: Duration,
    /// It is served until then while the backend fails.
    pub(super) stale_for: Duration,
}

impl CachedResult {
    pub(super) fn new(response: BackendResponse, settings: &settings::CacheSettings) -> Self {
        let longest = if response.grant.is_some() {
            settings.allowed
        } else {
            settings.denied
        };
        let ttl = response
            .ttl
            .map_or(longest, |ttl| ttl.min(longest))
            .min(MAX_TTL);
        Self::with_age(response.grant, ttl, Duration::ZERO, settings)
    }

    /// A result of `age` ago with a TTL from then.
    pub(super) fn with_age(
        grant: Option<Arc<Grant>>,
        ttl: Duration,
        age: Duration,
        settings: &settings::CacheSettings,
    ) -> Self {
        let stale = match &grant {
            Some(_) => settings.stale.min(MAX_TTL),
            None => Duration::ZERO,
        };
        Self {
            grant,
            refresh_in: (ttl / 5 * 4).saturating_sub(age),
            expires_in: ttl.saturating_sub(age),
            stale_for: (ttl + stale).saturating_sub(age),
        }
    }

    pub(super) fn to_lookup(&self) -> KeyLookup {
        match &self.grant {
            Some(grant) => KeyLookup::Grant {
                grant: Arc::clone(grant),
                stale: false,
            },
            None => KeyLookup::UnknownKey,
        }
    }
}

#[derive(Debug)]
pub(super) enum LocalLookup {
    Hit {
        lookup: KeyLookup,
        /// The caller starts a refresh.
        refresh: bool,
    },
    /// The backend failed within the error TTL.
    Error,
    Miss {
        /// An expired grant, to be served if no lookup can be started.
        stale: Option<Arc<Grant>>,
    },
}

#[derive(Debug)]
struct PositiveEntry {
    grant: Arc<Grant>,
    refresh_at: Instant,
    expires_at: Instant,
    stale_until: Instant,
    /// The last failed refresh of this grant.
    failed_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum NegativeEntry {
    UnknownKey { expires_at: Instant },
    Error { expires_at: Instant },
}

#[derive(Debug)]
pub(super) struct LocalCache {
    positive: LruCache<KeyHash, PositiveEntry>,
    negative: LruCache<KeyHash, NegativeEntry>,
    settings: settings::CacheSettings,
}

impl LocalCache {
    pub(super) fn new(settings: settings::CacheSettings) -> Self {
        Self {
            // A bounded `LruCache` allocates for its bound at once; `put` keeps these within it.
            positive: LruCache::unbounded(),
            negative: LruCache::unbounded(),
            settings,
        }
    }

    pub(super) fn look_up(&mut self, key: &KeyHash, now: Instant) -> LocalLookup {
        let (error, allowed) = (self.settings.error, self.settings.allowed);
        if let Some(entry) = self.positive.get(key)
            && now < entry.stale_until
        {
            let stale = now >= entry.expires_at;
            // Requests do not wait for a failing backend; it is retried once per error TTL.
            let is_failing = entry.failed_at.is_some_and(|at| now < after(at, allowed));
            let has_error = entry.failed_at.is_some_and(|at| now < after(at, error));
            let grant = Arc::clone(&entry.grant);
            if stale && !is_failing {
                return LocalLookup::Miss { stale: Some(grant) };
            }
            return LocalLookup::Hit {
                lookup: KeyLookup::Grant { grant, stale },
                refresh: now >= entry.refresh_at && !has_error,
            };
        }
        match self.negative.get(key) {
            Some(NegativeEntry::UnknownKey { expires_at }) if now < *expires_at => {
                LocalLookup::Hit {
                    lookup: KeyLookup::UnknownKey,
                    refresh: false,
                }
            }
            Some(NegativeEntry::Error { expires_at }) if now < *expires_at => LocalLookup::Error,
            _ => LocalLookup::Miss { stale: None },
        }
    }

    pub(super) fn has_grant(&self, key: &KeyHash) -> bool {
        self.positive.contains(key)
    }

    pub(super) fn insert(&mut self, key: KeyHash, cached: &CachedResult, now: Instant) {
        let bound = self.settings.entries;
        match &cached.grant {
            Some(grant) => {
                self.negative.pop(&key);
                let entry = PositiveEntry {
                    grant: Arc::clone(grant),
                    refresh_at: after(now, cached.refresh_in),
                    expires_at: after(now, cached.expires_in),
                    stale_until: after(now, cached.stale_for),
                    failed_at: None,
                };
                put(&mut self.positive, key, entry, bound);
            }
            None => {
                self.positive.pop(&key);
                let expires_at = after(now, cached.expires_in);
                let entry = NegativeEntry::UnknownKey { expires_at };
                put(&mut self.negative, key, entry, bound);
            }
        }
    }

    /// Caches that the backend failed, and returns a stale grant if there is one: of this process or `shared`, whichever
    /// lasts longer.
    pub(super) fn insert_error(
        &mut self,
        key: KeyHash,
        shared: Option<&CachedResult>,
        now: Instant,
    ) -> Option<KeyLookup> {
        let own = self.positive.peek(&key).map(|entry| entry.stale_until);
        if let Some(shared) = shared
            && shared.grant.is_some()
            && own.is_none_or(|stale_until| stale_until < after(now, shared.stale_for))
        {
            self.insert(key, shared, now);
        }
        match self.positive.get_mut(&key) {
            Some(entry) if now < entry.stale_until => {
                entry.failed_at = Some(now);
                Some(KeyLookup::Grant {
                    grant: Arc::clone(&entry.grant),
                    stale: now >= entry.expires_at,
                })
            }
            _ => {
                self.positive.pop(&key);
                let expires_at = after(now, self.settings.error);
                let entry = NegativeEntry::Error { expires_at };
                put(&mut self.negative, key, entry, self.settings.entries);
                None
            }
        }
    }

    /// Removes entries, and returns their keys.
    pub(super) fn purge(&mut self, target: &PurgeTarget) -> Vec<KeyHash> {
        let matches = |key: &KeyHash, grant: Option<&Grant>| match target {
            PurgeTarget::All => true,
            PurgeTarget::Key(one) => key == one,
            PurgeTarget::Id(id) => grant.is_some_and(|grant| grant.id == *id),
        };
        let positive = self.positive.iter();
        let negative = self.negative.iter();
        let keys: Vec<KeyHash> = positive
            .map(|(key, entry)| (key, Some(&*entry.grant)))
            .chain(negative.map(|(key, _)| (key, None)))
            .filter(|(key, grant)| matches(key, *grant))
            .map(|(key, _)| *key)
            .collect();
        for key in &keys {
            self.positive.pop(key);
            self.negative.pop(key);
        }
        keys
    }

    /// The number of positive and of negative entries.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.positive.len(), self.negative.len())
    }
}

fn put<K: Hash + Eq, V>(map: &mut LruCache<K, V>, key: K, value: V, bound: usize) {
    map.put(key, value);
    if map.len() > bound {
        map.pop_lru();
    }
}

fn after(now: Instant, time: Duration) -> Instant {
    now + time.min(MAX_TTL * 3)
}
