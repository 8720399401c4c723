//! One client connection, from accept to close.
//!
//! Owns its task: when hyper serves it and when it rests without, its deadlines, and how it ends. What a request means
//! is `proxy`'s, which bytes are HTTP `validator`'s.

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
use crate::record::Record;
use crate::request_error::{RequestError, TruncationReason, UpstreamFailure};
use crate::request_validation::{ReadPhase, RequestValidator, ValidatorHandle};
use crate::settings::SiteSettings;
use crate::tunnel::Tunnel;
pub(crate) use client_stream::ClientStream;
use linger::{LINGER_IDLE, has_unread, linger};

/// How much of what a client cannot take is kept for it, in the process and again in the kernel.
const WRITE_BUFFER: usize = 64 << 10;
/// How long a connection that was accepted while draining may take to send its first byte: it was queued, so its
/// request is on its way.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);
/// How much may be kept of heads that are not whole, of all connections together.
pub(crate) const UNFINISHED_HEADS: usize = 4 << 20;

/// What is known of a client while hyper serves its connection.
pub(crate) struct ClientConnection {
    pub(crate) thread: Arc<WorkerThread>,
    pub(crate) peer: headers::PeerAddress,
    pub(crate) activity: Arc<ConnectionActivity>,
    pub(crate) validation: ValidatorHandle,
    /// The last request, until its answer is with the kernel.
    finished: Mutex<Option<Box<Record>>>,
    tunnel: Mutex<Option<Tunnel>>,
    lingers: AtomicBool,
    resets: AtomicBool,
    /// Why the connection was aborted within a response.
    aborted: OnceLock<TruncationReason>,
}

impl ClientConnection {
    pub(crate) fn phase(&self) -> LifecyclePhase {
        self.thread.proxy.lifecycle.phase()
    }

    /// The connection ends after the answer, and the client may still be sending.
    pub(crate) fn linger(&self) {
        self.lingers.store(true, Relaxed);
    }

    pub(crate) fn lingers(&self) -> bool {
        self.lingers.load(Relaxed)
    }

    /// The connection ends within an answer, and only a reset says so.
    pub(crate) fn reset(&self) {
        self.resets.store(true, Relaxed);
    }

    /// Why the connection was aborted within a response, if it was.
    pub(crate) fn aborted(&self) -> Option<TruncationReason> {
        self.aborted.get().copied()
    }

    /// The connection becomes a tunnel after the answer.
    pub(crate) fn open(&self, tunnel: Tunnel) {
        self.validation.begin_tunnel();
        self.activity.begin_tunnel();
        *lock(&self.tunnel) = Some(tunnel);
    }

    /// Nothing more happens to a request but that its answer is written.
    pub(crate) fn finish(&self, record: Box<Record>) {
        self.activity.set_active_party(ActiveParty::None);
        *lock(&self.finished) = Some(record);
    }

    /// Ends the record of a request whose answer is with the kernel.
    fn written(&self) {
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
/// It starts parked, and is parked whenever it was idle for a while: then there is only the socket. hyper, with its
/// fifteen kilobytes, comes when a whole head has.
pub(crate) async fn serve(mut stream: TcpStream, peer: SocketAddr, thread: &Arc<WorkerThread>) {
    // An answer is one write, and must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    // What a slow reader does not take stays where it is bounded, and how much it takes shows: without this the kernel
    // grows its buffer to megabytes, and reports nothing until a third of it has gone.
    let _ = SockRef::from(&stream).set_tcp_notsent_lowat(WRITE_BUFFER as u32);
    // The runtime takes a new connection for readable until a read says otherwise. A connection that sends nothing would
    // get a session at once; of one that has sent something the next poll tells.
    let _ = stream.try_io(Interest::READABLE, || {
        Err::<(), _>(io::ErrorKind::WouldBlock.into())
    });
    let mut new = true;
    while wait_for_bytes(&stream, new, thread).await {
        new = false;
        // In a box, so that a parked connection does not hold the room for it.
        match Box::pin(serve_active(stream, peer, thread)).await {
            ConnectionOutcome::Park(idle) => stream = idle,
            ConnectionOutcome::Linger(stream) => return linger(stream, thread).await,
            ConnectionOutcome::Close => return,
        }
    }
}

/// What becomes of a connection that is not served any more.
enum ConnectionOutcome {
    /// It is idle.
    Park(TcpStream),
    /// The client was answered, and may still send.
    Linger(TcpStream),
    /// It is over.
    Close,
}

/// Waits for bytes. Whether there are some; else the connection has been idle for too long, or has to go.
async fn wait_for_bytes(stream: &TcpStream, new: bool, thread: &WorkerThread) -> bool {
    let idle = thread.site().timeouts.idle;
    let draining = thread.proxy.lifecycle.wait_for(LifecyclePhase::Draining);
    tokio::select! {
        biased;
        readable = stream.readable() => return readable.is_ok(),
        () = draining => {}
        () = sleep(idle) => return false,
    }
    // What has arrived already is served.
    let patience = if new {
        FIRST_BYTE_TIMEOUT
    } else {
        Duration::ZERO
    };
    has_unread(stream) || matches!(timeout(patience, stream.readable()).await, Ok(Ok(())))
}

/// Serves a connection from the first byte of a request on.
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
        aborted: OnceLock::new(),
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
        // In a box, so that a connection that waits for a head does not hold the room for it.
        match Box::pin(run_session(validator, &client, &site)).await {
            ControlFlow::Continue(waiting) => validator = waiting,
            ControlFlow::Break(next) => return next,
        }
    }
}

/// What came when a head was waited for.
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

/// Waits for a head. While a part of it is here, that is kept where the heads of all connections are bounded.
async fn read_head(
    validator: &mut RequestValidator<ClientStream>,
    thread: &WorkerThread,
    patience: Duration,
) -> HeadArrival {
    let arrived = |whole| match whole {
        Ok(true) => HeadArrival::Complete,
        Ok(false) | Err(_) => HeadArrival::Closed,
    };
    let mut part = validator.take_partial_head();
    if let Poll::Ready(whole) = poll_fn(|cx| Poll::Ready(validator.poll_head(cx, &mut part))).await
    {
        return arrived(whole);
    }
    if part.is_empty() && validator.is_between_requests() {
        return HeadArrival::Idle;
    }
    let mut place = thread.proxy.unfinished_heads.enter(BytesMut::new());
    let weight = part.capacity();
    place.swap(&mut part, weight);
    let rest = poll_fn(|cx| {
        if place.poll_evicted(cx).is_ready() || !place.swap(&mut part, 0) {
            return Poll::Ready(HeadArrival::TooLate);
        }
        let polled = validator.poll_head(cx, &mut part);
        let weight = part.capacity();
        place.swap(&mut part, weight);
        polled.map(arrived)
    });
    timeout(patience, rest)
        .await
        .unwrap_or(HeadArrival::TooLate)
}

/// Why hyper does not serve a connection any more.
enum SessionEnd {
    /// hyper is done with it.
    Closed,
    /// It is idle.
    Park,
    /// A part of the next head is here.
    Head,
    /// The client or the server takes too long, in the middle of an answer.
    Abort,
}

/// Serves a connection with hyper: until it waits for a head that it has a part of, or is not to be served any more.
async fn run_session(
    validator: RequestValidator<ClientStream>,
    client: &Arc<ClientConnection>,
    site: &SiteSettings,
) -> ControlFlow<ConnectionOutcome, RequestValidator<ClientStream>> {
    let thread = &client.thread;
    let served = Arc::clone(client);
    let service = service_fn(move |request| {
        // At once: later it may be the next request's.
        let fault = served.validation.take_head_error();
        proxy::handle(Arc::clone(&served), fault, request)
    });
    let mut connection = http1::Builder::new()
        .max_buf_size(WRITE_BUFFER)
        .writev(false)
        .serve_connection(validator, service);

    let mut clock = DeadlineClock::new(site.timeouts, site.limits, Instant::now());
    let mut timer = pin!(sleep(clock.period()));
    let mut draining = pin!(thread.proxy.lifecycle.wait_for(LifecyclePhase::Draining));
    let (mut waits, mut drains, mut timed) = (false, false, false);
    let end = poll_fn(|cx| {
        loop {
            if Pin::new(&mut connection).poll(cx).is_ready() {
                return Poll::Ready(SessionEnd::Closed);
            }
            client.written();
            if !client.activity.is_busy()
                && !client.activity.is_write_blocked()
                && client.validation.read_phase() == ReadPhase::Head
            {
                return Poll::Ready(SessionEnd::Head);
            }
            // It wakes this task once; until then looking at the phase is all there is to do.
            if !drains && (!waits || client.phase() >= LifecyclePhase::Draining) {
                waits = true;
                drains = draining.as_mut().poll(cx).is_ready();
            }
            if drains && is_idle(client) {
                return Poll::Ready(SessionEnd::Park);
            }
            // The same: a poll that registers the task once more costs more than a look.
            if timed && !timer.is_elapsed() {
                return Poll::Pending;
            }
            timed = timer.as_mut().poll(cx).is_pending();
            if timed {
                return Poll::Pending;
            }
            let now = Instant::now();
            timer.as_mut().reset((now + clock.period()).into());
            let (reading, moved) = (
                client.validation.read_phase(),
                client.validation.transferred(),
            );
            match clock.tick(now, client.activity.snapshot(reading, moved)) {
                DeadlineVerdict::Continue => {}
                DeadlineVerdict::Park => return Poll::Ready(SessionEnd::Park),
                // The request's own future answers.
                DeadlineVerdict::RequestBodyTimeout if client.activity.awaits_response() => {
                    client.activity.fail(RequestError::RequestTimeout)
                }
                DeadlineVerdict::UpstreamTimeout if client.activity.awaits_response() => {
                    let failure = UpstreamFailure::ResponseTimeout;
                    client.activity.fail(RequestError::Upstream(failure));
                }
                DeadlineVerdict::UpstreamTimeout => {
                    let _ = client.aborted.set(TruncationReason::UpstreamTimeout);
                    return Poll::Ready(SessionEnd::Abort);
                }
                DeadlineVerdict::RequestBodyTimeout | DeadlineVerdict::ClientReadTimeout => {
                    let _ = client.aborted.set(TruncationReason::ClientTimeout);
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
        client.written();
        let patience = site.timeouts.client;
        if let Err(error) = tunnel.run(validator, parts.read_buf, patience).await {
            tracing::debug!(%error, peer = %client.peer.ip, "a tunnel ended");
        }
        return ControlFlow::Break(ConnectionOutcome::Close);
    }
    let between_requests = validator.is_between_requests();
    let socket = |validator: RequestValidator<ClientStream>| validator.into_inner().0.stream;
    ControlFlow::Break(match end {
        SessionEnd::Head => return ControlFlow::Continue(validator),
        SessionEnd::Park => ConnectionOutcome::Park(socket(validator)),
        SessionEnd::Closed if client.resets.load(Relaxed) => reset(&socket(validator)),
        SessionEnd::Closed
            if client.lingers() || !between_requests || has_unread(&validator.get_ref().stream) =>
        {
            ConnectionOutcome::Linger(socket(validator))
        }
        SessionEnd::Closed => ConnectionOutcome::Close,
        // What the kernel still holds for the client would stay there for minutes.
        SessionEnd::Abort => reset(&socket(validator)),
    })
}

/// The connection ends with a reset.
fn reset(stream: &TcpStream) -> ConnectionOutcome {
    let _ = stream.set_zero_linger();
    ConnectionOutcome::Close
}

/// Whether nothing is under way, and nothing of a next request is here.
fn is_idle(client: &ClientConnection) -> bool {
    !client.activity.is_busy()
        && !client.activity.is_write_blocked()
        && client.validation.read_phase() == ReadPhase::Idle
}

/// Answers a request that hyper has not seen. It is counted and logged as `GET /`, as one that the validator refuses is.
async fn send_error(
    stream: &mut TcpStream,
    refusal: RequestError,
    client: &ClientConnection,
) -> io::Result<()> {
    let site = client.thread.site();
    let (parts, ()) = Request::new(()).into_parts();
    let id = headers::request_id(&parts.headers, &client.peer);
    let telemetry = &client.thread.proxy.telemetry;
    let mut record = Record::begin(telemetry, &site, &parts, &client.peer, id.clone());
    let refused = refusal.into();
    record.refuse(&refused);
    let answer = local_response::error_response(&refused, &site, &id);
    let mut bytes = format!("HTTP/1.1 {}\r\n", answer.status()).into_bytes();
    for (name, value) in answer.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(answer.body());
    timeout(LINGER_IDLE, stream.write_all(&bytes)).await?
}
