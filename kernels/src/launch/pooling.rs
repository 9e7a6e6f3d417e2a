//! Launches of `pooling.cu`. Segment s is rows `starts[s] .. starts[s + 1]` of `x`; `starts` is u32, one more than
//! there are segments, which are the rows of `out`. There is at least one.

use super::rows::{by_chunk, by_row, place};
use super::{Arg, Element, Launch, RowsAt};

const MODULE: &str = "pooling";

fn pool(kernel: &'static str, element: Element, out: RowsAt, x: RowsAt, starts: u64) -> Launch {
    debug_assert!(out.cols == x.cols);
    // Narrow blocks: a thread walks a whole segment, so what hides its waiting is many blocks.
    let (grid, block) = by_chunk(element, out.rows, out.cols, 64);
    let args = [&place(out)[..], &place(x), &[Arg::Ptr(starts), Arg::U32(x.cols)]].concat();
    Launch { module: MODULE, kernel, element, grid, block, shared_bytes: 0, args }
}

/// `out[segment]` = the mean of the segment's rows of `x`; zeros for an empty one.
pub fn mean_pool(element: Element, out: RowsAt, x: RowsAt, starts: u64) -> Launch {
    pool("mean_pool", element, out, x, starts)
}

/// `out[segment]` = the first of the segment's rows of `x`; zeros for an empty one.
pub fn cls_pool(element: Element, out: RowsAt, x: RowsAt, starts: u64) -> Launch {
    pool("cls_pool", element, out, x, starts)
}

/// Divides each row of `x` by its Euclidean length (at least 1e-12), in place.
pub fn l2_normalize(element: Element, x: RowsAt) -> Launch {
    let (grid, block) = by_row(element, x.rows, x.cols);
    let args = [&place(x)[..], &[Arg::U32(x.cols)]].concat();
    Launch { module: MODULE, kernel: "l2_normalize", element, grid, block, shared_bytes: 0, args }
}
