//! The files, kept in step with the members: HAProxy's configuration and its server state, our own state,
//! `proxies.json`, `file_output`, `status.json`. Written beside the loop, one set at a time, at most once a second.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hostkit::dir::Durability;
use hostkit::{Failure, clock};

use super::{Done, Engine, Tracked, beside};
use crate::haproxy::files::renew;
use crate::haproxy::server_state;
use crate::output::FileOutput;
use crate::proxies::Proxies;
use crate::render::{Input, Membership, Rendered};
use crate::state::{self, State};
use crate::watcher::expand::many;

/// At least this long between two writes: the first of a series is written at once.
const PAUSE: Duration = Duration::from_secs(1);
/// Until every service is known, a file whose members are not known is left as it is, with a word every so often.
const REMIND: Duration = Duration::from_secs(30);
/// `status.json` may hold what HAProxy's file does.
const MODE: u32 = 0o640;

/// What is written and what is to be.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Since when something is to be written.
    dirty: Option<Duration>,
    last: Option<Duration>,
    writing: bool,
    /// Whether HAProxy's file was left out of the last write, because it was not time for it yet.
    withheld: bool,
    reminded: Option<Duration>,
    /// Whether the file that stands has nothing that synapse does not know: it was written by this synapse or by one
    /// whose state was read, or there is none.
    pub(super) ours: bool,
    pub(super) rendered: Option<Arc<Rendered>>,
    membership: BTreeMap<String, Membership>,
}

/// What a write came to.
pub(crate) struct Written {
    /// What became of each file, by the word that metrics have for it.
    pub(super) results: Vec<(Output, Result<(), Failure>)>,
    pub(super) state: State,
}

impl Files {
    /// Notes that the files are behind.
    pub(super) fn mark(&mut self, now: Duration) {
        self.dirty.get_or_insert(now);
    }

    /// How members of a service change in a running HAProxy; `None` while it is not in the file.
    pub(super) fn membership(&self, service: &str) -> Option<Membership> {
        self.membership.get(service).copied()
    }

    /// What stands behind the address in a named server's line, its id left out.
    pub(super) fn server_options(&self, service: &str, server: &str) -> Option<String> {
        let stanza = self.rendered.as_ref()?.stanza(service)?;
        let rest = stanza.lines().find_map(|line| {
            let mut words = line.trim_start().split(' ');
            (words.next() == Some("server") && words.next() == Some(server))
                .then(|| words.skip(1).collect::<Vec<_>>())
        })?;
        let mut options = Vec::new();
        let mut words = rest.into_iter();
        while let Some(word) = words.next() {
            match word {
                "id" => drop(words.next()),
                "disabled" => {}
                word => options.push(word),
            }
        }
        Some(options.join(" "))
    }
}

impl Engine {
    /// The file as it should be now.
    pub(super) fn render(&mut self) -> Arc<Rendered> {
        self.review_quarantine();
        let mut written = Vec::with_capacity(self.tracked.len());
        let mut take = |tracked: &Tracked| {
            written.extend(
                self.structure
                    .written(tracked)
                    .map(|parts| (parts, tracked.revision)),
            );
        };
        for entry in &self.settings.services {
            // Services of a pattern stand where the pattern does.
            if many(entry) {
                self.tracked
                    .values()
                    .filter(|tracked| tracked.entry == entry.name)
                    .for_each(&mut take);
            } else if let Some(tracked) = self.tracked.get(&entry.name) {
                take(tracked);
            }
        }
        let inputs: Vec<Input<'_>> = written
            .iter()
            .map(|((service, roster), revision)| Input {
                service,
                roster,
                revision: *revision,
            })
            .collect();
        let rendered = Arc::new(self.renderer.render(&inputs));
        self.files.membership = rendered
            .services()
            .map(|(name, kind)| (name.to_owned(), kind))
            .collect();
        if self
            .files
            .rendered
            .as_ref()
            .is_none_or(|old| old.findings != rendered.findings)
        {
            for finding in &rendered.findings {
                tracing::warn!(service = finding.service.as_deref(), "{}", finding.text);
            }
        }
        self.files.rendered = Some(Arc::clone(&rendered));
        rendered
    }

    fn knows_enough(&self) -> bool {
        self.files.ours || self.tracked.values().all(|tracked| tracked.known)
    }

    /// Whether what is known is enough to replace what stands; says so where it is not.
    pub(super) fn may_write(&mut self, now: Duration) -> bool {
        if self.knows_enough() {
            return true;
        }
        if self
            .files
            .reminded
            .is_none_or(|at| now.saturating_sub(at) >= REMIND)
        {
            self.files.reminded = Some(now);
            let unknown: Vec<&str> = self
                .tracked
                .values()
                .filter(|tracked| !tracked.known)
                .map(|tracked| tracked.service.name.as_str())
                .take(5)
                .collect();
            tracing::warn!(
                services = unknown.join(" "),
                "nothing is known of some services yet: HAProxy's file stays as it is"
            );
        }
        false
    }

    pub(super) fn write_due(&self) -> Option<Duration> {
        if self.files.writing {
            return None;
        }
        let dirty = self.files.dirty?;
        // A file that was waited for is written at once.
        let last = self.files.last.filter(|_| {
            let rendered = self.files.rendered.as_ref();
            let free = rendered.is_some_and(|rendered| self.is_free(rendered));
            !(self.files.withheld && free && self.knows_enough())
        });
        Some(last.map_or(dirty, |last| dirty.max(last + PAUSE)))
    }

    /// Whether HAProxy's file may have this structure. A reload has the file to itself.
    fn is_free(&self, rendered: &Rendered) -> bool {
        let in_step = self.structure.accepted() == Some(rendered.structure.as_str());
        in_step && !self.structure.running()
    }

    pub(super) fn write_if_due(&mut self, now: Duration) {
        if self.write_due().is_some_and(|at| at <= now) {
            self.write_now();
        }
    }

    /// Writes everything beside the loop. HAProxy's file is left to the reload while one is due: it must not hold a
    /// structure that nobody has checked.
    pub(super) fn write_now(&mut self) {
        let now = clock::since_boot();
        self.files.dirty = None;
        self.files.last = Some(now);
        self.files.writing = true;
        if let Some(statsd) = &self.statsd {
            statsd.count(crate::statsd::name::CONFIG_UPDATE, 1, &[]);
        }
        let rendered = self.render();
        let may_write = self.may_write(now);
        let haproxy = &self.settings.haproxy;
        let wanted = haproxy.config_file.clone().filter(|_| haproxy.do_writes);
        // The rest does not wait for it.
        let config = wanted
            .clone()
            .filter(|_| may_write && self.is_free(&rendered));
        self.files.withheld = config != wanted;
        let job = Job {
            config,
            rendered: Arc::clone(&rendered),
            dump: self
                .links
                .first()
                .map_or_else(Arc::default, super::Link::dump),
            server_state: haproxy.server_state_file.clone(),
            ours: self
                .tracked
                .values()
                .map(|tracked| tracked.backend().to_owned())
                .collect(),
            proxies: self.proxies(&rendered),
            output: self.settings.file_output.clone(),
            members: self
                .tracked
                .values()
                .filter(|tracked| tracked.service.file_output)
                .map(|tracked| (tracked.service.name.clone(), Arc::clone(&tracked.members)))
                .collect(),
            status: (beside(&self.settings, "status.json"), self.status()),
            store: Arc::clone(&self.store),
            state: self.state_now(),
        };
        self.jobs.spawn(async move {
            let state = job.state.clone();
            let results = tokio::task::spawn_blocking(move || job.run()).await;
            let results = results.unwrap_or_else(|error| {
                let failure =
                    Failure::new(hostkit::Exit::FAILED, "the task that writes files failed");
                vec![(Output::All, Err(failure.because(error)))]
            });
            Done::Written(Written { results, state })
        });
    }

    pub(super) fn proxies(&self, rendered: &Rendered) -> Proxies {
        Proxies::of(rendered, |service| self.tracked.get(service)?.job.clone())
    }

    pub(super) fn written(&mut self, written: Written) {
        self.files.writing = false;
        let mut failed = false;
        for (file, result) in written.results {
            let word = if result.is_ok() { "ok" } else { "failed" };
            self.metrics.file_writes.with(&[file.label(), word]).inc();
            match result {
                Ok(()) => match file {
                    Output::Haproxy => self.files.ours = true,
                    Output::State => {
                        self.state = written.state.clone();
                        // What is followed is known from there.
                        let followed = &self.tracked;
                        self.state
                            .services
                            .retain(|name, _| !followed.contains_key(name));
                    }
                    _ => {}
                },
                Err(failure) => {
                    failed = true;
                    let causes = failure.causes().join("; ");
                    self.trouble(format!("{failure}: {causes}"));
                }
            }
        }
        if failed {
            self.files.mark(clock::since_boot());
        }
    }

    /// What is to be known after a restart.
    pub(super) fn state_now(&self) -> State {
        let mut state = self.state.clone();
        for (name, tracked) in &self.tracked {
            if !tracked.known {
                continue;
            }
            let mut now = tracked.state();
            now.generator_config = self.generated.text(name);
            state.services.insert(name.clone(), Arc::new(now));
        }
        state.expire(clock::now(), self.settings.state_ttl, |name| {
            self.tracked.contains_key(name)
        });
        state.config_hash.clone_from(&self.settings.hash);
        state.accepted = self
            .settings
            .services
            .iter()
            .map(|service| service.name.clone())
            .collect();
        state.loaded = self.structure.loaded();
        state
    }
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// HAProxy's configuration.
    Haproxy,
    /// HAProxy's server-state file.
    ServerState,
    /// Our own state.
    State,
    /// `proxies.json`.
    Proxies,
    /// `file_output`.
    Services,
    /// `status.json`.
    Status,
    /// The task that writes all of them.
    All,
}

impl Output {
    /// Its label in metrics.
    const fn label(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::ServerState => "server-state",
            Self::State => "state",
            Self::Proxies => "proxies",
            Self::Services => "output",
            Self::Status => "status",
            Self::All => "all",
        }
    }
}

/// One round of writing.
struct Job {
    config: Option<PathBuf>,
    rendered: Arc<Rendered>,
    /// What HAProxy said of its servers last.
    dump: Arc<String>,
    server_state: PathBuf,
    /// The backends that the configuration decides about.
    ours: BTreeSet<String>,
    proxies: Proxies,
    output: Option<PathBuf>,
    members: BTreeMap<String, Arc<Vec<Arc<crate::model::Backend>>>>,
    status: (PathBuf, String),
    store: Arc<state::Store>,
    state: State,
}

impl Job {
    /// Everything is tried, whatever fails.
    fn run(self) -> Vec<(Output, Result<(), Failure>)> {
        let mut results = Vec::new();
        // The state first: what HAProxy's file says can be made from it, and not the other way round.
        results.push((Output::State, self.store.save(&self.state)));
        if let Some(path) = &self.config {
            // HAProxy would believe an old line about a new occupant: this file first.
            let read = self.rendered.chunks().filter(|_| !self.dump.is_empty());
            let declared = [server_state::Declared::read(read)];
            let state = renew(&self.server_state, |out| {
                server_state::write(out, &self.dump, &declared, &self.ours)
            });
            results.push((
                Output::ServerState,
                state.map_err(|error| cannot_write(&self.server_state, error)),
            ));
            let text = renew(path, |mut out| self.rendered.write_to(&mut out));
            results.push((
                Output::Haproxy,
                text.map_err(|error| cannot_write(path, error)),
            ));
        }
        results.push((Output::Proxies, self.write_proxies()));
        if let Some(directory) = &self.output {
            results.push((Output::Services, self.write_output(directory)));
        }
        let (path, status) = &self.status;
        results.push((Output::Status, write_if_changed(path, status.as_bytes())));
        results
    }
}

impl Job {
    fn write_proxies(&self) -> Result<(), Failure> {
        let write = || state::locate(&self.status.0).and_then(|(dir, _)| self.proxies.write(&dir));
        write().map(drop).map_err(|error| {
            Failure::new(
                hostkit::Exit::CANNOT_CREATE,
                "cannot write proxies.json beside the state file",
            )
            .because(error)
        })
    }

    fn write_output(&self, directory: &Path) -> Result<(), Failure> {
        let output = FileOutput::open(directory)?;
        for (service, members) in &self.members {
            output.write(service, members)?;
        }
        let names: BTreeSet<&str> = self.members.keys().map(String::as_str).collect();
        output.prune(&names).map(drop)
    }
}

fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let write = || {
        let (dir, name) = state::locate(path)?;
        if dir
            .read(&name, bytes.len() as u64 + 1)
            .is_ok_and(|old| old == bytes)
        {
            return Ok(());
        }
        dir.write_atomic(&name, bytes, MODE, Durability::Process)
    };
    write().map_err(|error| cannot_write(path, error))
}

fn cannot_write(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(
        hostkit::Exit::CANNOT_CREATE,
        format!("cannot write {}", path.display()),
    )
    .remedy("is the disk full, and may this user write there?")
    .because(error)
}
