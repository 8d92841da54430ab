//! Spread for delays and names for attempts: a small generator whose seed is an argument, so that a run can be
//! repeated. Nothing secret comes from it.

use std::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (which is not 0; the bias is negligible for small bounds).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// `delay`, up to `percent` shorter or longer.
    pub fn spread(&mut self, delay: Duration, percent: u32) -> Duration {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let reach = millis / 100 * u64::from(percent);
        Duration::from_millis(millis - reach + self.below(2 * reach + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_within_their_spread_and_use_it() {
        let mut random = Random::new(7);
        let all: Vec<u128> =
            (0..1000).map(|_| random.spread(Duration::from_secs(5), 20).as_millis()).collect();
        assert!(all.iter().all(|ms| (4000..=6000).contains(ms)));
        assert!(all.iter().min().unwrap() < &4100 && all.iter().max().unwrap() > &5900);
        assert_eq!(random.spread(Duration::ZERO, 20), Duration::ZERO);
    }
}
