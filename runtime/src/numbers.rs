//! Maps by numbers that this process counts up itself. Nobody outside chooses them, so no key can be made to meet another, and
//! one multiplication takes the place of a keyed hash: the engine thread looks up some dozens of them for each request.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// A map by a number, or by an id that is one.
pub(crate) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// 2^64 divided by the golden ratio: consecutive numbers come to lie far apart (Knuth, volume 3, section 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a number.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(SPREAD);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, hash::BuildHasher};

    use super::*;

    #[test]
    fn consecutive_numbers_spread_over_both_ends_of_the_hash() {
        let hasher = BuildHasherDefault::<NumberHasher>::default();
        let hashes: Vec<u64> = (1000..1128u64).map(|number| hasher.hash_one(number)).collect();
        // A map takes the place from the lowest bits and a tag from the highest.
        let low: BTreeSet<u64> = hashes.iter().map(|hash| hash & 127).collect();
        let high: BTreeSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
        assert_eq!((low.len(), high.len() > 100), (128, true), "{}", high.len());
    }
}
