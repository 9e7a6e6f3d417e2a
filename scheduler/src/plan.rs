//! A step as it goes out ([`StepPlan`]) and as it comes back ([`StepReport`]).

use alloc::vec::Vec;

use crate::ids::{BlockId, DeviceId, ModelId, Nanos, RequestId, StepId};

/// A stretch of [`StepPlan::blocks`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockRange {
    /// Index of the first block.
    pub start: u32,
    /// How many blocks.
    pub len: u32,
}

/// What a row does in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// Computes the tokens at positions `from .. from + len` of a sequence.
    Generate {
        /// Position of the first new token; after a preemption it starts over, at 0 or behind what the cache still has.
        from: u32,
        /// New tokens, at least 1. The last of them may be one that an earlier step still in flight is about to draw: the
        /// caller sees that from the number of tokens it knows, and says "the id you sampled last for me".
        len: u32,
        /// The row catches up with the known tokens and draws one id.
        samples: bool,
        /// The sequence's blocks in order, covering positions `0 .. from + len` and perhaps more; see [`StepPlan::blocks_of`].
        blocks: BlockRange,
    },
    /// Embeds one item whole.
    Embed {
        /// Index into the request's `lens`.
        item: u32,
        /// Its tokens.
        len: u32,
    },
}

/// One sequence's (or item's) part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanRow {
    /// Whose row it is.
    pub request: RequestId,
    /// What it does.
    pub kind: RowKind,
}

impl PlanRow {
    /// New tokens that the row computes.
    pub fn len(&self) -> u32 {
        match self.kind {
            RowKind::Generate { len, .. } | RowKind::Embed { len, .. } => len,
        }
    }

    /// Never true: a row computes at least one token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One forward pass of one model on one device. Made once by the caller and filled again for every step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// Which step; the report names it.
    pub step: StepId,
    /// Where it runs.
    pub device: DeviceId,
    /// What it runs.
    pub model: ModelId,
    /// The rows; the report's outcomes come in this order.
    pub rows: Vec<PlanRow>,
    /// The block tables of all generation rows, one after the other.
    pub blocks: Vec<BlockId>,
}

impl Default for StepPlan {
    fn default() -> StepPlan {
        StepPlan::new()
    }
}

impl StepPlan {
    /// An empty plan, to be filled by [`crate::Scheduler::next_step`].
    pub fn new() -> StepPlan {
        StepPlan { step: StepId(0), device: DeviceId(0), model: ModelId(0), rows: Vec::new(), blocks: Vec::new() }
    }

    /// The blocks that a row's range stands for.
    pub fn blocks_of(&self, range: BlockRange) -> &[BlockId] {
        let start = range.start as usize;
        &self.blocks[start..start + range.len as usize]
    }

    /// New tokens over all rows.
    pub fn tokens(&self) -> u64 {
        self.rows.iter().map(|row| u64::from(row.len())).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.blocks.clear();
    }
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowOutcome {
    /// The row computed its tokens; if it samples, one id was drawn and the request goes on. For an embedding row: that item
    /// is done. A request ends by itself after its last item, or after the last token it was admitted for.
    Advanced,
    /// The row computed its tokens and the caller judged a stop. For an embedding row the same as `Advanced`.
    Finished,
    /// The row gave no usable result (NaN, say). The request ends as failed and none of its blocks stays in the prefix index.
    Failed,
}

/// A finished step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepReport<'a> {
    /// Which step; steps of a device finish in the order in which they were planned.
    pub step: StepId,
    /// Time the device worked on it, by the device's clock.
    pub device_time: Nanos,
    /// One outcome for each row of the plan, in its order. For a row whose request has settled meanwhile any outcome will do.
    pub rows: &'a [RowOutcome],
}
