//! `--acl-server`: permissions servers that are queried over HTTP, the next one when one fails.
//!
//! Owns the order, the deadline of a query over all attempts, and the number of queries under way. One server is
//! `permissions_server`'s, the bytes of requests and responses are `protocol`'s.

mod basic_auth;
mod connector;
mod permissions_server;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hostkit::backoff;
use hostkit::{Exit, Failure};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use url::Url;

use super::{BackendUnavailable, PermissionsBackend, ServerStatus, protocol};
use crate::grant::{BackendResponse, KeyHash};
use crate::request_error::PermissionsFailure;
use connector::ServerConnector;
use permissions_server::{PermissionsServer, QueryOutcome};

/// The deadline of one query: all servers, all attempts.
pub const DEADLINE: Duration = Duration::from_millis(500);
/// Queries under way at once; one more fails at once.
const MAX_QUERIES: usize = 64;
/// How often every server is tried for one query.
const ROUNDS: usize = 2;
/// The longest delay between two rounds. Short: a client with an unknown key waits for it.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Permissions servers that have the same keys.
#[derive(Debug)]
pub struct PermissionsServers {
    servers: Vec<Arc<PermissionsServer>>,
    connector: ServerConnector,
    queries: Semaphore,
    deadline: Duration,
}

/// Validates the URL of a permissions server: `http`, `https`, or `unix:/PATH`.
///
/// # Errors
/// It is not valid; the message has it without its secrets.
pub(crate) fn check(url: &Url) -> Result<(), String> {
    PermissionsServer::new(url).map(|_| ())
}

impl PermissionsServers {
    /// Servers in the order in which they are queried. TLS settings, which take a megabyte, are made only for `https`.
    ///
    /// # Errors
    /// A URL is invalid or missing, or the host has no certificate authorities (exit 78).
    pub fn new(urls: &[Url], deadline: Duration) -> Result<Self, Failure> {
        Self::with_previous(None, urls, deadline)
    }

    /// The same, with the connections and the state of servers that `previous` has, too.
    pub(super) fn with_previous(
        previous: Option<&Self>,
        urls: &[Url],
        deadline: Duration,
    ) -> Result<Self, Failure> {
        let find = |url: &Url| {
            let mut servers = previous?.servers.iter();
            servers.find(|server| server.has_url(url)).cloned()
        };
        let servers: Result<Vec<_>, String> = urls
            .iter()
            .map(|url| match find(url) {
                Some(server) => Ok(server),
                None => PermissionsServer::new(url).map(Arc::new),
            })
            .collect();
        let servers = servers.map_err(|error| Failure::new(Exit::CONFIG, error))?;
        if servers.is_empty() {
            return Err(Failure::new(Exit::CONFIG, "missing permissions server")
                .remedy("give one with --acl-server"));
        }
        let with_tls = servers.iter().any(|server| server.is_tls());
        Ok(Self {
            servers,
            connector: ServerConnector::new(with_tls)?,
            queries: Semaphore::new(MAX_QUERIES),
            deadline,
        })
    }

    /// The state and the counters of each server.
    #[must_use]
    pub fn status(&self) -> Vec<ServerStatus> {
        self.servers.iter().map(|server| server.status()).collect()
    }

    async fn query(&self, query: &Bytes) -> Result<BackendResponse, String> {
        let end = Instant::now() + self.deadline;
        let mut errors: Vec<String> = Vec::new();
        for round in 0..ROUNDS {
            if round > 0 {
                sleep(backoff::random_delay(RETRY_DELAY)).await;
                // A server that gets too little time fails through no fault of its own.
                if end.saturating_duration_since(Instant::now()) < self.deadline / 2 {
                    break;
                }
            }
            let mut is_sent = false;
            errors.clear();
            for (at, server) in self.servers.iter().enumerate() {
                // Every server has its share of the time that is left: the first one must not use up all of it.
                let left = end.saturating_duration_since(Instant::now());
                let share = left / u32::try_from(self.servers.len() - at).unwrap_or(u32::MAX);
                match server.query(query, share, &self.connector).await {
                    QueryOutcome::Answered(response) => return Ok(response),
                    QueryOutcome::Failed(error) => {
                        is_sent = true;
                        errors.push(error);
                    }
                    QueryOutcome::BreakerOpen(error) => errors.push(error),
                }
            }
            if !is_sent {
                break;
            }
        }
        Err(errors.join("; "))
    }
}

impl PermissionsBackend for PermissionsServers {
    async fn look_up(&self, key: KeyHash) -> Result<BackendResponse, BackendUnavailable> {
        let Ok(_permit) = self.queries.try_acquire() else {
            let why = format!("{MAX_QUERIES} queries are under way");
            return Err(BackendUnavailable::new(PermissionsFailure::Overloaded, why));
        };
        let query = Bytes::from(protocol::encode_request(&key));
        self.query(&query).await.map_err(BackendUnavailable::failed)
    }
}
