//! A packed panel of codes, as the bodies of the product read it.

use crate::lanes::Lanes;
use crate::packed::{Codes, Format, LANES, Min, Quant, Segment};

/// One panel; see [`crate::packed`] for its order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel {
    pub(super) quant: Quant,
    heads: *const u8,
    scales: *const u8,
    codes: *const u8,
    head_bytes: usize,
    scale_bytes: usize,
    code_bytes: usize,
    /// Groups of a block, as a power of two.
    groups_log2: u32,
    /// Cache lines of a group, its part of the heads included.
    pub(super) group_lines: usize,
}

impl Panel {
    /// A panel of a quantised segment of `k` values.
    pub(super) fn of(segment: &Segment, quant: Quant, k: usize, panel: usize) -> Panel {
        let data = segment.panel(panel).as_ptr();
        Panel {
            quant,
            heads: data,
            scales: data.wrapping_add(quant.scales_at(k)),
            codes: data.wrapping_add(quant.codes_at(k)),
            head_bytes: quant.head_bytes(),
            scale_bytes: quant.scale_bytes(),
            code_bytes: quant.code_bytes(),
            groups_log2: (quant.block / quant.group).trailing_zeros(),
            group_lines: (segment.panel_bytes / (k / quant.group).max(1)).div_ceil(64),
        }
    }

    /// Sixteen outputs' scales of a group.
    ///
    /// # Safety
    /// The panel has the group.
    #[inline(always)]
    pub(super) unsafe fn scale<V: Lanes>(&self, group: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let d = V::load_f16(self.head(group).cast());
            if self.scale_bytes == 0 { d } else { d.mul(V::load_i8(self.scales(group).cast())) }
        }
    }

    /// Their minima, of a type that stores minima.
    ///
    /// # Safety
    /// The panel has the group, and minima.
    #[inline(always)]
    pub(super) unsafe fn min<V: Lanes>(&self, group: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let m = V::load_f16(self.head(group).cast::<u16>().wrapping_add(LANES));
            if self.scale_bytes == 0 {
                return m;
            }
            // K types take their minima away.
            m.mul(V::splat(0.0).sub(V::load_i8(self.scales(group).wrapping_add(LANES).cast())))
        }
    }

    /// Where the panel begins.
    pub(super) fn start(&self) -> *const u8 {
        self.heads
    }

    /// The codes of a group, on a cache line.
    #[inline(always)]
    pub(super) fn codes(&self, group: usize) -> *const u8 {
        self.codes.wrapping_add(group.wrapping_mul(self.code_bytes))
    }

    pub(super) fn has_min(&self) -> bool {
        self.quant.min == Min::Stored
    }

    #[inline(always)]
    fn head(&self, group: usize) -> *const u8 {
        self.heads.wrapping_add((group >> self.groups_log2).wrapping_mul(self.head_bytes))
    }

    #[inline(always)]
    fn scales(&self, group: usize) -> *const u8 {
        self.scales.wrapping_add(group.wrapping_mul(self.scale_bytes))
    }
}

/// The form of a segment's codes, if it is of a quantised type.
pub(super) fn quant_of(segment: &Segment) -> Option<Quant> {
    match segment.format {
        Format::Quant(quant) => Some(quant),
        _ => None,
    }
}

/// Whether codes are half bytes.
pub(super) fn is_half(quant: Quant) -> bool {
    quant.codes == Codes::U4
}
