//! The record of one request, for metrics and the access log, from its head to the last byte of its response.
//!
//! Owns what is recorded. `metrics` counts it, `access_log` writes it.

mod failure_log;

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
pub(crate) use failure_log::FailureLog;

/// Where records go.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    pub metrics: ProxyMetrics,
    pub access: Option<AccessLog>,
    pub failures: FailureLog,
}

/// The record of a request. It is counted and logged when it is dropped: after the last byte of the response, or when the
/// exchange is given up.
#[derive(Debug)]
pub(crate) struct RequestRecord {
    telemetry: Arc<Telemetry>,
    /// Only with an access log.
    pub(crate) logged: Option<Box<LoggedRequest>>,
    started: Instant,
    pub(crate) grant: Option<Arc<Grant>>,
    /// The hash of an unknown key; the first 8 digits of it are logged.
    pub(crate) key: Option<KeyHash>,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) allow_reason: Option<AllowReason>,
    pub(crate) error: Option<RequestError>,
    /// The rights that the request needs, if its key lacks one of them.
    pub(crate) required_rights: Box<[String]>,
    /// Details of an error or a truncation.
    pub(crate) detail: Option<Cow<'static, str>>,
    pub(crate) status: Option<StatusCode>,
    /// The time until the response head of the upstream.
    pub(crate) upstream_duration: Option<Duration>,
    /// Bytes of the request body so far.
    pub bytes_in: u64,
    /// Bytes of the response body so far.
    pub bytes_out: u64,
    pub truncation: Option<TruncationReason>,
}

/// The request as the client sent it. Only the access log needs it: without one it is not copied, and does not keep the
/// buffer that hyper has read it into.
#[derive(Debug)]
pub(crate) struct LoggedRequest {
    pub(crate) site: Arc<SiteSettings>,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) client: IpAddr,
    pub(crate) id: HeaderValue,
}

impl LoggedRequest {
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

impl RequestRecord {
    pub(crate) fn begin(
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
            logged: is_logged.then(|| Box::new(LoggedRequest::new(site, parts, client, id))),
            started: Instant::now(),
            grant: None,
            key: None,
            route: None,
            allow_reason: None,
            error: None,
            required_rights: Box::default(),
            detail: None,
            status: None,
            upstream_duration: None,
            bytes_in: 0,
            bytes_out: 0,
            truncation: None,
        }
    }

    pub(crate) fn allow(&mut self, decision: &AllowDecision) {
        self.grant.clone_from(&decision.grant);
        self.route.clone_from(&decision.route);
        self.allow_reason = Some(decision.reason);
    }

    pub(crate) fn deny(&mut self, decision: &DenyDecision) {
        self.grant.clone_from(&decision.grant);
        self.key = decision.key;
        self.route.clone_from(&decision.route);
        self.required_rights.clone_from(&decision.required_rights);
        self.detail.clone_from(&decision.detail);
        self.fail(decision.error);
    }

    /// The response is an error of our own, whatever was decided before.
    pub(crate) fn fail(&mut self, error: RequestError) {
        self.error = Some(error);
        self.status = Some(error.status());
    }

    /// The head of the upstream's response has arrived, or of one of our own that is not an error.
    pub(crate) fn respond(&mut self, status: StatusCode) {
        self.status = Some(status);
        let is_upstream = self
            .allow_reason
            .is_some_and(|reason| reason != AllowReason::AnsweredPreflight);
        self.upstream_duration = is_upstream.then(|| self.started.elapsed());
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let duration = self.started.elapsed();
        self.telemetry.metrics.requests_in_flight.add(-1);
        self.telemetry.metrics.count(self, duration);
        if let Some(access) = &self.telemetry.access {
            access.write(self, duration);
        }
    }
}
