//! SentencePiece BPE as GGUF files carry it: a list of pieces with scores, no merge table.
//!
//! # The algorithm
//!
//! The text (spaces already written as `▁`) starts as one symbol per character. Of all neighbours whose joined text is a
//! piece, the pair with the highest score joins; among equal scores the leftmost. When no pair is left, each symbol is its
//! piece, or, when it is none, its UTF-8 bytes as `<0xNN>` pieces. Joining `▁`, `t`, `h`, `e` with scores `th: -5`,
//! `▁the: -9`, `the: -7` goes `th`, `the`, `▁the`.
//!
//! A heap holds the candidate pairs; a pair whose symbols changed since it was pushed no longer has the length it was
//! pushed with and is dropped when it comes up. Every join pushes at most two pairs: O(n log n) for n characters.
//!
//! A merge table for `tokenizers`' own BPE could be derived from the scores, but ranks pairs, not pieces, and so breaks ties
//! between equal pieces differently; runs of spaces show it.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// Pieces with scores, and the bytes to fall back to.
#[derive(Clone, Debug)]
pub(crate) struct Spm {
    pub(crate) pieces: Vec<String>,
    pub(crate) scores: Vec<f32>,
    pub(crate) ids: HashMap<String, u32>,
    /// Ids of `<0x00>`..`<0xFF>`.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
}

/// Part of the text; `len == 0` once it was joined to its left neighbour.
struct Symbol {
    start: usize,
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

#[derive(PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Eq for Pair {}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Spm {
    /// `scores` has one entry for each of `pieces`.
    pub(crate) fn new(pieces: Vec<String>, scores: Vec<f32>, unknown: Option<u32>) -> Self {
        let ids: HashMap<_, _> = pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), id as u32)).collect();
        let bytes = (0..=255u8).map(|byte| ids.get(&format!("<0x{byte:02X}>")).copied()).collect();
        Self { pieces, scores, ids, bytes, unknown }
    }

    /// The ids of `text` with the byte range of each.
    pub(crate) fn encode(&self, text: &str) -> Vec<(u32, (usize, usize))> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                before: index.checked_sub(1),
                after: Some(index + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.after = None;
        }
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.push_pair(text, &symbols, Some(right - 1), Some(right), &mut queue);
        }
        while let Some(pair) = queue.pop() {
            let right = &symbols[pair.right];
            let (right_len, after) = (right.len, right.after);
            let left = &mut symbols[pair.left];
            if left.len == 0 || right_len == 0 || left.len + right_len != pair.len {
                continue;
            }
            left.len = pair.len;
            left.after = after;
            let before = left.before;
            symbols[pair.right].len = 0;
            if let Some(after) = after {
                symbols[after].before = Some(pair.left);
            }
            self.push_pair(text, &symbols, before, Some(pair.left), &mut queue);
            self.push_pair(text, &symbols, Some(pair.left), after, &mut queue);
        }

        let mut out = Vec::new();
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let range = (symbol.start, symbol.start + symbol.len);
            let piece = &text[range.0..range.1];
            match self.ids.get(piece) {
                Some(&id) => out.push((id, range)),
                None => out.extend(
                    piece
                        .bytes()
                        .filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown))
                        .map(|id| (id, range)),
                ),
            }
        }
        out
    }

    fn push_pair(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
        queue: &mut BinaryHeap<Pair>,
    ) {
        let (Some(left), Some(right)) = (left, right) else {
            return;
        };
        let start = symbols[left].start;
        let len = symbols[left].len + symbols[right].len;
        if let Some(&id) = self.ids.get(&text[start..start + len]) {
            queue.push(Pair { score: self.scores[id as usize], left, right, len });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spm(pieces: &[(&str, f32)]) -> Spm {
        let (names, scores) = pieces.iter().map(|(piece, score)| ((*piece).to_owned(), *score)).unzip();
        Spm::new(names, scores, Some(0))
    }

    fn ids(spm: &Spm, text: &str) -> Vec<u32> {
        spm.encode(text).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn best_score_joins_first_and_ties_go_left() {
        let spm = spm(&[("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -3.0), ("ba", -2.0), ("aa", -4.0)]);
        assert_eq!(ids(&spm, "aba"), [1, 4], "ba before ab");
        assert_eq!(ids(&spm, "aaa"), [5, 1], "leftmost of equals");
        assert_eq!(ids(&spm, "a?"), [1, 0], "no byte pieces: unknown");
    }

    #[test]
    fn characters_without_a_piece_become_bytes() {
        let spm = spm(&[("<unk>", 0.0), ("<0xC3>", 0.0), ("<0xA4>", 0.0), ("x", 0.0)]);
        assert_eq!(ids(&spm, "xä"), [3, 1, 2]);
        assert!(spm.encode("").is_empty());
    }
}
