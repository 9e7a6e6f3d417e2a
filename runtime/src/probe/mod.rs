//! Looking at a device and at models on it, without a server: what `weir probe` and `weir-gpu probe` share.
//!
//! A probe answers in JSON lines on standard output, for programs; `bench/gpu` is the one that reads them (`charges` has figures for
//! people, and its JSON lines in a file). Models run exactly as in
//! an executor, through the same model code, but no scheduler plans their steps, so a step has the rows that were asked for.
//!
//! A probe is handed the [`Device`] it runs on: the CPU by `weir probe`, a GPU by `weir-gpu probe`.

mod args;
mod charges;
mod device;
mod kernels;
mod loaded;
mod logits;
mod place;
mod steps;
mod tensors;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use weir_kernels::KernelError;
pub use weir_kernels::{Device, Pool};
use weir_models::ModelError;

use args::Args;
use place::Place;

/// What `probe` without words, or with wrong ones, says.
pub const USAGE: &str = "\
weir probe SUB, with JSON lines as the answer:
  kernels [--only NAME] [--list]          each CUDA kernel against its CPU body
  device                                  rates of memory and of matrix products
  logits --model DIR --ids FILE --out FILE [--path decode|prefill] [--step-tokens N]
                                          logits of every position (an encoder: vectors), as safetensors
  greedy --model DIR --ids FILE --new N   the likeliest ids
  steps --model DIR --batch B --context C --new N [--prefill T]
                                          time of prefill steps of T tokens, and of decode steps
  charges --model DIR [--steps N] [--repeats N] [--seed N] [--raw FILE]
                                          what rows of mixed steps are charged, against what the steps are shorter
                                          without them; figures, and every step as a JSON line in FILE
FILE of --ids is JSON: a list of lists of token ids.";

/// Why a probe has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The words make no sense.
    #[error("{0} (see `weir probe`)")]
    Usage(String),
    /// A model does not open, load or compute.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A kernel refuses its arguments, or the device failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was answered, and the answer is bad.
    #[error("{0}")]
    Failed(String),
}

impl ProbeError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| ProbeError::File { path, source }
    }
}

/// Runs the probe that `args` name (the words behind `probe`) on `device`.
///
/// # Errors
/// [`ProbeError`]; what was found before stands on standard output.
pub fn main(args: &[String], device: &Device) -> Result<(), ProbeError> {
    let mut out = io::stdout().lock();
    run(args, device, &mut out)
}

/// As [`main`], with the answer written to `out`.
///
/// # Errors
/// [`ProbeError`]; what was found before was written.
pub fn run(args: &[String], device: &Device, out: &mut dyn Write) -> Result<(), ProbeError> {
    let place = Place { device };
    let Some((sub, words)) = args.split_first() else {
        // A reader that went away is no error.
        let _ = writeln!(out, "{USAGE}");
        return Ok(());
    };
    let args = |names: &[&str], flags: &[&str]| Args::parse(words, names, flags);
    match sub.as_str() {
        "kernels" => kernels::run(&args(&["only"], &["list"])?, place, out),
        "device" => device::run(&args(&[], &[])?, place, out),
        "logits" => logits::logits(&args(&["model", "ids", "out", "path", "step-tokens"], &[])?, place, out),
        "greedy" => logits::greedy(&args(&["model", "ids", "new", "step-tokens"], &[])?, place, out),
        "charges" => charges::run(&args(&["model", "steps", "repeats", "seed", "raw"], &[])?, place, out),
        "steps" => steps::run(&args(&["model", "batch", "context", "new", "prefill"], &[])?, place, out),
        other => Err(ProbeError::Usage(format!("there is no probe `{other}`"))),
    }
}

/// Writes one line, at once: who reads may stop a probe at any time and keep what it said.
fn say(out: &mut dyn Write, line: &Value) {
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests;
