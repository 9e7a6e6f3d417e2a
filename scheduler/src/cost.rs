//! What a step costs, learnt from the steps that were measured.
//!
//! Model: `time = step + token * tokens + read * reads`, where `tokens` are the new tokens of all rows and `reads` the
//! (new token, earlier position) pairs that attention looks at: a decode row at position p reads p + 1, a prompt chunk of n tokens from
//! position p reads n*p + n(n+1)/2.
//!
//! Fit: exponentially weighted means and covariances of the three (the last [`MEMORY`] steps or so), then least squares in
//! closed form for the two slopes, and the constant from the means. When steps are all alike (a batch of decodes, one row more or
//! less) the data cannot tell the slopes from noise: 0.5 ms of jitter over half a row of variation would be 125 us per token. So a
//! ridge pulls the slopes towards their last values, worth a variation of [`TOKENS_SPREAD`] tokens, and they move an
//! eighth of the way at a time: steps with prompts teach them within ten steps, steps of decodes hardly move them. Slopes are
//! kept at zero or above. Everything is integers: 16 fractional bits in the slopes, 8 in means and covariances, 128-bit products.
//! Cost: about a hundred instructions per step.

use crate::ids::Nanos;

/// Steps over which the past is forgotten, a power of two.
const MEMORY_SHIFT: u32 = 6;
/// Steps before the fit is trusted to size chunks.
const PROVEN: u32 = 4;
/// Steps before devices are compared by the fit: a first step can be many times as slow as those after it.
const TRIED: u32 = 16;
/// Steps before the slopes move slowly.
const SETTLED: u32 = 32;
/// Variation of the tokens in a step below which it teaches little about their cost.
const TOKENS_SPREAD: i128 = 8;
/// Fractional bits of slopes.
pub(crate) const FRAC: u32 = 16;
/// Fractional bits of means and covariances.
const MEAN_FRAC: u32 = 8;
/// Reads are fitted in units of this many, to keep products small.
const READS_SHIFT: u32 = 6;
/// No estimate is longer (4.9 hours), so that sums of them stay far from the end of 64 bits.
const ESTIMATE_MAX: Nanos = Nanos(1 << 44);
/// A step that takes this many times what was predicted counts as an accident and is clipped.
const OUTLIER: u64 = 8;

/// Work of a row or a step in the model's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) tokens: u64,
    pub(crate) reads: u64,
}

impl Load {
    /// `len` new tokens from position `from`.
    pub(crate) fn new(from: u32, len: u32) -> Load {
        let (from, len) = (u64::from(from), u64::from(len));
        Load { tokens: len, reads: len * from + len * (len + 1) / 2 }
    }

    pub(crate) fn add(&mut self, other: Load) {
        self.tokens += other.tokens;
        self.reads += other.reads;
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Cost {
    seen: u32,
    /// Nanoseconds.
    step: u64,
    /// Nanoseconds per token, with [`FRAC`] bits.
    token: u64,
    /// Nanoseconds per read, with [`FRAC`] bits.
    read: u64,
    /// Mean rows of a step, with [`MEAN_FRAC`] bits.
    rows: u64,
    // Means of tokens, reads (in their unit) and time, and their covariances, with MEAN_FRAC bits.
    mean: [i128; 3],
    tt: i128,
    rr: i128,
    tr: i128,
    ty: i128,
    ry: i128,
}

impl Cost {
    pub(crate) fn new(step: Nanos, token: Nanos) -> Cost {
        Cost {
            seen: 0,
            step: step.0.min(1 << 40),
            token: token.0.min(1 << 40) << FRAC,
            read: 0,
            rows: 1 << MEAN_FRAC,
            mean: [0; 3],
            tt: 0,
            rr: 0,
            tr: 0,
            ty: 0,
            ry: 0,
        }
    }

    /// Whether enough steps were measured to size chunks by the fit.
    pub(crate) fn proven(&self) -> bool {
        self.seen >= PROVEN
    }

    /// Whether enough steps were measured to compare the device with others.
    pub(crate) fn tried(&self) -> bool {
        self.seen >= TRIED
    }

    /// The constant of a step.
    pub(crate) fn step(&self) -> Nanos {
        Nanos(self.step)
    }

    /// What a load costs, without the constant.
    pub(crate) fn marginal(&self, load: Load) -> Nanos {
        let sum = u128::from(self.token) * u128::from(load.tokens) + u128::from(self.read) * u128::from(load.reads);
        Nanos(u64::try_from(sum >> FRAC).unwrap_or(u64::MAX).min(1 << 60))
    }

    /// What a whole step costs.
    pub(crate) fn predict(&self, load: Load) -> Nanos {
        Nanos(self.step).saturating_add(self.marginal(load))
    }

    /// What a load costs spread over `steps` steps, with its part of their constants at the usual number of rows.
    pub(crate) fn attributed(&self, load: Load, steps: u64) -> Nanos {
        let constant = Nanos(self.step_part().saturating_mul(steps.max(1)));
        self.marginal(load).saturating_add(constant).min(ESTIMATE_MAX)
    }

    /// One row's part of a step's constant.
    fn step_part(&self) -> u64 {
        (self.step << MEAN_FRAC) / self.rows.max(1)
    }

    /// The weight by which a row shares its step's time; never zero.
    pub(crate) fn weight(&self, load: Load, rows: u64) -> u64 {
        let weight = self.marginal(load).0.saturating_add(self.step / rows.max(1));
        weight.clamp(1, crate::charge::WEIGHT_MAX)
    }

    /// How many tokens from position `from` fit into `time`.
    pub(crate) fn tokens_within(&self, from: u32, time: Nanos) -> u64 {
        let time = u128::from(time.0) << FRAC;
        let (token, read, from) = (u128::from(self.token), u128::from(self.read), u128::from(from));
        let first = time / (token + read * from).max(1);
        let len = time / (token + read * (from + first.min(1 << 32) / 2)).max(1);
        u64::try_from(len).unwrap_or(u64::MAX)
    }

    /// Learns from a measured step.
    pub(crate) fn observe(&mut self, load: Load, rows: u64, time: Nanos) {
        let mut time = time.0.min(1 << 36);
        if self.seen >= 4 * PROVEN {
            time = time.min(self.predict(load).0.max(1).saturating_mul(OUTLIER));
        }
        // The first steps count for more than 1/MEMORY, as in a plain mean.
        let shift = MEMORY_SHIFT.min(self.seen.checked_ilog2().unwrap_or(0));
        let blend = |old: i128, new: i128| old + ((new - old) >> shift);
        self.rows = blend(i128::from(self.rows), i128::from(rows.min(1 << 20)) << MEAN_FRAC) as u64;
        let point = [
            i128::from(load.tokens.min(1 << 18)) << MEAN_FRAC,
            i128::from((load.reads >> READS_SHIFT).min(1 << 26)) << MEAN_FRAC,
            i128::from(time) << MEAN_FRAC,
        ];
        if self.seen == 0 {
            self.mean = point;
        }
        let off: [i128; 3] = core::array::from_fn(|i| point[i] - self.mean[i]);
        for (mean, off) in self.mean.iter_mut().zip(off) {
            *mean += off >> shift;
        }
        let product = |a: i128, b: i128| (a * b) >> MEAN_FRAC;
        self.tt = blend(self.tt, product(off[0], off[0]));
        self.rr = blend(self.rr, product(off[1], off[1]));
        self.tr = blend(self.tr, product(off[0], off[1]));
        self.ty = blend(self.ty, product(off[0], off[2]));
        self.ry = blend(self.ry, product(off[1], off[2]));
        self.seen = self.seen.saturating_add(1);
        self.solve();
    }

    /// Least squares with a ridge towards the present slopes: with `d` the change of slopes, minimise the squared error plus
    /// `ridge * d^2`, that is, solve `(C + ridge) d = (covariance with time) - C * slopes`.
    fn solve(&mut self) {
        let unit_read = i128::from(self.read) << READS_SHIFT;
        let token = i128::from(self.token);
        let reads_spread = (self.mean[1] >> MEAN_FRAC) / 8 + 1;
        let ridge = |spread: i128, variance: i128| ((spread * spread) << MEAN_FRAC) + variance / 256;
        let tt = self.tt + ridge(TOKENS_SPREAD, self.tt);
        let rr = self.rr + ridge(reads_spread, self.rr);
        let to_time = |slope: i128, cov: i128| (slope * cov) >> FRAC;
        let et = self.ty - to_time(token, self.tt) - to_time(unit_read, self.tr);
        let er = self.ry - to_time(token, self.tr) - to_time(unit_read, self.rr);
        let det = det(tt, self.tr, self.tr, rr);
        let (mut new_token, mut new_read) = (token, unit_read);
        if det > 0 {
            new_token += ratio(self::det(et, er, self.tr, rr), det);
            new_read += ratio(self::det(tt, self.tr, et, er), det);
        }
        if new_read < 0 {
            new_read = 0;
            new_token = ratio(self.ty + to_time(token, tt - self.tt), tt);
        } else if new_token < 0 {
            new_token = 0;
            new_read = ratio(self.ry + to_time(unit_read, rr - self.rr), rr);
        }
        let shift = if self.seen < SETTLED { 0 } else { 3 };
        let slope = |old: i128, new: i128| (old + ((new - old) >> shift)).clamp(0, 1 << 56);
        self.token = slope(token, new_token) as u64;
        self.read = (slope(unit_read, new_read) >> READS_SHIFT) as u64;
        let explained =
            to_time(i128::from(self.token), self.mean[0]) + to_time(i128::from(self.read) << READS_SHIFT, self.mean[1]);
        self.step = ((self.mean[2] - explained).max(0) >> MEAN_FRAC) as u64;
    }
}

/// Determinant of the columns `(a, b)` and `(c, d)`.
fn det(a: i128, b: i128, c: i128, d: i128) -> i128 {
    a.saturating_mul(d).saturating_sub(b.saturating_mul(c))
}

/// `num / den` with [`FRAC`] fractional bits; both are shortened first if the shift would overflow.
fn ratio(num: i128, den: i128) -> i128 {
    let excess = 0.max(num.unsigned_abs().checked_ilog2().unwrap_or(0) as i32 - (125 - FRAC as i32));
    let den = den >> excess;
    if den == 0 {
        return 0;
    }
    ((num >> excess) << FRAC) / den
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 4 ms a step, 20 us a token, 5 ns a read.
    fn truth(load: Load) -> Nanos {
        Nanos(4_000_000 + 20_000 * load.tokens + 5 * load.reads)
    }

    /// A batch of 16 decodes around position `at`, every eighth time with a prompt chunk beside it.
    fn batch(n: u32, at: u32) -> (Load, u64) {
        let mut load = Load::default();
        for row in 0..16 {
            load.add(Load::new(at + 40 * row, 1));
        }
        if n.is_multiple_of(8) {
            load.add(Load::new(n * 37 % 700, 40 + n * 53 % 200));
        }
        (load, 17)
    }

    fn taught(steps: u32) -> Cost {
        let mut cost = Cost::new(Nanos::from_millis(1), Nanos::from_micros(500));
        for n in 0..steps {
            let (load, rows) = batch(n, 100 + n % 900);
            cost.observe(load, rows, truth(load));
        }
        cost
    }

    fn close(cost: &Cost, load: Load) {
        let (said, was) = (cost.predict(load).0, truth(load).0);
        assert!(said.abs_diff(was) * 20 < was, "said {said}, was {was}");
    }

    #[test]
    fn steps_of_all_kinds_are_predicted_within_five_per_cent() {
        let cost = taught(400);
        close(&cost, batch(1, 500).0);
        close(&cost, batch(8, 500).0);
        close(&cost, Load::new(0, 512));
        close(&cost, Load::new(1000, 256));
    }

    #[test]
    fn a_long_run_of_noisy_decodes_does_not_unteach_the_price_of_a_prompt() {
        let mut cost = taught(400);
        for n in 0..20_000u64 {
            let mut load = Load::default();
            for row in 0..16 + (n / 3 % 2) as u32 {
                load.add(Load::new(500 + row, 1));
            }
            let jitter = crate::charge::WEIGHT_MAX.wrapping_mul(n * n).rotate_left(21) % 1_000_000;
            cost.observe(load, 16, truth(load) + Nanos((n * 7919 % 1_000_003) ^ jitter));
        }
        let prompt = Load::new(0, 512);
        let (said, was) = (cost.predict(prompt).0, truth(prompt).0);
        assert!(said < 2 * was && was < 2 * said, "said {said}, was {was}");
    }

    #[test]
    fn a_device_that_slows_down_is_learnt_anew() {
        let mut cost = taught(400);
        for n in 0..400 {
            let (load, rows) = batch(n, 100 + n % 900);
            cost.observe(load, rows, Nanos(2 * truth(load).0));
        }
        let load = Load::new(0, 256);
        let (said, was) = (cost.predict(load).0, 2 * truth(load).0);
        assert!(said.abs_diff(was) * 10 < was, "said {said}, was {was}");
    }

    #[test]
    fn one_stalled_step_does_not_spoil_the_fit() {
        let mut cost = taught(400);
        let load = batch(8, 500).0;
        cost.observe(load, 17, Nanos::from_secs(30));
        assert!(cost.predict(load).0 < 2 * truth(load).0);
    }

    proptest! {
        #[test]
        fn any_history_gives_usable_costs(
            steps in proptest::collection::vec((0u32..1 << 20, 1u32..1 << 18, 1u64..512, 0u64..1 << 50), 1..200),
        ) {
            let mut cost = Cost::new(Nanos(1), Nanos(1));
            for (from, len, rows, time) in steps {
                let load = Load::new(from, len);
                cost.observe(load, rows, Nanos(time));
                prop_assert!(cost.weight(load, rows) > 0);
                prop_assert!(cost.predict(load) >= cost.step());
                let fits = cost.tokens_within(from, Nanos::from_millis(100)).min(1 << 18) as u32;
                if fits > 0 && fits < 1 << 18 {
                    prop_assert!(cost.marginal(Load::new(from, fits)).0 <= 101_000_000);
                }
            }
        }
    }
}
