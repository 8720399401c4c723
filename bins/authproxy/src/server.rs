//! The listeners, the serving threads, and their graceful shutdown.
//!
//! Owns accepting, the limit on connections, and the order of the shutdown.

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

/// The pause after accept(2) failed, most likely for lack of file descriptors, and before one more lingering connection
/// is closed for a new one.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The bound sockets.
#[derive(Debug)]
pub(crate) struct ListenSockets(Vec<StdListener>);

impl ListenSockets {
    /// Binds and listens.
    ///
    /// # Errors
    /// An address is taken, or may not be bound (exit 73).
    pub(crate) fn bind(addresses: &[SocketAddr]) -> Result<Self, Failure> {
        let bound = addresses.iter().map(|address| {
            // `[::]` accepts IPv4 too, unless an IPv4 address with the same port is configured.
            let has_v4 = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port();
            bind_tcp(*address, addresses.iter().any(has_v4))
                .map_err(|error| cannot_listen(address, "--port or --listen", error))
        });
        bound.collect::<Result<_, _>>().map(Self)
    }

    /// The bound addresses, with the port that the kernel chose for port 0.
    #[must_use]
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.0
            .iter()
            .filter_map(|socket| socket.local_addr().ok())
            .collect()
    }
}

/// Every connection holds one permit: when all are free, no connection is left.
struct ConnectionLimit {
    permits: Arc<Semaphore>,
    max: u32,
}

/// The permits for connections, and a sender that an acceptor drops once its queue is empty.
type AcceptorHandle = (Arc<Semaphore>, mpsc::Sender<()>);

/// Serves until the drain is complete: all requests are finished, or `drain_timeout` is over.
///
/// # Errors
/// A thread cannot be started.
pub(crate) async fn serve(
    sockets: ListenSockets,
    proxy: Arc<Proxy>,
    drain_timeout: Duration,
) -> Result<(), Failure> {
    // Every request needs two.
    raise_open_files(u64::MAX);
    let threads = proxy.settings.threads.max(1);
    let max = u32::try_from(proxy.settings.connections)
        .unwrap_or(u32::MAX)
        .min(Semaphore::MAX_PERMITS.try_into().unwrap_or(u32::MAX));
    let limit = ConnectionLimit {
        permits: Arc::new(Semaphore::new(max as usize)),
        max,
    };
    let (ended, _) = watch::channel(false);
    // Closed when the last acceptor has emptied its queue.
    let (accepting, mut accepted) = mpsc::channel(1);
    let mut other_threads = Vec::new();
    for number in 1..threads {
        other_threads.push(start_thread(
            number,
            &sockets,
            &proxy,
            (Arc::clone(&limit.permits), accepting.clone()),
            ended.subscribe(),
        )?);
    }
    let lifecycle = proxy.lifecycle.clone();
    let (lame_duck, here) = (proxy.settings.lame_duck, WorkerThread::new(proxy));
    let share = (Arc::clone(&limit.permits), accepting);
    let here = tokio::spawn(accept(clone_listeners(&sockets)?, here, share));
    // The threads have clones, and close them.
    drop(sockets);

    lifecycle.wait_for(LifecyclePhase::LameDuck).await;
    tracing::info!(
        lame_duck = lame_duck.as_secs_f64(),
        "graceful shutdown started"
    );
    sleep(lame_duck).await;
    lifecycle.advance(LifecyclePhase::Draining);
    let finished = async {
        // In this order: the semaphore is fair, so waiting for all permits first would block the acceptors.
        let _ = accepted.recv().await;
        let _ = limit.permits.acquire_many(limit.max).await;
    };
    if timeout(drain_timeout, finished).await.is_err() {
        let left = (limit.max as usize).saturating_sub(limit.permits.available_permits());
        tracing::warn!(
            connections = left,
            "drain timeout expired: closing the remaining connections"
        );
        lifecycle.advance(LifecyclePhase::Aborting);
    }
    here.abort();
    ended.send_replace(true);
    for thread in other_threads {
        // A panic was already printed.
        let _ = thread.join();
    }
    Ok(())
}

/// Starts one more serving thread.
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
    let listeners = clone_listeners(sockets)?;
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

/// Clones of the listeners for one thread. All threads accept from the same queues, so none is lost with a thread.
fn clone_listeners(sockets: &ListenSockets) -> Result<Vec<TcpListener>, Failure> {
    let clones = sockets.0.iter().map(|socket| {
        let clone = socket.try_clone()?;
        TcpListener::from_std(clone)
    });
    clones
        .collect::<io::Result<_>>()
        .map_err(|error| Failure::new(Exit::FAILED, "cannot clone a listener").because(error))
}

/// Accepts until draining begins, and then the queued connections. An accepted connection waits here for its permit.
async fn accept(
    listeners: Vec<TcpListener>,
    thread: Arc<WorkerThread>,
    (free, _accepting): AcceptorHandle,
) {
    let lifecycle = thread.proxy.lifecycle.clone();
    let mut draining = pin!(lifecycle.wait_for(LifecyclePhase::Draining));
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut draining => break,
            accepted = accept_any(&listeners) => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                is_failing = false;
                spawn(stream, peer, &thread, acquire_permit(&free, &thread).await);
            }
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                // Once per outage, not per attempt.
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(%error, "cannot accept connections: retrying");
                }
                sleep(RETRY_PAUSE).await;
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
                    let permit = acquire_permit(&free, &thread).await;
                    if stream.set_nonblocking(true).is_ok()
                        && let Ok(stream) = TcpStream::from_std(stream)
                    {
                        spawn(stream, peer, &thread, permit);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_connection_error(&error) => {}
                Err(_) => sleep(RETRY_PAUSE).await,
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

/// Waits for a permit for an accepted connection. As long as there is none, lingering connections are closed, the
/// oldest first.
async fn acquire_permit(
    free: &Arc<Semaphore>,
    thread: &WorkerThread,
) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(free).try_acquire_owned() {
        return Some(permit);
    }
    loop {
        thread.proxy.lingering.evict_oldest();
        if let Ok(permit) = timeout(RETRY_PAUSE, Arc::clone(free).acquire_owned()).await {
            // The semaphore is never closed.
            return permit.ok();
        }
    }
}

fn spawn(
    stream: TcpStream,
    peer: SocketAddr,
    thread: &Arc<WorkerThread>,
    permit: Option<OwnedSemaphorePermit>,
) {
    let metrics = &thread.proxy.telemetry.metrics;
    metrics.accepted_connections.add(1);
    metrics.client_connections.add(1);
    let guard = ConnectionGuard {
        thread: Arc::clone(thread),
        _permit: permit,
    };
    tokio::spawn(async move { connection::serve(stream, peer, &guard.thread).await });
}

/// Counts an open connection and holds its permit.
struct ConnectionGuard {
    thread: Arc<WorkerThread>,
    _permit: Option<OwnedSemaphorePermit>,
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

/// Whether an error of accept(2) concerns only the connection that would have been accepted.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
