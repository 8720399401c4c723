//! One permissions server: its address, its pooled connections, its circuit breaker and its counters.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hostkit::http::client::{ClientConnection, ClientError, ClientRequest};
use hostkit::http::{HostPort, ServerAddress};
use hyper::header::{self, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, StatusCode};
use rustls::pki_types::ServerName;
use tokio::time::Instant;
use url::Url;

use super::basic_auth;
use super::connector::ServerConnector;
use crate::circuit_breaker::{Admission, BreakerPolicy, CircuitBreaker};
use crate::grant::BackendResponse;
use crate::permissions::ServerStatus;
use crate::permissions::protocol;

/// Idle connections that are kept.
const MAX_IDLE_CONNECTIONS: usize = 8;
/// How long an idle connection is used again. Servers close idle connections, too, and most keep them longer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A probe has the deadline of its query, which is far shorter than this.
const BREAKER: BreakerPolicy = BreakerPolicy {
    max_failures: 5,
    open_time: [Duration::from_millis(200), Duration::from_secs(5)],
    probe_timeout: Duration::from_secs(60),
};

#[derive(Debug)]
pub(super) struct PermissionsServer {
    url: Url,
    /// The URL without its secrets.
    masked_url: String,
    address: ServerAddress,
    /// The name in the certificate; `None` without TLS.
    tls_name: Option<ServerName<'static>>,
    target: PathAndQuery,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    /// With the time since when they are idle.
    idle_connections: Mutex<Vec<(ClientConnection, Instant)>>,
    state: Mutex<ServerState>,
}

#[derive(Debug)]
struct ServerState {
    breaker: CircuitBreaker,
    last_success: Option<Instant>,
    last_error: Option<String>,
    answered: u64,
    failed: u64,
}

/// The outcome of a query.
#[derive(Debug)]
pub(super) enum QueryOutcome {
    Answered(BackendResponse),
    /// It was sent, or could not be.
    Failed(String),
    /// It was not sent: the circuit breaker is open.
    BreakerOpen(String),
}

/// Why an exchange failed.
enum QueryError {
    /// The server had closed a pooled connection, which is not its failure.
    StaleConnection,
    Timeout,
    Failed(String),
}

impl From<ClientError> for QueryError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Timeout(_) => Self::Timeout,
            error => Self::Failed(error.to_string()),
        }
    }
}

impl PermissionsServer {
    pub(super) fn new(url: &Url) -> Result<Self, String> {
        let masked_url = hostkit::mask::mask_url(url.as_str());
        let invalid = |why: &str| {
            let shown = hostkit::mask::mask_refused(url.as_str());
            format!("invalid permissions server {shown}: {why}")
        };
        let (address, tls_name, host, target) = match url.scheme() {
            "unix" => {
                if url.has_host() || !url.path().starts_with('/') {
                    return Err(invalid("write unix:/PATH"));
                }
                let path = OsString::from_vec(basic_auth::percent_decode(url.path()));
                let address = ServerAddress::Unix(path.into());
                (address, None, "localhost".to_owned(), "/".to_owned())
            }
            "http" | "https" => {
                let authority = url.host_str().ok_or_else(|| invalid("missing host"))?;
                let name = authority.trim_matches(['[', ']']);
                let tls_name = match url.scheme() {
                    "https" => Some(
                        ServerName::try_from(name.to_owned())
                            .map_err(|_| invalid("its host cannot be in a certificate"))?,
                    ),
                    _ => None,
                };
                let host = match url.port() {
                    Some(port) => format!("{authority}:{port}"),
                    None => authority.to_owned(),
                };
                let target = match url.query() {
                    Some(query) => format!("{}?{query}", url.path()),
                    None => url.path().to_owned(),
                };
                let address = ServerAddress::Tcp(HostPort {
                    host: name.into(),
                    port: url.port_or_known_default().unwrap_or(80),
                });
                (address, tls_name, host, target)
            }
            _ => return Err(invalid("write http://, https:// or unix:/PATH")),
        };
        Ok(Self {
            authorization: basic_auth::header(url).map_err(invalid)?,
            target: target.parse().map_err(|_| invalid("invalid path"))?,
            host: host.parse().map_err(|_| invalid("invalid host"))?,
            url: url.clone(),
            address,
            tls_name,
            idle_connections: Mutex::default(),
            state: Mutex::new(ServerState {
                breaker: CircuitBreaker::new(BREAKER),
                last_success: None,
                last_error: None,
                answered: 0,
                failed: 0,
            }),
            masked_url,
        })
    }

    pub(super) fn has_url(&self, url: &Url) -> bool {
        self.url == *url
    }

    pub(super) const fn is_tls(&self) -> bool {
        self.tls_name.is_some()
    }

    pub(super) fn status(&self) -> ServerStatus {
        let state = self.state();
        ServerStatus {
            url: self.masked_url.clone(),
            breaker: state.breaker.state(),
            last_success: state.last_success.map(|at| at.elapsed()),
            last_error: state.last_error.clone(),
            answered: state.answered,
            failed: state.failed,
        }
    }

    /// Sends a query unless the circuit breaker is open. The whole exchange ends within `timeout`.
    pub(super) async fn query(
        &self,
        query: &Bytes,
        timeout: Duration,
        connector: &ServerConnector,
    ) -> QueryOutcome {
        let admission = self.state().breaker.admit(Instant::now());
        if admission == Admission::Rejected {
            let state = self.state();
            let last_error = state.last_error.as_deref().unwrap_or_default();
            return QueryOutcome::BreakerOpen(format!(
                "{}: circuit breaker open: {last_error}",
                self.masked_url
            ));
        }
        let _probe = (admission == Admission::Probe).then_some(ProbeGuard(self));
        let deadline = Instant::now() + timeout;
        let error = match self.exchange(query, deadline, connector).await {
            Ok(response) => {
                self.record_success();
                return QueryOutcome::Answered(response);
            }
            Err(QueryError::Timeout) => {
                format!("no response within {} ms", timeout.as_millis())
            }
            Err(QueryError::StaleConnection) => "connection closed".to_owned(),
            Err(QueryError::Failed(error)) => error,
        };
        QueryOutcome::Failed(self.record_failure(&error))
    }

    fn record_success(&self) {
        let mut state = self.state();
        if state.breaker.record_success() {
            tracing::info!(server = self.masked_url, "circuit breaker closed");
        }
        state.answered += 1;
        state.last_success = Some(Instant::now());
        state.last_error = None;
    }

    fn record_failure(&self, error: &str) -> String {
        let mut state = self.state();
        if state.breaker.record_failure(Instant::now()) {
            tracing::warn!(server = self.masked_url, error, "circuit breaker opened");
        }
        state.failed += 1;
        state.last_error = Some(error.to_owned());
        format!("{}: {error}", self.masked_url)
    }

    /// One query and its response. A query has no side effect, so after a stale connection it is sent once more.
    async fn exchange(
        &self,
        query: &Bytes,
        deadline: Instant,
        connector: &ServerConnector,
    ) -> Result<BackendResponse, QueryError> {
        if let Some(connection) = self.take_idle() {
            match self.send(connection, query, deadline, true).await {
                Err(QueryError::StaleConnection) => {}
                outcome => return outcome,
            }
        }
        let tls_name = self.tls_name.as_ref();
        let connection = connector.connect(&self.address, tls_name, deadline).await?;
        self.send(connection, query, deadline, false).await
    }

    async fn send(
        &self,
        mut connection: ClientConnection,
        query: &Bytes,
        deadline: Instant,
        is_reused: bool,
    ) -> Result<BackendResponse, QueryError> {
        let mut response = match connection.send(self.request(query), deadline).await {
            Ok(response) => response,
            Err(ClientError::Closed(_) | ClientError::InvalidResponse(_)) if is_reused => {
                return Err(QueryError::StaleConnection);
            }
            Err(error) => return Err(error.into()),
        };
        if response.status != StatusCode::OK {
            let status = response.status.as_u16();
            return Err(QueryError::Failed(format!("status {status}")));
        }
        let body = response.read_body(protocol::MAX_RESPONSE_BYTES).await?;
        let response = protocol::decode_response(&body)
            .map_err(|error| QueryError::Failed(format!("invalid response: {error}")))?;
        self.put_idle(connection);
        Ok(response)
    }

    fn request(&self, query: &Bytes) -> ClientRequest {
        let json = HeaderValue::from_static("application/json");
        let user_agent = HeaderValue::from_static("authproxy");
        let request = ClientRequest::new(Method::POST, self.target.clone(), self.host.clone())
            .with_header(header::USER_AGENT, user_agent)
            .with_header(header::CONTENT_TYPE, json.clone())
            .with_header(header::ACCEPT, json)
            .with_body(query.clone());
        match &self.authorization {
            Some(value) => request.with_header(header::AUTHORIZATION, value.clone()),
            None => request,
        }
    }

    /// The connection that was used last, unless it is closed or too old.
    fn take_idle(&self) -> Option<ClientConnection> {
        let mut idle = self.idle_connections();
        idle.retain(|(connection, since)| {
            !connection.is_closed() && since.elapsed() < IDLE_TIMEOUT
        });
        idle.pop().map(|(connection, _)| connection)
    }

    fn put_idle(&self, connection: ClientConnection) {
        let mut idle = self.idle_connections();
        if idle.len() < MAX_IDLE_CONNECTIONS {
            idle.push((connection, Instant::now()));
        }
    }

    fn idle_connections(&self) -> MutexGuard<'_, Vec<(ClientConnection, Instant)>> {
        let lock = self.idle_connections.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A half-open circuit breaker's query. However it ends, another one can follow.
struct ProbeGuard<'a>(&'a PermissionsServer);

impl Drop for ProbeGuard<'_> {
    fn drop(&mut self) {
        self.0.state().breaker.cancel_probe(Instant::now());
    }
}
