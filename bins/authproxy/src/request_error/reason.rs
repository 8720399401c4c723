//! Causes behind a 502, 503 or 504, and behind a response that was truncated.
//!
//! Owns their words, which stand in the access log and in metrics, and the sentences of the warnings.

use hyper::StatusCode;

/// Why the server gave no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamFailure {
    /// Nothing accepts connections on its address.
    Refused,
    /// It cannot be reached otherwise: no route, no such name or socket, no file descriptor left.
    Unreachable,
    /// It closed the connection before its response head was complete.
    Closed,
    /// Its response head is not HTTP, or can be read in two ways.
    MalformedHead,
    /// Every waiting place is taken.
    QueueFull,
    /// No connection of the pool became free in time.
    QueueTimeout,
    /// It did not accept the connection in time.
    ConnectTimeout,
    /// It sent no complete response head in time.
    ResponseTimeout,
}

impl UpstreamFailure {
    /// Every cause.
    pub const ALL: [Self; 8] = [
        Self::Refused,
        Self::Unreachable,
        Self::Closed,
        Self::MalformedHead,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::ConnectTimeout,
        Self::ResponseTimeout,
    ];

    /// The status of the answer.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Refused | Self::Unreachable | Self::Closed | Self::MalformedHead => {
                StatusCode::BAD_GATEWAY
            }
            Self::QueueFull | Self::QueueTimeout => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectTimeout | Self::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The word in the access log and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "upstream_refused",
            Self::Unreachable => "upstream_unreachable",
            Self::Closed => "upstream_closed",
            Self::MalformedHead => "upstream_malformed_head",
            Self::QueueFull => "upstream_queue_full",
            Self::QueueTimeout => "upstream_queue_timeout",
            Self::ConnectTimeout => "upstream_connect_timeout",
            Self::ResponseTimeout => "upstream_response_timeout",
        }
    }

    /// The warning.
    #[must_use]
    pub const fn warning(self) -> &'static str {
        match self {
            Self::Refused => "upstream refused the connection",
            Self::Unreachable => "upstream cannot be reached",
            Self::Closed => "upstream closed the connection before its response",
            Self::MalformedHead => "malformed response head",
            Self::QueueFull => "too many requests wait for upstream",
            Self::QueueTimeout => "timed out waiting for a free upstream connection",
            Self::ConnectTimeout => "timed out connecting to upstream",
            Self::ResponseTimeout => "timed out waiting for the response of upstream",
        }
    }
}

/// Why the permissions engine gave no answer about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PermissionsFailure {
    /// No server gave a valid answer, now or a moment ago.
    Failed,
    /// Too many keys are being asked about.
    Overloaded,
    /// The live configuration names no server.
    NotConfigured,
}

impl PermissionsFailure {
    /// Every cause.
    pub const ALL: [Self; 3] = [Self::Failed, Self::Overloaded, Self::NotConfigured];

    /// The word in the access log and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "engine_failed",
            Self::Overloaded => "engine_overloaded",
            Self::NotConfigured => "engine_not_configured",
        }
    }

    /// The warning.
    #[must_use]
    pub const fn warning(self) -> &'static str {
        match self {
            Self::Failed => "the permissions engine failed",
            Self::Overloaded => "too many questions to the permissions engine are under way",
            Self::NotConfigured => "no permissions engine is configured",
        }
    }
}

/// Why a response ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TruncationReason {
    /// The client closed the connection.
    ClientClosed,
    /// The client did not read, or not send the rest of its body, in time.
    ClientTimeout,
    /// This process has ended, and its time to finish what was under way was over.
    Drained,
    /// The server closed the connection.
    UpstreamClosed,
    /// The framing of the server's body is invalid.
    MalformedBody,
    /// The server stopped sending.
    UpstreamTimeout,
}

impl TruncationReason {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::ClientClosed,
        Self::ClientTimeout,
        Self::Drained,
        Self::UpstreamClosed,
        Self::MalformedBody,
        Self::UpstreamTimeout,
    ];

    /// The word in the access log and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::ClientTimeout => "client_timeout",
            Self::Drained => "drain_timeout",
            Self::UpstreamClosed => "upstream_closed",
            Self::MalformedBody => "upstream_malformed_body",
            Self::UpstreamTimeout => "upstream_timeout",
        }
    }

    /// The warning, where the client is not the cause.
    #[must_use]
    pub const fn warning(self) -> Option<&'static str> {
        match self {
            Self::ClientClosed | Self::ClientTimeout | Self::Drained => None,
            Self::UpstreamClosed => Some("upstream closed the connection within its response"),
            Self::MalformedBody => Some("malformed response body"),
            Self::UpstreamTimeout => Some("timed out waiting for the rest of a response"),
        }
    }
}
