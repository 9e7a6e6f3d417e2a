//! One request's state, and the slab they live in.

use alloc::vec::Vec;

use crate::BLOCK_LEN;
use crate::admit::Work;
use crate::event::End;
use crate::ids::{BlockHash, BlockId, Nanos, RequestId, StepId};
use crate::kin::Ties;
use crate::model::Need;
use crate::share::Virtual;
use crate::targets::First;
use crate::why::Watch;

/// "No request", where a slot is meant.
pub(crate) const NONE: u32 = u32::MAX;

/// A request's place in its tenant's order: when it counts as having arrived, then the order of admission. Smaller is sooner.
pub(crate) type Rank = (u64, u64);

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The slot is free.
    Free,
    /// In its lane's queue.
    Waiting,
    /// Out of the queue until another request has computed the block it needs next (or gave up on it).
    Parked,
    /// Holds its blocks and gets rows.
    Running,
    /// Preempted while rows of it were in flight: it goes back to the queue when they have ended.
    Draining,
    /// Cancelled, or out of quota, while rows of it were in flight: it settles when they have ended, for the tenant pays for them.
    Ending,
    /// Settled while rows of it were in flight: it only keeps its blocks until they have ended.
    Ghost,
}

/// A slot of the slab. What every row of it needs lies in its first 192 bytes, three cache lines: a step touches hundreds of requests, none of
/// which was looked at lately, so that lines are what a row costs. The third holds the times of its watch.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Request {
    pub(crate) generation: u32,
    pub(crate) state: State,
    /// It embeds a list of items, rather than going on with a text.
    pub(crate) is_list: bool,
    pub(crate) uses_cache: bool,
    /// Redo does not advance the tenant's virtual time, because the tenant was inside its floor when it was preempted.
    pub(crate) redo_free: bool,
    /// Slot of its tenant.
    pub(crate) tenant: u32,
    /// Tokens (or items) whose values the caller knows: the prompt and what was drawn.
    pub(crate) known: u32,
    /// Tokens (or items) whose computation was reported.
    pub(crate) computed: u32,
    /// `computed` and what is in flight.
    pub(crate) planned: u32,
    /// Rows in flight that draw an id.
    pub(crate) drawing: u32,
    /// Ids drawn.
    pub(crate) drawn: u32,
    /// Ids it may draw, and positions (or items) that will be computed at most; see [`Request::set_work`].
    draws_max: u32,
    limit: u32,
    /// Rows in flight.
    pub(crate) in_flight: u32,
    /// The last step that a row of it was planned for.
    pub(crate) last_step: StepId,
    /// Blocks from the first on that are in the prefix index, or need not be looked at again.
    pub(crate) published: u32,
    /// Positions below this were computed before a preemption: computing them again is redo.
    pub(crate) redo_until: u32,

    /// Virtual time held for it while it runs; see [`crate::share`].
    pub(crate) held: Virtual,
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) charge: Nanos,
    /// Slots of its device and model.
    pub(crate) device: u32,
    pub(crate) model: u32,
    /// Where its time goes.
    pub(crate) watch: Watch,

    pub(crate) rank: Rank,
    /// Known hashes of its full blocks, in order.
    pub(crate) hashes: Vec<BlockHash>,
    pub(crate) work: Work,
    pub(crate) preemptions: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) admitted_at: Nanos,
    pub(crate) started_at: Option<Nanos>,
    /// What its plan's TTFT target was accepted on; none once its first token was drawn.
    pub(crate) first: Option<First>,
    /// How many of its blocks were counted as coming free, since it gets no more rows.
    pub(crate) yields: u32,
    /// Device time it is expected to take, counted in its model's demand while it waits.
    pub(crate) estimate: Nanos,

    /// What it is expected to need, counted in its model's sums while it waits.
    pub(crate) need: Need,
    /// The last step its device had planned when it joined the queue.
    pub(crate) queued_at: StepId,
    /// How it ends, while it is [`State::Ending`].
    pub(crate) ending: End,
    /// One before it in its group has the same prompt: where that one computes it, this one finds it. Counts while it waits.
    pub(crate) is_sibling: bool,
    /// It was given its device by name, and goes to no other.
    pub(crate) pinned: bool,
    /// Position in its lane's queue while it waits.
    pub(crate) queue_pos: u32,
    /// Its place among its kin.
    pub(crate) ties: Ties,
    /// The next request parked on the same block, and that block.
    pub(crate) parked_next: u32,
    pub(crate) parked_on: u32,
}
impl Request {
    fn vacant() -> Request {
        Request {
            generation: 0,
            state: State::Free,
            is_list: false,
            draws_max: 0,
            limit: 0,
            tenant: 0,
            device: 0,
            model: 0,
            rank: (0, 0),
            work: Work::Embed { lens: Vec::new() },
            known: 0,
            computed: 0,
            planned: 0,
            drawing: 0,
            drawn: 0,
            in_flight: 0,
            last_step: StepId(0),
            blocks: Vec::new(),
            yields: 0,
            hashes: Vec::new(),
            uses_cache: false,
            published: 0,
            redo_until: 0,
            redo_free: false,
            preemptions: 0,
            cached_tokens: 0,
            admitted_at: Nanos::ZERO,
            started_at: None,
            first: None,
            charge: Nanos::ZERO,
            watch: Watch::default(),
            held: 0,
            estimate: Nanos::ZERO,
            need: Need::default(),
            queued_at: StepId(0),
            ending: End::Cancelled,
            is_sibling: false,
            pinned: false,
            queue_pos: NONE,
            ties: Ties::default(),
            parked_next: NONE,
            parked_on: NONE,
        }
    }

    /// Gives it its work.
    pub(crate) fn set_work(&mut self, work: Work) {
        (self.draws_max, self.limit, self.is_list) = match &work {
            Work::Generate { prompt_len, new_tokens_max, .. } => {
                (*new_tokens_max, prompt_len + new_tokens_max.saturating_sub(1), false)
            }
            Work::Embed { lens } => (0, lens.len() as u32, true),
        };
        self.work = work;
    }

    /// Positions (or items) that will be computed at most: the last id drawn is never fed back.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// Ids it may draw.
    pub(crate) fn draws_max(&self) -> u32 {
        self.draws_max
    }

    /// Known tokens once everything in flight has ended, as far as they will be computed.
    pub(crate) fn target(&self) -> u32 {
        (self.known + self.drawing).min(self.limit())
    }

    /// Tokens (or items) that can be planned now.
    pub(crate) fn ready_len(&self) -> u32 {
        self.target() - self.planned
    }

    /// Whether all it can have now is the next token, for which it has a block.
    #[inline]
    pub(crate) fn is_decode(&self) -> bool {
        !self.is_list && self.ready_len() == 1 && self.blocks.len() as u32 > self.planned / BLOCK_LEN
    }

    /// A row of it is planned.
    #[inline]
    pub(crate) fn note_row(&mut self, step: StepId, now: Nanos) {
        self.in_flight += 1;
        self.last_step = step;
        self.watch.run(now);
    }

    /// Whether its blocks hold computed positions that may be shared.
    pub(crate) fn holds_blocks(&self) -> bool {
        matches!(self.state, State::Running | State::Draining)
    }
}

/// The slab. Slots are reused last in, first out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    slots: Vec<Request>,
    free: Vec<u32>,
    /// The time of the call that the scheduler is in, for [`crate::why`].
    pub(crate) now: Nanos,
}

impl Requests {
    /// Takes a free slot and gives it a clean state; the generation stays.
    pub(crate) fn claim(&mut self) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Request::vacant());
            // Giving a slot back allocates nothing.
            self.free.reserve(self.slots.len());
            self.slots.len() as u32 - 1
        });
        let old = &mut self.slots[slot as usize];
        *old = Request { generation: old.generation, ..Request::vacant() };
        slot
    }

    /// Makes every id of the slot's present request stale.
    pub(crate) fn retire(&mut self, slot: u32) {
        let request = &mut self.slots[slot as usize];
        request.generation = request.generation.wrapping_add(1);
    }

    /// Returns the slot.
    pub(crate) fn release(&mut self, slot: u32) {
        let request = &mut self.slots[slot as usize];
        debug_assert!(request.blocks.is_empty());
        request.state = State::Free;
        request.hashes = Vec::new();
        request.work = Work::Embed { lens: Vec::new() };
        self.free.push(slot);
    }

    #[inline]
    pub(crate) fn id(&self, slot: u32) -> RequestId {
        RequestId::new(slot, self.slots[slot as usize].generation)
    }

    /// The slot of a live request; nothing for a stale id.
    pub(crate) fn find(&self, id: RequestId) -> Option<u32> {
        let request = self.slots.get(id.index())?;
        let live = !matches!(request.state, State::Free | State::Ghost);
        (live && request.generation == id.generation()).then_some(id.index() as u32)
    }

    /// Slots there are, free ones included.
    pub(crate) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32) -> &Request {
        &self.slots[slot as usize]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> &mut Request {
        &mut self.slots[slot as usize]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Request)> {
        self.slots.iter().enumerate().map(|(slot, request)| (slot as u32, request))
    }
}
