//! The matrix product and the row gather over packed weights.
//!
//! `out[m, n] = x[m, k] w[n, k]^T` is cut into *units* of up to four panels (16 outputs each) and those into row tiles. A task takes
//! one unit and a range of row tiles: it turns a stretch of k of its panels into f32 in its thread's scratch, runs every tile over
//! it, and goes on to the next stretch. Rows are packed once for all units, `[k][rows of the tile]`. One decoding row meets four
//! panels at a time (four chains of multiply-adds), a full tile of 12 rows meets two (24 chains).
//!
//! Cost of unpacking a 4-bit weight: about 1.5 cycles per 16 outputs and k, paid once for all rows of the task; of a row, half a
//! cycle. So a decode step is bound by unpacking and memory together, a prefill by multiply-adds.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Tensor};

use crate::lanes::{self, Lanes, Limits, per_isa};
use crate::lines::{Lines, Parts};
use crate::matrix::Weights;
use crate::operands::{Indices, Operands};
use crate::packed::{Format, LANES, Segment};
use crate::tile::{self, Steps, Target, pack_rows};
use crate::unpack::unpack;
use crate::view::{Rows, RowsMut, RowsRef, floats, floats_mut, in_range};
use crate::{Device, Isa, KernelError, Matrix, PackedMatrix, Pool, launch};

/// f32 in a unit's scratch for one row tile: 16 KiB, half of the smallest L1 cache.
const SCRATCH_ONE_TILE: usize = 1 << 12;
/// And when several tiles share it, 64 KiB: in L2, read once a tile.
const SCRATCH_TILES: usize = 1 << 14;
/// Row tiles that share a task's unpacking at least, when rows are split to keep all threads busy.
const TILES_PER_TASK_MIN: usize = 4;

/// Columns of the widest tile.
const EDGE_STRIDE: usize = 4 * LANES;

thread_local! {
    /// A thread's unpacked stretch of weights.
    static WEIGHTS: RefCell<Lines> = RefCell::default();
    /// The calling thread's packed rows.
    static PACKED_ROWS: RefCell<Lines> = RefCell::default();
}

struct Matmul<'a> {
    out: Rows,
    x: Rows,
    bias: Option<Rows>,
    w: &'a PackedMatrix,
    pool: &'a Pool,
}

/// Rows per tile and panels per unit for a product of m rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    m: usize,
    tiles: usize,
    panels: usize,
}

impl Shape {
    fn of(m: usize, isa: Isa) -> Shape {
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

/// What every task of one product shares.
#[derive(Debug, Clone, Copy)]
struct Job {
    shape: Shape,
    k: usize,
    /// Tile after tile, `[k][rows of the tile]`.
    x: *const f32,
    out: *mut f32,
    out_stride: usize,
    /// Null, or `[n]`.
    bias: *const f32,
}

// SAFETY: tasks read `x` and `bias` and write disjoint elements of `out`, all of which outlive the region.
unsafe impl Sync for Job {}

impl Matmul<'_> {
    fn run(&self, out: RowsMut<'_, f32>, x: RowsRef<'_, f32>, bias: Option<&[f32]>) {
        let (m, k) = (out.view.rows, self.w.k());
        if m == 0 || self.w.n() == 0 {
            return;
        }
        let shape = Shape::of(m, self.pool.isa());
        PACKED_ROWS.with_borrow_mut(|packed| {
            let x = if m == 1 { x.row(0) } else { pack(packed.floats(m * k), shape, x, self.pool) };
            let job = Job {
                shape,
                k,
                x: x.as_ptr(),
                out: out.data.as_mut_ptr(),
                out_stride: out.view.stride,
                bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
            };
            self.share(&job);
        });
    }

    /// Shares a job over the pool: units, and where there are few of them, ranges of row tiles too.
    fn share(&self, job: &Job) {
        let Shape { tiles, panels, .. } = job.shape;
        let units_of = |segment: &Segment| segment.panels().div_ceil(panels);
        let units: usize = self.w.segments().iter().map(units_of).sum();
        let splits_wanted = (4 * self.pool.threads()).div_ceil(units);
        let splits = splits_wanted.clamp(1, (tiles / TILES_PER_TASK_MIN).max(1));
        self.pool.run(units * splits, |task| {
            let (mut unit, split) = (task % units, task / units);
            let tiles = split * tiles / splits..(split + 1) * tiles / splits;
            for segment in self.w.segments() {
                if unit < units_of(segment) {
                    let first = unit * panels;
                    let count = panels.min(segment.panels() - first);
                    let len = if tiles.len() == 1 { SCRATCH_ONE_TILE } else { SCRATCH_TILES };
                    return WEIGHTS.with_borrow_mut(|scratch| {
                        let scratch = scratch.floats(len);
                        product_unit(self.pool.isa(), job, segment, first, count, tiles, scratch);
                    });
                }
                unit -= units_of(segment);
            }
        });
    }
}

/// Packs the rows of every tile.
fn pack<'p>(packed: &'p mut [f32], shape: Shape, x: RowsRef<'_, f32>, pool: &Pool) -> &'p [f32] {
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
    fn product_unit(
        job: &Job,
        segment: &Segment,
        first: usize,
        count: usize,
        tiles: std::ops::Range<usize>,
        scratch: &mut [f32],
    ) = product_unit_body
}

/// The product of `count` panels from `first` on, for the rows of `tiles`.
#[inline(always)]
fn product_unit_body<V: Lanes>(
    job: &Job,
    segment: &Segment,
    first: usize,
    count: usize,
    tiles: std::ops::Range<usize>,
    scratch: &mut [f32],
) {
    // A stretch is a whole number of groups, the last one apart.
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

impl InplaceOp2 for Matmul<'_> {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, _: &Layout, x: &CpuStorage, _: &Layout) -> candle_core::Result<()> {
        self.run(self.out.of_slice_mut(floats_mut(out)?), self.x.of_slice(floats(x)?), None);
        Ok(())
    }
}

impl InplaceOp3 for Matmul<'_> {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        _: &Layout,
        x: &CpuStorage,
        _: &Layout,
        bias: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<()> {
        let bias = self.bias.map(|view| Ok::<_, candle_core::Error>(view.of_slice(floats(bias)?).row(0)));
        let bias = bias.transpose()?;
        self.run(self.out.of_slice_mut(floats_mut(out)?), self.x.of_slice(floats(x)?), bias);
        Ok(())
    }
}

/// `out[m, n] = x[m, k] w[n, k]^T (+ bias[n])`. Each element is `fma` over k in order, from zero, then plus the bias.
///
/// # Errors
/// If the shapes do not fit.
pub fn matmul(out: &Tensor, x: &Tensor, w: &Matrix, bias: Option<&Tensor>, device: &Device) -> Result<(), KernelError> {
    let rows = Rows::of_type("matmul", "out", out, out.dtype())?.rows;
    let w = match (&w.0, device.stream()) {
        (Weights::Packed(w), _) => w,
        (Weights::Cuda(w), Some(stream)) => {
            // The rows may be of the weights' type and the logits of f32, so each names its own.
            let on = Operands::of("matmul", out, stream)?;
            let target = on.expect("out", out, rows, w.n())?;
            Operands::of("matmul", x, stream)?.expect("x", x, rows, w.k())?;
            stream.matmul(out, x, w)?;
            return match bias {
                None => Ok(()),
                Some(bias) => {
                    let bias = on.floats("bias", bias, w.n())?;
                    on.launch(&launch::elementwise::add_bias(on.element, target, bias))
                }
            };
        }
        (Weights::Cuda(_), None) => {
            return Err(KernelError::Device { op: "matmul", message: "the weights are on a GPU".into() });
        }
    };
    let pool = device.pool();
    let op = Matmul {
        out: Rows::expect("matmul", "out", out, rows, w.n())?,
        x: Rows::expect("matmul", "x", x, rows, w.k())?,
        bias: bias.map(|bias| Rows::expect("matmul", "bias", bias, 1, w.n())).transpose()?,
        w,
        pool,
    };
    match bias {
        None => out.inplace_op2(x, &op)?,
        Some(bias) => out.inplace_op3(x, bias, &op)?,
    }
    Ok(())
}

struct Embed<'a> {
    out: Rows,
    ids: &'a [u32],
    table: &'a PackedMatrix,
    pool: &'a Pool,
}

impl InplaceOp1 for Embed<'_> {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        self.out
            .of_slice_mut(floats_mut(out)?)
            .for_each(self.pool, 1 << 14, |row, out| self.table.dequantize_row(self.ids[row] as usize, out));
        Ok(())
    }
}

/// `out[m, k] = table[ids[m], k]`, in f32.
///
/// # Errors
/// If the shapes do not fit or an id is not a row of the table.
pub fn embed(out: &Tensor, ids: &Indices, table: &Matrix, device: &Device) -> Result<(), KernelError> {
    for id in ids.host() {
        in_range("embed", "id", *id as usize, table.n())?;
    }
    let table = match (&table.0, device.stream()) {
        (Weights::Packed(table), _) => table,
        (Weights::Cuda(table), Some(stream)) => {
            let on = Operands::of("embed", out, stream)?;
            let out = on.expect("out", out, ids.len(), table.k())?;
            let rows = stream.table(table, on.element)?;
            return on.launch(&launch::elementwise::gather_rows(on.element, out, rows, ids.on(stream)?));
        }
        (Weights::Cuda(_), None) => {
            return Err(KernelError::Device { op: "embed", message: "the table is on a GPU".into() });
        }
    };
    let (ids, pool) = (ids.host(), device.pool());
    let op = Embed { out: Rows::expect("embed", "out", out, ids.len(), table.k())?, ids, table, pool };
    Ok(out.inplace_op1(&op)?)
}
