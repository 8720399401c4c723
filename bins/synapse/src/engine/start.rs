//! How the engine begins: last known good first, so that HAProxy's file is right while every registry is away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hostkit::admin::{self, AdminAddress, AdminListener};
use hostkit::{Exit, Failure, clock};
use sd_notify::NotifyState;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::news;
use super::reconfigure::removes_too_much;
use super::report::{Said, SharedBoard, journal_directory};
use super::runtime::{Down, Link};
use super::structure::Structure;
use super::{Engine, Start, Tracked, remembered};
use crate::guard::{Change, Guard};
use crate::journal::{Entry, Journal, Kind};
use crate::metrics::Metrics;
use crate::model::Discovered;
use crate::probe::{Answer, Count, Prober};
use crate::render::Renderer;
use crate::state::Store;
use crate::watcher::Context;
use crate::watcher::expand::many;
use crate::watcher::resolve::Hosts;

impl Engine {
    pub(super) async fn new(start: Start) -> Result<(Self, mpsc::Receiver<Answer>), Failure> {
        let settings = Arc::new(start.settings);
        let store = Arc::new(Store::open(&settings.state_file)?);
        let state = store.load();
        let accepted: Vec<&str> = state.accepted.iter().map(String::as_str).collect();
        if let Some(why) = removes_too_much(&accepted, &settings).filter(|_| !start.force) {
            return Err(
                Failure::new(Exit::CONFIG, format!("the configuration is refused: {why}")).remedy(
                    "if that is meant, start synapse once with --force; HAProxy goes on as it is",
                ),
            );
        }
        let metrics = Arc::new(Metrics::default());
        let (prober, answers) = Prober::new(Count {
            answered: metrics.probes.with(&["answered"]),
            silent: metrics.probes.with(&["silent"]),
        });
        let board = SharedBoard::default();
        if let Some(address) = &start.admin {
            serve(address, &board, &metrics).await?;
        }
        let mut structure = Structure::default();
        structure.restore(state.loaded.clone());
        let engine = Self {
            sources: start.sources,
            lenient: start.lenient,
            context: Context {
                clusters: settings.clusters.clone(),
                ..Context::default()
            },
            bell: Arc::new(Notify::new()),
            entries: BTreeMap::new(),
            tracked: BTreeMap::new(),
            generated: super::Generated::default(),
            by_name: BTreeSet::new(),
            resolver: Hosts::new(None),
            guard: Guard::new(settings.guard.clone()),
            prober,
            renderer: Renderer::new(&settings.haproxy),
            links: Link::all(&settings.haproxy),
            down: Down::default(),
            drains_looked: None,
            structure,
            files: super::Files::default(),
            store,
            state,
            journal: Journal::open(
                journal_directory(&settings),
                metrics.journal_dropped.clone(),
            )?,
            metrics,
            statsd: None,
            board,
            served: start.admin.is_some(),
            told: Said::default(),
            jobs: JoinSet::new(),
            settings,
        };
        Ok((engine, answers))
    }

    /// Takes up what was last known good, and starts to follow.
    pub(super) async fn begin(&mut self) {
        let settings = Arc::clone(&self.settings);
        tracing::info!(
            version = hostkit::VERSION,
            services = settings.services.len(),
            sockets = self.links.len(),
            "synapse started"
        );
        self.note(Kind::Start, |entry| Entry {
            detail: Some(hostkit::VERSION.to_owned()),
            ..entry
        });
        self.reopen(None);
        for service in &settings.services {
            self.introduce(service);
        }
        self.restore_patterns();
        self.files.ours = file_is_known(&settings, !self.state.services.is_empty());
        sweep(&settings);
        self.structure.suspect("start");
        self.turn().await;
        for service in &settings.services {
            let entry = news::Entry::new(Arc::clone(service), &self.context, &self.bell);
            self.entries.insert(service.name.clone(), entry);
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    /// Services of patterns, as they were found last.
    fn restore_patterns(&mut self) {
        let now = clock::since_boot();
        let settings = Arc::clone(&self.settings);
        for entry in settings.services.iter().filter(|entry| many(entry)) {
            for (service, kept) in remembered(entry, &self.state) {
                let name = service.name.clone();
                if self.tracked.contains_key(&name) {
                    continue;
                }
                let service = self.as_generated(service, kept.generator_config.as_deref());
                let mut tracked = Tracked::new(service, entry.name.clone());
                tracked.restore(&kept, now);
                self.state.services.remove(&name);
                self.remember(&tracked, now);
                self.tracked.insert(name.clone(), tracked);
                self.mark(&name, now);
            }
        }
    }

    /// Tells the guard of members that are known from before.
    pub(super) fn remember(&mut self, tracked: &Tracked, now: Duration) {
        if tracked.known {
            let change = Change {
                service: tracked.service.name.clone(),
                source: super::news::source(&tracked.service.discovery),
                found: Arc::new(Discovered {
                    backends: tracked.members.to_vec(),
                    ..Discovered::default()
                }),
            };
            self.guard.remember(now, change);
        }
    }
}

/// Removes what writes that were cut off by a crash have left.
fn sweep(settings: &crate::settings::Settings) {
    let haproxy = &settings.haproxy;
    let files = [
        Some(settings.state_file.clone()),
        Some(super::beside(settings, "status.json")),
        Some(super::beside(settings, "proxies.json")),
        Some(haproxy.server_state_file.clone()),
        haproxy.config_file.clone(),
        haproxy.candidate_file.clone(),
    ];
    for path in files.iter().flatten() {
        if let Err(error) = crate::haproxy::files::sweep(path) {
            tracing::debug!(path = %path.display(), %error, "not swept");
        }
    }
}

/// Whether HAProxy's file may be replaced before everything is known: there is none, or it is ours and the state that
/// belongs to it was `restored`. Without that its members are known to nobody else.
fn file_is_known(settings: &crate::settings::Settings, restored: bool) -> bool {
    let Some(path) = &settings.haproxy.config_file else {
        return true;
    };
    match std::fs::read_to_string(path) {
        Ok(text) => restored && text.starts_with(crate::render::NOTICE),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

async fn serve(
    address: &AdminAddress,
    board: &SharedBoard,
    metrics: &Arc<Metrics>,
) -> Result<(), Failure> {
    let listener = AdminListener::bind(address).await?;
    tracing::info!(address = %address, "serving /status and /metrics");
    let board = Arc::clone(board);
    let metrics = Arc::clone(metrics);
    let routes = admin::build_router(
        move || board.status(),
        move || metrics.render(clock::since_boot()),
    );
    tokio::spawn(listener.serve(routes));
    Ok(())
}
