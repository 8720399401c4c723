//! What an exchange fails with.

use std::borrow::Cow;
use std::io;

use super::answer::Malformed;
use crate::refusal::{Refusal, Truncation, UpstreamFailure};

/// Why a request got no response: the answer to it, and what is known beyond the cause.
#[derive(Debug)]
pub(crate) struct ExchangeError {
    pub(crate) refusal: Refusal,
    pub(crate) detail: Option<Cow<'static, str>>,
}

impl ExchangeError {
    pub(super) fn new(failure: UpstreamFailure, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            detail: Some(detail.into()),
            ..failure.into()
        }
    }

    /// The server switched to a protocol that the request did not ask for.
    pub(crate) fn unrequested_upgrade() -> Self {
        let what = "switched to a protocol that was not requested";
        Self::new(UpstreamFailure::MalformedHead, what)
    }

    /// The server did not take a connection.
    pub(super) fn connecting(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => UpstreamFailure::Refused.into(),
            _ => Self::new(UpstreamFailure::Unreachable, error.to_string()),
        }
    }

    /// The connection failed before the response head was complete.
    pub(super) fn closed(error: &io::Error) -> Self {
        Self::new(UpstreamFailure::Closed, error.to_string())
    }
}

impl From<Refusal> for ExchangeError {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.detail().map(Cow::Borrowed);
        Self { refusal, detail }
    }
}

impl From<UpstreamFailure> for ExchangeError {
    fn from(failure: UpstreamFailure) -> Self {
        Refusal::Upstream(failure).into()
    }
}

impl From<Malformed> for ExchangeError {
    fn from(Malformed(what): Malformed) -> Self {
        Self::new(UpstreamFailure::MalformedHead, what)
    }
}

/// Why a response ended before its end.
#[derive(Debug)]
pub(crate) struct Truncated {
    pub(crate) cause: Truncation,
    pub(crate) detail: Option<Cow<'static, str>>,
}

impl From<Truncation> for Truncated {
    fn from(cause: Truncation) -> Self {
        let detail = None;
        Self { cause, detail }
    }
}

impl From<io::Error> for Truncated {
    fn from(error: io::Error) -> Self {
        Self {
            cause: Truncation::UpstreamClosed,
            detail: Some(error.to_string().into()),
        }
    }
}

impl From<Malformed> for Truncated {
    fn from(Malformed(what): Malformed) -> Self {
        Self {
            cause: Truncation::MalformedBody,
            detail: Some(what.into()),
        }
    }
}
