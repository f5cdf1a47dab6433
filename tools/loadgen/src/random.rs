//! Numbers that look random and are a pure function of the seed, on every machine.

/// A bijection of 64-bit numbers that scatters neighbours (the finalizer of SplitMix64).
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One number of two.
pub fn mix2(a: u64, b: u64) -> u64 {
    mix(mix(a.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ b)
}

/// Whether a draw falls into this share of all draws.
pub fn within(draw: u64, share: f64) -> bool {
    // The upper 53 bits, which a double has exactly.
    ((draw >> 11) as f64) < share * (1u64 << 53) as f64
}

/// A stream of such numbers.
pub struct Random(u64);

impl Random {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One of `0..end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// A number of the log-normal distribution with this median; `spread` is the
    /// standard deviation of its logarithm. The normal variable is a sum of twelve
    /// uniform ones, so that only `exp` is left to the machine's library.
    pub fn log_normal(&mut self, median: f64, spread: f64) -> f64 {
        let sum: f64 = (0..12).map(|_| (self.number() >> 11) as f64 / (1u64 << 53) as f64).sum();
        median * ((sum - 6.0) * spread).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_median_and_the_tail_is_long() {
        let mut random = Random::new(1);
        let mut sizes: Vec<f64> = (0..20_001).map(|_| random.log_normal(500.0, 1.0)).collect();
        sizes.sort_by(f64::total_cmp);
        assert!((480.0..520.0).contains(&sizes[10_000]), "{}", sizes[10_000]);
        let p99 = sizes[19_800];
        assert!((4_000.0..7_000.0).contains(&p99), "a 99th percentile of about ten medians: {p99}");
    }

    #[test]
    fn a_share_is_a_share() {
        let hits = (0..100_000u64).filter(|i| within(mix(*i), 0.02)).count();
        assert!((1_800..2_200).contains(&hits), "{hits}");
        assert!(!within(0, 0.0) && within(u64::MAX, 1.0));
    }
}
