//! The ops: free functions over candle tensors, each taking the [`Device`](crate::Device) it runs on.
//!
//! Activations are `[rows, columns]` of one element type (f32 on the CPU, what [`Device::element`](crate::Device::element) says on a GPU) whose rows are without gaps inside; rows may lie apart and start anywhere, so any
//! `narrow` of a preallocated workspace will do. An output must not share its storage with an input (candle refuses that). Every
//! function checks its arguments first and writes nothing if they do not fit.

pub use crate::attention::{AttentionRow, paged_attention};
pub use crate::drawing::sample;
pub use crate::elementwise::{GeluKind, add, gather_rows, gelu, silu_mul};
pub use crate::kv::{BLOCK_LEN, kv_write};
pub use crate::norm::{add_layer_norm, add_rms_norm, head_rms_norm, layer_norm, rms_norm};
pub use crate::operands::{AttentionBatch, Indices, Segments, read_rows};
pub use crate::pooling::{cls_pool, l2_normalize, mean_pool};
pub use crate::product::{embed, matmul};
pub use crate::rope::{RopeStyle, RopeTable, rope};
pub use crate::segment::segment_attention;
