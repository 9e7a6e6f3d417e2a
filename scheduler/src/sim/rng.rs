//! Seeded randomness in integers, so that a seed means the same history on every machine.

/// SplitMix64 (Steele, Lea, Flood, OOPSLA'14): one word of state, good enough to draw workloads from.
#[derive(Clone, Debug)]
pub struct Rng(u64);

/// One round of SplitMix64's finaliser: a bijection that spreads every bit.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// A generator for a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        let out = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        out
    }

    /// Uniform in `low ..= high`.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        let span = u64::from(high.max(low) - low) + 1;
        low + ((u128::from(self.bits()) * u128::from(span)) >> 64) as u32
    }

    /// True `n` times in a thousand.
    pub fn per_mille(&mut self, n: u32) -> bool {
        self.between(0, 999) < n
    }

    /// Exponentially distributed with the given mean: the gap between two arrivals of a Poisson process. `-ln(u)` is taken as
    /// `ln 2 * -log2(u)`: the leading zeros of `u` are the whole part, and repeated squaring of the rest gives 16 more bits.
    pub fn exponential(&mut self, mean: u64) -> u64 {
        let u = self.bits() | 1;
        let mut rest = (u << u.leading_zeros()) >> 32; // in [2^31, 2^32)
        let mut log = 0u64;
        for _ in 0..16 {
            rest = (rest * rest) >> 31;
            log <<= 1;
            if rest >= 1 << 32 {
                rest >>= 1;
                log |= 1;
            }
        }
        // 16 fractional bits: -log2(u / 2^64).
        let log = (u64::from(u.leading_zeros()) + 1) * (1 << 16) - log;
        // ln 2 = 45426 / 65536.
        ((u128::from(mean) * u128::from(log) * 45_426) >> 32) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_gaps_have_their_mean_and_their_median() {
        let mut rng = Rng::new(7);
        let gaps: std::vec::Vec<u64> = (0..100_000).map(|_| rng.exponential(1_000_000)).collect();
        let mean = gaps.iter().sum::<u64>() / gaps.len() as u64;
        assert!(mean.abs_diff(1_000_000) < 10_000, "{mean}");
        let below = gaps.iter().filter(|gap| **gap < 693_147).count();
        assert!(below.abs_diff(50_000) < 1_000, "{below}");
    }

    #[test]
    fn draws_stay_in_their_range() {
        let mut rng = Rng::new(1);
        let mut seen = [false; 5];
        for _ in 0..1_000 {
            seen[rng.between(3, 7) as usize - 3] = true;
        }
        assert_eq!(seen, [true; 5]);
    }
}
