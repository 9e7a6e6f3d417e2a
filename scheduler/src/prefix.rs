//! The prefix index: from (tenant, hash) to the block that holds, or is about to hold, those tokens.
//!
//! Chains hang off a fixed array of buckets and run through the blocks themselves, so the index allocates nothing after the pool
//! is made and its order depends on nothing but its history. The hashes are uniform already (they are keyed digests), so
//! their first bytes choose the bucket. The tenant is part of the key although its salt is part of the hash: a block of one
//! tenant is not found for another even if a caller forgot the salt.

use alloc::vec::Vec;

use crate::blocks::Block;
use crate::ids::BlockHash;
use crate::request::NONE;

#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    buckets: Vec<u32>,
}

impl Prefix {
    pub(crate) fn new(blocks: u32) -> Prefix {
        let buckets = (blocks.max(1) as usize).next_power_of_two();
        Prefix { buckets: alloc::vec![NONE; buckets] }
    }

    fn bucket(&self, hash: &BlockHash) -> usize {
        let mut first = [0; 8];
        first.copy_from_slice(&hash.0[..8]);
        (u64::from_le_bytes(first) as usize) & (self.buckets.len() - 1)
    }

    pub(crate) fn find(&self, blocks: &[Block], tenant: u32, hash: &BlockHash) -> Option<u32> {
        let mut at = self.buckets[self.bucket(hash)];
        while at != NONE {
            let block = &blocks[at as usize];
            if block.owner == tenant && block.hash == *hash {
                return Some(at);
            }
            at = block.chain;
        }
        None
    }

    /// Enters a block under its owner and hash, which must not be there yet.
    pub(crate) fn insert(&mut self, blocks: &mut [Block], at: u32) {
        let block = &mut blocks[at as usize];
        let bucket = self.bucket(&block.hash);
        block.chain = self.buckets[bucket];
        self.buckets[bucket] = at;
    }

    pub(crate) fn remove(&mut self, blocks: &mut [Block], at: u32) {
        let block = &blocks[at as usize];
        let (bucket, after) = (self.bucket(&block.hash), block.chain);
        if self.buckets[bucket] == at {
            self.buckets[bucket] = after;
            return;
        }
        let mut before = self.buckets[bucket];
        while before != NONE {
            let next = blocks[before as usize].chain;
            if next == at {
                blocks[before as usize].chain = after;
                return;
            }
            before = next;
        }
        panic!("an indexed block hangs in its bucket");
    }

    pub(crate) fn entries(&self, blocks: &[Block]) -> usize {
        let mut count = 0;
        for &bucket in &self.buckets {
            let mut at = bucket;
            while at != NONE {
                count += 1;
                at = blocks[at as usize].chain;
            }
        }
        count
    }
}
