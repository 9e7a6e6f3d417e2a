//! From a packed panel to f32, a stretch of k at a time, in the tile's order `[k][16]`.
//!
//! The stretch goes to a scratch that stays in cache (16 KiB for one row tile), so a matrix is never f32 as a whole, and the tile
//! needs one body for all types. The detour costs a store and a load for each vector; neither uses the ports that the arithmetic
//! waits for.

use crate::lanes::Lanes;
use crate::packed::{Format, LANES};

/// Writes the values of `k` (within `0..the panel's k`) to `to`.
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
            Format::Quant(_) => unreachable!("codes are multiplied as they are"),
        }
    }
}
