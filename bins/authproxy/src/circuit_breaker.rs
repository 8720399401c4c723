//! A circuit breaker: after failures in a row a server is skipped, and then one request probes whether it works again.
//! Pure: the time is an argument.

use std::time::Duration;

use hostkit::backoff::Backoff;
use serde::Serialize;
use tokio::time::Instant;

/// What a breaker tolerates, and how long it skips a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BreakerPolicy {
    /// Failures in a row that open it.
    pub(crate) max_failures: u32,
    /// The shortest and the longest time that it stays open; it grows with each failed probe.
    pub(crate) open_time: [Duration; 2],
    /// A probe without a result for this long is given up for the next one.
    pub(crate) probe_timeout: Duration,
}

#[derive(Debug)]
pub(crate) struct CircuitBreaker {
    policy: BreakerPolicy,
    state: CircuitState,
    open_times: Backoff,
}

#[derive(Debug, Clone, Copy)]
enum CircuitState {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { probe_ends: Instant },
}

/// The state of a circuit breaker, for `/status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Requests are sent.
    Closed,
    /// One request probes the server; all others are rejected.
    HalfOpen,
    /// Requests are rejected, for a while.
    Open,
}

/// Whether a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Allowed,
    /// Allowed, and its result decides for the others.
    Probe,
    Rejected,
}

impl CircuitBreaker {
    pub(crate) const fn new(policy: BreakerPolicy) -> Self {
        let [min, max] = policy.open_time;
        Self {
            policy,
            state: CircuitState::Closed { failures: 0 },
            open_times: Backoff::new(min, max),
        }
    }

    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            CircuitState::Closed { .. } => Admission::Allowed,
            CircuitState::Open { until: end } | CircuitState::HalfOpen { probe_ends: end }
                if now >= end =>
            {
                let probe_ends = now + self.policy.probe_timeout;
                self.state = CircuitState::HalfOpen { probe_ends };
                Admission::Probe
            }
            CircuitState::Open { .. } | CircuitState::HalfOpen { .. } => Admission::Rejected,
        }
    }

    /// The server responded, to the probe or to an earlier request. Returns whether that closes the breaker.
    pub(crate) const fn record_success(&mut self) -> bool {
        let was_closed = matches!(self.state, CircuitState::Closed { .. });
        self.state = CircuitState::Closed { failures: 0 };
        self.open_times.reset();
        !was_closed
    }

    /// The server failed. Returns whether that opens the breaker for the first time. Requests from before it opened
    /// change nothing.
    pub(crate) fn record_failure(&mut self, now: Instant) -> bool {
        let failures = match self.state {
            CircuitState::Closed { failures } => failures + 1,
            CircuitState::HalfOpen { .. } => {
                self.open(now);
                return false;
            }
            CircuitState::Open { .. } => return false,
        };
        let opens = failures >= self.policy.max_failures;
        match opens {
            true => self.open(now),
            false => self.state = CircuitState::Closed { failures },
        }
        opens
    }

    /// The probe was given up without a result: the next request probes.
    pub(crate) const fn cancel_probe(&mut self, now: Instant) {
        if matches!(self.state, CircuitState::HalfOpen { .. }) {
            self.state = CircuitState::Open { until: now };
        }
    }

    pub(crate) const fn state(&self) -> BreakerState {
        match self.state {
            CircuitState::Closed { .. } => BreakerState::Closed,
            CircuitState::Open { .. } => BreakerState::Open,
            CircuitState::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    fn open(&mut self, now: Instant) {
        let until = now + self.open_times.next_delay();
        self.state = CircuitState::Open { until };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy {
        max_failures: 3,
        open_time: [Duration::from_secs(1), Duration::from_secs(30)],
        probe_timeout: Duration::from_secs(2),
    };
    const MIN: Duration = POLICY.open_time[0];
    const MAX: Duration = POLICY.open_time[1];

    fn open_breaker(now: Instant) -> CircuitBreaker {
        let mut breaker = CircuitBreaker::new(POLICY);
        for failure in 1..=POLICY.max_failures {
            assert_eq!(breaker.admit(now), Admission::Allowed);
            let opens = breaker.record_failure(now);
            assert_eq!(opens, failure == POLICY.max_failures);
        }
        breaker
    }

    #[test]
    fn only_failures_in_a_row_open_it_for_the_minimum_time() {
        let now = Instant::now();
        let mut breaker = CircuitBreaker::new(POLICY);
        for _ in 0..20 {
            (1..POLICY.max_failures).for_each(|_| assert!(!breaker.record_failure(now)));
            assert_eq!(breaker.admit(now), Admission::Allowed);
            assert!(!breaker.record_success());
        }
        let mut breaker = open_breaker(now);
        assert_eq!(breaker.state(), BreakerState::Open);
        let early = now + MIN - Duration::from_millis(1);
        assert_eq!(breaker.admit(early), Admission::Rejected);
        assert_eq!(breaker.admit(now + MIN), Admission::Probe);
    }

    #[test]
    fn result_of_one_probe_opens_or_closes_it() {
        let mut breaker = open_breaker(Instant::now());
        let mut later = Instant::now() + MAX;
        assert_eq!(breaker.admit(later), Admission::Probe);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(breaker.admit(later), Admission::Rejected, "one probe");
        assert!(!breaker.record_failure(later), "it was open before");
        assert_eq!(breaker.admit(later), Admission::Rejected);
        later += MAX;
        assert_eq!(breaker.admit(later), Admission::Probe);
        assert!(breaker.record_success());
        assert!(!breaker.record_failure(later), "it counts from 0 again");
        assert_eq!(breaker.admit(later), Admission::Allowed);
    }

    #[test]
    fn cancelled_or_lost_probe_is_followed_by_another() {
        let mut breaker = open_breaker(Instant::now());
        let later = Instant::now() + MAX;
        assert_eq!(breaker.admit(later), Admission::Probe);
        breaker.cancel_probe(later);
        assert_eq!(breaker.admit(later), Admission::Probe);
        let probe_ends = later + POLICY.probe_timeout;
        let early = probe_ends - Duration::from_millis(1);
        assert_eq!(breaker.admit(early), Admission::Rejected);
        assert_eq!(breaker.admit(probe_ends), Admission::Probe);
    }

    #[test]
    fn results_of_earlier_requests_do_not_lengthen_the_open_time() {
        let now = Instant::now();
        let mut breaker = open_breaker(now);
        (0..100).for_each(|_| assert!(!breaker.record_failure(now)));
        assert_eq!(breaker.admit(now + MIN), Admission::Probe);
        let mut breaker = open_breaker(now);
        assert!(breaker.record_success());
        assert_eq!(breaker.admit(now), Admission::Allowed);
    }
}
