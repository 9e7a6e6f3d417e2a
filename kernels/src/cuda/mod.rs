//! The CUDA side: one stream of one GPU, its memory, its events, and products by cuBLAS.
//!
//! Everything that a device does goes through one non-blocking stream, in order: candle's own ops, the kernels of `kernels/cuda`,
//! copies. So memory may be freed as soon as the host lets go of it (frees are in the stream, too), and no event but the caller's own
//! is ever recorded: candle's tracking, which would record two for each tensor, is switched off before the first tensor exists.
//!
//! This is the only code that names cudarc. Nothing in it is reached before [`Stream::open`] has found a device.

mod memory;
mod modules;
mod product;
mod stream;

pub(crate) use memory::Buffer;
pub(crate) use memory::Event;
pub(crate) use product::CudaMatrix;
pub(crate) use stream::{Stream, gpus};

pub(crate) use modules::COMPUTE_CAP;

use crate::KernelError;

/// A driver's error as ours.
fn failed<E: std::fmt::Display>(op: &'static str) -> impl Fn(E) -> KernelError {
    move |error| KernelError::Device { op, message: error.to_string() }
}
