//! Why authproxy answers a request itself instead of proxying it.
//!
//! Owns the list of reasons: status, error code and message of each. The bytes of the response are `local_response`'s.

mod reason;

use hyper::StatusCode;

pub(crate) use reason::{PermissionsFailure, TruncationReason, UpstreamFailure};

/// Why a request gets an error response. The code stands in the JSON body; the reason, which is more precise where the
/// client is not at fault, in the access log and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestError {
    /// 400: the bytes are ambiguous, or not HTTP/1.1. The text names the broken rule.
    InvalidRequest(&'static str),
    /// 400: two different keys, or one key sent twice.
    AmbiguousKey,
    /// 400: a rule about paths applies, and servers normalize this path differently.
    AmbiguousPath,
    /// 400: the query parameter that names the host was sent twice.
    AmbiguousHost,
    /// 401: no key was sent.
    MissingKey,
    /// 403: the permissions backend does not have the key.
    UnknownKey,
    /// 403: the key has expired.
    ExpiredKey,
    /// 403: the key lacks a right that the route requires.
    MissingRight,
    /// 403: the key is not valid for a host that the request names.
    HostNotAllowed,
    /// 403: the key is not valid for the path.
    PathNotAllowed,
    /// 403: the key is not valid for the method.
    MethodNotAllowed,
    /// 408: the request took longer than the client timeout.
    RequestTimeout,
    /// 413: the body is longer than `--max-body`.
    BodyTooLarge,
    /// 417: an expectation other than `100-continue`.
    UnsupportedExpectation,
    /// 429: the key has as many requests in the queue for upstream as it may.
    TooManyRequests,
    /// 431: the head is longer than `--max-head`.
    HeadTooLarge,
    /// 501: `CONNECT`.
    NotImplemented,
    /// 503: the permissions backend cannot be queried.
    PermissionsUnavailable(PermissionsFailure),
    /// 502, 503 or 504: there is no response from upstream.
    Upstream(UpstreamFailure),
}

impl RequestError {
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest(_)
            | Self::AmbiguousKey
            | Self::AmbiguousPath
            | Self::AmbiguousHost => StatusCode::BAD_REQUEST,
            Self::MissingKey => StatusCode::UNAUTHORIZED,
            Self::UnknownKey
            | Self::ExpiredKey
            | Self::MissingRight
            | Self::HostNotAllowed
            | Self::PathNotAllowed
            | Self::MethodNotAllowed => StatusCode::FORBIDDEN,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedExpectation => StatusCode::EXPECTATION_FAILED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::PermissionsUnavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Upstream(failure) => failure.status(),
        }
    }

    /// The error code in the response body, for programs.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "invalid_request",
            Self::AmbiguousKey => "ambiguous_key",
            Self::AmbiguousPath => "ambiguous_path",
            Self::AmbiguousHost => "ambiguous_host",
            Self::MissingKey => "missing_key",
            Self::UnknownKey => "unknown_key",
            Self::ExpiredKey => "expired_key",
            Self::MissingRight => "missing_right",
            Self::HostNotAllowed => "host_not_allowed",
            Self::PathNotAllowed => "path_not_allowed",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedExpectation => "unsupported_expectation",
            Self::TooManyRequests => "too_many_requests",
            Self::HeadTooLarge => "head_too_large",
            Self::NotImplemented => "not_implemented",
            Self::PermissionsUnavailable(_) => "permissions_unavailable",
            Self::Upstream(failure) => match failure.status() {
                StatusCode::GATEWAY_TIMEOUT => "gateway_timeout",
                StatusCode::SERVICE_UNAVAILABLE => "overloaded",
                _ => "bad_gateway",
            },
        }
    }

    /// The reason in the access log and the metrics, for operators: it also has what clients need not learn.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::PermissionsUnavailable(failure) => failure.as_str(),
            Self::Upstream(failure) => failure.as_str(),
            _ => self.code(),
        }
    }

    /// What is known beyond the reason.
    pub(crate) const fn detail(self) -> Option<&'static str> {
        match self {
            Self::InvalidRequest(rule) => Some(rule),
            _ => None,
        }
    }

    /// The message in the response body, for people.
    pub(crate) const fn message(self) -> &'static str {
        match self {
            Self::InvalidRequest(rule) => rule,
            Self::AmbiguousKey => "more than one API key was sent",
            Self::AmbiguousPath => "the path has segments that servers read differently",
            Self::AmbiguousHost => "the host parameter was sent more than once",
            Self::MissingKey => "missing API key",
            Self::UnknownKey => "unknown API key",
            Self::ExpiredKey => "this API key has expired",
            Self::MissingRight => "this API key lacks a required right",
            Self::HostNotAllowed => "this API key is not valid for this host",
            Self::PathNotAllowed => "this API key is not valid for this path",
            Self::MethodNotAllowed => "this API key is not valid for this method",
            Self::RequestTimeout => "the request did not arrive in time",
            Self::BodyTooLarge => "the request body is too large",
            Self::UnsupportedExpectation => "unsupported expectation: send 100-continue or none",
            Self::TooManyRequests => "too many requests of this API key wait for the server",
            Self::HeadTooLarge => "the request head is too large",
            Self::NotImplemented => "CONNECT is not supported",
            Self::PermissionsUnavailable(_) => "API keys cannot be checked at the moment",
            Self::Upstream(failure) => match failure.status() {
                StatusCode::GATEWAY_TIMEOUT => "the server did not respond in time",
                StatusCode::SERVICE_UNAVAILABLE => "too many requests wait for the server",
                _ => "the server cannot be reached, or its response is invalid",
            },
        }
    }

    /// Whether the connection ends with the response: the end of the request is uncertain, or it never arrived.
    pub(crate) const fn closes_connection(self) -> bool {
        matches!(
            self,
            Self::InvalidRequest(_)
                | Self::RequestTimeout
                | Self::BodyTooLarge
                | Self::HeadTooLarge
        )
    }
}
