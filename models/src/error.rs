//! What can go wrong with a model, named after what happened to the caller.

use std::path::PathBuf;

/// Everything this crate refuses, and why.
///
/// No variant carries a secret: paths, tensor names and counts only. A file from outside never panics; it ends here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// What was to be read.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The path holds nothing that is a model, or more than one.
    #[error("{} is no model: {reason}", path.display())]
    NoModel {
        /// The path that was given.
        path: PathBuf,
        /// What was looked for and not found.
        reason: String,
    },
    /// A file breaks its own format. Such a file is damaged or hostile; nothing of it is used.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The rule it breaks.
        reason: String,
    },
    /// The configuration of the model asks for something that is missing, out of range or not built.
    #[error("{}: {reason}", path.display())]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// What it asks for.
        reason: String,
    },
    /// A tensor is stored in a type that no product here reads.
    #[error("tensor `{tensor}` is stored as {found}, which cannot be read (readable: {readable})")]
    TensorType {
        /// The tensor's name in the file.
        tensor: String,
        /// The type it is stored in.
        found: String,
        /// The types that would do.
        readable: &'static str,
    },
    /// The architecture needs a tensor that the checkpoint has not.
    #[error("the checkpoint has no tensor `{tensor}`")]
    TensorMissing {
        /// The name that was looked for.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{tensor}` has shape {found:?}, the configuration says {wanted:?}")]
    TensorShape {
        /// The tensor's name in the file.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        wanted: Vec<usize>,
    },
    /// The checkpoint holds a tensor that the architecture, as built here, does not use.
    #[error("the checkpoint holds a tensor `{tensor}` that this architecture, as built, does not use")]
    TensorUnused {
        /// Its name.
        tensor: String,
    },
    /// The tokenizer cannot be built, or it refused a text.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What it needs or what it refused.
        reason: String,
    },
    /// A step asks for more than the model was loaded for, or names an id or a block that does not exist.
    #[error("step refused: {reason}")]
    Step {
        /// The bound that was passed.
        reason: String,
    },
    /// A kernel refused its input.
    #[error(transparent)]
    Kernel(#[from] weir_kernels::KernelError),
    /// candle refused a tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// Whether the device said it, on a GPU, rather than the model or its input: nothing can be expected of the device then.
    pub fn is_device_fault(&self) -> bool {
        use weir_kernels::KernelError;
        matches!(self, Self::Tensor(_) | Self::Kernel(KernelError::Device { .. } | KernelError::Tensor(_)))
    }

    pub(crate) fn tokenizer(reason: impl std::fmt::Display) -> Self {
        Self::Tokenizer { reason: reason.to_string() }
    }

    pub(crate) fn step(reason: impl Into<String>) -> Self {
        Self::Step { reason: reason.into() }
    }
}
