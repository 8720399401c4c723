//! What the guard remembers of one service: how many members it had lately, which of them are gone, which are held.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{Doubt, Hold, Verdict};
use crate::model::{Backend, Discovered};

/// One service.
#[derive(Debug)]
pub(super) struct Ledger {
    source: String,
    found: Arc<Discovered>,
    /// Sizes of the past and until when they held, ever smaller: the first one is the largest within the window.
    sizes: VecDeque<(Duration, usize)>,
    /// Members that were let go within the window and have no excuse, oldest first, with when.
    gone: VecDeque<(Duration, Arc<Backend>)>,
    /// Members that are held, with the time at which they are given up.
    kept: Vec<(Duration, Arc<Backend>)>,
    why: Option<Doubt>,
}

impl Ledger {
    pub(super) fn new(source: String, found: Arc<Discovered>, now: Duration) -> Self {
        let sizes = VecDeque::from([(now, found.backends.len())]);
        Self {
            source,
            found,
            sizes,
            gone: VecDeque::new(),
            kept: Vec::new(),
            why: None,
        }
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Takes what the source says now.
    pub(super) fn find(&mut self, now: Duration, source: String, found: Arc<Discovered>) {
        self.source = source;
        if Arc::ptr_eq(&self.found, &found) {
            return;
        }
        let before = std::mem::replace(&mut self.found, found);
        let before = &before.backends;
        while self
            .sizes
            .pop_back_if(|(_, size)| *size <= before.len())
            .is_some()
        {}
        self.sizes.push_back((now, before.len()));
        let had = self.had();
        let here = Here::new(&self.found.backends);
        self.gone.retain(|(_, backend)| !here.has(backend));
        self.kept.retain(|(_, backend)| !here.has(backend));
        let lost = before.iter().filter(|backend| !here.has(backend));
        self.gone
            .extend(lost.map(|backend| (now, Arc::clone(backend))));
        // Members may come and go without end; only as many as there were can be missing.
        while self.gone.len() > had {
            self.gone.pop_front();
        }
    }

    /// Forgets what is older than the window, and gives up what need not be held any longer; whether anything was.
    pub(super) fn forgive(
        &mut self,
        now: Duration,
        window: Duration,
        down: impl Fn(&Backend) -> bool,
    ) -> bool {
        let start = now.saturating_sub(window);
        while self.sizes.pop_front_if(|(end, _)| *end < start).is_some() {}
        self.gone
            .retain(|(at, backend)| *at >= start && !down(backend));
        let held = self.kept.len();
        self.kept
            .retain(|(until, backend)| *until > now && !down(backend));
        held != self.kept.len()
    }

    /// The most members it had within the window; those that are held it still has.
    pub(super) fn had(&self) -> usize {
        let before = self.sizes.front().map_or(0, |(_, size)| *size);
        before.max(self.found.backends.len() + self.kept.len())
    }

    /// How many of them are gone without an excuse.
    fn loss(&self) -> usize {
        let net = self.had().saturating_sub(self.found.backends.len());
        net.min(self.gone.len() + self.kept.len())
    }

    /// Whether more than `percent` of the members are gone.
    pub(super) fn is_losing(&self, percent: u8) -> bool {
        self.loss() * 100 > self.had() * usize::from(percent)
    }

    /// Holds what was lost: the newest of it, as many as are missing. Whether anything was not held before.
    pub(super) fn hold(&mut self, until: Duration, doubt: &Doubt) -> bool {
        let missing = self.loss().saturating_sub(self.kept.len());
        let older = self.gone.len().saturating_sub(missing);
        let lost = self.gone.drain(older..);
        self.kept.extend(lost.map(|(_, backend)| (until, backend)));
        if missing > 0 {
            self.why = Some(doubt.clone());
        }
        missing > 0
    }

    pub(super) fn verdict(&self) -> Verdict {
        match (&self.why, self.until()) {
            (Some(why), Some(until)) => Verdict::Hold(Hold {
                members: self.kept.iter().map(|(_, kept)| Arc::clone(kept)).collect(),
                until,
                why: why.clone(),
            }),
            _ => Verdict::Follow,
        }
    }

    pub(super) fn until(&self) -> Option<Duration> {
        self.kept.iter().map(|(until, _)| *until).min()
    }

    pub(super) fn held(&self) -> usize {
        self.kept.len()
    }
}

/// The members found, for lookups.
struct Here<'a> {
    endpoints: HashSet<(&'a str, u16)>,
    shards: HashSet<(&'a str, u32)>,
}

impl<'a> Here<'a> {
    fn new(found: &'a [Arc<Backend>]) -> Self {
        Self {
            endpoints: found
                .iter()
                .map(|backend| (&*backend.host, backend.port))
                .collect(),
            shards: found.iter().filter_map(|backend| shard(backend)).collect(),
        }
    }

    /// Whether the member was found, or a newer instance of its shard.
    fn has(&self, backend: &Backend) -> bool {
        let endpoint = (&*backend.host, backend.port);
        self.endpoints.contains(&endpoint)
            || shard(backend).is_some_and(|shard| self.shards.contains(&shard))
    }
}

/// The shard within its job: a service may have the members of several paths.
fn shard(backend: &Backend) -> Option<(&str, u32)> {
    backend.shard.map(|shard| (backend.source.place(), shard))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(base: u16) -> Arc<Discovered> {
        let member = |port| {
            Backend::new("a.example.com", port, "a-file")
                .ok()
                .map(Arc::new)
        };
        let backends = (base..base + 3).filter_map(member).collect();
        Arc::new(Discovered {
            backends,
            ..Discovered::default()
        })
    }

    #[test]
    fn members_that_come_and_go_are_not_all_remembered() {
        let now = Duration::from_secs(1000);
        let mut ledger = Ledger::new(String::new(), members(1), now);
        for base in 2..1000 {
            ledger.find(now, String::new(), members(base * 3));
            assert!(ledger.gone.len() <= 3 && ledger.sizes.len() <= 3);
            assert_eq!(ledger.loss(), 0, "as many came as went");
        }
    }
}
