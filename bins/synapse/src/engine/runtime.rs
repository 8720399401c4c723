//! HAProxy at run time: one link per process, what it holds as far as we know, and telling it what it should hold.
//!
//! What a link holds is read whole when the process is new, when a command was refused, and slowly otherwise (the
//! audit); between that it is what was told. So a change costs one batch, and drift is found all the same.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hostkit::backoff::Backoff;
use hostkit::clock;
use serde_json::{Value, json};

mod drains;

use super::Engine;
use super::pace::Pace;
use super::tracked::Tracked;
use crate::haproxy::info::environment;
use crate::haproxy::live::{self, Live, Operation};
use crate::haproxy::{Features, Info, Reply, STRUCTURE, Server, Socket};
use crate::journal::{Entry, Kind};
use crate::membership::Admin;
use crate::model::Backend;
use crate::planner::{self, Change, Held, NOWHERE, Op};
use crate::render::{Membership, server_name};
use crate::settings::{Haproxy, Servers};

/// How often the process behind a socket is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often everything it holds is read and compared.
const AUDIT: Duration = Duration::from_secs(10);
/// The same while the guard holds members: HAProxy's checks may call them down any time.
const AUDIT_HELD: Duration = Duration::from_secs(2);

/// What a process holds, by backend and server. Most servers are slots, whose names are shared.
pub(crate) type Holdings = BTreeMap<String, BTreeMap<Arc<str>, Held>>;

/// One HAProxy process, by its socket.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) socket: Socket,
    /// What it holds, by backend and server; `None` when that must be read first.
    held: Option<Holdings>,
    /// What it is; `None` while it does not answer.
    pub(super) info: Option<Info>,
    /// The structure it has loaded, where it says so.
    pub(super) structure: Option<String>,
    /// Services to compare with it.
    dirty: BTreeSet<String>,
    /// Services of which it refused a change: they are compared again when what it holds has been read anew, and nobody
    /// else waits for that.
    refused: BTreeSet<String>,
    looked: Option<Duration>,
    audited: Duration,
    pub(super) trouble: Option<String>,
    /// Since when nobody has listened there.
    gone: Option<Duration>,
    backoff: Backoff,
    retry_at: Duration,
    pace: Pace,
    /// The last reading, less our free slots, for the file that carries it over a reload.
    dump: Arc<String>,
}

/// What HAProxy's own checks call down: HAProxy backend, address and port, because a slot may have another occupant by
/// now.
#[derive(Debug, Default)]
pub(crate) struct Down(HashSet<(String, IpAddr, u16)>);

impl Down {
    /// Whether a member of a service is down.
    pub(super) fn contains(&self, tracked: &Tracked, backend: &Backend) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let mut residents = tracked.table.residents();
        let found = residents.find(|(_, resident)| is_at(&resident.backend, backend));
        found.is_some_and(|(_, resident)| {
            let server = (tracked.backend().to_owned(), resident.address, backend.port);
            self.0.contains(&server)
        })
    }

    fn see(&mut self, live: &Live) {
        let stopped = live.checked && live.operation == Operation::Stopped;
        if let Some(address) = live.address.filter(|_| stopped)
            && live.admin.word() != Admin::Maint
        {
            self.0.insert((live.backend.clone(), address, live.port));
        }
    }
}

/// The HAProxy server a member has.
pub(super) fn server_of(tracked: &Tracked, backend: &Backend) -> Option<String> {
    match tracked.service.servers {
        Servers::Named(_) => Some(server_name(backend)),
        Servers::Slots => {
            let (slot, _) = tracked
                .table
                .residents()
                .find(|(_, resident)| is_at(&resident.backend, backend))?;
            Some(planner::slot(slot - 1))
        }
    }
}

fn is_at(one: &Backend, other: &Backend) -> bool {
    one.host == other.host && one.port == other.port
}

impl Link {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            held: None,
            info: None,
            structure: None,
            dirty: BTreeSet::new(),
            refused: BTreeSet::new(),
            looked: None,
            audited: Duration::ZERO,
            trouble: None,
            gone: None,
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
            retry_at: Duration::ZERO,
            pace: Pace::default(),
            dump: Arc::default(),
        }
    }

    /// One link per socket; none where the runtime API is not to be used.
    pub(super) fn all(haproxy: &Haproxy) -> Vec<Self> {
        if !haproxy.do_socket {
            return Vec::new();
        }
        haproxy
            .sockets
            .iter()
            .map(|path| Self::new(Socket::new(path)))
            .collect()
    }

    /// What it holds of a backend; `None` while that is not known.
    pub(super) fn held(&self, backend: &str) -> Option<&BTreeMap<Arc<str>, Held>> {
        self.held.as_ref()?.get(backend)
    }

    /// What `show servers state` said last; empty before that.
    pub(super) fn dump(&self) -> Arc<String> {
        Arc::clone(&self.dump)
    }

    pub(super) fn status(&self) -> Value {
        let info = self.info.as_ref();
        json!({
            "socket": self.socket.path().display().to_string(),
            "pid": info.map(|info| info.pid),
            "version": info.map(|info| info.version.to_string()),
            "uptime_seconds": info.map(|info| info.uptime.as_secs()),
            "structure": self.structure,
            "trouble": self.trouble,
        })
    }

    /// Reads everything anew at the next look.
    pub(super) fn doubt(&mut self) {
        self.held = None;
        self.looked = None;
    }

    fn broke(&mut self, trouble: String, now: Duration) {
        if self.trouble.as_ref() != Some(&trouble) {
            tracing::warn!(socket = %self.socket.path().display(), "HAProxy does not answer: {trouble}");
        }
        self.trouble = Some(trouble);
        self.info = None;
        self.structure = None;
        self.held = None;
        self.looked = None;
        self.retry_at = now + self.backoff.next_delay();
    }
}

impl Engine {
    /// Notes that a service's servers are to be compared with HAProxy and written to its file.
    pub(super) fn mark(&mut self, service: &str, now: Duration) {
        self.mark_runtime(service);
        self.files.mark(now);
        let is_static = self.files.membership(service) == Some(Membership::Static);
        let own_options = self.tracked.get(service).is_some_and(Tracked::has_options);
        if is_static || own_options || !self.settings.haproxy.do_socket {
            self.structure.suspect("members");
        }
    }

    pub(super) fn mark_runtime(&mut self, service: &str) {
        for link in &mut self.links {
            link.dirty.insert(service.to_owned());
        }
    }

    /// Looks at HAProxy's processes, and reads what they hold where that is due.
    pub(super) async fn audit_if_due(&mut self, now: Duration) {
        for index in 0..self.links.len() {
            let link = &self.links[index];
            let due = link.looked.is_none_or(|at| now.saturating_sub(at) >= LOOK);
            if due && link.retry_at <= now {
                self.look(index, now).await;
            }
        }
    }

    async fn look(&mut self, index: usize, now: Duration) {
        let link = &mut self.links[index];
        link.looked = Some(now);
        let info = match link
            .socket
            .ask("show info")
            .await
            .map(|reply| Info::parse(&reply))
        {
            Ok(Some(info)) => info,
            Ok(None) => {
                return self.broke(
                    index,
                    "unreadable",
                    "`show info` makes no sense".to_owned(),
                    now,
                );
            }
            Err(error) => return self.broke(index, error.word(), error.to_string(), now),
        };
        let another = link.info.as_ref().is_none_or(|known| known.pid != info.pid);
        if link.trouble.take().is_some() {
            self.structure.back();
            tracing::info!(socket = %link.socket.path().display(), pid = info.pid, "HAProxy answers");
        }
        link.backoff.reset();
        link.gone = None;
        link.info = Some(info);
        if another {
            let said = link
                .socket
                .ask(&format!("show env {STRUCTURE}"))
                .await
                .unwrap_or_default();
            link.structure = environment(STRUCTURE, &said);
            link.held = None;
            let pid = link
                .info
                .as_ref()
                .and_then(|info| u32::try_from(info.pid).ok());
            self.structure.suspect("another HAProxy process");
            if index == 0 && !self.structure.drives(pid) {
                self.disinherit();
            }
        }
        let link = &self.links[index];
        let doubted = self.guard.next().is_some();
        let every = if doubted { AUDIT_HELD } else { AUDIT };
        let doubtful = link.held.is_none() || !link.refused.is_empty();
        if doubtful || now.saturating_sub(link.audited) >= every {
            self.read_held(index, another, now).await;
        }
    }

    async fn read_held(&mut self, index: usize, another: bool, now: Duration) {
        let link = &mut self.links[index];
        let dump = match link.socket.ask("show servers state").await {
            Err(error) => return self.broke(index, error.word(), error.to_string(), now),
            Ok(dump) => dump,
        };
        let backends = match link.socket.ask("show backend").await {
            Err(error) => return self.broke(index, error.word(), error.to_string(), now),
            Ok(backends) => backends,
        };
        // It is not believed any more, and would be in memory twice.
        let first = link.held.take().is_none();
        let ours: HashSet<&str> = self.tracked.values().map(Tracked::backend).collect();
        let mut down = Down::default();
        let mut kept: String = dump.lines().take(2).flat_map(|line| [line, "\n"]).collect();
        let held = live::rows(&dump).and_then(|rows| {
            let rows = rows.map(|row| {
                let (line, live) = row?;
                down.see(&live);
                let free = live.admin.word() == Admin::Maint
                    && (live.address, live.port) == (Some(NOWHERE.0), NOWHERE.1);
                // Our free slots are as the file has them.
                if !free || !ours.contains(live.backend.as_str()) {
                    kept.extend([line, "\n"]);
                }
                Ok(live)
            });
            by_backend(rows, live::backends(&backends))
        });
        let held = match held {
            Err(error) => return self.broke(index, "unreadable", error.to_string(), now),
            Ok(held) => held,
        };
        link.dump = Arc::new(kept);
        link.audited = now;
        let refused = std::mem::take(&mut link.refused);
        link.dirty.extend(refused);
        // Of a process whose first reading this is, nothing is drift: it holds what its file said.
        let drifted: Vec<String> = self
            .tracked
            .iter()
            .filter(|(name, tracked)| {
                !link.dirty.contains(*name)
                    && !changes(tracked, self.files.membership(name), &held).is_empty()
            })
            .map(|(name, _)| name.clone())
            .collect();
        if index == 0 {
            self.down = down;
        }
        let link = &mut self.links[index];
        link.held = Some(held);
        link.dirty.extend(drifted.iter().cloned());
        if !first && !another {
            for service in drifted {
                self.metrics.drift_repaired.inc();
                tracing::warn!(service, "HAProxy did not hold what it was told: repairing");
                self.note(Kind::DriftRepaired, |entry| Entry {
                    service: Some(service),
                    ..entry
                });
            }
        }
    }

    /// This HAProxy began with its file: what was saved is at least as new.
    fn disinherit(&mut self) {
        for tracked in self.tracked.values_mut() {
            tracked.inherited = false;
        }
        for name in self.tracked.keys().cloned().collect::<Vec<_>>() {
            self.mark_runtime(&name);
        }
    }

    /// Tells HAProxy what it does not hold yet.
    pub(super) async fn flush(&mut self, now: Duration) {
        for index in 0..self.links.len() {
            let link = &mut self.links[index];
            if link.dirty.is_empty() || link.held.is_none() || !link.pace.allows(now) {
                continue;
            }
            let dynamic =
                |service: &String| self.files.membership(service) == Some(Membership::Dynamic);
            if link.dirty.iter().any(dynamic) {
                // What HAProxy is told of a new server is what its line says.
                self.render();
            }
            self.flush_link(index, now).await;
        }
    }

    async fn flush_link(&mut self, index: usize, now: Duration) {
        let link = &mut self.links[index];
        let Some(held) = link.held.as_mut() else {
            return;
        };
        let features = link.info.as_ref().map(|info| Features::of(info.version));
        let mut lines = Vec::new();
        let mut planned = Vec::new();
        for service in std::mem::take(&mut link.dirty) {
            let Some(tracked) = self.tracked.get(&service) else {
                continue;
            };
            for change in changes(tracked, self.files.membership(&service), held) {
                let from = lines.len();
                let options = || self.files.server_options(&service, &change.server);
                let Some(commands) = commands(tracked, &change, features, options) else {
                    // What cannot be said at run time is said by a reload.
                    self.structure.suspect("members");
                    continue;
                };
                lines.extend(commands);
                planned.push((
                    service.clone(),
                    tracked.backend().to_owned(),
                    change,
                    from..lines.len(),
                ));
            }
        }
        if lines.is_empty() {
            return;
        }
        let replies = match link.socket.batch(&lines).await {
            Ok(replies) => replies,
            Err(error) => {
                link.dirty
                    .extend(planned.into_iter().map(|(service, ..)| service));
                return self.broke(index, error.word(), error.to_string(), now);
            }
        };
        link.pace.sent(clock::since_boot());
        self.metrics.runtime_batches.inc();
        self.metrics.runtime_commands.inc_by(lines.len() as u64);
        let mut refused = BTreeMap::new();
        for (service, backend, change, range) in planned {
            let problem = range.clone().find_map(|at| {
                let reply = replies.get(at).map_or("", String::as_str);
                match Reply::of(reply) {
                    Reply::Done => None,
                    _ => Some(format!(
                        "`{}`: {}",
                        lines[at],
                        crate::model::shown(reply.trim())
                    )),
                }
            });
            match problem {
                None => planner::apply(held.entry(backend).or_default(), &change),
                Some(problem) => {
                    refused.insert(service, problem);
                }
            }
        }
        self.settled();
        for (service, problem) in refused {
            tracing::warn!(service, "HAProxy refused a change: {problem}");
            let link = &mut self.links[index];
            link.refused.insert(service.clone());
            if self.files.membership(&service) == Some(Membership::Dynamic) {
                self.structure.suspect("members");
            }
        }
    }

    fn broke(&mut self, index: usize, kind: &'static str, trouble: String, now: Duration) {
        self.metrics.socket_errors.with(&[kind]).inc();
        let link = &mut self.links[index];
        link.gone = match kind {
            "missing" | "refused" => link.gone.or(Some(now)),
            _ => None,
        };
        self.links[index].broke(trouble, now);
    }

    /// When the next batch may go, while there is one.
    pub(super) fn flush_due(&self, now: Duration) -> Option<Duration> {
        self.links
            .iter()
            .filter_map(|link| match (&link.trouble, &link.held) {
                (Some(_), _) => Some(link.retry_at),
                (None, None) => Some(link.retry_at.max(now)),
                (None, Some(_)) if !link.dirty.is_empty() => Some(link.pace.next()),
                _ => None,
            })
            .min()
    }
}

/// What a process that holds this must be told of a service.
pub(crate) fn changes(
    tracked: &Tracked,
    membership: Option<Membership>,
    held: &Holdings,
) -> Vec<Change> {
    // Of members that nobody knows yet, what HAProxy holds is the best there is.
    if tracked.service.haproxy.is_none() || !tracked.known || tracked.inherited {
        return Vec::new();
    }
    // A backend that the process does not have comes with the reload that is due.
    let Some(held) = held.get(tracked.backend()) else {
        return Vec::new();
    };
    let named = |_: usize, backend: &Backend| server_name(backend);
    let wanted = planner::wanted(
        &tracked.roster,
        &tracked.service.servers,
        tracked.weight(),
        named,
    );
    planner::changes(&wanted, held, membership == Some(Membership::Dynamic))
}

/// The commands of a change; `None` when HAProxy must be reloaded for it.
fn commands(
    tracked: &Tracked,
    change: &Change,
    features: Option<Features>,
    options: impl Fn() -> Option<String>,
) -> Option<Vec<String>> {
    let server = Server::new(tracked.backend(), &change.server).ok()?;
    let features = features.filter(|features| features.supported);
    let mut commands = Vec::new();
    for op in &change.ops {
        match *op {
            Op::Address(address, port) => commands.push(server.address(address, port)),
            Op::Weight(weight) => commands.push(server.weight(Some(weight))),
            Op::State(admin) => commands.push(server.state(admin)),
            Op::Add(..) => {
                let mut occupant = tracked.occupant(&change.server)?.clone();
                // They are commands of their own.
                (occupant.weight, occupant.admin) = (None, Admin::Maint);
                let features = features.filter(|features| features.dynamic_servers)?;
                commands.extend(server.add(&occupant, &options()?, features).ok()?);
            }
            Op::Delete => commands
                .extend(server.delete(features.filter(|features| features.dynamic_servers)?)),
        }
    }
    Some(commands)
}

/// What HAProxy holds. `backends` are all it has: one without servers says nothing of itself.
pub(crate) fn by_backend<'a, E>(
    servers: impl Iterator<Item = Result<Live, E>>,
    backends: impl Iterator<Item = &'a str>,
) -> Result<Holdings, E> {
    let mut held: Holdings = backends
        .map(|name| (name.to_owned(), BTreeMap::new()))
        .collect();
    let mut names: HashSet<Arc<str>> = HashSet::new();
    let mut last = String::new();
    for live in servers {
        let live = live?;
        if live.backend != last {
            // They come backend by backend, and a map that is made in one go takes half the memory of one that grew.
            if let Some(whole) = held.get_mut(&last) {
                *whole = std::mem::take(whole).into_iter().collect();
            }
            last.clone_from(&live.backend);
        }
        let server = Held {
            address: live.address,
            port: live.port,
            weight: live.weight,
            admin: live.admin.word(),
        };
        let name = match names.get(live.server.as_str()) {
            Some(known) => Arc::clone(known),
            None => live.server.into(),
        };
        names.insert(Arc::clone(&name));
        held.entry(live.backend).or_default().insert(name, server);
    }
    Ok(held)
}
