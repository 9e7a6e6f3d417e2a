//! From a packed panel to f32, a stretch of k at a time, in the tile's order `[k][16]`.
//!
//! The stretch goes to a scratch that stays in cache (16 KiB for one row tile), so a matrix is never f32 as a whole, and the tile
//! needs one body for all types. The detour costs a store and a load for each vector; neither uses the ports that the arithmetic
//! waits for.

use crate::lanes::Lanes;
use crate::packed::{Codes, Format, LANES, Min, Quant};

/// Writes the values of `k` (within `0..the panel's k`, on group bounds for quantised types) to `to`.
///
/// # Safety
/// `panel` is a panel of that format, and `to` has room for `16 * k.len()` f32.
#[inline(always)]
pub(crate) unsafe fn unpack<V: Lanes>(format: Format, panel: *const u8, k: std::ops::Range<usize>, to: *mut f32) {
    // SAFETY: all reads lie in the panel and all writes in `to`, by the caller's promise and the panel's order.
    unsafe {
        match format {
            Format::F32 => {
                let from = panel.cast::<f32>().add(k.start * LANES);
                std::ptr::copy_nonoverlapping(from, to, k.len() * LANES);
            }
            Format::F16 => {
                let from = panel.cast::<u16>().add(k.start * LANES);
                for at in 0..k.len() {
                    V::load_f16(from.add(at * LANES)).store(to.add(at * LANES));
                }
            }
            Format::BF16 => {
                let from = panel.cast::<u16>().add(k.start * LANES);
                for at in 0..k.len() {
                    V::load_bf16(from.add(at * LANES)).store(to.add(at * LANES));
                }
            }
            // Each kind of code gets a loop of its own, with nothing to decide inside.
            Format::Quant(quant) => match quant.codes {
                Codes::U4 => groups::<V, U4>(quant, panel, k, to),
                Codes::U8 => groups::<V, U8>(quant, panel, k, to),
                Codes::I8 => groups::<V, I8>(quant, panel, k, to),
            },
        }
    }
}

/// Walks the groups of a stretch: works out each one's scale and minimum, then its values.
///
/// # Safety
/// As [`unpack`].
#[inline(always)]
unsafe fn groups<V: Lanes, C: Code>(quant: Quant, panel: *const u8, k: std::ops::Range<usize>, mut to: *mut f32) {
    let per_block = quant.block / quant.group;
    let (group_bytes, head_bytes) = (quant.group_bytes(), quant.head_bytes());
    let (block_bytes, scale_bytes) = (quant.block_bytes(), group_bytes - quant.code_bytes());
    let (mut block, mut group) = (k.start / quant.block, k.start % quant.block / quant.group);
    // SAFETY: as the caller promised.
    unsafe {
        for _ in 0..k.len() / quant.group {
            let head = panel.add(block * block_bytes);
            let body = head.add(head_bytes + group * group_bytes);
            let mut d = V::load_f16(head.cast());
            if quant.grouped() {
                d = d.mul(V::load_i8(body.cast()));
            }
            let m = match quant.min {
                Min::Zero(zero) => d.mul(V::splat(-zero)),
                Min::Stored => {
                    let m = V::load_f16(head.cast::<u16>().add(LANES));
                    if quant.grouped() { m.mul(V::splat(0.0).sub(V::load_i8(body.add(LANES).cast()))) } else { m }
                }
            };
            C::values(quant.group, body.add(scale_bytes), d, m, to);
            to = to.add(quant.group * LANES);
            group += 1;
            if group == per_block {
                (block, group) = (block + 1, 0);
            }
        }
    }
}

/// One kind of code. (A trait, not a closure: a closure would not be compiled for the caller's instruction set.)
trait Code {
    /// Writes the values of one group: `fma(code, d, m)`.
    ///
    /// # Safety
    /// `codes` are a group's packed codes and `to` has room for 16 times `group` f32.
    unsafe fn values<V: Lanes>(group: usize, codes: *const u8, d: V, m: V, to: *mut f32);
}

struct U4;
struct U8;
struct I8;

impl Code for U4 {
    #[inline(always)]
    unsafe fn values<V: Lanes>(group: usize, codes: *const u8, d: V, m: V, to: *mut f32) {
        for word in 0..group / 8 {
            // SAFETY: 64 bytes hold 8 values of 16 outputs.
            unsafe {
                let eight = V::load_u4(codes.add(word * 64));
                #[allow(clippy::needless_range_loop)]
                for at in 0..8 {
                    eight[at].fma(d, m).store(to.add((word * 8 + at) * LANES));
                }
            }
        }
    }
}

impl Code for U8 {
    #[inline(always)]
    unsafe fn values<V: Lanes>(group: usize, codes: *const u8, d: V, m: V, to: *mut f32) {
        for at in 0..group {
            // SAFETY: 16 bytes hold one value of 16 outputs.
            unsafe { V::load_u8(codes.add(at * LANES)).fma(d, m).store(to.add(at * LANES)) };
        }
    }
}

impl Code for I8 {
    #[inline(always)]
    unsafe fn values<V: Lanes>(group: usize, codes: *const u8, d: V, m: V, to: *mut f32) {
        for at in 0..group {
            // SAFETY: 16 bytes hold one value of 16 outputs.
            unsafe { V::load_i8(codes.add(at * LANES).cast()).fma(d, m).store(to.add(at * LANES)) };
        }
    }
}
