//! One memcached server: its commands, their deadline, and its circuit breaker.
//!
//! Every lookup has a deadline of [`DEADLINE`]; a server that fails several times in a row is skipped until a probe
//! succeeds. All commands go through one task and one connection (`connection`), pipelined. Replies are parsed by `reply`;
//! the content of an entry is `entry`'s.

mod connection;
mod reply;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hostkit::metrics::Counter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::circuit_breaker::{Admission, BreakerPolicy, BreakerState, CircuitBreaker};
use connection::CONNECT_TIMEOUT;

pub use reply::{ExpectedReply, MAX_VALUE_BYTES, MemcachedReply, parse};

/// How long a lookup waits, connecting included; and how long a reply may take.
const DEADLINE: Duration = Duration::from_millis(10);

/// Commands that wait for the connection; more are not sent.
const QUEUE: usize = 1_024;

/// A client of one server.
#[derive(Debug)]
pub(super) struct MemcachedClient {
    link: Arc<MemcachedLink>,
    /// Where commands go, once there was one.
    queue: Mutex<Option<mpsc::Sender<MemcachedCommand>>>,
}

/// What a client and its connection share.
#[derive(Debug)]
struct MemcachedLink {
    /// `host:port`.
    name: String,
    deadline: Duration,
    state: Mutex<LinkState>,
    hits: Counter,
    misses: Counter,
    failures: Counter,
}

#[derive(Debug)]
struct LinkState {
    breaker: CircuitBreaker,
    /// Since when the connection is being made.
    connecting: Option<Instant>,
}

#[derive(Debug)]
enum MemcachedCommand {
    Get {
        name: String,
        reply: oneshot::Sender<Option<Vec<u8>>>,
    },
    /// A change without a waiter, as it is sent.
    Change(Vec<u8>),
    /// A deletion with a waiter.
    Delete {
        name: String,
        reply: oneshot::Sender<()>,
    },
}

/// The state of a server, for `/metrics` and `/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemcachedStatus {
    /// `host:port`.
    pub name: String,
    /// Whether its circuit breaker is closed.
    pub up: bool,
    /// Lookups that found an entry.
    pub hits: u64,
    /// Lookups that found none.
    pub misses: u64,
    /// Failures to connect, and invalid or late replies.
    pub failures: u64,
}

impl MemcachedClient {
    pub(super) fn new(name: String) -> Self {
        Self::with_deadline(name, DEADLINE)
    }

    fn with_deadline(name: String, deadline: Duration) -> Self {
        let state = LinkState {
            breaker: CircuitBreaker::new(BreakerPolicy {
                max_failures: 3,
                open_time: [Duration::from_secs(1), Duration::from_secs(30)],
                probe_timeout: CONNECT_TIMEOUT + deadline,
            }),
            connecting: None,
        };
        let link = MemcachedLink {
            name,
            deadline,
            state: Mutex::new(state),
            hits: Counter::default(),
            misses: Counter::default(),
            failures: Counter::default(),
        };
        Self {
            link: Arc::new(link),
            queue: Mutex::new(None),
        }
    }

    /// The value of a name, if the server has one and replies in time.
    pub(super) async fn get(&self, name: String) -> Option<Vec<u8>> {
        let (reply, value) = oneshot::channel();
        let deadline = self.send(MemcachedCommand::Get { name, reply })?;
        timeout_at(deadline, value).await.ok()?.ok()?
    }

    /// Stores a value in the background, for at least a second. One that is too long is not stored.
    pub(super) fn set(&self, name: &str, value: &[u8], time: Duration) {
        // memcached takes more than 30 days for a date.
        let seconds = time.as_secs().clamp(1, 30 * 24 * 3600);
        if value.len() <= MAX_VALUE_BYTES {
            let line = format!("set {name} 0 {seconds} {}\r\n", value.len());
            let command = [line.as_bytes(), value, b"\r\n"].concat();
            let _ = self.send(MemcachedCommand::Change(command));
        }
    }

    /// Deletes a name, as far as the server can be reached.
    pub(super) async fn delete(&self, name: String) {
        let (reply, done) = oneshot::channel();
        if let Some(deadline) = self.send(MemcachedCommand::Delete { name, reply }) {
            let _ = timeout_at(deadline, done).await;
        }
    }

    /// Passes a command to the connection. Returns the deadline of its reply; none if the server is skipped now.
    fn send(&self, command: MemcachedCommand) -> Option<Instant> {
        let deadline = self.link.admit(Instant::now())?;
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // The first command; or the runtime that held the connection has ended.
        if queue.as_ref().is_none_or(mpsc::Sender::is_closed) {
            let (sender, commands) = mpsc::channel(QUEUE);
            tokio::spawn(connection::run(Arc::clone(&self.link), commands));
            *queue = Some(sender);
        }
        queue.as_ref()?.try_send(command).ok()?;
        Some(deadline)
    }

    pub(super) fn status(&self) -> MemcachedStatus {
        let link = &self.link;
        MemcachedStatus {
            name: link.name.clone(),
            up: link.state().breaker.state() == BreakerState::Closed,
            hits: link.hits.get(),
            misses: link.misses.get(),
            failures: link.failures.get(),
        }
    }
}

impl MemcachedLink {
    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The deadline of a command that is sent now; none if it must not be sent. All commands that wait for one slow
    /// connection share its deadline, so that it delays each request once.
    fn admit(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state();
        let deadline = state.connecting.unwrap_or(now) + self.deadline;
        let is_admitted = deadline > now && state.breaker.admit(now) != Admission::Rejected;
        is_admitted.then_some(deadline)
    }

    fn record_success(&self) {
        if self.state().breaker.record_success() {
            tracing::info!(server = self.name, "memcached works again");
        }
    }

    fn record_failure(&self, error: &str) {
        self.failures.add(1);
        if self.state().breaker.record_failure(Instant::now()) {
            tracing::warn!(
                server = self.name,
                error,
                "memcached is skipped for a while, and permissions backends are queried instead"
            );
        }
    }
}
