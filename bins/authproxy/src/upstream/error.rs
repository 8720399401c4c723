//! What an exchange fails with.

use std::borrow::Cow;
use std::io;

use super::response::InvalidResponse;
use crate::request_error::{RequestError, TruncationReason, UpstreamFailure};

/// Why a request got no response: the answer to it, and what is known beyond the cause.
#[derive(Debug)]
pub(crate) struct ExchangeError {
    pub(crate) refusal: RequestError,
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

impl From<RequestError> for ExchangeError {
    fn from(refusal: RequestError) -> Self {
        let detail = refusal.detail().map(Cow::Borrowed);
        Self { refusal, detail }
    }
}

impl From<UpstreamFailure> for ExchangeError {
    fn from(failure: UpstreamFailure) -> Self {
        RequestError::Upstream(failure).into()
    }
}

impl From<InvalidResponse> for ExchangeError {
    fn from(InvalidResponse(what): InvalidResponse) -> Self {
        Self::new(UpstreamFailure::MalformedHead, what)
    }
}

/// Why a response ended before its end.
#[derive(Debug)]
pub(crate) struct TruncatedResponse {
    pub(crate) cause: TruncationReason,
    pub(crate) detail: Option<Cow<'static, str>>,
}

impl From<TruncationReason> for TruncatedResponse {
    fn from(cause: TruncationReason) -> Self {
        let detail = None;
        Self { cause, detail }
    }
}

impl From<io::Error> for TruncatedResponse {
    fn from(error: io::Error) -> Self {
        Self {
            cause: TruncationReason::UpstreamClosed,
            detail: Some(error.to_string().into()),
        }
    }
}

impl From<InvalidResponse> for TruncatedResponse {
    fn from(InvalidResponse(what): InvalidResponse) -> Self {
        Self {
            cause: TruncationReason::MalformedBody,
            detail: Some(what.into()),
        }
    }
}
