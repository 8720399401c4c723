//! An upstream that records every byte it receives, and answers as one of four kinds of parsers would.
//!
//! Owns the recording. How each kind reads the record is in [`parser`]; which requests it may contain is up to the
//! test.

pub mod parser;

use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::tcp_server::TcpServer;
use parser::{ParsedRequest, ParsedStream, ParserProfile};

/// The body of every response.
pub const RESPONSE_BODY: &str = "ok";

type RecordedBytes = Arc<Mutex<Vec<Vec<u8>>>>;

/// A running upstream. Dropping it closes its port and every connection.
#[derive(Debug)]
pub struct RecordingUpstream {
    server: TcpServer,
    record: RecordedBytes,
    personality: ParserProfile,
}

/// The bytes of one connection as one kind of parser reads them.
#[derive(Debug, Clone)]
pub struct ConnectionView {
    /// The number of the connection in the order of acceptance.
    pub connection: usize,
    pub personality: ParserProfile,
    pub reading: ParsedStream,
}

impl RecordingUpstream {
    /// Starts an upstream on a free port of 127.0.0.1.
    #[must_use]
    pub fn start(personality: ParserProfile) -> Self {
        let record = RecordedBytes::default();
        let shared = record.clone();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let server = TcpServer::on(listener, "backend", move |stream| {
            let number = {
                let mut record = shared.lock().unwrap();
                record.push(Vec::new());
                record.len() - 1
            };
            let record = shared.clone();
            async move {
                // The client may disconnect.
                let _ = serve(stream, personality, &record, number).await;
            }
        });
        Self {
            server,
            record,
            personality,
        }
    }

    #[must_use]
    pub const fn port(&self) -> u16 {
        self.server.address().port()
    }

    /// The value of `--server`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// The bytes of each connection so far.
    #[must_use]
    pub fn record(&self) -> Vec<Vec<u8>> {
        self.record.lock().unwrap().clone()
    }

    /// Each connection so far as each of the four kinds of parsers reads it.
    #[must_use]
    pub fn seen(&self) -> Vec<ConnectionView> {
        let record = self.record();
        let each = |(connection, bytes): (usize, &Vec<u8>)| {
            ParserProfile::ALL.map(|personality| ConnectionView {
                connection,
                personality,
                reading: personality.read(bytes),
            })
        };
        record.iter().enumerate().flat_map(each).collect()
    }

    /// The requests so far as the upstream itself reads them, connection by connection.
    #[must_use]
    pub fn requests(&self) -> Vec<ParsedRequest> {
        let record = self.record();
        let each = |bytes: &Vec<u8>| self.personality.read(bytes).requests;
        record.iter().flat_map(each).collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    personality: ParserProfile,
    record: &RecordedBytes,
    number: usize,
) -> std::io::Result<()> {
    // Bytes after the last complete request.
    let mut rest = Vec::new();
    loop {
        let before = rest.len();
        if stream.read_buf(&mut rest).await? == 0 {
            return Ok(());
        }
        record.lock().unwrap()[number].extend(&rest[before..]);
        let reading = personality.read(&rest);
        for request in reading.whole() {
            stream.write_all(&answer(request)).await?;
            if !request.keeps_alive() {
                return Ok(());
            }
        }
        if reading.broken {
            return stream
                .write_all(b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
        }
        rest.drain(..reading.taken);
        let waits = reading.partial().is_some_and(|request| {
            let expects = request.header("expect");
            request.body.is_empty()
                && expects.is_some_and(|what| what.eq_ignore_ascii_case("100-continue"))
        });
        if waits {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
    }
}

fn answer(request: &ParsedRequest) -> Vec<u8> {
    let body = if request.line.starts_with("HEAD ") {
        ""
    } else {
        RESPONSE_BODY
    };
    let length = RESPONSE_BODY.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::time::Duration;

    use super::parser::{FramingPreference, LineEnding};
    use super::*;

    #[test]
    fn upstream_answers_by_its_profile_and_shows_views_of_others() {
        let backend = RecordingUpstream::start(ParserProfile {
            ends: LineEnding::Crlf,
            framing: FramingPreference::Length,
        });
        let smuggled = "GET /b HTTP/1.1\r\n\r\n";
        let body = format!("0\r\n\r\n{smuggled}");
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", backend.port())).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        write!(
            stream,
            "POST /a HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1);
        let lines = |framing| {
            let seen = backend.seen();
            let mut seen = seen
                .iter()
                .filter(|seen| seen.personality.framing == framing);
            let requests = &seen.next().unwrap().reading.requests;
            let lines = requests.iter().map(|request| request.line.clone());
            lines.collect::<Vec<_>>()
        };
        assert_eq!(lines(FramingPreference::Length), ["POST /a HTTP/1.1"]);
        assert_eq!(
            lines(FramingPreference::Chunked),
            ["POST /a HTTP/1.1", "GET /b HTTP/1.1"]
        );
        assert_eq!(backend.requests().len(), 1);
    }
}
