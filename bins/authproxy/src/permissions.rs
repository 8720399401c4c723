//! The permissions backends: the service or file that maps a key to its grant.
//!
//! Owns the trait and the status types. `scope` checks a grant against a request; `cache` caches responses.

pub(crate) mod file;
pub(crate) mod liveconf;
mod load_tracker;
pub(crate) mod protocol;
pub(crate) mod server;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::circuit_breaker::BreakerState;
use crate::grant::{BackendResponse, KeyHash};
use crate::request_error::PermissionsFailure;
use liveconf::LiveconfBackend;
use server::PermissionsServers;

pub trait PermissionsBackend: Send + Sync + 'static {
    /// The grant of a key. Ends within the deadline of the backend.
    ///
    /// # Errors
    /// The backend is unavailable or its response is invalid. A denied or unknown key is not an error.
    fn look_up(
        &self,
        key: KeyHash,
    ) -> impl Future<Output = Result<BackendResponse, BackendUnavailable>> + Send;
}

/// A backend behind the network, whose responses are cached.
#[derive(Debug)]
pub(crate) enum RemoteBackend {
    /// `--acl-server`.
    Servers(PermissionsServers),
    /// `--use-liveconf-aclserver`.
    Liveconf(Arc<LiveconfBackend>),
}

impl RemoteBackend {
    pub(crate) fn status(&self) -> BackendStatus {
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

#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct BackendUnavailable {
    pub cause: PermissionsFailure,
    /// With the name of the server and without the key.
    pub detail: String,
}

impl BackendUnavailable {
    /// No server gave a valid response.
    pub fn failed(detail: impl Into<String>) -> Self {
        Self::new(PermissionsFailure::Failed, detail)
    }

    pub(crate) fn new(cause: PermissionsFailure, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { cause, detail }
    }
}

/// The state of a backend, for `/status` and `/metrics`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BackendStatus {
    /// The followed file: `--acl-file` or `--liveconf`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileStatus>,
    /// In the order in which they are queried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ServerStatus>,
}

#[derive(Debug, Clone, Serialize)]
pub struct FileStatus {
    pub path: String,
    /// The keys or servers in force.
    pub entries: usize,
    /// SHA-256 of the text in force, as hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// How long it has been in force.
    #[serde(rename = "age_seconds", serialize_with = "seconds")]
    pub age: Option<Duration>,
    /// Texts that were loaded.
    pub loaded: u64,
    /// Changes that were rejected, each counted once.
    pub rejected: u64,
    /// Why the current text of the file is not in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ServerStatus {
    /// Without secrets.
    pub url: String,
    pub breaker: BreakerState,
    #[serde(rename = "last_success_age_seconds", serialize_with = "seconds")]
    pub last_success: Option<Duration>,
    /// The last error since the last success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Requests with a valid response.
    pub answered: u64,
    /// Requests without one.
    pub failed: u64,
}

fn seconds<S: Serializer>(age: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    age.map(|age| age.as_secs()).serialize(to)
}
