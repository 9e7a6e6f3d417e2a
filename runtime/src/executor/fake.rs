//! A model without weights: every step takes `step + token * new tokens`, logits are a hash of the text so far. It runs
//! the real stack (API, scheduler, sampler, detokeniser), so everything but the mathematics can be measured on it.
//!
//! Vocabulary: the 256 bytes, then the ChatML markers. Greedy and seeded draws are functions of (seed, text), so results
//! are comparable between runs and between loads.

use std::{
    thread,
    time::{Duration, Instant},
};

use weir_scheduler::BLOCK_LEN;

use super::{
    pulse::Pulse,
    sequence::Sequences,
    wire::{Batch, BatchRow, RowResult},
};
use crate::{
    codec::BYTES_VOCABULARY,
    config::{FakeCost, FakeFaults},
    sampler::mix,
};

/// Dimensions of a fake embedding.
pub(crate) const FAKE_EMBEDDING_DIM: u32 = 384;
/// Context of a fake model.
pub(crate) const FAKE_CONTEXT_LEN: u32 = 32_768;
/// Longest sleep between two signs of progress.
const SLICE: Duration = Duration::from_millis(100);
/// Ids before the drawn one that its logits depend on.
const MEMORY: usize = 8;

/// A loaded fake model.
#[derive(Debug)]
pub(crate) struct FakeModel {
    cost: FakeCost,
    seed: u64,
    tokens_max: u32,
    sequences: Sequences,
}

impl FakeModel {
    pub(crate) fn new(cost: FakeCost, seed: u64, tokens_max: u32) -> Self {
        FakeModel { cost, seed, tokens_max, sequences: Sequences::default() }
    }

    pub(crate) fn blocks(&self) -> u32 {
        (self.cost.kv / BLOCK_LEN).max(1)
    }

    pub(crate) fn tokens_max(&self) -> u32 {
        self.tokens_max
    }

    /// Runs a step that takes its nominal time from `began`, and returns that time; nothing if it was told to crash.
    pub(crate) fn run(&mut self, batch: Batch, began: Instant, pulse: &Pulse) -> Option<(Vec<RowResult>, Duration)> {
        self.sequences.open(batch.open);
        let mut tokens = 0u32;
        let FakeFaults { crash_on, hang_on, nan_on } = self.cost.faults;
        let (mut crashes, mut hangs) = (false, false);
        let mut set_off = |ids: &[u32]| {
            crashes |= crash_on.is_some_and(|id| ids.contains(&id));
            hangs |= hang_on.is_some_and(|id| ids.contains(&id));
        };
        let mut rows = Vec::with_capacity(batch.rows.len());
        for row in &batch.rows {
            rows.push(match row {
                BatchRow::Generate { sequence, from, len, samples, .. } => {
                    tokens += len;
                    if let Ok(ids) = self.sequences.span(*sequence, *from, *len) {
                        set_off(ids);
                    }
                    self.generate(*sequence, *from, *len, *samples)
                }
                BatchRow::Embed { tokens: ids } => {
                    tokens += ids.len() as u32;
                    set_off(ids);
                    match nan_on.is_some_and(|id| ids.contains(&id)) {
                        true => RowResult::Failed("the vector is not finite".into()),
                        false => RowResult::Vector(vector(self.seed, ids)),
                    }
                }
            });
        }
        if crashes {
            return None;
        }
        while hangs && !pulse.is_unheard() {
            thread::sleep(SLICE);
        }
        self.sequences.close(&batch.close);
        let cost = self.cost.step + self.cost.token * tokens;
        loop {
            let left = cost.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Some((rows, cost));
            }
            thread::sleep(left.min(SLICE));
            pulse.beat();
        }
    }

    fn generate(&mut self, sequence: u64, from: u32, len: u32, samples: bool) -> RowResult {
        match self.sequences.span(sequence, from, len) {
            Ok(_) if !samples => return RowResult::Computed,
            Ok(_) => {}
            Err(message) => return RowResult::Failed(message),
        }
        let Some(mut open) = self.sequences.take(sequence) else { return RowResult::Computed };
        let known = &open.tokens[..(from + len) as usize];
        let mut logits = logits(self.seed, known);
        if self.cost.faults.nan_on.is_some_and(|id| known.contains(&id)) {
            logits.fill(f32::NAN);
        }
        let result = open.draw(&logits);
        self.sequences.put(sequence, open);
        result
    }
}

/// Letters and spaces are likely, other bytes and markers are not, the end of the turn comes now and then.
fn logits(seed: u64, tokens: &[u32]) -> Vec<f32> {
    let recent = &tokens[tokens.len().saturating_sub(MEMORY)..];
    let state = recent.iter().fold(mix(seed ^ tokens.len() as u64), |state, &id| mix(state ^ u64::from(id)));
    let noise = |id: u32| (mix(state ^ (u64::from(id) << 32)) >> 40) as f32 / (1u32 << 24) as f32;
    let favour = |id: u32| match u8::try_from(id).ok() {
        Some(b'a'..=b'z' | b' ') => 4.0,
        Some(0x20..=0x7e) => 1.0,
        None if id == BYTES_VOCABULARY.end => 3.2,
        _ => -6.0,
    };
    (0..BYTES_VOCABULARY.size).map(|id| favour(id) + 2.0 * noise(id)).collect()
}

/// A unit vector that depends on the seed and every id.
fn vector(seed: u64, ids: &[u32]) -> Vec<f32> {
    let state = ids.iter().fold(mix(seed), |state, &id| mix(state ^ u64::from(id)));
    let raw: Vec<f32> = (0..u64::from(FAKE_EMBEDDING_DIM))
        .map(|i| (mix(state ^ (i << 32)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
        .collect();
    let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    raw.iter().map(|x| x / norm).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_depend_on_the_text_and_the_seed_only() {
        assert_eq!(logits(1, &[1, 2, 3]), logits(1, &[1, 2, 3]));
        assert_ne!(logits(1, &[1, 2, 3]), logits(1, &[1, 2, 4]));
        assert_ne!(logits(1, &[1, 2, 3]), logits(2, &[1, 2, 3]));
    }

    #[test]
    fn vectors_are_unit_and_differ() {
        let (a, b) = (vector(1, &[1]), vector(1, &[2]));
        assert!((a.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        assert_ne!(a, b);
    }
}
