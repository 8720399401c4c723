//! One session of an ensemble, for ever: connecting, telling followers, and starting over.
//!
//! The client library reconnects by itself for a while, ever more slowly, and then declares the session expired without
//! having asked anybody. A session that is not connected again within half its timeout is given up for a new one here:
//! that is also the only way into an ensemble that was rebuilt, which refuses whoever has seen newer transactions than
//! its own. A new session reads everything again; a resumed one only what may have changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};
use zookeeper_client::{Client, SessionState};

use super::payload::StringInterner;
use super::{Ensemble, SessionOptions};
use crate::backoff::Backoff;

/// How many requests of one session are under way at once.
pub(super) const IN_FLIGHT: usize = 256;

/// How many scans of one session read at once: enough to keep requests under way. A thousand that begin together would
/// each have its own requests waiting for their turn, which takes more memory than what they read.
const SCANS: usize = 8;

/// How long after a defect the task that had it is started again.
const AFTER_DEFECT: Duration = Duration::from_secs(1);

/// What an ensemble's followers share.
#[derive(Debug)]
pub(super) struct EnsembleContext {
    pub(super) ensemble: Ensemble,
    pub(super) options: SessionOptions,
    pub(super) counters: EnsembleCounters,
    pub(super) permits: Semaphore,
    /// The turn of a scan.
    pub(super) scans: Semaphore,
    pub(super) names: StringInterner,
    /// A server has said that it has no persistent watches: it is older than 3.6. Watches that fire once work with any
    /// server, so this is not asked again.
    pub(super) old_server: AtomicBool,
}

/// What has happened since the ensemble is followed.
#[derive(Debug, Default)]
pub(super) struct EnsembleCounters {
    pub(super) sessions: AtomicU64,
    pub(super) expirations: AtomicU64,
    pub(super) disconnects: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) lists: AtomicU64,
    pub(super) events: AtomicU64,
    pub(super) repairs: AtomicU64,
}

/// Adds one to a counter.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// How things stand with an ensemble. Counters begin when it is first followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnsembleStats {
    /// The ensemble, without credentials.
    pub ensemble: String,
    /// The session's state.
    pub state: ConnectionState,
    /// What the server granted, of the session that is connected.
    pub session_timeout: Option<Duration>,
    /// Sessions established.
    pub sessions: u64,
    /// Sessions that expired or were given up.
    pub expirations: u64,
    /// Connections lost.
    pub disconnects: u64,
    /// Data of znodes asked for.
    pub reads: u64,
    /// Children of znodes asked for.
    pub lists: u64,
    /// Watch events received.
    pub events: u64,
    /// Audits that found something that no event had told.
    pub repairs: u64,
}

/// A session's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// There is none, or its connection is lost.
    Disconnected,
    /// It is connected.
    Connected,
}

impl ConnectionState {
    /// The word, as metrics and JSON have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Connected => "connected",
        }
    }
}

/// What followers know of the session.
#[derive(Debug, Clone)]
pub(super) enum SessionLink {
    /// Nothing can be asked, and why.
    Down(String),
    /// It is connected.
    Up(Arc<ConnectedSession>),
}

/// A connection of a session. The next connection of the same session is another one: watches must be set again.
#[derive(Debug)]
pub(super) struct ConnectedSession {
    pub(super) client: Client,
    /// Which session, counted from 1.
    pub(super) session: u64,
    /// Whether persistent watches are not to be used.
    pub(super) old_server: bool,
    /// Told when a follower finds that nothing is answered although the session is connected.
    pub(super) give_up: Notify,
}

impl EnsembleContext {
    pub(super) fn new(ensemble: Ensemble, options: SessionOptions) -> Self {
        Self {
            ensemble,
            options,
            counters: EnsembleCounters::default(),
            permits: Semaphore::new(IN_FLIGHT),
            scans: Semaphore::new(SCANS),
            names: StringInterner::default(),
            old_server: AtomicBool::new(false),
        }
    }

    pub(super) fn stats(&self, link: &SessionLink) -> EnsembleStats {
        let EnsembleCounters {
            sessions,
            expirations,
            disconnects,
            reads,
            lists,
            events,
            repairs,
        } = &self.counters;
        let [
            sessions,
            expirations,
            disconnects,
            reads,
            lists,
            events,
            repairs,
        ] = [
            sessions,
            expirations,
            disconnects,
            reads,
            lists,
            events,
            repairs,
        ]
        .map(|counter| counter.load(Ordering::Relaxed));
        let (state, session_timeout) = match link {
            SessionLink::Down(_) => (ConnectionState::Disconnected, None),
            SessionLink::Up(up) => (
                ConnectionState::Connected,
                Some(up.client.session_timeout()),
            ),
        };
        EnsembleStats {
            ensemble: self.ensemble.to_string(),
            state,
            session_timeout,
            sessions,
            expirations,
            disconnects,
            reads,
            lists,
            events,
            repairs,
        }
    }
}

/// Keeps a session to the ensemble, for ever.
pub(super) async fn keep(shared: Arc<EnsembleContext>, link: watch::Sender<SessionLink>) {
    let options = &shared.options;
    let new_backoff = || Backoff::new(options.backoff_min, options.backoff_max);
    let mut backoff = new_backoff();
    loop {
        let start = Instant::now();
        let why = live(&shared, &link).await;
        warn!("{why}");
        link.send_replace(SessionLink::Down(why));
        if start.elapsed() > options.session_timeout {
            backoff = new_backoff();
        }
        sleep(backoff.next_delay()).await;
    }
}

/// One session, until it has ended; returns why.
async fn live(shared: &EnsembleContext, link: &watch::Sender<SessionLink>) -> String {
    let EnsembleContext {
        ensemble,
        options,
        counters,
        ..
    } = shared;
    let mut connector = Client::connector()
        .with_session_timeout(options.session_timeout)
        // A server that does not answer is left for another one in time for the session to survive.
        .with_connection_timeout(options.session_timeout / 5)
        .with_fail_eagerly();
    if let Some(digest) = ensemble.digest() {
        connector = connector.with_auth("digest", digest.as_bytes());
    }
    let address = ensemble.to_string();
    let connecting = Box::pin(connector.connect(&address));
    let client = match timeout(options.session_timeout, connecting).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return format!("cannot reach ZooKeeper at {ensemble}: {error}"),
        Err(_) => return format!("ZooKeeper at {ensemble} does not answer"),
    };
    let session = counters.sessions.fetch_add(1, Ordering::Relaxed) + 1;
    info!(
        "session {} at ZooKeeper {ensemble}, timeout {:?}",
        client.session_id(),
        client.session_timeout()
    );
    let mut states = client.state_watcher();
    let mut state = states.peek_state();
    loop {
        match state {
            SessionState::SyncConnected | SessionState::ConnectedReadOnly => {
                let up = Arc::new(ConnectedSession {
                    client: client.clone(),
                    session,
                    old_server: shared.old_server.load(Ordering::Relaxed),
                    give_up: Notify::new(),
                });
                link.send_replace(SessionLink::Up(Arc::clone(&up)));
                state = tokio::select! {
                    state = states.changed() => state,
                    () = up.give_up.notified() => {
                        count(&counters.expirations);
                        return format!("ZooKeeper at {ensemble} does not answer in this session");
                    }
                };
            }
            SessionState::Disconnected => {
                count(&counters.disconnects);
                let why = format!("the connection to ZooKeeper at {ensemble} is lost");
                warn!("{why}");
                link.send_replace(SessionLink::Down(why.clone()));
                match timeout(options.session_timeout / 2, states.changed()).await {
                    Ok(changed) => state = changed,
                    Err(_) => {
                        count(&counters.expirations);
                        return why;
                    }
                }
            }
            SessionState::AuthFailed => {
                return format!("ZooKeeper at {ensemble} refuses this client's digest");
            }
            SessionState::Expired => {
                count(&counters.expirations);
                return format!("the session at ZooKeeper {ensemble} has expired");
            }
            _ => return format!("the session at ZooKeeper {ensemble} was closed"),
        }
    }
}

/// Runs what `start` makes until it ends; a defect in it or in the client library is logged, and it is made again.
pub(super) async fn supervise<F>(what: String, mut start: impl FnMut() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // A set, because it takes its tasks with it when it is dropped.
        let mut task = JoinSet::new();
        task.spawn(start());
        match task.join_next().await {
            Some(Err(defect)) if defect.is_panic() => error!("{what}: defect: {defect}"),
            _ => return,
        }
        sleep(AFTER_DEFECT).await;
    }
}
