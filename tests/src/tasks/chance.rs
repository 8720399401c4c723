//! Reproducible random numbers.

use std::time::Duration;

/// A sequence of random numbers (splitmix64).
#[derive(Debug, Clone)]
pub(super) struct RandomSequence(u64);

impl RandomSequence {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A separate sequence for each number, so that one task's draws do not depend on those of others.
    pub(super) fn fork(&self, number: u64) -> Self {
        Self(Self(self.0 ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93)).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to 1.
    pub(super) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns true with this probability.
    pub(super) fn happens(&mut self, probability: f64) -> bool {
        self.share() < probability
    }

    /// A random duration between two.
    pub(super) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.share())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_repeats_sequence_and_forks_differ() {
        let draw = |seed, number| RandomSequence::new(seed).fork(number).share();
        assert_eq!(draw(1, 2).to_bits(), draw(1, 2).to_bits());
        assert_ne!(draw(1, 2).to_bits(), draw(1, 3).to_bits());
        assert_ne!(draw(1, 2).to_bits(), draw(2, 2).to_bits());
        let mut chance = RandomSequence::new(7);
        let heads = (0..10_000).filter(|_| chance.happens(0.25)).count();
        assert!((2_300..2_700).contains(&heads), "{heads}");
    }
}
