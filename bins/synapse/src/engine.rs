//! The engine: one loop on one thread that follows watchers, probes and HAProxy, and keeps them in step.
//!
//! Owns the order of things. What is a member is decided in [`crate::watcher::select`], who gets requests in
//! [`crate::membership::table`], what HAProxy is told in [`crate::planner`], what its file says in [`crate::render`], and
//! how it is reloaded in [`crate::haproxy`].

mod files;
mod generated;
mod news;
mod pace;
mod reconfigure;
mod report;
mod runtime;
mod start;
mod structure;
mod tracked;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostkit::shutdown::{DaemonSignal, DaemonSignals};
use hostkit::{Exit, Failure, clock};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::config::Sources;
use crate::guard::Guard;
use crate::journal::{Journal, Kind};
use crate::metrics::Metrics;
use crate::probe::{Answer, Prober};
use crate::render::Renderer;
use crate::settings::Settings;
use crate::state::{State, Store};
use crate::statsd::Statsd;
use crate::watcher::Context;
use crate::watcher::resolve::Hosts;

use files::Files;
use generated::Generated;
use news::Entry;
use report::{Said, SharedBoard};
use runtime::{Down, Link};
use structure::Structure;

pub(crate) use reconfigure::ACCEPT;
pub(crate) use runtime::{by_backend, changes};
pub(crate) use tracked::{Tracked, remembered};

/// How often the engine looks around although nothing happened: probes for systemd, ages, HAProxy's process.
const TICK: Duration = Duration::from_secs(1);

/// What the engine is started with.
#[derive(Debug)]
pub struct Start {
    /// The configuration as it was loaded.
    pub settings: Settings,
    /// Where it is read again on SIGHUP.
    pub sources: Sources,
    /// Whether what Synapse would have ignored is only warned of.
    pub lenient: bool,
    /// Whether a configuration may remove any number of services.
    pub force: bool,
    /// Where `/status` and `/metrics` are served.
    pub admin: Option<hostkit::admin::AdminAddress>,
    /// How long writes and reloads that have begun may take to end.
    pub drain_timeout: Duration,
}

/// Everything the loop knows.
pub(crate) struct Engine {
    settings: Arc<Settings>,
    sources: Sources,
    lenient: bool,
    context: Context,
    /// Rung by watchers.
    bell: Arc<Notify>,
    entries: BTreeMap<String, Entry>,
    tracked: BTreeMap<String, Tracked>,
    generated: Generated,
    /// Services with members that are known by name only.
    by_name: BTreeSet<String>,
    resolver: Hosts,
    guard: Guard,
    prober: Prober,
    renderer: Renderer,
    links: Vec<Link>,
    /// What HAProxy's own checks call down.
    down: Down,
    /// When draining members were last asked for; `None` while there are none.
    drains_looked: Option<Duration>,
    structure: Structure,
    files: Files,
    store: Arc<Store>,
    /// What is saved beside the services that are followed: those that are configured no longer.
    state: State,
    journal: Journal,
    metrics: Arc<Metrics>,
    statsd: Option<Statsd>,
    board: SharedBoard,
    /// Whether anybody can look at it.
    served: bool,
    told: Said,
    jobs: JoinSet<Done>,
}

/// What was done beside the loop.
pub(crate) enum Done {
    /// The files were written, or not.
    Written(files::Written),
    /// HAProxy was reloaded, or not.
    Reloaded(structure::Outcome),
    /// Old HAProxy processes were counted.
    Leftover(usize),
}

/// Runs until it is told to stop.
///
/// # Errors
/// What keeps it from starting: the state file is locked or cannot be written, the admin address is taken, the
/// configuration removes too many services.
pub async fn run(start: Start) -> Result<Exit, Failure> {
    let mut signals = DaemonSignals::new()
        .map_err(|error| Failure::new(Exit::FAILED, "cannot listen for signals").because(error))?;
    let drain_timeout = start.drain_timeout;
    let (mut engine, mut answers) = Engine::new(start).await?;
    engine.begin().await;
    engine.follow(&mut signals, &mut answers).await;
    engine.end(drain_timeout).await;
    Ok(Exit::OK)
}

impl Engine {
    async fn follow(&mut self, signals: &mut DaemonSignals, answers: &mut mpsc::Receiver<Answer>) {
        let mut names: watch::Receiver<u64> = self.resolver.changed();
        let bell = Arc::clone(&self.bell);
        loop {
            let wake = self.next_turn(clock::since_boot());
            tokio::select! {
                told = signals.next() => match told {
                    DaemonSignal::Terminate => return,
                    DaemonSignal::Hangup => self.reconfigure().await,
                },
                () = bell.notified() => {}
                Some(answer) = answers.recv() => {
                    self.answered(answer);
                    while let Ok(answer) = answers.try_recv() {
                        self.answered(answer);
                    }
                }
                Ok(()) = names.changed() => {
                    let now = clock::since_boot();
                    for name in self.by_name.clone() {
                        self.place(&name, now);
                    }
                }
                Some(done) = self.jobs.join_next() => self.done(done),
                () = tokio::time::sleep(wake) => {}
            }
            self.turn().await;
        }
    }

    /// Brings everything one step further.
    async fn turn(&mut self) {
        let now = clock::since_boot();
        self.take_news(now, &BTreeSet::new());
        if self.guard.next().is_some_and(|at| at <= now) {
            self.review(now, BTreeSet::new());
        }
        for name in self.decisions_due(now) {
            self.settle(&name, now);
        }
        self.audit_if_due(now).await;
        self.flush(now).await;
        self.look_at_drains(now).await;
        self.give_chances(now);
        self.reload_if_due(now);
        self.write_if_due(now);
        self.publish_if_due(now);
    }

    fn answered(&mut self, answer: Answer) {
        let now = clock::since_boot();
        let (service, endpoint) = answer.key;
        if let Some(tracked) = self.tracked.get_mut(&service) {
            tracked.table.probed(&endpoint, answer.answered, now);
            self.settle(&service, now);
        }
    }

    fn decisions_due(&self, now: Duration) -> Vec<String> {
        self.tracked
            .iter()
            .filter(|(_, tracked)| tracked.decides_at.is_some_and(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// How long nothing has to be done unless something happens.
    fn next_turn(&self, now: Duration) -> Duration {
        let decisions = self
            .tracked
            .values()
            .filter_map(|tracked| tracked.decides_at);
        let due = [
            self.guard.next(),
            decisions.min(),
            self.flush_due(now),
            self.structure.chance_due(),
            self.reload_due(),
            self.write_due(),
            self.drains_due(),
        ];
        let next = due.into_iter().flatten().min().unwrap_or(now + TICK);
        next.saturating_sub(now)
            .clamp(Duration::from_millis(1), TICK)
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Written(written)) => self.written(written),
            Ok(Done::Reloaded(outcome)) => self.reloaded(outcome),
            Ok(Done::Leftover(count)) => {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.metrics.leftover_workers.set(count);
            }
            Err(error) => tracing::error!(%error, "a task of synapse itself failed"),
        }
    }

    /// Ends what was begun: the running write or reload, and then the last state is saved.
    async fn end(&mut self, limit: Duration) {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("stopping; HAProxy goes on as it is");
        self.note(Kind::Stop, |entry| entry);
        let finish = async {
            while let Some(done) = self.jobs.join_next().await {
                self.done(done);
            }
            self.write_now();
            while let Some(done) = self.jobs.join_next().await {
                self.done(done);
            }
        };
        if tokio::time::timeout(limit, finish).await.is_err() {
            tracing::warn!(
                "stopped before the last write had ended; what was written before stands"
            );
        }
    }
}

/// Beside the state file.
fn beside(settings: &Settings, name: &str) -> PathBuf {
    settings.state_file.with_file_name(name)
}
