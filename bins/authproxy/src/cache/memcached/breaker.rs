//! Whether a server is worth asking.
//!
//! Owns the state between "asked" and "left alone". Pure: the time is an argument.

use std::time::Duration;

use hostkit::backoff::Backoff;
use tokio::time::Instant;

use super::connection::CONNECT;

/// Failures in a row after which a server is left alone.
const FAILURES: u32 = 3;

/// How long a server is left alone, at first and at most.
const PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

#[derive(Debug)]
pub(super) struct Breaker {
    failures: u32,
    /// Until when nobody asks; then one command is a probe.
    open: Option<Instant>,
    backoff: Backoff,
    /// Since when the connection is being made.
    connecting: Option<Instant>,
    /// How long an answer is waited for.
    deadline: Duration,
}

impl Breaker {
    pub(super) const fn new(deadline: Duration) -> Self {
        let [min, max] = PAUSE;
        Self {
            failures: 0,
            open: None,
            backoff: Backoff::new(min, max),
            connecting: None,
            deadline,
        }
    }

    /// Until when the answer to a command may be waited for; none if it is not to be sent. All who wait for a connection
    /// that is being made stop at one moment, so that one that takes long is waited for once.
    pub(super) fn admit(&mut self, now: Instant) -> Option<Instant> {
        let deadline = self.connecting.unwrap_or(now) + self.deadline;
        if deadline <= now || self.open.is_some_and(|until| now < until) {
            return None;
        }
        if self.open.is_some() {
            // Nobody else until it is known how this one ends.
            self.open = Some(now + CONNECT + self.deadline);
        }
        Some(deadline)
    }

    pub(super) const fn connecting(&mut self, since: Option<Instant>) {
        self.connecting = since;
    }

    /// Whether the server is asked by everybody.
    pub(super) const fn is_closed(&self) -> bool {
        self.open.is_none()
    }

    /// It has answered; whether that is news.
    pub(super) const fn succeeded(&mut self) -> bool {
        self.failures = 0;
        self.backoff.reset();
        self.open.take().is_some()
    }

    /// It has not; whether it is left alone from now on.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        let was_closed = self.is_closed();
        if self.failures >= FAILURES {
            self.open = Some(now + self.backoff.next_delay());
        }
        was_closed && !self.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::DEADLINE;
    use super::*;

    #[test]
    fn after_a_few_failures_one_command_at_a_time_tries() {
        let now = Instant::now();
        let mut breaker = Breaker::new(DEADLINE);
        assert!(!breaker.failed(now) && !breaker.failed(now));
        assert!(breaker.admit(now).is_some());
        assert!(breaker.failed(now), "that is news");
        assert!(!breaker.is_closed());
        assert_eq!(breaker.admit(now), None);
        let mut later = now + PAUSE[0];
        assert_eq!(breaker.admit(later), Some(later + DEADLINE));
        assert_eq!(breaker.admit(later), None, "one probe");
        assert!(!breaker.failed(later), "still failing is no news");
        later += PAUSE[1];
        assert!(breaker.admit(later).is_some());
        assert!(breaker.succeeded());
        assert!(breaker.admit(later).is_some() && breaker.admit(later).is_some());
        assert!(!breaker.succeeded());
    }

    #[test]
    fn a_failure_between_successes_is_nothing() {
        let now = Instant::now();
        let mut breaker = Breaker::new(DEADLINE);
        for _ in 0..10 {
            assert!(!breaker.failed(now));
            breaker.succeeded();
        }
        assert!(breaker.is_closed());
    }

    #[test]
    fn a_lost_probe_is_not_the_last_one() {
        let now = Instant::now();
        let mut breaker = Breaker::new(DEADLINE);
        for _ in 0..FAILURES {
            breaker.failed(now);
        }
        let later = now + PAUSE[0];
        assert!(breaker.admit(later).is_some());
        assert!(breaker.admit(later + CONNECT + DEADLINE).is_some());
    }

    #[test]
    fn connecting_is_waited_for_once() {
        let now = Instant::now();
        let mut breaker = Breaker::new(DEADLINE);
        breaker.connecting(Some(now));
        assert_eq!(breaker.admit(now + DEADLINE / 2), Some(now + DEADLINE));
        assert_eq!(breaker.admit(now + DEADLINE), None);
        breaker.connecting(None);
        assert!(breaker.admit(now + DEADLINE).is_some());
    }
}
