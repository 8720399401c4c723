//! Draining members: their slots are free when their servers are quiet, in every HAProxy.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Engine, Link, server_of};
use crate::haproxy::{Server, live};
use crate::membership::table::{DRAIN_LIMIT, Resident};

/// How often draining members are asked for their sessions.
const DRAIN_POLL: Duration = Duration::from_millis(250);
/// Since when nobody must have listened on its socket for HAProxy to be gone, and all it served with it. One that could
/// not bind is silent for 2 s while it makes way for the old one.
const GONE: Duration = Duration::from_secs(5);

/// A server that drains.
#[derive(Debug)]
struct Drain {
    slot: usize,
    server: Server,
    /// Whether it has had its time.
    overdue: bool,
}

impl Link {
    /// Which of these servers of one backend serve nobody: no session, no connection in use. Of those that cannot be
    /// asked it is not known, and so they are not quiet, unless HAProxy has been gone for a while. What the servers that
    /// are `overdue` still serve is cut.
    async fn quiet(&self, drains: &[Drain], now: Duration) -> BTreeSet<usize> {
        if self
            .gone
            .is_some_and(|since| now.saturating_sub(since) >= GONE)
        {
            return drains.iter().map(|drain| drain.slot).collect();
        }
        let Some(first) = drains.first().filter(|_| self.info.is_some()) else {
            return BTreeSet::new();
        };
        let question = format!("show servers conn {}", first.server.backend());
        let connections = self.socket.ask(&question).await.ok();
        let Some(connections) = connections.and_then(|reply| live::connections(&reply).ok()) else {
            return BTreeSet::new();
        };
        let of = |drain: &Drain| connections.get(&drain.server.to_string());
        let ids = drains.iter().filter_map(of).map(|found| found.ids);
        let questions: Vec<String> = ids
            .map(|(backend, server)| format!("show stat {backend} 4 {server}"))
            .collect();
        let Ok(replies) = self.socket.batch(&questions).await else {
            return BTreeSet::new();
        };
        let mut replies = replies.iter();
        let (mut quiet, mut overdue) = (BTreeSet::new(), Vec::new());
        for drain in drains {
            let used = of(drain);
            let sessions = match used.and_then(|_| replies.next()) {
                // HAProxy has no such server: nobody is served.
                None => Some(0),
                Some(reply) => live::sessions(reply).ok().map(|count| count.unwrap_or(0)),
            };
            if used.is_none_or(|found| found.used == 0) && sessions == Some(0) {
                quiet.insert(drain.slot);
            } else if drain.overdue {
                overdue.push(drain.server.shutdown_sessions());
            }
        }
        // Its answer is the next look.
        let _ = self.socket.batch(&overdue).await;
        quiet
    }
}

impl Engine {
    /// Frees the slots of drained members whose servers are quiet.
    pub(in crate::engine) async fn look_at_drains(&mut self, now: Duration) {
        let draining: Vec<String> = self
            .tracked
            .iter()
            .filter(|(_, tracked)| tracked.draining().next().is_some())
            .map(|(name, _)| name.clone())
            .collect();
        if draining.is_empty() {
            self.drains_looked = None;
            return;
        }
        // Whoever was not told to drain yet may be quiet by chance.
        if self.flush_waits() {
            return;
        }
        // The first look is one interval after the drain was told.
        let last = *self.drains_looked.get_or_insert(now);
        if now.saturating_sub(last) < DRAIN_POLL {
            return;
        }
        self.drains_looked = Some(now);
        for name in draining {
            let Some(tracked) = self.tracked.get(&name) else {
                continue;
            };
            let drain = |(slot, resident): (usize, &Resident)| {
                let server = server_of(tracked, &resident.backend)?;
                Some(Drain {
                    slot,
                    server: Server::new(tracked.backend(), &server).ok()?,
                    overdue: now.saturating_sub(resident.since) >= DRAIN_LIMIT,
                })
            };
            let drains: Vec<Drain> = tracked.draining().filter_map(drain).collect();
            let mut quiet: BTreeSet<usize> = drains.iter().map(|drain| drain.slot).collect();
            for link in &self.links {
                let here = link.quiet(&drains, now).await;
                quiet.retain(|slot| here.contains(slot));
            }
            if let Some(tracked) = self.tracked.get_mut(&name) {
                tracked.table.release(&|slot| quiet.contains(&slot));
                self.settle(&name, now);
            }
        }
    }

    /// When draining members are asked again.
    pub(in crate::engine) fn drains_due(&self) -> Option<Duration> {
        let looked = self.drains_looked.filter(|_| !self.flush_waits())?;
        Some(looked + DRAIN_POLL)
    }

    /// Whether a process that answers has not been told everything yet.
    fn flush_waits(&self) -> bool {
        let waits = |link: &Link| link.held.is_some() && !link.dirty.is_empty();
        self.links.iter().any(waits)
    }
}
