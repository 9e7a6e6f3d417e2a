//! The matrix product and the row gather over packed weights.
//!
//! `out[m, n] = x[m, k] w[n, k]^T` is cut into *units* of panels (16 outputs each) and those into row tiles; a task takes one unit and a
//! range of row tiles. Three bodies share the work: float weights are multiplied in f32 ([`float`]); quantised weights take x in
//! eight bits ([`coded`]) and are multiplied as the codes they are, by vectors ([`few`]) or, many rows of them, by AMX ([`tiles`]).
//! The last two give the same bits, so which one runs is a matter of speed alone.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Tensor};

use crate::lines::Lines;
use crate::matrix::Weights;
use crate::operands::{Indices, Operands};
use crate::packed::Segment;
use crate::view::{Rows, RowsMut, RowsRef, floats, floats_mut, in_range};
use crate::{Device, Isa, KernelError, Matrix, PackedMatrix, Pool, launch};
use coded::{Coded, TILE_ROWS};
use float::Shape;

mod coded;
mod few;
mod float;
mod panel;
#[cfg(target_arch = "x86_64")]
mod tiles;

/// Row tiles that share a task's unpacking at least, when rows are split to keep all threads busy.
const TILES_PER_TASK_MIN: usize = 4;
/// Bytes of codes that make a task for one row tile: some microseconds of memory.
const UNIT_BYTES: usize = 1 << 15;
/// Tasks for each thread at least, if there is as much to share, so that one that is slowed down costs little.
const UNITS_MIN: usize = 4;
/// And about at most, so that claiming them costs little.
const UNITS_MAX: usize = 64;
/// Rows from which AMX is faster than vectors.
const AMX_ROWS_MIN: usize = 16;

thread_local! {
    /// A thread's unpacked stretch of weights.
    static WEIGHTS: RefCell<Lines> = RefCell::default();
    /// The calling thread's packed rows.
    static PACKED_ROWS: RefCell<Lines> = RefCell::default();
    /// The calling thread's coded rows.
    static CODED_ROWS: RefCell<Lines> = RefCell::default();
}

struct Matmul<'a> {
    out: Rows,
    x: Rows,
    bias: Option<Rows>,
    w: &'a PackedMatrix,
    pool: &'a Pool,
}

/// What every task of one product shares.
#[derive(Debug, Clone, Copy)]
struct Job {
    m: usize,
    k: usize,
    shape: Shape,
    /// For float weights: tile after tile, `[k][rows of the tile]`.
    x: *const f32,
    /// For quantised weights.
    coded: Coded,
    out: *mut f32,
    out_stride: usize,
    /// Null, or `[n]`.
    bias: *const f32,
}

// SAFETY: tasks read `x`, `coded` and `bias` and write disjoint elements of `out`, all of which outlive the region.
unsafe impl Sync for Job {}

/// What of a segment a task computes.
#[derive(Debug, Clone)]
struct Part {
    panels: Range<usize>,
    tiles: Range<usize>,
}

/// How a segment is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Float,
    Few,
    Tiles,
}

impl Body {
    fn of(segment: &Segment, m: usize, isa: Isa) -> Body {
        match panel::quant_of(segment) {
            None => Body::Float,
            Some(_) if isa == Isa::Amx && m >= AMX_ROWS_MIN => Body::Tiles,
            Some(_) => Body::Few,
        }
    }
}

impl Matmul<'_> {
    fn run(&self, out: RowsMut<'_, f32>, x: RowsRef<'_, f32>, bias: Option<&[f32]>) {
        let (m, k) = (out.view.rows, self.w.k());
        if m == 0 || self.w.n() == 0 {
            return;
        }
        let shape = Shape::of(m, self.pool.isa());
        let quantised = |segment: &Segment| panel::quant_of(segment).is_some();
        PACKED_ROWS.with_borrow_mut(|packed| {
            CODED_ROWS.with_borrow_mut(|scratch| {
                let packed: &[f32] = if self.w.segments().iter().all(quantised) {
                    &[]
                } else if m == 1 {
                    x.row(0)
                } else {
                    float::pack(packed.floats(m * k), shape, x, self.pool)
                };
                let coded = if self.w.segments().iter().any(quantised) {
                    Coded::of(scratch, x, self.pool)
                } else {
                    Coded::NONE
                };
                let job = Job {
                    m,
                    k,
                    shape,
                    x: packed.as_ptr(),
                    coded,
                    out: out.data.as_mut_ptr(),
                    out_stride: out.view.stride,
                    bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
                };
                self.share(&job);
            });
        });
    }

    /// Shares a job over the pool: units, and where there are few of them, ranges of row tiles too.
    fn share(&self, job: &Job) {
        let (isa, threads) = (self.pool.isa(), self.pool.threads());
        let tiles_of = |segment: &Segment| match Body::of(segment, job.m, isa) {
            Body::Float => job.shape.tiles,
            Body::Few | Body::Tiles => job.m.div_ceil(TILE_ROWS),
        };
        let panels_of = |segment: &Segment| match Body::of(segment, job.m, isa) {
            Body::Float => job.shape.panels,
            Body::Few | Body::Tiles => {
                let (panels, unit) = (segment.panels(), UNIT_BYTES / (segment.panel_bytes * tiles_of(segment)).max(1));
                let (least, most) = (panels / (UNITS_MAX * threads), panels / (UNITS_MIN * threads));
                unit.clamp(least.max(1), most.max(1))
            }
        };
        let units_of = |segment: &Segment| segment.panels().div_ceil(panels_of(segment));
        let units: usize = self.w.segments().iter().map(units_of).sum();
        let tiles_min = self.w.segments().iter().map(tiles_of).min().unwrap_or(1);
        let splits_wanted = (UNITS_MIN * threads).div_ceil(units);
        let splits = splits_wanted.clamp(1, (tiles_min / TILES_PER_TASK_MIN).max(1));
        self.pool.run(units * splits, |task| {
            let (mut unit, split) = (task % units, task / units);
            for segment in self.w.segments() {
                let (units, panels, tiles) = (units_of(segment), panels_of(segment), tiles_of(segment));
                if unit < units {
                    let part = Part {
                        panels: unit * panels..segment.panels().min((unit + 1) * panels),
                        tiles: split * tiles / splits..(split + 1) * tiles / splits,
                    };
                    return product(isa, job, segment, &part);
                }
                unit -= units;
            }
        });
    }
}

fn product(isa: Isa, job: &Job, segment: &Segment, part: &Part) {
    match Body::of(segment, job.m, isa) {
        Body::Float => {
            WEIGHTS.with_borrow_mut(|scratch| float::product(isa, job, segment, part, scratch));
        }
        #[cfg(target_arch = "x86_64")]
        Body::Tiles => WEIGHTS.with_borrow_mut(|scratch| tiles::product(isa, job, segment, part, scratch)),
        _ => few::product(isa, job, segment, part),
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

/// `out[m, n] = x[m, k] w[n, k]^T (+ bias[n])`, each element as [`crate::spec::product`] computes it.
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
