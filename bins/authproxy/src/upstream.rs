//! Exchanges with the server, on connections that are kept.
//!
//! Owns one thread's connections to the server: how many there may be, which one an exchange gets, which are kept, and
//! when a request is sent a second time. What is sent is `proxy`'s; how an answer's body is read is `body`'s.

mod connect;
mod live;

use std::future::Future as _;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::{Method, Request, Response};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::body::ToServer;
use crate::deadline::{Flow, Turn};
use crate::proxy::Proxy;
use crate::record::Telemetry;
use crate::refusal::Refusal;
use crate::settings::{Server, Site};
pub(crate) use connect::Stream;
use live::Live;

/// A connection that was idle for this long is closed, at the latest after twice that.
const SWEEP: Duration = Duration::from_secs(15);

/// Exchanges take a connection and give it back: only its pointer moves.
type Idle = Vec<Box<Live>>;

/// The connections of one thread.
pub(crate) struct Upstream {
    server: Server,
    telemetry: Arc<Telemetry>,
    /// Exchanges that may begin. Connections are only opened when none is idle, so there are never more of them.
    slots: Semaphore,
    waiting: AtomicUsize,
    /// The newest is last, and is taken first: what a burst has opened gets to be idle long enough to be closed.
    idle: Mutex<Idle>,
    sweeps: AtomicU64,
    sweeping: AtomicBool,
}

/// Why an attempt failed.
enum Failed {
    /// Not the server's fault.
    Refused(Refusal),
    /// The connection had ended before: nothing of the request was sent.
    Unsent(Box<Request<ToServer>>),
    /// The server may have seen the request.
    Lost {
        /// It has begun to answer.
        answered: bool,
    },
}

impl Upstream {
    /// None yet.
    pub(crate) fn new(proxy: &Proxy) -> Arc<Self> {
        let limit = proxy.site.get().limits.server_connections;
        Arc::new(Self {
            server: proxy.settings.server.clone(),
            telemetry: Arc::clone(&proxy.telemetry),
            slots: Semaphore::new(limit.min(Semaphore::MAX_PERMITS)),
            waiting: AtomicUsize::new(0),
            idle: Mutex::default(),
            sweeps: AtomicU64::new(0),
            sweeping: AtomicBool::new(false),
        })
    }

    /// Sends a request and returns the head of its answer. What comes after that goes over the exchange.
    ///
    /// A request is sent a second time only when that cannot do anything twice (RFC 9110 section 9.2.2), when it has no
    /// body, and when the connection was used before and ended without a byte of an answer: then the server had most
    /// likely closed it before the request arrived. The second time is on a new connection, and the last.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn exchange(
        self: &Arc<Self>,
        mut request: Request<ToServer>,
        flow: &Flow,
        site: &Site,
    ) -> Result<(Response<Incoming>, Exchange), Refusal> {
        let mut exchange = self.slot(site).await?;
        let mut again = None;
        while let Some(live) = self.take() {
            again = again.or_else(|| copy(&request));
            let live = exchange.live.insert(live);
            // What could not be sent again is not sent to somebody who is gone.
            live.meter.probe.store(again.is_none(), Relaxed);
            match exchange.send(request, flow).await {
                Ok(answer) => return Ok((answer, exchange)),
                Err(Failed::Refused(refusal)) => return Err(refusal),
                Err(Failed::Unsent(back)) => request = *back,
                Err(Failed::Lost { answered }) => match again.take() {
                    Some(copy) if !answered => {
                        self.telemetry.metrics.retries.add(1);
                        request = copy;
                        break;
                    }
                    _ => return Err(Refusal::BadGateway),
                },
            }
        }
        exchange.live = Some(self.connect(site).await?);
        match exchange.send(request, flow).await {
            Ok(answer) => Ok((answer, exchange)),
            Err(Failed::Refused(refusal)) => Err(refusal),
            Err(_) => Err(Refusal::BadGateway),
        }
    }

    /// Waits until an exchange may begin: first come, first served.
    async fn slot(self: &Arc<Self>, site: &Site) -> Result<Exchange, Refusal> {
        let exchange = || Exchange {
            pool: Arc::clone(self),
            live: None,
        };
        if let Ok(permit) = self.slots.try_acquire() {
            permit.forget();
            return Ok(exchange());
        }
        if self.waiting.load(Relaxed) >= site.limits.server_connections {
            return Err(Refusal::Overloaded);
        }
        let _place = Place::new(self);
        match timeout(site.timeouts.server, self.slots.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                Ok(exchange())
            }
            _ => Err(Refusal::Overloaded),
        }
    }

    fn take(&self) -> Option<Box<Live>> {
        self.idle().pop()
    }

    async fn connect(&self, site: &Site) -> Result<Box<Live>, Refusal> {
        let connected = timeout(site.timeouts.server, connect::connect(&self.server)).await;
        let refused = |error: &dyn std::error::Error| {
            tracing::debug!(%error, server = ?self.server, "cannot connect to the server");
            Refusal::BadGateway
        };
        let stream = connected
            .map_err(|_| Refusal::GatewayTimeout)?
            .map_err(|error| refused(&error))?;
        let telemetry = Arc::clone(&self.telemetry);
        let live = Live::new(stream, telemetry)
            .await
            .map_err(|error| refused(&error))?;
        Ok(Box::new(live))
    }

    /// Keeps a connection for the next exchange, if it can take one.
    fn keep(self: &Arc<Self>, mut live: Box<Live>) {
        if !live.settle() {
            return;
        }
        live.used = true;
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
            idle.retain_mut(|live| live.epoch == now && live.settle());
            if idle.is_empty() {
                idle.shrink_to_fit();
                self.sweeping.store(false, Relaxed);
                return;
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue.
struct Place<'a>(&'a Upstream);

impl<'a> Place<'a> {
    fn new(upstream: &'a Upstream) -> Self {
        upstream.waiting.fetch_add(1, Relaxed);
        upstream.telemetry.metrics.server_waiting.add(1);
        Self(upstream)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
        self.0.telemetry.metrics.server_waiting.add(-1);
    }
}

/// The same request once more, if it may be sent twice.
fn copy(request: &Request<ToServer>) -> Option<Request<ToServer>> {
    let repeatable = [
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::PUT,
        Method::DELETE,
        Method::TRACE,
    ];
    if !repeatable.contains(request.method()) || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(ToServer::none());
    request.method().clone_into(copy.method_mut());
    request.uri().clone_into(copy.uri_mut());
    request.headers().clone_into(copy.headers_mut());
    Some(copy)
}

/// An exchange with the server, from the moment it may begin until its answer is whole or given up.
pub(crate) struct Exchange {
    pool: Arc<Upstream>,
    live: Option<Box<Live>>,
}

impl Exchange {
    async fn send(
        &mut self,
        request: Request<ToServer>,
        flow: &Flow,
    ) -> Result<Response<Incoming>, Failed> {
        let Some(live) = self.live.as_deref_mut() else {
            return Err(Failed::Lost { answered: false });
        };
        let before = live.meter.read.load(Relaxed);
        flow.turn(Turn::Server);
        let mut answer = pin!(live.sender.try_send_request(request));
        std::future::poll_fn(|cx| {
            if let Some(refusal) = flow.take_failure() {
                return Poll::Ready(Err(Failed::Refused(refusal)));
            }
            let over = live.poll(cx).is_ready();
            let read = live.meter.read.load(Relaxed);
            flow.moved(read + live.meter.written.load(Relaxed));
            // hyper hands the answer over while the connection is polled, here: nobody has to be woken for it.
            let mut quiet = Context::from_waker(Waker::noop());
            let mut polled = answer.as_mut().poll(&mut quiet);
            if over && polled.is_pending() {
                live.give_up();
                polled = answer.as_mut().poll(&mut quiet);
            }
            match polled {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(answer)) => Poll::Ready(Ok(answer)),
                Poll::Ready(Err(mut error)) => Poll::Ready(Err(match flow.take_failure() {
                    Some(refusal) => Failed::Refused(refusal),
                    None => match error.take_message() {
                        Some(request) => Failed::Unsent(Box::new(request)),
                        None => {
                            let error = error.into_error();
                            tracing::debug!(%error, "the server did not answer");
                            Failed::Lost {
                                answered: read > before,
                            }
                        }
                    },
                })),
            }
        })
        .await
    }

    /// Lets hyper go on with it; ready when nothing more can come.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, flow: &Flow) -> Poll<()> {
        let Some(live) = &mut self.live else {
            return Poll::Ready(());
        };
        let polled = live.poll(cx);
        flow.moved(live.meter.read.load(Relaxed) + live.meter.written.load(Relaxed));
        polled
    }

    /// The answer was read to its end.
    pub(crate) fn end(&mut self) {
        if let Some(live) = self.live.take() {
            self.pool.keep(live);
        }
    }

    /// Whether the server has agreed to go on with another protocol on this connection: then the connection, and what
    /// was read beyond the answer's head.
    pub(crate) fn upgraded(&mut self) -> Option<(Stream, Bytes)> {
        let mut live = self.live.take()?;
        live.poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
            .then(|| live.into_parts())?
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // The connection first: whoever waits for the slot may open another.
        self.live = None;
        self.pool.slots.add_permits(1);
    }
}
