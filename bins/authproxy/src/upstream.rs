//! The upstream pool: keep-alive connections of one thread, and the exchanges on them.
//!
//! Owns the size of the pool, which connection an exchange gets, keep-alive, retries, and the order of writing and
//! reading. There is no task and no queue between an exchange and its connection: the task of the client's request
//! polls both.

mod connection;
mod error;
mod fair_pool;
mod request;
mod response;
mod slot;
mod socket;

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
pub use response::fuzz_response;
use response::{BodyDecoder, BodyPiece, InvalidResponse};
pub(crate) use slot::KeyAccount;
use slot::{PoolSlot, SlotQueue};
pub(crate) use socket::UpstreamSocket;

/// A connection that was idle for this long is closed, at the latest after twice that.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

/// The most bytes of informational responses and of the final head together.
const MAX_BEFORE_BODY: usize = 256 << 10;
const NO_FINAL_RESPONSE: InvalidResponse = InvalidResponse("no final response within 256 KiB");

/// The client has most likely disconnected.
const INCOMPLETE_REQUEST_BODY: RequestError = RequestError::InvalidRequest("the body ended early");

/// In boxes, because connections move between pool and exchanges.
type IdleConnections = Vec<Box<UpstreamConnection>>;

pub(crate) struct UpstreamPool {
    server: UpstreamAddress,
    telemetry: Arc<Telemetry>,
    /// Limits exchanges, and with them connections, which are opened only while none is idle.
    slots: SlotQueue,
    /// The newest is last, and is taken first: connections of a burst become idle and are closed.
    idle: Mutex<IdleConnections>,
    sweeps: AtomicU64,
    sweeping: AtomicBool,
}

/// The error of one attempt to send a request.
struct AttemptError {
    error: ExchangeError,
    /// The connection ended without a byte of a response.
    no_response: bool,
}

impl<E: Into<ExchangeError>> From<E> for AttemptError {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            no_response: false,
        }
    }
}

impl UpstreamPool {
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

    /// Sends a request and returns the head of its response, in the request's own header map, and the exchange for the
    /// response body.
    ///
    /// Retries once, on a new connection, if the method is idempotent (RFC 9110 section 9.2.2), the request has no
    /// body, and a reused connection ended without a byte of a response: then upstream had most likely closed it before
    /// the request arrived.
    ///
    /// # Errors
    /// Why there is no response.
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
        let retryable = exchange.request.is_complete() && is_idempotent(&parts.method);
        // A request that cannot be retried is not sent on a stale connection.
        if let Some(connection) = self.take_idle(!retryable) {
            exchange.connection = Some(connection);
            match exchange.send(&mut parts, activity).await {
                Ok(head) => return Ok((head, exchange)),
                Err(failed) if failed.no_response && retryable => {
                    self.telemetry.metrics.upstream_retries.add(1);
                }
                Err(failed) => return Err(failed.error),
            }
        }
        activity.set_active_party(ActiveParty::Proxy);
        exchange.connection = Some(self.connect(site).await?);
        match exchange.send(&mut parts, activity).await {
            Ok(head) => Ok((head, exchange)),
            Err(failed) => Err(failed.error),
        }
    }

    /// The most recently used connection that is not stale.
    fn take_idle(&self, query_kernel: bool) -> Option<Box<UpstreamConnection>> {
        let mut idle = self.idle();
        loop {
            let mut connection = idle.pop()?;
            if !connection.is_stale(query_kernel) {
                return Some(connection);
            }
        }
    }

    async fn connect(&self, site: &SiteSettings) -> Result<Box<UpstreamConnection>, ExchangeError> {
        let connected = timeout(site.timeouts.server, socket::connect(&self.server)).await;
        let stream = connected
            .map_err(|_| UpstreamFailure::ConnectTimeout)?
            .map_err(|error| ExchangeError::connect(&error))?;
        Ok(Box::new(UpstreamConnection::new(
            stream,
            Arc::clone(&self.telemetry),
        )))
    }

    /// Keeps a connection for the next exchange.
    fn put_idle(self: &Arc<Self>, mut connection: Box<UpstreamConnection>) {
        connection.park();
        connection.epoch = self.sweeps.load(Relaxed);
        self.idle().push(connection);
        if !self.sweeping.swap(true, Relaxed) {
            tokio::spawn(Arc::clone(self).sweep());
        }
    }

    /// Closes connections that stay idle; runs only while there are some.
    async fn sweep(self: Arc<Self>) {
        loop {
            sleep(SWEEP_INTERVAL).await;
            let now = self.sweeps.load(Relaxed);
            self.sweeps.store(now + 1, Relaxed);
            let mut idle = self.idle();
            idle.retain_mut(|connection| connection.epoch == now && !connection.is_stale(false));
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

/// RFC 9110 section 9.2.2.
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

/// One request and its response on a pool slot, until the response is complete or abandoned.
pub(crate) struct UpstreamExchange {
    slot: PoolSlot,
    connection: Option<Box<UpstreamConnection>>,
    request: RequestWriter,
    response_body: BodyDecoder,
    keep_alive: bool,
}

impl UpstreamExchange {
    fn new(slot: PoolSlot, body: RequestBody) -> Self {
        Self {
            slot,
            connection: None,
            request: RequestWriter::new(body),
            response_body: BodyDecoder::Complete,
            keep_alive: false,
        }
    }

    async fn send(
        &mut self,
        parts: &mut Parts,
        activity: &ConnectionActivity,
    ) -> Result<ResponseParts, AttemptError> {
        activity.set_active_party(ActiveParty::Upstream);
        let Some(connection) = self.connection.as_deref_mut() else {
            return Err(UpstreamFailure::Closed.into());
        };
        self.request.write_head(parts, connection.output());
        let is_last = self.request.is_last(&parts.method);
        let before = connection.transferred;
        let mut read = 0;
        let head = poll_fn(|cx| {
            loop {
                if let Some(refusal) = activity.take_failure() {
                    return Poll::Ready(Err(refusal.into()));
                }
                let written = send_request(connection, &mut self.request, cx);
                if let Some(refusal) = activity.take_failure() {
                    return Poll::Ready(Err(refusal.into()));
                }
                let received = connection.poll_read(cx);
                activity.set_upstream_bytes(connection.transferred - before);
                let lost = |error: ExchangeError, read: usize| {
                    let no_response = read == 0;
                    Poll::Ready(Err(AttemptError { error, no_response }))
                };
                match (received, written) {
                    (_, Err(IncompleteBody)) => {
                        return Poll::Ready(Err(INCOMPLETE_REQUEST_BODY.into()));
                    }
                    (Poll::Pending, Ok(())) => return Poll::Pending,
                    (Poll::Ready(Ok(0)), _) => return lost(UpstreamFailure::Closed.into(), read),
                    (Poll::Ready(Ok(bytes)), _) => read += bytes,
                    (Poll::Ready(Err(error)), _) => {
                        return lost(ExchangeError::closed(&error), read);
                    }
                }
                match response::read_head(&mut connection.input, &parts.method, &mut parts.headers)
                {
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    // Informational responses may precede the final one, but not without end.
                    Ok(None) if read > MAX_BEFORE_BODY => {
                        return Poll::Ready(Err(NO_FINAL_RESPONSE.into()));
                    }
                    Ok(None) => {}
                    Err(invalid) => return Poll::Ready(Err(invalid.into())),
                }
            }
        });
        let head = head.await?;
        self.response_body = head.body;
        self.keep_alive = head.keep_alive && !is_last;
        Ok(head.parts)
    }

    /// The next frame of the response body.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        activity: &ConnectionActivity,
    ) -> Poll<Option<Result<Frame<Bytes>, TruncatedResponse>>> {
        let Some(connection) = self.connection.as_deref_mut() else {
            return Poll::Ready(None);
        };
        loop {
            match self.response_body.next(&mut connection.input) {
                Ok(BodyPiece::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(BodyPiece::End) => return Poll::Ready(None),
                Ok(BodyPiece::NeedMore) => {}
                Err(invalid) => return Poll::Ready(Some(Err(invalid.into()))),
            }
            let before = connection.transferred;
            // Upstream may or may not take the rest of the request: the response continues either way.
            let _ = send_request(connection, &mut self.request, cx);
            let received = connection.poll_read(cx);
            activity.add_upstream_bytes(connection.transferred - before);
            match ready!(received) {
                Ok(1..) => {}
                Ok(0) if self.response_body == BodyDecoder::Close => {
                    self.response_body = BodyDecoder::Complete;
                    return Poll::Ready(None);
                }
                Ok(0) => return Poll::Ready(Some(Err(TruncationReason::UpstreamClosed.into()))),
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    pub(crate) fn is_request_sent(&self) -> bool {
        self.request.is_complete()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.response_body.is_complete()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.response_body {
            BodyDecoder::Complete => SizeHint::with_exact(0),
            BodyDecoder::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// The socket of an upgraded connection, and the bytes behind the response head.
    pub(crate) fn take_upgraded(&mut self) -> Option<(UpstreamSocket, Bytes)> {
        self.connection
            .take()
            .map(|connection| connection.into_parts())
    }
}

/// Sends the part of a request that has arrived.
///
/// # Errors
/// The client does not send the rest of its body.
fn send_request(
    connection: &mut UpstreamConnection,
    request: &mut RequestWriter,
    cx: &mut Context<'_>,
) -> Result<(), IncompleteBody> {
    loop {
        if !request.is_complete() {
            request.write_body(cx, connection.output())?;
        }
        let more = !connection.is_written() && !request.is_complete();
        match connection.poll_write(cx) {
            // There may be room for more of the body.
            Poll::Ready(Ok(())) if more => {}
            // When upstream takes no more, reading finds its response or the end of the connection.
            Poll::Ready(_) | Poll::Pending => return Ok(()),
        }
    }
}

impl Drop for UpstreamExchange {
    fn drop(&mut self) {
        // Only a complete exchange leaves a reusable connection.
        if let Some(connection) = self.connection.take()
            && self.keep_alive
            && self.response_body.is_complete()
            && self.request.is_complete()
            && connection.input.is_empty()
            && connection.is_written()
        {
            self.slot.upstream.put_idle(connection);
        }
        // The slot is released after this, so the next exchange finds the connection.
    }
}
