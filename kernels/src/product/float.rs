//! Products with float weights.
//!
//! Panels are cut into *units* of up to four and rows into tiles. A task takes one unit and a range of row tiles: it turns a stretch
//! of k of its panels into f32 in its thread's scratch, runs every tile over it, and goes on to the next stretch. Rows are packed
//! once for all units, `[k][rows of the tile]`. One decoding row meets four panels at a time (four chains of multiply-adds), a full
//! tile of 12 rows meets two (24 chains).

use super::{Job, Part};
use crate::lanes::{self, Lanes, Limits, per_isa};
use crate::lines::{Lines, Parts};
use crate::packed::{Format, LANES, Segment};
use crate::tile::{self, Steps, Target, pack_rows};
use crate::unpack::unpack;
use crate::view::RowsRef;
use crate::{Isa, Pool};

/// f32 in a unit's scratch for one row tile: 16 KiB, half of the smallest L1 cache.
const SCRATCH_ONE_TILE: usize = 1 << 12;
/// And when several tiles share it, 64 KiB: in L2, read once a tile.
const SCRATCH_TILES: usize = 1 << 14;

/// Columns of the widest tile.
const EDGE_STRIDE: usize = 4 * LANES;

/// Rows per tile and panels per unit for a product of m rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    m: usize,
    pub(super) tiles: usize,
    pub(super) panels: usize,
}

impl Shape {
    pub(super) fn of(m: usize, isa: Isa) -> Shape {
        let Limits { rows: rows_max, accumulators } = lanes::limits(isa);
        let tiles = m.div_ceil(rows_max);
        let rows = m.div_ceil(tiles);
        let panels = [4, 2, 1].into_iter().find(|panels| rows * panels <= accumulators.max(*panels));
        Shape { m, tiles, panels: panels.expect("one panel fits a full tile") }
    }

    /// First row of a tile; tiles differ by one row at most.
    fn start(self, tile: usize) -> usize {
        tile * self.m / self.tiles
    }
}

/// Packs the rows of every tile.
pub(super) fn pack<'p>(packed: &'p mut [f32], shape: Shape, x: RowsRef<'_, f32>, pool: &Pool) -> &'p [f32] {
    let k = x.view.cols;
    if k > 0 {
        let one = |tile: usize, to: &mut [f32]| {
            let start = shape.start(tile);
            pack_rows(to, shape.start(tile + 1) - start, k, |row| x.row(start + row));
        };
        if shape.tiles == 1 {
            one(0, packed);
        } else {
            let rows = Parts::new(packed, k);
            pool.run(shape.tiles, |tile| {
                // SAFETY: tiles are disjoint ranges of rows, and a run calls each index once.
                one(tile, unsafe { rows.parts(shape.start(tile)..shape.start(tile + 1)) });
            });
        }
    }
    packed
}

per_isa! {
    /// The products of a part of a float segment.
    pub(super) fn product(job: &Job, segment: &Segment, part: &Part, scratch: &mut Lines) = unit_body
}

#[inline(always)]
fn unit_body<V: Lanes>(job: &Job, segment: &Segment, part: &Part, scratch: &mut Lines) {
    let (first, count, tiles) = (part.panels.start, part.panels.len(), part.tiles.clone());
    let scratch = scratch.floats(if tiles.len() == 1 { SCRATCH_ONE_TILE } else { SCRATCH_TILES });
    let mut edge = [0.0f32; 12 * EDGE_STRIDE];
    let stretch = scratch.len() / (count.next_power_of_two() * LANES);
    let mut start = 0;
    // At least once, so that k = 0 gives zeros.
    loop {
        let end = job.k.min(start + stretch);
        let (w, panel_len) = if segment.format == Format::F32 {
            let w = segment.panel(first).as_ptr().cast::<f32>();
            // SAFETY: `start` is at most k, and panels are aligned to four bytes.
            (unsafe { w.add(start * LANES) }, segment.panel_bytes / 4)
        } else {
            for panel in 0..count {
                let to = scratch[panel * stretch * LANES..][..(end - start) * LANES].as_mut_ptr();
                let from = segment.panel(first + panel).as_ptr();
                // SAFETY: `from` is a panel of that format and length k; `to` has just been sliced to the room needed.
                unsafe { unpack::<V>(segment.format, from, start..end, to) };
            }
            (scratch.as_ptr(), stretch * LANES)
        };
        for tile in tiles.clone() {
            let row = job.shape.start(tile);
            let rows = job.shape.start(tile + 1) - row;
            let mut panel = 0;
            while panel < count {
                let width = match count - panel {
                    4.. => 4,
                    2.. => 2,
                    _ => 1,
                };
                let col = (first + panel) * LANES;
                let cols = (segment.n - col).min(width * LANES);
                // SAFETY: the tile's rows begin at `row * k` and hold `[k][rows]`; the panels have just been unpacked (or are f32
                // in the matrix); `out` has these rows and columns and no other task has these.
                unsafe {
                    let steps = Steps {
                        k: end - start,
                        x: job.x.add(row * job.k + start * rows),
                        w: w.add(panel * panel_len),
                        row: LANES,
                        panel: panel_len,
                        resume: start > 0,
                    };
                    let out = job.out.add(row * job.out_stride + segment.first + col);
                    let part = cols < width * LANES;
                    let mut target = Target { out, stride: job.out_stride };
                    if part {
                        // The last panel of a matrix whose n is not a multiple of 16 goes through a tile of its own.
                        copy_block(out, job.out_stride, edge.as_mut_ptr(), EDGE_STRIDE, rows, cols);
                        target = Target { out: edge.as_mut_ptr(), stride: EDGE_STRIDE };
                    }
                    tile::run::<V>(rows, width, steps, target);
                    if part {
                        copy_block(edge.as_ptr(), EDGE_STRIDE, out, job.out_stride, rows, cols);
                    }
                    if end == job.k && !job.bias.is_null() {
                        add_bias(job.bias.add(segment.first + col), rows, cols, out, job.out_stride);
                    }
                }
                panel += width;
            }
        }
        start = end;
        if start >= job.k {
            break;
        }
    }
}

/// Copies `[rows, cols]`.
///
/// # Safety
/// Both blocks exist and do not overlap.
unsafe fn copy_block(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize, rows: usize, cols: usize) {
    for row in 0..rows {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.add(row * from_stride), to.add(row * to_stride), cols) };
    }
}

/// Adds a bias to the rows of a finished tile.
///
/// # Safety
/// `out` is `[rows, cols]` and `bias` has these columns.
unsafe fn add_bias(bias: *const f32, rows: usize, cols: usize, out: *mut f32, stride: usize) {
    for row in 0..rows {
        for col in 0..cols {
            // SAFETY: the caller's promise.
            unsafe { *out.add(row * stride + col) += *bias.add(col) };
        }
    }
}
