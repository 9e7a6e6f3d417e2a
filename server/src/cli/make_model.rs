//! `weir make-model`: a model of random weights in a real model's shape.

use std::{path::PathBuf, thread, time::Instant};

use clap::Args;
use weir_runtime::make_model::{MakeModel, Pool, Shape, WeightDtype, make};

use super::put;

#[derive(Debug, Args)]
pub(super) struct MakeModelArgs {
    /// llama-3.1-8b, qwen2.5-0.5b, bert-base, tiny-llama, tiny-qwen2 or tiny-bert
    #[arg(long)]
    shape: Shape,
    /// Where the weights come from: the same seed gives the same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// bf16, f16 or f32 [default: as published]
    #[arg(long)]
    dtype: Option<WeightDtype>,
    /// Fewer layers, or more, than the real one has
    #[arg(long, value_name = "N")]
    layers: Option<u32>,
    /// Threads to work with; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: u32,
    /// The folder to write, empty or not there
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

pub(super) fn run(args: &MakeModelArgs) -> anyhow::Result<()> {
    let wanted = MakeModel { shape: args.shape, seed: args.seed, dtype: args.dtype, layers: args.layers };
    let began = Instant::now();
    let made = make(&wanted, &args.out, &pool(args.threads))?;
    let seconds = began.elapsed().as_secs_f64();
    put(&format!(
        "{}: {} parameters in {} bytes and {} files, {seconds:.1} s, in {}\n",
        args.shape.name(),
        made.parameters,
        made.bytes,
        made.files,
        args.out.display()
    ));
    Ok(())
}

/// A pool of that many threads; 0 is one per core.
pub(super) fn pool(threads: u32) -> Pool {
    Pool::new(match threads {
        0 => thread::available_parallelism().map_or(1, usize::from),
        threads => threads as usize,
    })
}
