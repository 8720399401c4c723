//! What is known of a key, without asking the permissions engine for every request.
//!
//! Owns the order in which a key is looked up: this process, then memcached, then the engine, which is asked about one
//! key once however many requests wait; what happens when it fails; and purging. What is remembered for how long is
//! `table`'s, what stands in memcached `entry`'s and `memcached`'s.
//!
//! * From 80 % of an answer's time on, the first request starts asking anew and is answered from what is known, so that
//!   a key in use never waits. After it, requests wait.
//! * If the engine fails, a grant is believed for longer ([`settings::CacheSettings::stale`]) and marked; "nobody has this key"
//!   is not. While it keeps failing nobody waits for it.
//! * A question runs in a task of its own: the client that was first may go away.

mod counts;
mod entry;
mod memcached;
mod shared;
mod table;
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
use counts::Counts;
use table::{Kept, Seen, Table};

pub use counts::Snapshot;
pub use memcached::{Asked, LONGEST_VALUE, Reply, ServerSnapshot, parse as parse_reply};
pub use shared::SharedCache;

/// Keys that may be asked about at once; as many more of which a grant was known, so that made-up keys do not keep
/// others from being renewed.
const FLIGHTS: usize = 1_024;

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyLookup {
    /// Somebody has it.
    Grant {
        /// What it may be used for.
        grant: Arc<Grant>,
        /// Its time is over, and the engine fails.
        stale: bool,
    },
    /// Nobody has it.
    UnknownKey,
}

/// What is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PurgeTarget {
    /// Everything.
    All,
    /// What is known of one key.
    Key(KeyHash),
    /// The grants of this id.
    Id(String),
}

/// A permissions engine with a memory. Clones share it.
#[derive(Debug)]
pub struct PermissionsCache<P> {
    inner: Arc<Inner<P>>,
}

#[derive(Debug)]
struct Inner<P> {
    engine: P,
    settings: settings::CacheSettings,
    shared: Option<SharedCache>,
    state: Mutex<State>,
    counts: Counts,
    /// The clock.
    now: fn() -> Instant,
}

#[derive(Debug)]
struct State {
    table: Table,
    flights: HashMap<KeyHash, Flight>,
    /// How many flights there have been.
    last: u64,
    /// Why the engine failed last.
    last_failure: String,
}

/// What is known of a key, or that nothing is.
pub type KeyLookupResult = Result<KeyLookup, BackendUnavailable>;

/// A question under way.
#[derive(Debug)]
struct Flight {
    /// Which one it is: after a purge there may be a second one about the same key, and the first no longer counts.
    number: u64,
    answer: watch::Receiver<Option<KeyLookupResult>>,
}

impl<P> Clone for PermissionsCache<P> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<P: PermissionsBackend> PermissionsCache<P> {
    /// Remembers what `engine` says, and shares it if there is something to share it over.
    #[must_use]
    pub fn new(engine: P, settings: settings::CacheSettings, shared: Option<SharedCache>) -> Self {
        Self::timed(engine, settings, shared, Instant::now)
    }

    fn timed(
        engine: P,
        settings: settings::CacheSettings,
        shared: Option<SharedCache>,
        now: fn() -> Instant,
    ) -> Self {
        let state = State {
            table: Table::new(settings),
            flights: HashMap::new(),
            last: 0,
            last_failure: String::new(),
        };
        Self {
            inner: Arc::new(Inner {
                engine,
                settings,
                shared,
                state: Mutex::new(state),
                counts: Counts::default(),
                now,
            }),
        }
    }

    /// The engine behind it.
    #[must_use]
    pub fn engine(&self) -> &P {
        &self.inner.engine
    }

    /// What is known of a key. Does not wait for what this process remembers.
    ///
    /// # Errors
    /// Nothing is, and the engine fails, or has failed a moment ago, or is being asked about too many keys.
    pub async fn look_up(&self, key: KeyHash) -> KeyLookupResult {
        let mut answer = match self.look(key) {
            Ok(answer) => return answer,
            Err(flight) => flight,
        };
        let answer = answer.wait_for(Option::is_some).await;
        answer
            .ok()
            .and_then(|answer| answer.clone())
            .unwrap_or_else(|| Err(BackendUnavailable::failed("the question was given up")))
    }

    /// What this process remembers, or who will know.
    fn look(
        &self,
        key: KeyHash,
    ) -> Result<KeyLookupResult, watch::Receiver<Option<KeyLookupResult>>> {
        let counts = &self.inner.counts;
        let mut state = self.inner.state();
        match state.table.look(&key, (self.inner.now)()) {
            Seen::Answer { known, ask } => {
                counts.hit(&known);
                if ask {
                    // As many as may be under way already: a later request will ask.
                    let _ = self.ask(&mut state, key, true);
                }
                Ok(Ok(known))
            }
            Seen::Failed => {
                counts.resting.add(1);
                let why = format!("it failed a moment ago: {}", state.last_failure);
                Ok(Err(BackendUnavailable::failed(why)))
            }
            Seen::Ask { otherwise } => {
                match state.flights.contains_key(&key) {
                    true => counts.coalesced.add(1),
                    false => counts.misses.add(1),
                };
                match (self.ask(&mut state, key, false), otherwise) {
                    (Some(flight), _) => Err(flight),
                    (None, Some(grant)) => {
                        let known = KeyLookup::Grant { grant, stale: true };
                        counts.hit(&known);
                        Ok(Ok(known))
                    }
                    (None, None) => Ok(Err(BackendUnavailable::new(
                        PermissionsFailure::Overloaded,
                        format!("{FLIGHTS} other keys are being asked about"),
                    ))),
                }
            }
        }
    }

    /// Joins the flight for a key, or starts it. None: there are too many.
    fn ask(
        &self,
        state: &mut State,
        key: KeyHash,
        is_ahead: bool,
    ) -> Option<watch::Receiver<Option<KeyLookupResult>>> {
        if let Some(flight) = state.flights.get(&key) {
            return Some(flight.answer.clone());
        }
        let bound = if state.table.is_somebody(&key) {
            2 * FLIGHTS
        } else {
            FLIGHTS
        };
        if state.flights.len() >= bound {
            self.inner.counts.crowded.add(1);
            return None;
        }
        state.last += 1;
        let number = state.last;
        let (teller, answer) = watch::channel(None);
        let flight = Flight {
            number,
            answer: answer.clone(),
        };
        state.flights.insert(key, flight);
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let landing = Landing { inner, key, number };
            let answer = landing.inner.fly(key, number, is_ahead).await;
            teller.send_replace(Some(answer));
        });
        Some(answer)
    }

    /// Forgets, in this process at once and in memcached in the background; how many keys this process knew something
    /// about. What is being asked at this moment is told to those who wait for it, and not remembered; what memcached
    /// has from before is not believed. Has to be called inside a runtime.
    pub fn purge(&self, what: &PurgeTarget) -> usize {
        let mut state = self.inner.state();
        match what {
            PurgeTarget::Key(key) => drop(state.flights.remove(key)),
            PurgeTarget::All | PurgeTarget::Id(_) => state.flights.clear(),
        }
        let mut keys = state.table.forget(what);
        let count = keys.len();
        if let Some(shared) = &self.inner.shared {
            shared.disregard();
        }
        drop(state);
        self.inner.counts.purges.add(1);
        if self.inner.shared.is_some() {
            if let PurgeTarget::Key(key) = what {
                // Others may have put there what is not known here.
                keys = vec![*key];
            }
            tokio::spawn(delete(Arc::clone(&self.inner), keys));
        }
        count
    }

    /// What has happened so far, for `/metrics` and `/status`.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (known, unknown, flights) = {
            let state = self.inner.state();
            let (known, unknown) = state.table.len();
            (known, unknown, state.flights.len())
        };
        let shared = self.inner.shared.as_ref().map(SharedCache::snapshot);
        let (shared_refused, servers) = shared.unwrap_or_default();
        let counts = &self.inner.counts;
        Snapshot {
            hits: counts.hits.get(),
            stale: counts.stale.get(),
            misses: counts.misses.get(),
            coalesced: counts.coalesced.get(),
            resting: counts.resting.get(),
            crowded: counts.crowded.get(),
            shared_hits: counts.shared_hits.get(),
            questions: counts.questions.get(),
            failures: counts.failures.get(),
            purges: counts.purges.get(),
            known,
            unknown,
            flights,
            shared_refused,
            servers,
        }
    }
}

/// Deletes what memcached has of these keys, as far as it can be reached.
async fn delete<P>(inner: Arc<Inner<P>>, keys: Vec<KeyHash>) {
    if let Some(shared) = &inner.shared {
        for key in keys {
            shared.delete(&key).await;
        }
    }
}

/// Takes a flight off the list, also when the engine panics: who waits is told then, too.
struct Landing<P> {
    inner: Arc<Inner<P>>,
    key: KeyHash,
    number: u64,
}

impl<P> Drop for Landing<P> {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.land(&self.key, self.number);
    }
}

impl State {
    /// Ends a flight; whether its answer still counts.
    fn land(&mut self, key: &KeyHash, number: u64) -> bool {
        let counts = self
            .flights
            .get(key)
            .is_some_and(|flight| flight.number == number);
        if counts {
            self.flights.remove(key);
        }
        counts
    }
}

impl<P> Inner<P> {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked with it left a table that is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: PermissionsBackend> Inner<P> {
    /// Asks memcached, then the engine, and remembers the answer. `is_ahead`: what is remembered is still good, so that
    /// only something newer is of use.
    async fn fly(&self, key: KeyHash, number: u64, is_ahead: bool) -> KeyLookupResult {
        let shared = match &self.shared {
            Some(shared) => shared.get(&key, &self.settings).await,
            None => None,
        };
        if let Some(kept) = &shared
            && !kept.fresh.is_zero()
            && !(is_ahead && kept.due.is_zero())
        {
            self.counts.shared_hits.add(1);
            let mut state = self.state();
            if state.land(&key, number) {
                state.table.keep(key, kept, (self.now)());
            }
            return Ok(kept.known(false));
        }
        self.counts.questions.add(1);
        match self.engine.look_up(key).await {
            Ok(found) => {
                let kept = Kept::new(found, &self.settings);
                let mut state = self.state();
                if state.land(&key, number) {
                    state.table.keep(key, &kept, (self.now)());
                    if let Some(shared) = &self.shared {
                        shared.put(&key, &kept);
                    }
                }
                // Also one that is over at once: it was asked for this.
                Ok(kept.known(false))
            }
            Err(unavailable) => {
                self.counts.failures.add(1);
                let now = (self.now)();
                let mut state = self.state();
                state.last_failure.clone_from(&unavailable.why);
                let known = if state.land(&key, number) {
                    state.table.fail(key, shared.as_ref(), now)
                } else {
                    None
                };
                if let Some(known) = &known {
                    self.counts.hit(known);
                }
                known.ok_or(unavailable)
            }
        }
    }
}
