//! Products with quantised weights by vectors: the body of every machine for few rows, and of machines without AMX for many.
//!
//! A panel's codes are read once for up to [`Dots::ROWS_TOGETHER`] rows. For each group of k and row, sixteen outputs' products are
//! summed in whole numbers, four values of k at a time, and scaled into the row's result ([`crate::spec::product`]).
//!
//! A decoding row is bound by memory: a 4-bit group of 16 outputs is five cache lines, some 70 cycles of this core's share, and
//! 14 cycles of arithmetic. So a unit reads its panels one after another, straight through, and asks for lines well ahead, across
//! the page bounds where the hardware stops.

use super::coded::{BLOCK, Plane, TILE_ROWS};
use super::panel::{Panel, is_half, quant_of};
use super::{Job, Part};
use crate::lanes::{Dots, per_dots};
use crate::packed::{LANES, Segment};
use crate::tile::{load_part, store_part};

/// How far ahead of the group that is read lines are asked for.
const AHEAD: usize = 4096;

per_dots! {
    /// The products of a part of a quantised segment, for all of the part's rows.
    pub(super) fn product(job: &Job, segment: &Segment, part: &Part) = few_body
}

#[inline(always)]
fn few_body<V: Dots>(job: &Job, segment: &Segment, part: &Part) {
    let Some(quant) = quant_of(segment) else { return };
    for at in part.panels.clone() {
        let panel = Panel::of(segment, quant, job.k, at);
        for tile in part.tiles.clone() {
            let rows = TILE_ROWS.min(job.m - tile * TILE_ROWS);
            let mut slot = 0;
            while slot < rows {
                let together = [8, 4, 2, 1].into_iter().find(|r| *r <= V::ROWS_TOGETHER && *r <= rows - slot);
                let to = Spot { tile, slot, column: segment.first + at * LANES, columns: segment.n - at * LANES };
                // SAFETY: the panel and the rows exist, and no other task has these rows and outputs.
                unsafe {
                    match (together, is_half(quant), quant.group) {
                        (Some(8), true, 32) => rows_of::<V, 8, true, 32>(job, panel, to),
                        (Some(8), true, _) => rows_of::<V, 8, true, 16>(job, panel, to),
                        (Some(8), false, 32) => rows_of::<V, 8, false, 32>(job, panel, to),
                        (Some(8), false, _) => rows_of::<V, 8, false, 16>(job, panel, to),
                        (Some(4), true, 32) => rows_of::<V, 4, true, 32>(job, panel, to),
                        (Some(4), true, _) => rows_of::<V, 4, true, 16>(job, panel, to),
                        (Some(4), false, 32) => rows_of::<V, 4, false, 32>(job, panel, to),
                        (Some(4), false, _) => rows_of::<V, 4, false, 16>(job, panel, to),
                        (Some(2), true, 32) => rows_of::<V, 2, true, 32>(job, panel, to),
                        (Some(2), true, _) => rows_of::<V, 2, true, 16>(job, panel, to),
                        (Some(2), false, 32) => rows_of::<V, 2, false, 32>(job, panel, to),
                        (Some(2), false, _) => rows_of::<V, 2, false, 16>(job, panel, to),
                        (_, true, 32) => rows_of::<V, 1, true, 32>(job, panel, to),
                        (_, true, _) => rows_of::<V, 1, true, 16>(job, panel, to),
                        (_, false, 32) => rows_of::<V, 1, false, 32>(job, panel, to),
                        (_, false, _) => rows_of::<V, 1, false, 16>(job, panel, to),
                    }
                }
                slot += together.unwrap_or(1);
            }
        }
    }
}

/// Rows of a tile from `slot` on, and where their results go.
#[derive(Clone, Copy)]
struct Spot {
    tile: usize,
    slot: usize,
    column: usize,
    /// Columns from there on; those past the panel's belong to others.
    columns: usize,
}

/// `R` rows by one panel.
///
/// # Safety
/// The job has these rows, and the panel is of its k.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
unsafe fn rows_of<V: Dots, const R: usize, const HALF: bool, const GROUP: usize>(job: &Job, panel: Panel, spot: Spot) {
    if R > V::ROWS_TOGETHER {
        unreachable!("the caller keeps to the registers");
    }
    let coded = &job.coded;
    let (block_bytes, block_words, slots) = (coded.block_bytes(), coded.block_words(), coded.slots);
    let mut x = coded.codes(spot.tile, 0).wrapping_add(spot.slot * BLOCK);
    let mut words = coded.words(spot.tile, 0).wrapping_add(spot.slot);
    let offset = i32::from(panel.quant.zero()) + if HALF { 0 } else { V::BIAS };
    let has_min = panel.has_min();
    let mut ahead = panel.start().wrapping_add(AHEAD);
    let mut acc = [V::splat(0.0); R];
    // SAFETY: x and words walk over the blocks of the tile's rows, the codes over the panel's groups.
    unsafe {
        let mut group = 0;
        for _ in 0..coded.blocks {
            for half in 0..BLOCK / GROUP {
                let codes = panel.codes(group);
                for line in 0..panel.group_lines {
                    V::prefetch(ahead.wrapping_add(line.wrapping_mul(64)));
                }
                ahead = ahead.wrapping_add(panel.group_lines.wrapping_mul(64));
                let sum = words.cast::<i32>().wrapping_add(slots.wrapping_mul(match (GROUP, half) {
                    (32, _) => Plane::Sum as usize,
                    (_, 0) => Plane::Low as usize,
                    _ => Plane::High as usize,
                }));
                let mut sums = [V::sums(0); R];
                if offset != 0 {
                    for r in 0..R {
                        sums[r] = V::sums((*sum.wrapping_add(r)).wrapping_mul(-offset));
                    }
                }
                let x = x.wrapping_add(half * GROUP);
                if HALF {
                    for j in 0..GROUP / 8 {
                        let (low, high) = V::nibbles(codes.wrapping_add(j * 64));
                        for r in 0..R {
                            let x = x.wrapping_add(r * BLOCK + j * 4);
                            sums[r] = V::dot_nibbles(sums[r], low, x.cast::<i32>().read_unaligned());
                            let x = x.wrapping_add(GROUP / 2).cast::<i32>().read_unaligned();
                            sums[r] = V::dot_nibbles(sums[r], high, x);
                        }
                    }
                } else {
                    for j in 0..GROUP / 4 {
                        let bytes = V::bytes(codes.wrapping_add(j * 64));
                        for r in 0..R {
                            let x = x.wrapping_add(r * BLOCK + j * 4).cast::<i32>().read_unaligned();
                            sums[r] = V::dot_bytes(sums[r], bytes, x);
                        }
                    }
                }
                let d = panel.scale::<V>(group);
                for r in 0..R {
                    let scale = d.mul(V::splat(*words.wrapping_add(r)));
                    acc[r] = V::of_sums(sums[r]).fma(scale, acc[r]);
                }
                if has_min {
                    let m = panel.min::<V>(group);
                    for r in 0..R {
                        let values = if GROUP == BLOCK {
                            *words.wrapping_add(slots.wrapping_add(r))
                        } else {
                            *words.wrapping_add(r) * *sum.wrapping_add(r) as f32
                        };
                        acc[r] = m.fma(V::splat(values), acc[r]);
                    }
                }
                group = group.wrapping_add(1);
            }
            x = x.wrapping_add(block_bytes);
            words = words.wrapping_add(block_words);
        }
        for r in 0..R {
            let mut value = acc[r];
            if !job.bias.is_null() {
                value = value.add(load_part::<V>(job.bias.wrapping_add(spot.column), spot.columns));
            }
            let row = spot.tile * TILE_ROWS + spot.slot + r;
            store_part(value, job.out.wrapping_add(row * job.out_stride + spot.column), spot.columns);
        }
    }
}
