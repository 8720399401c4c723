//! hyper behind the gate, over a pipe: what its service sees of requests that are refused.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::super::{Gate, Reading, Watch};
use crate::refusal::Refusal;

/// What the service has seen, in order.
type Seen = Arc<Mutex<Vec<String>>>;

/// Answers what a proxy would: the refusal's status, or 200 with the body.
async fn answer(
    request: Request<Incoming>,
    fault: Option<Refusal>,
    watch: Watch,
    seen: Seen,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let refused = |refusal: Refusal| {
        let mut response = Response::new(Full::from(refusal.sentence()));
        *response.status_mut() = refusal.status();
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
fn connect() -> (DuplexStream, Watch, Seen) {
    let (client, server) = duplex(64 * 1024);
    let (gate, watch) = Gate::new(server, super::LIMIT);
    let seen = Seen::default();
    let service = {
        let (watch, seen) = (watch.clone(), seen.clone());
        service_fn(move |request| {
            let fault = watch.take_fault();
            answer(request, fault, watch.clone(), seen.clone())
        })
    };
    tokio::spawn(http1::Builder::new().serve_connection(gate, service));
    (client, watch, seen)
}

/// Everything up to the end of the connection.
async fn rest(client: &mut DuplexStream) -> String {
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_head_that_is_refused_is_answered_and_ends_the_connection() {
    let (mut client, watch, seen) = connect();
    client
        .write_all(b"GET / HTTP/1.1\nHost: a\n\nGET /b HTTP/1.1\r\nHost: b\r\n\r\n")
        .await
        .unwrap();
    let answer = rest(&mut client).await;
    assert!(
        answer.starts_with("HTTP/1.0 400 Bad Request\r\n"),
        "{answer}"
    );
    assert!(
        answer.ends_with("a line of the request ends without CR"),
        "{answer}"
    );
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(watch.reading(), Reading::Idle);
}

#[tokio::test]
async fn a_body_that_is_refused_is_answered_and_ends_the_connection() {
    let (mut client, _, seen) = connect();
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbodyGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let answer = rest(&mut client).await;
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer}"
    );
    assert!(
        answer.ends_with("a chunk does not end where its size says"),
        "{answer}"
    );
    assert!(seen.lock().unwrap().is_empty());
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
