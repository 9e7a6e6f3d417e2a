//! Writing keys and values.

use super::{Arg, Element, KvAt, Launch, RowsAt};

/// Writes the keys and values of a step: `k` and `v` are `[rows, kv_heads * head_dim]`, row i goes to slot i = block * 32 + position
/// in the block, the slots being `k.rows` words at `slots`. A slot outside the tensor is skipped.
///
/// # Panics
/// If `k` and `v` do not have the tensor's columns, or not equally many rows.
pub fn kv_write(element: Element, kv: KvAt, k: RowsAt, v: RowsAt, layer: u32, slots: u64) -> Launch {
    assert_eq!((k.rows, k.cols), (v.rows, v.cols), "keys and values differ");
    assert_eq!(k.cols, kv.kv_heads * kv.head_dim, "columns are not the KV tensor's");
    assert!(layer < kv.layers, "layer {layer} of {}", kv.layers);
    let wide = [k, v].iter().all(|rows| rows.wide(element));
    Launch {
        module: "kv_write",
        kernel: "kv_write",
        element,
        grid: [k.rows, 1, 1],
        block: [128, 1, 1],
        shared_bytes: 0,
        args: vec![
            Arg::Ptr(kv.ptr),
            Arg::Ptr(k.ptr),
            Arg::Ptr(v.ptr),
            Arg::Ptr(slots),
            Arg::U32(k.stride),
            Arg::U32(v.stride),
            Arg::U32(kv.blocks),
            Arg::U32(kv.layers),
            Arg::U32(layer),
            Arg::U32(kv.kv_heads),
            Arg::U32(kv.head_dim),
            Arg::U32(u32::from(wide)),
        ],
    }
}
