//! Numbers that look random, and are the same on each run.

/// xorshift64, from a seed that is not 0.
pub struct Random(pub u64);

impl Random {
    /// One in `0..end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// So many hex digits, a multiple of 16.
    pub fn text(&mut self, digits: usize) -> String {
        std::iter::repeat_with(|| format!("{:016x}", self.below(u64::MAX))).take(digits / 16).collect()
    }
}
