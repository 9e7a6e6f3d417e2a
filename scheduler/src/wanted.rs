//! Which cached blocks go first: those that nobody waits for.
//!
//! A request that waits *wants* the cached blocks that its text begins with, from the moment it is queued until it starts or leaves. A
//! tenant's cached blocks are in two lines, those that nobody wants and those that somebody does, and each gives up the one released
//! longest ago, the first line before the other. By age alone, the blocks of a conversation that has just ended would outlast those of one
//! whose next turn waits already, and this one would be computed again for nothing. Whose block goes is decided by what tenants
//! hold, and not by what they want: many waiting requests get a tenant no more room.
//!
//! Wanting is a hint, and counted as such: what is computed after a request was queued, or again after it was evicted, is not wanted
//! by it. Nothing but the order of eviction comes of it.
//!
//! Cost: a look for each wanted block when a request is queued, another when it starts or leaves.

use crate::BLOCK_LEN;
use crate::block::BlockState;
use crate::blocks::Pool;
use crate::request::{NONE, Request};

/// A tenant's cached blocks in the order in which they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    oldest: u32,
    newest: u32,
}

impl Default for Line {
    fn default() -> Line {
        Line { oldest: NONE, newest: NONE }
    }
}

impl Pool {
    /// The request is queued, and so many tokens of it were found. The last blocks come first, so that a beginning outlives its end.
    pub(crate) fn want(&mut self, request: &Request) {
        for n in (0..(request.need.cached / BLOCK_LEN) as usize).rev() {
            let Some(at) = self.find(request.tenant, &request.hashes[n]) else { continue };
            self.set_wanted(at, self.blocks[at as usize].wanted + 1);
        }
    }

    /// The request is queued no more. If it starts, it has noted the blocks that are still there.
    pub(crate) fn unwant(&mut self, request: &Request) {
        for n in (0..(request.need.cached / BLOCK_LEN) as usize).rev() {
            let at = match request.blocks.is_empty() {
                true => self.find(request.tenant, &request.hashes[n]),
                false => request.blocks.get(n).map(|block| block.0),
            };
            if let Some(at) = at {
                self.set_wanted(at, self.blocks[at as usize].wanted.saturating_sub(1));
            }
        }
    }

    fn set_wanted(&mut self, at: u32, wanted: u32) {
        let block = &mut self.blocks[at as usize];
        let cached = block.refs == 0 && block.state == BlockState::Ready;
        if cached && (block.wanted == 0) != (wanted == 0) {
            self.unlink(at);
            self.blocks[at as usize].wanted = wanted;
            self.link_newest(at);
        } else {
            block.wanted = wanted;
        }
    }

    /// The tenant's cached block that goes first.
    pub(crate) fn oldest(&self, tenant: u32) -> u32 {
        let oldest = self.held[tenant as usize].lines.iter().map(|line| line.oldest).find(|at| *at != NONE);
        oldest.expect("a tenant with cached blocks has an oldest one")
    }

    /// Takes a cached block out of its line.
    pub(crate) fn unlink(&mut self, at: u32) {
        let (older, newer) = (self.blocks[at as usize].older, self.blocks[at as usize].newer);
        match older {
            NONE => self.line(at).oldest = newer,
            _ => self.blocks[older as usize].newer = newer,
        }
        match newer {
            NONE => self.line(at).newest = older,
            _ => self.blocks[newer as usize].older = older,
        }
    }

    /// Puts a cached block last into its line.
    pub(crate) fn link_newest(&mut self, at: u32) {
        let older = core::mem::replace(&mut self.line(at).newest, at);
        let block = &mut self.blocks[at as usize];
        (block.older, block.newer) = (older, NONE);
        match older {
            NONE => self.line(at).oldest = at,
            _ => self.blocks[older as usize].newer = at,
        }
    }

    fn line(&mut self, at: u32) -> &mut Line {
        let block = &self.blocks[at as usize];
        &mut self.held[block.owner as usize].lines[usize::from(block.wanted > 0)]
    }

    /// Recounts a tenant's lines, and returns how many blocks are in them.
    pub(crate) fn check_lines(&self, tenant: u32) -> u32 {
        let mut cached = 0;
        for (wanted, line) in self.held[tenant as usize].lines.iter().enumerate() {
            let (mut older, mut at) = (NONE, line.oldest);
            while at != NONE {
                let block = &self.blocks[at as usize];
                assert_eq!((block.owner, block.older, usize::from(block.wanted > 0)), (tenant, older, wanted));
                cached += 1;
                (older, at) = (at, block.newer);
            }
            assert_eq!(line.newest, older);
        }
        cached
    }
}
