//! One permissions engine: its address, its connections, its breaker, and what became of questions to it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hostkit::failure::format_chain;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::time::{Instant, timeout};
use url::Url;

use super::connect::{Connector, Place};
use super::login;
use crate::circuit_breaker::{Admission, BreakerPolicy, CircuitBreaker};
use crate::grant::BackendResponse;
use crate::permissions::ServerStatus;
use crate::permissions::protocol;

/// Connections that are kept.
const KEPT: usize = 8;
/// How long one is used again. Servers close idle connections, too, and most wait longer.
const IDLE: Duration = Duration::from_secs(30);
/// The longest head of an answer (bytes).
const HEAD: usize = 16 << 10;

/// A probe has the deadline of its query, which is far shorter than this.
const BREAKER: BreakerPolicy = BreakerPolicy {
    max_failures: 5,
    open_time: [Duration::from_millis(200), Duration::from_secs(5)],
    probe_timeout: Duration::from_secs(60),
};

type Connection = SendRequest<Full<Bytes>>;

/// A server.
#[derive(Debug)]
pub(super) struct Endpoint {
    url: Url,
    /// The URL as it is shown.
    shown: String,
    place: Place,
    target: Uri,
    host: HeaderValue,
    login: Option<HeaderValue>,
    kept: Mutex<Vec<(Connection, Instant)>>,
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    breaker: CircuitBreaker,
    last_success: Option<Instant>,
    last_error: Option<String>,
    answered: u64,
    failed: u64,
}

/// What became of a question.
#[derive(Debug)]
pub(super) enum Outcome {
    Answered(BackendResponse),
    /// It was sent, or should have been.
    Failed(String),
    /// The breaker is open.
    LeftAlone(String),
}

/// Why an exchange failed.
enum Trouble {
    /// A connection that had been kept is not good any more, which says nothing of the server.
    Stale,
    Real(String),
}

impl Endpoint {
    pub(super) fn new(url: &Url) -> Result<Self, String> {
        let shown = hostkit::mask::mask_url(url.as_str());
        let wrong = |why: &str| format!("{shown} cannot be a permissions engine: {why}");
        let (place, host, target) = match url.scheme() {
            "unix" => {
                if url.has_host() || !url.path().starts_with('/') {
                    return Err(wrong("write unix:/PATH"));
                }
                let path = OsString::from_vec(login::decoded(url.path()));
                (
                    Place::Unix(path.into()),
                    "localhost".to_owned(),
                    "/".to_owned(),
                )
            }
            "http" | "https" => {
                let authority = url.host_str().ok_or_else(|| wrong("it has no host"))?;
                let host = authority.trim_matches(['[', ']']).to_owned();
                let port = url.port_or_known_default().unwrap_or(80);
                let tls = match url.scheme() {
                    "https" => Some(
                        ServerName::try_from(host.clone())
                            .map_err(|_| wrong("no certificate can be for its host"))?,
                    ),
                    _ => None,
                };
                let named = match url.port() {
                    Some(port) => format!("{authority}:{port}"),
                    None => authority.to_owned(),
                };
                let target = match url.query() {
                    Some(query) => format!("{}?{query}", url.path()),
                    None => url.path().to_owned(),
                };
                (Place::Tcp { host, port, tls }, named, target)
            }
            _ => return Err(wrong("write http://, https:// or unix:/PATH")),
        };
        Ok(Self {
            login: login::header(url).map_err(wrong)?,
            target: target.parse().map_err(|_| wrong("its path is none"))?,
            host: host.parse().map_err(|_| wrong("its host is none"))?,
            url: url.clone(),
            place,
            kept: Mutex::default(),
            record: Mutex::new(Record {
                breaker: CircuitBreaker::new(BREAKER),
                last_success: None,
                last_error: None,
                answered: 0,
                failed: 0,
            }),
            shown,
        })
    }

    pub(super) fn is(&self, url: &Url) -> bool {
        self.url == *url
    }

    pub(super) const fn is_tls(&self) -> bool {
        matches!(self.place, Place::Tcp { tls: Some(_), .. })
    }

    pub(super) fn status(&self) -> ServerStatus {
        let record = self.record();
        ServerStatus {
            url: self.shown.clone(),
            breaker: record.breaker.state(),
            last_success: record.last_success.map(|at| at.elapsed()),
            last_error: record.last_error.clone(),
            answered: record.answered,
            failed: record.failed,
        }
    }

    /// Asks within `share`, unless the breaker is open.
    pub(super) async fn ask(
        &self,
        question: &Bytes,
        share: Duration,
        connector: &Connector,
    ) -> Outcome {
        let admission = self.record().breaker.admit(Instant::now());
        if admission == Admission::Rejected {
            let record = self.record();
            let why = record.last_error.as_deref().unwrap_or_default();
            return Outcome::LeftAlone(format!("{} is left alone for a while: {why}", self.shown));
        }
        let _probe = (admission == Admission::Probe).then_some(Probe(self));
        let answer = match timeout(share, self.exchange(question, connector)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} ms", share.as_millis())),
        };
        match answer {
            Ok(found) => {
                self.succeeded();
                Outcome::Answered(found)
            }
            Err(why) => Outcome::Failed(self.failed(&why)),
        }
    }

    fn succeeded(&self) {
        let mut record = self.record();
        if record.breaker.record_success() {
            tracing::info!("{} answers again", self.shown);
        }
        record.answered += 1;
        record.last_success = Some(Instant::now());
        record.last_error = None;
    }

    fn failed(&self, why: &str) -> String {
        let mut record = self.record();
        if record.breaker.record_failure(Instant::now()) {
            tracing::warn!("{} is left alone for a while: {why}", self.shown);
        }
        record.failed += 1;
        record.last_error = Some(why.to_owned());
        format!("{}: {why}", self.shown)
    }

    /// One question, one answer. Asking twice changes nothing at the server, so what a stale connection may have
    /// carried is sent once more.
    async fn exchange(
        &self,
        question: &Bytes,
        connector: &Connector,
    ) -> Result<BackendResponse, String> {
        if let Some(connection) = self.kept() {
            match self.send(connection, question, true).await {
                Err(Trouble::Stale) => {}
                Err(Trouble::Real(why)) => return Err(why),
                Ok(found) => return Ok(found),
            }
        }
        let stream = connector
            .connect(&self.place)
            .await
            .map_err(|error| format_chain(&error))?;
        let (connection, driver) = Builder::new()
            .max_buf_size(HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format_chain(&error))?;
        // It ends with its connection, and what it fails of is told to whoever has sent something.
        tokio::spawn(driver);
        match self.send(connection, question, false).await {
            Ok(found) => Ok(found),
            Err(Trouble::Real(why)) => Err(why),
            Err(Trouble::Stale) => Err("the connection was closed".to_owned()),
        }
    }

    async fn send(
        &self,
        mut connection: Connection,
        question: &Bytes,
        used: bool,
    ) -> Result<BackendResponse, Trouble> {
        let trouble = |error: hyper::Error| match used {
            true => Trouble::Stale,
            false => Trouble::Real(format_chain(&error)),
        };
        connection.ready().await.map_err(trouble)?;
        let sent = connection.send_request(self.request(question));
        let answer = sent.await.map_err(trouble)?;
        if answer.status() != StatusCode::OK {
            return Err(Trouble::Real(format!(
                "answered {}",
                answer.status().as_u16()
            )));
        }
        let body = Limited::new(answer.into_body(), protocol::MAX_RESPONSE_BYTES)
            .collect()
            .await;
        let body = body
            .map_err(|error| Trouble::Real(format_chain(&*error)))?
            .to_bytes();
        let found = protocol::decode_response(&body)
            .map_err(|why| Trouble::Real(format!("its answer makes no sense: {why}")))?;
        self.keep(connection);
        Ok(found)
    }

    fn request(&self, question: &Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(question.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        headers.insert(header::USER_AGENT, HeaderValue::from_static("authproxy"));
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json.clone());
        headers.insert(header::ACCEPT, json);
        if let Some(login) = &self.login {
            headers.insert(header::AUTHORIZATION, login.clone());
        }
        request
    }

    /// The connection used last, if one is still good.
    fn kept(&self) -> Option<Connection> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(connection, since)| !connection.is_closed() && since.elapsed() < IDLE);
        kept.pop().map(|(connection, _)| connection)
    }

    fn keep(&self, connection: Connection) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push((connection, Instant::now()));
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A probe under way. However it ends, another one can follow.
struct Probe<'a>(&'a Endpoint);

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.0.record().breaker.cancel_probe(Instant::now());
    }
}
