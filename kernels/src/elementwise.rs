//! Ops that touch each element once: sums, activations, copies and gathers of rows.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Tensor};

use crate::lanes::{Lanes, per_isa};
use crate::math::{gelu_erf_real, gelu_tanh_real, silu_real};
use crate::operands::{Indices, Operands};
use crate::packed::LANES;
use crate::tile::{load_part, store_part};
use crate::view::{Rows, floats, floats_mut, in_range, shape};
use crate::{Device, KernelError, Pool, launch};

per_isa! {
    fn silu_mul_row(out: &mut [f32], gate_up: &[f32]) = silu_mul_row_body
}
per_isa! {
    fn gelu_erf_row(x: &mut [f32]) = gelu_erf_row_body
}
per_isa! {
    fn gelu_tanh_row(x: &mut [f32]) = gelu_tanh_row_body
}

/// [`crate::spec::silu_mul`] by lanes.
#[inline(always)]
fn silu_mul_row_body<V: Lanes>(out: &mut [f32], gate_up: &[f32]) {
    let (gates, ups) = gate_up.split_at(out.len());
    let chunks = out.chunks_mut(LANES).zip(gates.chunks(LANES)).zip(ups.chunks(LANES));
    for ((out, gate), up) in chunks {
        // SAFETY: each chunk is as long as it says.
        unsafe {
            let gate: V = load_part(gate.as_ptr(), gate.len());
            let up: V = load_part(up.as_ptr(), up.len());
            store_part(silu_real(gate).mul(up), out.as_mut_ptr(), out.len());
        }
    }
}

/// Gelu with the error function, by lanes.
#[inline(always)]
fn gelu_erf_row_body<V: Lanes>(x: &mut [f32]) {
    for x in x.chunks_mut(LANES) {
        // SAFETY: the chunk is as long as it says.
        unsafe { store_part(gelu_erf_real::<V>(load_part(x.as_ptr(), x.len())), x.as_mut_ptr(), x.len()) };
    }
}

/// Gelu with tanh, by lanes.
#[inline(always)]
fn gelu_tanh_row_body<V: Lanes>(x: &mut [f32]) {
    for x in x.chunks_mut(LANES) {
        // SAFETY: the chunk is as long as it says.
        unsafe { store_part(gelu_tanh_real::<V>(load_part(x.as_ptr(), x.len())), x.as_mut_ptr(), x.len()) };
    }
}

/// Elements in one task.
const GRAIN: usize = 1 << 14;

/// What a two-operand op does with a row of `out` and the row of `x` beside it.
enum RowOp {
    Add,
    Copy,
    SiluMul,
}

struct Elementwise<'a> {
    name: &'static str,
    row_op: RowOp,
    out: Rows,
    x: Rows,
    pool: &'a Pool,
}

impl InplaceOp2 for Elementwise<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, _: &Layout, x: &CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let x = self.x.of_slice(floats(x)?);
        let out = self.out.of_slice_mut(floats_mut(out)?);
        out.for_each(self.pool, GRAIN, |row, out| match self.row_op {
            RowOp::Add => out.iter_mut().zip(x.row(row)).for_each(|(out, x)| *out += x),
            RowOp::Copy => out.copy_from_slice(x.row(row)),
            RowOp::SiluMul => silu_mul_row(self.pool.isa(), out, x.row(row)),
        });
        Ok(())
    }
}

fn elementwise(
    name: &'static str,
    row_op: RowOp,
    out: &Tensor,
    x: &Tensor,
    widths: usize,
    pool: &Pool,
) -> Result<(), KernelError> {
    let view = Rows::of(name, "out", out)?;
    let op = Elementwise {
        name,
        row_op,
        out: view,
        x: Rows::expect(name, "x", x, view.rows, view.cols.saturating_mul(widths))?,
        pool,
    };
    Ok(out.inplace_op2(x, &op)?)
}

/// `x += y`, both `[m, d]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn add(x: &Tensor, y: &Tensor, device: &Device) -> Result<(), KernelError> {
    if let Some(stream) = device.stream() {
        let on = Operands::of("add", x, stream)?;
        let out = on.rows("x", x)?;
        return on.launch(&launch::elementwise::add(
            on.element,
            out,
            on.expect("y", y, out.rows as usize, out.cols as usize)?,
        ));
    }
    elementwise("add", RowOp::Add, x, y, 1, device.pool())
}

/// `out = x`, both `[m, d]`.
pub(crate) fn copy(out: &Tensor, x: &Tensor, pool: &Pool) -> Result<(), KernelError> {
    elementwise("copy", RowOp::Copy, out, x, 1, pool)
}

/// `out[m, f] = silu(gate) * up` of `gate_up[m, 2 f]`, the gate columns first.
///
/// # Errors
/// If the shapes do not fit.
pub fn silu_mul(out: &Tensor, gate_up: &Tensor, device: &Device) -> Result<(), KernelError> {
    if let Some(stream) = device.stream() {
        let on = Operands::of("silu_mul", out, stream)?;
        let out = on.rows("out", out)?;
        let gate_up = on.expect("gate_up", gate_up, out.rows as usize, 2 * out.cols as usize)?;
        return on.launch(&launch::elementwise::silu_mul(on.element, out, gate_up));
    }
    elementwise("silu_mul", RowOp::SiluMul, out, gate_up, 2, device.pool())
}

/// Which gelu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeluKind {
    /// With the error function.
    Erf,
    /// With the tanh approximation.
    Tanh,
}

struct Gelu<'a> {
    x: Rows,
    kind: GeluKind,
    pool: &'a Pool,
}

impl InplaceOp1 for Gelu<'_> {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        self.x.of_slice_mut(floats_mut(x)?).for_each(self.pool, GRAIN, |_, row| match self.kind {
            GeluKind::Erf => gelu_erf_row(self.pool.isa(), row),
            GeluKind::Tanh => gelu_tanh_row(self.pool.isa(), row),
        });
        Ok(())
    }
}

/// `x[m, d] = gelu(x)`, in place.
///
/// # Errors
/// If `x` is not rows of f32.
pub fn gelu(x: &Tensor, kind: GeluKind, device: &Device) -> Result<(), KernelError> {
    if let Some(stream) = device.stream() {
        let on = Operands::of("gelu", x, stream)?;
        return on.launch(&launch::elementwise::gelu(on.element, on.rows("x", x)?, kind));
    }
    let op = Gelu { x: Rows::of("gelu", "x", x)?, kind, pool: device.pool() };
    Ok(x.inplace_op1(&op)?)
}

struct GatherRows<'a> {
    out: Rows,
    x: Rows,
    rows: &'a [u32],
    pool: &'a Pool,
}

impl InplaceOp2 for GatherRows<'_> {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, _: &Layout, x: &CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let x = self.x.of_slice(floats(x)?);
        self.out
            .of_slice_mut(floats_mut(out)?)
            .for_each(self.pool, GRAIN, |row, out| out.copy_from_slice(x.row(self.rows[row] as usize)));
        Ok(())
    }
}

/// `out[i, d] = x[rows[i], d]`.
///
/// # Errors
/// If the shapes do not fit or `x` has no such row.
pub fn gather_rows(out: &Tensor, x: &Tensor, rows: &Indices, device: &Device) -> Result<(), KernelError> {
    let source = Rows::of_type("gather_rows", "x", x, x.dtype())?;
    for row in rows.host() {
        in_range("gather_rows", "row", *row as usize, source.rows)?;
    }
    if let Some(stream) = device.stream() {
        let on = Operands::of("gather_rows", x, stream)?;
        let (out, x) = (on.expect("out", out, rows.len(), source.cols)?, on.rows("x", x)?);
        return on.launch(&launch::elementwise::gather_rows(on.element, out, x, rows.on(stream)?));
    }
    let source = Rows::of("gather_rows", "x", x)?;
    let (rows, pool) = (rows.host(), device.pool());
    let op =
        GatherRows { out: Rows::expect("gather_rows", "out", out, rows.len(), source.cols)?, x: source, rows, pool };
    Ok(out.inplace_op2(x, &op)?)
}

/// Refuses lengths that do not add up to the rows of a packed batch, or are zero.
pub(crate) fn check_lens(op: &'static str, lens: &[u32], rows: usize) -> Result<(), KernelError> {
    let total: u64 = lens.iter().map(|len| u64::from(*len)).sum();
    if total != rows as u64 || lens.contains(&0) {
        let got = format!("{} segments of {total} rows in all", lens.len());
        return Err(shape(op, "lens", got, &format!("non-empty segments of {rows} rows in all")));
    }
    Ok(())
}
