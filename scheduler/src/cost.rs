//! What a step costs, learnt from the steps that were measured.
//!
//! Model: `time = step + row * rows + token * tokens + context * positions + read * reads`. A row of `n` new tokens from position `p`
//! loads `p + n` positions of context, which is memory traffic, and has `n*p + n(n+1)/2` reads, the pairs of a new token and a position
//! it looks at, which are arithmetic. For a decode row both are `p + 1`; a prompt has hundreds of reads for each position it loads, and
//! one price for both would let either the long prompt or the long context pay for the other. A row has a price of its own
//! because most rows draw, which takes logits over the whole vocabulary, and because products over few rows are bound by the weights.
//!
//! The prices are fitted on line; see [`crate::fit`].
//!
//! *Whose is the constant?* A step's time is split in proportion to what each row costs by itself, its marginal cost; the constant is
//! not dealt out by heads. That is what the replay of steps without each group of rows measures (`weir probe charges`), scaled so that the
//! differences add up; and it is the only rule under which cutting a row's work in two, or joining two, moves nothing to the others: what
//! a tenant pays depends on its work, and on rows only by the price of a row.

use crate::fit::{FRAC, Fit, PRICES};
use crate::ids::Nanos;

/// Steps before the fit is trusted to size chunks.
const PROVEN: u32 = 4;
/// Steps before devices are compared by the fit: a first step can be many times as slow as those after it.
const TRIED: u32 = 16;
/// No estimate is longer (4.9 hours), so that sums of them stay far from the end of 64 bits.
const ESTIMATE_MAX: Nanos = Nanos(1 << 44);
/// Fractional bits of the mean number of rows.
const MEAN_FRAC: u32 = 8;
/// Nanoseconds (13 days) that are divided by the weight of a step, to have the mean of its inverse in whole numbers.
const INVERSE: u64 = 1 << 50;
/// Steps over which means are taken, as a power of two.
const MEAN_SHIFT: u32 = 6;

/// Work of a row or a step in the model's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
    pub(crate) context: u64,
    pub(crate) reads: u64,
}

impl Load {
    /// A row of `len` new tokens from position `from`.
    #[inline]
    pub(crate) fn new(from: u32, len: u32) -> Load {
        let (from, len) = (u64::from(from), u64::from(len));
        Load { rows: 1, tokens: len, context: from + len, reads: len * from + len * (len + 1) / 2 }
    }

    /// `count` rows of one new token each, one after the other, the first at position `from`.
    pub(crate) fn draws(from: u32, count: u32) -> Load {
        let reads = Load::new(from, count).reads;
        Load { rows: u64::from(count), tokens: u64::from(count), context: reads, reads }
    }

    #[inline]
    pub(crate) fn add(&mut self, other: Load) {
        self.rows += other.rows;
        self.tokens += other.tokens;
        self.context += other.context;
        self.reads += other.reads;
    }

    fn quantities(self) -> [u64; PRICES] {
        [1, self.rows, self.tokens, self.context, self.reads]
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Cost {
    /// Nanoseconds with [`FRAC`] bits: of a step, a row, a token, a position of context, a read.
    prices: [u64; PRICES],
    fit: Fit,
    /// Mean rows of a step, with [`MEAN_FRAC`] bits.
    rows: u64,
    /// Mean of [`INVERSE`] over the weight of a step's rows. The inverse, because a row's part of a constant is its weight over all.
    inverse: u64,
    /// What the usual rows beside one weigh, of these two: rows ask for it, steps change it.
    others: u64,
}

impl Cost {
    pub(crate) fn new(step: Nanos, token: Nanos) -> Cost {
        let prior = |price: Nanos| price.0.min(1 << 32) << FRAC;
        let prices = [prior(step), 0, prior(token), 0, 0];
        Cost { prices, fit: Fit::new(), rows: 1 << MEAN_FRAC, inverse: INVERSE, others: 0 }
    }

    /// Whether enough steps were measured to size chunks by the fit.
    pub(crate) fn proven(&self) -> bool {
        self.fit.seen >= PROVEN
    }

    /// Whether enough steps were measured to compare the device with others.
    pub(crate) fn tried(&self) -> bool {
        self.fit.seen >= TRIED
    }

    /// The constant of a step.
    pub(crate) fn step(&self) -> Nanos {
        Nanos(self.prices[0] >> FRAC)
    }

    /// What a load costs, without the constant.
    #[inline]
    pub(crate) fn marginal(&self, load: Load) -> Nanos {
        // Almost always 64 bits are enough.
        match self.short_sum(load) {
            Some(sum) => Nanos(sum >> FRAC),
            None => self.marginal_of_much(load),
        }
    }

    #[inline]
    fn short_sum(&self, load: Load) -> Option<u64> {
        let [_, row, token, position, read] = self.prices;
        let rows = row.checked_mul(load.rows)?.checked_add(token.checked_mul(load.tokens)?)?;
        let memory = position.checked_mul(load.context)?.checked_add(read.checked_mul(load.reads)?)?;
        rows.checked_add(memory)
    }

    #[cold]
    fn marginal_of_much(&self, load: Load) -> Nanos {
        let prices = self.prices.map(u128::from);
        let quantities = load.quantities().map(u128::from);
        let sum: u128 = prices.iter().zip(quantities).skip(1).map(|(price, quantity)| price * quantity).sum();
        Nanos(u64::try_from(sum >> FRAC).unwrap_or(u64::MAX).min(1 << 60))
    }

    /// What a whole step costs.
    pub(crate) fn predict(&self, load: Load) -> Nanos {
        self.step().saturating_add(self.marginal(load))
    }

    /// What a load is expected to be charged when it is spread over `steps` steps, with its part of their constants beside the usual
    /// rows.
    pub(crate) fn attributed(&self, load: Load, steps: u64) -> Nanos {
        self.with_constant(self.marginal(load), steps.max(1))
    }

    /// The same for one row whose marginal cost is known.
    #[inline]
    pub(crate) fn attributed_row(&self, marginal: Nanos) -> Nanos {
        self.with_constant(marginal, 1)
    }

    #[inline]
    fn with_constant(&self, marginal: Nanos, steps: u64) -> Nanos {
        let own = (marginal.0 / steps).max(1);
        let all = own + self.others;
        let constant = match self.step().0.checked_mul(own) {
            // Almost always, and division is much cheaper here.
            Some(product) => product / all,
            None => (u128::from(self.step().0) * u128::from(own) / u128::from(all)) as u64,
        };
        let constant = constant.saturating_mul(steps);
        marginal.saturating_add(Nanos(constant)).min(ESTIMATE_MAX)
    }

    /// The weight by which a row shares its step's time; never zero.
    #[inline]
    pub(crate) fn weight(&self, load: Load) -> u64 {
        self.marginal(load).0.clamp(1, crate::charge::WEIGHT_MAX)
    }

    /// How many tokens of one row from position `from` fit into `time`.
    pub(crate) fn tokens_within(&self, from: u32, time: Nanos) -> u64 {
        let [_, row, token, position, read] = self.prices.map(u128::from);
        let from = u128::from(from);
        let time = (u128::from(time.0) << FRAC).saturating_sub(row + position * from);
        let each = token + position;
        let first = time / (each + read * from).max(1);
        let len = time / (each + read * (from + first.min(1 << 32) / 2)).max(1);
        u64::try_from(len).unwrap_or(u64::MAX)
    }

    /// Learns from a measured step.
    pub(crate) fn observe(&mut self, load: Load, time: Nanos) {
        // The first steps count for more than one in 2^MEAN_SHIFT, as in a plain mean.
        let shift = MEAN_SHIFT.min(self.fit.seen.checked_ilog2().unwrap_or(0));
        let blend = |old: u64, new: u64| old - (old >> shift) + (new >> shift);
        let rows = load.rows.clamp(1, 1 << 20);
        self.rows = blend(self.rows, rows << MEAN_FRAC).max(1 << MEAN_FRAC);
        self.inverse = blend(self.inverse, INVERSE / self.marginal(load).0.max(rows));
        let usual = u128::from(INVERSE / self.inverse.max(1));
        self.others = (usual * u128::from(self.rows - (1 << MEAN_FRAC)) / u128::from(self.rows)) as u64;
        self.fit.observe(&mut self.prices, load.quantities(), time.0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// 4 ms a step, 20 us a token, 5 ns a read.
    fn truth(load: Load) -> Nanos {
        Nanos(4_000_000 + 20_000 * load.tokens + 5 * load.reads)
    }

    /// A batch of 16 decodes around position `at`, every eighth time with a prompt chunk beside it.
    fn batch(n: u32, at: u32) -> Load {
        let mut load = Load::default();
        for row in 0..16 {
            load.add(Load::new(at + 40 * row, 1));
        }
        if n.is_multiple_of(8) {
            load.add(Load::new(n * 37 % 700, 40 + n * 53 % 200));
        }
        load
    }

    fn taught(steps: u32) -> Cost {
        let mut cost = Cost::new(Nanos::from_millis(1), Nanos::from_micros(500));
        for n in 0..steps {
            let load = batch(n, 100 + n % 900);
            cost.observe(load, truth(load));
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
        close(&cost, batch(1, 500));
        close(&cost, batch(8, 500));
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
            cost.observe(load, truth(load) + Nanos((n * 7919 % 1_000_003) ^ jitter));
        }
        let prompt = Load::new(0, 512);
        let (said, was) = (cost.predict(prompt).0, truth(prompt).0);
        assert!(said < 2 * was && was < 2 * said, "said {said}, was {was}");
    }

    #[test]
    fn a_device_that_slows_down_is_learnt_anew() {
        let mut cost = taught(400);
        for n in 0..400 {
            let load = batch(n, 100 + n % 900);
            cost.observe(load, Nanos(2 * truth(load).0));
        }
        let load = Load::new(0, 256);
        let (said, was) = (cost.predict(load).0, 2 * truth(load).0);
        assert!(said.abs_diff(was) * 10 < was, "said {said}, was {was}");
    }

    #[test]
    fn one_stalled_step_does_not_spoil_the_fit() {
        let mut cost = taught(400);
        let load = batch(8, 500);
        cost.observe(load, Nanos::from_secs(30));
        assert!(cost.predict(load).0 < 2 * truth(load).0);
    }

    /// Plays recorded steps. For every step, what it took and what was predicted; for every group of a replayed step, its name, its part
    /// of the sum of the differences, and its part of the weights; both in millionths.
    #[expect(clippy::type_complexity, reason = "said above, and used once")]
    fn replayed(recorded: &str) -> (Vec<(u64, u64)>, Vec<(&str, u64, u64)>) {
        let (mut steps, mut groups) = (Vec::new(), Vec::new());
        let mut cost = Cost::new(Nanos::from_millis(1), Nanos::from_micros(20));
        for line in recorded.lines().filter(|line| !line.starts_with('#')) {
            let mut fields = line.split("; ");
            let time = Nanos::from_micros(fields.next().unwrap().parse().unwrap());
            let mut parts = Vec::new();
            for field in fields {
                let (name, numbers) = field.split_once(' ').unwrap();
                let numbers: Vec<u64> = numbers.split(' ').map(|n| n.parse().unwrap()).collect();
                let [rows, tokens, context, reads, due] = numbers[..] else { panic!("{field}") };
                parts.push((name, Load { rows, tokens, context, reads }, due));
            }
            let mut load = Load::default();
            parts.iter().for_each(|(_, part, _)| load.add(*part));
            steps.push((time.0, cost.predict(load).0));
            let (due, weight) =
                (parts.iter().map(|p| p.2).sum::<u64>(), parts.iter().map(|p| cost.weight(p.1)).sum::<u64>());
            if due > 0 {
                let of = |part: u64, sum: u64| part * 1_000_000 / sum;
                groups.extend(parts.iter().map(|p| (p.0, of(p.2, due), of(cost.weight(p.1), weight))));
            }
            cost.observe(load, time);
        }
        (steps, groups)
    }

    /// The median of how far the second is from the first, relative to the first, in thousandths.
    fn error_median(pairs: impl Iterator<Item = (u64, u64)>) -> u64 {
        let mut errors: Vec<u64> = pairs.map(|(is, said)| said.abs_diff(is) * 1_000 / is.max(1)).collect();
        errors.sort_unstable();
        errors[errors.len() / 2]
    }

    #[test]
    fn groups_of_recorded_steps_are_charged_what_the_step_is_shorter_without_them() {
        for recorded in [include_str!("../testdata/decoder.txt"), include_str!("../testdata/encoder.txt")] {
            let (_, groups) = replayed(recorded);
            let error = |of: &str| error_median(groups.iter().filter(|g| g.0.contains(of)).map(|g| (g.1, g.2)));
            assert!(groups.len() >= 80 && error("") < 50, "{} thousandths", error(""));
            for name in ["long", "short", "prefill"] {
                if groups.iter().any(|group| group.0.contains(name)) {
                    assert!(error(name) < 100, "{name}: {} thousandths", error(name));
                }
            }
        }
    }

    #[test]
    fn recorded_steps_are_predicted() {
        for recorded in [include_str!("../testdata/decoder.txt"), include_str!("../testdata/encoder.txt")] {
            let (steps, _) = replayed(recorded);
            let error = error_median(steps[64..].iter().copied());
            assert!(error < 20, "{error} thousandths");
        }
    }

    #[test]
    fn context_and_reads_have_prices_of_their_own() {
        // As an H200 with an 8B model: a position of context costs thirty times what a read does.
        let h200 = |load: Load| Nanos(4_200_000 + 25_000 * load.tokens + 34 * load.context + load.reads / 1_000);
        let mut cost = Cost::new(Nanos::from_millis(1), Nanos::from_micros(20));
        for n in 0..400 {
            let mut load = Load::default();
            for row in 0..16 {
                load.add(Load::new(50 + (n * 97 + row * 1_913) % 24_000, 1));
            }
            if n.is_multiple_of(3) {
                load.add(Load::new(n * 37 % 16_000, 200 + n * 53 % 1_000));
            }
            cost.observe(load, h200(load));
        }
        for load in [Load::new(20_000, 1), Load::new(30, 1), Load::new(0, 1_000), Load::new(16_000, 1_000)] {
            let (said, was) = (cost.marginal(load).0, h200(load).0 - 4_200_000);
            assert!(said.abs_diff(was) * 10 < was, "{load:?}: said {said}, was {was}");
        }
    }

    #[test]
    fn cutting_work_into_more_rows_makes_it_no_cheaper() {
        let cost = taught(400);
        let (whole, first, rest) = (Load::new(0, 200), Load::new(0, 120), Load::new(120, 80));
        assert!(cost.weight(first) + cost.weight(rest) + 2 >= cost.weight(whole));
        // Two texts in place of one: each begins anew, and reads its own prompt.
        assert!(
            2 * cost.weight(Load::new(0, 100)) + 2 >= cost.weight(Load::new(0, 100)) + cost.weight(Load::draws(100, 1))
        );
        let rows: u64 = (0..8).map(|row| cost.weight(Load::new(500 + row, 1))).sum();
        assert!(rows + 8 >= cost.weight(Load::new(500, 8)), "drawing by rows beside a chunk of as many tokens");
    }

    #[test]
    fn what_is_expected_to_be_charged_is_what_the_split_charges() {
        let cost = taught(400);
        let mut load = batch(1, 500);
        let row = Load::new(500, 1);
        load.add(row);
        let charged = cost.predict(load).0 * cost.weight(row) / cost.marginal(load).0;
        let said = cost.attributed(row, 1).0;
        // The usual step has a prompt now and then, and so costs a row less.
        assert!(said.abs_diff(charged) * 4 < charged, "said {said}, charged {charged}");
    }

    proptest! {
        #[test]
        fn any_history_gives_usable_costs(
            steps in proptest::collection::vec((0u32..1 << 20, 1u32..1 << 18, 0u64..1 << 50), 1..200),
        ) {
            let mut cost = Cost::new(Nanos(1), Nanos(1));
            for (from, len, time) in steps {
                let load = Load::new(from, len);
                cost.observe(load, Nanos(time));
                prop_assert!(cost.weight(load) > 0);
                prop_assert!(cost.predict(load) >= cost.step());
                let fits = cost.tokens_within(from, Nanos::from_millis(100)).min(1 << 18) as u32;
                if fits > 0 && fits < 1 << 18 {
                    prop_assert!(cost.marginal(Load::new(from, fits)).0 <= 101_000_000);
                }
            }
        }
    }
}
