//! What the simulated KV blocks hold, kept apart from the scheduler's books: a row may only read positions that were computed for the
//! same tokens of the same tenant. Reading a block that was given away too early, or to another tenant, or published
//! before it was computed, is caught here.

use alloc::vec::Vec;

use super::rng::mix;
use crate::BLOCK_LEN;
use crate::ids::{BlockHash, BlockId};

/// The tokens of one request, as far as the simulation tells tokens apart: whole blocks, by a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text {
    pub(crate) tenant: u32,
    /// Key of the shared beginning, and its blocks.
    pub(crate) beginning: u64,
    pub(crate) shared_blocks: u32,
    /// Key of everything after it.
    pub(crate) own: u64,
}

impl Text {
    /// What the tokens of block `n` are, without saying whose.
    fn tokens(&self, n: u32) -> u64 {
        match n < self.shared_blocks {
            true => mix(self.beginning ^ mix(u64::from(n))),
            false => mix(self.own ^ mix(u64::from(n)).rotate_left(1)),
        }
    }

    /// The hash of block `n`. It is not salted, on purpose: two tenants with the same text have the same hashes, and the index has
    /// to keep them apart by itself.
    pub(crate) fn hash(&self, n: u32) -> BlockHash {
        let tokens = self.tokens(n);
        let mut bytes = [0; 32];
        for (word, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&mix(tokens ^ word as u64).to_le_bytes());
        }
        BlockHash(bytes)
    }

    /// What a block holds once it is computed for this text.
    fn content(&self, n: u32) -> u64 {
        mix(self.tokens(n) ^ u64::from(self.tenant).rotate_left(32))
    }
}

/// One model's blocks on one device: what each holds, and how many positions of it.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    blocks: Vec<(u64, u32)>,
}

impl Memory {
    pub(crate) fn new(len: u32) -> Memory {
        Memory { blocks: alloc::vec![(0, 0); len as usize] }
    }

    /// Runs a row: reads everything before `from`, writes `len` positions from there.
    pub(crate) fn run(&mut self, text: &Text, table: &[BlockId], from: u32, len: u32) {
        for (n, block) in (0u32..).zip(table) {
            let start = n * BLOCK_LEN;
            let held = &mut self.blocks[block.0 as usize];
            let content = text.content(n);
            let reads = from.saturating_sub(start).min(BLOCK_LEN);
            if reads > 0 {
                assert!(
                    held.0 == content && held.1 >= reads,
                    "{block:?} is read at position {start} of a text that it does not hold"
                );
            }
            let end = (from + len).saturating_sub(start).min(BLOCK_LEN);
            if end > reads {
                *held = (content, end);
            }
        }
        assert!(table.len() as u32 * BLOCK_LEN >= from + len, "the block table covers the row");
    }

    /// Runs a row of a request that has settled: what it writes is of no use to anybody, and must harm nobody.
    pub(crate) fn scribble(&mut self, table: &[BlockId], from: u32, len: u32) {
        for n in from / BLOCK_LEN..(from + len).div_ceil(BLOCK_LEN) {
            self.blocks[table[n as usize].0 as usize] = (u64::MAX, BLOCK_LEN);
        }
    }
}
