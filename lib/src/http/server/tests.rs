//! Several requests on one connection.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

struct TestServer {
    stream: TcpStream,
    failures: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

impl TestServer {
    /// A server, and a connection to it.
    async fn start(idle_timeout: Option<Duration>) -> Self {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let failures = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&failures);
        let router = Router::default()
            .route("POST", ANY_PATH, |request| {
                RouteResponse::new(200, "text/plain", request.body)
            })
            .route("GET", "/health", |_| RouteResponse::text(200, "ok"))
            .on_response(move |status| {
                counter.fetch_add(usize::from(status != 200), Ordering::Relaxed);
            });
        let limits = ServerLimits {
            max_connections: 9,
            max_body: 24,
            idle_timeout,
            drain_timeout: DEADLINE,
        };
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(async move {
            let _ = serve(vec![ListeningSocket::Tcp(socket)], router, limits, stopped).await;
        });
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            failures,
            stop,
            ended,
        }
    }

    async fn send(&mut self, request: &str) {
        self.stream.write_all(request.as_bytes()).await.unwrap();
    }

    /// Reads up to these bytes, which must be the last of what the server has sent.
    async fn read_until(&mut self, end: &str) -> String {
        let mut bytes = vec![0; 4096];
        let mut length = 0;
        while !bytes[..length].ends_with(end.as_bytes()) {
            let read = self.stream.read(&mut bytes[length..]).await.unwrap();
            assert_ne!(read, 0, "{}", String::from_utf8_lossy(&bytes[..length]));
            length += read;
        }
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    async fn read_to_end(&mut self) -> String {
        let mut text = String::new();
        self.stream.read_to_string(&mut text).await.unwrap();
        text
    }
}

fn post(body: &str) -> String {
    let length = body.len();
    format!("POST /any HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}")
}

const KEPT: Option<Duration> = Some(Duration::from_secs(60));

#[tokio::test]
async fn connection_carries_requests_one_after_another_and_pipelined() {
    let mut server = TestServer::start(KEPT).await;
    for body in ["one", "two"] {
        server.send(&post(body)).await;
        let response = server.read_until(body).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(!response.contains("connection: close"), "{response}");
    }
    server.send(&[post("three"), post("four")].concat()).await;
    server.read_until("four").await;
    server
        .send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
        .await;
    let last = server.read_to_end().await;
    assert!(last.contains("connection: close") && last.ends_with("ok"));
}

#[tokio::test]
async fn connection_ends_after_one_request_without_an_idle_timeout() {
    let mut server = TestServer::start(None).await;
    server.send(&[post("one"), post("two")].concat()).await;
    let response = server.read_to_end().await;
    assert!(response.contains("connection: close") && response.ends_with("one"));
}

#[tokio::test]
async fn connection_ends_after_a_request_whose_body_is_not_read() {
    for (request, status) in [
        (
            "PUT / HTTP/1.1\r\nContent-Length: 24\r\n\r\nGET /health HTTP/1.1\r\n\r\n",
            405,
        ),
        ("POST / HTTP/1.1\r\nContent-Length: 25\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
    ] {
        let mut server = TestServer::start(KEPT).await;
        server.send(request).await;
        let response = server.read_to_end().await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{response}"
        );
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{response}");
        assert_eq!(server.failures.load(Ordering::Relaxed), 1, "{request}");
    }
}

#[tokio::test]
async fn rejected_request_is_read_so_that_its_client_gets_the_response() {
    let mut server = TestServer::start(KEPT).await;
    let length = 1 << 20;
    let head = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
    server.send(&head).await;
    server.send(&"x".repeat(length)).await;
    let response = server.read_to_end().await;
    assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
}

#[tokio::test]
async fn client_that_waits_for_100_gets_it_before_it_sends_the_body() {
    let mut server = TestServer::start(KEPT).await;
    server
        .send("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await;
    server.read_until("HTTP/1.1 100 Continue\r\n\r\n").await;
    server.send("body").await;
    assert!(server.read_until("body").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_finishes_requests_under_way() {
    let mut idle = TestServer::start(KEPT).await;
    idle.send(&post("one")).await;
    idle.read_until("one").await;
    idle.stop.send(()).unwrap();
    idle.ended.await.unwrap();
    assert_eq!(idle.stream.read(&mut [0]).await.unwrap(), 0);

    let mut busy = TestServer::start(KEPT).await;
    busy.send("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await;
    busy.read_until("\r\n\r\n").await;
    busy.stop.send(()).unwrap();
    busy.stream.write_all(b"body").await.unwrap();
    let mut response = String::new();
    busy.stream.read_to_string(&mut response).await.unwrap();
    assert!(response.contains("connection: close") && response.ends_with("body"));
    busy.ended.await.unwrap();
}

#[tokio::test]
async fn idle_connection_is_closed_after_its_timeout() {
    let mut server = TestServer::start(Some(Duration::from_millis(50))).await;
    server.send(&post("one")).await;
    server.read_until("one").await;
    assert_eq!(server.read_to_end().await, "");
}
