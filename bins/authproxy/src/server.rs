//! The listeners, the threads, and the end of both.
//!
//! Owns who accepts, how many connections there are, and the order of the end. What happens on a connection is `conn`'s.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use hostkit::listen::{bind_tcp, cannot_listen};
use hostkit::runtime::raise_open_files;
use hostkit::{Exit, Failure};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::connection;
use crate::lifecycle::LifecyclePhase;
use crate::proxy::{Proxy, WorkerThread};

/// How long nothing is accepted after accepting failed, most likely for want of file descriptors, and how long a
/// connection waits for a place before one more of those that linger is closed.
const PAUSE: Duration = Duration::from_millis(100);

/// The bound addresses.
#[derive(Debug)]
pub struct ListenSockets(Vec<StdListener>);

impl ListenSockets {
    /// Binds and listens.
    ///
    /// # Errors
    /// An address is taken, or may not be bound (exit 73).
    pub fn bind(addresses: &[SocketAddr]) -> Result<Self, Failure> {
        let bound = addresses.iter().map(|address| {
            // `[::]` takes IPv4 too, but where that is asked for by name.
            let has_v4 = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port();
            bind_tcp(*address, addresses.iter().any(has_v4))
                .map_err(|error| cannot_listen(address, "--port or --listen", error))
        });
        bound.collect::<Result<_, _>>().map(Self)
    }

    /// Where it listens, with the port that the kernel has chosen where 0 was asked for.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0
            .iter()
            .filter_map(|socket| socket.local_addr().ok())
            .collect()
    }
}

/// Every connection takes one: when all are free, no connection is left.
struct ConnectionLimit {
    free: Arc<Semaphore>,
    all: u32,
}

/// What a thread needs to accept: the free places, and what it lets go of when the queue is empty.
type AcceptorHandle = (Arc<Semaphore>, mpsc::Sender<()>);

/// Serves until the lifecycle has come to its end: at once when everything under way is finished, and after
/// `drain_timeout` in any case.
///
/// # Errors
/// A thread cannot be started.
pub async fn serve(
    sockets: ListenSockets,
    proxy: Arc<Proxy>,
    drain_timeout: Duration,
) -> Result<(), Failure> {
    // Two for every request, as far as the hard limit allows.
    raise_open_files(u64::MAX);
    let threads = proxy.settings.threads.max(1);
    let all = u32::try_from(proxy.settings.connections)
        .unwrap_or(u32::MAX)
        .min(Semaphore::MAX_PERMITS.try_into().unwrap_or(u32::MAX));
    let places = ConnectionLimit {
        free: Arc::new(Semaphore::new(all as usize)),
        all,
    };
    let (ended, _) = watch::channel(false);
    // Closed when the last thread has emptied the queue.
    let (accepting, mut accepted) = mpsc::channel(1);
    let mut others = Vec::new();
    for number in 1..threads {
        others.push(start_thread(
            number,
            &sockets,
            &proxy,
            (Arc::clone(&places.free), accepting.clone()),
            ended.subscribe(),
        )?);
    }
    let lifecycle = proxy.lifecycle.clone();
    let (lame_duck, here) = (proxy.settings.lame_duck, WorkerThread::new(proxy));
    let share = (Arc::clone(&places.free), accepting);
    let here = tokio::spawn(accept(listeners(&sockets)?, here, share));
    // What is left of the listeners are the threads' shares, which close them.
    drop(sockets);

    lifecycle.wait_for(LifecyclePhase::LameDuck).await;
    tracing::info!(
        lame_duck = lame_duck.as_secs_f64(),
        "told to stop: still accepting"
    );
    sleep(lame_duck).await;
    lifecycle.advance(LifecyclePhase::Draining);
    let finished = async {
        // In this order, because permits are given out in the order in which they were asked for.
        let _ = accepted.recv().await;
        let _ = places.free.acquire_many(places.all).await;
    };
    if timeout(drain_timeout, finished).await.is_err() {
        let left = (places.all as usize).saturating_sub(places.free.available_permits());
        tracing::warn!(
            connections = left,
            "ending, although not all is done: --drain-timeout is over"
        );
        lifecycle.advance(LifecyclePhase::Aborting);
    }
    here.abort();
    ended.send_replace(true);
    for thread in others {
        // What it had to say was printed there.
        let _ = thread.join();
    }
    Ok(())
}

/// Starts a thread that accepts and serves as this one does.
fn start_thread(
    number: usize,
    sockets: &ListenSockets,
    proxy: &Arc<Proxy>,
    share: AcceptorHandle,
    mut ended: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, Failure> {
    let failed =
        |error: io::Error| Failure::new(Exit::FAILED, "cannot start a thread").because(error);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = hostkit::runtime::build(builder.enable_all())?;
    let guard = runtime.enter();
    let listeners = listeners(sockets)?;
    drop(guard);
    let accepting = accept(listeners, WorkerThread::new(Arc::clone(proxy)), share);
    std::thread::Builder::new()
        .name(format!("serve-{number}"))
        .spawn(move || {
            runtime.block_on(async {
                tokio::spawn(accepting);
                let _ = ended.wait_for(|ended| *ended).await;
            });
            runtime.shutdown_background();
        })
        .map_err(failed)
}

/// This thread's share of the listeners. All threads wait on the same sockets: none of them has a queue of its own that
/// would be lost with it.
fn listeners(sockets: &ListenSockets) -> Result<Vec<TcpListener>, Failure> {
    let shared = sockets.0.iter().map(|socket| {
        let clone = socket.try_clone()?;
        TcpListener::from_std(clone)
    });
    shared
        .collect::<io::Result<_>>()
        .map_err(|error| Failure::new(Exit::FAILED, "cannot share a listener").because(error))
}

/// Accepts until draining begins, and then what is queued. A connection that is accepted waits here for its place.
async fn accept(
    listeners: Vec<TcpListener>,
    thread: Arc<WorkerThread>,
    (free, _accepting): AcceptorHandle,
) {
    let lifecycle = thread.proxy.lifecycle.clone();
    let mut draining = pin!(lifecycle.wait_for(LifecyclePhase::Draining));
    let mut fails = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut draining => break,
            accepted = accept_any(&listeners) => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                fails = false;
                spawn(stream, peer, &thread, acquire_permit(&free, &thread).await);
            }
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                // Once for each time it happens, not for each attempt.
                if !std::mem::replace(&mut fails, true) {
                    tracing::warn!(%error, "cannot accept connections: trying again until it works");
                }
                sleep(PAUSE).await;
            }
        }
    }
    for listener in listeners {
        let Ok(listener) = listener.into_std() else {
            continue;
        };
        loop {
            match listener.accept() {
                Ok((stream, peer)) => {
                    let place = acquire_permit(&free, &thread).await;
                    if stream.set_nonblocking(true).is_ok()
                        && let Ok(stream) = TcpStream::from_std(stream)
                    {
                        spawn(stream, peer, &thread, place);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_connection_error(&error) => {}
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

async fn accept_any(listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|cx| {
        for listener in listeners {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await
}

/// Waits for a place for a connection that is there. As long as there is none, the connections that only linger give up
/// theirs, the oldest first.
async fn acquire_permit(
    free: &Arc<Semaphore>,
    thread: &WorkerThread,
) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = Arc::clone(free).try_acquire_owned() {
        return Some(place);
    }
    loop {
        thread.proxy.lingering.evict_oldest();
        if let Ok(place) = timeout(PAUSE, Arc::clone(free).acquire_owned()).await {
            // The semaphore is never closed.
            return place.ok();
        }
    }
}

fn spawn(
    stream: TcpStream,
    peer: SocketAddr,
    thread: &Arc<WorkerThread>,
    place: Option<OwnedSemaphorePermit>,
) {
    let metrics = &thread.proxy.telemetry.metrics;
    metrics.accepted_connections.add(1);
    metrics.client_connections.add(1);
    let open = ConnectionGuard {
        thread: Arc::clone(thread),
        _place: place,
    };
    tokio::spawn(async move { connection::serve(stream, peer, &open.thread).await });
}

/// A connection that counts.
struct ConnectionGuard {
    thread: Arc<WorkerThread>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.thread
            .proxy
            .telemetry
            .metrics
            .client_connections
            .add(-1);
    }
}

/// Whether an error of accept(2) is about the connection that would have been accepted, and not about accepting.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
