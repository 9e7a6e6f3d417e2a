//! # weir-kernels: each op once
//!
//! The operations that a forward pass is made of, as bodies that write into preallocated candle tensors. `models` calls the free
//! functions in [`ops`]; each is a candle in-place op with a CPU body, and room for a CUDA body beside it.
//!
//! **The numeric rule.** Each output element is a fixed sequence of f32 operations that does not depend on the batch, on chunk
//! boundaries, on threads or on the instruction set. That is what makes a row computed in a batch equal the same row computed
//! alone, byte for byte. Products run `acc = fma(x[k], w[k], acc)` over k in order; products with quantised weights take x in eight
//! bits, sum each group of k exactly in whole numbers, and scale the groups in order ([`spec::product`]). Weights are packed so that
//! vector lanes are outputs and no f32 is ever summed across lanes; sums inside a row (norms, softmax) use 16 partial sums and one fixed tree;
//! `exp`, `tanh` and `erf` are our own ([`math`]).
//!
//! **What it must never do:** know a model or a tenant, make a thread that [`Pool`] does not own, read a clock or the
//! environment, panic on bad shapes or ids (a [`KernelError`] instead), or turn a whole quantised matrix into f32.
//!
//! **Main types:** [`PackedMatrix`] (weights, packed once at load), [`Pool`] (the threads every op takes), [`Isa`] (which bodies
//! run), [`ops`] (the ops), [`spec`] (the plain loop of each op, its specification), [`sample`] (the draw of an id).
//!
//! **How to test:** `cargo test --release -p weir-kernels` compares every body that this machine can run with [`spec`], bit for
//! bit; `cargo run --release -p weir-kernels --example rates` prints rates.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
mod cuda;
mod device;
mod drawing;
mod elementwise;
mod error;
mod isa;
mod kv;
mod lanes;
pub mod launch;
mod lines;
pub mod math;
mod matrix;
mod norm;
mod operands;
pub mod ops;
mod packed;
pub mod parity;
mod pool;
mod pooling;
mod product;
mod rope;
pub mod sample;
mod segment;
pub mod spec;
mod tile;
mod unpack;
mod view;
mod weight;

pub use device::{Device, DeviceMemory, Event, Gpu};
pub use error::KernelError;
pub use isa::Isa;
pub use matrix::Matrix;
pub use packed::{PackedMatrix, PackedSource, RowCodes};
pub use pool::{Pool, THREADS_MAX};
pub use weight::WeightType;
