//! Prompts of token ids, drawn from a seed and never repeated.
//!
//! A prompt is named by its index in the run. Its first positions spell that index in base *range*, each digit rotated by
//! an amount drawn from the seed, so no two prompts of a run share their first block however small the vocabulary is; the
//! rest is random. Drawing is a pure function of seed and index: it does not matter which connection asks, or when.

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
    len: u32,
}

impl Prompts {
    /// `vocab` is at least 2 (`LoadConfig::check`).
    pub(crate) fn new(seed: u64, vocab: u32, len: u32) -> Prompts {
        let first = if vocab >= 2 * ORDINARY_FIRST { ORDINARY_FIRST } else { 0 };
        let range = vocab - first;
        // Rounding the bits of a digit down rounds the number of digits up.
        let digits = INDEX_BITS.div_ceil(range.ilog2());
        Prompts { seed, first, range, digits, len }
    }

    /// The ids of prompt `index`. A prompt shorter than the digits of its index keeps the low ones, which differ first.
    pub(crate) fn draw(&self, index: u64) -> Vec<u32> {
        let mut rotation = SplitMix64(self.seed);
        let mut filler = SplitMix64(self.seed ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let range = u64::from(self.range);
        // Multiply-shift: its bias is below 2^-32 x range, nothing for filler text.
        let below_range = |random: &mut SplitMix64| ((random.next() >> 32) * range) >> 32;
        let mut spelled = index;
        (0..self.len)
            .map(|position| {
                let offset = if position < self.digits {
                    let digit = spelled % range;
                    spelled /= range;
                    (digit + below_range(&mut rotation)) % range
                } else {
                    below_range(&mut filler)
                };
                self.first + offset as u32
            })
            .collect()
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_generator_gives_its_reference_values() {
        // Vigna's splitmix64.c with x = 1234567.
        let mut random = SplitMix64(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn prompts_are_a_function_of_seed_and_index() {
        let a = Prompts::new(7, 49152, 64);
        assert_eq!(a.draw(5), Prompts::new(7, 49152, 64).draw(5));
        assert_ne!(a.draw(5), a.draw(6));
        assert_ne!(a.draw(5)[8..], Prompts::new(8, 49152, 64).draw(5)[8..]);
    }

    #[test]
    fn ids_stay_in_range_and_skip_control_ids() {
        for (vocab, lowest) in [(49152, 1000), (30522, 1000), (2000, 1000), (1999, 0), (300, 0), (2, 0)] {
            for id in Prompts::new(1, vocab, 500).draw(3) {
                assert!((lowest..vocab).contains(&id), "{id} for {vocab}");
            }
        }
    }

    #[test]
    fn no_two_prompts_begin_alike_even_with_two_ids() {
        for (vocab, len) in [(2, 12), (258, 2), (30522, 1)] {
            let prompts = Prompts::new(3, vocab, len);
            let mut seen = HashSet::new();
            assert!((0..4096).all(|i| seen.insert(prompts.draw(i))), "vocab {vocab}");
        }
    }

    #[test]
    fn another_seed_begins_differently() {
        let first = |seed| Prompts::new(seed, 49152, 3).draw(0);
        assert_ne!(first(1), first(2));
    }
}
