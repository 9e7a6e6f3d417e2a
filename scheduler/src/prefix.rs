//! The prefix index: from (tenant, hash) to the block that holds, or is about to hold, those tokens.
//!
//! Chains hang off a fixed array of buckets and run through one link per block, so the index allocates nothing after the pool
//! is made and its order depends on nothing but its history. The hashes are uniform already (they are keyed digests), so
//! their first bytes choose the bucket, and the next four are kept beside the link: a prompt that is not cached asks for many hashes that
//! are not there, and should not fetch a block for each. The tenant is part of the key although its salt is part of the hash: a
//! block of one tenant is not found for another even if a caller forgot the salt.

use alloc::vec::Vec;

use crate::blocks::Block;
use crate::ids::BlockHash;
use crate::request::NONE;

#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    buckets: Vec<u32>,
    /// By block.
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    /// Four bytes of the block's hash.
    tag: u32,
    /// The next block in the bucket.
    next: u32,
}

impl Prefix {
    pub(crate) fn new(blocks: u32) -> Prefix {
        let buckets = (blocks.max(1) as usize * 2).next_power_of_two();
        let link = Link { tag: 0, next: NONE };
        Prefix { buckets: alloc::vec![NONE; buckets], links: alloc::vec![link; blocks as usize] }
    }

    /// A hash's bucket and tag.
    fn place(&self, hash: &BlockHash) -> (usize, u32) {
        let (mut first, mut tag) = ([0; 8], [0; 4]);
        first.copy_from_slice(&hash.0[..8]);
        tag.copy_from_slice(&hash.0[8..12]);
        ((u64::from_le_bytes(first) as usize) & (self.buckets.len() - 1), u32::from_le_bytes(tag))
    }

    pub(crate) fn find(&self, blocks: &[Block], tenant: u32, hash: &BlockHash) -> Option<u32> {
        let (bucket, tag) = self.place(hash);
        let mut at = self.buckets[bucket];
        while at != NONE {
            let link = self.links[at as usize];
            if link.tag == tag {
                let block = &blocks[at as usize];
                if block.owner == tenant && block.hash == *hash {
                    return Some(at);
                }
            }
            at = link.next;
        }
        None
    }

    /// Enters a block under its owner and hash, which must not be there yet.
    pub(crate) fn insert(&mut self, blocks: &[Block], at: u32) {
        let (bucket, tag) = self.place(&blocks[at as usize].hash);
        self.links[at as usize] = Link { tag, next: self.buckets[bucket] };
        self.buckets[bucket] = at;
    }

    pub(crate) fn remove(&mut self, blocks: &[Block], at: u32) {
        let (bucket, _) = self.place(&blocks[at as usize].hash);
        let after = self.links[at as usize].next;
        if self.buckets[bucket] == at {
            self.buckets[bucket] = after;
            return;
        }
        let mut before = self.buckets[bucket];
        while before != NONE {
            let next = self.links[before as usize].next;
            if next == at {
                self.links[before as usize].next = after;
                return;
            }
            before = next;
        }
        panic!("an indexed block hangs in its bucket");
    }

    pub(crate) fn entries(&self) -> usize {
        let mut count = 0;
        for &bucket in &self.buckets {
            let mut at = bucket;
            while at != NONE {
                count += 1;
                at = self.links[at as usize].next;
            }
        }
        count
    }
}
