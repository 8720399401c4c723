//! One attempt: a request, its response, and the classification of a failure. Nothing is retried.

use std::fmt;
use std::io::ErrorKind;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::head::MessageHead;
use super::{ConnectionReuse, LoadPlan};

/// The kind of a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    Status(u16),
    Refused,
    /// The connection could not be opened for another reason, possibly of the generator itself: no local port.
    Connect,
    /// A new connection was reset before the response began.
    Reset,
    /// The same on a kept connection.
    ResetReused,
    /// A new connection was closed before the response began.
    Eof,
    /// The same on a kept connection: the request crossed with the close of an idle connection.
    EofReused,
    /// The connection ended within the response.
    Truncated,
    /// The response was not complete at the timeout.
    Timeout,
    /// The response is that of another service.
    BadBody,
    /// The response is malformed or incomplete HTTP.
    BadResponse,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status(code) => return write!(f, "status-{code}"),
            Self::Refused => "refused",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::ResetReused => "reset-reused",
            Self::Eof => "eof",
            Self::EofReused => "eof-reused",
            Self::Truncated => "truncated",
            Self::Timeout => "timeout",
            Self::BadBody => "bad-body",
            Self::BadResponse => "bad-response",
        })
    }
}

/// A connection that may carry further requests.
pub(super) struct ClientConnection {
    stream: TcpStream,
    /// Whether it has carried a response.
    reused: bool,
}

/// The kind of a failure, and its detail.
type ExchangeFailure = (FailureKind, String);

/// Sends one request, over the kept connection if any, and reads the response. The connection is kept if both sides
/// allow it.
pub(super) async fn attempt(
    plan: &LoadPlan,
    request: &[u8],
    kept: &mut Option<ClientConnection>,
) -> Result<(), ExchangeFailure> {
    // Taken out of its place, so that an attempt that times out drops the connection.
    let before = kept.take();
    let exchange = async {
        let mut connection = match before {
            Some(connection) => connection,
            None => ClientConnection::open(plan).await?,
        };
        connection.send(request).await?;
        let close = connection.receive(plan).await?;
        Ok((!close && plan.connections == ConnectionReuse::KeepAlive).then_some(connection))
    };
    match tokio::time::timeout(plan.timeout, exchange).await {
        Ok(Ok(connection)) => {
            *kept = connection;
            Ok(())
        }
        Ok(Err(failed)) => Err(failed),
        Err(_) => Err((
            FailureKind::Timeout,
            format!("no end after {:?}", plan.timeout),
        )),
    }
}

impl ClientConnection {
    async fn open(plan: &LoadPlan) -> Result<Self, ExchangeFailure> {
        let opened = TcpStream::connect(plan.target).await;
        let stream = opened.map_err(|error| {
            let kind = match error.kind() {
                ErrorKind::ConnectionRefused => FailureKind::Refused,
                ErrorKind::ConnectionReset => FailureKind::Reset,
                _ => FailureKind::Connect,
            };
            (kind, error.to_string())
        })?;
        let _ = stream.set_nodelay(true);
        Ok(Self {
            stream,
            reused: false,
        })
    }

    async fn send(&mut self, request: &[u8]) -> Result<(), ExchangeFailure> {
        match self.stream.write_all(request).await {
            Ok(()) => Ok(()),
            // The close came before the request was written; reading would report the same.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(self.ended(error)),
            Err(error) => Err(self.reset(error)),
        }
    }

    /// Reads one response; returns whether the connection ends with it.
    async fn receive(&mut self, plan: &LoadPlan) -> Result<bool, ExchangeFailure> {
        let mut bytes = Vec::with_capacity(1024);
        let head = loop {
            match MessageHead::parse(&bytes) {
                Ok(Some(head)) => break head,
                Ok(None) => {}
                Err(what) => return Err((FailureKind::BadResponse, what)),
            }
            match self.stream.read_buf(&mut bytes).await {
                Ok(0) if bytes.is_empty() => return Err(self.ended("before the response")),
                Err(error) if bytes.is_empty() => return Err(self.reset(error)),
                Ok(0) => return Err((FailureKind::Truncated, "within the head".to_owned())),
                Err(error) => return Err((FailureKind::Truncated, error.to_string())),
                Ok(_) => {}
            }
        };
        let end = head.body.map(|length| head.length.saturating_add(length));
        while end.is_none_or(|end| bytes.len() < end) {
            match self.stream.read_buf(&mut bytes).await {
                // A body without a length ends with the connection (RFC 9112 section 6.3).
                Ok(0) if end.is_none() => break,
                Ok(0) => return Err((FailureKind::Truncated, "within the body".to_owned())),
                Err(error) => return Err((FailureKind::Truncated, error.to_string())),
                Ok(_) => {}
            }
        }
        if end.is_some_and(|end| bytes.len() > end) {
            return Err((
                FailureKind::BadResponse,
                "more bytes than were promised".to_owned(),
            ));
        }
        judge(plan, &bytes, &head)?;
        self.reused = true;
        Ok(head.close || end.is_none())
    }

    fn ended(&self, why: impl fmt::Display) -> ExchangeFailure {
        let kind = if self.reused {
            FailureKind::EofReused
        } else {
            FailureKind::Eof
        };
        (kind, why.to_string())
    }

    fn reset(&self, why: impl fmt::Display) -> ExchangeFailure {
        let kind = if self.reused {
            FailureKind::ResetReused
        } else {
            FailureKind::Reset
        };
        (kind, why.to_string())
    }
}

/// Whether a complete response has status 2xx and the expected body.
fn judge(plan: &LoadPlan, bytes: &[u8], head: &MessageHead) -> Result<(), ExchangeFailure> {
    let body = String::from_utf8_lossy(&bytes[head.length..]);
    let code = std::str::from_utf8(&bytes[head.second.clone()]).unwrap_or_default();
    let seen = || format!("{code}: {:.80}", body.trim_end());
    match code.parse::<u16>() {
        Ok(200..300) => {}
        Ok(code) => return Err((FailureKind::Status(code), seen())),
        Err(_) => return Err((FailureKind::BadResponse, seen())),
    }
    if body.split(' ').next() == Some(plan.service.as_str()) {
        Ok(())
    } else {
        Err((FailureKind::BadBody, seen()))
    }
}
