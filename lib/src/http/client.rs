//! The HTTP/1.1 client of all tools, on hyper: one exchange on a connection of its own, or several on one that is kept.
//!
//! Owns the deadline of an exchange, the bounds of heads and bodies, and the kinds of failure. A pool of connections is
//! its user's, and so is TLS: [`ClientConnection::new`] takes any connected stream.

mod error;
#[cfg(test)]
mod tests;

use std::future::Future;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::{BoxedStream, ServerAddress};
pub use error::{ClientError, ExchangePhase};

/// How response heads are parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseParsing {
    /// As RFC 9112; a head has at most 16 KiB.
    Strict,
    /// Badly written header lines are skipped; a head has at most 64 KiB. For checks that need the status only.
    Lenient,
}

/// A request to one server.
#[derive(Debug, Clone)]
pub struct ClientRequest(Request<Full<Bytes>>);

impl ClientRequest {
    /// A request without a body.
    #[must_use]
    pub fn new(method: Method, target: PathAndQuery, host: HeaderValue) -> Self {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = Uri::from(target);
        let is_post = method == Method::POST;
        *request.method_mut() = method;
        let request = Self(request).with_header(HOST, host);
        match is_post {
            // hyper leaves it out, and some servers then answer 411.
            true => request.with_header(CONTENT_LENGTH, HeaderValue::from_static("0")),
            false => request,
        }
    }

    /// The same request with a header, which replaces one of that name.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers_mut().insert(name, value);
        self
    }

    /// The same request with a body.
    #[must_use]
    pub fn with_body(mut self, body: Bytes) -> Self {
        let length = HeaderValue::from(body.len());
        *self.0.body_mut() = Full::new(body);
        self.with_header(CONTENT_LENGTH, length)
    }
}

/// A connection that carries one exchange at a time. Dropping it closes it.
#[derive(Debug)]
pub struct ClientConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
    is_used: bool,
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl ClientConnection {
    /// HTTP over a connected stream. Nothing is sent yet.
    ///
    /// # Errors
    /// None in practice: hyper's handshake of HTTP/1 does no I/O.
    pub async fn new(stream: BoxedStream, parsing: ResponseParsing) -> Result<Self, ClientError> {
        let is_lenient = parsing == ResponseParsing::Lenient;
        let (sender, connection) = Builder::new()
            .max_buf_size(if is_lenient { 64 << 10 } else { 16 << 10 })
            .allow_obsolete_multiline_headers_in_responses(is_lenient)
            .allow_spaces_after_header_name_in_responses(is_lenient)
            .ignore_invalid_headers_in_responses(is_lenient)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ClientError::Closed)?;
        // Its error reaches the exchange that is under way.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Self {
            sender,
            driver,
            is_used: false,
        })
    }

    /// Whether the server has closed it, as far as that is known.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and reads the head of the response. `deadline` is that of the whole exchange, body included.
    ///
    /// # Errors
    /// There is no response, an invalid one, or it is late.
    pub async fn send(
        &mut self,
        request: ClientRequest,
        deadline: Instant,
    ) -> Result<ClientResponse, ClientError> {
        let exchange = async {
            if self.is_used {
                self.sender.ready().await?;
            }
            self.is_used = true;
            self.sender.send_request(request.0).await
        };
        let response = within(deadline, ExchangePhase::ResponseHead, exchange)
            .await?
            .map_err(ClientError::of_head)?;
        let (head, body) = response.into_parts();
        Ok(ClientResponse {
            status: head.status,
            headers: head.headers,
            body,
            deadline,
            _connection: None,
        })
    }
}

/// A response, with its body still to be read.
#[derive(Debug)]
pub struct ClientResponse {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    body: Incoming,
    deadline: Instant,
    /// That of [`exchange`], open as long as the body may be read.
    _connection: Option<ClientConnection>,
}

impl ClientResponse {
    /// The whole body, which has at most `limit` bytes.
    ///
    /// # Errors
    /// It is longer, ends early, or is late.
    pub async fn read_body(&mut self, limit: usize) -> Result<Vec<u8>, ClientError> {
        match self.read_body_prefix(limit).await? {
            (body, false) => Ok(body),
            (_, true) => Err(ClientError::BodyTooLong(limit)),
        }
    }

    /// The first `limit` bytes of the body, and whether there are more.
    ///
    /// # Errors
    /// It ends early, or is late.
    pub async fn read_body_prefix(&mut self, limit: usize) -> Result<(Vec<u8>, bool), ClientError> {
        let body = &mut self.body;
        let read = async move {
            let mut prefix = Vec::new();
            while let Some(frame) = body.frame().await {
                let data = frame?.into_data().unwrap_or_default();
                let room = limit - prefix.len();
                prefix.extend_from_slice(&data[..data.len().min(room)]);
                if data.len() > room {
                    return Ok((prefix, true));
                }
            }
            Ok((prefix, false))
        };
        within(self.deadline, ExchangePhase::ResponseBody, read)
            .await?
            .map_err(ClientError::TruncatedBody)
    }
}

/// Connects to a server.
///
/// # Errors
/// It cannot be reached, or not before the deadline.
pub async fn connect(
    address: &ServerAddress,
    deadline: Instant,
) -> Result<BoxedStream, ClientError> {
    within(deadline, ExchangePhase::Connect, address.connect())
        .await?
        .map_err(ClientError::Connect)
}

/// One exchange on a connection of its own.
///
/// # Errors
/// The server cannot be reached, there is no response, an invalid one, or it is late.
pub async fn exchange(
    address: &ServerAddress,
    request: ClientRequest,
    parsing: ResponseParsing,
    deadline: Instant,
) -> Result<ClientResponse, ClientError> {
    let stream = connect(address, deadline).await?;
    let mut connection = ClientConnection::new(stream, parsing).await?;
    let request = request.with_header(CONNECTION, HeaderValue::from_static("close"));
    let mut response = connection.send(request, deadline).await?;
    response._connection = Some(connection);
    Ok(response)
}

async fn within<T>(
    deadline: Instant,
    phase: ExchangePhase,
    future: impl Future<Output = T>,
) -> Result<T, ClientError> {
    let timeout = timeout_at(deadline, future).await;
    timeout.map_err(|_| ClientError::Timeout(phase))
}
