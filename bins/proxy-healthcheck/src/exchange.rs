//! One HTTP exchange on a connection to a server.

use std::future::Future;
use std::pin::pin;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// The longest head of an answer.
const HEAD: usize = 64 << 10;

/// Sends a request without a body, and hands the answer's head and body to `read`, which may leave the rest unread.
///
/// # Errors
/// There was no answer, or none that is HTTP.
pub(crate) async fn exchange<S, F, T>(
    stream: S,
    method: Method,
    path: &PathAndQuery,
    host: &HeaderValue,
    read: impl FnOnce(Response<Incoming>) -> F,
) -> hyper::Result<T>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = T>,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD)
        // Headers do not matter here: a server is not restarted for one that is badly written.
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = Uri::from(path.clone());
    let headers = request.headers_mut();
    if method == Method::POST {
        // hyper leaves it out, and some servers then answer 411.
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    headers.insert(HOST, host.clone());
    headers.insert(USER_AGENT, HeaderValue::from_static("proxy-healthcheck"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    *request.method_mut() = method;
    let mut exchange = pin!(async move { Ok(read(sender.send_request(request).await?).await) });
    // The connection may end in the same moment as the answer arrives: then the answer counts.
    tokio::select! {
        told = &mut exchange => told,
        _ = connection => exchange.await,
    }
}
