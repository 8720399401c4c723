//! Why an exchange failed.

use std::error::Error;
use std::{fmt, io};

/// The part of an exchange in which its deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangePhase {
    /// The server did not accept the connection.
    Connect,
    /// The head of the response was not complete.
    ResponseHead,
    /// The body of the response was not complete.
    ResponseBody,
}

/// Why an exchange failed.
#[derive(Debug)]
pub enum ClientError {
    /// The server cannot be reached. [`io::ErrorKind::NotFound`] is a name without an address, or no such socket file.
    Connect(io::Error),
    /// The connection ended before the head of a response was complete.
    Closed(hyper::Error),
    /// The response is not HTTP.
    InvalidResponse(hyper::Error),
    /// The body ended early, or its framing is invalid.
    TruncatedBody(hyper::Error),
    /// The body has more bytes than this.
    BodyTooLong(usize),
    /// The deadline passed.
    Timeout(ExchangePhase),
}

impl ClientError {
    pub(super) fn of_head(error: hyper::Error) -> Self {
        match error.is_parse() {
            true => Self::InvalidResponse(error),
            false => Self::Closed(error),
        }
    }

    /// The innermost cause, which is the most exact; hyper's own text leaves out what happened.
    #[must_use]
    pub fn root_cause(&self) -> String {
        let error: &(dyn Error + 'static) = match self {
            Self::Connect(error) => error,
            Self::Closed(error) | Self::InvalidResponse(error) | Self::TruncatedBody(error) => {
                error
            }
            Self::BodyTooLong(_) | Self::Timeout(_) => return self.to_string(),
        };
        crate::failure::root_cause(error).to_string()
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = match self {
            Self::Connect(_) => "cannot connect",
            Self::Closed(_) => "connection closed without a response",
            Self::InvalidResponse(_) => "invalid response",
            Self::TruncatedBody(_) => "truncated response",
            Self::BodyTooLong(limit) => return write!(f, "response body over {limit} bytes"),
            Self::Timeout(ExchangePhase::Connect) => return f.write_str("connect timeout"),
            Self::Timeout(ExchangePhase::ResponseHead) => return f.write_str("response timeout"),
            Self::Timeout(ExchangePhase::ResponseBody) => {
                return f.write_str("response body timeout");
            }
        };
        write!(f, "{phase}: {}", self.root_cause())
    }
}

impl Error for ClientError {}
