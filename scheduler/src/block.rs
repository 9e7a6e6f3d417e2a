//! One KV block of a pool; see [`crate::blocks`] for its states.

use crate::ids::BlockHash;
use crate::request::NONE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockState {
    Free,
    Private,
    Coming,
    Ready,
}

/// One cache line: blocks are touched in no order.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Block {
    pub(crate) state: BlockState,
    pub(crate) refs: u32,
    /// Slot of the tenant that holds it or has it cached.
    pub(crate) owner: u32,
    pub(crate) hash: BlockHash,
    // Neighbours in the owner's LRU list while it is cached: `older` was released before it.
    pub(crate) older: u32,
    pub(crate) newer: u32,
    /// Waiting requests whose text begins with it; see [`crate::wanted`].
    pub(crate) wanted: u32,
    /// First of the requests parked on it.
    pub(crate) parked: u32,
    /// See [`crate::kin::level_of`], for a ready block.
    pub(crate) level: Option<u8>,
}

impl Block {
    pub(crate) fn vacant() -> Block {
        Block {
            state: BlockState::Free,
            refs: 0,
            owner: 0,
            hash: BlockHash([0; 32]),
            older: NONE,
            newer: NONE,
            wanted: 0,
            parked: NONE,
            level: None,
        }
    }
}
