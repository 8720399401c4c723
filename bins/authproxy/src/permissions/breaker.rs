//! When a server that fails is left alone. Pure: the time is an argument.

use std::time::Duration;

use hostkit::backoff::Backoff;
use tokio::time::Instant;

use super::BreakerState;

/// Failures in a row after which a server is left alone.
const FAILURES: u32 = 5;
/// The shortest and the longest time for which it is.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A circuit breaker: closed, open for a while that grows, then half open for one question.
#[derive(Debug)]
pub(super) struct Breaker {
    failures: u32,
    state: State,
    pauses: Backoff,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen,
}

/// Whether a question may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may.
    Yes,
    /// It may, and what becomes of it decides for all: it must end in one of the three methods.
    Probe,
    /// It may not.
    No,
}

impl Breaker {
    pub(super) const fn new() -> Self {
        Self {
            failures: 0,
            state: State::Closed,
            pauses: Backoff::new(PAUSE.0, PAUSE.1),
        }
    }

    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Closed => Admission::Yes,
            State::Open { until } if now >= until => {
                self.state = State::HalfOpen;
                Admission::Probe
            }
            State::Open { .. } | State::HalfOpen => Admission::No,
        }
    }

    /// The server answered. Whether it was the probe or one that was sent before, it is well.
    pub(super) const fn succeeded(&mut self) {
        self.failures = 0;
        self.state = State::Closed;
        self.pauses.reset();
    }

    /// The server failed. Those that were sent before it was left alone make it no worse.
    pub(super) fn failed(&mut self, now: Instant) {
        match self.state {
            State::Closed => {
                self.failures += 1;
                if self.failures >= FAILURES {
                    self.open(now);
                }
            }
            State::HalfOpen => self.open(now),
            State::Open { .. } => {}
        }
    }

    /// The probe was given up by whoever asked: the next question is one.
    pub(super) const fn abandoned(&mut self, now: Instant) {
        if matches!(self.state, State::HalfOpen) {
            self.state = State::Open { until: now };
        }
    }

    pub(super) const fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen => BreakerState::HalfOpen,
        }
    }

    fn open(&mut self, now: Instant) {
        let until = now + self.pauses.next_delay();
        self.state = State::Open { until };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        for _ in 0..FAILURES {
            assert_eq!(breaker.admit(now), Admission::Yes);
            breaker.failed(now);
        }
        breaker
    }

    #[test]
    fn a_server_is_left_alone_after_failures_in_a_row() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..20 {
            (1..FAILURES).for_each(|_| breaker.failed(now));
            assert_eq!(breaker.admit(now), Admission::Yes);
            breaker.succeeded();
        }
        let mut breaker = broken(now);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.admit(now), Admission::No);
        assert_eq!(
            breaker.admit(now + PAUSE.0 - Duration::from_millis(1)),
            Admission::No
        );
    }

    #[test]
    fn one_question_finds_out_whether_it_is_back() {
        let later = Instant::now() + PAUSE.1;
        let mut breaker = broken(Instant::now());
        assert_eq!(breaker.admit(later), Admission::Probe);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(breaker.admit(later), Admission::No, "only one");
        breaker.failed(later);
        assert_eq!(breaker.admit(later), Admission::No);

        let later = later + PAUSE.1;
        assert_eq!(breaker.admit(later), Admission::Probe);
        breaker.succeeded();
        assert_eq!(breaker.admit(later), Admission::Yes);
        breaker.failed(later);
        assert_eq!(
            breaker.admit(later),
            Admission::Yes,
            "it counts from the beginning"
        );
    }

    #[test]
    fn a_probe_that_was_given_up_is_replaced_by_the_next() {
        let later = Instant::now() + PAUSE.1;
        let mut breaker = broken(Instant::now());
        assert_eq!(breaker.admit(later), Admission::Probe);
        breaker.abandoned(later);
        assert_eq!(breaker.admit(later), Admission::Probe);
    }

    #[test]
    fn answers_to_older_questions_do_no_harm() {
        let now = Instant::now();
        let mut breaker = broken(now);
        (0..100).for_each(|_| breaker.failed(now));
        let later = now + PAUSE.0;
        assert_eq!(
            breaker.admit(later),
            Admission::Probe,
            "the first pause is still the first"
        );
        let mut breaker = broken(now);
        breaker.succeeded();
        assert_eq!(breaker.admit(now), Admission::Yes);
    }
}
