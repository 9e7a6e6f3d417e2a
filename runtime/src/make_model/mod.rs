//! Models of random weights in the shapes of real ones.
//!
//! What a step costs does not depend on what the weights say, only on their shapes, so a machine without a network and without
//! room for real checkpoints can still be measured: [`make`] writes a folder that Weir and transformers open like any other. Its
//! configuration has the real fields; its tokenizer cuts a text into bytes (or letters) and fills the rest of the vocabulary with
//! made-up words, so that whatever the model draws is readable text.
//!
//! **The same bytes everywhere.** A value is a pure function of the seed, its tensor's name and its place in it, so threads and
//! their number do not matter, and neither do the machine or the order of work. Weights stream to disk in pieces: memory is a few
//! MiB a thread.
//!
//! `config.json` is written last: a folder whose making broke off is no model.

mod shape;
mod weights;
mod words;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use shape::Shape;
use weights::Fill;
pub use weights::WeightDtype;
pub use weir_kernels::Pool;

/// What to make.
#[derive(Debug, Clone)]
pub struct MakeModel {
    /// Whose shape it has.
    pub shape: Shape,
    /// Where its values come from: another seed, others.
    pub seed: u64,
    /// How weights are stored; `None` is what the real one is published in.
    pub dtype: Option<WeightDtype>,
    /// Layers, where the real number is too many.
    pub layers: Option<u32>,
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MadeModel {
    /// Weights, counted.
    pub parameters: u64,
    /// Bytes of the weights.
    pub bytes: u64,
    /// Files that hold them.
    pub files: u32,
}

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum MakeModelError {
    /// The name is of no shape that is known.
    #[error("there is no shape `{0}`; there are {all}", all = Shape::ALL.map(Shape::name).join(", "))]
    UnknownShape(String),
    /// The name is of no type that weights are written in.
    #[error("weights are bf16, f16 or f32, not `{0}`")]
    UnknownDtype(String),
    /// A model has at least one layer, and none has more than this.
    #[error("{0} layers are outside 1..={LAYERS_MAX}")]
    Layers(u32),
    /// What is there stays there.
    #[error("{0} is not an empty folder")]
    NotEmpty(PathBuf),
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The most layers.
const LAYERS_MAX: u32 = 256;

/// Writes the model into `folder`, which must be empty or not there, with the work shared over `pool`.
///
/// # Errors
/// [`MakeModelError`] when the folder is not empty or cannot be written to; what was written by then stays there.
pub fn make(wanted: &MakeModel, folder: &Path, pool: &Pool) -> Result<MadeModel, MakeModelError> {
    write(wanted, folder, pool, Fill::Values)
}

fn write(wanted: &MakeModel, folder: &Path, pool: &Pool, fill: Fill) -> Result<MadeModel, MakeModelError> {
    if let Some(layers) = wanted.layers.filter(|layers| !(1..=LAYERS_MAX).contains(layers)) {
        return Err(MakeModelError::Layers(layers));
    }
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| MakeModelError::Unwritable { path, source }
    };
    fs::create_dir_all(folder).map_err(at(folder))?;
    if fs::read_dir(folder).map_err(at(folder))?.next().is_some() {
        return Err(MakeModelError::NotEmpty(folder.to_owned()));
    }
    let dtype = wanted.dtype.unwrap_or(wanted.shape.dtype());
    let tensors = wanted.shape.tensors(wanted.layers);
    let made = weights::write(folder, &tensors, wanted.seed, dtype, fill, pool)?;
    let mut files = words::files(wanted.shape);
    files.extend(wanted.shape.generation_json().map(|json| ("generation_config.json", json)));
    files.push(("config.json", wanted.shape.config_json(wanted.layers, dtype)));
    for (name, json) in files {
        let path = folder.join(name);
        fs::write(&path, format!("{json:#}\n")).map_err(at(&path))?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests;
