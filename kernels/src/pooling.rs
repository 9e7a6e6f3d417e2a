//! From the rows of an encoder's packed batch to one vector a segment.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Tensor};

use crate::elementwise::{check_lens, gather_rows};
use crate::operands::{Indices, Operands, Segments};
use crate::view::{Rows, floats, floats_mut};
use crate::{Device, KernelError, Pool, launch, spec};

struct MeanPool<'a> {
    out: Rows,
    x: Rows,
    lens: &'a [u32],
    pool: &'a Pool,
}

impl InplaceOp2 for MeanPool<'_> {
    fn name(&self) -> &'static str {
        "mean_pool"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, _: &Layout, x: &CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let x = self.x.of_slice(floats(x)?);
        let starts = starts(self.lens);
        self.out.of_slice_mut(floats_mut(out)?).for_each(self.pool, 1, |segment, out| {
            let rows = starts[segment]..starts[segment] + self.lens[segment] as usize;
            out.fill(0.0);
            let inverse = 1.0 / rows.len() as f32;
            for row in rows {
                out.iter_mut().zip(x.row(row)).for_each(|(out, x)| *out += x);
            }
            out.iter_mut().for_each(|out| *out *= inverse);
        });
        Ok(())
    }
}

/// First row of each segment.
pub(crate) fn starts(lens: &[u32]) -> Vec<usize> {
    lens.iter()
        .scan(0, |next, len| {
            let start = *next;
            *next += *len as usize;
            Some(start)
        })
        .collect()
}

/// `out[segment, d]` = the mean of the segment's rows of `x[m, d]`; segments of `lens` rows follow each other.
///
/// # Errors
/// If the shapes do not fit or a segment is empty.
pub fn mean_pool(out: &Tensor, x: &Tensor, segments: &Segments, device: &Device) -> Result<(), KernelError> {
    let source = Rows::of_type("mean_pool", "x", x, x.dtype())?;
    let lens = segments.lens();
    check_lens("mean_pool", lens, source.rows)?;
    if let Some(stream) = device.stream() {
        let on = Operands::of("mean_pool", x, stream)?;
        let (out, x) = (on.expect("out", out, lens.len(), source.cols)?, on.rows("x", x)?);
        return on.launch(&launch::pooling::mean_pool(on.element, out, x, segments.starts().on(stream)?));
    }
    let (source, pool) = (Rows::of("mean_pool", "x", x)?, device.pool());
    let op = MeanPool { out: Rows::expect("mean_pool", "out", out, lens.len(), source.cols)?, x: source, lens, pool };
    Ok(out.inplace_op2(x, &op)?)
}

/// `out[segment, d]` = the first row of the segment in `x[m, d]`.
///
/// # Errors
/// If the shapes do not fit or a segment is empty.
pub fn cls_pool(out: &Tensor, x: &Tensor, segments: &Segments, device: &Device) -> Result<(), KernelError> {
    check_lens("cls_pool", segments.lens(), Rows::of_type("cls_pool", "x", x, x.dtype())?.rows)?;
    let (_, first_rows) = segments.starts().host().split_last().expect("there is always the end");
    gather_rows(out, x, &Indices::from(first_rows), device)
}

struct L2Normalize<'a> {
    x: Rows,
    pool: &'a Pool,
}

impl InplaceOp1 for L2Normalize<'_> {
    fn name(&self) -> &'static str {
        "l2_normalize"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        self.x.of_slice_mut(floats_mut(x)?).for_each(self.pool, 1 << 14, |_, row| spec::l2_normalize(row));
        Ok(())
    }
}

/// Divides each row of `x[m, d]` by its Euclidean length, in place.
///
/// # Errors
/// If `x` is not rows of f32.
pub fn l2_normalize(x: &Tensor, device: &Device) -> Result<(), KernelError> {
    if let Some(stream) = device.stream() {
        let on = Operands::of("l2_normalize", x, stream)?;
        return on.launch(&launch::pooling::l2_normalize(on.element, on.rows("x", x)?));
    }
    let op = L2Normalize { x: Rows::of("l2_normalize", "x", x)?, pool: device.pool() };
    Ok(x.inplace_op1(&op)?)
}
