//! The prefix index: from (tenant, hash) to the block that holds, or is about to hold, those tokens.
//!
//! One table, twice as long as the pool or more, with open addressing: an entry is at its home or behind it, with no gap between. It allocates
//! nothing after the pool is made, and what it finds depends on nothing but what is in it. The hashes are uniform already (they are
//! keyed digests), so their first four bytes, mixed with the tenant, are kept beside the block, and the low bits of these are the home: a prompt that is not
//! cached asks for many hashes that are not there, each is a line of memory that nobody looked at lately, and should not be two. The
//! tenant is part of the key although its salt is part of the hash: a block of one tenant is not found for another even if a caller
//! forgot the salt.

use alloc::vec::Vec;
use core::hint::black_box;

use crate::block::Block;
use crate::ids::BlockHash;
use crate::request::NONE;

#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Four bytes of the block's hash, mixed with its tenant.
    tag: u32,
    /// The block, or [`NONE`].
    block: u32,
}

const EMPTY: Entry = Entry { tag: 0, block: NONE };

/// Entries of blocks that were given up, which are taken out together: each is a line of memory that nobody looked at lately. Until then
/// nothing may be looked for.
pub(crate) struct Left {
    entries: [Entry; 32],
    len: usize,
}

impl Left {
    pub(crate) fn none() -> Left {
        Left { entries: [EMPTY; 32], len: 0 }
    }
}

/// Other tenants' blocks of the same hash have homes elsewhere, or a text that all of them use would fill a stretch of the table.
fn tag(tenant: u32, hash: &BlockHash) -> u32 {
    let mut tag = [0; 4];
    tag.copy_from_slice(&hash.0[..4]);
    u32::from_le_bytes(tag) ^ tenant.wrapping_mul(0x9e37_79b9)
}

fn tag_of(block: &Block) -> u32 {
    tag(block.owner, &block.hash)
}

impl Prefix {
    pub(crate) fn new(blocks: u32) -> Prefix {
        let len = (blocks.max(1) as usize * 2).next_power_of_two();
        Prefix { entries: alloc::vec![EMPTY; len] }
    }

    fn home(&self, tag: u32) -> usize {
        tag as usize & (self.entries.len() - 1)
    }

    fn after(&self, place: usize) -> usize {
        (place + 1) & (self.entries.len() - 1)
    }

    pub(crate) fn find(&self, blocks: &[Block], tenant: u32, hash: &BlockHash) -> Option<u32> {
        let tag = tag(tenant, hash);
        let mut place = self.home(tag);
        loop {
            let entry = self.entries[place];
            if entry.block == NONE {
                return None;
            }
            if entry.tag == tag {
                let block = &blocks[entry.block as usize];
                if block.owner == tenant && block.hash == *hash {
                    return Some(entry.block);
                }
            }
            place = self.after(place);
        }
    }

    /// Has the entries of these hashes brought into the processor's cache, all at once: one after the other, each would be waited for.
    pub(crate) fn fetch(&self, tenant: u32, hashes: &[BlockHash]) {
        let sum = hashes.iter().fold(0, |sum, hash| sum ^ self.entries[self.home(tag(tenant, hash))].block);
        black_box(sum);
    }

    /// Enters a block under its owner and hash, which must not be there yet.
    pub(crate) fn insert(&mut self, blocks: &[Block], at: u32) {
        let tag = tag_of(&blocks[at as usize]);
        let mut place = self.home(tag);
        while self.entries[place].block != NONE {
            place = self.after(place);
        }
        self.entries[place] = Entry { tag, block: at };
    }

    pub(crate) fn remove(&mut self, blocks: &[Block], at: u32) {
        self.take_out(tag_of(&blocks[at as usize]), at);
    }

    /// The block's entry, which is still in the index when the block already holds something else.
    pub(crate) fn leave(&mut self, left: &mut Left, blocks: &[Block], at: u32) {
        if left.len == left.entries.len() {
            self.remove_left(left);
        }
        left.entries[left.len] = Entry { tag: tag_of(&blocks[at as usize]), block: at };
        left.len += 1;
    }

    /// Takes out what was left in, all of it fetched at once.
    pub(crate) fn remove_left(&mut self, left: &mut Left) {
        let entries = &left.entries[..core::mem::take(&mut left.len)];
        black_box(entries.iter().fold(0, |sum, entry| sum ^ self.entries[self.home(entry.tag)].block));
        for entry in entries {
            self.take_out(entry.tag, entry.block);
        }
    }

    fn take_out(&mut self, tag: u32, at: u32) {
        let mut gap = self.home(tag);
        while self.entries[gap].block != at {
            assert!(self.entries[gap].block != NONE, "an indexed block is behind its home");
            gap = self.after(gap);
        }
        // Those behind it move up, unless that would be before their homes.
        let mut place = self.after(gap);
        while self.entries[place].block != NONE {
            let entry = self.entries[place];
            let behind = |from: usize| place.wrapping_sub(from) & (self.entries.len() - 1);
            if behind(self.home(entry.tag)) >= behind(gap) {
                self.entries[gap] = entry;
                gap = place;
            }
            place = self.after(place);
        }
        self.entries[gap] = EMPTY;
    }

    pub(crate) fn entries(&self) -> usize {
        self.entries.iter().filter(|entry| entry.block != NONE).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockState;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_entered_is_found_until_it_is_removed(
            changes in proptest::collection::vec((0u32..12, 0u8..40, 0u32..2), 1..200),
        ) {
            let mut blocks = alloc::vec![Block::vacant(); 12];
            let mut index = Prefix::new(12);
            for (at, key, tenant) in changes {
                // Few hashes and fewer homes, the last of the table among them: entries pile up and run over its end.
                let mut hash = BlockHash([0xff; 32]);
                (hash.0[0], hash.0[4]) = (0xfc + key % 4, key);
                let (is_in, found) = (blocks[at as usize].state == BlockState::Ready, index.find(&blocks, tenant, &hash));
                if is_in {
                    index.remove(&blocks, at);
                    blocks[at as usize].state = BlockState::Free;
                } else if found.is_none() {
                    let block = &mut blocks[at as usize];
                    (block.owner, block.hash, block.state) = (tenant, hash, BlockState::Ready);
                    index.insert(&blocks, at);
                }
                let listed: Vec<&Block> = blocks.iter().filter(|block| block.state == BlockState::Ready).collect();
                prop_assert_eq!(index.entries(), listed.len());
                for (at, block) in (0u32..).zip(&blocks).filter(|(_, block)| block.state == BlockState::Ready) {
                    prop_assert_eq!(index.find(&blocks, block.owner, &block.hash), Some(at));
                }
            }
        }
    }
}
