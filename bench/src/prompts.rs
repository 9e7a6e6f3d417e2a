//! Prompts of token ids, drawn from a seed and never repeated.
//!
//! A prompt is named by its index in the run. Its first positions spell that index in base *range*, each digit rotated by
//! an amount drawn from the seed, so no two prompts of a run share their first block however small the vocabulary is; the
//! rest is random. Drawing is a pure function of seed and index: it does not matter which connection asks, or when.

use crate::random::SplitMix64;

/// Ids below this are left out where the vocabulary is large enough: vocabularies put control and unused ids first
/// (BERT's first 1,000; the end-of-text and role marks of BPE models), and those may cost or mean something special.
const ORDINARY_FIRST: u32 = 1000;

/// Indices stay below 2^this: levels x (requests + warm-up) is far below it.
const INDEX_BITS: u32 = 40;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Prompts {
    seed: u64,
    first: u32,
    /// How many ids there are to draw from.
    range: u32,
    /// How many positions spell the index.
    digits: u32,
}

impl Prompts {
    /// `vocab` is at least 2 (`LoadConfig::check`).
    pub(crate) fn new(seed: u64, vocab: u32) -> Prompts {
        let first = if vocab >= 2 * ORDINARY_FIRST { ORDINARY_FIRST } else { 0 };
        let range = vocab - first;
        // Rounding the bits of a digit down rounds the number of digits up.
        let digits = INDEX_BITS.div_ceil(range.ilog2());
        Prompts { seed, first, range, digits }
    }

    /// The `len` ids of prompt `index`. A prompt shorter than the digits of its index keeps the low ones, which differ first.
    pub(crate) fn draw(&self, index: u64, len: u32) -> Vec<u32> {
        let mut rotation = SplitMix64::new(self.seed);
        let mut filler = SplitMix64::new(self.seed ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let range = u64::from(self.range);
        let mut spelled = index;
        (0..len)
            .map(|position| {
                let offset = if position < self.digits {
                    let digit = spelled % range;
                    spelled /= range;
                    (digit + rotation.below(range)) % range
                } else {
                    filler.below(range)
                };
                self.first + offset as u32
            })
            .collect()
    }

    /// `len` words that stand for the ids of prompt `index`, for what takes no ids. A word is two letters or more of the id in
    /// base 26, so no two prompts begin alike here either.
    pub(crate) fn words(&self, index: u64, len: u32) -> String {
        let mut text = String::new();
        for id in self.draw(index, len) {
            let mut rest = id + 26;
            while rest > 0 {
                text.push(char::from(b'a' + (rest % 26) as u8));
                rest /= 26;
            }
            text.push(' ');
        }
        text.pop();
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn prompts_are_a_function_of_seed_and_index() {
        let a = Prompts::new(7, 49152);
        assert_eq!(a.draw(5, 64), Prompts::new(7, 49152).draw(5, 64));
        assert_ne!(a.draw(5, 64), a.draw(6, 64));
        assert_ne!(a.draw(5, 64)[8..], Prompts::new(8, 49152).draw(5, 64)[8..]);
    }

    #[test]
    fn ids_stay_in_range_and_skip_control_ids() {
        for (vocab, lowest) in [(49152, 1000), (30522, 1000), (2000, 1000), (1999, 0), (300, 0), (2, 0)] {
            for id in Prompts::new(1, vocab).draw(3, 500) {
                assert!((lowest..vocab).contains(&id), "{id} for {vocab}");
            }
        }
    }

    #[test]
    fn no_two_prompts_begin_alike_even_with_two_ids() {
        for (vocab, len) in [(2, 12), (258, 2), (30522, 1)] {
            let prompts = Prompts::new(3, vocab);
            let mut seen = HashSet::new();
            assert!((0..4096).all(|i| seen.insert(prompts.draw(i, len))), "vocab {vocab}");
        }
    }

    #[test]
    fn words_stand_for_ids() {
        let prompts = Prompts::new(3, 300);
        let text = prompts.words(5, 20);
        assert_eq!(text.split(' ').count(), 20);
        assert!(text.split(' ').all(|word| word.len() >= 2 && word.bytes().all(|b| b.is_ascii_lowercase())));
        let words: HashSet<String> = (0..4096).map(|i| prompts.words(i, 6)).collect();
        assert_eq!(words.len(), 4096);
    }

    #[test]
    fn another_seed_begins_differently() {
        let first = |seed| Prompts::new(seed, 49152).draw(0, 3);
        assert_ne!(first(1), first(2));
    }
}
