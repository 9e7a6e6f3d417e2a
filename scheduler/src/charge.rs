//! Splitting one measured time over the rows that shared it.
//!
//! Weights are the rows' marginal costs ([`crate::cost`]), so the constant of a step is shared in proportion to them, too. Dealing it out by
//! heads was tried and is wrong by measure: beside a prompt of a hundred tokens, a short decode was charged a third more than what the
//! step is shorter without it. A row's part does not depend on how the others' work is cut into rows, but for the price of a row,
//! and no way of cutting one's own work makes it cheaper. Parts add up exactly, no weight is zero, and who is alone in a step
//! pays for all of it.

use crate::ids::Nanos;

/// Deals out a step's device time in proportion to integer weights.
///
/// Row `i` gets `floor(time * W(i+1) / W) - floor(time * W(i) / W)`, where `W(i)` is the sum of the weights before it: each row's
/// remainder is carried to the next, so the parts add up to the time exactly and each is within one nanosecond of its
/// exact part. Example: 10 ns over weights 1, 1, 1 gives 3, 3, 4.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    time: u64,
    total: u64,
    before: u64,
    dealt: u64,
}

/// Weights are at most this, so that their sum stays within 64 bits for any number of rows below 2^24.
pub(crate) const WEIGHT_MAX: u64 = 1 << 40;

impl Split {
    /// `total` is the sum of the weights that [`Split::part`] will be called with; each at most [`WEIGHT_MAX`].
    pub(crate) fn new(time: Nanos, total: u64) -> Split {
        Split { time: time.0, total, before: 0, dealt: 0 }
    }

    #[inline]
    pub(crate) fn part(&mut self, weight: u64) -> Nanos {
        self.before += weight;
        debug_assert!(self.before <= self.total && weight > 0);
        // Almost always the product fits 64 bits, where division is much cheaper.
        let until = match self.before.checked_mul(self.time) {
            Some(product) => product / self.total,
            None => (u128::from(self.time) * u128::from(self.before) / u128::from(self.total)) as u64,
        };
        let part = until - self.dealt;
        self.dealt = until;
        Nanos(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_add_up_and_are_within_a_nanosecond(
            time in 0u64..1 << 45,
            weights in proptest::collection::vec(1u64..WEIGHT_MAX, 1..300),
        ) {
            let total: u64 = weights.iter().sum();
            let mut split = Split::new(Nanos(time), total);
            let mut sum = 0u64;
            for weight in &weights {
                let part = split.part(*weight).0;
                let exact = u128::from(time) * u128::from(*weight) / u128::from(total);
                prop_assert!(u128::from(part).abs_diff(exact) <= 1);
                sum += part;
            }
            prop_assert_eq!(sum, time);
        }
    }
}
