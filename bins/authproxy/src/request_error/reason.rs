//! Reasons behind a 502, 503 or 504, and behind a truncated response.
//!
//! Owns their names in the access log and the metrics, and the messages of the warnings.

use hyper::StatusCode;

/// Why upstream gave no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamFailure {
    /// No process listens on its address.
    Refused,
    /// Any other connect error: no route, no such name or socket, no file descriptor left.
    Unreachable,
    /// It closed the connection before its response head was complete.
    Closed,
    /// Its response head is not HTTP, or ambiguous.
    InvalidHead,
    /// The queue for a pool connection is full.
    QueueFull,
    /// No connection of the pool became free in time.
    QueueTimeout,
    /// It did not accept the connection in time.
    ConnectTimeout,
    /// It sent no complete response head in time.
    ResponseTimeout,
}

impl UpstreamFailure {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 8] = [
        Self::Refused,
        Self::Unreachable,
        Self::Closed,
        Self::InvalidHead,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::ConnectTimeout,
        Self::ResponseTimeout,
    ];

    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::Refused | Self::Unreachable | Self::Closed | Self::InvalidHead => {
                StatusCode::BAD_GATEWAY
            }
            Self::QueueFull | Self::QueueTimeout => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectTimeout | Self::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "upstream_refused",
            Self::Unreachable => "upstream_unreachable",
            Self::Closed => "upstream_closed",
            Self::InvalidHead => "upstream_invalid_head",
            Self::QueueFull => "upstream_queue_full",
            Self::QueueTimeout => "upstream_queue_timeout",
            Self::ConnectTimeout => "upstream_connect_timeout",
            Self::ResponseTimeout => "upstream_response_timeout",
        }
    }

    pub(crate) const fn warning(self) -> &'static str {
        match self {
            Self::Refused => "upstream refused the connection",
            Self::Unreachable => "upstream cannot be reached",
            Self::Closed => "upstream closed the connection before its response",
            Self::InvalidHead => "upstream sent an invalid response head",
            Self::QueueFull => "too many requests wait for upstream",
            Self::QueueTimeout => "timed out waiting for a free upstream connection",
            Self::ConnectTimeout => "timed out connecting to upstream",
            Self::ResponseTimeout => "timed out waiting for the response of upstream",
        }
    }
}

/// Why the permissions backend gave no decision about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PermissionsFailure {
    /// No server gave a valid response, now or a moment ago.
    Failed,
    /// Too many lookups are in flight.
    Overloaded,
    /// The live configuration names no server.
    NotConfigured,
}

impl PermissionsFailure {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 3] = [Self::Failed, Self::Overloaded, Self::NotConfigured];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "permissions_failed",
            Self::Overloaded => "permissions_overloaded",
            Self::NotConfigured => "permissions_not_configured",
        }
    }

    pub(crate) const fn warning(self) -> &'static str {
        match self {
            Self::Failed => "the permissions backend failed",
            Self::Overloaded => "too many lookups wait for the permissions backend",
            Self::NotConfigured => "no permissions backend is configured",
        }
    }
}

/// Why a response was truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TruncationReason {
    /// The client closed the connection.
    ClientClosed,
    /// The client did not read the response, or not send the rest of its body, in time.
    ClientTimeout,
    /// The process exited at `--drain-timeout`.
    DrainTimeout,
    /// Upstream closed the connection.
    UpstreamClosed,
    /// The framing of the response body is invalid.
    InvalidBody,
    /// Upstream stopped sending.
    UpstreamTimeout,
}

impl TruncationReason {
    /// In the order of their discriminants, which index the counters.
    pub(crate) const ALL: [Self; 6] = [
        Self::ClientClosed,
        Self::ClientTimeout,
        Self::DrainTimeout,
        Self::UpstreamClosed,
        Self::InvalidBody,
        Self::UpstreamTimeout,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::ClientTimeout => "client_timeout",
            Self::DrainTimeout => "drain_timeout",
            Self::UpstreamClosed => "upstream_closed",
            Self::InvalidBody => "upstream_invalid_body",
            Self::UpstreamTimeout => "upstream_timeout",
        }
    }

    /// The warning, where the client is not the cause.
    pub(crate) const fn warning(self) -> Option<&'static str> {
        match self {
            Self::ClientClosed | Self::ClientTimeout | Self::DrainTimeout => None,
            Self::UpstreamClosed => Some("upstream closed the connection within its response"),
            Self::InvalidBody => Some("upstream sent an invalid response body"),
            Self::UpstreamTimeout => Some("timed out waiting for the rest of a response"),
        }
    }
}
