//! hyper behind the gate, over a pipe: what its service sees of requests that are refused.

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

/// How long something may take that does not depend on time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the service has seen, in order.
type Seen = Arc<Mutex<Vec<String>>>;

/// Answers what a proxy would: the refusal's status, or 200 with the body.
async fn answer(
    request: Request<Incoming>,
    fault: Option<RequestError>,
    watch: ValidatorHandle,
    seen: Seen,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let refused = |refusal: RequestError| {
        let mut response = Response::new(Full::from(refusal.message()));
        *response.status_mut() = refusal.status();
        if refusal.closes_connection() {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    };
    if let Some(refusal) = fault {
        return Ok(refused(refusal));
    }
    let body = request.into_body().collect().await;
    Ok(match body {
        Ok(body) => {
            let body = body.to_bytes();
            seen.lock().unwrap().push(format!("{line} {}", body.len()));
            Response::new(Full::new(body))
        }
        Err(_) => refused(watch.body_fault().expect("why the body failed")),
    })
}

/// A connection with hyper at its other end, and what its service sees.
fn connect() -> (DuplexStream, ValidatorHandle, Seen) {
    let (client, server) = duplex(64 * 1024);
    let (gate, watch) = RequestValidator::new(server, MAX_HEAD);
    let seen = Seen::default();
    tokio::spawn(serve(gate, watch.clone(), seen.clone()));
    (client, watch, seen)
}

fn serve(
    gate: RequestValidator<DuplexStream>,
    watch: ValidatorHandle,
    seen: Seen,
) -> http1::Connection<RequestValidator<DuplexStream>, Echo> {
    http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .serve_connection(gate, Echo { watch, seen })
}

struct Echo {
    watch: ValidatorHandle,
    seen: Seen,
}

impl Service<Request<Incoming>> for Echo {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let fault = self.watch.take_fault();
        let (watch, seen) = (self.watch.clone(), self.seen.clone());
        Box::pin(answer(request, fault, watch, seen))
    }
}

/// Everything up to the end of the connection.
async fn rest(client: &mut DuplexStream) -> String {
    let mut text = String::new();
    let end = timeout(PATIENCE, client.read_to_string(&mut text)).await;
    end.unwrap_or_else(|_| panic!("no end behind {text}"))
        .unwrap();
    text
}

/// What a client sends is answered with this sentence, and the connection ends.
async fn is_refused(sent: &str, sentence: &str) {
    let (mut client, watch, seen) = connect();
    client.write_all(sent.as_bytes()).await.unwrap();
    let answer = rest(&mut client).await;
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with(sentence), "{answer}");
    assert_eq!(answer.matches("connection: close\r\n").count(), 1);
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(watch.reading(), ReadPhase::Idle);
}

#[tokio::test]
async fn a_head_that_is_refused_is_answered_and_ends_the_connection() {
    let sent = "GET / HTTP/1.1\nHost: a\n\nGET /b HTTP/1.1\r\nHost: b\r\n\r\n";
    is_refused(sent, "a line of the request ends without CR").await;
}

#[tokio::test]
async fn a_body_that_is_refused_is_answered_and_ends_the_connection() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = "4\r\nbodyGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    is_refused(
        &format!("{head}{body}"),
        "a chunk does not end where its size says",
    )
    .await;
}

#[tokio::test]
async fn a_fault_behind_a_request_under_way_is_not_that_ones() {
    let (mut client, _, seen) = connect();
    client
        .write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let answers = rest(&mut client).await;
    assert!(answers.starts_with("HTTP/1.1 200 OK\r\n"), "{answers}");
    assert!(answers.ends_with("there is no Host"), "{answers}");
    assert_eq!(*seen.lock().unwrap(), ["GET /a 0"]);
}

#[tokio::test]
async fn requests_at_once_are_answered_one_after_another() {
    let (mut client, watch, seen) = connect();
    // The longest there may be, and most of it a target: hyper reads it in several steps.
    let long = |target: &str| format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let target = "a".repeat(MAX_HEAD - long("").len());
    let long = long(&target);
    let post = "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\r\n";
    let chunked =
        "PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n";
    let last = "GET /d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let sent = [&long, post, chunked, last].concat();
    client.write_all(sent.as_bytes()).await.unwrap();
    let answers = rest(&mut client).await;
    assert_eq!(
        *seen.lock().unwrap(),
        [
            &format!("GET /{target} 0")[..],
            "POST /b 3",
            "PUT /c 2",
            "GET /d 0"
        ]
    );
    assert_eq!(watch.progress(), (sent.len() as u64, answers.len() as u64));
}

#[tokio::test]
async fn an_idle_connection_outlives_the_hyper_that_served_it() {
    let (mut client, server) = duplex(1024);
    let (mut gate, watch) = RequestValidator::new(server, super::LIMIT);
    let seen = Seen::default();
    for path in ["/a", "/b"] {
        let mut connection = serve(gate, watch.clone(), seen.clone());
        let exchange = async {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                client.read_buf(&mut answer).await.unwrap();
            }
        };
        tokio::select! {
            _ = &mut connection => panic!("the connection ended"),
            () = exchange => {}
        }
        assert_eq!(watch.reading(), ReadPhase::Idle);
        let parts = connection.into_parts();
        assert!(parts.read_buf.is_empty());
        gate = parts.io;
    }
    assert_eq!(*seen.lock().unwrap(), ["GET /a 0", "GET /b 0"]);
}

#[tokio::test]
async fn what_a_refused_client_goes_on_to_send_can_be_thrown_away() {
    let (mut client, server) = duplex(64 * 1024);
    let (gate, watch) = RequestValidator::new(server, super::LIMIT);
    client.write_all(b"GET / HTTP/1.1\n\nmore").await.unwrap();
    let mut connection = serve(gate, watch, Seen::default());
    (&mut connection).await.unwrap();
    let (mut server, _) = connection.into_parts().io.into_inner();
    client.write_all(b"and more").await.unwrap();
    client.shutdown().await.unwrap();
    let mut thrown = Vec::new();
    server.read_to_end(&mut thrown).await.unwrap();
    assert_eq!(thrown, b"and more");
    drop(server);
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn an_upgrade_leaves_hyper_with_the_gate_open() {
    let (mut client, server) = duplex(1024);
    let (gate, watch) = RequestValidator::new(server, super::LIMIT);
    let upgrade = Arc::new(Mutex::new(None));
    let service = {
        let upgrade = upgrade.clone();
        service_fn(move |mut request: Request<Incoming>| {
            *upgrade.lock().unwrap() = Some(hyper::upgrade::on(&mut request));
            watch.open();
            let mut response = Response::new(Full::<Bytes>::default());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            std::future::ready(Ok::<_, Infallible>(response))
        })
    };
    let connection = http1::Builder::new().serve_connection(gate, service);
    let connection = tokio::spawn(connection.with_upgrades());
    client
        .write_all(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        client.read_buf(&mut answer).await.unwrap();
    }
    client.write_all(b"\x81\0\n").await.unwrap();
    connection.await.unwrap().unwrap();
    let upgrade = upgrade.lock().unwrap().take().unwrap();
    let parts = upgrade
        .await
        .unwrap()
        .downcast::<RequestValidator<DuplexStream>>()
        .unwrap();
    let (mut server, rested) = parts.io.into_inner();
    let mut first = [parts.read_buf, rested].concat();
    while first.len() < 3 {
        server.read_buf(&mut first).await.unwrap();
    }
    assert_eq!(first, b"\x81\0\n");
}
