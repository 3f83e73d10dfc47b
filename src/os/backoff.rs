//! How long to wait before the next attempt: longer each time, and spread, so that a fleet does not act at one instant.

use std::time::Duration;

/// Before the attempt that follows the `attempts`th, from 1: up to `first`, then up to its double, and so on up to `max`;
/// never less than `least` (0 to 1) of that.
#[must_use]
pub fn delay(attempts: u32, first: Duration, max: Duration, least: f64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(20);
    spread(first.saturating_mul(1 << doublings).min(max), least)
}

/// Up to `most`, and not less than `least` (0 to 1) of it.
#[must_use]
pub fn spread(most: Duration, least: f64) -> Duration {
    most.mul_f64(least + (1.0 - least) * random())
}

/// A number in 0..1.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Early in a machine's boot there may be none; then all wait alike. nix has no getrandom.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    f64::from(u32::from_ne_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_most_and_differ() {
        let (first, max) = (Duration::from_secs(1), Duration::from_secs(30));
        for (attempts, most) in [(0, 1), (1, 1), (2, 2), (5, 16), (6, 30), (u32::MAX, 30)] {
            let most = Duration::from_secs(most);
            let delays: Vec<_> = (0..100).map(|_| delay(attempts, first, max, 0.5)).collect();
            assert!(delays.iter().all(|delay| (most / 2..=most).contains(delay)), "{attempts}: {delays:?}");
            assert!(delays.iter().any(|delay| *delay != delays[0]), "no jitter");
        }
    }
}
