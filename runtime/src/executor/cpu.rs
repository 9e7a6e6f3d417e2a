//! Real models on the CPU.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use weir_kernels::Pool;
use weir_models::{BLOCK_LEN, KvStore, Model, ModelError, ModelSource, Row};

use super::{
    sequence::{Sequence, Sequences},
    wire::{Batch, BatchRow, Load, RowResult},
};

/// A loaded model, its KV cache, and the sequences that use it.
pub(crate) struct CpuModel {
    model: Model,
    kv: Option<KvStore>,
    blocks: u32,
    tokens_max: u32,
    vocab_size: usize,
    dim: usize,
    sequences: Sequences,
    logits: Vec<f32>,
}

impl CpuModel {
    pub(crate) fn load(path: &Path, load: &Load, pool: &Pool) -> Result<Self, ModelError> {
        let source = ModelSource::open(path)?;
        let info = source.info().clone();
        // An encoder's input cannot be split, so its longest input must fit one step.
        let tokens_max = match info.kind {
            weir_models::ModelKind::Generate => load.step_tokens_max,
            weir_models::ModelKind::Embed => load.step_tokens_max.max(info.max_input_len),
        };
        let model = source.load(pool, tokens_max as usize)?;
        let (kv, blocks) = match info.kind {
            weir_models::ModelKind::Generate => {
                let wanted = load.kv_bytes / KvStore::bytes_per_block(&info).max(1);
                let blocks = wanted.clamp(1, u64::from(u32::MAX) / BLOCK_LEN as u64) as u32;
                (Some(KvStore::new(&info, blocks)?), blocks)
            }
            weir_models::ModelKind::Embed => (None, 0),
        };
        Ok(CpuModel {
            model,
            kv,
            blocks,
            tokens_max,
            vocab_size: info.vocab_size as usize,
            dim: info.embedding_dim.unwrap_or(0) as usize,
            sequences: Sequences::default(),
            logits: Vec::new(),
        })
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.blocks
    }

    pub(crate) fn tokens_max(&self) -> u32 {
        self.tokens_max
    }

    /// Runs one step. A failure of the whole forward pass fails every row of it.
    pub(crate) fn run(&mut self, batch: Batch, pool: &Pool) -> Vec<RowResult> {
        self.sequences.open(batch.open);
        let rows = match &mut self.model {
            Model::Generate(_) => self.generate(&batch.rows, pool),
            Model::Embed(_) => self.embed(&batch.rows),
        };
        self.sequences.close(&batch.close);
        rows
    }

    fn generate(&mut self, rows: &[BatchRow], pool: &Pool) -> Vec<RowResult> {
        let (Model::Generate(model), Some(kv)) = (&mut self.model, &self.kv) else {
            return fail_all(rows, "not a generation model");
        };
        let mut results: Vec<RowResult> = Vec::with_capacity(rows.len());
        let mut forward = Vec::with_capacity(rows.len());
        // Index in `results` and name of each row that draws, in the order of its logits.
        let mut drawing = Vec::new();
        for row in rows {
            let BatchRow::Generate { sequence, from, len, samples, blocks } = row else {
                results.push(RowResult::Failed("not a generation row".into()));
                continue;
            };
            let enough = blocks.len() as u64 * BLOCK_LEN as u64 >= u64::from(*from) + u64::from(*len);
            let known = blocks.iter().all(|&b| b < self.blocks);
            match self.sequences.span(*sequence, *from, *len) {
                Ok(ids) if enough && known => {
                    if *samples {
                        drawing.push((results.len(), *sequence));
                    }
                    forward.push(Row { ids, position: *from, blocks, logits: *samples });
                    results.push(RowResult::Computed);
                }
                Ok(_) => results.push(RowResult::Failed("the block table does not cover the row".into())),
                Err(message) => results.push(RowResult::Failed(message)),
            }
        }
        self.logits.clear();
        if !forward.is_empty()
            && let Err(error) = model.forward(&forward, kv, &mut self.logits)
        {
            return fail_all(rows, &error.to_string());
        }
        drop(forward);
        let draws: Vec<Mutex<Draw>> = drawing
            .into_iter()
            .map(|(at, name)| {
                let sequence = self.sequences.take(name);
                Mutex::new(Draw { at, name, sequence, result: RowResult::Computed })
            })
            .collect();
        let (logits, vocab) = (&self.logits, self.vocab_size);
        pool.run(draws.len(), |i| {
            if let Ok(mut draw) = draws[i].lock()
                && let Some(sequence) = draw.sequence.as_mut()
            {
                let result = sequence.draw(&logits[i * vocab..(i + 1) * vocab]);
                draw.result = result;
            }
        });
        for draw in draws {
            let draw = draw.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let Some(sequence) = draw.sequence {
                self.sequences.put(draw.name, sequence);
            }
            results[draw.at] = draw.result;
        }
        results
    }

    fn embed(&mut self, rows: &[BatchRow]) -> Vec<RowResult> {
        let Model::Embed(model) = &mut self.model else { return fail_all(rows, "not an embedding model") };
        let inputs: Vec<&[u32]> = rows
            .iter()
            .filter_map(|row| match row {
                BatchRow::Embed { tokens } => Some(tokens.as_slice()),
                BatchRow::Generate { .. } => None,
            })
            .collect();
        if inputs.len() != rows.len() {
            return fail_all(rows, "not an embedding row");
        }
        self.logits.clear();
        if let Err(error) = model.forward(&inputs, &mut self.logits) {
            return fail_all(rows, &error.to_string());
        }
        self.logits
            .chunks_exact(self.dim)
            .map(|vector| match vector.iter().all(|x| x.is_finite()) {
                true => RowResult::Vector(vector.to_vec()),
                false => RowResult::Failed("the vector is not finite".into()),
            })
            .collect()
    }
}

/// One id to be drawn, on whichever thread is free.
struct Draw {
    /// Its row.
    at: usize,
    name: u64,
    sequence: Option<Sequence>,
    result: RowResult,
}

fn fail_all(rows: &[BatchRow], message: &str) -> Vec<RowResult> {
    rows.iter().map(|_| RowResult::Failed(message.to_owned())).collect()
}
