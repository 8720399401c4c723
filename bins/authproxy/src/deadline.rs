//! When a client connection has waited long enough, and for whom.
//!
//! Owns what is under way on a connection as far as waiting goes ([`ConnectionActivity`]), and the judgement ([`DeadlineClock`]). A connection
//! has one timer, which ticks every two seconds at most while hyper serves it. Nothing is noted per request but a few
//! plain stores: a tick compares what has moved with what had moved at the tick before, so a deadline is found one tick
//! late at most. What is done about it is `conn`'s.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::request_error::RequestError;
use crate::request_validation::ReadPhase;
use crate::settings::{RequestLimits, RequestTimeouts};

/// How long a connection is idle before it is parked.
pub(crate) const PARK: Duration = Duration::from_secs(2);
/// The shortest time between two ticks.
const SHORTEST: Duration = Duration::from_millis(10);

/// Who has to act next for the request to go on.
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

/// Whether the idle timeout of streaming responses applies to the response under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamingMode {
    No,
    /// From the first byte of its body on.
    AfterFirstByte,
    Yes,
}

/// What is under way on one connection. Written where it happens, read by the clock; all in one task.
#[derive(Debug, Default)]
pub(crate) struct ConnectionActivity {
    turn: AtomicU8,
    requests: AtomicU64,
    /// Bytes to and from the server in the exchange under way.
    server: AtomicU64,
    /// Bytes of the request's body that have come.
    received: AtomicU64,
    /// The client does not take what there is for it.
    blocked: AtomicBool,
    /// The client has the head of an answer, or will.
    answered: AtomicBool,
    streaming: AtomicU8,
    /// hyper is done with the connection, and bytes pass: its end is the tunnel's.
    open: AtomicBool,
    /// Why the request cannot go on, found while it was on its way.
    failed: AtomicBool,
    failure: Mutex<Option<RequestError>>,
}

impl ConnectionActivity {
    /// A request is here.
    pub(crate) fn begin_request(&self) {
        self.requests
            .store(self.requests.load(Relaxed) + 1, Relaxed);
        self.set_active_party(ActiveParty::Proxy);
        self.answered.store(false, Relaxed);
        self.set_streaming(StreamingMode::No);
        self.received.store(0, Relaxed);
        // One that came too late for the request before.
        self.take_failure();
    }

    /// Somebody else's turn.
    pub(crate) fn set_active_party(&self, turn: ActiveParty) {
        self.turn.store(turn as u8, Relaxed);
    }

    /// Whether a request is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.turn.load(Relaxed) != ActiveParty::None as u8
    }

    /// There is an answer.
    pub(crate) fn begin_response(&self) {
        self.answered.store(true, Relaxed);
    }

    /// Whether the response is a streaming one.
    pub(crate) fn set_streaming(&self, streaming: StreamingMode) {
        self.streaming.store(streaming as u8, Relaxed);
    }

    /// A piece of the response's body is here.
    pub(crate) fn begin_response_body(&self) {
        if self.streaming.load(Relaxed) == StreamingMode::AfterFirstByte as u8 {
            self.set_streaming(StreamingMode::Yes);
        }
    }

    /// Whether a request is under way that has no answer yet.
    pub(crate) fn awaits_response(&self) -> bool {
        self.is_busy() && !self.answered.load(Relaxed)
    }

    /// The protocol is another one from here on.
    pub(crate) fn begin_tunnel(&self) {
        self.open.store(true, Relaxed);
    }

    /// Whether the protocol is another one.
    pub(crate) fn is_tunnel(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Bytes of the request's body have come.
    pub(crate) fn add_received(&self, bytes: u64) {
        self.received.store(self.received() + bytes, Relaxed);
    }

    /// How many bytes of the request's body have come.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// How many bytes have gone to and come from the server.
    pub(crate) fn set_upstream_bytes(&self, bytes: u64) {
        self.server.store(bytes, Relaxed);
    }

    /// Whether the client's socket took what was written last.
    pub(crate) fn set_write_blocked(&self, blocked: bool) {
        // Rarely changes, and is read where it is written: a load is all it costs.
        if self.blocked.load(Relaxed) != blocked {
            self.blocked.store(blocked, Relaxed);
        }
    }

    /// Whether bytes wait for the client.
    pub(crate) fn is_write_blocked(&self) -> bool {
        self.blocked.load(Relaxed)
    }

    /// Ends the exchange under way. The first reason stands.
    pub(crate) fn fail(&self, refusal: RequestError) {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(refusal);
        self.failed.store(true, Relaxed);
    }

    /// Why the exchange under way has to end, if it has to. Once.
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

    /// So many more of them.
    pub(crate) fn add_upstream_bytes(&self, bytes: u64) {
        self.set_upstream_bytes(self.server.load(Relaxed) + bytes);
    }

    /// What the clock compares. `reading` and `client` (bytes read, bytes written) are the gate's.
    pub(crate) fn snapshot(&self, reading: ReadPhase, client: (u64, u64)) -> ActivitySnapshot {
        let turn = match self.turn.load(Relaxed) {
            turn if turn == ActiveParty::Proxy as u8 => ActiveParty::Proxy,
            turn if turn == ActiveParty::Client as u8 => ActiveParty::Client,
            turn if turn == ActiveParty::Upstream as u8 => ActiveParty::Upstream,
            _ => ActiveParty::None,
        };
        ActivitySnapshot {
            turn,
            reading,
            blocked: self.is_write_blocked(),
            streaming: self.streaming.load(Relaxed) == StreamingMode::Yes as u8,
            moved: TransferCounters {
                requests: self.requests.load(Relaxed),
                read: client.0,
                written: client.1,
                server: self.server.load(Relaxed),
            },
        }
    }
}

/// A connection at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ActivitySnapshot {
    turn: ActiveParty,
    reading: ReadPhase,
    blocked: bool,
    streaming: bool,
    moved: TransferCounters,
}

/// What only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct TransferCounters {
    requests: u64,
    read: u64,
    written: u64,
    server: u64,
}

/// What a tick says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeadlineVerdict {
    Continue,
    /// Nothing has happened for [`PARK`], and nothing is under way.
    Park,
    /// The client sends its body too slowly, or not at all.
    RequestBodyTimeout,
    /// The client reads the response too slowly, or not at all.
    ClientReadTimeout,
    /// Upstream neither takes nor sends anything.
    UpstreamTimeout,
}

/// What the client is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientWait {
    RequestBody,
    ResponseRead,
}

/// The judge of one connection.
#[derive(Debug)]
pub(crate) struct DeadlineClock {
    timeouts: RequestTimeouts,
    rate: u64,
    /// What had moved at the last tick, and when that was.
    moved: TransferCounters,
    last: Instant,
    /// The first tick that found what has moved since then unchanged.
    since: Instant,
    /// What the client has been waited for since when, tick for tick.
    waits: Option<(ClientWait, WaitWindow)>,
}

/// How long the client has been waited for in one phase of one request, and what had moved when that began.
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
            rate: limits.rate,
            moved: TransferCounters::default(),
            last: now,
            since: now,
            waits: None,
        }
    }

    /// The time from one tick to the next.
    pub(crate) fn period(&self) -> Duration {
        let RequestTimeouts {
            server,
            client,
            idle,
            stream,
        } = self.timeouts;
        let shortest = PARK.min(idle).min(client / 2);
        shortest.min(server / 2).min(stream / 2).max(SHORTEST)
    }

    /// Judges what is seen now.
    pub(crate) fn tick(&mut self, now: Instant, seen: ActivitySnapshot) -> DeadlineVerdict {
        if self.moved != seen.moved {
            self.moved = seen.moved;
            self.since = now;
        }
        let passed = now - self.last;
        self.last = now;
        let still = now - self.since;
        let silence = match seen.streaming {
            true => self.timeouts.stream,
            false => self.timeouts.server,
        };
        let wait = match seen {
            ActivitySnapshot { blocked: true, .. } => ClientWait::ResponseRead,
            ActivitySnapshot {
                turn: ActiveParty::Client,
                ..
            } => ClientWait::RequestBody,
            // What is left of the body of a request that was answered.
            ActivitySnapshot {
                turn: ActiveParty::None,
                reading: ReadPhase::Body,
                ..
            } => ClientWait::RequestBody,
            ActivitySnapshot {
                turn: ActiveParty::None,
                ..
            } if still >= PARK.min(self.timeouts.idle) => return DeadlineVerdict::Park,
            ActivitySnapshot {
                turn: ActiveParty::Upstream,
                ..
            } if still >= silence => return DeadlineVerdict::UpstreamTimeout,
            _ => return DeadlineVerdict::Continue,
        };
        let late = self.wait(wait, passed, seen.moved);
        match wait {
            ClientWait::RequestBody if late || still >= self.timeouts.client => {
                DeadlineVerdict::RequestBodyTimeout
            }
            ClientWait::ResponseRead if late || still >= self.timeouts.client => {
                DeadlineVerdict::ClientReadTimeout
            }
            _ => DeadlineVerdict::Continue,
        }
    }

    /// Counts time that the client is waited for; whether it was too long for what came of it. A phase that is
    /// interrupted goes on when it is found again: what the server takes its time for is not the client's.
    fn wait(&mut self, wait: ClientWait, passed: Duration, moved: TransferCounters) -> bool {
        let bytes = match wait {
            ClientWait::RequestBody => moved.read,
            ClientWait::ResponseRead => moved.written,
        };
        let same = self
            .waits
            .filter(|(before, patience)| *before == wait && patience.request == moved.requests);
        let Some((_, mut patience)) = same else {
            let begun = WaitWindow {
                request: moved.requests,
                bytes,
                waited: Duration::ZERO,
            };
            self.waits = Some((wait, begun));
            return false;
        };
        patience.waited += passed;
        self.waits = Some((wait, patience));
        if patience.waited < self.timeouts.client {
            return false;
        }
        u128::from(bytes - patience.bytes) * 1000
            < u128::from(self.rate) * patience.waited.as_millis()
    }
}

#[cfg(test)]
mod tests;
