//! Accepting connections, the exchanges on each, their deadlines, and graceful shutdown.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::request_head::{self, RequestHead};
use super::{DEADLINE, ListeningSocket, RouteRequest, RouteResponse, Router};
use crate::http::BoxedStream;

/// The delay after accept(2) failed, as it does for every call while file descriptors have run out.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// How much of a head is read at a time: all of most heads.
const READ_SIZE: usize = 512;
/// How long the rest of a rejected request is read.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of it is read at a time.
const LINGER_READ_SIZE: usize = 8 << 10;

/// The bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Connections served at once; more wait in the backlog.
    pub max_connections: usize,
    /// The longest body of a request.
    pub max_body: usize,
    /// How long a connection is kept open between two requests; `None` closes it after the first.
    pub idle_timeout: Option<Duration>,
    /// How long requests under way may take after `stop` is ready.
    pub drain_timeout: Duration,
}

/// Serves until `stop` is ready; then closes the sockets and the connections that wait for a request, finishes the
/// requests under way, and returns what `stop` was. Dropping the future closes everything.
pub async fn serve<T>(
    sockets: Vec<ListeningSocket>,
    router: Router,
    limits: ServerLimits,
    stop: impl Future<Output = T>,
) -> T {
    let router = Arc::new(router);
    let (stopping, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut turn = 0;
    let mut stop = pin!(stop);
    let stop = loop {
        tokio::select! {
            stop = &mut stop => break stop,
            accepted = accept(&sockets, &mut turn), if connections.len() < limits.max_connections => match accepted {
                Ok(stream) => {
                    connections.spawn(serve_connection(stream, Arc::clone(&router), limits, stopped.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            // Its error concerns the client only, and so does a handler that panicked.
            Some(_) = connections.join_next() => {}
        }
    };
    drop((sockets, stopping));
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.drain_timeout, drained).await.is_err() {
        tracing::warn!("drain timeout exceeded");
    }
    stop
}

/// The next connection. The sockets are polled first in turn, so that none can starve another.
async fn accept(sockets: &[ListeningSocket], turn: &mut usize) -> io::Result<BoxedStream> {
    poll_fn(|context| {
        *turn = turn.wrapping_add(1);
        for index in 0..sockets.len() {
            let socket = &sockets[turn.wrapping_add(index) % sockets.len()];
            if let Poll::Ready(accepted) = socket.poll_accept(context) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await
}

async fn serve_connection(
    mut stream: BoxedStream,
    router: Arc<Router>,
    limits: ServerLimits,
    mut stopped: watch::Receiver<()>,
) -> io::Result<()> {
    let mut unread = Vec::new();
    loop {
        let head = tokio::select! {
            head = read_head(&mut stream, &mut unread, &limits) => head?,
            _ = stopped.changed() => return Ok(()),
        };
        let mut is_rejected = true;
        let (response, with_body, is_persistent) = match head {
            Ok(head) => {
                let response = respond(&mut stream, &head, &mut unread, &router).await?;
                is_rejected = response.is_err();
                // The body of a request without a handler is not read, so the next head cannot be found.
                let is_persistent = limits.idle_timeout.is_some()
                    && head.is_persistent
                    && !is_rejected
                    && stopped.has_changed().is_ok();
                let response = response.unwrap_or_else(|response| response);
                (response, head.method != "HEAD", is_persistent)
            }
            Err(response) => (response, true, false),
        };
        router.observe(&response);
        let bytes = response.encode(with_body, is_persistent);
        timeout(DEADLINE, stream.write_all(&bytes)).await??;
        if !is_persistent {
            if is_rejected {
                let _ = timeout(LINGER_TIMEOUT, discard_rest(&mut stream, unread)).await;
            }
            return Ok(());
        }
    }
}

/// Reads the rest of a rejected request: a socket that is closed with unread bytes resets the connection, and the client
/// may lose the response (RFC 9112 section 9.6).
async fn discard_rest(stream: &mut BoxedStream, mut buffer: Vec<u8>) -> io::Result<()> {
    stream.shutdown().await?;
    buffer.reserve(LINGER_READ_SIZE);
    loop {
        buffer.clear();
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// Reads the body and calls the handler. The error is a response after which the connection has to be closed.
async fn respond(
    stream: &mut BoxedStream,
    head: &RequestHead,
    unread: &mut Vec<u8>,
    router: &Router,
) -> io::Result<Result<RouteResponse, RouteResponse>> {
    let handler = match router.find(&head.method, &head.path) {
        Ok(handler) => handler,
        Err(response) => return Ok(Err(response)),
    };
    let next = unread.split_off(head.body_length.min(unread.len()));
    let mut body = std::mem::replace(unread, next);
    let received = body.len();
    if received < head.body_length {
        if head.expects_continue {
            let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
            timeout(DEADLINE, stream.write_all(interim)).await??;
        }
        body.resize(head.body_length, 0);
        match timeout(DEADLINE, stream.read_exact(&mut body[received..])).await {
            Ok(read) => read?,
            Err(_) => return Ok(Err(RouteResponse::error(408, "request body timeout"))),
        };
    }
    let request = RouteRequest {
        query: &head.query,
        body: &body,
        accept: &head.accept,
    };
    Ok(Ok(handler(&request).await))
}

/// Reads the head of a request; what follows it stays in `unread`. The error inside is the response to a head that is not
/// valid.
async fn read_head(
    stream: &mut BoxedStream,
    unread: &mut Vec<u8>,
    limits: &ServerLimits,
) -> io::Result<Result<RequestHead, RouteResponse>> {
    let wait = match (unread.is_empty(), limits.idle_timeout) {
        (true, Some(idle_timeout)) => idle_timeout,
        _ => DEADLINE,
    };
    let mut deadline = Instant::now() + wait;
    let mut searched = 0;
    loop {
        if let Some(end) = request_head::find_end(unread, searched) {
            let rest = unread.split_off(end);
            let head = std::mem::replace(unread, rest);
            return Ok(request_head::parse(&head, limits.max_body));
        }
        if unread.len() > request_head::MAX_LENGTH {
            let response = RouteResponse::error(431, "the head exceeds 16 KiB");
            return Ok(Err(response));
        }
        searched = unread.len().saturating_sub(2);
        let is_first = unread.is_empty();
        unread.reserve(READ_SIZE);
        if timeout_at(deadline, stream.read_buf(unread)).await?? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if is_first && limits.idle_timeout.is_some() {
            deadline = Instant::now() + DEADLINE;
        }
    }
}
