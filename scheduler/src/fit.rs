//! Least squares on line, in integers.
//!
//! What is minimised over the last [`MEMORY_SHIFT`] steps or so is the mean of `(1 - predicted / time)^2`: errors count relative to
//! the step, else the noise of one step with a long prompt would hide what fifty decode steps teach. A step that took longer than
//! was predicted is divided by its time, and one that took less by the prediction, so no step has an error above one and a stall of
//! seconds has hardly a say.
//!
//! *Identifiability.* Steps of one kind cannot tell the prices apart: in a batch of decodes tokens are rows, and context is
//! reads. A ridge therefore pulls each price towards its last value, in proportion to it, and prices move an eighth of the way at a
//! time: a mix of steps that tells them apart teaches them within tens of steps, and what steps do not tell apart stays as it was.
//! The constant alone is free, so what all steps have in common is put down to it before a price that nothing speaks for.
//!
//! *Method.* With `z` the quantities of a step divided by its time, exponentially weighted means of all `z[i] z[j]` and of
//! `z[i]` (times the time, divided by the same) are kept, and elimination solves for the change of prices; one that would fall below zero
//! is set to zero and the rest solved again. Quantities are scaled by powers of two to their own size first, so that
//! nothing depends on their units and 128 bits are enough. Cost: some hundred instructions, and at most five times that, a step.

/// Prices that are fitted.
pub(crate) const PRICES: usize = 5;
/// Fractional bits of a price.
pub(crate) const FRAC: u32 = 24;

/// Steps over which the past is forgotten, as a power of two.
const MEMORY_SHIFT: u32 = 6;
/// Steps before the prices move slowly.
const SETTLED: u32 = 32;
/// How much slower they then move, as a power of two.
const SLOW_SHIFT: u32 = 3;
/// Fractional bits of quantities divided by time.
const RATE_FRAC: u32 = 40;
/// Fractional bits of what was scaled to its own size.
const UNIT: u32 = 28;
const ONE: i128 = 1 << UNIT;
/// The least time of a step, for the sake of the arithmetic: 65 us.
const TIME_MIN: u64 = 1 << 16;
/// No quantity counts for more.
const QUANTITY_MAX: u64 = 1 << 32;
/// No prediction counts for more, and no time: 69 s.
const TIME_MAX: u64 = 1 << 36;
/// Fractional bits of means, so that rounding leaves the matrix positive.
const MEAN_FRAC: u32 = 12;
/// No price is higher: 4.3 s for one.
const PRICE_MAX: i128 = 1 << (32 + FRAC);
/// The ridge: the square of the change of a price, relative to it, that weighs as much as a step wholly mispredicted.
const RIDGE: i128 = ONE / 1024;
/// The ridge is no weaker, for the sake of the arithmetic: it outweighs what rounding can do to the matrix.
const RIDGE_MIN: i128 = ONE >> 16;
/// Prices of a smaller part of the step than this are held as if they were of that part, so that one at zero can grow.
/// No part counts for more, for the sake of the arithmetic.
const PART_MAX: i128 = ONE << 12;
const PART_MIN: i128 = ONE / 8;

type Vector = [i128; PRICES];
type Square = [Vector; PRICES];

#[derive(Clone, Debug)]
pub(crate) struct Fit {
    /// Steps observed.
    pub(crate) seen: u32,
    /// Means of the products of rates, in pairs, with [`MEAN_FRAC`] bits; the lower triangle.
    zz: [[i128; PRICES]; PRICES],
    /// Means of the products of rates with time over time.
    zy: [i128; PRICES],
}

impl Fit {
    pub(crate) fn new() -> Fit {
        Fit { seen: 0, zz: [[0; PRICES]; PRICES], zy: [0; PRICES] }
    }

    /// A step with these quantities took `time` nanoseconds. Moves `prices`, with [`FRAC`] bits, accordingly.
    pub(crate) fn observe(&mut self, prices: &mut [u64; PRICES], quantities: [u64; PRICES], time: u64) {
        let (quantities, time) = (quantities.map(|q| q.min(QUANTITY_MAX)), time.min(TIME_MAX));
        let predicted: u128 = prices.iter().zip(quantities).map(|(p, q)| u128::from(*p) * u128::from(q)).sum();
        let predicted = u64::try_from(predicted >> FRAC).unwrap_or(u64::MAX).min(TIME_MAX);
        let by = i128::from(time.max(predicted).max(TIME_MIN));
        let rate = |amount: u64| (i128::from(amount) << RATE_FRAC) / by;
        let z = quantities.map(rate);
        let y = rate(time);
        // The first steps count for more than one in 2^MEMORY_SHIFT, as in a plain mean.
        let shift = MEMORY_SHIFT.min(self.seen.checked_ilog2().unwrap_or(0));
        let blend = |old: &mut i128, new: i128| *old += ((new << MEAN_FRAC) - *old) >> shift;
        for i in 0..PRICES {
            for j in 0..=i {
                blend(&mut self.zz[i][j], product(z[i], z[j]));
            }
            blend(&mut self.zy[i], product(z[i], y));
        }
        self.seen = self.seen.saturating_add(1);
        self.solve(prices);
    }

    fn solve(&self, prices: &mut [u64; PRICES]) {
        // Powers of two with which quantities become about one: their mean squares are then between a quarter and one.
        let size: [u32; PRICES] =
            core::array::from_fn(|i| (i128::BITS - (self.zz[i][i] >> MEAN_FRAC).leading_zeros()).div_ceil(2));
        let scaled = |value: i128, shift: u32| match (shift + MEAN_FRAC).checked_sub(UNIT) {
            Some(shift) => value >> shift,
            None => value << (UNIT - MEAN_FRAC - shift),
        };
        let m: [[i128; PRICES]; PRICES] =
            core::array::from_fn(|i| core::array::from_fn(|j| scaled(self.zz[i.max(j)][i.min(j)], size[i] + size[j])));
        // Each price times the usual quantity: the part of a step's time that it explains.
        let part: [i128; PRICES] =
            core::array::from_fn(|i| ((i128::from(prices[i]) << size[i]) >> (RATE_FRAC + FRAC - UNIT)).min(PART_MAX));
        let wrong: [i128; PRICES] = core::array::from_fn(|i| {
            let explained: i128 = (0..PRICES).map(|j| product(m[i][j], part[j])).sum();
            scaled(self.zy[i], size[i] + RATE_FRAC) - (explained >> UNIT)
        });
        let mut ridge = part.map(|part| {
            let part = part.max(PART_MIN);
            ((RIDGE << (2 * UNIT)) / product(part, part)).max(RIDGE_MIN)
        });
        // The constant is free: what all steps have in common says nothing of rows and tokens.
        ridge[0] = RIDGE_MIN;
        let change = constrained(&m, &ridge, &wrong, &part);
        let slow = if self.seen < SETTLED { 0 } else { SLOW_SHIFT };
        for i in 0..PRICES {
            // What was never seen has no price.
            if size[i] > 0 {
                let change = (change[i] << (RATE_FRAC + FRAC - UNIT)) >> (size[i] + slow);
                prices[i] = (i128::from(prices[i]) + change).clamp(0, PRICE_MAX) as u64;
            }
        }
    }
}

/// `a * b`. Almost always both fit 64 bits, where a product is one instruction and cannot overflow.
#[inline]
fn product(a: i128, b: i128) -> i128 {
    match (i64::try_from(a), i64::try_from(b)) {
        (Ok(a), Ok(b)) => i128::from(a) * i128::from(b),
        _ => a * b,
    }
}

/// `a / b`, in the same way; `b` is positive.
#[inline]
fn quotient(a: i128, b: i128) -> i128 {
    match (i64::try_from(a), i64::try_from(b)) {
        (Ok(a), Ok(b)) => i128::from(a / b),
        _ => a / b,
    }
}

/// The change of parts that the ridged equations ask for, none of which takes a part below zero: what would go furthest below is set to zero
/// and the rest solved again, until nothing does.
fn constrained(m: &Square, ridge: &Vector, wrong: &Vector, part: &Vector) -> Vector {
    let mut zeroed = [false; PRICES];
    loop {
        let change = solved(m, ridge, wrong, part, &zeroed);
        let below = |i: &usize| !zeroed[*i] && part[*i] + change[*i] < 0;
        match (0..PRICES).filter(below).min_by_key(|i| part[*i] + change[*i]) {
            Some(worst) => zeroed[worst] = true,
            None => return change,
        }
    }
}

/// Solves `(m + ridge) change = wrong` by elimination, with the change of those that are zeroed given. The matrix is positive
/// definite, so no pivoting is needed.
#[expect(clippy::needless_range_loop, reason = "rows and columns are what the loops are about")]
fn solved(m: &Square, ridge: &Vector, wrong: &Vector, part: &Vector, zeroed: &[bool; PRICES]) -> Vector {
    let (mut a, mut b) = (*m, *wrong);
    for i in 0..PRICES {
        a[i][i] += ridge[i];
        let given: i128 = (0..PRICES).filter(|j| zeroed[*j]).map(|j| product(m[i][j], part[j])).sum();
        b[i] += given >> UNIT;
    }
    for i in (0..PRICES).filter(|i| zeroed[*i]) {
        for j in 0..PRICES {
            (a[i][j], a[j][i]) = (0, 0);
        }
        (a[i][i], b[i]) = (ONE, -part[i]);
    }
    for k in 0..PRICES {
        let pivot = a[k][k].max(1);
        for i in k + 1..PRICES {
            let factor = quotient(a[i][k] << UNIT, pivot);
            for j in k..PRICES {
                a[i][j] -= product(factor, a[k][j]) >> UNIT;
            }
            b[i] -= product(factor, b[k]) >> UNIT;
        }
    }
    let mut change = [0; PRICES];
    for i in (0..PRICES).rev() {
        let known: i128 = (i + 1..PRICES).map(|j| product(a[i][j], change[j])).sum();
        change[i] = quotient((b[i] << UNIT) - known, a[i][i].max(1));
    }
    change
}
