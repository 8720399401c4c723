//! Exchanges with the server, on connections that are kept.
//!
//! Owns one thread's connections to the server: how many there may be, which one an exchange gets, which are kept, when a
//! request is sent a second time, and the order of writing and reading. There is no task and no queue between an exchange
//! and its connection: whoever answers the client polls both, and nobody is woken.

mod connection;
mod error;
mod fair_pool;
mod request;
mod response;
mod slot;
mod stream;

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use hyper::body::{Frame, SizeHint};
use hyper::http::request::Parts;
use hyper::http::response::Parts as ResponseParts;
use tokio::time::{sleep, timeout};

use crate::body::{IncompleteBody, RequestBody};
use crate::deadline::{ActiveParty, ConnectionActivity};
use crate::proxy::Proxy;
use crate::record::Telemetry;
use crate::request_error::{RequestError, TruncationReason, UpstreamFailure};
use crate::settings::{SiteSettings, UpstreamAddress};
use connection::UpstreamConnection;
pub(crate) use error::{ExchangeError, TruncatedResponse};
use request::RequestWriter;
pub use response::fuzz as fuzz_response;
use response::{BodyDecoder, BodyPiece, InvalidResponse};
pub(crate) use slot::KeyAccount;
use slot::{PoolSlot, SlotQueue};
pub(crate) use stream::UpstreamStream;

/// A connection that was idle for this long is closed, at the latest after twice that.
const SWEEP: Duration = Duration::from_secs(15);

/// How much may come before the answer that counts, and with its head.
const BEFORE: usize = 256 << 10;
const ENDLESS: InvalidResponse = InvalidResponse("no final response within 256 KiB");

/// The client is most likely gone.
const INCOMPLETE: RequestError = RequestError::InvalidRequest("the body ended before its end");

/// Exchanges take a connection and give it back: only its pointer moves.
type IdleConnections = Vec<Box<UpstreamConnection>>;

/// The connections of one thread.
pub(crate) struct UpstreamPool {
    server: UpstreamAddress,
    telemetry: Arc<Telemetry>,
    /// Exchanges that may begin. Connections are only opened when none is idle, so there are never more of them.
    slots: SlotQueue,
    /// The newest is last, and is taken first: what a burst has opened gets to be idle long enough to be closed.
    idle: Mutex<IdleConnections>,
    sweeps: AtomicU64,
    sweeping: AtomicBool,
}

/// Why an attempt failed.
struct AttemptError {
    error: ExchangeError,
    /// The connection ended without a byte of a response.
    unanswered: bool,
}

impl<E: Into<ExchangeError>> From<E> for AttemptError {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            unanswered: false,
        }
    }
}

impl UpstreamPool {
    /// None yet.
    pub(crate) fn new(proxy: &Proxy) -> Arc<Self> {
        let limit = proxy.site.get().limits.server_connections;
        Arc::new(Self {
            server: proxy.settings.server.clone(),
            telemetry: Arc::clone(&proxy.telemetry),
            slots: SlotQueue::new(limit),
            idle: Mutex::default(),
            sweeps: AtomicU64::new(0),
            sweeping: AtomicBool::new(false),
        })
    }

    /// Sends a request and returns the head of its answer, in the request's own map of headers. What comes after that
    /// goes over the exchange.
    ///
    /// A request is sent a second time only when that cannot do anything twice (RFC 9110 section 9.2.2), when it has no
    /// body, and when the connection was used before and ended without a byte of an answer: then the server had most
    /// likely closed it before the request arrived. The second time is on a new connection, and the last.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn exchange(
        self: &Arc<Self>,
        mut parts: Parts,
        body: RequestBody,
        account: KeyAccount,
        activity: &ConnectionActivity,
        site: &SiteSettings,
    ) -> Result<(ResponseParts, UpstreamExchange), ExchangeError> {
        let slot = PoolSlot::acquire(self, account, site.timeouts.server).await?;
        let mut exchange = UpstreamExchange::new(slot, body);
        let repeatable = exchange.sending.is_complete() && is_idempotent(&parts.method);
        // What could not be sent again is not sent to somebody who is gone.
        if let Some(live) = self.take(!repeatable) {
            exchange.live = Some(live);
            match exchange.send(&mut parts, activity).await {
                Ok(head) => return Ok((head, exchange)),
                Err(failed) if failed.unanswered && repeatable => {
                    self.telemetry.metrics.upstream_retries.add(1);
                }
                Err(failed) => return Err(failed.error),
            }
        }
        activity.set_active_party(ActiveParty::Proxy);
        exchange.live = Some(self.connect(site).await?);
        match exchange.send(&mut parts, activity).await {
            Ok(head) => Ok((head, exchange)),
            Err(failed) => Err(failed.error),
        }
    }

    /// The connection that was used last and is still there.
    fn take(&self, surely: bool) -> Option<Box<UpstreamConnection>> {
        let mut idle = self.idle();
        loop {
            let mut live = idle.pop()?;
            if !live.is_stale(surely) {
                return Some(live);
            }
        }
    }

    async fn connect(&self, site: &SiteSettings) -> Result<Box<UpstreamConnection>, ExchangeError> {
        let connected = timeout(site.timeouts.server, stream::connect(&self.server)).await;
        let stream = connected
            .map_err(|_| UpstreamFailure::ConnectTimeout)?
            .map_err(|error| ExchangeError::connecting(&error))?;
        Ok(Box::new(UpstreamConnection::new(
            stream,
            Arc::clone(&self.telemetry),
        )))
    }

    /// Keeps a connection for the next exchange.
    fn keep(self: &Arc<Self>, mut live: Box<UpstreamConnection>) {
        live.rest();
        live.epoch = self.sweeps.load(Relaxed);
        self.idle().push(live);
        if !self.sweeping.swap(true, Relaxed) {
            tokio::spawn(Arc::clone(self).sweep());
        }
    }

    /// Closes connections that nobody uses; runs only while there are some.
    async fn sweep(self: Arc<Self>) {
        loop {
            sleep(SWEEP).await;
            let now = self.sweeps.load(Relaxed);
            self.sweeps.store(now + 1, Relaxed);
            let mut idle = self.idle();
            idle.retain_mut(|live| live.epoch == now && !live.is_stale(false));
            if idle.is_empty() {
                idle.shrink_to_fit();
                self.sweeping.store(false, Relaxed);
                return;
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, IdleConnections> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether doing it twice is doing it once (RFC 9110 section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    [
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::PUT,
        Method::DELETE,
        Method::TRACE,
    ]
    .contains(method)
}

/// An exchange with the server, from the moment it may begin until its answer is whole or given up.
pub(crate) struct UpstreamExchange {
    slot: PoolSlot,
    live: Option<Box<UpstreamConnection>>,
    sending: RequestWriter,
    receiving: BodyDecoder,
    /// The connection may carry another one.
    keeps: bool,
}

impl UpstreamExchange {
    fn new(slot: PoolSlot, body: RequestBody) -> Self {
        Self {
            slot,
            live: None,
            sending: RequestWriter::new(body),
            receiving: BodyDecoder::Complete,
            keeps: false,
        }
    }

    async fn send(
        &mut self,
        parts: &mut Parts,
        activity: &ConnectionActivity,
    ) -> Result<ResponseParts, AttemptError> {
        activity.set_active_party(ActiveParty::Upstream);
        let Some(live) = self.live.as_deref_mut() else {
            return Err(UpstreamFailure::Closed.into());
        };
        self.sending.head(parts, live.output());
        let is_last = self.sending.is_last(&parts.method);
        let before = live.moved;
        let mut read = 0;
        let head = poll_fn(|cx| {
            loop {
                if let Some(refusal) = activity.take_failure() {
                    return Poll::Ready(Err(refusal.into()));
                }
                let written = go_on(live, &mut self.sending, cx);
                if let Some(refusal) = activity.take_failure() {
                    return Poll::Ready(Err(refusal.into()));
                }
                let came = live.poll_read(cx);
                activity.set_upstream_bytes(live.moved - before);
                let lost = |error: ExchangeError, read: usize| {
                    let unanswered = read == 0;
                    Poll::Ready(Err(AttemptError { error, unanswered }))
                };
                match (came, written) {
                    (_, Err(IncompleteBody)) => return Poll::Ready(Err(INCOMPLETE.into())),
                    (Poll::Pending, Ok(())) => return Poll::Pending,
                    (Poll::Ready(Ok(0)), _) => return lost(UpstreamFailure::Closed.into(), read),
                    (Poll::Ready(Ok(bytes)), _) => read += bytes,
                    (Poll::Ready(Err(error)), _) => {
                        return lost(ExchangeError::closed(&error), read);
                    }
                }
                match response::head(&mut live.input, &parts.method, &mut parts.headers) {
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    // Informational answers may come before the one that counts, but not without end.
                    Ok(None) if read > BEFORE => return Poll::Ready(Err(ENDLESS.into())),
                    Ok(None) => {}
                    Err(malformed) => return Poll::Ready(Err(malformed.into())),
                }
            }
        });
        let head = head.await?;
        self.receiving = head.body;
        self.keeps = head.keeps && !is_last;
        Ok(head.parts)
    }

    /// The next piece of the answer's body.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        activity: &ConnectionActivity,
    ) -> Poll<Option<Result<Frame<Bytes>, TruncatedResponse>>> {
        let Some(live) = self.live.as_deref_mut() else {
            return Poll::Ready(None);
        };
        loop {
            match self.receiving.next(&mut live.input) {
                Ok(BodyPiece::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(BodyPiece::End) => return Poll::Ready(None),
                Ok(BodyPiece::NeedMore) => {}
                Err(malformed) => return Poll::Ready(Some(Err(malformed.into()))),
            }
            let before = live.moved;
            // What is left of the request may still be wanted, or not: the answer goes on either way.
            let _ = go_on(live, &mut self.sending, cx);
            let came = live.poll_read(cx);
            activity.add_upstream_bytes(live.moved - before);
            match ready!(came) {
                Ok(1..) => {}
                Ok(0) if self.receiving == BodyDecoder::Close => {
                    self.receiving = BodyDecoder::Complete;
                    return Poll::Ready(None);
                }
                Ok(0) => return Poll::Ready(Some(Err(TruncationReason::UpstreamClosed.into()))),
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// Whether the request was sent to its end.
    pub(crate) fn is_sent(&self) -> bool {
        self.sending.is_complete()
    }

    /// Whether the answer was read to its end.
    pub(crate) fn is_complete(&self) -> bool {
        self.receiving.is_complete()
    }

    /// The length of what is left of the answer's body.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.receiving {
            BodyDecoder::Complete => SizeHint::with_exact(0),
            BodyDecoder::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// The connection, which the server has agreed to use for another protocol, and what was read beyond the answer.
    pub(crate) fn upgraded(&mut self) -> Option<(UpstreamStream, Bytes)> {
        self.live.take().map(|live| live.into_parts())
    }
}

/// Sends what there is of a request.
///
/// # Errors
/// The client breaks off.
fn go_on(
    live: &mut UpstreamConnection,
    sending: &mut RequestWriter,
    cx: &mut Context<'_>,
) -> Result<(), IncompleteBody> {
    loop {
        if !sending.is_complete() {
            sending.fill(cx, live.output())?;
        }
        let more = !live.is_written() && !sending.is_complete();
        match live.poll_write(cx) {
            // There may be room for more of the body.
            Poll::Ready(Ok(())) if more => {}
            // A server that takes no more may have answered: what there is to read says so, or that it has gone.
            Poll::Ready(_) | Poll::Pending => return Ok(()),
        }
    }
}

impl Drop for UpstreamExchange {
    fn drop(&mut self) {
        // An exchange that is not over has nothing to give back.
        if let Some(live) = self.live.take()
            && self.keeps
            && self.receiving.is_complete()
            && self.sending.is_complete()
            && live.input.is_empty()
            && live.is_written()
        {
            self.slot.upstream.keep(live);
        }
        // Only then the slot goes to the next exchange, which finds it.
    }
}
