//! One request, from its head to the head of its answer.
//!
//! Owns the order of things, what is answered here without asking anybody, and upgrades. Who may pass is `door`'s, which
//! headers change `headers`'s, how the server is reached `upstream`'s.

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
use crate::record::{Record, Telemetry};
use crate::request_error::{RequestError, UpstreamFailure};
use crate::settings::{LiveSettings, Settings, SettingsView, SiteSettings};
use crate::tunnel::Tunnel;
use crate::upstream::{
    ExchangeError, KeyAccount, TruncatedResponse, UpstreamExchange, UpstreamPool,
};

/// The longest rest of a refused request that is read, so that the connection can be kept.
const MAX_READ_REST: u64 = 64 << 10;

/// What all threads share.
#[derive(Debug)]
pub struct Proxy {
    /// What needs a restart to change.
    pub settings: Settings,
    /// What does not.
    pub site: LiveSettings,
    /// Who may pass.
    pub authorizer: Authorizer,
    /// Where requests are counted and written down.
    pub telemetry: Arc<Telemetry>,
    /// How far the process is on its way to its end.
    pub lifecycle: ProcessLifecycle,
    /// Connections of clients that are answered and still send.
    pub(crate) lingering: EvictionQueue<()>,
    /// What has come of heads that are not whole.
    pub(crate) unfinished_heads: EvictionQueue<BytesMut>,
}

/// What the connections of one thread share.
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

    /// The site in force.
    pub(crate) fn site(&self) -> Arc<SiteSettings> {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(view.site())
    }
}

/// A request under way. Wherever it ends, its record does.
pub(crate) struct ActiveRequest {
    client: Arc<ClientConnection>,
    record: Option<Box<Record>>,
    /// The request's version: one of HTTP/1.0 knows no chunks.
    version: Version,
    id: HeaderValue,
}

impl ActiveRequest {
    pub(crate) fn client(&self) -> &ClientConnection {
        &self.client
    }

    pub(crate) fn record(&mut self) -> Option<&mut Record> {
        self.record.as_deref_mut()
    }

    /// The answer ends before its end. Chunks and lengths show that to the client; without them the end of the
    /// connection would be that of the answer, and only a reset is none.
    pub(crate) fn truncate(&mut self, truncated: TruncatedResponse) {
        let proxy = &self.client.thread.proxy;
        let server = &proxy.settings.server;
        let failures = &proxy.telemetry.failures;
        failures.truncated(&truncated, &self.id, server);
        self.note(|record| {
            record.cut = Some(truncated.reason);
            record.detail = truncated.detail;
        });
        if self.version == Version::HTTP_10 {
            self.client.reset();
        }
    }

    fn note(&mut self, what: impl FnOnce(&mut Record)) {
        self.record.as_deref_mut().map(what);
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.received = self.client.activity.received();
            self.client.finish(record);
        }
    }
}

/// Answers a request. `fault` is what the gate has found, and then the request is the gate's own.
pub(crate) async fn handle(
    client: Arc<ClientConnection>,
    fault: Option<RequestError>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    client.activity.begin_request();
    let site = client.thread.site();
    let (parts, body) = request.into_parts();
    let id = headers::request_id(&parts.headers, &client.peer);
    let telemetry = &client.thread.proxy.telemetry;
    let record = Record::begin(telemetry, &site, &parts, &client.peer, id.clone());
    let origin = site.cors.origin(&parts.headers);
    let mut active = ActiveRequest {
        record: Some(Box::new(record)),
        version: parts.version,
        id: id.clone(),
        client: Arc::clone(&client),
    };
    let answered = match fault {
        Some(refusal) => Err(refusal.into()),
        None => respond(&mut active, &site, &id, parts, body).await,
    };
    client.activity.begin_response();
    let mut response = match answered {
        Ok(ProxyResponse::Upstream(response)) => {
            response.map(|exchange| ResponseBody::upstream(exchange, active))
        }
        Ok(ProxyResponse::Local(response)) => {
            response.map(|bytes| ResponseBody::local(bytes, active))
        }
        Err(refused) => {
            let proxy = &client.thread.proxy;
            let failures = &proxy.telemetry.failures;
            failures.refused(&refused, &id, &proxy.settings.server);
            active.note(|record| record.refuse(&refused));
            let mut response = local_response::error_response(&refused, &site, &id);
            if let Some(origin) = origin {
                response
                    .headers_mut()
                    .insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            }
            if refused.error.closes_connection() {
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

/// What a request is answered with.
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
        read_rest_of_body(&client, &parts, body).await;
        let health = local_response::health_response(client.phase());
        active.note(|record| record.answered(health.status()));
        return Ok(ProxyResponse::Local(health));
    }
    let judged = match validate(&mut parts, &body, site) {
        Ok(()) => {
            let authorizer = &client.thread.proxy.authorizer;
            authorizer.decide(site, &parts, &client.peer).await
        }
        Err(refusal) => Err(refusal.into()),
    };
    let pass = match judged {
        Ok(pass) => pass,
        Err(refused) => {
            if !refused.error.closes_connection() {
                read_rest_of_body(&client, &parts, body).await;
            }
            return Err(refused);
        }
    };
    active.note(|record| record.pass(&pass));
    match pass.reason {
        AllowReason::AnsweredPreflight => {
            let answer = local_response::preflight_response(site, &parts.headers, id);
            active.note(|record| record.answered(answer.status()));
            return Ok(ProxyResponse::Local(answer));
        }
        AllowReason::ForwardedPreflight => preflight::strip(&mut parts),
        AllowReason::ValidKey
        | AllowReason::StaleGrant
        | AllowReason::OpenPath
        | AllowReason::FailOpen => {}
    }
    let asked = parts.headers.contains_key(UPGRADE) && check_upgrade(&mut parts, &body);
    headers::to_server(&mut parts, &pass, &client.peer, id, site);
    let has_body = !body.is_end_stream();
    let body = RequestBody::new(body, &client, site.limits.body);
    let upstream = &client.thread.upstream;
    let account = KeyAccount(pass.grant.clone());
    let sent = upstream.exchange(parts, body, account, &client.activity, site);
    let sent = sent.await;
    let failed = |error: ExchangeError| {
        if has_body {
            // How much of it is still to come is not known.
            client.linger();
        }
        DenyDecision {
            error: error.refusal,
            detail: error.detail,
            grant: pass.grant.clone(),
            key: None,
            route: pass.route.clone(),
            required_rights: Box::default(),
        }
    };
    let (mut head, mut exchange) = sent.map_err(failed)?;
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    if switched && !(asked && headers::is_websocket(&head.headers)) {
        return Err(failed(ExchangeError::unrequested_upgrade()));
    }
    client.thread.proxy.telemetry.failures.succeeded();
    if headers::is_event_stream(&head.headers) {
        client.activity.set_streaming(StreamingMode::Yes);
    } else if site.stream_all {
        client.activity.set_streaming(StreamingMode::AfterFirstByte);
    }
    if !exchange.is_request_sent() {
        // The server has answered early, and does most likely not take the rest.
        client.linger();
    }
    headers::to_client(&mut head, id, pass.reason);
    active.note(|record| record.answered(head.status));
    if switched {
        let upgraded = exchange.take_upgraded();
        let (server, ahead) = upgraded.ok_or(RequestError::Upstream(UpstreamFailure::Closed))?;
        client.open(Tunnel { server, ahead });
        return Ok(ProxyResponse::Local(Response::from_parts(
            head,
            Bytes::new(),
        )));
    }
    Ok(ProxyResponse::Upstream(Response::from_parts(
        head, exchange,
    )))
}

/// What is wrong with a request whoever sends it. The host that the request line names counts (RFC 9112 section 3.2.2),
/// for whoever looks at it later.
fn validate(parts: &mut Parts, body: &Incoming, site: &SiteSettings) -> Result<(), RequestError> {
    if parts.method == Method::CONNECT {
        return Err(RequestError::NotImplemented);
    }
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|_| RequestError::InvalidRequest("the request line names no host"))?;
        parts.headers.insert(HOST, host);
        parts.uri = match parts.uri.path_and_query() {
            Some(path) => Uri::from(path.clone()),
            None => Uri::from_static("/"),
        };
    }
    headers::check_connection(&parts.headers, site)?;
    // A request of HTTP/1.0 cannot expect anything (RFC 9110 section 10.1.1).
    if parts.version == Version::HTTP_11
        && let Some(expected) = parts.headers.get(EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(RequestError::UnsupportedExpectation);
    }
    match (site.limits.body, body.size_hint().exact()) {
        (Some(limit), Some(length)) if length > limit => Err(RequestError::BodyTooLarge),
        _ => Ok(()),
    }
}

/// Whether a request becomes a tunnel if the server agrees (RFC 6455 section 4.1). One that may not does not ask.
fn check_upgrade(parts: &mut Parts, body: &Incoming) -> bool {
    let may = parts.method == Method::GET
        && parts.version == Version::HTTP_11
        && body.is_end_stream()
        && headers::is_websocket(&parts.headers);
    if !may {
        parts.headers.remove(UPGRADE);
    }
    may
}

/// Reads what is left of a request that is answered here, so that the connection can be kept for the next one. What is
/// long, of unknown length or not on its way yet is not waited for: the connection ends instead.
async fn read_rest_of_body(client: &ClientConnection, parts: &Parts, body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let short = body
        .size_hint()
        .upper()
        .is_some_and(|most| most <= MAX_READ_REST);
    if !short || parts.headers.contains_key(EXPECT) {
        client.linger();
        return;
    }
    client.activity.set_active_party(ActiveParty::Client);
    let mut body = pin!(body);
    let whole = poll_fn(|cx| {
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
    if !whole.await {
        client.linger();
    }
}
