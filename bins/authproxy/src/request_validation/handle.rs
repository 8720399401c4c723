//! What a gate tells those who serve the connection.
//!
//! Owns the values that both sides share. Nothing here waits or wakes: whoever wants to know looks.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::request_error::RequestError;

/// What a connection waits for from its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ReadPhase {
    /// Nothing, or the first byte of a request. So it is between requests, and also while what has come is not taken
    /// because the server is slow: no deadline of the client's runs.
    Idle,
    /// The rest of a head of which a part is here, or that hyper takes the one that is. While an exchange is under way
    /// it is the next one's.
    Head,
    /// More of a body.
    Body,
}

/// The view into one gate.
#[derive(Debug, Clone)]
pub struct ValidatorHandle(pub(super) Arc<ValidatorStatus>);

#[derive(Debug, Default)]
pub(super) struct ValidatorStatus {
    read: AtomicU64,
    written: AtomicU64,
    reading: AtomicU8,
    open: AtomicBool,
    /// The one fault that a connection can have: after it nothing is read.
    fault: OnceLock<ValidationError>,
    taken: AtomicBool,
}

#[derive(Debug)]
pub(super) enum ValidationError {
    Head(RequestError),
    Body(RequestError),
}

impl ValidatorHandle {
    /// Why the request that hyper has just delivered has to be refused. It is the gate's own, in place of the client's,
    /// and makes hyper close after the answer. To be asked once per request, in `Service::call` itself and not in the
    /// future it returns: by then hyper may have read the head of the next request.
    #[must_use]
    pub fn take_fault(&self) -> Option<RequestError> {
        match self.0.fault.get() {
            Some(ValidationError::Head(refusal)) if !self.0.taken.swap(true, Relaxed) => {
                Some(*refusal)
            }
            _ => None,
        }
    }

    /// Why the body under way fails, once it does: what came of it must not become a whole request. hyper still sends
    /// an answer that was not begun, and then closes, but does not say so: the answer has to (`Connection: close`).
    #[must_use]
    pub fn body_fault(&self) -> Option<RequestError> {
        match self.0.fault.get() {
            Some(ValidationError::Body(refusal)) => Some(*refusal),
            _ => None,
        }
    }

    /// What the client is waited for with.
    #[must_use]
    pub fn reading(&self) -> ReadPhase {
        match self.0.reading.load(Relaxed) {
            1 => ReadPhase::Head,
            2 => ReadPhase::Body,
            _ => ReadPhase::Idle,
        }
    }

    /// Bytes since the connection began: from the client, and to it.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.0.read.load(Relaxed), self.0.written.load(Relaxed))
    }

    /// From now on bytes pass unchecked: to be called before `101 Switching Protocols` is handed to hyper. Does nothing
    /// after a fault.
    pub fn open(&self) {
        self.0.open.store(true, Relaxed);
    }
}

impl ValidatorStatus {
    pub(super) fn fault(&self, fault: ValidationError) {
        let _ = self.fault.set(fault);
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    pub(super) fn reads(&self, reading: ReadPhase) {
        self.reading.store(reading as u8, Relaxed);
    }

    // Only the gate counts, so there is nothing to be atomic about but the value.
    pub(super) fn count_read(&self, bytes: usize) {
        self.read
            .store(self.read.load(Relaxed) + bytes as u64, Relaxed);
    }

    pub(super) fn count_written(&self, bytes: usize) {
        self.written
            .store(self.written.load(Relaxed) + bytes as u64, Relaxed);
    }
}
