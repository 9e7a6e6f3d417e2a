//! Root-mean-square norm and layer norm.

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Tensor};

use crate::elementwise::{add, copy};
use crate::lanes::{Lanes, per_isa};
use crate::operands::Operands;
use crate::packed::LANES;
use crate::view::{Rows, floats, floats_mut, shape};
use crate::{Device, KernelError, Pool, launch, spec};

/// Elements in one task.
const GRAIN: usize = 1 << 14;

per_isa! {
    fn rms_row(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) = rms_row_body
}
per_isa! {
    fn layer_row(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) = layer_row_body
}

/// [`spec::rms_norm`] by lanes.
#[inline(always)]
fn rms_row_body<V: Lanes>(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let (x_lanes, x_tail) = x.as_chunks::<LANES>();
    let mut squares = V::splat(0.0);
    for x in x_lanes {
        // SAFETY: the chunk holds 16 f32.
        let x = unsafe { V::load(x.as_ptr()) };
        squares = x.fma(x, squares);
    }
    let mut lanes = [0.0; LANES];
    // SAFETY: the array holds 16 f32.
    unsafe { squares.store(lanes.as_mut_ptr()) };
    for (lane, x) in lanes.iter_mut().zip(x_tail) {
        *lane = x.mul_add(*x, *lane);
    }
    let scale = 1.0 / (spec::reduce(lanes) / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// [`spec::layer_norm`] by lanes, in place.
#[inline(always)]
fn layer_row_body<V: Lanes>(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let len = x.len() as f32;
    let (x_lanes, x_tail) = x.as_chunks::<LANES>();
    let mut sum = V::splat(0.0);
    for x in x_lanes {
        // SAFETY: the chunk holds 16 f32.
        sum = sum.add(unsafe { V::load(x.as_ptr()) });
    }
    let mut lanes = [0.0; LANES];
    // SAFETY: the array holds 16 f32.
    unsafe { sum.store(lanes.as_mut_ptr()) };
    for (lane, x) in lanes.iter_mut().zip(x_tail) {
        *lane += x;
    }
    let mean = spec::reduce(lanes) / len;
    let mut squares = V::splat(0.0);
    for x in x_lanes {
        // SAFETY: the chunk holds 16 f32.
        let off = unsafe { V::load(x.as_ptr()) }.sub(V::splat(mean));
        squares = off.fma(off, squares);
    }
    // SAFETY: the array holds 16 f32.
    unsafe { squares.store(lanes.as_mut_ptr()) };
    for (lane, x) in lanes.iter_mut().zip(x_tail) {
        *lane = (x - mean).mul_add(x - mean, *lane);
    }
    let scale = 1.0 / (spec::reduce(lanes) / len + eps).sqrt();
    for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
        *x = ((*x - mean) * scale).mul_add(*weight, *bias);
    }
}

struct RmsNorm<'a> {
    out: Rows,
    x: Rows,
    weight: Rows,
    eps: f32,
    pool: &'a Pool,
}

impl InplaceOp3 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        _: &Layout,
        x: &CpuStorage,
        _: &Layout,
        weight: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<()> {
        let x = self.x.of_slice(floats(x)?);
        let weight = self.weight.of_slice(floats(weight)?).row(0);
        self.out
            .of_slice_mut(floats_mut(out)?)
            .for_each(self.pool, GRAIN, |row, out| rms_row(self.pool.isa(), out, x.row(row), weight, self.eps));
        Ok(())
    }
}

/// `out[m, d] = x / sqrt(mean(x^2) + eps) * weight[d]`, row by row.
///
/// # Errors
/// If the shapes do not fit.
pub fn rms_norm(out: &Tensor, x: &Tensor, weight: &Tensor, eps: f32, device: &Device) -> Result<(), KernelError> {
    if let Some(stream) = device.stream() {
        let on = Operands::of("rms_norm", out, stream)?;
        let out = on.rows("out", out)?;
        let x = on.expect("x", x, out.rows as usize, out.cols as usize)?;
        let weight = on.floats("weight", weight, out.cols as usize)?;
        return on.launch(&launch::norm::rms_norm(on.element, out, x, weight, eps));
    }
    let pool = device.pool();
    let view = Rows::of("rms_norm", "out", out)?;
    let op = RmsNorm {
        out: view,
        x: Rows::expect("rms_norm", "x", x, view.rows, view.cols)?,
        weight: Rows::expect("rms_norm", "weight", weight, 1, view.cols)?,
        eps,
        pool,
    };
    Ok(out.inplace_op3(x, weight, &op)?)
}

/// `residual += x`, then `out = rms_norm(residual)`.
///
/// # Errors
/// If the shapes do not fit.
pub fn add_rms_norm(
    out: &Tensor,
    residual: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    device: &Device,
) -> Result<(), KernelError> {
    if let Some(stream) = device.stream() {
        let on = Operands::of("add_rms_norm", out, stream)?;
        let out = on.rows("out", out)?;
        let (rows, cols) = (out.rows as usize, out.cols as usize);
        let residual = on.expect("residual", residual, rows, cols)?;
        let x = on.expect("x", x, rows, cols)?;
        let weight = on.floats("weight", weight, cols)?;
        return on.launch(&launch::norm::add_rms_norm(on.element, out, residual, x, weight, eps));
    }
    let view = Rows::of("add_rms_norm", "residual", residual)?;
    Rows::expect("add_rms_norm", "out", out, view.rows, view.cols)?;
    Rows::expect("add_rms_norm", "weight", weight, 1, view.cols)?;
    add(residual, x, device)?;
    rms_norm(out, residual, weight, eps, device)
}

struct HeadRmsNorm<'a> {
    x: Rows,
    head_dim: usize,
    weight: Rows,
    eps: f32,
    pool: &'a Pool,
}

impl InplaceOp2 for HeadRmsNorm<'_> {
    fn name(&self) -> &'static str {
        "head_rms_norm"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, _: &Layout, weight: &CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let weight = self.weight.of_slice(floats(weight)?).row(0);
        self.x.of_slice_mut(floats_mut(x)?).for_each(self.pool, GRAIN, |_, row| {
            let mut copy = vec![0.0; self.head_dim];
            for head in row.chunks_mut(self.head_dim) {
                copy.copy_from_slice(head);
                rms_row(self.pool.isa(), head, &copy, weight, self.eps);
            }
        });
        Ok(())
    }
}

/// `x[m, heads * head_dim]`, each head of each row normed by `weight[head_dim]` in place (Qwen3's q and k norms). `x` may be a
/// column range of wider rows.
///
/// # Errors
/// If the shapes do not fit.
pub fn head_rms_norm(x: &Tensor, weight: &Tensor, eps: f32, device: &Device) -> Result<(), KernelError> {
    let head_dim = weight.elem_count();
    let view = Rows::of_type("head_rms_norm", "x", x, x.dtype())?;
    if head_dim == 0 || !view.cols.is_multiple_of(head_dim) {
        let expected = format!("a multiple of {head_dim} columns");
        return Err(shape("head_rms_norm", "x", format!("{:?}", x.dims()), &expected));
    }
    if let Some(stream) = device.stream() {
        let on = Operands::of("head_rms_norm", x, stream)?;
        let weight = on.floats("weight", weight, head_dim)?;
        return on.launch(&launch::norm::head_rms_norm(on.element, on.rows("x", x)?, head_dim as u32, weight, eps));
    }
    let (view, pool) = (Rows::of("head_rms_norm", "x", x)?, device.pool());
    let op = HeadRmsNorm {
        x: view,
        head_dim,
        weight: Rows::expect("head_rms_norm", "weight", weight, 1, head_dim)?,
        eps,
        pool,
    };
    Ok(x.inplace_op2(weight, &op)?)
}

struct LayerNorm<'a> {
    x: Rows,
    weight: Rows,
    bias: Rows,
    eps: f32,
    pool: &'a Pool,
}

impl InplaceOp3 for LayerNorm<'_> {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        _: &Layout,
        weight: &CpuStorage,
        _: &Layout,
        bias: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<()> {
        let weight = self.weight.of_slice(floats(weight)?).row(0);
        let bias = self.bias.of_slice(floats(bias)?).row(0);
        self.x.of_slice_mut(floats_mut(x)?).for_each(self.pool, GRAIN, |_, row| {
            layer_row(self.pool.isa(), row, weight, bias, self.eps);
        });
        Ok(())
    }
}

/// `out[m, d] = (x - mean) / sqrt(variance + eps) * weight[d] + bias[d]`, row by row.
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(
    out: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    device: &Device,
) -> Result<(), KernelError> {
    if let Some(stream) = device.stream() {
        let on = Operands::of("layer_norm", out, stream)?;
        let out = on.rows("out", out)?;
        let cols = out.cols as usize;
        let x = on.expect("x", x, out.rows as usize, cols)?;
        let (weight, bias) = (on.floats("weight", weight, cols)?, on.floats("bias", bias, cols)?);
        return on.launch(&launch::norm::layer_norm(on.element, out, x, weight, bias, eps));
    }
    let pool = device.pool();
    copy(out, x, pool)?;
    norm_in_place(out, weight, bias, eps, pool)
}

/// `out = layer_norm(x + residual)`; neither operand changes.
///
/// # Errors
/// If the shapes do not fit.
pub fn add_layer_norm(
    out: &Tensor,
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    device: &Device,
) -> Result<(), KernelError> {
    if let Some(stream) = device.stream() {
        let on = Operands::of("add_layer_norm", out, stream)?;
        let out = on.rows("out", out)?;
        let (rows, cols) = (out.rows as usize, out.cols as usize);
        let x = on.expect("x", x, rows, cols)?;
        let residual = on.expect("residual", residual, rows, cols)?;
        let (weight, bias) = (on.floats("weight", weight, cols)?, on.floats("bias", bias, cols)?);
        return on.launch(&launch::norm::add_layer_norm(on.element, out, x, residual, weight, bias, eps));
    }
    let pool = device.pool();
    copy(out, x, pool)?;
    add(out, residual, device)?;
    norm_in_place(out, weight, bias, eps, pool)
}

fn norm_in_place(out: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32, pool: &Pool) -> Result<(), KernelError> {
    let view = Rows::of("layer_norm", "out", out)?;
    let op = LayerNorm {
        x: view,
        weight: Rows::expect("layer_norm", "weight", weight, 1, view.cols)?,
        bias: Rows::expect("layer_norm", "bias", bias, 1, view.cols)?,
        eps,
        pool,
    };
    Ok(out.inplace_op3(weight, bias, &op)?)
}
