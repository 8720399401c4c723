//! What this process remembers of keys.
//!
//! Owns what is remembered for how long, and what may be said of a key at a moment. Pure: the time is an argument, and
//! nobody is asked anything. Who asks is `cache`'s.
//!
//! Keys that somebody has and keys that nobody has are kept apart, each bounded: who makes keys up forgets only what
//! was said of made-up keys.

use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::{KeyLookup, PurgeTarget};
use crate::grant::{BackendResponse, Grant, KeyHash};
use crate::settings;

/// The longest that anything is remembered: what an operator may write for "always" must not overflow a clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// An answer of the engine, and for how much longer it is what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// The grant; none for a key that nobody has.
    pub(super) grant: Option<Arc<Grant>>,
    /// Until the first request starts asking anew, without waiting.
    pub(super) due: Duration,
    /// Until requests wait for a new answer.
    pub(super) fresh: Duration,
    /// Until it is nothing worth, even if there is no new one.
    pub(super) stale: Duration,
}

impl Kept {
    /// An answer that has just come.
    pub(super) fn new(found: BackendResponse, settings: &settings::CacheSettings) -> Self {
        let longest = if found.grant.is_some() {
            settings.allowed
        } else {
            settings.denied
        };
        let fresh = found
            .ttl
            .map_or(longest, |ttl| ttl.min(longest))
            .min(LONGEST);
        Self::of(found.grant, fresh, Duration::ZERO, settings)
    }

    /// An answer that was given `age` ago, to be believed for `ttl` from then.
    pub(super) fn of(
        grant: Option<Arc<Grant>>,
        ttl: Duration,
        age: Duration,
        settings: &settings::CacheSettings,
    ) -> Self {
        let beyond = match &grant {
            Some(_) => settings.stale.min(LONGEST),
            None => Duration::ZERO,
        };
        Self {
            grant,
            due: (ttl / 5 * 4).saturating_sub(age),
            fresh: ttl.saturating_sub(age),
            stale: (ttl + beyond).saturating_sub(age),
        }
    }

    /// What it says.
    pub(super) fn known(&self, stale: bool) -> KeyLookup {
        match &self.grant {
            Some(grant) => KeyLookup::Grant {
                grant: Arc::clone(grant),
                stale,
            },
            None => KeyLookup::UnknownKey,
        }
    }
}

/// What may be said of a key.
#[derive(Debug)]
pub(super) enum Seen {
    /// This.
    Answer {
        known: KeyLookup,
        /// The engine is to be asked meanwhile.
        ask: bool,
    },
    /// Nothing, and the engine that failed a moment ago is not to be asked.
    Failed,
    /// What the engine is to be asked for.
    Ask {
        /// A grant that is believed while the engine cannot be asked.
        otherwise: Option<Arc<Grant>>,
    },
}

/// A key that somebody has.
#[derive(Debug)]
struct Somebody {
    grant: Arc<Grant>,
    due: Instant,
    fresh: Instant,
    stale: Instant,
    /// When the engine was last asked in vain, since it gave this grant.
    failed: Option<Instant>,
}

/// What else is said of a key.
#[derive(Debug, Clone, Copy)]
enum Nothing {
    /// Nobody has it.
    Nobody { until: Instant },
    /// The engine failed.
    Failed { until: Instant },
}

/// What is remembered.
#[derive(Debug)]
pub(super) struct Table {
    somebody: LruCache<KeyHash, Somebody>,
    nothing: LruCache<KeyHash, Nothing>,
    settings: settings::CacheSettings,
}

impl Table {
    pub(super) fn new(settings: settings::CacheSettings) -> Self {
        Self {
            // A bounded one would allocate for its bound at once.
            somebody: LruCache::unbounded(),
            nothing: LruCache::unbounded(),
            settings,
        }
    }

    /// What may be said of a key now.
    pub(super) fn look(&mut self, key: &KeyHash, now: Instant) -> Seen {
        let (error, allowed) = (self.settings.error, self.settings.allowed);
        if let Some(entry) = self.somebody.get(key)
            && now < entry.stale
        {
            let stale = now >= entry.fresh;
            // Nobody waits for an engine that is failing; it is asked once per `error` whether it still is.
            let is_failing = entry.failed.is_some_and(|at| now < after(at, allowed));
            let is_resting = entry.failed.is_some_and(|at| now < after(at, error));
            let grant = Arc::clone(&entry.grant);
            if stale && !is_failing {
                return Seen::Ask {
                    otherwise: Some(grant),
                };
            }
            return Seen::Answer {
                known: KeyLookup::Grant { grant, stale },
                ask: now >= entry.due && !is_resting,
            };
        }
        match self.nothing.get(key) {
            Some(Nothing::Nobody { until }) if now < *until => Seen::Answer {
                known: KeyLookup::UnknownKey,
                ask: false,
            },
            Some(Nothing::Failed { until }) if now < *until => Seen::Failed,
            _ => Seen::Ask { otherwise: None },
        }
    }

    /// Whether somebody has it, as far as is remembered.
    pub(super) fn is_somebody(&self, key: &KeyHash) -> bool {
        self.somebody.contains(key)
    }

    /// Remembers an answer, instead of what was remembered.
    pub(super) fn keep(&mut self, key: KeyHash, kept: &Kept, now: Instant) {
        let bound = self.settings.entries;
        match &kept.grant {
            Some(grant) => {
                self.nothing.pop(&key);
                let entry = Somebody {
                    grant: Arc::clone(grant),
                    due: after(now, kept.due),
                    fresh: after(now, kept.fresh),
                    stale: after(now, kept.stale),
                    failed: None,
                };
                put(&mut self.somebody, key, entry, bound);
            }
            None => {
                self.somebody.pop(&key);
                let until = after(now, kept.fresh);
                put(&mut self.nothing, key, Nothing::Nobody { until }, bound);
            }
        }
    }

    /// Remembers that the engine failed, and says what may be said of the key nevertheless. `elsewhere` is a grant that
    /// somebody else has kept.
    pub(super) fn fail(
        &mut self,
        key: KeyHash,
        elsewhere: Option<&Kept>,
        now: Instant,
    ) -> Option<KeyLookup> {
        let own = self.somebody.peek(&key).map(|entry| entry.stale);
        if let Some(kept) = elsewhere
            && kept.grant.is_some()
            && own.is_none_or(|stale| stale < after(now, kept.stale))
        {
            self.keep(key, kept, now);
        }
        match self.somebody.get_mut(&key) {
            Some(entry) if now < entry.stale => {
                entry.failed = Some(now);
                Some(KeyLookup::Grant {
                    grant: Arc::clone(&entry.grant),
                    stale: now >= entry.fresh,
                })
            }
            _ => {
                self.somebody.pop(&key);
                let until = after(now, self.settings.error);
                put(
                    &mut self.nothing,
                    key,
                    Nothing::Failed { until },
                    self.settings.entries,
                );
                None
            }
        }
    }

    /// Forgets, and says of which keys there was something to forget.
    pub(super) fn forget(&mut self, what: &PurgeTarget) -> Vec<KeyHash> {
        let is_meant = |key: &KeyHash, grant: Option<&Grant>| match what {
            PurgeTarget::All => true,
            PurgeTarget::Key(one) => key == one,
            PurgeTarget::Id(id) => grant.is_some_and(|grant| grant.id == *id),
        };
        let somebody = self.somebody.iter();
        let nothing = self.nothing.iter();
        let meant: Vec<KeyHash> = somebody
            .map(|(key, entry)| (key, Some(&*entry.grant)))
            .chain(nothing.map(|(key, _)| (key, None)))
            .filter(|(key, grant)| is_meant(key, *grant))
            .map(|(key, _)| *key)
            .collect();
        for key in &meant {
            self.somebody.pop(key);
            self.nothing.pop(key);
        }
        meant
    }

    /// How many keys are remembered that somebody has, and how many others.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.somebody.len(), self.nothing.len())
    }
}

fn put<K: Hash + Eq, V>(map: &mut LruCache<K, V>, key: K, value: V, bound: usize) {
    map.put(key, value);
    if map.len() > bound {
        map.pop_lru();
    }
}

fn after(now: Instant, time: Duration) -> Instant {
    now + time.min(LONGEST * 3)
}
