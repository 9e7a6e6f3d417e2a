//! What can go wrong between a caller and a kernel.

/// Why a kernel refused its arguments. Nothing was written when one of these is returned before the body ran; a kernel never
/// panics on bad shapes, ids or slots.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A tensor has another shape, type or stride than the op reads.
    #[error("{op}: {what} is {got}, expected {expected}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// The argument it refused.
        what: &'static str,
        /// What it was given.
        got: String,
        /// What it takes.
        expected: String,
    },
    /// An id, slot, position or block lies outside its table.
    #[error("{op}: {what} {index} is outside 0..{bound}")]
    Range {
        /// The op that refused.
        op: &'static str,
        /// The kind of index.
        what: &'static str,
        /// The index given.
        index: u64,
        /// The first index that does not exist.
        bound: u64,
    },
    /// Weight bytes do not have the length that their type and shape imply.
    #[error("a {dtype:?} matrix [{n}, {k}] takes {expected} bytes, got {got}")]
    WeightLen {
        /// The element type.
        dtype: crate::WeightType,
        /// Rows (outputs).
        n: usize,
        /// Columns (inputs).
        k: usize,
        /// Bytes that type and shape imply.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// The row length is not a whole number of the type's blocks.
    #[error("a {dtype:?} matrix needs rows of a multiple of {block} values, got {k}")]
    WeightBlock {
        /// The element type.
        dtype: crate::WeightType,
        /// Values in one block of the type.
        block: usize,
        /// The row length given.
        k: usize,
    },
    /// The device, or what stands for one, could not do it.
    #[error("{op}: {message}")]
    Device {
        /// What was to be done.
        op: &'static str,
        /// What it said.
        message: String,
    },
    /// candle refused the tensors (another device, aliased operands).
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<KernelError> for candle_core::Error {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Tensor(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}
