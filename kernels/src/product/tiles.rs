//! Products with quantised weights by AMX tiles, for many rows.
//!
//! A panel's codes are laid out in bytes once for all rows (types of bytes lie so already), its scales in f32. For each tile of rows
//! and group of k, AMX makes the exact products of 16 rows and 16 outputs, which go through memory (the only way out of a tile) to
//! sixteen vectors of results, each scaled as [`crate::spec::product`] says. The scaling of a tile costs 48 or 64 vector operations
//! for 8,192 multiplications, twice what AMX takes for those; both run side by side because the products of the next four groups are
//! started before these are scaled. Tiles of eight rows serve what is left of the rows.

use std::arch::x86_64::*;

use super::coded::{BLOCK, Coded, TILE_ROWS};
use super::panel::{Panel, is_half, quant_of};
use super::{Job, Part};
use crate::Isa;
use crate::amx::{TILE_BYTES, Tiles};
use crate::lanes::{Avx512, Lanes};
use crate::lines::Lines;
use crate::packed::{LANES, Segment};

/// Blocks of 32 that are laid out at a time: 32 KiB of codes and 8 KiB of scales, which stay in L2.
const STRETCH: usize = 64;
/// Groups whose products are started together.
const TOGETHER: usize = 4;

/// The products of a part of a quantised segment.
pub(super) fn product(isa: Isa, job: &Job, segment: &Segment, part: &Part, scratch: &mut Lines) {
    assert!(isa == Isa::Amx && isa <= Isa::current(), "the pool names an available instruction set");
    // SAFETY: just asserted to be available.
    unsafe { body(job, segment, part, scratch) }
}

/// A stretch of a panel: codes in bytes, and for each group sixteen scales and, if there are any, minima.
#[derive(Clone, Copy)]
struct Laid {
    codes: *const i8,
    scales: *const f32,
    groups: usize,
    /// Room for the sums of [`TOGETHER`] groups, twice: those that are being scaled, and those that AMX works on.
    sums: *mut i32,
}

/// A tile of rows by sixteen outputs, from a stretch on.
#[derive(Clone, Copy)]
struct Spot {
    out: *mut f32,
    stride: usize,
    rows: usize,
    columns: __mmask16,
    /// Go on from what is in `out`.
    resume: bool,
    /// Null, or the outputs' biases: this is the last stretch.
    bias: *const f32,
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn body(job: &Job, segment: &Segment, part: &Part, scratch: &mut Lines) {
    let Some(quant) = quant_of(segment) else { return };
    let per_block = BLOCK / quant.group;
    let (code_bytes, scale_bytes) = (STRETCH * BLOCK * LANES, STRETCH * per_block * 2 * LANES * size_of::<f32>());
    let room = scratch.room(code_bytes + scale_bytes + 2 * TOGETHER * TILE_BYTES).as_mut_ptr();
    let (bytes, scales) = (room, room.wrapping_add(code_bytes).cast::<f32>());
    let sums = room.wrapping_add(code_bytes + scale_bytes).cast::<i32>();
    // SAFETY: AMX is available, and tiles are configured once at a time.
    let mut tiles = unsafe { Tiles::new(rows_of_tile(job, part.tiles.start), quant.group) };
    let mut configured = rows_of_tile(job, part.tiles.start);
    for at in part.panels.clone() {
        let panel = Panel::of(segment, quant, job.k, at);
        let (column, columns) = (segment.first + at * LANES, LANES.min(segment.n - at * LANES));
        let mut block = 0;
        while block < job.coded.blocks || block == 0 {
            let end = job.coded.blocks.min(block + STRETCH);
            let groups = block * per_block..end * per_block;
            // SAFETY: the scratch holds a stretch; the panel has these groups.
            let codes = unsafe { lay_out(panel, groups.clone(), bytes, scales) };
            let laid = Laid { codes, scales, groups: groups.len(), sums };
            for tile in part.tiles.clone() {
                let rows = rows_of_tile(job, tile);
                if rows != configured {
                    drop(tiles);
                    // SAFETY: as above.
                    tiles = unsafe { Tiles::new(rows, quant.group) };
                    configured = rows;
                }
                let row = tile * TILE_ROWS;
                let spot = Spot {
                    out: job.out.wrapping_add(row * job.out_stride + column),
                    stride: job.out_stride,
                    rows: rows.min(job.m - row),
                    columns: ((1u32 << columns) - 1) as __mmask16,
                    resume: block > 0,
                    bias: if end == job.coded.blocks && !job.bias.is_null() {
                        job.bias.wrapping_add(column)
                    } else {
                        std::ptr::null()
                    },
                };
                let x = X { coded: &job.coded, tile, block };
                // SAFETY: the tiles are configured for these rows and groups; the rest is laid out as the types say.
                unsafe {
                    match (rows, quant.group, panel.has_min()) {
                        (16, 32, true) => scaled::<16, 32, true>(&tiles, x, laid, spot),
                        (16, 32, false) => scaled::<16, 32, false>(&tiles, x, laid, spot),
                        (16, _, true) => scaled::<16, 16, true>(&tiles, x, laid, spot),
                        (16, _, false) => scaled::<16, 16, false>(&tiles, x, laid, spot),
                        (_, 32, true) => scaled::<8, 32, true>(&tiles, x, laid, spot),
                        (_, 32, false) => scaled::<8, 32, false>(&tiles, x, laid, spot),
                        (_, _, true) => scaled::<8, 16, true>(&tiles, x, laid, spot),
                        (_, _, false) => scaled::<8, 16, false>(&tiles, x, laid, spot),
                    }
                }
            }
            block += STRETCH;
        }
    }
}

/// Rows that a tile is computed with: 16, or 8 if that many are enough. Slots that have no row hold zeros.
fn rows_of_tile(job: &Job, tile: usize) -> usize {
    if job.m - tile * TILE_ROWS > 8 { 16 } else { 8 }
}

/// Lays out the groups' codes and scales; returns where the codes lie.
///
/// # Safety
/// The panel has these groups, and both rooms a stretch's length.
#[inline(always)]
unsafe fn lay_out(panel: Panel, groups: std::ops::Range<usize>, bytes: *mut u8, mut scales: *mut f32) -> *const i8 {
    let half = is_half(panel.quant);
    let lines = panel.quant.group / 8;
    let mut to = bytes.cast::<__m512i>();
    // SAFETY: the caller's promise.
    unsafe {
        let (mask, zero) = (_mm512_set1_epi8(15), _mm512_set1_epi8(panel.quant.zero()));
        for group in groups.clone() {
            panel.scale::<Avx512>(group).store(scales);
            scales = scales.wrapping_add(LANES);
            if panel.has_min() {
                panel.min::<Avx512>(group).store(scales);
                scales = scales.wrapping_add(LANES);
            }
            if half {
                let from = panel.codes(group).cast::<__m512i>();
                for line in 0..lines {
                    let both = from.wrapping_add(line).read();
                    let low = _mm512_sub_epi8(_mm512_and_si512(both, mask), zero);
                    let high = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16::<4>(both), mask), zero);
                    to.wrapping_add(line).write(low);
                    to.wrapping_add(lines.wrapping_add(line)).write(high);
                }
                to = to.wrapping_add(lines.wrapping_mul(2));
            }
        }
    }
    if half { bytes.cast_const().cast() } else { panel.codes(groups.start).cast() }
}

/// A tile's rows of x, from a block on.
#[derive(Clone, Copy)]
struct X<'a> {
    coded: &'a Coded,
    tile: usize,
    block: usize,
}

/// `R` rows by one panel, over a stretch.
///
/// # Safety
/// Tiles are configured for `R` rows and groups of `GROUP`; `x`, `laid` and `spot` describe what there is.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)]
unsafe fn scaled<const R: usize, const GROUP: usize, const MIN: bool>(tiles: &Tiles, x: X<'_>, laid: Laid, spot: Spot) {
    let slots = x.coded.slots;
    let (block_bytes, block_words) = (x.coded.block_bytes(), x.coded.block_words());
    let codes_bytes = GROUP * LANES;
    let per_block = BLOCK / GROUP;
    let mut acc = [_mm512_setzero_ps(); R];
    // SAFETY: the caller's promise; each pointer walks over what it was made for.
    unsafe {
        if spot.resume {
            for r in 0..R {
                if r < spot.rows {
                    acc[r] = _mm512_maskz_loadu_ps(spot.columns, spot.out.wrapping_add(r.wrapping_mul(spot.stride)));
                }
            }
        }
        let (mut x_codes, mut codes) = (x.coded.codes(x.tile, x.block), laid.codes);
        let (mut words, mut scales) = (x.coded.words(x.tile, x.block), laid.scales);
        // Starts the next groups: four, or one after another what is left of them.
        macro_rules! start {
            ($group:expr, $to:expr) => {
                let left = laid.groups.wrapping_sub($group);
                if left >= TOGETHER {
                    let second = x_codes.wrapping_add(if GROUP == BLOCK { block_bytes } else { GROUP });
                    let third = x_codes.wrapping_add(block_bytes.wrapping_mul(2 / per_block));
                    let fourth = second.wrapping_add(block_bytes.wrapping_mul(2 / per_block));
                    tiles.products([x_codes, second, third, fourth], codes, $to);
                    x_codes = x_codes.wrapping_add(block_bytes.wrapping_mul(TOGETHER / per_block));
                    codes = codes.wrapping_add(TOGETHER * codes_bytes);
                } else {
                    for at in 0..left {
                        let x = x_codes.wrapping_add(block_bytes.wrapping_mul(at / per_block));
                        let codes = codes.wrapping_add(at.wrapping_mul(codes_bytes));
                        let to: *mut i32 = $to;
                        tiles.product(
                            x.wrapping_add(at % per_block * GROUP),
                            codes,
                            to.wrapping_add(at * (TILE_BYTES / 4)),
                        );
                    }
                }
            };
        }
        // Where the sums to be scaled lie, and the next ones.
        let (mut group, mut from) = (0usize, laid.sums);
        let mut other = laid.sums.wrapping_add(TOGETHER * TILE_BYTES / 4);
        start!(0, from);
        while group < laid.groups {
            if group.wrapping_add(TOGETHER) < laid.groups {
                start!(group.wrapping_add(TOGETHER), other);
            }
            let together = laid.groups.wrapping_sub(group).min(TOGETHER);
            for at in 0..together {
                let from = from.wrapping_add(at * (TILE_BYTES / 4));
                let d = _mm512_load_ps(scales);
                scales = scales.wrapping_add(LANES);
                for r in 0..R {
                    let products = _mm512_cvtepi32_ps(_mm512_load_si512(from.wrapping_add(r * LANES).cast()));
                    let scale = _mm512_mul_ps(d, _mm512_set1_ps(*words.wrapping_add(r)));
                    acc[r] = _mm512_fmadd_ps(products, scale, acc[r]);
                }
                if MIN {
                    let m = _mm512_load_ps(scales);
                    scales = scales.wrapping_add(LANES);
                    for r in 0..R {
                        let values = if GROUP == BLOCK {
                            *words.wrapping_add(slots.wrapping_add(r))
                        } else {
                            let plane = slots.wrapping_mul(3 + at % 2);
                            *words.wrapping_add(r) * *words.cast::<i32>().wrapping_add(plane.wrapping_add(r)) as f32
                        };
                        acc[r] = _mm512_fmadd_ps(m, _mm512_set1_ps(values), acc[r]);
                    }
                }
                if at % per_block == per_block - 1 {
                    words = words.wrapping_add(block_words);
                }
            }
            group = group.wrapping_add(TOGETHER);
            (from, other) = (other, from);
        }
        for r in 0..R {
            if r < spot.rows {
                let mut value = acc[r];
                if !spot.bias.is_null() {
                    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(spot.columns, spot.bias));
                }
                _mm512_mask_storeu_ps(spot.out.wrapping_add(r.wrapping_mul(spot.stride)), spot.columns, value);
            }
        }
    }
}
