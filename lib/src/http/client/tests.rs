//! Exchanges with scripted servers.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::http::HostPort;

/// A server that answers the requests of each connection with these bytes, one after another, and then waits.
async fn serve(responses: &'static [&'static str]) -> ServerAddress {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(respond(stream, responses));
        }
    });
    ServerAddress::Tcp(HostPort::from(address))
}

async fn respond(mut stream: TcpStream, responses: &[&str]) {
    for response in responses {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(response.as_bytes()).await.unwrap();
    }
    // Until the client closes.
    let _ = stream.read_u8().await;
}

fn get() -> ClientRequest {
    let host = HeaderValue::from_static("localhost");
    ClientRequest::new(Method::GET, PathAndQuery::from_static("/"), host)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

async fn read(response: &'static str, limit: usize) -> Result<Vec<u8>, ClientError> {
    let address = serve(vec![response].leak()).await;
    let mut response = exchange(&address, get(), ResponseParsing::Strict, soon()).await?;
    response.read_body(limit).await
}

#[tokio::test]
async fn body_is_read_whole_or_up_to_a_limit() {
    let hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(read(hello, 5).await.unwrap(), b"hello");
    assert!(matches!(
        read(hello, 4).await,
        Err(ClientError::BodyTooLong(4))
    ));
    let address = serve(vec![hello].leak()).await;
    let mut response = exchange(&address, get(), ResponseParsing::Strict, soon())
        .await
        .unwrap();
    let prefix = response.read_body_prefix(4).await.unwrap();
    assert_eq!(prefix, (b"hell".to_vec(), true));
}

#[tokio::test]
async fn failures_name_the_phase() {
    let chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    assert!(matches!(
        read(chunk, 9).await,
        Err(ClientError::TruncatedBody(_))
    ));
    assert!(matches!(
        read("SSH-2.0-x\r\n\r\n", 9).await,
        Err(ClientError::InvalidResponse(_))
    ));
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(17 << 10));
    assert!(matches!(
        read(long.leak(), 9).await,
        Err(ClientError::InvalidResponse(_))
    ));
    for (response, phase) in [
        ("", ExchangePhase::ResponseHead),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            ExchangePhase::ResponseBody,
        ),
    ] {
        let address = serve(vec![response].leak()).await;
        let deadline = Instant::now() + Duration::from_millis(500);
        let failed = async {
            let mut response = exchange(&address, get(), ResponseParsing::Strict, deadline).await?;
            response.read_body(9).await
        };
        let failure = failed.await.unwrap_err();
        assert!(matches!(failure, ClientError::Timeout(found) if found == phase));
    }
}

#[tokio::test]
async fn header_lines_are_skipped_only_by_the_lenient_parser() {
    let bad = "HTTP/1.1 204 No Content\r\nbad header\r\n\r\n";
    let address = serve(vec![bad].leak()).await;
    let lenient = exchange(&address, get(), ResponseParsing::Lenient, soon()).await;
    assert_eq!(lenient.unwrap().status, 204);
    let strict = exchange(&address, get(), ResponseParsing::Strict, soon()).await;
    assert!(matches!(strict, Err(ClientError::InvalidResponse(_))));
}

#[tokio::test]
async fn connection_carries_several_exchanges_and_is_closed_when_dropped() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let address = serve(vec![ok, ok].leak()).await;
    let (near, mut far) = tokio::io::duplex(1024);
    drop(ClientConnection::new(Box::new(near), ResponseParsing::Strict).await);
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    let stream = connect(&address, soon()).await.unwrap();
    let mut connection = ClientConnection::new(stream, ResponseParsing::Strict)
        .await
        .unwrap();
    for _ in 0..2 {
        let mut response = connection.send(get(), soon()).await.unwrap();
        assert_eq!(response.read_body(2).await.unwrap(), b"ok");
    }
}
