//! What the engine says of itself: the journal, metrics, `/status`.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hostkit::clock;
use hostkit::zookeeper::ConnectionState;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::news::Entry;
use super::{Done, Engine, TICK, Tracked};
use crate::haproxy::reload::Way;
use crate::journal::{self, Kind};
use crate::membership::table::{Event, Phase};
use crate::metrics::Phases;
use crate::model::{Reason, Reject};
use crate::planner;
use crate::proxies::Proxies;
use crate::settings::Settings;
use crate::statsd::{Statsd, name};

/// How many of the last troubles are shown.
const TROUBLES: usize = 10;
/// How often HAProxy's old processes are counted while there are any.
const LEFTOVER: Duration = Duration::from_secs(5);

/// From how many members of one service on, to which the same happens at once, they are told together.
const MANY: usize = 10;

/// How many of them are named.
const NAMED: usize = 10;

/// How many members that wait to be told to HAProxy are measured: it may be away for long.
const WAITING: usize = 10_000;

/// What the admin listener shows, as of the last tick: JSON text, a tenth of the size that it has as values.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<String>);

impl Board {
    pub(super) fn status(&self) -> Map<String, Value> {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn set(&self, status: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// What is remembered only to be told.
#[derive(Debug, Default)]
pub(crate) struct Said {
    published: Option<Duration>,
    troubles: VecDeque<String>,
    /// Members that wait to be told to HAProxy: when the change was seen, and whether a probe let them in.
    waiting: Vec<(Duration, bool)>,
    pub(super) rejects: BTreeMap<String, Vec<Reject>>,
    /// How often the configuration was read since the start.
    pub(super) reads: u64,
    /// The hash of the last configuration that was refused, empty where it could not be read, and why.
    pub(super) refused: Option<(String, String)>,
    /// When HAProxy's old processes were last counted; `None` while there are none.
    pub(super) leftover_looked: Option<Duration>,
}

impl Engine {
    /// Notes something in the journal.
    pub(super) fn note(&self, kind: Kind, fill: impl FnOnce(journal::Entry) -> journal::Entry) {
        self.journal.append(fill(journal::Entry::now(kind)));
    }

    /// Keeps something that went wrong for whoever looks at the status.
    pub(super) fn trouble(&mut self, text: String) {
        if self.told.troubles.back() == Some(&text) {
            return;
        }
        tracing::error!("{text}");
        self.told.troubles.push_back(text);
        if self.told.troubles.len() > TROUBLES {
            self.told.troubles.pop_front();
        }
    }

    /// Tells what happened to members of a service: each, or how many where the same happened to many at once. When a
    /// thousand services are read for the first time, a hundred thousand lines would push everything else out of the
    /// journal.
    pub(super) fn note_events(&mut self, service: &str, events: Vec<Event>) {
        let now = clock::since_boot();
        let mut alike: BTreeMap<(&str, &str), Vec<Event>> = BTreeMap::new();
        for event in events {
            let told = matches!(event.phase, Some(Phase::Ready | Phase::Draining));
            if told && self.told.waiting.len() < WAITING && !self.links.is_empty() {
                self.told
                    .waiting
                    .push((now, event.before == Some(Phase::Probing)));
            }
            let phase = event.phase.map_or("gone", Phase::word);
            alike.entry((phase, event.cause)).or_default().push(event);
        }
        for ((phase, cause), events) in alike {
            if events.len() >= MANY {
                self.note_many(service, phase, cause, &events);
            } else {
                for event in &events {
                    self.note_event(service, phase, event);
                }
            }
        }
    }

    fn note_event(&self, service: &str, phase: &str, event: &Event) {
        let member = event.backend.endpoint();
        tracing::info!(service, member, slot = event.slot, phase, "{}", event.cause);
        self.note(kind_of(event), |entry| journal::Entry {
            service: Some(service.to_owned()),
            member: Some(member),
            source: Some(event.backend.source.to_string()),
            slot: Some(planner::slot(event.slot - 1)),
            cause: Some(event.cause.to_owned()),
            ..entry
        });
    }

    fn note_many(&self, service: &str, phase: &str, cause: &str, events: &[Event]) {
        let members = events.len();
        tracing::info!(service, members, phase, "{cause}");
        let Some(first) = events.first() else { return };
        let named: Vec<String> = events
            .iter()
            .take(NAMED)
            .map(|event| event.backend.endpoint())
            .collect();
        let more = if members > NAMED { " ..." } else { "" };
        self.note(kind_of(first), |entry| journal::Entry {
            service: Some(service.to_owned()),
            cause: Some(cause.to_owned()),
            detail: Some(format!("{members} members: {}{more}", named.join(" "))),
            ..entry
        });
    }

    /// Counts registrations that are newly refused, and says why.
    pub(super) fn note_rejects(&mut self, service: &str) {
        let Some(tracked) = self.tracked.get(service) else {
            return;
        };
        let old = self.told.rejects.entry(service.to_owned()).or_default();
        for reject in &tracked.rejects {
            if !old.contains(reject) {
                self.metrics.rejects.with(&[reject.reason.word()]).inc();
                if let (Some(statsd), Reason::Malformed) = (&self.statsd, reject.reason) {
                    let tags = [("service_name", service), ("zk_path", &reject.source)];
                    statsd.count(name::PARSE_CHILD_FAILED, 1, &tags);
                }
                tracing::warn!(
                    service,
                    source = reject.source,
                    reason = reject.reason.word(),
                    "not used: {}",
                    reject.detail
                );
            }
        }
        old.clone_from(&tracked.rejects);
    }

    /// HAProxy has taken over what it was told.
    pub(super) fn settled(&mut self) {
        let now = clock::since_boot();
        for (since, probed) in self.told.waiting.drain(..) {
            let took = now.saturating_sub(since);
            self.metrics.change_to_live.observe(took.as_secs_f64());
            if probed {
                self.metrics.listen_to_live.observe(took.as_secs_f64());
            }
            if let Some(statsd) = &self.statsd {
                statsd.timing(name::CHANGE_TO_LIVE, took, &[]);
            }
        }
    }

    pub(super) fn publish_if_due(&mut self, now: Duration) {
        if self
            .told
            .published
            .is_some_and(|at| now.saturating_sub(at) < TICK)
        {
            return;
        }
        self.told.published = Some(now);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        for (name, tracked) in &self.tracked {
            let phases = Phases {
                ready: tracked.table.count(Phase::Ready),
                probing: tracked.table.count(Phase::Probing),
                draining: tracked.table.count(Phase::Draining),
                held: tracked.table.count(Phase::Held),
            };
            self.metrics.set_members(name, phases);
            if let Some(at) = self.synced(tracked) {
                self.metrics.synced(name, at);
            }
        }
        let held = i64::try_from(self.guard.held()).unwrap_or(i64::MAX);
        if let Some(statsd) = &self.statsd
            && (held > 0 || self.metrics.held_removals.get() > 0)
        {
            statsd.gauge(name::HELD_REMOVALS, held as f64, &[]);
        }
        self.metrics.held_removals.set(held);
        self.count_leftover(now);
        self.metrics
            .quarantined
            .set(i64::try_from(self.structure.quarantined()).unwrap_or(i64::MAX));
        for stats in self.context.sessions.stats() {
            let ensemble = stats.ensemble.as_str();
            self.metrics
                .zookeeper_connected
                .with(&[ensemble])
                .set(i64::from(stats.state == ConnectionState::Connected));
            let expired = self.metrics.zookeeper_expirations.with(&[ensemble]).get();
            if let (Some(statsd), Some(new @ 1..)) =
                (&self.statsd, stats.expirations.checked_sub(expired))
            {
                statsd.count(name::SESSION_EXPIRED, new, &[("zk_cluster", ensemble)]);
            }
            for (counters, value) in [
                (&self.metrics.zookeeper_sessions, stats.sessions),
                (&self.metrics.zookeeper_expirations, stats.expirations),
                (&self.metrics.zookeeper_reads, stats.reads),
                (&self.metrics.zookeeper_lists, stats.lists),
            ] {
                let counter = counters.with(&[ensemble]);
                counter.inc_by(value.saturating_sub(counter.get()));
            }
        }
        if self.served {
            self.board.set(self.status());
        }
    }

    /// When the source of a service last confirmed what it said: a confirmation alone wakes nobody.
    fn synced(&self, tracked: &Tracked) -> Option<Duration> {
        let known = tracked.main.synced?;
        let entry = self.entries.get(&tracked.entry);
        Some(
            entry
                .and_then(Entry::synced)
                .map_or(known, |at| at.max(known)),
        )
    }

    /// Counts HAProxy's old processes again until there are none.
    fn count_leftover(&mut self, now: Duration) {
        if self.metrics.leftover_workers.get() == 0 {
            self.told.leftover_looked = None;
        }
        let Some(looked) = self.told.leftover_looked else {
            return;
        };
        let haproxy = &self.settings.haproxy;
        let info = self.links.first().and_then(|link| link.info.as_ref());
        let (Some(way), Some(config), Some(info)) =
            (Way::of(haproxy), haproxy.config_file.clone(), info)
        else {
            return;
        };
        if now.saturating_sub(looked) < LEFTOVER || self.structure.running() {
            return;
        }
        self.told.leftover_looked = Some(now);
        let pid = info.pid;
        self.jobs
            .spawn(async move { Done::Leftover(way.leftover(&config, pid).await.len()) });
    }

    /// Everything a person or a script may want to know now, as JSON text.
    pub(super) fn status(&self) -> String {
        let now = clock::since_boot();
        let service = |(name, tracked): (_, &Tracked)| {
            let value = json!({
                "job": tracked.job,
                "ready": tracked.table.count(Phase::Ready),
                "probing": tracked.table.count(Phase::Probing),
                "held": tracked.table.count(Phase::Held),
                "draining": tracked.table.count(Phase::Draining),
                "slots": tracked.table.capacity(),
                "rejected": tracked.rejects.len(),
                "age_seconds": self.synced(tracked).map(|at| now.saturating_sub(at).as_secs_f64()),
                "trouble": tracked.trouble,
                "kept": tracked.kept.as_ref().map(|(members, why)| json!({"members": members.len(), "why": why})),
            });
            (name, value)
        };
        let haproxy: Vec<Value> = self
            .links
            .iter()
            .map(super::runtime::Link::status)
            .collect();
        let zookeeper: Vec<Value> = self
            .context
            .sessions
            .stats()
            .iter()
            .map(|stats| json!({"ensemble": stats.ensemble, "state": stats.state.as_str(), "sessions": stats.sessions,
                "expirations": stats.expirations}))
            .collect();
        let refused = self.told.refused.as_ref();
        let status = Status {
            version: hostkit::VERSION,
            time: humantime::format_rfc3339_millis(clock::now()).to_string(),
            config: json!({
                "hash": self.settings.hash,
                "reads": self.told.reads,
                "refused_hash": refused.map(|(hash, _)| hash),
                "refused": refused.map(|(_, why)| why),
            }),
            services: OneByOne(self.tracked.iter().map(service)),
            haproxy,
            structure: self.structure.status(),
            zookeeper,
            proxies: self
                .files
                .rendered
                .as_ref()
                .map(|rendered| self.proxies(rendered)),
            troubles: &self.told.troubles,
        };
        // All keys are text.
        serde_json::to_string(&status).unwrap_or_default()
    }

    /// Opens what depends on settings that may change: StatsD.
    pub(super) fn reopen(&mut self, old: Option<&Settings>) {
        if old.is_some_and(|old| old.statsd == self.settings.statsd) {
            return;
        }
        self.statsd = self.settings.statsd.as_ref().map(|settings| {
            let (statsd, sending) = Statsd::new(settings, self.metrics.statsd_dropped.clone());
            tokio::spawn(sending);
            statsd
        });
    }
}

#[derive(Serialize)]
struct Status<'a, S> {
    version: &'a str,
    time: String,
    config: Value,
    services: S,
    haproxy: Vec<Value>,
    structure: Value,
    zookeeper: Vec<Value>,
    proxies: Option<Proxies>,
    troubles: &'a VecDeque<String>,
}

/// A map whose entries are made one after the other: as values, those of a thousand services would be several megabytes.
struct OneByOne<I>(I);

impl<K: Serialize, V: Serialize, I: Iterator<Item = (K, V)> + Clone> Serialize for OneByOne<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.clone())
    }
}

/// The directory of the journal.
pub(super) fn journal_directory(settings: &Settings) -> &Path {
    settings.state_file.parent().unwrap_or(Path::new("."))
}

fn kind_of(event: &Event) -> Kind {
    match event.phase {
        _ if event.before.is_none() => Kind::MemberAdded,
        Some(Phase::Ready) => Kind::MemberReady,
        Some(Phase::Held) => Kind::Held,
        Some(Phase::Draining) => Kind::MemberDraining,
        Some(Phase::Probing) => Kind::MemberAdded,
        None => Kind::MemberRemoved,
    }
}

/// Shared, because the admin listener reads it.
pub(crate) type SharedBoard = Arc<Board>;
