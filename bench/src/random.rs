//! The random numbers of a run: a function of the seed alone, the same on every machine.

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    pub(crate) fn new(seed: u64) -> SplitMix64 {
        SplitMix64(seed)
    }

    /// The `index`th generator of a family: `purpose` keeps families of one seed apart.
    pub(crate) fn stream(seed: u64, purpose: u64, index: u64) -> SplitMix64 {
        let mut mixed = SplitMix64(seed ^ purpose.wrapping_mul(0xd6e8_feb8_6659_fd93));
        SplitMix64(mixed.next() ^ index.wrapping_mul(0xa076_1d64_78bd_642f))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `range`, which is at most 2^32. Multiply-shift: its bias is below 2^-32 x range, nothing for a load.
    pub(crate) fn below(&mut self, range: u64) -> u64 {
        ((self.next() >> 32) * range) >> 32
    }

    /// Above 0 and at most 1, so that its logarithm is finite.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Exponential with mean 1.
    fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// Standard normal, by Box and Muller; the second of each pair is not kept.
    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Gamma with the given shape (above 0) and mean 1: its coefficient of variation is 1 / sqrt(shape), so that shape 1
    /// is the exponential. Marsaglia and Tsang, "A simple method for generating gamma variables", 2000; a shape below 1
    /// is drawn one higher and scaled by U^(1/shape), as they say.
    pub(crate) fn gamma(&mut self, shape: f64) -> f64 {
        if shape == 1.0 {
            return self.exponential();
        }
        let (drawn, scale) = if shape < 1.0 { (shape + 1.0, self.unit().powf(1.0 / shape)) } else { (shape, 1.0) };
        let d = drawn - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v * scale / shape;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_its_reference_values() {
        // Vigna's splitmix64.c with x = 1234567.
        let mut random = SplitMix64::new(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn streams_of_one_seed_differ_by_purpose_and_index() {
        let first = |purpose, index| SplitMix64::stream(7, purpose, index).next();
        assert_eq!(first(1, 0), first(1, 0));
        assert_ne!(first(1, 0), first(2, 0));
        assert_ne!(first(1, 0), first(1, 1));
    }

    #[test]
    fn gamma_has_mean_one_and_the_variation_of_its_shape() {
        // 200,000 draws: the mean's standard error is cv / 447, that of the variance a few times that.
        for shape in [0.25, 0.5, 1.0, 2.0, 9.0, 100.0] {
            let mut random = SplitMix64::new(11);
            let drawn: Vec<f64> = (0..200_000).map(|_| random.gamma(shape)).collect();
            let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
            let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / drawn.len() as f64;
            assert!((mean - 1.0).abs() < 0.02, "shape {shape}: mean {mean}");
            assert!((variance.sqrt() * shape.sqrt() - 1.0).abs() < 0.03, "shape {shape}: variance {variance}");
            assert!(drawn.iter().all(|&x| x.is_finite() && x >= 0.0));
        }
    }

    #[test]
    fn below_stays_below() {
        let mut random = SplitMix64::new(3);
        let drawn: Vec<u64> = (0..1000).map(|_| random.below(3)).collect();
        assert!((0..3).all(|value| drawn.contains(&value)) && drawn.iter().all(|&value| value < 3));
    }
}
