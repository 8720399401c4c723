//! One session per ensemble, for ever: connecting, informing followers, and starting over.
//!
//! The client library reconnects by itself for a while, ever more slowly, and then declares the session expired by its
//! own clock. A session that is not connected again within half its timeout is replaced by a new one here. That is also
//! the only way into a rebuilt ensemble, which rejects clients that have seen newer transactions than its own. A new
//! session reads everything again; a resumed one only what may have changed.

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

/// Concurrent requests of one session.
pub(super) const MAX_REQUESTS: usize = 256;

/// Concurrent scans of one session: enough to keep requests under way. A thousand at once would each queue its own
/// requests, which takes more memory than the data they read.
const MAX_SCANS: usize = 8;

/// The pause before a task that panicked is started again.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// What the followers of one ensemble share.
#[derive(Debug)]
pub(super) struct EnsembleContext {
    pub(super) ensemble: Ensemble,
    pub(super) options: SessionOptions,
    pub(super) counters: EnsembleCounters,
    pub(super) request_permits: Semaphore,
    pub(super) scan_permits: Semaphore,
    pub(super) interner: StringInterner,
    /// Whether a server was older than 3.6. One-shot watches work with every server, so this is never reset.
    pub(super) uses_oneshot_watches: AtomicBool,
}

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

pub(super) fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counters and state of an ensemble since it was first followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnsembleStats {
    /// The connection string, without credentials.
    pub ensemble: String,
    /// The state of the session.
    pub state: ConnectionState,
    /// The timeout that the server granted to the connected session.
    pub session_timeout: Option<Duration>,
    /// Established sessions.
    pub sessions: u64,
    /// Expired or abandoned sessions.
    pub expirations: u64,
    /// Lost connections.
    pub disconnects: u64,
    /// Requests for data of znodes.
    pub reads: u64,
    /// Requests for children of znodes.
    pub lists: u64,
    /// Received watch events.
    pub events: u64,
    /// Audits that found a change that no event had reported.
    pub repairs: u64,
}

/// The state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// Not established, or its connection is lost.
    Disconnected,
    /// Connected.
    Connected,
}

impl ConnectionState {
    /// The value in metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Connected => "connected",
        }
    }
}

/// The session as its followers see it.
#[derive(Debug, Clone)]
pub(super) enum SessionLink {
    /// Not connected, and the cause.
    Down(String),
    /// Connected.
    Up(Arc<SessionConnection>),
}

/// A connection of a session. After a reconnection watches must be set again.
#[derive(Debug)]
pub(super) struct SessionConnection {
    pub(super) client: Client,
    /// The number of the session, from 1.
    pub(super) session_number: u64,
    /// Whether to use one-shot watches.
    pub(super) uses_oneshot_watches: bool,
    /// Notified by a follower when the session is connected but does not respond.
    pub(super) abandon: Notify,
}

impl EnsembleContext {
    pub(super) fn new(ensemble: Ensemble, options: SessionOptions) -> Self {
        Self {
            ensemble,
            options,
            counters: EnsembleCounters::default(),
            request_permits: Semaphore::new(MAX_REQUESTS),
            scan_permits: Semaphore::new(MAX_SCANS),
            interner: StringInterner::default(),
            uses_oneshot_watches: AtomicBool::new(false),
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
            SessionLink::Up(connection) => (
                ConnectionState::Connected,
                Some(connection.client.session_timeout()),
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

/// Maintains a session with the ensemble, for ever.
pub(super) async fn maintain_session(
    context: Arc<EnsembleContext>,
    link: watch::Sender<SessionLink>,
) {
    let options = &context.options;
    let new_backoff = || Backoff::new(options.backoff_min, options.backoff_max);
    let mut backoff = new_backoff();
    loop {
        let start = Instant::now();
        let why = run_session(&context, &link).await;
        warn!(because = why, "ZooKeeper session ended");
        link.send_replace(SessionLink::Down(why));
        if start.elapsed() > options.session_timeout {
            backoff = new_backoff();
        }
        sleep(backoff.next_delay()).await;
    }
}

/// Runs one session to its end, and returns the cause.
async fn run_session(context: &EnsembleContext, link: &watch::Sender<SessionLink>) -> String {
    let EnsembleContext {
        ensemble,
        options,
        counters,
        ..
    } = context;
    let mut connector = Client::connector()
        .with_session_timeout(options.session_timeout)
        // Leaves a server that does not respond for another one before the session expires.
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
        Err(_) => return format!("cannot reach ZooKeeper at {ensemble}: no response"),
    };
    let session_number = counters.sessions.fetch_add(1, Ordering::Relaxed) + 1;
    info!(
        %ensemble,
        session_id = %client.session_id(),
        timeout_ms = client.session_timeout().as_millis() as u64,
        "ZooKeeper session established"
    );
    let mut states = client.state_watcher();
    let mut state = states.peek_state();
    loop {
        match state {
            SessionState::SyncConnected | SessionState::ConnectedReadOnly => {
                let connection = Arc::new(SessionConnection {
                    client: client.clone(),
                    session_number,
                    uses_oneshot_watches: context.uses_oneshot_watches.load(Ordering::Relaxed),
                    abandon: Notify::new(),
                });
                link.send_replace(SessionLink::Up(Arc::clone(&connection)));
                state = tokio::select! {
                    state = states.changed() => state,
                    () = connection.abandon.notified() => {
                        increment(&counters.expirations);
                        return format!("ZooKeeper at {ensemble} stopped responding");
                    }
                };
            }
            SessionState::Disconnected => {
                increment(&counters.disconnects);
                let why = format!("lost the connection to ZooKeeper at {ensemble}");
                warn!(%ensemble, "ZooKeeper connection lost");
                link.send_replace(SessionLink::Down(why.clone()));
                match timeout(options.session_timeout / 2, states.changed()).await {
                    Ok(changed) => state = changed,
                    Err(_) => {
                        increment(&counters.expirations);
                        return why;
                    }
                }
            }
            SessionState::AuthFailed => {
                return format!("ZooKeeper at {ensemble} rejected the digest of this client");
            }
            SessionState::Expired => {
                increment(&counters.expirations);
                return format!("the session with ZooKeeper at {ensemble} expired");
            }
            _ => return format!("the session with ZooKeeper at {ensemble} was closed"),
        }
    }
}

/// Runs the task that `start` returns until it ends; after a panic, in it or in the client library, starts it again.
pub(super) async fn supervise<F>(task: String, mut start: impl FnMut() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // A set aborts its tasks when it is dropped.
        let mut running = JoinSet::new();
        running.spawn(start());
        match running.join_next().await {
            Some(Err(panic)) if panic.is_panic() => {
                error!(task, because = %panic, "task panicked; restarting");
            }
            _ => return,
        }
        sleep(RESTART_DELAY).await;
    }
}
