//! The guard over all services: when most members of many services vanish at once, it is the registry that is doubted,
//! not the members. Pure: the clock and HAProxy's opinion are parameters.
//!
//! What it decides:
//! * A service is **losing** when more than `members` percent of those it had within `window` are gone, net: a member
//!   that came up elsewhere is not a loss, and neither is one that HAProxy's own checks call down.
//! * The registry is **doubted** when more than `services` percent of the services that had members, and at least
//!   `at_least` of them, are losing. It is asked of all services together and of each source alone: one wiped ensemble
//!   of three is a small share of everything.
//! * While it is, losing services keep what they lost, also what was let go before the doubt began: the first services
//!   of a mass removal cannot be told from a restart.
//! * A member is given up when `hold` has passed, when HAProxy's checks call it down, or when a newer instance of the
//!   same shard has come up. One that is found again is simply found.
//!
//! Additions pass at once, always. One job that restarts half or all of its instances is followed at once, because it
//! is one service; so is everything where there are fewer than `at_least` services: with one or two, an empty ensemble
//! looks exactly like a stopped job, and only `use_previous_backends` (on by default: an empty answer changes nothing)
//! keeps their members. The price of a hold is that members which did stop, in a service without `check`, get requests
//! that must be redispatched until it ends.

mod ledger;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Backend, Discovered};
use crate::settings;

use ledger::Ledger;

/// What one service's source says now.
#[derive(Debug, Clone)]
pub struct Change {
    /// The service.
    pub service: String,
    /// What the members were found in: an ensemble's hosts, a file. Services of one source are judged together.
    pub source: String,
    /// What it found, before default servers are added or anything is kept; its backends are meant.
    pub found: Arc<Discovered>,
}

/// What to do with a service.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Use what was found.
    Follow,
    /// Use what was found, and these too.
    Hold(Hold),
}

/// Members that a service keeps although its source no longer has them.
#[derive(Debug, Clone, PartialEq)]
pub struct Hold {
    /// The members, none of which was found. Those that an earlier verdict let go are to be put back.
    pub members: Vec<Arc<Backend>>,
    /// When the first of them is given up, at the latest.
    pub until: Duration,
    /// Why.
    pub why: Doubt,
}

/// Why the registry is doubted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The source, or `None` for all of them together.
    pub source: Option<String>,
    /// How many services are losing.
    pub losing: usize,
    /// Of how many that had members.
    pub services: usize,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            losing,
            services,
        } = self;
        write!(
            f,
            "{losing} of {services} services lost most of their members at once"
        )?;
        match source {
            Some(source) => write!(f, " in {source}"),
            None => Ok(()),
        }
    }
}

/// The guard's memory. All times are of one clock that never goes back, such as the one since boot.
#[derive(Debug)]
pub struct Guard {
    settings: settings::Guard,
    services: BTreeMap<String, Ledger>,
}

impl Guard {
    /// A guard that knows no service.
    #[must_use]
    pub const fn new(settings: settings::Guard) -> Self {
        Self {
            settings,
            services: BTreeMap::new(),
        }
    }

    /// Takes new settings. What is held stays held until it was to end.
    pub fn configure(&mut self, settings: settings::Guard) {
        self.settings = settings;
    }

    /// A service whose members are known from before this process began (last known good): an ensemble that answers
    /// empty then has lost them. A service that is known already is left as it is.
    pub fn remember(&mut self, now: Duration, change: Change) {
        self.services
            .entry(change.service)
            .or_insert_with(|| Ledger::new(change.source, change.found, now));
    }

    /// Forgets a service that is no longer configured: nobody lost it.
    pub fn forget(&mut self, service: &str) {
        self.services.remove(service);
    }

    /// Judges what changed. `down` says whether HAProxy's checks call a member of a service down. The answer has every
    /// service of `changes`, and every other whose verdict is not what it was.
    ///
    /// To be called with all changes that came together, without any when [`Guard::next`] has come, and every few
    /// seconds while something is held, so that HAProxy's opinion counts.
    pub fn review(
        &mut self,
        now: Duration,
        changes: Vec<Change>,
        down: impl Fn(&str, &Backend) -> bool,
    ) -> BTreeMap<String, Verdict> {
        let mut verdicts = BTreeMap::new();
        for change in changes {
            let ledger = self
                .services
                .entry(change.service.clone())
                .or_insert_with(|| Ledger::new(change.source.clone(), Arc::default(), now));
            ledger.find(now, change.source, change.found);
            verdicts.insert(change.service, Verdict::Follow);
        }
        for (service, ledger) in &mut self.services {
            let is_down = |backend: &Backend| down(service, backend);
            if ledger.forgive(now, self.settings.window, is_down) {
                verdicts.insert(service.clone(), Verdict::Follow);
            }
        }
        let doubts = self.doubts();
        let until = now + self.settings.hold;
        for (service, ledger) in &mut self.services {
            let doubt = [None, Some(ledger.source())]
                .into_iter()
                .find_map(|source| {
                    doubts
                        .iter()
                        .find(|doubt| doubt.source.as_deref() == source)
                });
            let began = doubt.is_some_and(|doubt| {
                ledger.is_losing(self.settings.members) && ledger.hold(until, doubt)
            });
            if began || verdicts.contains_key(service) {
                verdicts.insert(service.clone(), ledger.verdict());
            }
        }
        verdicts
    }

    /// When something that is held is given up, at the latest.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.services.values().filter_map(Ledger::until).min()
    }

    /// How many members are held, over all services.
    #[must_use]
    pub fn held(&self) -> usize {
        self.services.values().map(Ledger::held).sum()
    }

    /// Everything that is doubted now: all sources together first, then each.
    fn doubts(&self) -> Vec<Doubt> {
        let mut all = (0, 0);
        let mut each: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for ledger in self.services.values() {
            if ledger.had() == 0 {
                continue;
            }
            let losing = usize::from(ledger.is_losing(self.settings.members));
            for count in [&mut all, each.entry(ledger.source()).or_default()] {
                count.0 += losing;
                count.1 += 1;
            }
        }
        let doubted = |source: Option<&str>, (losing, services): (usize, usize)| {
            let many = losing * 100 > services * usize::from(self.settings.services);
            (many && losing > 0 && losing >= usize::from(self.settings.at_least)).then(|| Doubt {
                source: source.map(str::to_owned),
                losing,
                services,
            })
        };
        let sources = each
            .into_iter()
            .filter_map(|(source, counts)| doubted(Some(source), counts));
        doubted(None, all).into_iter().chain(sources).collect()
    }
}
