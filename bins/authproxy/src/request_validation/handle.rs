//! The status that a validator shares with the connection. Nothing here waits or wakes: it is polled.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::request_error::RequestError;

/// The part of a request that a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ReadPhase {
    /// None, or the first byte of a request. Also while received bytes are not taken because upstream is slow: then no
    /// timeout of the client runs.
    Idle,
    /// The rest of a partial head, or that hyper takes a whole one. During an exchange it is the next request's.
    Head,
    Body,
}

/// The connection's view of its validator.
#[derive(Debug, Clone)]
pub struct ValidatorHandle(pub(super) Arc<ValidatorStatus>);

#[derive(Debug, Default)]
pub(super) struct ValidatorStatus {
    read: AtomicU64,
    written: AtomicU64,
    read_phase: AtomicU8,
    tunnel: AtomicBool,
    /// A connection has at most one: nothing is read after it.
    error: OnceLock<ValidationError>,
    error_taken: AtomicBool,
}

#[derive(Debug)]
pub(super) enum ValidationError {
    Head(RequestError),
    Body(RequestError),
}

impl ValidatorHandle {
    /// The error of the request that hyper has just delivered, which then is the substitute. Call it once per request,
    /// in `Service::call` itself and not in the future it returns: by then hyper may have read the head of the next
    /// request.
    #[must_use]
    pub fn take_head_error(&self) -> Option<RequestError> {
        match self.0.error.get() {
            Some(ValidationError::Head(error)) if !self.0.error_taken.swap(true, Relaxed) => {
                Some(*error)
            }
            _ => None,
        }
    }

    /// The error of the current body, once reading it fails: its beginning must not become a complete request. hyper
    /// still sends a response and then closes, but the response itself has to announce that (`Connection: close`).
    #[must_use]
    pub fn body_error(&self) -> Option<RequestError> {
        match self.0.error.get() {
            Some(ValidationError::Body(error)) => Some(*error),
            _ => None,
        }
    }

    pub(crate) fn read_phase(&self) -> ReadPhase {
        match self.0.read_phase.load(Relaxed) {
            1 => ReadPhase::Head,
            2 => ReadPhase::Body,
            _ => ReadPhase::Idle,
        }
    }

    /// Bytes read from and written to the client since the connection began.
    pub(crate) fn transferred(&self) -> (u64, u64) {
        (self.0.read.load(Relaxed), self.0.written.load(Relaxed))
    }

    /// Passes bytes without validation from now on: to be called before `101 Switching Protocols` is handed to hyper.
    /// Does nothing after an error.
    pub(crate) fn begin_tunnel(&self) {
        self.0.tunnel.store(true, Relaxed);
    }
}

impl ValidatorStatus {
    pub(super) fn set_error(&self, error: ValidationError) {
        let _ = self.error.set(error);
    }

    pub(super) fn is_tunnel(&self) -> bool {
        self.tunnel.load(Relaxed)
    }

    pub(super) fn set_read_phase(&self, read_phase: ReadPhase) {
        self.read_phase.store(read_phase as u8, Relaxed);
    }

    // Only the validator writes the counters, so load and store suffice.
    pub(super) fn count_read(&self, bytes: usize) {
        self.read
            .store(self.read.load(Relaxed) + bytes as u64, Relaxed);
    }

    pub(super) fn count_written(&self, bytes: usize) {
        self.written
            .store(self.written.load(Relaxed) + bytes as u64, Relaxed);
    }
}
