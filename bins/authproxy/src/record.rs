//! One request, from its head to the last byte of its answer: what metrics and the access log say of it.
//!
//! Owns what is remembered of a request. How it is counted is `metrics`'s, how it is written `access`'s.

mod failures;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, Uri};

use crate::access_log::AccessLog;
use crate::authorizer::{AllowDecision, AllowReason, DenyDecision};
use crate::grant::{Grant, KeyHash};
use crate::headers::{PeerAddress, client_address};
use crate::metrics::ProxyMetrics;
use crate::request_error::{RequestError, TruncationReason};
use crate::settings::SiteSettings;
pub use failures::FailureLog;

/// Where records go.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// What is counted.
    pub metrics: ProxyMetrics,
    /// What is written, if anything is.
    pub access: Option<AccessLog>,
    /// What of it is worth a warning.
    pub failures: FailureLog,
}

/// What is known of a request. It is counted and logged when it is dropped: once the last byte of the answer has been
/// handed over, or the exchange was given up.
#[derive(Debug)]
pub struct Record {
    telemetry: Arc<Telemetry>,
    /// Only while there is an access log.
    pub(crate) asked: Option<Box<Asked>>,
    started: Instant,
    pub(crate) grant: Option<Arc<Grant>>,
    /// The hash of a key that nobody has; the first 8 digits of it are logged.
    pub(crate) key: Option<KeyHash>,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) mark: Option<AllowReason>,
    pub(crate) refusal: Option<RequestError>,
    /// The rights that the request needs, if its key lacks one of them.
    pub(crate) needed: Box<[String]>,
    /// What is known of a refusal or a truncation beyond its cause.
    pub(crate) detail: Option<Cow<'static, str>>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) server: Option<Duration>,
    /// Bytes of the request's body so far.
    pub received: u64,
    /// Bytes of the answer's body so far.
    pub sent: u64,
    /// Why the answer ended before its end.
    pub cut: Option<TruncationReason>,
}

/// What the access log says of a request as it came. Nothing else needs it: without a log it is not copied, and does not
/// keep what hyper has read the request into.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) site: Arc<SiteSettings>,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// The address that it came from.
    pub(crate) client: IpAddr,
    /// The id of the request.
    pub(crate) id: HeaderValue,
}

impl Asked {
    pub(crate) fn new(
        site: &Arc<SiteSettings>,
        parts: &Parts,
        client: &PeerAddress,
        id: HeaderValue,
    ) -> Self {
        Self {
            site: Arc::clone(site),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            client: client_address(&parts.headers, client, site),
            id,
        }
    }
}

impl Record {
    /// Begins with a request as it came from the client.
    #[must_use]
    pub fn begin(
        telemetry: &Arc<Telemetry>,
        site: &Arc<SiteSettings>,
        parts: &Parts,
        client: &PeerAddress,
        id: HeaderValue,
    ) -> Self {
        telemetry.metrics.requests_in_flight.add(1);
        let is_logged = telemetry.access.is_some();
        Self {
            telemetry: Arc::clone(telemetry),
            asked: is_logged.then(|| Box::new(Asked::new(site, parts, client, id))),
            started: Instant::now(),
            grant: None,
            key: None,
            route: None,
            mark: None,
            refusal: None,
            needed: Box::default(),
            detail: None,
            status: None,
            server: None,
            received: 0,
            sent: 0,
            cut: None,
        }
    }

    /// The door lets it pass.
    pub fn pass(&mut self, pass: &AllowDecision) {
        self.grant.clone_from(&pass.grant);
        self.route.clone_from(&pass.route);
        self.mark = Some(pass.reason);
    }

    /// The door does not.
    pub fn refuse(&mut self, refused: &DenyDecision) {
        self.grant.clone_from(&refused.grant);
        self.key = refused.key;
        self.route.clone_from(&refused.route);
        self.needed.clone_from(&refused.required_rights);
        self.detail.clone_from(&refused.detail);
        self.end(refused.error);
    }

    /// It is answered here, whatever was said before.
    pub fn end(&mut self, refusal: RequestError) {
        self.refusal = Some(refusal);
        self.status = Some(refusal.status());
    }

    /// The head of the server's answer is here, or that of our own which is no refusal.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
        let is_server = self
            .mark
            .is_some_and(|mark| mark != AllowReason::AnsweredPreflight);
        self.server = is_server.then(|| self.started.elapsed());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.telemetry.metrics.requests_in_flight.add(-1);
        self.telemetry.metrics.count(self, took);
        if let Some(access) = &self.telemetry.access {
            access.write(self, took);
        }
    }
}
