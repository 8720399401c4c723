//! The permissions engine: who says what a key may do.
//!
//! Owns the seam, and what each engine tells of itself. How a grant is judged is `scope`'s; how long an answer is
//! remembered is `cache`'s.

mod breaker;
pub mod file;
pub mod liveconf;
mod news;
pub(crate) mod protocol;
pub mod server;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::grant::{BackendResponse, KeyHash};
use crate::request_error::PermissionsFailure;
use liveconf::LiveconfBackend;
use server::Servers;

/// Who can be asked about keys.
pub trait PermissionsBackend: Send + Sync + 'static {
    /// What is known of a key. Ends within the engine's own deadline.
    ///
    /// # Errors
    /// Nobody could be asked, or no answer made sense. Never what a key is refused for.
    fn look_up(
        &self,
        key: KeyHash,
    ) -> impl Future<Output = Result<BackendResponse, BackendUnavailable>> + Send;
}

/// An engine that is asked over the network, so that its answers are worth remembering. A file is in memory as it is.
#[derive(Debug)]
pub enum RemoteBackend {
    /// `--acl-server`.
    Servers(Servers),
    /// `--use-liveconf-aclserver`.
    Liveconf(Arc<LiveconfBackend>),
}

impl RemoteBackend {
    /// What it tells of itself.
    #[must_use]
    pub fn status(&self) -> BackendStatus {
        match self {
            Self::Servers(servers) => BackendStatus {
                file: None,
                servers: servers.status(),
            },
            Self::Liveconf(liveconf) => liveconf.status(),
        }
    }
}

impl PermissionsBackend for RemoteBackend {
    async fn look_up(&self, key: KeyHash) -> Result<BackendResponse, BackendUnavailable> {
        match self {
            Self::Servers(servers) => servers.look_up(key).await,
            Self::Liveconf(liveconf) => liveconf.look_up(key).await,
        }
    }
}

/// The engine cannot say anything about a key.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{why}")]
pub struct BackendUnavailable {
    /// The cause.
    pub cause: PermissionsFailure,
    /// What went wrong, with the server's name and without any key.
    pub why: String,
}

impl BackendUnavailable {
    /// No server gave a valid answer.
    #[must_use]
    pub fn failed(why: impl Into<String>) -> Self {
        Self::new(PermissionsFailure::Failed, why)
    }

    pub(crate) fn new(cause: PermissionsFailure, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { cause, why }
    }
}

/// What an engine tells of itself, for `/status` and `/metrics`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BackendStatus {
    /// The file that is followed: of keys, or of servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileStatus>,
    /// The servers, in the order in which they are asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ServerStatus>,
}

/// A followed file.
#[derive(Debug, Clone, Serialize)]
pub struct FileStatus {
    /// Its path.
    pub path: String,
    /// The keys or servers in force.
    pub entries: usize,
    /// SHA-256 of the text in force, as hex; none before there was a valid one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// How long it has been in force.
    #[serde(rename = "age_seconds", serialize_with = "seconds")]
    pub age: Option<Duration>,
    /// New texts that were taken.
    pub loaded: u64,
    /// Changes that were refused, each once.
    pub refused: u64,
    /// Why the file as it is now is not in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A server.
#[derive(Debug, Clone, Serialize)]
pub struct ServerStatus {
    /// Its URL, without what is secret in it.
    pub url: String,
    /// Whether it is asked.
    pub breaker: BreakerState,
    /// How long ago it last answered.
    #[serde(rename = "last_success_age_seconds", serialize_with = "seconds")]
    pub last_success: Option<Duration>,
    /// What went wrong last, if anything has since the last success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Answers.
    pub answered: u64,
    /// Questions without one.
    pub failed: u64,
}

/// Whether a server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// It is.
    Closed,
    /// One question is on its way to find out.
    HalfOpen,
    /// It is not, for a while: it failed several times in a row.
    Open,
}

fn seconds<S: Serializer>(age: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    age.map(|age| age.as_secs()).serialize(to)
}
