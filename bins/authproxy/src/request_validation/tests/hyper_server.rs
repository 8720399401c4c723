//! hyper behind the validator, over a pipe: what its service sees of invalid requests.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::timeout;

use super::super::{MAX_HEAD, ReadPhase, RequestValidator, ValidatorHandle};
use crate::request_error::RequestError;

const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The requests that the service got, in order.
type ServedRequests = Arc<Mutex<Vec<String>>>;

/// Responds as the proxy would: with the error's status, or 200 and the body.
async fn respond(
    request: Request<Incoming>,
    head_error: Option<RequestError>,
    handle: ValidatorHandle,
    served: ServedRequests,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let error_response = |error: RequestError| {
        let mut response = Response::new(Full::from(error.message()));
        *response.status_mut() = error.status();
        if error.closes_connection() {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    };
    if let Some(error) = head_error {
        return Ok(error_response(error));
    }
    let body = request.into_body().collect().await;
    Ok(match body {
        Ok(body) => {
            let body = body.to_bytes();
            served
                .lock()
                .unwrap()
                .push(format!("{line} {}", body.len()));
            Response::new(Full::new(body))
        }
        Err(_) => error_response(handle.body_error().expect("the error of the body")),
    })
}

/// A connection to hyper, and the requests that its service gets.
fn connect() -> (DuplexStream, ValidatorHandle, ServedRequests) {
    let (client, server) = duplex(64 * 1024);
    let (validator, handle) = RequestValidator::new(server, MAX_HEAD);
    let served = ServedRequests::default();
    tokio::spawn(serve(validator, handle.clone(), served.clone()));
    (client, handle, served)
}

fn serve(
    validator: RequestValidator<DuplexStream>,
    handle: ValidatorHandle,
    served: ServedRequests,
) -> http1::Connection<RequestValidator<DuplexStream>, EchoService> {
    http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .serve_connection(validator, EchoService { handle, served })
}

struct EchoService {
    handle: ValidatorHandle,
    served: ServedRequests,
}

impl Service<Request<Incoming>> for EchoService {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let head_error = self.handle.take_head_error();
        let (handle, served) = (self.handle.clone(), self.served.clone());
        Box::pin(respond(request, head_error, handle, served))
    }
}

/// Everything up to the end of the connection.
async fn read_to_end(client: &mut DuplexStream) -> String {
    let mut text = String::new();
    let end = timeout(TEST_TIMEOUT, client.read_to_string(&mut text)).await;
    end.unwrap_or_else(|_| panic!("no end after {text}"))
        .unwrap();
    text
}

/// The response to `sent` has this message, and the connection ends.
async fn assert_invalid(sent: &str, message: &str) {
    let (mut client, handle, served) = connect();
    client.write_all(sent.as_bytes()).await.unwrap();
    let response = read_to_end(&mut client).await;
    assert!(
        response.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{response}"
    );
    assert!(response.ends_with(message), "{response}");
    assert_eq!(response.matches("connection: close\r\n").count(), 1);
    assert!(served.lock().unwrap().is_empty());
    assert_eq!(handle.read_phase(), ReadPhase::Idle);
}

#[tokio::test]
async fn invalid_head_gets_a_response_and_ends_the_connection() {
    let sent = "GET / HTTP/1.1\nHost: a\n\nGET /b HTTP/1.1\r\nHost: b\r\n\r\n";
    assert_invalid(sent, "a line of the request ends without CR").await;
}

#[tokio::test]
async fn invalid_body_gets_a_response_and_ends_the_connection() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = "4\r\nbodyGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_invalid(
        &format!("{head}{body}"),
        "a chunk does not end where its size says",
    )
    .await;
}

#[tokio::test]
async fn invalid_head_behind_a_request_does_not_affect_that_request() {
    let (mut client, _, served) = connect();
    client
        .write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let responses = read_to_end(&mut client).await;
    assert!(responses.starts_with("HTTP/1.1 200 OK\r\n"), "{responses}");
    assert!(responses.ends_with("missing Host"), "{responses}");
    assert_eq!(*served.lock().unwrap(), ["GET /a 0"]);
}

#[tokio::test]
async fn pipelined_requests_are_served_one_after_another() {
    let (mut client, handle, served) = connect();
    // The longest head, most of it the target: hyper reads it in several steps.
    let long = |target: &str| format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let target = "a".repeat(MAX_HEAD - long("").len());
    let long = long(&target);
    let post = "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\r\n";
    let chunked =
        "PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n";
    let last = "GET /d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let sent = [&long, post, chunked, last].concat();
    client.write_all(sent.as_bytes()).await.unwrap();
    let responses = read_to_end(&mut client).await;
    assert_eq!(
        *served.lock().unwrap(),
        [
            &format!("GET /{target} 0")[..],
            "POST /b 3",
            "PUT /c 2",
            "GET /d 0"
        ]
    );
    assert_eq!(
        handle.transferred(),
        (sent.len() as u64, responses.len() as u64)
    );
}

#[tokio::test]
async fn idle_connection_is_served_by_a_second_hyper_connection() {
    let (mut client, server) = duplex(1024);
    let (mut validator, handle) = RequestValidator::new(server, super::LIMIT);
    let served = ServedRequests::default();
    for path in ["/a", "/b"] {
        let mut connection = serve(validator, handle.clone(), served.clone());
        let exchange = async {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut response = Vec::new();
            while !response.ends_with(b"\r\n\r\n") {
                client.read_buf(&mut response).await.unwrap();
            }
        };
        tokio::select! {
            _ = &mut connection => panic!("the connection ended"),
            () = exchange => {}
        }
        assert_eq!(handle.read_phase(), ReadPhase::Idle);
        let parts = connection.into_parts();
        assert!(parts.read_buf.is_empty());
        validator = parts.io;
    }
    assert_eq!(*served.lock().unwrap(), ["GET /a 0", "GET /b 0"]);
}

#[tokio::test]
async fn rest_of_an_invalid_request_can_be_discarded() {
    let (mut client, server) = duplex(64 * 1024);
    let (validator, handle) = RequestValidator::new(server, super::LIMIT);
    client.write_all(b"GET / HTTP/1.1\n\nmore").await.unwrap();
    let mut connection = serve(validator, handle, ServedRequests::default());
    (&mut connection).await.unwrap();
    let (mut server, _) = connection.into_parts().io.into_inner();
    client.write_all(b"and more").await.unwrap();
    client.shutdown().await.unwrap();
    let mut discarded = Vec::new();
    server.read_to_end(&mut discarded).await.unwrap();
    assert_eq!(discarded, b"and more");
    drop(server);
    assert!(read_to_end(&mut client).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn upgraded_connection_passes_bytes_without_validation() {
    let (mut client, server) = duplex(1024);
    let (validator, handle) = RequestValidator::new(server, super::LIMIT);
    let upgrade = Arc::new(Mutex::new(None));
    let service = {
        let upgrade = upgrade.clone();
        service_fn(move |mut request: Request<Incoming>| {
            *upgrade.lock().unwrap() = Some(hyper::upgrade::on(&mut request));
            handle.begin_tunnel();
            let mut response = Response::new(Full::<Bytes>::default());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            std::future::ready(Ok::<_, Infallible>(response))
        })
    };
    let connection = http1::Builder::new().serve_connection(validator, service);
    let connection = tokio::spawn(connection.with_upgrades());
    client
        .write_all(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .await
        .unwrap();
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        client.read_buf(&mut response).await.unwrap();
    }
    client.write_all(b"\x81\0\n").await.unwrap();
    connection.await.unwrap().unwrap();
    let upgrade = upgrade.lock().unwrap().take().unwrap();
    let parts = upgrade
        .await
        .unwrap()
        .downcast::<RequestValidator<DuplexStream>>()
        .unwrap();
    let (mut server, pending) = parts.io.into_inner();
    let mut first = [parts.read_buf, pending].concat();
    while first.len() < 3 {
        server.read_buf(&mut first).await.unwrap();
    }
    assert_eq!(first, b"\x81\0\n");
}
