//! Attention both ways inside the segments of a packed batch: encoders.
//!
//! A task takes one head of one segment. It copies the head's keys, turned to `[head_dim][positions]` and padded to whole chunks of
//! 32 positions, and then takes the queries a row tile at a time: all scores, their maximum, weights, and the weighted sum of the
//! values, chunk after chunk. The scores of one tile lie `[chunk][rows][32]`, as the product tile writes and reads them.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};

use crate::elementwise::check_lens;
use crate::lanes::{Lanes, per_isa};
use crate::launch::segment::SegmentShape;
use crate::lines::Lines;
use crate::math::exp_real;
use crate::operands::{Operands, Segments};
use crate::packed::LANES;
use crate::pooling::starts;
use crate::tile::{self, Steps, Target};
use crate::view::{Rows, RowsRef, floats, floats_mut, shape};
use crate::{Device, KernelError, Pool};

/// Positions in a chunk: two panels.
const CHUNK: usize = 2 * LANES;

thread_local! {
    /// A thread's turned keys, queries and scores.
    static SCRATCH: RefCell<Lines> = RefCell::default();
}

struct SegmentAttention<'a> {
    out: Rows,
    qkv: Rows,
    lens: &'a [u32],
    heads: usize,
    head_dim: usize,
    scale: f32,
    pool: &'a Pool,
}

/// One head of one segment.
struct Task<'a> {
    qkv: RowsRef<'a, f32>,
    /// First row of the segment, and its rows.
    start: usize,
    len: usize,
    /// First column of the head's queries; keys and values lie `width` and `2 * width` further.
    column: usize,
    width: usize,
    dim: usize,
    scale: f32,
    /// The segment's first row and the head's first column of the output.
    out: *mut f32,
    out_stride: usize,
}

/// A pointer that tasks share, each writing its own part.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: tasks write disjoint heads of disjoint segments.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// As `pointer::add`.
    unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

impl InplaceOp2 for SegmentAttention<'_> {
    fn name(&self) -> &'static str {
        "segment_attention"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, _: &Layout, qkv: &CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let qkv = self.qkv.of_slice(floats(qkv)?);
        let starts = starts(self.lens);
        let out = self.out.of_slice_mut(floats_mut(out)?);
        let out_stride = out.view.stride;
        let all = Shared(out.data.as_mut_ptr());
        self.pool.run(self.lens.len() * self.heads, |task| {
            let (segment, head) = (task / self.heads, task % self.heads);
            let (start, column) = (starts[segment], head * self.head_dim);
            let task = Task {
                qkv,
                start,
                len: self.lens[segment] as usize,
                column,
                width: self.heads * self.head_dim,
                dim: self.head_dim,
                scale: self.scale,
                // SAFETY: the segment's rows and the head's columns exist in `out`.
                out: unsafe { all.at(start * out_stride + column) },
                out_stride,
            };
            SCRATCH.with_borrow_mut(|scratch| attend(self.pool.isa(), &task, scratch));
        });
        Ok(())
    }
}

per_isa! {
    fn attend(task: &Task<'_>, scratch: &mut Lines) = attend_body
}

#[inline(always)]
fn attend_body<V: Lanes>(task: &Task<'_>, scratch: &mut Lines) {
    let Task { len, dim, .. } = *task;
    let chunks = len.div_ceil(CHUNK);
    let padded = chunks * CHUNK;
    let sizes = [dim * padded, V::ROWS * dim, V::ROWS * padded];
    let scratch = scratch.floats(sizes.iter().sum());
    let (keys, scratch) = scratch.split_at_mut(sizes[0]);
    let (packed, weights) = scratch.split_at_mut(sizes[1]);
    for position in 0..padded {
        let places = keys[position..].iter_mut().step_by(padded);
        if position < len {
            let row = task.qkv.row(task.start + position);
            for (place, key) in places.zip(&row[task.width + task.column..]) {
                *place = *key;
            }
        } else {
            places.for_each(|place| *place = 0.0);
        }
    }
    let tiles = len.div_ceil(V::ROWS);
    for tile in 0..tiles {
        let (first, end) = (tile * len / tiles, (tile + 1) * len / tiles);
        let rows = end - first;
        for r in 0..rows {
            let q = &task.qkv.row(task.start + first + r)[task.column..][..dim];
            for (place, q) in packed[r..].iter_mut().step_by(rows).zip(q) {
                *place = q * task.scale;
            }
        }
        let panels = if rows * 2 <= V::ACCUMULATORS { 2 } else { 1 };
        for chunk in 0..chunks {
            for panel in (0..2).step_by(panels) {
                let steps = Steps {
                    k: dim,
                    x: packed.as_ptr(),
                    w: keys[chunk * CHUNK + panel * LANES..].as_ptr(),
                    row: padded,
                    panel: LANES,
                    resume: false,
                };
                let target =
                    Target { out: weights[chunk * rows * CHUNK + panel * LANES..].as_mut_ptr(), stride: CHUNK };
                // SAFETY: queries are `[dim][rows]`, keys `[dim][padded]`, and the chunk has `[rows][32]` weights.
                unsafe { tile::run_narrow::<V, 0>(rows, panels, steps, target) };
            }
        }
        let mut inverse = [0.0f32; 16];
        for (r, inverse) in inverse[..rows].iter_mut().enumerate() {
            // SAFETY: row r of every chunk holds 32 weights.
            *inverse = 1.0 / unsafe { soften::<V>(&mut weights[r * CHUNK..], rows * CHUNK, len) };
        }
        // SAFETY: the tile's rows and the head's columns exist in `out`, and no other task has them.
        unsafe {
            let out = task.out.add(first * task.out_stride);
            blend::<V>(task, rows, weights, out);
            for (r, inverse) in inverse[..rows].iter().enumerate() {
                let row = std::slice::from_raw_parts_mut(out.add(r * task.out_stride), dim);
                row.iter_mut().for_each(|out| *out *= inverse);
            }
        }
    }
}

/// Turns the scores of one query into weights and returns their sum. Chunks of 32 lie `stride` apart; those past `len` become zero.
///
/// # Safety
/// `scores` holds `len` positions in whole chunks.
#[inline(always)]
unsafe fn soften<V: Lanes>(scores: &mut [f32], stride: usize, len: usize) -> f32 {
    let chunks = len.div_ceil(CHUNK);
    let last = (chunks - 1) * stride;
    scores[last + len - (chunks - 1) * CHUNK..last + CHUNK].fill(f32::NEG_INFINITY);
    let scores = scores.as_mut_ptr();
    // SAFETY: the caller's promise.
    unsafe {
        let mut max = V::splat(f32::NEG_INFINITY);
        for chunk in 0..chunks {
            for half in 0..2 {
                max = V::load(scores.add(chunk * stride + half * LANES)).max(max);
            }
        }
        let max = V::splat(max.reduce_max());
        let mut sum = V::splat(0.0);
        for chunk in 0..chunks {
            for half in 0..2 {
                let at = scores.add(chunk * stride + half * LANES);
                let weight = exp_real(V::load(at).sub(max));
                weight.store(at);
                sum = sum.add(weight);
            }
        }
        sum.reduce()
    }
}

/// `out[rows][dim] = weights . values`, chunk after chunk.
///
/// # Safety
/// `weights` are `[chunk][rows][32]`; `out` has these rows and columns.
#[inline(always)]
unsafe fn blend<V: Lanes>(task: &Task<'_>, rows: usize, weights: &[f32], out: *mut f32) {
    let Task { len, dim, .. } = *task;
    let widest = if rows * 2 <= V::ACCUMULATORS { 2 } else { 1 };
    for chunk in 0..len.div_ceil(CHUNK) {
        let first = chunk * CHUNK;
        let values = &task.qkv.data[(task.start + first) * task.qkv.view.stride + 2 * task.width + task.column..];
        let mut column = 0;
        while column < dim {
            let panels = if dim - column >= widest * LANES { widest } else { 1 };
            // SAFETY: the caller's promise; the chunk's positions are rows of qkv, dim is a multiple of 16.
            unsafe {
                let steps = Steps {
                    k: CHUNK.min(len - first),
                    x: weights.as_ptr().add(chunk * rows * CHUNK),
                    w: values.as_ptr().add(column),
                    row: task.qkv.view.stride,
                    panel: LANES,
                    resume: chunk > 0,
                };
                let target = Target { out: out.add(column), stride: task.out_stride };
                tile::run_narrow::<V, CHUNK>(rows, panels, steps, target);
            }
            column += panels * LANES;
        }
    }
}

/// `out[m, heads * head_dim]`: every token attends to all tokens of its own segment. `qkv` is `[m, 3 * heads * head_dim]`, q then
/// k then v; segments of `lens` rows follow each other.
///
/// # Errors
/// If the shapes do not fit or a segment is empty.
pub fn segment_attention(
    out: &Tensor,
    qkv: &Tensor,
    segments: &Segments,
    heads: usize,
    head_dim: usize,
    scale: f32,
    device: &Device,
) -> Result<(), KernelError> {
    const OP: &str = "segment_attention";
    let rows = Rows::of_type(OP, "out", out, out.dtype())?.rows;
    let lens = segments.lens();
    check_lens(OP, lens, rows)?;
    if head_dim == 0 || !head_dim.is_multiple_of(16) {
        return Err(shape(OP, "head_dim", head_dim.to_string(), "a multiple of 16"));
    }
    let width = heads * head_dim;
    if let Some(stream) = device.stream() {
        let on = Operands::of(OP, out, stream)?;
        let (out, qkv) = (on.expect("out", out, rows, width)?, on.expect("qkv", qkv, rows, 3 * width)?);
        let (plan, words) = segments
            .plan(SegmentShape { heads: heads as u32, head_dim: head_dim as u32, element: on.element }, stream)?;
        return plan.launches(out, qkv, scale, words)?.iter().try_for_each(|launch| on.launch(launch));
    }
    let pool = device.pool();
    let op = SegmentAttention {
        out: Rows::expect(OP, "out", out, rows, width)?,
        qkv: Rows::expect(OP, "qkv", qkv, rows, 3 * width)?,
        lens,
        heads,
        head_dim,
        scale,
        pool,
    };
    Ok(out.inplace_op2(qkv, &op)?)
}
