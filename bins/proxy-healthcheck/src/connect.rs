//! Connections to a server, and one HTTP exchange on each.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
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
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::target::{Endpoint, Host};

/// The longest head of an answer.
const HEAD: usize = 64 << 10;
/// How many addresses of a name are tried.
const ADDRESSES: usize = 8;

/// Connects to the first address that takes the connection.
///
/// # Errors
/// The error of the first address. [`io::ErrorKind::NotFound`] is a name without an address.
pub(crate) async fn connect(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let addresses = match &endpoint.host {
        Host::Name(name) => look_up(name, endpoint.port).await?,
        _ => endpoint
            .addresses()
            .into_iter()
            .map(|ip| SocketAddr::new(ip, endpoint.port))
            .collect(),
    };
    let mut first = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            // Where nobody listens on a port that is also one for outgoing connections, TCP can connect to itself.
            Ok(stream) if stream.local_addr()? == address => {
                first.get_or_insert(io::ErrorKind::ConnectionRefused.into());
            }
            Ok(stream) => return Ok(stream),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or(io::ErrorKind::NotFound.into()))
}

/// The system's resolver blocks, so a thread asks it. There is never more than one question: while one is not answered,
/// nobody asks another.
async fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    static TURN: Semaphore = Semaphore::const_new(1);
    let turn = TURN.acquire().await.map_err(io::Error::other)?;
    let name = name.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let found = (name.as_str(), port).to_socket_addrs();
        drop(turn);
        found.map(|found| found.take(ADDRESSES).collect())
    });
    asked
        .await?
        .map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))
}

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
