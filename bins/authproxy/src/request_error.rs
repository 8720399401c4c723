//! Why a request is answered here and not by the server.
//!
//! Owns the list of reasons: the status, the machine word and the sentence of each. The bytes of the answer are
//! `answer`'s.

mod reason;

use hyper::StatusCode;

pub use reason::{PermissionsFailure, TruncationReason, UpstreamFailure};

/// A reason. Its word stands in the JSON body; its cause, which says more where the client is not at fault, in the access
/// log and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestError {
    /// 400: the request's bytes could be read in two ways, or are no HTTP/1.1. The sentence says which rule they break.
    InvalidRequest(&'static str),
    /// 400: two different keys, or one given twice.
    AmbiguousKey,
    /// 400: a rule about paths decides, and parsers differ over this one.
    AmbiguousPath,
    /// 400: the query parameter that names the host stands twice.
    AmbiguousHost,
    /// 401: there is no key.
    MissingKey,
    /// 403: nobody has this key.
    UnknownKey,
    /// 403: the key's time is over.
    ExpiredKey,
    /// 403: a right that is needed is missing.
    MissingRight,
    /// 403: the key is not for this host.
    HostNotAllowed,
    /// 403: the key is not for this path.
    PathNotAllowed,
    /// 403: the key is not for this method.
    MethodNotAllowed,
    /// 408: the request did not arrive in time.
    RequestTimeout,
    /// 413: the body is longer than `--max-body`.
    BodyTooLarge,
    /// 417: an expectation other than `100-continue`.
    UnsupportedExpectation,
    /// 429: as many requests of this key wait for the server as may.
    TooManyRequests,
    /// 431: the head is longer than `--max-head`.
    HeadTooLarge,
    /// 501: a method that makes a tunnel.
    NotImplemented,
    /// 503: the permissions engine cannot be asked.
    PermissionsUnavailable(PermissionsFailure),
    /// 502, 503 or 504: there is no response of the server.
    Upstream(UpstreamFailure),
}

impl RequestError {
    /// The status of the answer.
    #[must_use]
    pub const fn status(self) -> StatusCode {
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

    /// The word for machines.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "malformed_request",
            Self::AmbiguousKey => "ambiguous_key",
            Self::AmbiguousPath => "ambiguous_path",
            Self::AmbiguousHost => "ambiguous_host",
            Self::MissingKey => "no_key",
            Self::UnknownKey => "unknown_key",
            Self::ExpiredKey => "expired_key",
            Self::MissingRight => "missing_right",
            Self::HostNotAllowed => "host_not_allowed",
            Self::PathNotAllowed => "path_not_allowed",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "slow_request",
            Self::BodyTooLarge => "large_body",
            Self::UnsupportedExpectation => "unknown_expectation",
            Self::TooManyRequests => "too_many_requests",
            Self::HeadTooLarge => "large_head",
            Self::NotImplemented => "not_implemented",
            Self::PermissionsUnavailable(_) => "engine_unavailable",
            Self::Upstream(failure) => match failure.status() {
                StatusCode::GATEWAY_TIMEOUT => "gateway_timeout",
                StatusCode::SERVICE_UNAVAILABLE => "overloaded",
                _ => "bad_gateway",
            },
        }
    }

    /// The word for operators: what a client need not know.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::PermissionsUnavailable(failure) => failure.as_str(),
            Self::Upstream(failure) => failure.as_str(),
            _ => self.code(),
        }
    }

    /// What is known of it beyond its cause.
    #[must_use]
    pub const fn detail(self) -> Option<&'static str> {
        match self {
            Self::InvalidRequest(rule) => Some(rule),
            _ => None,
        }
    }

    /// The sentence for people.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::InvalidRequest(rule) => rule,
            Self::AmbiguousKey => "more than one API key was sent",
            Self::AmbiguousPath => "the path has segments that servers read differently",
            Self::AmbiguousHost => "the host parameter was sent more than once",
            Self::MissingKey => "an API key is needed",
            Self::UnknownKey => "this API key is not known",
            Self::ExpiredKey => "this API key has expired",
            Self::MissingRight => "this API key does not have a right that is needed",
            Self::HostNotAllowed => "this API key is not for this host",
            Self::PathNotAllowed => "this API key is not for this path",
            Self::MethodNotAllowed => "this API key is not for this method",
            Self::RequestTimeout => "the request did not arrive in time",
            Self::BodyTooLarge => "the body is too large",
            Self::UnsupportedExpectation => "the only expectation known here is 100-continue",
            Self::TooManyRequests => "too many requests of this API key are waiting for the server",
            Self::HeadTooLarge => "the head is too large",
            Self::NotImplemented => "tunnels are not made here",
            Self::PermissionsUnavailable(_) => "API keys cannot be checked at the moment",
            Self::Upstream(failure) => match failure.status() {
                StatusCode::GATEWAY_TIMEOUT => "the server did not answer in time",
                StatusCode::SERVICE_UNAVAILABLE => "too many requests are waiting for the server",
                _ => "the server cannot be reached, or does not speak HTTP",
            },
        }
    }

    /// Whether the connection ends with the answer: where a request ends is not certain, or it never came whole.
    #[must_use]
    pub const fn closes_connection(self) -> bool {
        matches!(
            self,
            Self::InvalidRequest(_)
                | Self::RequestTimeout
                | Self::BodyTooLarge
                | Self::HeadTooLarge
        )
    }
}
