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

/// Scratch of the planner: the tenants called for a step, by the virtual time that they would have with the rows they got in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    /// Those called at the start, in order, and how many of them had their turn.
    called: Vec<Turn>,
    next: usize,
    /// Those that had a turn and may have another. Only the first leaves, so a plain heap will do.
    again: BinaryHeap<Reverse<Turn>>,
}

impl Order {
    pub(crate) fn grow(&mut self, tenants: usize) {
        self.again.reserve(tenants.saturating_sub(self.again.len()));
        self.called.reserve(tenants.saturating_sub(self.called.len()));
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
    pub(crate) fn sort(&mut self) -> usize {
        self.called.sort_unstable();
        self.called.len()
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
