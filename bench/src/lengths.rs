//! How long prompts and answers are: one length, or drawn evenly from a range.

use std::fmt;
use std::str::FromStr;

use crate::random::SplitMix64;

/// Tokens of a prompt or an answer: from `min` to `max`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// The least.
    pub min: u32,
    /// The most.
    pub max: u32,
}

impl Lengths {
    /// Always the same length.
    pub fn fixed(tokens: u32) -> Lengths {
        Lengths { min: tokens, max: tokens }
    }

    pub(crate) fn draw(self, random: &mut SplitMix64) -> u32 {
        // At most 2^32 - 1 above the least, so that the sum is at most `max`.
        self.min + random.below(u64::from(self.max - self.min) + 1) as u32
    }
}

impl FromStr for Lengths {
    type Err = String;

    /// `128`, or `64:256`.
    fn from_str(text: &str) -> Result<Lengths, String> {
        let number = |part: &str| part.parse::<u32>().map_err(|_| format!("`{part}` is not a number of tokens"));
        let (min, max) = match text.split_once(':') {
            Some((min, max)) => (number(min)?, number(max)?),
            None => (number(text)?, number(text)?),
        };
        if min > max { Err(format!("`{text}`: the least is above the most")) } else { Ok(Lengths { min, max }) }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{}:{}", self.min, self.max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_parsed_and_shown() {
        for text in ["128", "64:256", "0", "7:8"] {
            assert_eq!(text.parse::<Lengths>().unwrap().to_string(), text);
        }
        for text in ["", "x", "8:7", "1:", ":1", "-1", "1:2:3", "4294967296"] {
            assert!(text.parse::<Lengths>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn drawn_lengths_reach_both_ends_and_no_further() {
        let mut random = SplitMix64::new(5);
        let drawn: Vec<u32> = (0..1000).map(|_| Lengths { min: 3, max: 6 }.draw(&mut random)).collect();
        assert!((3..=6).all(|length| drawn.contains(&length)) && drawn.iter().all(|length| (3..=6).contains(length)));
        let widest = Lengths { min: 0, max: u32::MAX };
        assert!((0..1000).any(|_| widest.draw(&mut random) > u32::MAX / 2));
    }
}
