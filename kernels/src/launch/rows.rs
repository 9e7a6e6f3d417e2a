//! Grids over rows: what the kernels of `rows.cuh` expect.

use super::{Arg, Element, RowsAt};

/// Threads of a warp.
pub(super) const WARP: u32 = 32;

/// Elements in sixteen bytes: what a thread works on at once.
pub(super) fn chunk(element: Element) -> u32 {
    16 / element.bytes() as u32
}

/// Threads for `items` items, one each: whole warps, at most `max`.
pub(super) fn threads(items: u32, max: u32) -> [u32; 3] {
    [items.div_ceil(WARP).saturating_mul(WARP).clamp(WARP, max), 1, 1]
}

/// Blocks and threads of a kernel whose block takes a whole row, as often as it must. Depends on the width alone, as
/// the order of a row's sums does.
pub(super) fn by_row(element: Element, rows: u32, cols: u32) -> ([u32; 3], [u32; 3]) {
    ([rows, 1, 1], threads(cols.div_ceil(chunk(element)), 1024))
}

/// Blocks and threads of a kernel whose thread takes one chunk of one row.
pub(super) fn by_chunk(element: Element, rows: u32, cols: u32, threads_max: u32) -> ([u32; 3], [u32; 3]) {
    let chunks = cols.div_ceil(chunk(element));
    let block = threads(chunks, threads_max);
    ([rows, chunks.div_ceil(block[0]).max(1), 1], block)
}

/// Rows as kernels take them: where they begin, and how far apart.
pub(super) fn place(rows: RowsAt) -> [Arg; 2] {
    [Arg::Ptr(rows.ptr), Arg::U32(rows.stride)]
}

/// Whether two operands are of one shape.
pub(super) fn same(a: RowsAt, b: RowsAt) -> bool {
    (a.rows, a.cols) == (b.rows, b.cols)
}
