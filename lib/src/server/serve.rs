//! HTTP/1.1 on listening sockets: one request per connection, everything bounded, every answer for a machine.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Call, DEADLINE, Reply, Routes, Socket, Stream};

/// The longest request body.
const BODY: usize = 64 << 10;
/// The longest request head.
const HEAD: usize = 16 << 10;
/// The pause after accept(2) failed, as it does for every call while file descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// What keeps a server within bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections served at once; more wait in the backlog.
    pub(crate) connections: usize,
    /// Head, body and the answer together: a peer that does not read what it asked for is cut off.
    pub(crate) exchange: Duration,
    /// How long exchanges that had begun may go on when it is told to stop.
    pub(crate) drain: Duration,
}

/// Answers until `stop` is ready; then closes the sockets and the connections that have asked for nothing, lets the
/// others end, and returns what `stop` was. Dropping the future closes everything.
pub(crate) async fn serve<T>(
    sockets: Vec<Socket>,
    routes: Routes,
    bounds: Bounds,
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
            accepted = accept(&sockets, &mut turn), if connections.len() < bounds.connections => match accepted {
                Ok(stream) => {
                    let exchange = converse(stream, Arc::clone(&routes), stopped.clone());
                    connections.spawn(timeout(bounds.exchange, exchange));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(PAUSE).await;
                }
            },
            // A handler that panicked has cost its own connection and nothing else.
            Some(_) = connections.join_next() => {}
        }
    };
    drop((sockets, stopping));
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(bounds.drain, ended).await.is_err() {
        tracing::warn!("cut off connections that had not ended in time");
    }
    told
}

/// The next connection. The sockets take turns in being asked first, so that none can keep another waiting.
async fn accept(sockets: &[Socket], turn: &mut usize) -> io::Result<Stream> {
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

async fn converse(stream: Stream, routes: Arc<Routes>, mut stopped: watch::Receiver<()>) {
    let answer = service_fn(move |request| {
        let routes = Arc::clone(&routes);
        async move { Ok::<_, Infallible>(answer(request, &routes).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .max_buf_size(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = pin!(connection);
    // However it ends, there is nobody to tell but the peer, who knows.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn answer(request: Request<Incoming>, routes: &Routes) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let reply = match routes.find(head.method.as_str(), head.uri.path()) {
        Ok(handler) => match read(body).await {
            Ok(body) => {
                let query = head.uri.query().unwrap_or_default();
                handler(&Call { query, body: &body }).await
            }
            Err(reply) => reply,
        },
        Err(methods) if methods.is_empty() => Reply::error(404, "there is nothing here"),
        Err(methods) => {
            let mut response = respond(Reply::error(405, "this path has other methods"));
            let allow = methods.join(", ").replace("GET", "GET, HEAD");
            if let Ok(allow) = HeaderValue::from_str(&allow) {
                response.headers_mut().insert(ALLOW, allow);
            }
            return response;
        }
    };
    respond(reply)
}

async fn read(body: Incoming) -> Result<Bytes, Reply> {
    match timeout(DEADLINE, Limited::new(body, BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Reply::error(413, "a body is at most 64 KiB"))
        }
        Ok(Err(_)) => Err(Reply::error(400, "the body is broken")),
        Err(_) => Err(Reply::error(408, "the body took too long")),
    }
}

fn respond(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
