//! How often HAProxy is told of changes: one that comes by itself at once, a storm of them in a few batches. Pure.

use std::time::Duration;

/// Between two batches in a storm, and how many may be sent in a row before that counts: with these, fewer than ten a
/// second over a minute.
const APART: Duration = Duration::from_millis(105);
const BURST: u32 = 8;

/// A change that comes this long after the last batch comes by itself.
const QUIET: Duration = Duration::from_millis(10);

/// The pace of one socket: a token bucket for changes in the wake of others.
#[derive(Debug)]
pub(super) struct Pace {
    left: f64,
    filled: Duration,
    sent: Option<Duration>,
    /// Since when something waits to be sent.
    waiting: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            left: f64::from(BURST),
            filled: Duration::ZERO,
            sent: None,
            waiting: None,
        }
    }
}

impl Pace {
    /// Whether what waits may be sent now. To be asked as soon as something does.
    pub(super) fn allows(&mut self, now: Duration) -> bool {
        let since = *self.waiting.get_or_insert(now);
        let alone = self
            .sent
            .is_none_or(|sent| since.saturating_sub(sent) >= QUIET);
        let gained = now.saturating_sub(self.filled).div_duration_f64(APART);
        self.left = (self.left + gained).min(f64::from(BURST));
        self.filled = now;
        if alone {
            // What follows from it, such as the answer of a probe, is on the house too.
            self.left = (self.left + 1.0).min(f64::from(BURST));
        } else if self.left < 1.0 {
            return false;
        } else {
            self.left -= 1.0;
        }
        self.waiting = None;
        true
    }

    /// A batch was sent.
    pub(super) fn sent(&mut self, now: Duration) {
        self.sent = Some(now);
    }

    /// When to ask again.
    pub(super) fn next(&self) -> Duration {
        self.filled + APART.mul_f64((1.0 - self.left).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many batches changes at this distance make in 10 s, when the loop looks every millisecond, and how long one
    /// waits at most.
    fn batches(apart: u64) -> (u32, u64) {
        let mut pace = Pace::default();
        let (mut sent, mut longest, mut waiting) = (0, 0, None);
        for at in 0..10_000 {
            if at % apart == 0 {
                waiting.get_or_insert(at);
            }
            let now = Duration::from_millis(1_000_000 + at);
            if let Some(since) = waiting
                && pace.allows(now)
            {
                pace.sent(now);
                (sent, waiting) = (sent + 1, None);
                longest = longest.max(at - since);
            }
        }
        (sent, longest)
    }

    #[test]
    fn changes_that_come_by_themselves_go_at_once() {
        assert_eq!(batches(20), (500, 0));
    }

    #[test]
    fn a_change_and_what_follows_from_it_go_at_once() {
        let mut pace = Pace::default();
        for number in 0..500 {
            let announced = Duration::from_millis(1_000_000 + number * 30);
            for now in [announced, announced + Duration::from_millis(3)] {
                assert!(pace.allows(now), "{number}");
                pace.sent(now);
            }
        }
    }

    #[test]
    fn a_storm_goes_in_batches() {
        let (sent, longest) = batches(2);
        assert!(sent <= 10_000_u32.div_ceil(105) + BURST, "{sent}");
        assert!(longest <= 105, "{longest}");
    }

    #[test]
    fn it_says_when_to_ask_again() {
        let mut pace = Pace::default();
        let now = Duration::from_secs(9);
        while pace.allows(now) {
            pace.sent(now);
        }
        let next = pace.next();
        assert!(next > now && pace.allows(next + Duration::from_millis(1)));
    }
}
