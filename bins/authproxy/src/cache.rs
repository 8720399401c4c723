//! The cache in front of a permissions backend.
//!
//! Owns the order of a lookup (this process, memcached, backend), single-flight, stale-if-error and purging. Lifetimes are
//! in `local`, the memcached entries in `entry` and `memcached`.
//!
//! * Refresh-ahead: from 80 % of a TTL on, the first request starts a refresh and is answered from the cache, so that a
//!   key in use never waits.
//! * Stale-if-error: while the backend fails, expired grants are served and marked, and do not wait for it. Negative
//!   results are never served stale.
//! * Single-flight: a lookup runs in a task of its own, so that it survives the client that started it.

mod counters;
mod entry;
mod local;
mod memcached;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::grant::{Grant, KeyHash};
use crate::permissions::{BackendUnavailable, PermissionsBackend};
use crate::request_error::PermissionsFailure;
use crate::settings;
use counters::CacheCounters;
use local::{CachedResult, LocalCache, LocalLookup};

pub(crate) use counters::CacheSnapshot;
pub use memcached::{ExpectedReply, MAX_VALUE_BYTES, MemcachedReply, parse as parse_reply};
pub use shared::SharedCache;

/// Backend lookups in flight; twice as many for keys with a cached grant, so that made-up keys do not keep others from
/// being refreshed.
const MAX_LOOKUPS: usize = 1_024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyLookup {
    Grant {
        grant: Arc<Grant>,
        /// It has expired, and the backend fails.
        stale: bool,
    },
    UnknownKey,
}

/// What a purge removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PurgeTarget {
    All,
    Key(KeyHash),
    /// All grants with this id.
    Id(String),
}

/// A permissions backend with a cache. Clones share both.
#[derive(Debug)]
pub struct PermissionsCache<P> {
    inner: Arc<CacheInner<P>>,
}

#[derive(Debug)]
struct CacheInner<P> {
    backend: P,
    settings: settings::CacheSettings,
    shared: Option<SharedCache>,
    state: Mutex<CacheState>,
    counts: CacheCounters,
    now: fn() -> Instant,
}

#[derive(Debug)]
struct CacheState {
    local: LocalCache,
    in_flight: HashMap<KeyHash, InFlightLookup>,
    /// The id of the last lookup.
    last_id: u64,
    /// Why the last failed lookup failed.
    last_failure: String,
}

pub(crate) type KeyLookupResult = Result<KeyLookup, BackendUnavailable>;

#[derive(Debug)]
struct InFlightLookup {
    /// After a purge there may be a second lookup of the same key; the result of the first is then not cached.
    id: u64,
    result: watch::Receiver<Option<KeyLookupResult>>,
}

impl<P> Clone for PermissionsCache<P> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<P: PermissionsBackend> PermissionsCache<P> {
    pub fn new(backend: P, settings: settings::CacheSettings, shared: Option<SharedCache>) -> Self {
        Self::with_clock(backend, settings, shared, Instant::now)
    }

    fn with_clock(
        backend: P,
        settings: settings::CacheSettings,
        shared: Option<SharedCache>,
        now: fn() -> Instant,
    ) -> Self {
        let state = CacheState {
            local: LocalCache::new(settings),
            in_flight: HashMap::new(),
            last_id: 0,
            last_failure: String::new(),
        };
        Self {
            inner: Arc::new(CacheInner {
                backend,
                settings,
                shared,
                state: Mutex::new(state),
                counts: CacheCounters::default(),
                now,
            }),
        }
    }

    pub fn backend(&self) -> &P {
        &self.inner.backend
    }

    /// Looks a key up. Does not wait for what this process has cached.
    ///
    /// # Errors
    /// Nothing is cached, and the backend fails, failed within the error TTL, or has too many lookups in flight.
    pub async fn look_up(&self, key: KeyHash) -> KeyLookupResult {
        let mut in_flight = match self.look_up_local(key) {
            Ok(result) => return result,
            Err(in_flight) => in_flight,
        };
        let result = in_flight.wait_for(Option::is_some).await;
        result
            .ok()
            .and_then(|result| result.clone())
            .unwrap_or_else(|| Err(BackendUnavailable::failed("the lookup was aborted")))
    }

    /// The result that this process has cached, or the lookup in flight to wait for.
    fn look_up_local(
        &self,
        key: KeyHash,
    ) -> Result<KeyLookupResult, watch::Receiver<Option<KeyLookupResult>>> {
        let counts = &self.inner.counts;
        let mut state = self.inner.state();
        match state.local.look_up(&key, (self.inner.now)()) {
            LocalLookup::Hit { lookup, refresh } => {
                counts.hit(&lookup);
                if refresh {
                    // With too many in flight, a later request starts the refresh.
                    let _ = self.join_or_start(&mut state, key, true);
                }
                Ok(Ok(lookup))
            }
            LocalLookup::Error => {
                counts.cached_errors.add(1);
                let detail = format!("the last lookup failed: {}", state.last_failure);
                Ok(Err(BackendUnavailable::failed(detail)))
            }
            LocalLookup::Miss { stale } => {
                match state.in_flight.contains_key(&key) {
                    true => counts.coalesced.add(1),
                    false => counts.misses.add(1),
                };
                match (self.join_or_start(&mut state, key, false), stale) {
                    (Some(in_flight), _) => Err(in_flight),
                    (None, Some(grant)) => {
                        let lookup = KeyLookup::Grant { grant, stale: true };
                        counts.hit(&lookup);
                        Ok(Ok(lookup))
                    }
                    (None, None) => Ok(Err(BackendUnavailable::new(
                        PermissionsFailure::Overloaded,
                        format!("{MAX_LOOKUPS} other lookups are in flight"),
                    ))),
                }
            }
        }
    }

    /// Joins the lookup of a key, or starts it. `None`: too many are in flight.
    fn join_or_start(
        &self,
        state: &mut CacheState,
        key: KeyHash,
        is_refresh: bool,
    ) -> Option<watch::Receiver<Option<KeyLookupResult>>> {
        if let Some(in_flight) = state.in_flight.get(&key) {
            return Some(in_flight.result.clone());
        }
        let limit = if state.local.has_grant(&key) {
            2 * MAX_LOOKUPS
        } else {
            MAX_LOOKUPS
        };
        if state.in_flight.len() >= limit {
            self.inner.counts.rejected_queries.add(1);
            return None;
        }
        state.last_id += 1;
        let id = state.last_id;
        let (sender, result) = watch::channel(None);
        let in_flight = InFlightLookup {
            id,
            result: result.clone(),
        };
        state.in_flight.insert(key, in_flight);
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let guard = LookupGuard { inner, key, id };
            let result = guard.inner.run_lookup(key, id, is_refresh).await;
            sender.send_replace(Some(result));
        });
        Some(result)
    }

    /// Removes keys from this process at once and from memcached in the background, and returns how many keys this
    /// process had cached. The results of lookups in flight reach their requests and are not cached; older memcached
    /// entries are ignored. Must be called inside a runtime.
    pub fn purge(&self, target: &PurgeTarget) -> usize {
        let mut state = self.inner.state();
        match target {
            PurgeTarget::Key(key) => drop(state.in_flight.remove(key)),
            PurgeTarget::All | PurgeTarget::Id(_) => state.in_flight.clear(),
        }
        let mut keys = state.local.purge(target);
        let count = keys.len();
        if let Some(shared) = &self.inner.shared {
            shared.ignore_older_entries();
        }
        drop(state);
        self.inner.counts.purges.add(1);
        if self.inner.shared.is_some() {
            if let PurgeTarget::Key(key) = target {
                // Another host may have stored an entry for a key that is not cached here.
                keys = vec![*key];
            }
            tokio::spawn(delete_shared(Arc::clone(&self.inner), keys));
        }
        count
    }

    /// The counters for `/metrics` and `/status`.
    pub fn snapshot(&self) -> CacheSnapshot {
        let (positive_entries, negative_entries, queries_in_flight) = {
            let state = self.inner.state();
            let (positive, negative) = state.local.len();
            (positive, negative, state.in_flight.len())
        };
        let shared = self.inner.shared.as_ref().map(SharedCache::snapshot);
        let (invalid_entries, servers) = shared.unwrap_or_default();
        let counts = &self.inner.counts;
        CacheSnapshot {
            hits: counts.hits.get(),
            stale: counts.stale.get(),
            misses: counts.misses.get(),
            coalesced: counts.coalesced.get(),
            cached_errors: counts.cached_errors.get(),
            rejected_queries: counts.rejected_queries.get(),
            memcached_hits: counts.memcached_hits.get(),
            backend_queries: counts.backend_queries.get(),
            failed_queries: counts.failed_queries.get(),
            purges: counts.purges.get(),
            positive_entries,
            negative_entries,
            queries_in_flight,
            invalid_entries,
            servers,
        }
    }
}

async fn delete_shared<P>(inner: Arc<CacheInner<P>>, keys: Vec<KeyHash>) {
    if let Some(shared) = &inner.shared {
        for key in keys {
            shared.delete(&key).await;
        }
    }
}

/// Ends a lookup, also when the backend panics: the followers get an error then.
struct LookupGuard<P> {
    inner: Arc<CacheInner<P>>,
    key: KeyHash,
    id: u64,
}

impl<P> Drop for LookupGuard<P> {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.end_lookup(&self.key, self.id);
    }
}

impl CacheState {
    /// Ends a lookup, and returns whether its result may be cached.
    fn end_lookup(&mut self, key: &KeyHash, id: u64) -> bool {
        let in_flight = self.in_flight.get(key);
        let is_current = in_flight.is_some_and(|in_flight| in_flight.id == id);
        if is_current {
            self.in_flight.remove(key);
        }
        is_current
    }
}

impl<P> CacheInner<P> {
    fn state(&self) -> MutexGuard<'_, CacheState> {
        // The state is consistent wherever a panic is possible.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: PermissionsBackend> CacheInner<P> {
    /// Queries memcached, then the backend, and caches the result. A refresh ignores memcached entries that are due for
    /// a refresh themselves.
    async fn run_lookup(&self, key: KeyHash, id: u64, is_refresh: bool) -> KeyLookupResult {
        let shared = match &self.shared {
            Some(shared) => shared.get(&key, &self.settings).await,
            None => None,
        };
        if let Some(cached) = &shared
            && !cached.expires_in.is_zero()
            && !(is_refresh && cached.refresh_in.is_zero())
        {
            self.counts.memcached_hits.add(1);
            let mut state = self.state();
            if state.end_lookup(&key, id) {
                state.local.insert(key, cached, (self.now)());
            }
            return Ok(cached.to_lookup());
        }
        self.counts.backend_queries.add(1);
        match self.backend.look_up(key).await {
            Ok(response) => {
                let cached = CachedResult::new(response, &self.settings);
                let mut state = self.state();
                if state.end_lookup(&key, id) {
                    state.local.insert(key, &cached, (self.now)());
                    if let Some(shared) = &self.shared {
                        shared.put(&key, &cached);
                    }
                }
                // Also with a TTL of 0: it answers the requests that waited for it.
                Ok(cached.to_lookup())
            }
            Err(unavailable) => {
                self.counts.failed_queries.add(1);
                let now = (self.now)();
                let mut state = self.state();
                state.last_failure.clone_from(&unavailable.detail);
                let stale = if state.end_lookup(&key, id) {
                    state.local.insert_error(key, shared.as_ref(), now)
                } else {
                    None
                };
                if let Some(stale) = &stale {
                    self.counts.hit(stale);
                }
                stale.ok_or(unavailable)
            }
        }
    }
}
