//! The timeouts of a client connection.
//!
//! Owns the activity of a connection ([`ConnectionActivity`]) and the decision at each tick ([`DeadlineClock`]). A
//! connection has one timer, which ticks at least every two seconds while hyper serves it. A request costs a few plain
//! stores: a tick compares byte counters with those of the tick before, so a timeout is detected at most one tick late.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::request_error::RequestError;
use crate::request_validation::ReadPhase;
use crate::settings::{RequestLimits, RequestTimeouts};

/// A connection that is idle for this long is parked.
pub(crate) const PARK_AFTER: Duration = Duration::from_secs(2);
const MIN_TICK: Duration = Duration::from_millis(10);

/// The party that has to act next for the request to make progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActiveParty {
    /// There is no request.
    None,
    /// This proxy: it authorizes the request, or connects. Both have deadlines of their own.
    Proxy,
    /// The client: upstream takes more of the request body.
    Client,
    Upstream,
}

/// Whether the idle timeout of streaming responses applies to the current response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamingMode {
    No,
    /// From the first byte of its body on.
    AfterFirstByte,
    Yes,
}

/// The state of one connection as far as timeouts are concerned. Written where it changes, read by the clock; all in
/// one task.
#[derive(Debug, Default)]
pub(crate) struct ConnectionActivity {
    active_party: AtomicU8,
    requests: AtomicU64,
    /// Bytes to and from upstream in the current exchange.
    upstream_bytes: AtomicU64,
    /// Bytes of the request body so far.
    received: AtomicU64,
    write_blocked: AtomicBool,
    has_response: AtomicBool,
    streaming: AtomicU8,
    /// hyper has released the connection, whose end is now the tunnel's.
    tunnel: AtomicBool,
    failed: AtomicBool,
    failure: Mutex<Option<RequestError>>,
}

impl ConnectionActivity {
    pub(crate) fn begin_request(&self) {
        self.requests
            .store(self.requests.load(Relaxed) + 1, Relaxed);
        self.set_active_party(ActiveParty::Proxy);
        self.has_response.store(false, Relaxed);
        self.set_streaming(StreamingMode::No);
        self.received.store(0, Relaxed);
        // A failure that came too late for the request before.
        self.take_failure();
    }

    pub(crate) fn set_active_party(&self, party: ActiveParty) {
        self.active_party.store(party as u8, Relaxed);
    }

    /// Whether a request is in progress.
    pub(crate) fn is_busy(&self) -> bool {
        self.active_party.load(Relaxed) != ActiveParty::None as u8
    }

    pub(crate) fn begin_response(&self) {
        self.has_response.store(true, Relaxed);
    }

    pub(crate) fn set_streaming(&self, streaming: StreamingMode) {
        self.streaming.store(streaming as u8, Relaxed);
    }

    pub(crate) fn begin_response_body(&self) {
        if self.streaming.load(Relaxed) == StreamingMode::AfterFirstByte as u8 {
            self.set_streaming(StreamingMode::Yes);
        }
    }

    /// Whether a request is in progress that has no response yet.
    pub(crate) fn awaits_response(&self) -> bool {
        self.is_busy() && !self.has_response.load(Relaxed)
    }

    pub(crate) fn begin_tunnel(&self) {
        self.tunnel.store(true, Relaxed);
    }

    pub(crate) fn is_tunnel(&self) -> bool {
        self.tunnel.load(Relaxed)
    }

    pub(crate) fn add_received(&self, bytes: u64) {
        self.received.store(self.received() + bytes, Relaxed);
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    pub(crate) fn set_upstream_bytes(&self, bytes: u64) {
        self.upstream_bytes.store(bytes, Relaxed);
    }

    pub(crate) fn add_upstream_bytes(&self, bytes: u64) {
        self.set_upstream_bytes(self.upstream_bytes.load(Relaxed) + bytes);
    }

    /// Whether the client's socket refused the last write.
    pub(crate) fn set_write_blocked(&self, blocked: bool) {
        // It rarely changes, so usually this is one load.
        if self.write_blocked.load(Relaxed) != blocked {
            self.write_blocked.store(blocked, Relaxed);
        }
    }

    pub(crate) fn is_write_blocked(&self) -> bool {
        self.write_blocked.load(Relaxed)
    }

    /// Ends the current exchange. The first error counts.
    pub(crate) fn fail(&self, error: RequestError) {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.failed.store(true, Relaxed);
    }

    /// Why the current exchange has to end, if it has to. Returned once.
    pub(crate) fn take_failure(&self) -> Option<RequestError> {
        if !self.failed.load(Relaxed) {
            return None;
        }
        self.failed.store(false, Relaxed);
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// The input of a tick. `read_phase` and `client_bytes` (read, written) are the request validator's.
    pub(crate) fn snapshot(
        &self,
        read_phase: ReadPhase,
        client_bytes: (u64, u64),
    ) -> ActivitySnapshot {
        let active_party = match self.active_party.load(Relaxed) {
            party if party == ActiveParty::Proxy as u8 => ActiveParty::Proxy,
            party if party == ActiveParty::Client as u8 => ActiveParty::Client,
            party if party == ActiveParty::Upstream as u8 => ActiveParty::Upstream,
            _ => ActiveParty::None,
        };
        ActivitySnapshot {
            active_party,
            read_phase,
            write_blocked: self.is_write_blocked(),
            streaming: self.streaming.load(Relaxed) == StreamingMode::Yes as u8,
            counters: TransferCounters {
                requests: self.requests.load(Relaxed),
                read: client_bytes.0,
                written: client_bytes.1,
                upstream: self.upstream_bytes.load(Relaxed),
            },
        }
    }
}

/// The activity of a connection at one tick.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ActivitySnapshot {
    active_party: ActiveParty,
    read_phase: ReadPhase,
    write_blocked: bool,
    streaming: bool,
    counters: TransferCounters,
}

/// Counters that change with every progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct TransferCounters {
    requests: u64,
    read: u64,
    written: u64,
    upstream: u64,
}

/// The decision of a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeadlineVerdict {
    Continue,
    /// The connection has been idle for [`PARK_AFTER`].
    Park,
    /// The client sends its body too slowly, or not at all.
    RequestBodyTimeout,
    /// The client reads the response too slowly, or not at all.
    ClientReadTimeout,
    /// Upstream neither takes nor sends anything.
    UpstreamTimeout,
}

/// What the client has to do for the request to make progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientWait {
    RequestBody,
    ResponseRead,
}

/// Decides about the timeouts of one connection.
#[derive(Debug)]
pub(crate) struct DeadlineClock {
    timeouts: RequestTimeouts,
    min_rate: u64,
    /// The counters at the last tick.
    counters: TransferCounters,
    last_tick: Instant,
    /// The tick at which the counters last changed.
    last_progress: Instant,
    client_wait: Option<(ClientWait, WaitWindow)>,
}

/// How long one request has waited for its client in one phase, and the byte counter when that wait began.
#[derive(Debug, Clone, Copy)]
struct WaitWindow {
    request: u64,
    bytes: u64,
    waited: Duration,
}

impl DeadlineClock {
    pub(crate) fn new(timeouts: RequestTimeouts, limits: RequestLimits, now: Instant) -> Self {
        Self {
            timeouts,
            min_rate: limits.rate,
            counters: TransferCounters::default(),
            last_tick: now,
            last_progress: now,
            client_wait: None,
        }
    }

    /// The time between two ticks.
    pub(crate) fn period(&self) -> Duration {
        let RequestTimeouts {
            server,
            client,
            idle,
            stream,
        } = self.timeouts;
        let shortest = PARK_AFTER.min(idle).min(client / 2);
        shortest.min(server / 2).min(stream / 2).max(MIN_TICK)
    }

    pub(crate) fn tick(&mut self, now: Instant, activity: ActivitySnapshot) -> DeadlineVerdict {
        if self.counters != activity.counters {
            self.counters = activity.counters;
            self.last_progress = now;
        }
        let elapsed = now - self.last_tick;
        self.last_tick = now;
        let idle = now - self.last_progress;
        let upstream_timeout = match activity.streaming {
            true => self.timeouts.stream,
            false => self.timeouts.server,
        };
        let wait = match activity {
            ActivitySnapshot {
                write_blocked: true,
                ..
            } => ClientWait::ResponseRead,
            ActivitySnapshot {
                active_party: ActiveParty::Client,
                ..
            } => ClientWait::RequestBody,
            // The rest of the body of a request that got its response.
            ActivitySnapshot {
                active_party: ActiveParty::None,
                read_phase: ReadPhase::Body,
                ..
            } => ClientWait::RequestBody,
            ActivitySnapshot {
                active_party: ActiveParty::None,
                ..
            } if idle >= PARK_AFTER.min(self.timeouts.idle) => return DeadlineVerdict::Park,
            ActivitySnapshot {
                active_party: ActiveParty::Upstream,
                ..
            } if idle >= upstream_timeout => return DeadlineVerdict::UpstreamTimeout,
            _ => return DeadlineVerdict::Continue,
        };
        let too_slow = self.is_too_slow(wait, elapsed, activity.counters);
        match wait {
            ClientWait::RequestBody if too_slow || idle >= self.timeouts.client => {
                DeadlineVerdict::RequestBodyTimeout
            }
            ClientWait::ResponseRead if too_slow || idle >= self.timeouts.client => {
                DeadlineVerdict::ClientReadTimeout
            }
            _ => DeadlineVerdict::Continue,
        }
    }

    /// Adds time waited for the client; whether its transfer rate is too low. An interrupted phase continues later:
    /// time that upstream takes does not count against the client.
    fn is_too_slow(
        &mut self,
        wait: ClientWait,
        elapsed: Duration,
        counters: TransferCounters,
    ) -> bool {
        let bytes = match wait {
            ClientWait::RequestBody => counters.read,
            ClientWait::ResponseRead => counters.written,
        };
        let same = self
            .client_wait
            .filter(|(before, window)| *before == wait && window.request == counters.requests);
        let Some((_, mut window)) = same else {
            let window = WaitWindow {
                request: counters.requests,
                bytes,
                waited: Duration::ZERO,
            };
            self.client_wait = Some((wait, window));
            return false;
        };
        window.waited += elapsed;
        self.client_wait = Some((wait, window));
        if window.waited < self.timeouts.client {
            return false;
        }
        u128::from(bytes - window.bytes) * 1000
            < u128::from(self.min_rate) * window.waited.as_millis()
    }
}

#[cfg(test)]
mod tests;
