//! Asking an admin listener, for a tool's verbs. HTTP/1.0 by hand: one request, and the answer ends with the
//! connection, which is not worth an HTTP client in every tool.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::AdminAddress;
use crate::http::server::{BoxedStream, DEADLINE};
use crate::{Exit, Failure};

/// The longest answer that is read: the status of a thousand services of a hundred members is a fraction of it.
const ANSWER: u64 = 64 << 20;

/// The body of `GET path` (with its query) of the daemon at `address`.
///
/// # Errors
/// Nobody answers there within 5 s, or the answer is broken (exit 69); or it is not 2xx (exit 66 for 404, else 1), and
/// the message holds what was answered.
pub async fn get(address: &AdminAddress, path: &str) -> Result<String, Failure> {
    let answer = match timeout(DEADLINE, exchange(address, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in 5 s")),
    };
    let (status, body) = answer.and_then(parse).map_err(|error| {
        Failure::new(Exit::UNAVAILABLE, format!("cannot ask {address}"))
            .remedy("is the daemon running, with this --admin address?")
            .because(error)
    })?;
    match status {
        200..=299 => Ok(body),
        404 => Err(refusal(Exit::NOT_FOUND, address, path, status, &body)),
        _ => Err(refusal(Exit::FAILED, address, path, status, &body)),
    }
}

fn refusal(exit: Exit, address: &AdminAddress, path: &str, status: u16, body: &str) -> Failure {
    let said: String = body.trim().chars().take(500).collect();
    Failure::new(exit, format!("{address}{path} answered {status}")).because(said)
}

async fn exchange(address: &AdminAddress, path: &str) -> io::Result<Vec<u8>> {
    let mut stream: BoxedStream = match address {
        AdminAddress::Tcp(address) => Box::new(TcpStream::connect(address).await?),
        AdminAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
    };
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Status and body of a whole answer (RFC 9112 sections 2 and 6.3).
fn parse(answer: Vec<u8>) -> io::Result<(u16, String)> {
    let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let answer = String::from_utf8(answer).map_err(|_| broken("the answer is not UTF-8"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| broken("the answer is not HTTP"))?;
    let status = head
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5)?.parse().ok())
        .ok_or_else(|| broken("the answer is not HTTP"))?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let found = name.eq_ignore_ascii_case("content-length");
        found.then(|| value.trim().parse::<usize>().ok())?
    });
    if length.is_some_and(|length| length != body.len()) {
        return Err(broken("the answer was cut off"));
    }
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_cut_off_is_no_answer() {
        let whole = b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody".to_vec();
        assert_eq!(parse(whole.clone()).unwrap(), (200, "body".to_owned()));
        for end in 0..whole.len() {
            assert!(parse(whole[..end].to_vec()).is_err(), "{end}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes: Vec<u8>, start in proptest::bool::ANY) {
            let head = if start { b"HTTP/1.1 ".to_vec() } else { Vec::new() };
            let _ = parse([head, bytes].concat());
        }
    }
}
