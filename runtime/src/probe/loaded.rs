//! A model in memory, with its store and block tables for the sequences of a probe.
//!
//! This is the one place here that knows how a model is loaded and run.

use std::path::Path;

use weir_kernels::launch::sample::SampleRow;
use weir_kernels::sample::Draw;
use weir_kernels::{Device, ops};
use weir_models::{BLOCK_LEN, KvStore, Model, ModelInfo, ModelKind, ModelSource, Row};

use super::{Place, ProbeError};

/// A loaded model.
pub(super) struct Loaded {
    pub(super) info: ModelInfo,
    device: Device,
    model: Model,
    kv: Option<KvStore>,
    /// What the last step left: logits, or vectors.
    pub(super) output: Vec<f32>,
    /// The likeliest ids that the last [`draw`](Self::draw) found.
    pub(super) drawn: Vec<u32>,
}

/// A sequence's ids and where its keys and values are.
pub(super) struct Sequence {
    pub(super) ids: Vec<u32>,
    pub(super) blocks: Vec<u32>,
    /// Positions whose keys and values are in the store.
    pub(super) computed: usize,
}

impl Loaded {
    /// Loads the model at `path` for steps of `step_tokens` tokens, with `blocks` blocks for keys and values.
    pub(super) fn open(path: &Path, place: Place<'_>, step_tokens: u32, blocks: u32) -> Result<Self, ProbeError> {
        let source = ModelSource::open(path)?;
        let info = source.info().clone();
        let (step_tokens, kv) = match info.kind {
            ModelKind::Generate => (step_tokens, Some(source.kv_store(blocks, place.device)?)),
            // An encoder's input cannot be split.
            ModelKind::Embed => (step_tokens.max(info.max_input_len), None),
        };
        let model = source.load(place.device, step_tokens as usize)?;
        place.device.synchronize()?;
        Ok(Loaded { info, device: place.device.clone(), model, kv, output: Vec::new(), drawn: Vec::new() })
    }

    pub(super) fn vocab(&self) -> usize {
        self.info.vocab_size as usize
    }

    /// Runs one step of a decoder, and leaves the logits of the rows that want them.
    pub(super) fn step(&mut self, rows: &[Row<'_>]) -> Result<(), ProbeError> {
        let (Model::Generate(model), Some(kv)) = (&mut self.model, &self.kv) else {
            return Err(ProbeError::Usage("this model embeds; it does not continue texts".into()));
        };
        Ok(model.forward(rows, kv, &mut self.output)?)
    }

    /// Runs one step of an encoder.
    pub(super) fn embed(&mut self, inputs: &[&[u32]]) -> Result<(), ProbeError> {
        let Model::Embed(model) = &mut self.model else {
            return Err(ProbeError::Usage("this model continues texts; it does not embed".into()));
        };
        Ok(model.forward(inputs, &mut self.output)?)
    }

    /// Runs one step of a decoder, and leaves the likeliest id of each row that wants logits; these stay on the device.
    pub(super) fn draw(&mut self, rows: &[Row<'_>]) -> Result<(), ProbeError> {
        let (Model::Generate(model), Some(kv)) = (&mut self.model, &self.kv) else {
            return Err(ProbeError::Usage("this model embeds; it does not continue texts".into()));
        };
        self.drawn.clear();
        let (device, drawn) = (&self.device, &mut self.drawn);
        let best = Draw { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, drawn: 0 };
        let mut lost = false;
        model.forward_with(rows, kv, |_, scores| {
            // scores: [rows of this part, vocab] f32
            let ids = ops::sample(scores, &vec![SampleRow::Draw(best); scores.dims()[0]], device)?;
            lost |= ids.contains(&None);
            drawn.extend(ids.into_iter().flatten());
            Ok(())
        })?;
        if lost {
            return Err(ProbeError::Failed("a row's logits are not finite".into()));
        }
        Ok(())
    }

    /// Computes each sequence's ids but the last `keep`, in steps of up to `step_tokens` tokens; `each` runs a step and is told
    /// its tokens.
    pub(super) fn fill(
        &mut self,
        sequences: &mut [Sequence],
        keep: usize,
        step_tokens: usize,
        mut each: impl FnMut(&mut Self, &[Row<'_>], usize) -> Result<(), ProbeError>,
    ) -> Result<(), ProbeError> {
        loop {
            let (mut rows, mut advance, mut left) = (Vec::new(), Vec::new(), step_tokens);
            for sequence in sequences.iter() {
                let end = sequence.ids.len().saturating_sub(keep);
                let take = end.saturating_sub(sequence.computed).min(left);
                advance.push(take);
                left -= take;
                if take > 0 {
                    rows.push(sequence.row(take, false));
                }
            }
            if rows.is_empty() {
                return Ok(());
            }
            each(self, &rows, step_tokens - left)?;
            for (sequence, take) in sequences.iter_mut().zip(advance) {
                sequence.computed += take;
            }
        }
    }
}

impl Sequence {
    /// The next `len` ids that are not computed yet, as a row.
    pub(super) fn row(&self, len: usize, logits: bool) -> Row<'_> {
        Row {
            ids: &self.ids[self.computed..self.computed + len],
            position: self.computed as u32,
            blocks: &self.blocks,
            logits,
        }
    }
}

/// Sequences with blocks of their own for `room` more ids each, and how many blocks that takes.
pub(super) fn lay_out(lists: Vec<Vec<u32>>, room: usize) -> Result<(Vec<Sequence>, u32), ProbeError> {
    let mut next = 0u32;
    let mut sequences = Vec::with_capacity(lists.len());
    for ids in lists {
        let blocks = (ids.len() + room).div_ceil(BLOCK_LEN) as u32;
        let end = next.checked_add(blocks).ok_or_else(|| ProbeError::Usage("that is too much context".into()))?;
        sequences.push(Sequence { ids, blocks: (next..end).collect(), computed: 0 });
        next = end;
    }
    Ok((sequences, next))
}
