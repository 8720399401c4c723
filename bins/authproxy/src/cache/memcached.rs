//! One memcached server.
//!
//! Owns the commands to it and how long anybody waits for it. A server that is dead, a black hole, slow or lying costs
//! those who wait at that moment [`DEADLINE`], and when it has failed a few times in a row nobody anything until it is
//! tried again (`breaker`). Its answers are read by `reply`; what stands in an entry is `entry`'s.
//!
//! All commands go through one task and one connection (`connection`), one behind the other without waiting for
//! answers.

mod breaker;
mod connection;
mod reply;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use breaker::Breaker;
use hostkit::metrics::Counter;

pub use reply::{Asked, LONGEST_VALUE, Reply, parse};

/// How long a reading waits, with connecting; and how long an answer may take.
const DEADLINE: Duration = Duration::from_millis(10);

/// Commands that wait for the connection; more are not sent.
const QUEUE: usize = 1_024;

/// A server.
#[derive(Debug)]
pub(super) struct Server {
    link: Arc<Link>,
    /// Where commands go, once there was one.
    queue: Mutex<Option<mpsc::Sender<Command>>>,
}

/// What a server and its connection share.
#[derive(Debug)]
struct Link {
    /// `host:port`.
    name: String,
    deadline: Duration,
    breaker: Mutex<Breaker>,
    hits: Counter,
    misses: Counter,
    failures: Counter,
}

/// What is asked of a server.
#[derive(Debug)]
enum Command {
    /// The value of a name.
    Get {
        name: String,
        reply: oneshot::Sender<Option<Vec<u8>>>,
    },
    /// A change that nobody waits for, as it is sent.
    Change(Vec<u8>),
    /// A deletion that somebody waits for.
    Delete {
        name: String,
        reply: oneshot::Sender<()>,
    },
}

/// How a server does, for `/metrics` and `/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSnapshot {
    /// `host:port`.
    pub name: String,
    /// Whether it is asked: it is not while it fails.
    pub up: bool,
    /// Entries that were there.
    pub hits: u64,
    /// Entries that were not.
    pub misses: u64,
    /// Times that it could not be reached, or did not answer as it should.
    pub failures: u64,
}

impl Server {
    pub(super) fn new(name: String) -> Self {
        Self::timed(name, DEADLINE)
    }

    fn timed(name: String, deadline: Duration) -> Self {
        let link = Link {
            name,
            deadline,
            breaker: Mutex::new(Breaker::new(deadline)),
            hits: Counter::default(),
            misses: Counter::default(),
            failures: Counter::default(),
        };
        Self {
            link: Arc::new(link),
            queue: Mutex::new(None),
        }
    }

    /// The value of a name, if the server has one and says so in time.
    pub(super) async fn get(&self, name: String) -> Option<Vec<u8>> {
        let (reply, answer) = oneshot::channel();
        let deadline = self.send(Command::Get { name, reply })?;
        timeout_at(deadline, answer).await.ok()?.ok()?
    }

    /// Stores a value in the background, for at least a second. One that is too long is not stored.
    pub(super) fn set(&self, name: &str, value: &[u8], time: Duration) {
        // Beyond 30 days memcached takes it for a date.
        let seconds = time.as_secs().clamp(1, 30 * 24 * 3600);
        if value.len() <= LONGEST_VALUE {
            let line = format!("set {name} 0 {seconds} {}\r\n", value.len());
            let command = [line.as_bytes(), value, b"\r\n"].concat();
            let _ = self.send(Command::Change(command));
        }
    }

    /// Deletes a name, as far as the server can be reached.
    pub(super) async fn delete(&self, name: String) {
        let (reply, answer) = oneshot::channel();
        if let Some(deadline) = self.send(Command::Delete { name, reply }) {
            let _ = timeout_at(deadline, answer).await;
        }
    }

    /// Gives a command to the connection; until when its answer may be waited for. None: the server is not asked now.
    fn send(&self, command: Command) -> Option<Instant> {
        let deadline = self.link.breaker().admit(Instant::now())?;
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

    pub(super) fn snapshot(&self) -> ServerSnapshot {
        let link = &self.link;
        ServerSnapshot {
            name: link.name.clone(),
            up: link.breaker().is_closed(),
            hits: link.hits.get(),
            misses: link.misses.get(),
            failures: link.failures.get(),
        }
    }
}

impl Link {
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn succeeded(&self) {
        if self.breaker().succeeded() {
            tracing::info!("memcached {} answers again", self.name);
        }
    }

    fn failed(&self, error: &str) {
        self.failures.add(1);
        if self.breaker().failed(Instant::now()) {
            tracing::warn!(
                "memcached {} is not asked for a while: {error}; the permissions engine is asked instead",
                self.name
            );
        }
    }
}
