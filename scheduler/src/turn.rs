//! Whose turn it is while a step is filled.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Reverse;

use crate::share::Virtual;

/// When it is a tenant's turn: a virtual time, and the tenant's slot for equal ones. One number, since turns are compared many times
/// per row. The least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn(u128);

impl Turn {
    /// Nobody's: it comes after all others.
    pub(crate) const NEVER: Turn = Turn(u128::MAX);

    pub(crate) fn new(time: Virtual, tenant: u32) -> Turn {
        // 96 bits are 64 of nanoseconds: nobody gets there.
        Turn(time.min(Virtual::MAX >> 32) << 32 | u128::from(tenant))
    }

    pub(crate) fn time(self) -> Virtual {
        self.0 >> 32
    }

    pub(crate) fn tenant(self) -> u32 {
        self.0 as u32
    }
}

/// Bits for a place among those called, in a word that is sorted.
const PLACE_BITS: u32 = 16;

/// Scratch of the planner: the tenants called for a step, by the virtual time that they would have with the rows they got in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    /// Those called at the start, in order, and how many of them had their turn.
    called: Vec<Turn>,
    next: usize,
    /// Scratch of [`Order::sort`].
    words: Vec<u64>,
    sorted: Vec<Turn>,
    /// Those that had a turn and may have another. Only the first leaves, so a plain heap will do.
    again: BinaryHeap<Reverse<Turn>>,
}

impl Order {
    pub(crate) fn grow(&mut self, tenants: usize) {
        self.again.reserve(tenants.saturating_sub(self.again.len()));
        for turns in [&mut self.called, &mut self.sorted] {
            turns.reserve(tenants.saturating_sub(turns.len()));
        }
        self.words.reserve(tenants.saturating_sub(self.words.len()));
    }

    pub(crate) fn clear(&mut self) {
        debug_assert!(self.again.is_empty());
        self.called.clear();
        self.next = 0;
    }

    /// Somebody is called. Before the first turn, and before they are sorted.
    pub(crate) fn call(&mut self, turn: Turn) {
        self.called.push(turn);
    }

    /// Puts those called in order, and says how many they are.
    ///
    /// Sorting turns as they are is a good part of a step: they are wide, and which of two is less cannot be guessed. Words are sorted
    /// without guessing. So each turn is first a word, of the upper bits of what it is above the least and of its place; then those whose
    /// upper bits are the same are put in order among each other.
    pub(crate) fn sort(&mut self) -> usize {
        let len = self.called.len();
        let (least, most) = self.called.iter().fold((u128::MAX, 0), |(a, b), turn| (a.min(turn.0), b.max(turn.0)));
        if len >> PLACE_BITS > 0 || len < 2 {
            self.called.sort_unstable();
            return len;
        }
        let shift = (u128::BITS - (most - least).leading_zeros()).saturating_sub(u64::BITS - PLACE_BITS);
        let word = |(place, turn): (u64, &Turn)| (((turn.0 - least) >> shift) as u64) << PLACE_BITS | place;
        self.words.clear();
        self.words.extend((0..).zip(&self.called).map(word));
        self.words.sort_unstable();
        self.sorted.clear();
        let place = |word: &u64| (word & ((1 << PLACE_BITS) - 1)) as usize;
        self.sorted.extend(self.words.iter().map(|word| self.called[place(word)]));
        let mut rest = &mut self.sorted[..];
        for alike in self.words.chunk_by(|one, other| one >> PLACE_BITS == other >> PLACE_BITS) {
            let (turns, others) = rest.split_at_mut(alike.len());
            turns.sort_unstable();
            rest = others;
        }
        core::mem::swap(&mut self.called, &mut self.sorted);
        len
    }

    /// Somebody who had a turn may have another.
    pub(crate) fn come_again(&mut self, turn: Turn) {
        self.again.push(Reverse(turn));
    }

    /// Those whose turn did not come, or may still have come again, in any order.
    pub(crate) fn left(&mut self) -> impl Iterator<Item = Turn> {
        self.called[self.next..].iter().copied().chain(self.again.drain().map(|turn| turn.0))
    }

    /// Whose turn it is, of those called.
    pub(crate) fn first(&self) -> Turn {
        let called = self.called.get(self.next).copied().unwrap_or(Turn::NEVER);
        called.min(self.again.peek().map_or(Turn::NEVER, |turn| turn.0))
    }

    /// The first has its turn.
    pub(crate) fn take(&mut self, turn: Turn) {
        match self.called.get(self.next) {
            Some(first) if *first == turn => self.next += 1,
            _ => drop(self.again.pop()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn those_called_come_in_order_near_or_far(
            times in proptest::collection::vec((0u32..96, any::<u128>()), 0..200),
        ) {
            let mut order = Order::default();
            // Of all sizes, and some of them equal.
            let turns: Vec<Turn> = (0u32..).zip(times).map(|(n, (bits, time))| {
                Turn::new(time & ((1 << bits) - 1) | 7 << 40, n.wrapping_mul(7919) % 1009)
            }).collect();
            turns.iter().for_each(|turn| order.call(*turn));
            prop_assert_eq!(order.sort(), turns.len());
            let mut expected = turns;
            expected.sort();
            for (n, turn) in expected.iter().enumerate() {
                prop_assert_eq!(order.called[n], *turn);
            }
        }
    }
}
