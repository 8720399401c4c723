//! One client connection, from accept to close.
//!
//! Owns its task: when hyper serves it and when it rests without, its deadlines, and how it ends. What a request means
//! is `proxy`'s, which bytes are HTTP `gate`'s.

mod linger;
mod plain;

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

use crate::answer;
use crate::deadline::{Clock, Flow, Turn, Verdict};
use crate::gate::{Gate, Reading, Watch};
use crate::headers;
use crate::lifecycle::Phase;
use crate::proxy::{self, Thread};
use crate::record::Record;
use crate::refusal::{Refusal, Truncation, UpstreamFailure};
use crate::settings::Site;
use crate::tunnel::Tunnel;
use linger::{LINGER_IDLE, has_unread, linger};
pub(crate) use plain::Plain;

/// How much of what a client cannot take is kept for it, in the process and again in the kernel.
const BUFFER: usize = 64 << 10;
/// How long a connection that was accepted while draining may take to send its first byte: it was queued, so its
/// request is on its way.
const FIRST: Duration = Duration::from_secs(1);
/// How much may be kept of heads that are not whole, of all connections together.
pub(crate) const UNFINISHED_HEADS: usize = 4 << 20;

/// What is known of a client while hyper serves its connection.
pub(crate) struct Client {
    pub(crate) thread: Arc<Thread>,
    pub(crate) who: headers::Client,
    pub(crate) flow: Arc<Flow>,
    pub(crate) watch: Watch,
    /// The last request, until its answer is with the kernel.
    finished: Mutex<Option<Box<Record>>>,
    tunnel: Mutex<Option<Tunnel>>,
    lingers: AtomicBool,
    resets: AtomicBool,
    /// Why the connection was aborted within a response.
    aborted: OnceLock<Truncation>,
}

impl Client {
    pub(crate) fn phase(&self) -> Phase {
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
    pub(crate) fn aborted(&self) -> Option<Truncation> {
        self.aborted.get().copied()
    }

    /// The connection becomes a tunnel after the answer.
    pub(crate) fn open(&self, tunnel: Tunnel) {
        self.watch.open();
        self.flow.open();
        *lock(&self.tunnel) = Some(tunnel);
    }

    /// Nothing more happens to a request but that its answer is written.
    pub(crate) fn finish(&self, record: Box<Record>) {
        self.flow.turn(Turn::Nobody);
        *lock(&self.finished) = Some(record);
    }

    /// Ends the record of a request whose answer is with the kernel.
    fn written(&self) {
        if !self.flow.is_blocked() {
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
pub(crate) async fn serve(mut stream: TcpStream, peer: SocketAddr, thread: &Arc<Thread>) {
    // An answer is one write, and must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    // What a slow reader does not take stays where it is bounded, and how much it takes shows: without this the kernel
    // grows its buffer to megabytes, and reports nothing until a third of it has gone.
    let _ = SockRef::from(&stream).set_tcp_notsent_lowat(BUFFER as u32);
    // The runtime takes a new connection for readable until a read says otherwise. A connection that sends nothing would
    // get a session at once; of one that has sent something the next poll tells.
    let _ = stream.try_io(Interest::READABLE, || {
        Err::<(), _>(io::ErrorKind::WouldBlock.into())
    });
    let mut new = true;
    while parked(&stream, new, thread).await {
        new = false;
        // In a box, so that a parked connection does not hold the room for it.
        match Box::pin(active(stream, peer, thread)).await {
            Next::Park(idle) => stream = idle,
            Next::Linger(stream) => return linger(stream, thread).await,
            Next::Close => return,
        }
    }
}

/// What becomes of a connection that is not served any more.
enum Next {
    /// It is idle.
    Park(TcpStream),
    /// The client was answered, and may still send.
    Linger(TcpStream),
    /// It is over.
    Close,
}

/// Waits for bytes. Whether there are some; else the connection has been idle for too long, or has to go.
async fn parked(stream: &TcpStream, new: bool, thread: &Thread) -> bool {
    let idle = thread.site().timeouts.idle;
    let draining = thread.proxy.lifecycle.reached(Phase::Draining);
    tokio::select! {
        biased;
        readable = stream.readable() => return readable.is_ok(),
        () = draining => {}
        () = sleep(idle) => return false,
    }
    // What has arrived already is served.
    let patience = if new { FIRST } else { Duration::ZERO };
    has_unread(stream) || matches!(timeout(patience, stream.readable()).await, Ok(Ok(())))
}

/// Serves a connection from the first byte of a request on.
async fn active(stream: TcpStream, peer: SocketAddr, thread: &Arc<Thread>) -> Next {
    let site = thread.site();
    let flow = Arc::new(Flow::default());
    let plain = Plain {
        stream,
        flow: Arc::clone(&flow),
    };
    let (mut gate, watch) = Gate::new(plain, site.limits.head);
    let client = Arc::new(Client {
        thread: Arc::clone(thread),
        who: headers::Client::new(peer, &site),
        flow,
        watch,
        finished: Mutex::default(),
        tunnel: Mutex::default(),
        lingers: AtomicBool::new(false),
        resets: AtomicBool::new(false),
        aborted: OnceLock::new(),
    });
    loop {
        match head(&mut gate, thread, site.timeouts.client).await {
            Arrived::Head => {}
            Arrived::Nothing => return Next::Park(gate.into_inner().0.stream),
            Arrived::End => return Next::Close,
            Arrived::Late => {
                let mut stream = gate.into_inner().0.stream;
                return match say(&mut stream, Refusal::SlowRequest, &client).await {
                    Ok(()) => Next::Linger(stream),
                    Err(_) => Next::Close,
                };
            }
        }
        // In a box, so that a connection that waits for a head does not hold the room for it.
        match Box::pin(session(gate, &client, &site)).await {
            ControlFlow::Continue(waiting) => gate = waiting,
            ControlFlow::Break(next) => return next,
        }
    }
}

/// What came when a head was waited for.
enum Arrived {
    /// All of it, or as much as shows that it is wrong.
    Head,
    /// Not a byte of it.
    Nothing,
    /// The end of the connection.
    End,
    /// Less of it than in time, or than there is memory for.
    Late,
}

/// Waits for a head. While a part of it is here, that is kept where the heads of all connections are bounded.
async fn head(gate: &mut Gate<Plain>, thread: &Thread, patience: Duration) -> Arrived {
    let arrived = |whole| match whole {
        Ok(true) => Arrived::Head,
        Ok(false) | Err(_) => Arrived::End,
    };
    let mut part = gate.take_unfinished();
    if let Poll::Ready(whole) = poll_fn(|cx| Poll::Ready(gate.poll_head(cx, &mut part))).await {
        return arrived(whole);
    }
    if part.is_empty() && gate.is_between_requests() {
        return Arrived::Nothing;
    }
    let mut place = thread.proxy.unfinished_heads.enter(BytesMut::new());
    let weight = part.capacity();
    place.swap(&mut part, weight);
    let rest = poll_fn(|cx| {
        if place.poll_evicted(cx).is_ready() || !place.swap(&mut part, 0) {
            return Poll::Ready(Arrived::Late);
        }
        let polled = gate.poll_head(cx, &mut part);
        let weight = part.capacity();
        place.swap(&mut part, weight);
        polled.map(arrived)
    });
    timeout(patience, rest).await.unwrap_or(Arrived::Late)
}

/// Why hyper does not serve a connection any more.
enum End {
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
async fn session(
    gate: Gate<Plain>,
    client: &Arc<Client>,
    site: &Site,
) -> ControlFlow<Next, Gate<Plain>> {
    let thread = &client.thread;
    let served = Arc::clone(client);
    let service = service_fn(move |request| {
        // At once: later it may be the next request's.
        let fault = served.watch.take_fault();
        proxy::handle(Arc::clone(&served), fault, request)
    });
    let mut connection = http1::Builder::new()
        .max_buf_size(BUFFER)
        .writev(false)
        .serve_connection(gate, service);

    let mut clock = Clock::new(site.timeouts, site.limits, Instant::now());
    let mut timer = pin!(sleep(clock.period()));
    let mut draining = pin!(thread.proxy.lifecycle.reached(Phase::Draining));
    let (mut waits, mut drains, mut timed) = (false, false, false);
    let end = poll_fn(|cx| {
        loop {
            if Pin::new(&mut connection).poll(cx).is_ready() {
                return Poll::Ready(End::Closed);
            }
            client.written();
            if !client.flow.is_busy()
                && !client.flow.is_blocked()
                && client.watch.reading() == Reading::Head
            {
                return Poll::Ready(End::Head);
            }
            // It wakes this task once; until then looking at the phase is all there is to do.
            if !drains && (!waits || client.phase() >= Phase::Draining) {
                waits = true;
                drains = draining.as_mut().poll(cx).is_ready();
            }
            if drains && is_idle(client) {
                return Poll::Ready(End::Park);
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
            let (reading, moved) = (client.watch.reading(), client.watch.progress());
            match clock.tick(now, client.flow.seen(reading, moved)) {
                Verdict::Wait => {}
                Verdict::Park => return Poll::Ready(End::Park),
                // The request's own future answers.
                Verdict::Body if client.flow.is_waiting() => client.flow.fail(Refusal::SlowRequest),
                Verdict::Server if client.flow.is_waiting() => {
                    let failure = UpstreamFailure::ResponseTimeout;
                    client.flow.fail(Refusal::Upstream(failure));
                }
                Verdict::Server => {
                    let _ = client.aborted.set(Truncation::UpstreamTimeout);
                    return Poll::Ready(End::Abort);
                }
                Verdict::Body | Verdict::Reader => {
                    let _ = client.aborted.set(Truncation::ClientTimeout);
                    return Poll::Ready(End::Abort);
                }
            }
        }
    })
    .await;

    let tunnel = lock(&client.tunnel).take();
    let parts = connection.into_parts();
    let gate = parts.io;
    if let Some(tunnel) = tunnel {
        client.written();
        let patience = site.timeouts.client;
        if let Err(error) = tunnel.run(gate, parts.read_buf, patience).await {
            tracing::debug!(%error, peer = %client.who.peer, "a tunnel ended");
        }
        return ControlFlow::Break(Next::Close);
    }
    let between_requests = gate.is_between_requests();
    let socket = |gate: Gate<Plain>| gate.into_inner().0.stream;
    ControlFlow::Break(match end {
        End::Head => return ControlFlow::Continue(gate),
        End::Park => Next::Park(socket(gate)),
        End::Closed if client.resets.load(Relaxed) => reset(&socket(gate)),
        End::Closed
            if client.lingers() || !between_requests || has_unread(&gate.get_ref().stream) =>
        {
            Next::Linger(socket(gate))
        }
        End::Closed => Next::Close,
        // What the kernel still holds for the client would stay there for minutes.
        End::Abort => reset(&socket(gate)),
    })
}

/// The connection ends with a reset.
fn reset(stream: &TcpStream) -> Next {
    let _ = stream.set_zero_linger();
    Next::Close
}

/// Whether nothing is under way, and nothing of a next request is here.
fn is_idle(client: &Client) -> bool {
    !client.flow.is_busy() && !client.flow.is_blocked() && client.watch.reading() == Reading::Idle
}

/// Answers a request that hyper has not seen. It is counted and logged as `GET /`, as one that the gate refuses is.
async fn say(stream: &mut TcpStream, refusal: Refusal, client: &Client) -> io::Result<()> {
    let site = client.thread.site();
    let (parts, ()) = Request::new(()).into_parts();
    let id = headers::request_id(&parts.headers, &client.who);
    let telemetry = &client.thread.proxy.telemetry;
    let mut record = Record::begin(telemetry, &site, &parts, &client.who, id.clone());
    let refused = refusal.into();
    record.refuse(&refused);
    let answer = answer::refuse(&refused, &site, &id);
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
