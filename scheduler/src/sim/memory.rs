//! What the simulated KV blocks hold, kept apart from the scheduler's books: a row may only read positions that were computed for the
//! same tokens of the same tenant. Reading a block that was given away too early, or to another tenant, or published
//! before it was computed, is caught here; and so is a block that two requests have rows in flight with, one of them writing.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::given::block_number;
use super::rng::mix;
use crate::BLOCK_LEN;
use crate::ids::{BlockHash, BlockId, RequestId};

/// The tokens of one request, as far as the simulation tells tokens apart: whole blocks, by a key.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) tenant: u32,
    /// Key of the shared beginning, and its blocks.
    pub(crate) beginning: u64,
    pub(crate) shared_blocks: u32,
    /// Key of everything after it.
    pub(crate) own: u64,
    /// The blocks of a given text, which come before all others.
    pub(crate) given: Option<Arc<[(u64, u32)]>>,
}

impl Text {
    /// What the tokens of block `n` are, without saying whose.
    fn tokens(&self, n: u32) -> u64 {
        if let Some(number) = self.given.as_ref().and_then(|runs| block_number(runs, n)) {
            return mix(mix(number) ^ 1);
        }
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

/// Several requests' rows are in flight with the block.
const SEVERAL: RequestId = RequestId(u64::MAX);

#[derive(Clone, Copy, Debug)]
struct Block {
    /// What it holds, and how many positions of it.
    content: u64,
    len: u32,
    /// Rows in flight that read or write it, and of them those that write it.
    users: u32,
    writers: u32,
    /// Whose rows those are.
    user: RequestId,
    /// A row of the request that holds it failed: who starts from now on must not find it in the cache.
    tainted: bool,
}

/// One model's blocks on one device.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    blocks: Vec<Block>,
}

impl Memory {
    pub(crate) fn new(len: u32) -> Memory {
        let block = Block { content: 0, len: 0, users: 0, writers: 0, user: SEVERAL, tainted: false };
        Memory { blocks: alloc::vec![block; len as usize] }
    }

    /// A row is planned: from now until it has run, nobody else may write what it reads, and nobody else may touch what it writes.
    /// `cached` leading blocks were found in the cache by a request that starts with this row.
    pub(crate) fn plan(&mut self, request: RequestId, table: &[BlockId], from: u32, len: u32, cached: u32) {
        assert!(table.len() as u32 * BLOCK_LEN >= from + len, "the block table covers the row");
        for (n, block) in touched(table, from, len) {
            let writes = (n + 1) * BLOCK_LEN > from;
            let held = &mut self.blocks[block.0 as usize];
            assert!(
                held.users == 0 || held.user == request || !writes && held.writers == 0,
                "{block:?} is written by one request and used by another at a time"
            );
            assert!(n >= cached || !held.tainted, "{block:?} is found in the cache after its row failed");
            held.user = if held.users == 0 || held.user == request { request } else { SEVERAL };
            held.users += 1;
            held.writers += u32::from(writes);
        }
    }

    /// Runs a row: reads everything before `from`, writes `len` positions from there. Without a text it has settled meanwhile:
    /// what it writes is of no use to anybody, and must harm nobody.
    pub(crate) fn run(&mut self, text: Option<&Text>, table: &[BlockId], from: u32, len: u32) {
        for (n, block) in touched(table, from, len) {
            let start = n * BLOCK_LEN;
            let held = &mut self.blocks[block.0 as usize];
            let reads = from.saturating_sub(start).min(BLOCK_LEN);
            let end = (from + len).saturating_sub(start).min(BLOCK_LEN);
            held.users -= 1;
            held.writers -= u32::from(end > reads);
            let content = text.map(|text| text.content(n));
            assert!(
                reads == 0 || content.is_none_or(|content| held.content == content && held.len >= reads),
                "{block:?} is read at position {start} of a text that it does not hold"
            );
            if end > reads {
                (held.content, held.len) = (content.unwrap_or(u64::MAX), end);
                held.tainted = false;
            }
        }
    }

    /// A row failed: none of its request's blocks is to be found from now on.
    pub(crate) fn taint(&mut self, table: &[BlockId], computed: u32) {
        for (_, block) in touched(table, 0, computed) {
            self.blocks[block.0 as usize].tainted = true;
        }
    }
}

/// The blocks that hold positions up to the end of a row, with their numbers.
fn touched(table: &[BlockId], from: u32, len: u32) -> impl Iterator<Item = (u32, &BlockId)> {
    (0u32..).zip(table).take((from + len).div_ceil(BLOCK_LEN) as usize)
}
