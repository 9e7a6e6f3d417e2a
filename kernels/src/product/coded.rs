//! Rows of x in eight bits: what products with quantised weights read.
//!
//! Each 32 values of a row have a scale ([`spec::code_block`]). Rows lie in tiles of up to 16, so that a tile's part of a block is one
//! stretch of memory: `[tile][block][slot][32]` codes, and beside them `[tile][block][plane][slot]` words: the scale, the sum of the
//! block's values (f32), and the sums of the codes of the whole block and its halves (i32). A tile has 16 slots, or
//! fewer where there are fewer rows: the next power of two.

use crate::lanes::{Lanes, per_isa};
use crate::lines::Lines;
use crate::view::RowsRef;
use crate::{Isa, Pool, spec};

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// Values that share a scale.
pub(super) const BLOCK: usize = 32;

/// What a block keeps of each row, beside its codes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Plane {
    /// f32.
    Scale = 0,
    /// f32: the sum of the values, as they are coded.
    Values = 1,
    /// i32: the sum of the codes.
    Sum = 2,
    /// i32: of the first sixteen.
    Low = 3,
    /// i32: of the others.
    High = 4,
}

pub(super) const PLANES: usize = 5;

/// Rows that have been coded; they live in the scratch that they were coded into.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coded {
    codes: *const i8,
    words: *const f32,
    pub(super) slots: usize,
    pub(super) blocks: usize,
}

impl Coded {
    /// No rows.
    pub(super) const NONE: Coded = Coded { codes: std::ptr::null(), words: std::ptr::null(), slots: 0, blocks: 0 };

    /// Codes `m` rows of `k` values (a whole number of blocks) into `scratch`, shared over the pool.
    pub(super) fn of(scratch: &mut Lines, x: RowsRef<'_, f32>, pool: &Pool) -> Coded {
        let (m, k) = (x.view.rows, x.view.cols);
        let (blocks, slots) = (k / BLOCK, m.next_power_of_two().min(TILE_ROWS));
        let tiles = m.div_ceil(TILE_ROWS);
        let codes_len = (tiles * blocks * slots * BLOCK).next_multiple_of(64);
        let room = scratch.room(codes_len + tiles * blocks * PLANES * slots * size_of::<f32>());
        let codes = room.as_mut_ptr();
        let coded =
            Coded { codes: codes.cast(), words: codes.wrapping_add(codes_len).cast_const().cast(), slots, blocks };
        let target = Target { codes: codes.cast(), words: codes.wrapping_add(codes_len).cast(), slots, blocks };
        let target = &target;
        let one = |slot: usize| {
            let (tile, at) = (slot / slots, slot % slots);
            // SAFETY: the room has just been taken for all slots of all tiles; each slot is written by one call.
            unsafe { code_row(pool.isa(), (slot < m).then(|| x.row(slot)), target.slot(tile, at)) };
        };
        // Slots without a row are written too: their results are thrown away, but must not be slow to compute.
        let rows_per_task = (1 << 13) / k.max(1) + 1;
        pool.run((tiles * slots).div_ceil(rows_per_task), |task| {
            (task * rows_per_task..((task + 1) * rows_per_task).min(tiles * slots)).for_each(one);
        });
        coded
    }

    /// Codes of a tile from a block on: `[slot][32]`, the next block [`Coded::block_bytes`] on.
    #[inline(always)]
    pub(super) fn codes(&self, tile: usize, block: usize) -> *const i8 {
        self.codes.wrapping_add((tile * self.blocks + block) * self.block_bytes())
    }

    /// Words of a tile from a block on: `[plane][slot]`, the next block [`Coded::block_words`] on.
    #[inline(always)]
    pub(super) fn words(&self, tile: usize, block: usize) -> *const f32 {
        self.words.wrapping_add((tile * self.blocks + block) * self.block_words())
    }

    #[inline(always)]
    pub(super) fn block_bytes(&self) -> usize {
        self.slots * BLOCK
    }

    #[inline(always)]
    pub(super) fn block_words(&self) -> usize {
        self.slots * PLANES
    }
}

/// [`Coded`] while it is written.
struct Target {
    codes: *mut i8,
    words: *mut f32,
    slots: usize,
    blocks: usize,
}

// SAFETY: tasks write disjoint slots of memory that outlives the region.
unsafe impl Sync for Target {}

/// Where one row goes.
#[derive(Debug, Clone, Copy)]
struct Slot {
    codes: *mut i8,
    words: *mut f32,
    slots: usize,
    blocks: usize,
}

impl Target {
    fn slot(&self, tile: usize, slot: usize) -> Slot {
        Slot {
            codes: self.codes.wrapping_add((tile * self.blocks * self.slots + slot) * BLOCK),
            words: self.words.wrapping_add(tile * self.blocks * self.slots * PLANES + slot),
            slots: self.slots,
            blocks: self.blocks,
        }
    }
}

/// Writes a row, or zeros, into its slot.
///
/// # Safety
/// The slot is memory of its own, and the row as long as its blocks.
unsafe fn code_row(isa: Isa, x: Option<&[f32]>, slot: Slot) {
    match x {
        Some(x) => code_blocks(isa, x, slot),
        None => {
            for block in 0..slot.blocks {
                // SAFETY: the caller's promise.
                unsafe { write(slot, block, &[0; BLOCK], 0.0) };
            }
        }
    }
}

per_isa! {
    fn code_blocks(x: &[f32], slot: Slot) = code_blocks_body
}

/// The plain body; each instance is compiled for its instruction set, which is what makes it fast.
#[inline(always)]
fn code_blocks_body<V: Lanes>(x: &[f32], slot: Slot) {
    for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let mut codes = [0; BLOCK];
        let scale = spec::code_block(x, &mut codes);
        // SAFETY: the promise of `code_row`.
        unsafe { write(slot, block, &codes, scale) };
    }
}

/// # Safety
/// The slot is memory of its own and has this block.
#[inline(always)]
unsafe fn write(slot: Slot, block: usize, codes: &[i8; BLOCK], scale: f32) {
    let mut sums = [0i32; 2];
    for half in 0..2 {
        for at in 0..BLOCK / 2 {
            sums[half] = sums[half].wrapping_add(i32::from(codes[half * (BLOCK / 2) + at]));
        }
    }
    let sum = sums[0].wrapping_add(sums[1]);
    let words = slot.words.wrapping_add(block.wrapping_mul(slot.slots * PLANES));
    let word = |plane: Plane| words.wrapping_add((plane as usize).wrapping_mul(slot.slots));
    // SAFETY: the caller's promise.
    unsafe {
        slot.codes.wrapping_add(block.wrapping_mul(slot.slots * BLOCK)).cast::<[i8; BLOCK]>().write_unaligned(*codes);
        word(Plane::Scale).write(scale);
        word(Plane::Values).write(scale * sum as f32);
        word(Plane::Sum).cast::<i32>().write(sum);
        word(Plane::Low).cast::<i32>().write(sums[0]);
        word(Plane::High).cast::<i32>().write(sums[1]);
    }
}
