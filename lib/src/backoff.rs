//! Retry delays: exponential between two bounds, with full jitter, so that a thousand hosts that failed together do not
//! retry together (Brooker, "Exponential Backoff And Jitter").

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// The delays of a sequence of attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// Delays that grow from `min` to at most `max`.
    #[must_use]
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            attempt: 0,
        }
    }

    /// Restarts from the shortest delay, after a success.
    pub const fn reset(&mut self) {
        self.attempt = 0;
    }

    /// The next delay: uniform between `min` and the bound of this attempt, which doubles each time.
    pub fn next_delay(&mut self) -> Duration {
        let bound = self
            .min
            .saturating_mul(1 << self.attempt.min(20))
            .min(self.max)
            .max(self.min);
        self.attempt += 1;
        self.min + (bound - self.min).mul_f64(fraction())
    }
}

/// A random delay of at most `limit`, which spreads what many hosts would otherwise do at the same moment.
#[must_use]
pub fn random_delay(limit: Duration) -> Duration {
    limit.mul_f64(fraction())
}

/// A random fraction. The standard library seeds every `RandomState` from the system's randomness, which is enough for
/// jitter.
fn fraction() -> f64 {
    RandomState::new().hash_one(0u8) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_between_the_bounds() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut longest = Duration::ZERO;
        for _ in 0..50 {
            let mut backoff = Backoff::new(min, max);
            assert_eq!(backoff.next_delay(), min, "the first attempt has no jitter");
            for _ in 0..40 {
                let delay = backoff.next_delay();
                assert!(delay >= min && delay <= max, "{delay:?}");
                longest = longest.max(delay);
            }
        }
        assert!(longest > Duration::from_secs(1), "{longest:?}");
    }
}
