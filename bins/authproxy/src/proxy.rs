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

use crate::answer;
use crate::body::{ToClient, ToServer};
use crate::conn::Client;
use crate::deadline::{Streaming, Turn};
use crate::door::{Door, Mark, Refused};
use crate::eviction::EvictionQueue;
use crate::headers;
use crate::lifecycle::{Lifecycle, Phase};
use crate::preflight;
use crate::record::{Record, Telemetry};
use crate::refusal::{Refusal, UpstreamFailure};
use crate::settings::{Live, Settings, Site, View};
use crate::tunnel::Tunnel;
use crate::upstream::{Account, Exchange, ExchangeError, Truncated, Upstream};

/// The longest rest of a refused request that is read, so that the connection can be kept.
const REST: u64 = 64 << 10;

/// What all threads share.
#[derive(Debug)]
pub struct Proxy {
    /// What needs a restart to change.
    pub settings: Settings,
    /// What does not.
    pub site: Live,
    /// Who may pass.
    pub door: Door,
    /// Where requests are counted and written down.
    pub telemetry: Arc<Telemetry>,
    /// How far the process is on its way to its end.
    pub lifecycle: Lifecycle,
    /// Connections of clients that are answered and still send.
    pub(crate) lingering: EvictionQueue<()>,
    /// What has come of heads that are not whole.
    pub(crate) unfinished_heads: EvictionQueue<BytesMut>,
}

/// What the connections of one thread share.
pub(crate) struct Thread {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) upstream: Arc<Upstream>,
    view: Mutex<View>,
}

impl Thread {
    pub(crate) fn new(proxy: Arc<Proxy>) -> Arc<Self> {
        let view = proxy.site.view();
        let upstream = Upstream::new(&proxy);
        Arc::new(Self {
            upstream,
            view: Mutex::new(view),
            proxy,
        })
    }

    /// The site in force.
    pub(crate) fn site(&self) -> Arc<Site> {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(view.site())
    }
}

/// A request under way. Wherever it ends, its record does.
pub(crate) struct Entry {
    client: Arc<Client>,
    record: Option<Box<Record>>,
    /// The request's version: one of HTTP/1.0 knows no chunks.
    version: Version,
    id: HeaderValue,
}

impl Entry {
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn record(&mut self) -> Option<&mut Record> {
        self.record.as_deref_mut()
    }

    /// The answer ends before its end. Chunks and lengths show that to the client; without them the end of the
    /// connection would be that of the answer, and only a reset is none.
    pub(crate) fn cut(&mut self, truncated: Truncated) {
        let proxy = &self.client.thread.proxy;
        let server = &proxy.settings.server;
        let failures = &proxy.telemetry.failures;
        failures.truncated(&truncated, &self.id, server);
        self.note(|record| {
            record.cut = Some(truncated.cause);
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

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.received = self.client.flow.received();
            self.client.finish(record);
        }
    }
}

/// Answers a request. `fault` is what the gate has found, and then the request is the gate's own.
pub(crate) async fn handle(
    client: Arc<Client>,
    fault: Option<Refusal>,
    request: Request<Incoming>,
) -> Result<Response<ToClient>, Infallible> {
    client.flow.begin();
    let site = client.thread.site();
    let (parts, body) = request.into_parts();
    let id = headers::request_id(&parts.headers, &client.who);
    let telemetry = &client.thread.proxy.telemetry;
    let record = Record::begin(telemetry, &site, &parts, &client.who, id.clone());
    let origin = site.cors.origin(&parts.headers);
    let mut entry = Entry {
        record: Some(Box::new(record)),
        version: parts.version,
        id: id.clone(),
        client: Arc::clone(&client),
    };
    let answered = match fault {
        Some(refusal) => Err(refusal.into()),
        None => answer(&mut entry, &site, &id, parts, body).await,
    };
    client.flow.answer();
    let mut response = match answered {
        Ok(Answer::Server(response)) => response.map(|exchange| ToClient::server(exchange, entry)),
        Ok(Answer::Ours(response)) => response.map(|bytes| ToClient::ours(bytes, entry)),
        Err(refused) => {
            let proxy = &client.thread.proxy;
            let failures = &proxy.telemetry.failures;
            failures.refused(&refused, &id, &proxy.settings.server);
            entry.note(|record| record.refuse(&refused));
            let mut response = answer::refuse(&refused, &site, &id);
            if let Some(origin) = origin {
                response
                    .headers_mut()
                    .insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            }
            if refused.refusal.closes() {
                client.linger();
            }
            response.map(|bytes| ToClient::ours(bytes, entry))
        }
    };
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if client.lingers() || (client.phase() != Phase::Serving && !switched) {
        const CLOSE: HeaderValue = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, CLOSE);
    }
    Ok(response)
}

/// What a request is answered with.
enum Answer {
    Server(Response<Exchange>),
    Ours(Response<Bytes>),
}

async fn answer(
    entry: &mut Entry,
    site: &Site,
    id: &HeaderValue,
    mut parts: Parts,
    body: Incoming,
) -> Result<Answer, Refused> {
    let client = Arc::clone(&entry.client);
    if site.health_path.as_deref() == Some(parts.uri.path()) {
        spare(&client, &parts, body).await;
        let health = answer::health(client.phase());
        entry.note(|record| record.answered(health.status()));
        return Ok(Answer::Ours(health));
    }
    let judged = match check(&mut parts, &body, site) {
        Ok(()) => {
            let door = &client.thread.proxy.door;
            door.decide(site, &parts, &client.who).await
        }
        Err(refusal) => Err(refusal.into()),
    };
    let pass = match judged {
        Ok(pass) => pass,
        Err(refused) => {
            if !refused.refusal.closes() {
                spare(&client, &parts, body).await;
            }
            return Err(refused);
        }
    };
    entry.note(|record| record.pass(&pass));
    match pass.mark {
        Mark::Answered => {
            let answer = answer::preflight(site, &parts.headers, id);
            entry.note(|record| record.answered(answer.status()));
            return Ok(Answer::Ours(answer));
        }
        Mark::Preflight => preflight::strip(&mut parts),
        Mark::Known | Mark::Stale | Mark::Open | Mark::FailOpen => {}
    }
    let asked = parts.headers.contains_key(UPGRADE) && upgrades(&mut parts, &body);
    headers::to_server(&mut parts, &pass, &client.who, id, site);
    let has_body = !body.is_end_stream();
    let body = ToServer::new(body, &client, site.limits.body);
    let upstream = &client.thread.upstream;
    let account = Account(pass.id.clone());
    let sent = upstream.exchange(parts, body, account, &client.flow, site);
    let sent = sent.await;
    let failed = |error: ExchangeError| {
        if has_body {
            // How much of it is still to come is not known.
            client.linger();
        }
        Refused {
            refusal: error.refusal,
            detail: error.detail,
            id: pass.id.clone(),
            key: None,
            route: pass.route.clone(),
            needed: Box::default(),
        }
    };
    let (mut head, mut exchange) = sent.map_err(failed)?;
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    if switched && !(asked && headers::is_websocket(&head.headers)) {
        return Err(failed(ExchangeError::unrequested_upgrade()));
    }
    client.thread.proxy.telemetry.failures.succeeded();
    if headers::is_event_stream(&head.headers) {
        client.flow.streaming(Streaming::Yes);
    } else if site.stream_all {
        client.flow.streaming(Streaming::AfterFirstByte);
    }
    if !exchange.is_sent() {
        // The server has answered early, and does most likely not take the rest.
        client.linger();
    }
    headers::to_client(&mut head, id, pass.mark);
    entry.note(|record| record.answered(head.status));
    if switched {
        let upgraded = exchange.upgraded();
        let (server, ahead) = upgraded.ok_or(Refusal::Upstream(UpstreamFailure::Closed))?;
        client.open(Tunnel { server, ahead });
        return Ok(Answer::Ours(Response::from_parts(head, Bytes::new())));
    }
    Ok(Answer::Server(Response::from_parts(head, exchange)))
}

/// What is wrong with a request whoever sends it. The host that the request line names counts (RFC 9112 section 3.2.2),
/// for whoever looks at it later.
fn check(parts: &mut Parts, body: &Incoming, site: &Site) -> Result<(), Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::NotImplemented);
    }
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|_| Refusal::Malformed("the request line names no host"))?;
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
        return Err(Refusal::Expectation);
    }
    match (site.limits.body, body.size_hint().exact()) {
        (Some(limit), Some(length)) if length > limit => Err(Refusal::LargeBody),
        _ => Ok(()),
    }
}

/// Whether a request becomes a tunnel if the server agrees (RFC 6455 section 4.1). One that may not does not ask.
fn upgrades(parts: &mut Parts, body: &Incoming) -> bool {
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
async fn spare(client: &Client, parts: &Parts, body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let short = body.size_hint().upper().is_some_and(|most| most <= REST);
    if !short || parts.headers.contains_key(EXPECT) {
        client.linger();
        return;
    }
    client.flow.turn(Turn::Client);
    let mut body = pin!(body);
    let whole = poll_fn(|cx| {
        loop {
            if client.flow.take_failure().is_some() {
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
