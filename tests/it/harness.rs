//! Tests of the kit itself, with a client that only reads bytes.

mod origin;
mod servers;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// The response of one connection.
#[derive(Debug)]
struct ConnectionResult {
    code: u16,
    head: String,
    body: Vec<u8>,
    end: ConnectionEnd,
}

#[derive(Debug, PartialEq, Eq)]
enum ConnectionEnd {
    Closed,
    Reset,
    Silent,
}

impl ConnectionResult {
    /// The value of a header; names are compared in lower case.
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim())
    }
}

/// Sends one request and reads until the peer closes or falls silent. `headers` holds whole lines.
fn talk(port: u16, method: &str, path: &str, headers: &[&str]) -> ConnectionResult {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for line in headers {
        request.push_str(line);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let end = match stream.read_to_end(&mut bytes) {
        Ok(_) => ConnectionEnd::Closed,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => ConnectionEnd::Reset,
        Err(error) if error.kind() == ErrorKind::WouldBlock => ConnectionEnd::Silent,
        Err(error) => panic!("{error}"),
    };
    let split = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let split = split.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(&bytes)));
    let head = String::from_utf8(bytes[..split].to_vec()).unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    ConnectionResult {
        code,
        head,
        body: bytes[split + 4..].to_vec(),
        end,
    }
}
