//! Handles one request, from its head to the head of its response.
//!
//! Owns the order of the steps, responses without authorization (health path, error responses), and upgrades.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONNECTION, EXPECT, HOST, HeaderValue, UPGRADE};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use crate::authorizer::{AllowReason, Authorizer, DenyDecision};
use crate::body::{RequestBody, ResponseBody};
use crate::connection::ClientConnection;
use crate::deadline::{ActiveParty, StreamingMode};
use crate::eviction_queue::EvictionQueue;
use crate::headers;
use crate::lifecycle::{LifecyclePhase, ProcessLifecycle};
use crate::local_response;
use crate::preflight;
use crate::record::{RequestRecord, Telemetry};
use crate::request_error::{RequestError, UpstreamFailure};
use crate::settings::{LiveSettings, Settings, SettingsView, SiteSettings};
use crate::tunnel::Tunnel;
use crate::upstream::{
    ExchangeError, KeyAccount, TruncatedResponse, UpstreamExchange, UpstreamPool,
};

/// The longest body of a denied request that is read to keep the connection alive.
const MAX_DISCARDED_BODY: u64 = 64 << 10;

/// The state that all threads share.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Settings that need a restart to change.
    pub(crate) settings: Settings,
    /// Reloadable settings.
    pub(crate) site: LiveSettings,
    pub(crate) authorizer: Authorizer,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) lifecycle: ProcessLifecycle,
    /// Connections of clients that got their response and still send.
    pub(crate) lingering: EvictionQueue<()>,
    pub(crate) partial_heads: EvictionQueue<BytesMut>,
}

/// The state that the connections of one thread share.
pub(crate) struct WorkerThread {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) upstream: Arc<UpstreamPool>,
    view: Mutex<SettingsView>,
}

impl WorkerThread {
    pub(crate) fn new(proxy: Arc<Proxy>) -> Arc<Self> {
        let view = proxy.site.view();
        let upstream = UpstreamPool::new(&proxy);
        Arc::new(Self {
            upstream,
            view: Mutex::new(view),
            proxy,
        })
    }

    /// The settings in force.
    pub(crate) fn site(&self) -> Arc<SiteSettings> {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(view.site())
    }
}

/// A request in progress. Dropping it ends its record.
pub(crate) struct ActiveRequest {
    client: Arc<ClientConnection>,
    record: Option<Box<RequestRecord>>,
    /// HTTP/1.0 has no chunks.
    version: Version,
    id: HeaderValue,
}

impl ActiveRequest {
    pub(crate) fn client(&self) -> &ClientConnection {
        &self.client
    }

    pub(crate) fn record(&mut self) -> Option<&mut RequestRecord> {
        self.record.as_deref_mut()
    }

    /// Records a truncated response. The client sees the truncation from chunks or the length; without either, the end
    /// of the connection would mean a complete response, so it is reset.
    pub(crate) fn truncate(&mut self, truncated: TruncatedResponse) {
        let proxy = &self.client.thread.proxy;
        let server = &proxy.settings.server;
        let failures = &proxy.telemetry.failures;
        failures.record_truncation(&truncated, &self.id, server);
        self.update_record(|record| {
            record.truncation = Some(truncated.reason);
            record.detail = truncated.detail;
        });
        if self.version == Version::HTTP_10 {
            self.client.reset();
        }
    }

    fn update_record(&mut self, update: impl FnOnce(&mut RequestRecord)) {
        self.record.as_deref_mut().map(update);
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.bytes_in = self.client.activity.received();
            self.client.finish(record);
        }
    }
}

/// Responds to a request. With a `head_error` the request is the validator's substitute.
pub(crate) async fn handle(
    client: Arc<ClientConnection>,
    head_error: Option<RequestError>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    client.activity.begin_request();
    let site = client.thread.site();
    let (parts, body) = request.into_parts();
    let id = headers::request_id(&parts.headers, &client.peer);
    let telemetry = &client.thread.proxy.telemetry;
    let record = RequestRecord::begin(telemetry, &site, &parts, &client.peer, id.clone());
    let origin = site.cors.origin(&parts.headers);
    let mut active = ActiveRequest {
        record: Some(Box::new(record)),
        version: parts.version,
        id: id.clone(),
        client: Arc::clone(&client),
    };
    let result = match head_error {
        Some(error) => Err(error.into()),
        None => respond(&mut active, &site, &id, parts, body).await,
    };
    client.activity.begin_response();
    let mut response = match result {
        Ok(ProxyResponse::Upstream(response)) => {
            response.map(|exchange| ResponseBody::upstream(exchange, active))
        }
        Ok(ProxyResponse::Local(response)) => {
            response.map(|bytes| ResponseBody::local(bytes, active))
        }
        Err(denied) => {
            let proxy = &client.thread.proxy;
            let failures = &proxy.telemetry.failures;
            failures.record_denial(&denied, &id, &proxy.settings.server);
            active.update_record(|record| record.deny(&denied));
            let mut response = local_response::error_response(&denied, &site, &id);
            if let Some(origin) = origin {
                response
                    .headers_mut()
                    .insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            }
            if denied.error.closes_connection() {
                client.linger();
            }
            response.map(|bytes| ResponseBody::local(bytes, active))
        }
    };
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if client.lingers() || (client.phase() != LifecyclePhase::Serving && !switched) {
        const CLOSE: HeaderValue = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, CLOSE);
    }
    Ok(response)
}

/// The response to a request, of upstream or of authproxy itself.
enum ProxyResponse {
    Upstream(Response<UpstreamExchange>),
    Local(Response<Bytes>),
}

async fn respond(
    active: &mut ActiveRequest,
    site: &SiteSettings,
    id: &HeaderValue,
    mut parts: Parts,
    body: Incoming,
) -> Result<ProxyResponse, DenyDecision> {
    let client = Arc::clone(&active.client);
    if site.health_path.as_deref() == Some(parts.uri.path()) {
        discard_body(&client, &parts, body).await;
        let health = local_response::health_response(client.phase());
        active.update_record(|record| record.respond(health.status()));
        return Ok(ProxyResponse::Local(health));
    }
    let decision = match validate(&mut parts, &body, site) {
        Ok(()) => {
            let authorizer = &client.thread.proxy.authorizer;
            authorizer.decide(site, &parts, &client.peer).await
        }
        Err(error) => Err(error.into()),
    };
    let allowed = match decision {
        Ok(allowed) => allowed,
        Err(denied) => {
            if !denied.error.closes_connection() {
                discard_body(&client, &parts, body).await;
            }
            return Err(denied);
        }
    };
    active.update_record(|record| record.allow(&allowed));
    match allowed.reason {
        AllowReason::AnsweredPreflight => {
            let response = local_response::preflight_response(site, &parts.headers, id);
            active.update_record(|record| record.respond(response.status()));
            return Ok(ProxyResponse::Local(response));
        }
        AllowReason::ForwardedPreflight => preflight::strip_request(&mut parts),
        AllowReason::ValidKey
        | AllowReason::StaleGrant
        | AllowReason::OpenPath
        | AllowReason::FailOpen => {}
    }
    let wants_upgrade = parts.headers.contains_key(UPGRADE) && check_upgrade(&mut parts, &body);
    headers::rewrite_request(&mut parts, &allowed, &client.peer, id, site);
    let has_body = !body.is_end_stream();
    let body = RequestBody::new(body, &client, site.limits.body);
    let upstream = &client.thread.upstream;
    let account = KeyAccount(allowed.grant.clone());
    let exchanged = upstream.exchange(parts, body, account, &client.activity, site);
    let exchanged = exchanged.await;
    let to_denied = |error: ExchangeError| {
        if has_body {
            // The client may still send the rest of it.
            client.linger();
        }
        DenyDecision {
            error: error.refusal,
            detail: error.detail,
            grant: allowed.grant.clone(),
            key: None,
            route: allowed.route.clone(),
            required_rights: Box::default(),
        }
    };
    let (mut head, mut exchange) = exchanged.map_err(to_denied)?;
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    if switched && !(wants_upgrade && headers::is_websocket(&head.headers)) {
        return Err(to_denied(ExchangeError::unrequested_upgrade()));
    }
    client.thread.proxy.telemetry.failures.record_success();
    if headers::is_event_stream(&head.headers) {
        client.activity.set_streaming(StreamingMode::Yes);
    } else if site.stream_all {
        client.activity.set_streaming(StreamingMode::AfterFirstByte);
    }
    if !exchange.is_request_sent() {
        // Upstream responded early, and most likely does not take the rest.
        client.linger();
    }
    headers::rewrite_response(&mut head, id, allowed.reason);
    active.update_record(|record| record.respond(head.status));
    if switched {
        let upgraded = exchange.take_upgraded();
        let (upstream, early_bytes) =
            upgraded.ok_or(RequestError::Upstream(UpstreamFailure::Closed))?;
        client.begin_tunnel(Tunnel {
            upstream,
            early_bytes,
        });
        return Ok(ProxyResponse::Local(Response::from_parts(
            head,
            Bytes::new(),
        )));
    }
    Ok(ProxyResponse::Upstream(Response::from_parts(
        head, exchange,
    )))
}

/// Refuses what no key may send, and replaces Host by the authority of the request target (RFC 9112 section 3.2.2).
fn validate(parts: &mut Parts, body: &Incoming, site: &SiteSettings) -> Result<(), RequestError> {
    if parts.method == Method::CONNECT {
        return Err(RequestError::NotImplemented);
    }
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|_| RequestError::InvalidRequest("invalid host in the request target"))?;
        parts.headers.insert(HOST, host);
        parts.uri = match parts.uri.path_and_query() {
            Some(path) => Uri::from(path.clone()),
            None => Uri::from_static("/"),
        };
    }
    headers::check_connection(&parts.headers, site)?;
    // RFC 9110 section 10.1.1: Expect of HTTP/1.0 is ignored.
    if parts.version == Version::HTTP_11
        && let Some(expectation) = parts.headers.get(EXPECT)
        && !expectation.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(RequestError::UnsupportedExpectation);
    }
    match (site.limits.body, body.size_hint().exact()) {
        (Some(limit), Some(length)) if length > limit => Err(RequestError::BodyTooLarge),
        _ => Ok(()),
    }
}

/// Whether a request may become a tunnel (RFC 6455 section 4.1). Otherwise its Upgrade header is removed.
fn check_upgrade(parts: &mut Parts, body: &Incoming) -> bool {
    let is_allowed = parts.method == Method::GET
        && parts.version == Version::HTTP_11
        && body.is_end_stream()
        && headers::is_websocket(&parts.headers);
    if !is_allowed {
        parts.headers.remove(UPGRADE);
    }
    is_allowed
}

/// Reads and discards the body of a request that is not proxied, to keep the connection alive. A body that is long, of
/// unknown length or waits for `100 Continue` ends the connection instead.
async fn discard_body(client: &ClientConnection, parts: &Parts, body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let is_short = body
        .size_hint()
        .upper()
        .is_some_and(|length| length <= MAX_DISCARDED_BODY);
    if !is_short || parts.headers.contains_key(EXPECT) {
        client.linger();
        return;
    }
    client.activity.set_active_party(ActiveParty::Client);
    let mut body = pin!(body);
    let complete = poll_fn(|cx| {
        loop {
            if client.activity.take_failure().is_some() {
                return Poll::Ready(false);
            }
            match ready!(body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(true),
                Some(Ok(_)) => {}
                Some(Err(_)) => return Poll::Ready(false),
            }
        }
    });
    if !complete.await {
        client.linger();
    }
}
