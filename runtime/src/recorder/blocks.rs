//! Numbers for blocks, so that a trace says which requests began alike and how far, and nothing of what they began with.
//!
//! A block that has not been seen gets the next number, so a text of its own is one run of numbers, and one that goes on from
//! an earlier one is that one's run and then its own: a line holds two or three pairs however long the text is.

use std::collections::HashMap;

/// Blocks remembered in each of two generations, 16 MiB together: 16 million tokens of text. When the younger is full, the older is
/// forgotten, and what comes back of it counts as new.
const GENERATION_LEN_MAX: usize = 1 << 18;

/// Blocks by the order in which they were first seen.
#[derive(Debug)]
pub(super) struct BlockNumbers {
    young: HashMap<u64, u64>,
    old: HashMap<u64, u64>,
    next: u64,
    generation_len_max: usize,
}

impl Default for BlockNumbers {
    fn default() -> Self {
        BlockNumbers::with_generations_of(GENERATION_LEN_MAX)
    }
}

impl BlockNumbers {
    fn with_generations_of(generation_len_max: usize) -> Self {
        BlockNumbers { young: HashMap::new(), old: HashMap::new(), next: 0, generation_len_max }
    }

    /// The runs of a text: (first number, how many).
    pub(super) fn runs(&mut self, keys: &[u64]) -> Vec<(u64, u32)> {
        let mut runs: Vec<(u64, u32)> = Vec::new();
        for key in keys {
            let number = self.number(*key);
            match runs.last_mut() {
                Some((first, len)) if *first + u64::from(*len) == number => *len += 1,
                _ => runs.push((number, 1)),
            }
        }
        runs
    }

    fn number(&mut self, key: u64) -> u64 {
        if let Some(number) = self.young.get(&key) {
            return *number;
        }
        let number = self.old.get(&key).copied().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        if self.young.len() >= self.generation_len_max {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_goes_on_from_another_is_two_runs() {
        let mut numbers = BlockNumbers::default();
        assert_eq!(numbers.runs(&[70, 71, 72]), [(0, 3)]);
        assert_eq!(numbers.runs(&[70, 71, 90, 91]), [(0, 2), (3, 2)]);
        assert_eq!(numbers.runs(&[70, 71, 90, 91, 92]), [(0, 2), (3, 3)]);
        assert_eq!(numbers.runs(&[]), []);
    }

    #[test]
    fn what_is_used_stays_known_and_the_rest_is_bounded() {
        let mut numbers = BlockNumbers::with_generations_of(4);
        assert_eq!(numbers.runs(&[7]), [(0, 1)]);
        for key in 100..140 {
            numbers.runs(&[key]);
            assert_eq!(numbers.runs(&[7]), [(0, 1)], "after {key}");
            assert!(numbers.young.len() <= 4 && numbers.old.len() <= 4);
        }
        let again = numbers.runs(&[100]);
        assert_eq!(again, [(41, 1)], "a forgotten block is a new one");
    }
}
