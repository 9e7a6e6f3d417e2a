//! Who is least: a winner tree over dense slots.
//!
//! The leaves are the slots with their keys, and every inner node names the lesser of its two children; so the least of all is at the root,
//! and a key that changes plays its way up against one neighbour per level. That is O(log slots) for each change and nothing for
//! a look, it allocates only when slots are added, and equal keys are decided by the slot, the lower one first, whatever came
//! before. Against an indexed binary heap it moves nothing, and a key that leaves and comes back costs one path each.

use alloc::vec::Vec;
use core::hint::select_unpredictable;

use crate::request::NONE;

/// A key, and one that stands for "not there" and is greater than every other.
pub(crate) trait Key: Copy + Ord {
    const ABSENT: Self;

    /// The least key that does not beat it, if equal ones do; among absent ones anybody may win.
    fn beaten_by_equals(self, equals: bool) -> Self;
}

impl Key for u128 {
    const ABSENT: u128 = u128::MAX;

    #[inline]
    fn beaten_by_equals(self, equals: bool) -> u128 {
        self.saturating_add(u128::from(equals))
    }
}

impl Key for u64 {
    const ABSENT: u64 = u64::MAX;

    #[inline]
    fn beaten_by_equals(self, equals: bool) -> u64 {
        self.saturating_add(u64::from(equals))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Tournament<K> {
    /// By slot; the length is a power of two.
    keys: Vec<K>,
    /// Inner nodes: the root is 1, the children of `n` are `2n` and `2n + 1`, and those from `keys.len()` on are leaves.
    winners: Vec<u32>,
    /// Changes so far, in levels played.
    pub(crate) played: u64,
}

impl<K: Key> Default for Tournament<K> {
    fn default() -> Self {
        Tournament { keys: Vec::new(), winners: Vec::new(), played: 0 }
    }
}

impl<K: Key> Tournament<K> {
    /// Makes room for so many slots.
    pub(crate) fn grow(&mut self, slots: usize) {
        let len = slots.next_power_of_two().max(2);
        if len <= self.keys.len() {
            return;
        }
        self.keys.resize(len, K::ABSENT);
        self.winners.clear();
        self.winners.resize(len, 0);
        for node in (1..len).rev() {
            self.winners[node] = self.winner(node);
        }
    }

    /// The least key and its slot; nothing if no slot has a key.
    pub(crate) fn least(&self) -> Option<(K, u32)> {
        let slot = *self.winners.get(1)?;
        let key = self.keys[slot as usize];
        (key != K::ABSENT).then_some((key, slot))
    }

    pub(crate) fn has(&self, slot: u32) -> bool {
        self.keys[slot as usize] != K::ABSENT
    }

    /// The slot's key, if it has one.
    pub(crate) fn key(&self, slot: u32) -> Option<K> {
        Some(self.keys[slot as usize]).filter(|key| *key != K::ABSENT)
    }

    /// Gives the slot this key.
    pub(crate) fn set(&mut self, slot: u32, key: K) {
        if self.keys[slot as usize] == key {
            return;
        }
        self.keys[slot as usize] = key;
        let (keys, winners) = (&self.keys[..], &mut self.winners[..]);
        let leaf = keys.len() + slot as usize;
        let mut node = leaf;
        let (mut best, mut best_key) = (slot, key);
        let mut rival = slot ^ 1;
        loop {
            // The neighbours on the way up depend on the slot only, so that they are loaded while this is compared.
            let rival_key = keys[rival as usize];
            // Of equal ones the left, whose slots are the lower ones. Who wins cannot be guessed, so nothing branches on it.
            let loses = rival_key < best_key.beaten_by_equals(node % 2 == 1);
            best = select_unpredictable(loses, rival, best);
            best_key = select_unpredictable(loses, rival_key, best_key);
            node /= 2;
            let before = core::mem::replace(&mut winners[node], best);
            // Nodes above know no more of this slot than this one does.
            if node == 1 || before == best && best != slot {
                break;
            }
            rival = winners[node ^ 1];
        }
        self.played += u64::from(leaf.ilog2() - node.ilog2());
    }

    /// Takes the slot's key away, if it has one.
    pub(crate) fn remove(&mut self, slot: u32) {
        self.set(slot, K::ABSENT);
    }

    /// The lesser of a node's children.
    fn winner(&self, node: usize) -> u32 {
        let leaves = self.keys.len();
        let (left, right) = match 2 * node < leaves {
            true => (self.winners[2 * node], self.winners[2 * node + 1]),
            false => ((2 * node - leaves) as u32, (2 * node - leaves) as u32 + 1),
        };
        if self.keys[right as usize] < self.keys[left as usize] { right } else { left }
    }
}

/// A set of slots that can be walked through, in no order that means anything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster {
    members: Vec<u32>,
    /// By slot: its place among the members.
    places: Vec<u32>,
}

impl Roster {
    pub(crate) fn grow(&mut self, slots: usize) {
        self.places.resize(slots.max(self.places.len()), NONE);
        self.members.reserve(slots.saturating_sub(self.members.len()));
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn has(&self, slot: u32) -> bool {
        self.places[slot as usize] != NONE
    }

    pub(crate) fn get(&self, at: usize) -> Option<u32> {
        self.members.get(at).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.members.iter().copied()
    }

    /// Puts the slot in, or out. What comes after it in the walk may take its place.
    pub(crate) fn set(&mut self, slot: u32, member: bool) {
        let place = self.places[slot as usize];
        match (place != NONE, member) {
            (false, true) => {
                self.places[slot as usize] = self.members.len() as u32;
                self.members.push(slot);
            }
            (true, false) => {
                self.members.swap_remove(place as usize);
                if let Some(&moved) = self.members.get(place as usize) {
                    self.places[moved as usize] = place;
                }
                self.places[slot as usize] = NONE;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_least_is_found_after_any_changes(
            changes in proptest::collection::vec((0u32..40, 0u64..20, 0u8..4), 1..300),
        ) {
            let (mut tree, mut roster) = (Tournament::<u64>::default(), Roster::default());
            let mut plain = alloc::vec![u64::ABSENT; 40];
            for (n, (slot, key, kind)) in changes.into_iter().enumerate() {
                let key = if kind == 0 { u64::ABSENT } else { key };
                // The tables grow under way.
                let slots = 5 + n.min(35);
                tree.grow(slots);
                roster.grow(slots);
                let slot = slot % slots as u32;
                tree.set(slot, key);
                roster.set(slot, key != u64::ABSENT);
                plain[slot as usize] = key;
                let least = (0u32..).zip(&plain).map(|(slot, key)| (*key, slot)).min();
                prop_assert_eq!(tree.least(), least.filter(|(key, _)| *key != u64::ABSENT));
                let mut members: Vec<u32> = roster.iter().collect();
                members.sort_unstable();
                let expected: Vec<u32> = (0..40).filter(|slot| plain[*slot as usize] != u64::ABSENT).collect();
                prop_assert_eq!(members, expected);
                prop_assert!((0..slots as u32).all(|slot| roster.has(slot) == tree.has(slot)));
            }
        }
    }
}
