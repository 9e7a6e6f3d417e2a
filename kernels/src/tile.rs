//! The register tile that products and attention are made of.
//!
//! `R` rows of x times `P` panels of 16 columns: `acc[r][p] = fma(x[k][r], w[p][k], acc[r][p])` for k in order. x is packed
//! `[k][R]`, so one step reads R neighbouring scalars; w is a panel `[k][16]` of f32. With AVX-512 the tile of 12 rows by 2 panels
//! keeps 24 accumulators in registers and starts 24 independent chains, three times what hides the latency of the
//! multiply-add. The order over k never depends on R or P, so a row's result is the same in every tile.

use crate::lanes::Lanes;
use crate::packed::LANES;

/// Where a tile's results go: its rows lie `stride` apart, all columns of its panels exist.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) out: *mut f32,
    pub(crate) stride: usize,
}

/// What a tile's panels are made of: f32, or f16 that is converted as it is read.
pub(crate) trait Weight: Copy {
    /// # Safety
    /// 16 values are readable at `from`.
    unsafe fn lanes<V: Lanes>(from: *const Self) -> V;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn lanes<V: Lanes>(from: *const f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
}

impl Weight for u16 {
    #[inline(always)]
    unsafe fn lanes<V: Lanes>(from: *const u16) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from) }
    }
}

/// One call of a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps<W> {
    /// Steps over k in this call.
    pub(crate) k: usize,
    /// `[k][R]`, or `[R][X]` where a tile is told a row length X.
    pub(crate) x: *const f32,
    /// First panel, `[k][16]` with `row` values from one k to the next.
    pub(crate) w: W,
    pub(crate) row: usize,
    /// Values from one panel to the next.
    pub(crate) panel: usize,
    /// Go on from what is in `out` (a later part of k) instead of zero.
    pub(crate) resume: bool,
}

impl Steps<()> {
    /// These steps over these panels.
    #[inline(always)]
    pub(crate) fn over<W>(self, w: *const W) -> Steps<*const W> {
        Steps { k: self.k, x: self.x, w, row: self.row, panel: self.panel, resume: self.resume }
    }
}

/// Rows of a tile over f16 at most; with more of them, converting first is cheaper.
pub(crate) const HALF_ROWS_MAX: usize = 4;

macro_rules! choose {
    ($panels:expr, $rows:expr, $steps:expr, $target:expr, $x:expr,
     $($width:literal: [$($count:literal)*])*) => {
        match ($panels, $rows) {
            // SAFETY: the promise of the function that chooses.
            $($(($width, $count) => unsafe { tile::<V, _, $x, $count, $width>($steps, $target) },)*)*
            _ => unreachable!("no tile has {} rows by {} panels", $rows, $panels),
        }
    };
}

/// Runs a tile of `rows` by 1, 2 or 4 `panels`, rows * panels being at most `V::ACCUMULATORS` (or rows one).
///
/// # Safety
/// `steps` and `target` describe readable and writable memory of the shapes above.
#[inline(always)]
pub(crate) unsafe fn run<V: Lanes>(rows: usize, panels: usize, steps: Steps<*const f32>, target: Target) {
    choose!(panels, rows, steps, target, 0,
        1: [1 2 3 4 5 6 7 8 9 10 11 12]
        2: [1 2 3 4 5 6 7 8 9 10 11 12]
        4: [1 2 3 4 5 6]);
}

/// As [`run`] with 1 or 2 panels, x lying `[rows][X]` unless X is 0.
///
/// # Safety
/// As [`run`].
#[inline(always)]
pub(crate) unsafe fn run_narrow<V: Lanes, const X: usize>(
    rows: usize,
    panels: usize,
    steps: Steps<*const f32>,
    target: Target,
) {
    choose!(panels, rows, steps, target, X,
        1: [1 2 3 4 5 6 7 8 9 10 11 12]
        2: [1 2 3 4 5 6 7 8 9 10 11 12]);
}

/// As [`run_narrow`] for f16 panels, with at most [`HALF_ROWS_MAX`] rows.
///
/// # Safety
/// As [`run`].
#[inline(always)]
pub(crate) unsafe fn run_half<V: Lanes, const X: usize>(
    rows: usize,
    panels: usize,
    steps: Steps<*const u16>,
    target: Target,
) {
    choose!(panels, rows, steps, target, X,
        1: [1 2 3 4]
        2: [1 2 3 4]);
}

/// # Safety
/// As [`run`].
#[inline(always)]
#[allow(clippy::needless_range_loop)]
unsafe fn tile<V: Lanes, W: Weight, const X: usize, const R: usize, const P: usize>(
    steps: Steps<*const W>,
    target: Target,
) {
    // Decided at compile time: shapes that a narrower machine never asks for cost it no code.
    if R * P > V::ACCUMULATORS.max(P) || R > V::ROWS {
        unreachable!("the caller keeps to the registers");
    }
    let mut acc = [[V::splat(0.0); P]; R];
    // Plain indices and nothing but loads and stores around them: only loops that unroll whole leave `acc` in registers.
    // SAFETY: pointers stay inside the shapes that the caller promised: R rows, P panels, k steps.
    unsafe {
        if steps.resume {
            let mut from = target.out.cast_const();
            for r in 0..R {
                for p in 0..P {
                    acc[r][p] = V::load(from.wrapping_add(p * LANES));
                }
                from = from.wrapping_add(target.stride);
            }
        }
        let (mut x, mut w) = (steps.x, steps.w);
        for _ in 0..steps.k {
            let mut weights = [V::splat(0.0); P];
            for p in 0..P {
                weights[p] = W::lanes(w.wrapping_add(p.wrapping_mul(steps.panel)));
            }
            for r in 0..R {
                let x = V::splat(*x.wrapping_add(if X == 0 { r } else { r * X }));
                for p in 0..P {
                    acc[r][p] = x.fma(weights[p], acc[r][p]);
                }
            }
            x = x.wrapping_add(if X == 0 { R } else { 1 });
            w = w.wrapping_add(steps.row);
        }
        let mut to = target.out;
        for r in 0..R {
            for p in 0..P {
                acc[r][p].store(to.wrapping_add(p * LANES));
            }
            to = to.wrapping_add(target.stride);
        }
    }
}

/// # Safety
/// `cols` f32 (16, if it is more) are readable at `from`.
#[inline(always)]
pub(crate) unsafe fn load_part<V: Lanes>(from: *const f32, cols: usize) -> V {
    if cols >= LANES {
        // SAFETY: the caller's promise.
        return unsafe { V::load(from) };
    }
    let mut lanes = [0.0; LANES];
    // SAFETY: the caller's promise; the array holds 16.
    unsafe {
        std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), cols.min(LANES));
        V::load(lanes.as_ptr())
    }
}

/// # Safety
/// `cols` f32 (16, if it is more) are writable at `to`.
#[inline(always)]
pub(crate) unsafe fn store_part<V: Lanes>(value: V, to: *mut f32, cols: usize) {
    if cols >= LANES {
        // SAFETY: the caller's promise.
        return unsafe { value.store(to) };
    }
    let mut lanes = [0.0; LANES];
    // SAFETY: the caller's promise; the array holds 16.
    unsafe {
        value.store(lanes.as_mut_ptr());
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, cols.min(LANES));
    }
}

/// Packs rows `[R][k]` into `[k][R]`.
pub(crate) fn pack_rows<'a>(to: &mut [f32], rows: usize, k: usize, row: impl Fn(usize) -> &'a [f32]) {
    for r in 0..rows {
        let places = to[r..].iter_mut().step_by(rows);
        for (place, value) in places.zip(&row(r)[..k]) {
            *place = *value;
        }
    }
}
