//! Connections: who is served, for how long, and how all of it ends.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::head::{self, RequestHead};
use super::{DEADLINE, ListeningSocket, RouteRequest, RouteResponse, Router};
use crate::http::BoxedStream;

/// The pause after accept(2) failed, as it does for every call while file descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);
/// How much of a head is read at a time: all of it, for most.
const CHUNK: usize = 512;
/// What keeps a server within bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerLimits {
    /// Connections served at once; more wait in the backlog.
    pub(crate) max_connections: usize,
    /// How long exchanges that had begun may go on when it is told to stop.
    pub(crate) drain_timeout: Duration,
}

/// Answers until `stop` is ready; then closes the sockets and the connections that have asked for nothing, lets the
/// others end, and returns what `stop` was. Dropping the future closes everything.
pub(crate) async fn serve<T>(
    sockets: Vec<ListeningSocket>,
    routes: Router,
    limits: ServerLimits,
    stop: impl Future<Output = T>,
) -> T {
    let routes = Arc::new(routes);
    let (stopping, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut turn = 0;
    let mut stop = pin!(stop);
    let told = loop {
        tokio::select! {
            told = &mut stop => break told,
            accepted = accept(&sockets, &mut turn), if connections.len() < limits.max_connections => match accepted {
                Ok(stream) => {
                    connections.spawn(exchange(stream, Arc::clone(&routes), stopped.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(PAUSE).await;
                }
            },
            // However one ended, there is nobody to tell but the peer, who knows. A handler that panicked has cost its
            // own connection and nothing else.
            Some(_) = connections.join_next() => {}
        }
    };
    drop((sockets, stopping));
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.drain_timeout, ended).await.is_err() {
        tracing::warn!("cut off connections that had not ended in time");
    }
    told
}

/// The next connection. The sockets take turns in being asked first, so that none can keep another waiting.
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

/// One request and its answer.
async fn exchange(
    mut stream: BoxedStream,
    routes: Arc<Router>,
    mut stopped: watch::Receiver<()>,
) -> io::Result<()> {
    let read = tokio::select! {
        read = timeout(DEADLINE, read_head(&mut stream)) => read??,
        _ = stopped.changed() => return Ok(()),
    };
    let (reply, with_body) = match read {
        Ok((head, body)) => {
            let with_body = head.method != "HEAD";
            (answer(&mut stream, head, body, &routes).await?, with_body)
        }
        Err(refused) => (refused, true),
    };
    timeout(DEADLINE, stream.write_all(&reply.bytes(with_body))).await?
}

async fn answer(
    stream: &mut BoxedStream,
    head: RequestHead,
    mut body: Vec<u8>,
    routes: &Router,
) -> io::Result<RouteResponse> {
    let handler = match routes.find(&head.method, &head.path) {
        Ok(handler) => handler,
        Err(refused) => return Ok(refused),
    };
    // What follows the body belongs to nobody: there is one request per connection.
    body.truncate(head.length);
    let have = body.len();
    body.resize(head.length, 0);
    match timeout(DEADLINE, stream.read_exact(&mut body[have..])).await {
        Ok(read) => read?,
        Err(_) => return Ok(RouteResponse::error(408, "the body took too long")),
    };
    let call = RouteRequest {
        query: &head.query,
        body: &body,
        accept: &head.accept,
    };
    Ok(handler(&call).await)
}

/// A request's head and what was read of its body, or the answer to one that cannot be served.
async fn read_head(
    stream: &mut BoxedStream,
) -> io::Result<Result<(RequestHead, Vec<u8>), RouteResponse>> {
    let mut bytes = Vec::with_capacity(CHUNK);
    loop {
        let searched = bytes.len().saturating_sub(2);
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = head::end(&bytes, searched) {
            let body = bytes.split_off(end);
            return Ok(head::parse(&bytes).map(|head| (head, body)));
        }
        if bytes.len() > head::LONGEST {
            return Ok(Err(RouteResponse::error(431, "a head is at most 16 KiB")));
        }
    }
}
