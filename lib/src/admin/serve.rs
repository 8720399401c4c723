//! HTTP/1.1 on the admin listener: one request per connection, everything bounded, every answer for a machine.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::listener::{Listener, Stream};
use super::{Call, DEADLINE, Reply, Routes};

/// Connections served at once; more wait in the backlog.
const CONNECTIONS: usize = 64;
/// The longest request body.
const BODY: usize = 64 << 10;
/// The longest request head.
const HEAD: usize = 16 << 10;
/// Head, body and the answer together: a peer that does not read what it asked for is cut off.
const EXCHANGE: Duration = Duration::from_secs(15);
/// The pause after accept(2) failed, as it does for every call while file descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

impl Listener {
    /// Answers for ever. Dropping the future closes the listener and its connections.
    pub async fn serve(self, routes: Routes) -> Infallible {
        let routes = Arc::new(routes);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok(stream) => { connections.spawn(converse(stream, Arc::clone(&routes))); }
                    Err(error) => {
                        tracing::warn!(address = %self.address(), %error, "cannot accept an admin connection");
                        sleep(PAUSE).await;
                    }
                },
                // A handler that panicked has cost its own connection and nothing else.
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn converse(stream: Stream, routes: Arc<Routes>) {
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
    // However it ends, there is nobody to tell but the peer, who knows.
    let _ = timeout(EXCHANGE, connection).await;
}

async fn answer(request: Request<Incoming>, routes: &Routes) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let reply = match routes.find(head.method.as_str(), head.uri.path()) {
        Ok(handler) => match read(body).await {
            Ok(body) => handler(&Call {
                query: head.uri.query().unwrap_or_default(),
                body: &body,
            }),
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
