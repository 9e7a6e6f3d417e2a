//! From drawn ids to text: whole characters only, stop strings cut off, log-probabilities in step with their text.
//!
//! Bytes of tokens are joined and released as they become UTF-8; what might be the beginning of a stop string is held
//! back until it is clear that it is not. A choice's text is therefore exactly the decoded bytes up to the first stop
//! string, however the ids were split over steps.

use crate::stream::TokenLogprob;

/// Assembles the text of one choice.
#[derive(Debug, Default)]
pub(crate) struct TextAssembler {
    stops: Vec<String>,
    /// Bytes that are not yet a whole character; at most 3.
    partial: Vec<u8>,
    /// Whole characters that might begin a stop string.
    held: String,
    /// Characters released so far.
    released_chars: usize,
    /// Characters assembled so far, held ones included.
    assembled_chars: usize,
    /// Log-probabilities whose text is not released yet.
    logprobs: std::collections::VecDeque<TokenLogprob>,
}

/// What one token released.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Released {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
    /// A stop string was completed; nothing comes after this.
    pub(crate) stopped: bool,
}

impl TextAssembler {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        TextAssembler { stops, ..TextAssembler::default() }
    }

    /// Adds a token's bytes. Stop strings count only if `stops_count` (they do not before `min_tokens`).
    pub(crate) fn push(&mut self, bytes: &[u8], logprob: Option<TokenLogprob>, stops_count: bool) -> Released {
        if let Some(mut logprob) = logprob {
            logprob.text_offset = self.assembled_chars;
            self.logprobs.push_back(logprob);
        }
        self.partial.extend_from_slice(bytes);
        let before = self.held.len();
        decode_whole(&mut self.partial, &mut self.held);
        self.assembled_chars += self.held[before..].chars().count();
        if stops_count && let Some(at) = self.find_stop(before) {
            self.held.truncate(at);
            let mut released = self.release(self.held.len(), true);
            released.stopped = true;
            return released;
        }
        let keep = if self.stops.is_empty() { 0 } else { self.possible_stop_len() };
        self.release(self.held.len() - keep, false)
    }

    /// Releases everything; incomplete characters become U+FFFD.
    pub(crate) fn finish(&mut self) -> Released {
        if !self.partial.is_empty() {
            let partial = std::mem::take(&mut self.partial);
            self.held.push_str(&String::from_utf8_lossy(&partial));
        }
        self.release(self.held.len(), true)
    }

    /// The earliest completed stop string; text before `scanned` was searched before, up to a stop's length.
    fn find_stop(&self, scanned: usize) -> Option<usize> {
        let longest = self.stops.iter().map(String::len).max()?;
        let mut from = scanned.saturating_sub(longest);
        while !self.held.is_char_boundary(from) {
            from -= 1;
        }
        self.stops.iter().filter_map(|stop| self.held[from..].find(stop.as_str())).min().map(|at| from + at)
    }

    /// Length of the longest suffix of the held text that a stop string begins with.
    fn possible_stop_len(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = self.stops.iter().map(|s| s.len() - 1).max().unwrap_or(0).min(held.len());
        let begins = |len: usize| self.stops.iter().any(|s| s.as_bytes().starts_with(&held[held.len() - len..]));
        (1..=longest).rev().find(|&len| self.held.is_char_boundary(held.len() - len) && begins(len)).unwrap_or(0)
    }

    fn release(&mut self, bytes: usize, last: bool) -> Released {
        let rest = self.held.split_off(bytes);
        let text = std::mem::replace(&mut self.held, rest);
        self.released_chars += text.chars().count();
        let mut logprobs = Vec::new();
        // A token's entry goes out with the first character after its beginning, or at the end with whatever begins
        // inside the released text; a token cut off by a stop string is not reported.
        while let Some(next) = self.logprobs.front() {
            let begins_inside = next.text_offset < self.released_chars;
            let empty_at_end = last && next.text_offset == self.released_chars && next.chosen.bytes.is_empty();
            if !begins_inside && !empty_at_end {
                break;
            }
            logprobs.extend(self.logprobs.pop_front());
        }
        Released { text, logprobs, stopped: false }
    }
}

/// Moves whole characters from `bytes` to `text`; bytes that can never become one turn into U+FFFD.
fn decode_whole(bytes: &mut Vec<u8>, text: &mut String) {
    let mut start = 0;
    loop {
        match std::str::from_utf8(&bytes[start..]) {
            Ok(rest) => {
                text.push_str(rest);
                start = bytes.len();
                break;
            }
            Err(error) => {
                let valid = start + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[start..valid]));
                start = valid;
                match error.error_len() {
                    Some(len) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        start += len;
                    }
                    None => break,
                }
            }
        }
    }
    bytes.drain(..start);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::TopLogprob;

    fn run(stops: &[&str], tokens: &[&[u8]]) -> (String, bool) {
        let mut text = String::new();
        let mut assembler = TextAssembler::new(stops.iter().map(|s| s.to_string()).collect());
        for token in tokens {
            let released = assembler.push(token, None, true);
            text.push_str(&released.text);
            if released.stopped {
                return (text, true);
            }
        }
        text.push_str(&assembler.finish().text);
        (text, false)
    }

    #[test]
    fn characters_split_over_tokens_come_whole() {
        let snowman = "☃".as_bytes();
        let mut assembler = TextAssembler::new(Vec::new());
        assert_eq!(assembler.push(&snowman[..1], None, true).text, "");
        assert_eq!(assembler.push(&snowman[1..2], None, true).text, "");
        assert_eq!(assembler.push(&snowman[2..], None, true).text, "☃");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(run(&[], &[b"a\xff", b"b\xe2\x98"]), ("a\u{fffd}b\u{fffd}".into(), false));
    }

    #[test]
    fn stop_strings_are_cut_however_tokens_fall() {
        let text = b"one STOP two";
        for split in 0..text.len() {
            let got = run(&["STOP"], &[&text[..split], &text[split..]]);
            assert_eq!(got, ("one ".into(), true), "split at {split}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(run(&["STOP"], &bytes), ("one ".into(), true));
    }

    #[test]
    fn earliest_of_several_stops_wins() {
        assert_eq!(run(&["ccc", "b"], &[b"aabccc"]), ("aa".into(), true));
    }

    #[test]
    fn text_that_only_resembles_a_stop_is_released() {
        assert_eq!(run(&["STOP"], &[b"ST", b"OR", b"M ST"]), ("STORM ST".into(), false));
    }

    #[test]
    fn stops_do_not_count_before_min_tokens() {
        let mut assembler = TextAssembler::new(vec!["x".into()]);
        assert_eq!(assembler.push(b"axb", None, false).text, "axb");
        assert!(assembler.push(b"x", None, true).stopped);
    }

    #[test]
    fn logprobs_stay_with_their_text() {
        let entry = |bytes: &[u8]| {
            let chosen = TopLogprob { token: String::new(), bytes: bytes.to_vec(), logprob: -1.0 };
            Some(TokenLogprob { chosen, top: Vec::new(), text_offset: 0 })
        };
        let mut assembler = TextAssembler::new(vec!["END".into()]);
        let offsets = |released: Released| released.logprobs.iter().map(|l| l.text_offset).collect::<Vec<_>>();
        assert_eq!(offsets(assembler.push(b"ab", entry(b"ab"), true)), [0]);
        assert_eq!(offsets(assembler.push(b"cE", entry(b"cE"), true)), [2]);
        assert!(offsets(assembler.push(b"N", entry(b"N"), true)).is_empty());
        let last = assembler.push(b"D!", entry(b"D!"), true);
        assert!(last.stopped);
        assert_eq!((last.text.as_str(), last.logprobs.len()), ("", 0));
    }
}
