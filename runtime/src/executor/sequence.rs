//! The sequences an executor keeps: their ids and their sampling state.

use std::collections::HashMap;

use weir_kernels::sample::Draw;

use super::wire::{OpenSequence, RowResult};
use crate::sampler::Sampler;

/// What a row fails with that has nothing to draw from.
const NOT_FINITE: &str = "the model's logits are not finite";

/// One open sequence.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Every id known so far: the prompt's, then the drawn ones.
    pub(crate) tokens: Vec<u32>,
    pub(crate) sampler: Sampler,
}

/// The open sequences of one model.
#[derive(Debug, Default)]
pub(crate) struct Sequences(HashMap<u64, Sequence>);

impl Sequences {
    pub(crate) fn open(&mut self, opened: Vec<OpenSequence>) {
        for open in opened {
            let prompt_len = open.tokens.len().saturating_sub(open.drawn as usize);
            let known = open.tokens.split_at(prompt_len);
            let sampler = Sampler::new(open.sampling, open.logprobs, open.min_tokens, open.banned, known);
            self.0.insert(open.sequence, Sequence { tokens: open.tokens, sampler });
        }
    }

    pub(crate) fn close(&mut self, closed: &[u64]) {
        for sequence in closed {
            self.0.remove(sequence);
        }
    }

    /// The ids of a row, or why the row makes no sense.
    pub(crate) fn span(&self, sequence: u64, from: u32, len: u32) -> Result<&[u32], String> {
        let known = self.0.get(&sequence).ok_or_else(|| format!("sequence {sequence} is not open"))?;
        let from = from as usize;
        known
            .tokens
            .get(from..from.saturating_add(len as usize))
            .filter(|ids| !ids.is_empty())
            .ok_or_else(|| format!("row {from}+{len} of a sequence of {} tokens", known.tokens.len()))
    }

    /// An open sequence.
    pub(crate) fn get(&self, sequence: u64) -> Option<&Sequence> {
        self.0.get(&sequence)
    }

    /// Takes a sequence out, for a draw on another thread; give it back with [`Sequences::put`].
    pub(crate) fn take(&mut self, sequence: u64) -> Option<Sequence> {
        self.0.remove(&sequence)
    }

    pub(crate) fn put(&mut self, name: u64, sequence: Sequence) {
        self.0.insert(name, sequence);
    }
}

impl Sequence {
    /// How the next id is drawn, if that takes nothing but the model's own logits.
    pub(crate) fn plain_draw(&self) -> Option<Draw> {
        self.sampler.plain_draw()
    }

    /// Appends the id that was drawn as [`Sequence::plain_draw`] says; none was if the logits are not finite.
    pub(crate) fn accept(&mut self, id: Option<u32>) -> RowResult {
        match id {
            Some(id) => {
                self.tokens.push(id);
                RowResult::Sampled(self.sampler.accept(id))
            }
            None => RowResult::Failed(NOT_FINITE.into()),
        }
    }

    /// Draws the next id and appends it.
    pub(crate) fn draw(&mut self, logits: &[f32]) -> RowResult {
        match self.sampler.draw(logits) {
            Ok(sampled) => {
                self.tokens.push(sampled.id);
                RowResult::Sampled(sampled)
            }
            Err(_) => RowResult::Failed(NOT_FINITE.into()),
        }
    }
}
