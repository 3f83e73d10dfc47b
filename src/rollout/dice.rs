//! Jitter that is a part of the state, so that the same events lead to the same effects.

use std::time::Duration;

/// A small generator of numbers (splitmix64). Nothing that must not be guessed stands on it.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to just below 1.
    pub fn fraction(&mut self) -> f64 {
        // 53 bits: what a double holds without loss.
        #[expect(clippy::cast_precision_loss, reason = "both are below 2^53")]
        let fraction = (self.roll() >> 11) as f64 / (1_u64 << 53) as f64;
        fraction
    }

    /// From `low` to `high`.
    pub(super) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        low + high.saturating_sub(low).mul_f64(self.fraction())
    }

    /// So long, a quarter more or less.
    pub(super) fn about(&mut self, length: Duration) -> Duration {
        self.between(length.mul_f64(0.75), length.mul_f64(1.25))
    }
}
