//! Launches of `rope.cu`.

use super::rows::{chunk, place, threads};
use super::{Arg, Element, Launch, RowsAt};
use crate::ops::RopeStyle;

/// Turns every head of `x[rows, heads * head_dim]` in place, row i to `positions[i]` (u32). `cos` and `sin` are f32
/// tables `[positions, pairs]`; every position must be in them, and `2 pairs` is at most `head_dim`. `x` may be a
/// column range of wider rows; there is at least one row.
#[allow(clippy::too_many_arguments)]
pub fn rope(
    element: Element,
    x: RowsAt,
    head_dim: u32,
    positions: u64,
    cos: u64,
    sin: u64,
    pairs: u32,
    style: RopeStyle,
) -> Launch {
    debug_assert!(x.cols.is_multiple_of(head_dim) && 2 * pairs <= head_dim);
    let heads = x.cols / head_dim;
    // A thread's chunk is of pairs' first halves, or of whole pairs.
    let (kernel, values) = match style {
        RopeStyle::Half => ("rope_half", pairs),
        RopeStyle::Interleaved => ("rope_interleaved", 2 * pairs),
    };
    let rest =
        [Arg::U32(heads), Arg::U32(head_dim), Arg::Ptr(positions), Arg::Ptr(cos), Arg::Ptr(sin), Arg::U32(pairs)];
    Launch {
        module: "rope",
        kernel,
        element,
        grid: [x.rows, 1, 1],
        block: threads(heads * values.div_ceil(chunk(element)), 256),
        shared_bytes: 0,
        args: [&place(x)[..], &rest].concat(),
    }
}
