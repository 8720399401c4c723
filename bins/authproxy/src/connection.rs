//! One client connection, from accept to close.
//!
//! Owns its task: when hyper serves it and when it is parked without, its timeouts, and how it ends.

mod client_stream;
mod linger;

use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hyper::Request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use socket2::SockRef;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::deadline::{ActiveParty, ConnectionActivity, DeadlineClock, DeadlineVerdict};
use crate::headers;
use crate::lifecycle::LifecyclePhase;
use crate::local_response;
use crate::proxy::{self, WorkerThread};
use crate::record::RequestRecord;
use crate::request_error::{RequestError, TruncationReason, UpstreamFailure};
use crate::request_validation::{ReadPhase, RequestValidator, ValidatorHandle};
use crate::settings::SiteSettings;
use crate::tunnel::Tunnel;
pub(crate) use client_stream::ClientStream;
use linger::{LINGER_IDLE, has_unread, linger};

/// The most bytes that wait for a slow client, in the process and again in the kernel.
const WRITE_BUFFER: usize = 64 << 10;
/// For connections that are accepted while draining: they were queued, so their first request is in transit.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);
/// The most bytes of partial heads of all connections together.
pub(crate) const MAX_PARTIAL_HEADS: usize = 4 << 20;

/// The state of a connection while hyper serves it.
pub(crate) struct ClientConnection {
    pub(crate) thread: Arc<WorkerThread>,
    pub(crate) peer: headers::PeerAddress,
    pub(crate) activity: Arc<ConnectionActivity>,
    pub(crate) validation: ValidatorHandle,
    /// The record of the last request, until its response is written to the socket.
    finished: Mutex<Option<Box<RequestRecord>>>,
    tunnel: Mutex<Option<Tunnel>>,
    lingers: AtomicBool,
    resets: AtomicBool,
    /// Set if the connection is aborted within a response.
    abort_reason: OnceLock<TruncationReason>,
}

impl ClientConnection {
    pub(crate) fn phase(&self) -> LifecyclePhase {
        self.thread.proxy.lifecycle.phase()
    }

    /// Ends the connection after the response, while the client may still send.
    pub(crate) fn linger(&self) {
        self.lingers.store(true, Relaxed);
    }

    pub(crate) fn lingers(&self) -> bool {
        self.lingers.load(Relaxed)
    }

    /// Ends the connection with a reset, to mark a response as truncated.
    pub(crate) fn reset(&self) {
        self.resets.store(true, Relaxed);
    }

    pub(crate) fn abort_reason(&self) -> Option<TruncationReason> {
        self.abort_reason.get().copied()
    }

    /// Turns the connection into a tunnel after the response.
    pub(crate) fn begin_tunnel(&self, tunnel: Tunnel) {
        self.validation.begin_tunnel();
        self.activity.begin_tunnel();
        *lock(&self.tunnel) = Some(tunnel);
    }

    /// Keeps the record of a request whose response only has to be written.
    pub(crate) fn finish(&self, record: Box<RequestRecord>) {
        self.activity.set_active_party(ActiveParty::None);
        *lock(&self.finished) = Some(record);
    }

    /// Ends the record of a request whose response is written.
    fn end_written_record(&self) {
        if !self.activity.is_write_blocked() {
            *lock(&self.finished) = None;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves a connection until it ends.
///
/// It starts parked and is parked again when it is idle: a parked connection is only a socket. hyper, which needs
/// fifteen kilobytes, gets it once a whole head has arrived.
pub(crate) async fn serve(mut stream: TcpStream, peer: SocketAddr, thread: &Arc<WorkerThread>) {
    // A response is one write, and must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    // Bounds what waits for a slow reader, and makes its progress visible: otherwise the kernel grows its buffer to
    // megabytes, and reports the socket as writable only when a third of it was sent.
    let _ = SockRef::from(&stream).set_tcp_notsent_lowat(WRITE_BUFFER as u32);
    // tokio assumes that a new connection is readable until a read finds it empty. Without this a silent connection
    // would get a session at once.
    let _ = stream.try_io(Interest::READABLE, || {
        Err::<(), _>(io::ErrorKind::WouldBlock.into())
    });
    let mut is_new = true;
    while wait_for_bytes(&stream, is_new, thread).await {
        is_new = false;
        // In a box, so that a parked connection does not hold its memory.
        match Box::pin(serve_active(stream, peer, thread)).await {
            ConnectionOutcome::Park(idle) => stream = idle,
            ConnectionOutcome::Linger(stream) => return linger(stream, thread).await,
            ConnectionOutcome::Close => return,
        }
    }
}

/// How serving a connection ended.
enum ConnectionOutcome {
    /// The connection is idle.
    Park(TcpStream),
    /// The client got its response, and may still send.
    Linger(TcpStream),
    Close,
}

/// Waits for bytes; returns false at the idle timeout, or when a drain ends the connection.
async fn wait_for_bytes(stream: &TcpStream, is_new: bool, thread: &WorkerThread) -> bool {
    let idle = thread.site().timeouts.idle;
    let draining = thread.proxy.lifecycle.wait_for(LifecyclePhase::Draining);
    tokio::select! {
        biased;
        readable = stream.readable() => return readable.is_ok(),
        () = draining => {}
        () = sleep(idle) => return false,
    }
    // Bytes that have already arrived are served.
    let first_byte_timeout = if is_new {
        FIRST_BYTE_TIMEOUT
    } else {
        Duration::ZERO
    };
    has_unread(stream)
        || matches!(
            timeout(first_byte_timeout, stream.readable()).await,
            Ok(Ok(()))
        )
}

/// Serves a connection from the first byte of a request until it is idle.
async fn serve_active(
    stream: TcpStream,
    peer: SocketAddr,
    thread: &Arc<WorkerThread>,
) -> ConnectionOutcome {
    let site = thread.site();
    let activity = Arc::new(ConnectionActivity::default());
    let stream = ClientStream {
        stream,
        activity: Arc::clone(&activity),
    };
    let (mut validator, handle) = RequestValidator::new(stream, site.limits.head);
    let client = Arc::new(ClientConnection {
        thread: Arc::clone(thread),
        peer: headers::PeerAddress::new(peer, &site),
        activity,
        validation: handle,
        finished: Mutex::default(),
        tunnel: Mutex::default(),
        lingers: AtomicBool::new(false),
        resets: AtomicBool::new(false),
        abort_reason: OnceLock::new(),
    });
    loop {
        match read_head(&mut validator, thread, site.timeouts.client).await {
            HeadArrival::Complete => {}
            HeadArrival::Idle => return ConnectionOutcome::Park(validator.into_inner().0.stream),
            HeadArrival::Closed => return ConnectionOutcome::Close,
            HeadArrival::TooLate => {
                let mut stream = validator.into_inner().0.stream;
                return match send_error(&mut stream, RequestError::RequestTimeout, &client).await {
                    Ok(()) => ConnectionOutcome::Linger(stream),
                    Err(_) => ConnectionOutcome::Close,
                };
            }
        }
        // In a box, so that a connection that waits for a head does not hold its memory.
        match Box::pin(run_session(validator, &client, &site)).await {
            ControlFlow::Continue(waiting) => validator = waiting,
            ControlFlow::Break(next) => return next,
        }
    }
}

/// The result of waiting for a head.
enum HeadArrival {
    /// A whole head, or enough of one to see that it is invalid.
    Complete,
    /// No byte: the connection is idle.
    Idle,
    /// The end of the connection.
    Closed,
    /// A part of a head, at the timeout or when its memory was evicted.
    TooLate,
}

/// Waits for a head. A partial head is kept in the queue that bounds those of all connections.
async fn read_head(
    validator: &mut RequestValidator<ClientStream>,
    thread: &WorkerThread,
    client_timeout: Duration,
) -> HeadArrival {
    let arrival = |polled| match polled {
        Ok(true) => HeadArrival::Complete,
        Ok(false) | Err(_) => HeadArrival::Closed,
    };
    let mut partial_head = validator.take_partial_head();
    if let Poll::Ready(polled) =
        poll_fn(|cx| Poll::Ready(validator.poll_head(cx, &mut partial_head))).await
    {
        return arrival(polled);
    }
    if partial_head.is_empty() && validator.is_between_requests() {
        return HeadArrival::Idle;
    }
    let mut place = thread.proxy.partial_heads.enter(BytesMut::new());
    let weight = partial_head.capacity();
    place.swap(&mut partial_head, weight);
    let rest = poll_fn(|cx| {
        if place.poll_evicted(cx).is_ready() || !place.swap(&mut partial_head, 0) {
            return Poll::Ready(HeadArrival::TooLate);
        }
        let polled = validator.poll_head(cx, &mut partial_head);
        let weight = partial_head.capacity();
        place.swap(&mut partial_head, weight);
        polled.map(arrival)
    });
    timeout(client_timeout, rest)
        .await
        .unwrap_or(HeadArrival::TooLate)
}

/// Why a hyper session ended.
enum SessionEnd {
    /// hyper closed the connection.
    Closed,
    /// The connection is idle.
    Park,
    /// A part of the next head has arrived.
    PartialHead,
    /// A timeout within a response.
    Abort,
}

/// Serves a connection with hyper until it is idle, has a part of the next head, or ends.
async fn run_session(
    validator: RequestValidator<ClientStream>,
    client: &Arc<ClientConnection>,
    site: &SiteSettings,
) -> ControlFlow<ConnectionOutcome, RequestValidator<ClientStream>> {
    let thread = &client.thread;
    let served = Arc::clone(client);
    let service = service_fn(move |request| {
        // Before the future runs: by then it may be that of the next request.
        let head_error = served.validation.take_head_error();
        proxy::handle(Arc::clone(&served), head_error, request)
    });
    let mut connection = http1::Builder::new()
        .max_buf_size(WRITE_BUFFER)
        .writev(false)
        .serve_connection(validator, service);

    let mut clock = DeadlineClock::new(site.timeouts, site.limits, Instant::now());
    let mut timer = pin!(sleep(clock.period()));
    let mut draining = pin!(thread.proxy.lifecycle.wait_for(LifecyclePhase::Draining));
    let (mut is_registered, mut is_draining, mut timer_pending) = (false, false, false);
    let end = poll_fn(|cx| {
        loop {
            if Pin::new(&mut connection).poll(cx).is_ready() {
                return Poll::Ready(SessionEnd::Closed);
            }
            client.end_written_record();
            if !client.activity.is_busy()
                && !client.activity.is_write_blocked()
                && client.validation.read_phase() == ReadPhase::Head
            {
                return Poll::Ready(SessionEnd::PartialHead);
            }
            // Polled once to register the task; after that the phase is cheaper to check.
            if !is_draining && (!is_registered || client.phase() >= LifecyclePhase::Draining) {
                is_registered = true;
                is_draining = draining.as_mut().poll(cx).is_ready();
            }
            if is_draining && is_idle(client) {
                return Poll::Ready(SessionEnd::Park);
            }
            // The same: another poll of the timer costs more than this check.
            if timer_pending && !timer.is_elapsed() {
                return Poll::Pending;
            }
            timer_pending = timer.as_mut().poll(cx).is_pending();
            if timer_pending {
                return Poll::Pending;
            }
            let now = Instant::now();
            timer.as_mut().reset((now + clock.period()).into());
            let (read_phase, client_bytes) = (
                client.validation.read_phase(),
                client.validation.transferred(),
            );
            match clock.tick(now, client.activity.snapshot(read_phase, client_bytes)) {
                DeadlineVerdict::Continue => {}
                DeadlineVerdict::Park => return Poll::Ready(SessionEnd::Park),
                // The request's own future sends the error response.
                DeadlineVerdict::RequestBodyTimeout if client.activity.awaits_response() => {
                    client.activity.fail(RequestError::RequestTimeout)
                }
                DeadlineVerdict::UpstreamTimeout if client.activity.awaits_response() => {
                    let failure = UpstreamFailure::ResponseTimeout;
                    client.activity.fail(RequestError::Upstream(failure));
                }
                DeadlineVerdict::UpstreamTimeout => {
                    let _ = client.abort_reason.set(TruncationReason::UpstreamTimeout);
                    return Poll::Ready(SessionEnd::Abort);
                }
                DeadlineVerdict::RequestBodyTimeout | DeadlineVerdict::ClientReadTimeout => {
                    let _ = client.abort_reason.set(TruncationReason::ClientTimeout);
                    return Poll::Ready(SessionEnd::Abort);
                }
            }
        }
    })
    .await;

    let tunnel = lock(&client.tunnel).take();
    let parts = connection.into_parts();
    let validator = parts.io;
    if let Some(tunnel) = tunnel {
        client.end_written_record();
        let timeout = site.timeouts.client;
        if let Err(error) = tunnel.run(validator, parts.read_buf, timeout).await {
            tracing::debug!(%error, peer = %client.peer.ip, "tunnel failed");
        }
        return ControlFlow::Break(ConnectionOutcome::Close);
    }
    let between_requests = validator.is_between_requests();
    let socket = |validator: RequestValidator<ClientStream>| validator.into_inner().0.stream;
    ControlFlow::Break(match end {
        SessionEnd::PartialHead => return ControlFlow::Continue(validator),
        SessionEnd::Park => ConnectionOutcome::Park(socket(validator)),
        SessionEnd::Closed if client.resets.load(Relaxed) => reset(&socket(validator)),
        SessionEnd::Closed
            if client.lingers() || !between_requests || has_unread(&validator.get_ref().stream) =>
        {
            ConnectionOutcome::Linger(socket(validator))
        }
        SessionEnd::Closed => ConnectionOutcome::Close,
        // Otherwise the kernel would keep unsent bytes for minutes.
        SessionEnd::Abort => reset(&socket(validator)),
    })
}

fn reset(stream: &TcpStream) -> ConnectionOutcome {
    let _ = stream.set_zero_linger();
    ConnectionOutcome::Close
}

/// Whether there is no request in progress, and no byte of a next one.
fn is_idle(client: &ClientConnection) -> bool {
    !client.activity.is_busy()
        && !client.activity.is_write_blocked()
        && client.validation.read_phase() == ReadPhase::Idle
}

/// Sends an error response without hyper. It is counted and logged as `GET /`, as an invalid request is.
async fn send_error(
    stream: &mut TcpStream,
    error: RequestError,
    client: &ClientConnection,
) -> io::Result<()> {
    let site = client.thread.site();
    let (parts, ()) = Request::new(()).into_parts();
    let id = headers::request_id(&parts.headers, &client.peer);
    let telemetry = &client.thread.proxy.telemetry;
    let mut record = RequestRecord::begin(telemetry, &site, &parts, &client.peer, id.clone());
    let denied = error.into();
    record.deny(&denied);
    let response = local_response::error_response(&denied, &site, &id);
    let mut bytes = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(response.body());
    timeout(LINGER_IDLE, stream.write_all(&bytes)).await?
}
