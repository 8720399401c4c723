//! Errors of an exchange with upstream.

use std::borrow::Cow;
use std::io;

use super::response::InvalidResponse;
use crate::request_error::{RequestError, TruncationReason, UpstreamFailure};

/// Why a request got no response: the error response, and what is known beyond the reason.
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

    /// Upstream switched to a protocol that was not requested.
    pub(crate) fn unrequested_upgrade() -> Self {
        let what = "switched to a protocol that was not requested";
        Self::new(UpstreamFailure::InvalidHead, what)
    }

    pub(super) fn connect(error: &io::Error) -> Self {
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
        Self::new(UpstreamFailure::InvalidHead, what)
    }
}

/// Why a response was truncated, and what is known beyond the reason.
#[derive(Debug)]
pub(crate) struct TruncatedResponse {
    pub(crate) reason: TruncationReason,
    pub(crate) detail: Option<Cow<'static, str>>,
}

impl From<TruncationReason> for TruncatedResponse {
    fn from(reason: TruncationReason) -> Self {
        let detail = None;
        Self { reason, detail }
    }
}

impl From<io::Error> for TruncatedResponse {
    fn from(error: io::Error) -> Self {
        Self {
            reason: TruncationReason::UpstreamClosed,
            detail: Some(error.to_string().into()),
        }
    }
}

impl From<InvalidResponse> for TruncatedResponse {
    fn from(InvalidResponse(what): InvalidResponse) -> Self {
        Self {
            reason: TruncationReason::InvalidBody,
            detail: Some(what.into()),
        }
    }
}
