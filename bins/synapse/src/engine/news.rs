//! What watchers found, made into members with slots: expand patterns, select members, ask the guard, resolve names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Engine;
use super::tracked::Tracked;
use crate::guard::{Change, Verdict};
use crate::model::{Backend, Discovered};
use crate::settings::{Discovery, Service};
use crate::statsd::name::DISCOVERY;
use crate::watcher::expand::{self, expand};
use crate::watcher::merge::merge;
use crate::watcher::resolve::{Hosts, Resolution};
use crate::watcher::select::select;
use crate::watcher::{Context, Watch, start};

/// A configured service and its watchers.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) service: Arc<Service>,
    main: Watch,
    canary: Option<Watch>,
    /// What is wrong with the entry as a whole, and paths that are no service.
    pub(super) trouble: Option<String>,
    _ring: JoinSet<()>,
}

impl Entry {
    /// Starts its watchers; `bell` is rung whenever one of them has news.
    pub(super) fn new(service: Arc<Service>, context: &Context, bell: &Arc<Notify>) -> Self {
        let main = start(&service.discovery, context);
        let canary = service
            .canary
            .as_ref()
            .map(|canary| start(&canary.discovery, context));
        let mut ring = JoinSet::new();
        for watch in std::iter::once(&main).chain(&canary) {
            let mut found = watch.found.clone();
            let bell = Arc::clone(bell);
            ring.spawn(async move {
                while found.changed().await.is_ok() {
                    bell.notify_one();
                }
            });
        }
        Self {
            service,
            main,
            canary,
            trouble: None,
            _ring: ring,
        }
    }

    /// Whether the same watchers serve this service.
    pub(super) fn follows(&self, service: &Service) -> bool {
        let canary = |service: &Service| {
            service
                .canary
                .as_ref()
                .map(|canary| canary.discovery.clone())
        };
        self.service.discovery == service.discovery && canary(&self.service) == canary(service)
    }

    /// When its source last confirmed what it said. Paths of one pattern are confirmed together, though not all of them
    /// are published anew each time.
    pub(super) fn synced(&self) -> Option<Duration> {
        let found = self.main.found.borrow();
        found.values().filter_map(|found| found.synced).max()
    }

    fn has_news(&self) -> bool {
        let news = |watch: &Watch| watch.found.has_changed().unwrap_or(false);
        news(&self.main) || self.canary.as_ref().is_some_and(news)
    }
}

impl Engine {
    /// Takes over whatever watchers found since the last call. `again` are entries to look at although nothing was
    /// found.
    pub(super) fn take_news(&mut self, now: Duration, again: &BTreeSet<String>) {
        let mut fresh = BTreeSet::new();
        for (name, entry) in &mut self.entries {
            if !entry.has_news() && !again.contains(name) {
                continue;
            }
            if let (Some(statsd), Discovery::Zookeeper(zookeeper)) =
                (&self.statsd, &entry.service.discovery)
            {
                let hosts = zookeeper.hosts.join(",");
                let tags = [
                    ("zk_cluster", hosts.as_str()),
                    ("zk_path", &zookeeper.path),
                    ("service_name", name),
                ];
                statsd.count(DISCOVERY, 1, &tags);
            }
            let found = Arc::clone(&entry.main.found.borrow_and_update());
            let canary = entry.canary.as_mut().map(|watch| {
                let found = Arc::clone(&watch.found.borrow_and_update());
                Arc::new(merge(found.values()))
            });
            let expansion = expand(&entry.service, &found);
            entry.trouble = expansion.trouble.or_else(|| {
                let reject = expansion.rejects.first()?;
                Some(format!("{}: {}", reject.source, reject.detail))
            });
            let mut there = BTreeSet::new();
            for (service, main) in expansion.services {
                let known = self.tracked.get(&service.name);
                let heard =
                    known.is_some_and(|known| known.has_heard(&main) && known.canary == canary);
                if heard && !again.contains(name) {
                    // Of a thousand jobs of one pattern a change is one.
                    there.insert(service.name.clone());
                    continue;
                }
                let says = main.generator_config.as_deref();
                let (settings, tracked) = (&self.settings, &self.tracked);
                let service =
                    self.generated
                        .service(settings, tracked, self.lenient, service, says);
                let tracked = self.tracked.entry(service.name.clone()).or_insert_with(|| {
                    self.structure.suspect("new service");
                    Tracked::new(Arc::clone(&service), name.clone())
                });
                if tracked.reconfigure(service) {
                    self.structure.suspect("configuration");
                }
                there.insert(tracked.service.name.clone());
                tracked.found(main);
                tracked.canary.clone_from(&canary);
                tracked.gone = None;
                fresh.insert(tracked.service.name.clone());
            }
            let answered = !found.is_empty() && found.values().all(|found| found.synced.is_some());
            if expand::many(&entry.service) && answered {
                for tracked in self.tracked.values_mut() {
                    let is_gone = tracked.entry == *name && !there.contains(&tracked.service.name);
                    if is_gone && tracked.gone.is_none() {
                        tracked.gone = Some(now);
                        // It has no members: an answer like any other, which the guard may doubt.
                        tracked.found(Arc::new(Discovered {
                            synced: Some(now),
                            job: tracked.job.clone(),
                            ..Discovered::default()
                        }));
                        fresh.insert(tracked.service.name.clone());
                    }
                }
            }
        }
        self.forget_gone(now);
        self.review(now, fresh);
    }

    /// Services of a pattern whose path has been gone for long. Not at once: an ensemble that is empty by mistake would
    /// take every service with it.
    fn forget_gone(&mut self, now: Duration) {
        let ttl = self.settings.state_ttl;
        let gone: Vec<String> = self
            .tracked
            .values()
            .filter(|tracked| {
                tracked
                    .gone
                    .is_some_and(|since| now.saturating_sub(since) >= ttl)
            })
            .map(|tracked| tracked.service.name.clone())
            .collect();
        for name in gone {
            self.drop_service(&name);
        }
    }

    /// Asks the guard what of the changes to believe, and gives members their slots.
    pub(super) fn review(&mut self, now: Duration, fresh: BTreeSet<String>) {
        let changes: Vec<Change> = fresh
            .iter()
            .filter_map(|name| self.tracked.get(name))
            .filter(|tracked| tracked.main.synced.is_some())
            .map(|tracked| Change {
                service: tracked.service.name.clone(),
                source: source(&tracked.service.discovery),
                found: Arc::clone(&tracked.main),
            })
            .collect();
        let down = &self.down;
        let tracked = &self.tracked;
        let is_down = |service: &str, backend: &Backend| {
            tracked
                .get(service)
                .is_some_and(|tracked| down.contains(tracked, backend))
        };
        let verdicts = if changes.is_empty() && self.guard.next().is_none() {
            BTreeMap::new()
        } else {
            self.guard.review(now, changes, is_down)
        };
        let mut touched = fresh;
        for (name, verdict) in verdicts {
            let Some(tracked) = self.tracked.get_mut(&name) else {
                continue;
            };
            let kept = match verdict {
                Verdict::Follow => None,
                Verdict::Hold(hold) => Some((hold.members, hold.why.to_string())),
            };
            if tracked.kept != kept {
                tracked.kept = kept;
                touched.insert(name);
            }
        }
        for name in touched {
            self.place(&name, now);
        }
    }

    /// Selects the members of a service and gives them their slots.
    pub(super) fn place(&mut self, name: &str, now: Duration) {
        let Some(tracked) = self.tracked.get_mut(name) else {
            return;
        };
        if tracked.main.synced.is_none() {
            // Nothing was heard yet: what was last known good stands.
            tracked.trouble.clone_from(&tracked.main.trouble);
            if tracked.known {
                self.give_slots(name, now);
            }
            return;
        }
        let none = Discovered::default();
        let canary = match (&tracked.service.canary, tracked.canary.as_deref()) {
            (Some(_), canary) => Some(canary.unwrap_or(&none)),
            (None, _) => None,
        };
        let selection = select(
            &tracked.service,
            tracked.uses_weights(),
            &tracked.main,
            canary,
            &tracked.members,
        );
        tracked.rejects.clone_from(&tracked.main.rejects);
        tracked.rejects.extend(selection.rejects);
        tracked.trouble = selection
            .trouble
            .or_else(|| self.generated.trouble(name).map(str::to_owned))
            .or_else(|| tracked.main.trouble.clone());
        tracked.members = Arc::new(selection.members);
        if (!tracked.known || tracked.inherited) && !self.adopt(name, now) {
            // Their addresses come first: HAProxy must not be told to forget whom it serves.
            self.by_name.insert(name.to_owned());
            return;
        }
        self.give_slots(name, now);
        self.note_rejects(name);
    }

    /// Takes up a service whose source has answered for the first time, with those that HAProxy serves where they are;
    /// whether it could be.
    fn adopt(&mut self, name: &str, now: Duration) -> bool {
        let Some(tracked) = self.tracked.get_mut(name) else {
            return false;
        };
        let held = self
            .links
            .first()
            .and_then(|link| link.held(tracked.backend()));
        let resolver = &mut self.resolver;
        let adopted =
            held.is_none_or(|held| tracked.adopt(held, now, |host| known_address(resolver, host)));
        if adopted {
            (tracked.known, tracked.inherited) = (true, false);
            self.mark_runtime(name);
        }
        adopted
    }

    fn give_slots(&mut self, name: &str, now: Duration) {
        let resolver = &mut self.resolver;
        let Some(tracked) = self.tracked.get_mut(name) else {
            return;
        };
        let mut waiting = false;
        let resolve = |host: &str| {
            waiting |= host.parse::<IpAddr>().is_err();
            known_address(resolver, host)
        };
        if tracked.follow(now, resolve) {
            self.structure.suspect("more slots");
        }
        if waiting {
            self.by_name.insert(name.to_owned());
        } else {
            self.by_name.remove(name);
        }
        self.settle(name, now);
    }

    /// Decides what became possible for a service, and notes what has to be told to whom.
    pub(super) fn settle(&mut self, name: &str, now: Duration) {
        let Some(tracked) = self.tracked.get_mut(name) else {
            return;
        };
        let changed = tracked.settle(now);
        if let Some(targets) = tracked.targets() {
            self.prober.aim(name, targets);
        }
        let events = tracked.take_events();
        if changed {
            self.mark(name, now);
        }
        self.note_events(name, events);
    }
}

/// The address of a host; `None` while it is being asked for.
fn known_address(resolver: &mut Hosts, host: &str) -> Result<Option<IpAddr>, String> {
    match resolver.resolve(host) {
        Resolution::Known(address) => Ok(Some(address)),
        Resolution::Pending => Ok(None),
        Resolution::Failed(why) => Err(why),
    }
}

/// What services are judged together with: all that come from one place.
pub(super) fn source(discovery: &Discovery) -> String {
    match discovery {
        Discovery::Base => "base".to_owned(),
        Discovery::Zookeeper(zookeeper) => zookeeper.hosts.join(","),
        Discovery::File(path) => path.display().to_string(),
        Discovery::Dns(dns) => dns.nameserver.clone().unwrap_or_else(|| "dns".to_owned()),
        Discovery::Multi(children, _) => children
            .first()
            .map_or_else(String::new, |(_, first)| source(first)),
    }
}
