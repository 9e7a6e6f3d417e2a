//! Real models, on the CPU or a GPU.

use std::{
    ops::Range,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use weir_kernels::{Device, KernelError, launch::sample::SampleRow, ops};
use weir_models::{BLOCK_LEN, KvStore, Model, ModelError, ModelKind, ModelSource, Row};

use super::{
    sequence::{Sequence, Sequences},
    wire::{Batch, BatchRow, Load, LoadModel, RowResult},
};

/// A loaded model, its KV cache, and the sequences that use it.
pub(crate) struct DeviceModel {
    model: Model,
    device: Device,
    kv: Option<KvStore>,
    blocks: u32,
    tokens_max: u32,
    dim: usize,
    sequences: Sequences,
    logits: Vec<f32>,
}

impl DeviceModel {
    /// Loads the model at `path`; `kv_bytes` is what its KV cache may take.
    pub(crate) fn load(path: &Path, load: &Load, kv_bytes: u64, device: &Device) -> Result<Self, ModelError> {
        let source = ModelSource::open(path)?;
        let info = source.info().clone();
        let tokens_max = tokens_max(&source, load);
        let model = source.load(device, tokens_max as usize)?;
        let (kv, blocks) = match info.kind {
            ModelKind::Generate => {
                let wanted = kv_bytes / source.kv_block_bytes(device).max(1);
                // Slots are counted in u32: a block's number times its positions must be one.
                let blocks = wanted.clamp(1, u64::from(u32::MAX) / BLOCK_LEN as u64) as u32;
                (Some(source.kv_store(blocks, device)?), blocks)
            }
            ModelKind::Embed => (None, 0),
        };
        // Whatever was copied to a GPU has arrived before the model counts as loaded.
        device.synchronize()?;
        Ok(DeviceModel {
            model,
            device: device.clone(),
            kv,
            blocks,
            tokens_max,
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

    /// Runs one step, and says what the device took for it, in nanoseconds. A failure of the whole forward pass fails every row.
    ///
    /// # Errors
    /// If the device failed: nothing can be said of the step then, and nothing expected of the next.
    pub(crate) fn run(&mut self, batch: Batch) -> Result<(Vec<RowResult>, u64), ModelError> {
        let began = self.device.event()?;
        self.sequences.open(batch.open);
        let rows = match &mut self.model {
            Model::Generate(_) => self.generate(&batch.rows)?,
            Model::Embed(_) => self.embed(&batch.rows)?,
        };
        self.sequences.close(&batch.close);
        let ended = self.device.event()?;
        ended.wait()?;
        Ok((rows, began.nanos_until(&ended)?))
    }

    fn generate(&mut self, rows: &[BatchRow]) -> Result<Vec<RowResult>, ModelError> {
        let (Model::Generate(model), Some(kv)) = (&mut self.model, &self.kv) else {
            return Ok(fail_all(rows, "not a generation model"));
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
        let (device, sequences, logits) = (&self.device, &self.sequences, &mut self.logits);
        let mut drawn: Vec<Drawn> = Vec::with_capacity(drawing.len());
        let forwarded = model.forward_with(&forward, kv, |first, scores| {
            let part = drawing.iter().skip(first).take(scores.dims()[0]);
            // On the CPU the pool draws, each row on a thread of its own.
            let how = part.map(|(_, name)| match sequences.get(*name).and_then(Sequence::plain_draw) {
                Some(draw) if device.is_cuda() => SampleRow::Draw(draw),
                _ => SampleRow::Skip,
            });
            let how: Vec<SampleRow> = how.collect();
            let ids = if device.is_cuda() { ops::sample(scores, &how, device)? } else { vec![None; how.len()] };
            for (row, (how, id)) in how.iter().zip(ids).enumerate() {
                drawn.push(match how {
                    SampleRow::Draw(_) => Drawn::Id(id),
                    SampleRow::Skip => {
                        let start = logits.len();
                        ops::read_rows(&scores.narrow(0, row, 1)?, logits, device)?;
                        Drawn::Not(start..logits.len())
                    }
                });
            }
            Ok(())
        });
        if let Err(error) = forwarded {
            return self.failed(rows, error);
        }
        drop(forward);
        let draws: Vec<Mutex<Draw>> = drawing
            .into_iter()
            .zip(drawn)
            .map(|((at, name), drawn)| {
                let sequence = self.sequences.take(name);
                Mutex::new(Draw { at, name, sequence, drawn, result: RowResult::Computed })
            })
            .collect();
        let logits = &self.logits;
        self.device.pool().run(draws.len(), |i| {
            if let Ok(mut draw) = draws[i].lock() {
                let Draw { sequence, drawn, result, .. } = &mut *draw;
                if let Some(sequence) = sequence {
                    *result = match drawn {
                        Drawn::Id(id) => sequence.accept(*id),
                        Drawn::Not(range) => sequence.draw(&logits[range.clone()]),
                    };
                }
            }
        });
        for draw in draws {
            let draw = draw.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let Some(sequence) = draw.sequence {
                self.sequences.put(draw.name, sequence);
            }
            results[draw.at] = draw.result;
        }
        Ok(results)
    }

    /// What becomes of the rows of a step that could not be computed: they fail, unless it was the GPU that did.
    fn failed(&self, rows: &[BatchRow], error: ModelError) -> Result<Vec<RowResult>, ModelError> {
        if self.device.is_cuda() && error.is_device_fault() {
            return Err(error);
        }
        Ok(fail_all(rows, &error.to_string()))
    }

    fn embed(&mut self, rows: &[BatchRow]) -> Result<Vec<RowResult>, ModelError> {
        let Model::Embed(model) = &mut self.model else { return Ok(fail_all(rows, "not an embedding model")) };
        let inputs: Vec<&[u32]> = rows
            .iter()
            .filter_map(|row| match row {
                BatchRow::Embed { tokens } => Some(tokens.as_slice()),
                BatchRow::Generate { .. } => None,
            })
            .collect();
        if inputs.len() != rows.len() {
            return Ok(fail_all(rows, "not an embedding row"));
        }
        self.logits.clear();
        if let Err(error) = model.forward(&inputs, &mut self.logits) {
            return self.failed(rows, error);
        }
        let vectors = self.logits.chunks_exact(self.dim);
        let rows = vectors
            .map(|vector| match vector.iter().all(|x| x.is_finite()) {
                true => RowResult::Vector(vector.to_vec()),
                false => RowResult::Failed("the vector is not finite".into()),
            })
            .collect();
        Ok(rows)
    }
}

/// Tokens of a step of the model. An encoder's input cannot be split, so its longest input must fit one step.
fn tokens_max(source: &ModelSource, load: &Load) -> u32 {
    match source.info().kind {
        ModelKind::Generate => load.step_tokens_max,
        ModelKind::Embed => load.step_tokens_max.max(source.info().max_input_len),
    }
}

/// Bytes of a GPU that are nobody's: cuBLAS's workspace, modules, staging, candle's short-lived tensors.
const RESERVE_BYTES: u64 = 2 << 30;

/// Positions of KV cache that a model on a GPU must have room for: with less, its own context or a handful of users would not fit.
const KV_POSITIONS_MIN: u64 = 4096;
/// How long the executor before may take to go, and its memory to come back.
const MEMORY_WAIT_MAX: Duration = Duration::from_secs(30);
const MEMORY_LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Bytes of KV cache for each generation model among `models`: what the load says, or else, on a GPU, an even share of what
/// weights and workspaces leave. The GPU is asked for its free memory before anything is loaded; all else is our own count, since what a
/// driver calls free afterwards depends on pools and, where the GPU is a node of the host's memory, on the system.
///
/// `wait`: at an executor's start, the one before may not have gone from the GPU yet.
///
/// # Errors
/// If the models do not fit, or the device is lost.
pub(crate) fn kv_bytes(models: &[LoadModel], load: &Load, device: &Device, wait: bool) -> Result<u64, ModelError> {
    if !device.is_cuda() {
        return Ok(load.kv_bytes);
    }
    let (mut taken, mut least, mut sharers) = (RESERVE_BYTES, 0u64, 0);
    for model in models {
        let LoadModel::Path(path) = model else { continue };
        // One that cannot be opened takes nothing; loading it will say why.
        let Ok(source) = ModelSource::open(Path::new(path)) else { continue };
        taken = taken.saturating_add(source.device_bytes(u64::from(tokens_max(&source, load)), device));
        if source.info().kind == ModelKind::Generate {
            let positions = KV_POSITIONS_MIN.min(u64::from(source.info().context_len));
            least = least.max(source.kv_block_bytes(device) * positions.div_ceil(BLOCK_LEN as u64));
            sharers += 1;
        }
    }
    let each = least.max(load.kv_bytes);
    let needed = taken.saturating_add(each.saturating_mul(sharers));
    let free = free_memory(device, if wait { needed } else { 0 })?;
    if free < needed {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let message = format!("{:.1} GiB are needed, {:.1} GiB of the GPU are free", gib(needed), gib(free));
        return Err(KernelError::Device { op: "memory", message }.into());
    }
    Ok(if load.kv_bytes > 0 { load.kv_bytes } else { (free - taken) / sharers.max(1) })
}

/// The device's free memory, once it is `needed` and does not grow any more, or has been waited for.
fn free_memory(device: &Device, needed: u64) -> Result<u64, ModelError> {
    let mut free = device.memory()?.map_or(0, |memory| memory.free);
    let mut waited = Duration::ZERO;
    while needed > 0 && waited < MEMORY_WAIT_MAX {
        thread::sleep(MEMORY_LOOK_INTERVAL);
        waited += MEMORY_LOOK_INTERVAL;
        let now = device.memory()?.map_or(0, |memory| memory.free);
        let settled = now <= free && now >= needed;
        free = now;
        if settled {
            break;
        }
    }
    Ok(free)
}

/// One id to be drawn, on whichever thread is free.
struct Draw {
    /// Its row.
    at: usize,
    name: u64,
    sequence: Option<Sequence>,
    drawn: Drawn,
    result: RowResult,
}

/// What became of a row's logits on the device.
enum Drawn {
    /// It has drawn an id from them; none if they are not finite.
    Id(Option<u32>),
    /// They are among the host's, there.
    Not(Range<usize>),
}

fn fail_all(rows: &[BatchRow], message: &str) -> Vec<RowResult> {
    rows.iter().map(|_| RowResult::Failed(message.to_owned())).collect()
}
