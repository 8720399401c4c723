//! One HTTP exchange as Python 2's urllib2 and httplib do it, with their differences from other clients: a response
//! without a head is a body, a truncated body is accepted, a timeout applies to one operation. Derived from their
//! sources; the signaler decides what to send and what a response means.

use std::fmt;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use crate::wait_limit;

/// httplib's longest line.
const LINE: u64 = 65_536;
/// httplib's largest number of headers.
const HEADERS: usize = 100;
/// How much of a body is kept. Python keeps all of it, but a longer one equals no expected body either way.
const KEPT: u64 = 1 << 20;

/// The failure of an exchange, in the words of the executor.
#[derive(Debug)]
pub(super) enum UrllibError {
    /// Before the request was sent: urllib2's `URLError`.
    Unsent(String),
    /// A timeout, or a response that httplib rejects: the name of the exception.
    Within(&'static str),
    /// Any other error while reading.
    Unexpected(String),
}

impl fmt::Display for UrllibError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsent(why) => write!(out, "<urlopen error {why}>"),
            Self::Within(exception) => write!(out, "Error within {exception}"),
            Self::Unexpected(why) => write!(out, "Unexpected error: {why}"),
        }
    }
}

/// A URL with the scheme http.
#[derive(Debug, Clone)]
pub(super) struct HttpUrl {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

impl HttpUrl {
    /// The target of a `Location`; `None` unless it is http.
    fn join(&self, location: &str) -> Option<Self> {
        let Some((scheme, rest)) = location.split_once("://") else {
            let here = self.path.rsplit_once('/').map_or("", |(before, _)| before);
            let path = if location.starts_with('/') {
                location.to_owned()
            } else {
                format!("{here}/{location}")
            };
            return Some(Self {
                path,
                ..self.clone()
            });
        };
        let (authority, path) = rest
            .find('/')
            .map_or((rest, "/"), |slash| rest.split_at(slash));
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
        (scheme == "http").then_some(Self {
            host: host.to_owned(),
            port: port.parse().ok()?,
            path: path.to_owned(),
        })
    }
}

/// A response whose body is not read yet.
pub(super) struct UrllibResponse {
    pub(super) code: u16,
    headers: Vec<(String, String)>,
    /// The first bytes of a response without a head.
    start: Vec<u8>,
    stream: TimedStream,
}

impl UrllibResponse {
    /// Sends a request and reads the head of the response.
    pub(super) fn ask(
        place: &HttpUrl,
        method: &str,
        timeout: Duration,
    ) -> Result<Self, UrllibError> {
        let unsent = |error: std::io::Error| UrllibError::Unsent(python(&error));
        let mut stream = connect(place, timeout).map_err(unsent)?;
        stream
            .write_all(request(place, method).as_bytes())
            .map_err(unsent)?;
        let mut reply = Self {
            code: 0,
            headers: Vec::new(),
            start: Vec::new(),
            stream: TimedStream::new(stream),
        };
        loop {
            let line = reply.stream.line()?;
            if !reply.status(line)? {
                return Ok(reply);
            }
            reply.head()?;
            if reply.code != 100 {
                return Ok(reply);
            }
        }
    }

    /// Reads a status line; returns `false` for any other first line, which starts an HTTP/0.9 body.
    fn status(&mut self, line: Vec<u8>) -> Result<bool, UrllibError> {
        if line.is_empty() {
            return Err(UrllibError::Within("BadStatusLine"));
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        let mut words = text.split_ascii_whitespace();
        let (version, code) = (words.next().unwrap_or_default(), words.next());
        let Some(code) = code.filter(|_| version.starts_with("HTTP/")) else {
            (self.code, self.start) = (200, line);
            return Ok(false);
        };
        let code = code.parse().ok().filter(|code| (100..1000).contains(code));
        self.code = code.ok_or(UrllibError::Within("BadStatusLine"))?;
        if version.starts_with("HTTP/1.") || version == "HTTP/0.9" {
            return Ok(true);
        }
        Err(UrllibError::Within("UnknownProtocol"))
    }

    fn head(&mut self) -> Result<(), UrllibError> {
        self.headers.clear();
        loop {
            let line = String::from_utf8_lossy(&self.stream.line()?).into_owned();
            if line.trim().is_empty() {
                return Ok(());
            }
            if self.headers.len() == HEADERS {
                return Err(UrllibError::Within("HTTPException"));
            }
            if let Some((name, value)) = line.split_once(':') {
                self.headers
                    .push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// The redirect that urllib2 follows, if any: a POST continues as a GET, except where that would repeat it.
    pub(super) fn redirect(&self, from: &HttpUrl, method: &str) -> Option<HttpUrl> {
        let follows = match self.code {
            301..=303 => true,
            307 => method == "GET",
            _ => false,
        };
        from.join(self.header("location").filter(|_| follows)?)
    }

    /// Reads the body, without a limit on its time.
    pub(super) fn body(&mut self) -> Result<Vec<u8>, UrllibError> {
        let mut body = std::mem::take(&mut self.start);
        let chunked = self.header("transfer-encoding");
        if chunked.is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            self.chunks(&mut body)?;
            return Ok(body);
        }
        let length = match self.code {
            204 | 304 => Some(0),
            _ => self
                .header("content-length")
                .and_then(|text| text.parse().ok()),
        };
        // A truncated body is accepted: urllib2 reads in pieces and does not compare the length.
        self.stream.read(length.unwrap_or(u64::MAX), &mut body)?;
        Ok(body)
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> Result<(), UrllibError> {
        loop {
            let line = String::from_utf8_lossy(&self.stream.line()?).into_owned();
            let size = line.split(';').next().unwrap_or_default().trim();
            let size =
                u64::from_str_radix(size, 16).map_err(|_| UrllibError::Within("IncompleteRead"))?;
            if size == 0 {
                return Ok(());
            }
            if self.stream.read(size, body)? < size {
                return Err(UrllibError::Within("IncompleteRead"));
            }
            self.stream.line()?;
        }
    }
}

/// A stream with a timeout for each operation, and the kit's own limit on the whole.
struct TimedStream {
    stream: BufReader<TcpStream>,
    until: Instant,
}

impl TimedStream {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream: BufReader::new(stream),
            until: Instant::now() + 2 * wait_limit(),
        }
    }

    /// Reads one line with its end; less at the end of the stream.
    fn line(&mut self) -> Result<Vec<u8>, UrllibError> {
        let mut line = Vec::new();
        let read = self
            .stream
            .by_ref()
            .take(LINE + 1)
            .read_until(b'\n', &mut line);
        read.map_err(|error| while_reading(&error))?;
        if line.len() as u64 > LINE {
            return Err(UrllibError::Within("LineTooLong"));
        }
        Ok(line)
    }

    /// Reads up to `length` bytes and keeps the first of them; returns how many came.
    fn read(&mut self, length: u64, into: &mut Vec<u8>) -> Result<u64, UrllibError> {
        let mut seen = 0;
        while seen < length {
            assert!(Instant::now() < self.until, "a response without end");
            let part = self.stream.fill_buf();
            let part = part.map_err(|error| while_reading(&error))?;
            if part.is_empty() {
                break;
            }
            let size = part
                .len()
                .min(usize::try_from(length - seen).unwrap_or(usize::MAX));
            if (into.len() as u64) < KEPT {
                into.extend_from_slice(&part[..size]);
            }
            self.stream.consume(size);
            seen += size as u64;
        }
        Ok(seen)
    }
}

/// Connects to the first address of the host that accepts; each has the whole timeout.
fn connect(place: &HttpUrl, timeout: Duration) -> std::io::Result<TcpStream> {
    let host = place.host.trim_matches(['[', ']']);
    let mut last = std::io::Error::from(ErrorKind::AddrNotAvailable);
    for address in (host, place.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The bytes that httplib writes, in one piece.
fn request(place: &HttpUrl, method: &str) -> String {
    let of_a_form = match method {
        "POST" => "Content-Length: 0\r\nContent-Type: application/x-www-form-urlencoded\r\n",
        _ => "",
    };
    format!(
        "{method} {} HTTP/1.1\r\nAccept-Encoding: identity\r\n{of_a_form}Host: {}:{}\r\nConnection: close\r\n\
         User-Agent: Python-urllib/2.7\r\n\r\n",
        place.path, place.host, place.port
    )
}

fn timed_out(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn while_reading(error: &std::io::Error) -> UrllibError {
    if timed_out(error) {
        return UrllibError::Within("timeout");
    }
    UrllibError::Unexpected(python(error))
}

/// An error in Python's words.
fn python(error: &std::io::Error) -> String {
    if timed_out(error) {
        return "timed out".to_owned();
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    match error.raw_os_error() {
        Some(number) => format!("[Errno {number}] {text}"),
        None => text.to_owned(),
    }
}
