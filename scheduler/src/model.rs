//! A model on a device: its limits, blocks, fitted cost, and one lane of requests per tenant.

use alloc::vec::Vec;
use core::mem::offset_of;

use crate::BLOCK_LEN;
use crate::admit::Work;
use crate::blocks::Pool;
use crate::budget::{Margin, Targets};
use crate::config::{Config, ModelLimits};
use crate::cost::{Cost, Load};
use crate::ids::{BlockHash, BlockId, ModelId, Nanos, StepId};
use crate::kin::Kin;
use crate::queue::Queue;
use crate::request::{NONE, Rank, Request, Requests};
use crate::share::Virtual;
use crate::tournament::{Roster, Tournament};
use crate::why::Cause;

/// One tenant's requests for the model.
///
/// What a step asks of a lane is in its first cache line: steps ask hundreds of lanes, few of which run more than one request.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lane {
    pub(crate) waiting: Queue,
    /// The last step in which it got a row; see [`crate::standing`].
    pub(crate) reached: StepId,
    /// The last step for which it was asked; what follows is of that step.
    pub(crate) asked: StepId,
    /// While a step is planned: the next running request to look at.
    pub(crate) cursor: u32,
    /// While a step is planned: the tenant's own limits let no more of its requests start.
    pub(crate) capped: bool,
    /// While a step is planned: the lane wanted more than it got.
    pub(crate) short: bool,
    /// What planning told the first of the waiting ones to wait for, if it was the last to tell it anything: telling it the same again is
    /// a look at a request that nobody looked at lately.
    told: Option<Cause>,
    /// Whether its [`Turns`] say something, and on which side of their beginning the cursor is. They are kept apart, for a lane is a cache
    /// line, and few have any.
    lap: Lap,
    /// Of the running ones the first, if there is one, and how many there are.
    first: u32,
    runs: u32,
    /// Running requests by rank.
    pub(crate) running: Vec<u32>,
}

/// Where a lane's cursor is in its round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Lap {
    /// It goes from the first to the last: there are no turns.
    #[default]
    Plain,
    /// From the rank with which the step began to the last.
    Begun,
    /// It came to the end and goes on from the first, or began there.
    Wrapped,
}

const _: () = assert!(offset_of!(Lane, running) <= 64);

/// Whose turn it is in a lane where ITL targets leave time for some of its texts only; see [`crate::budget`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    /// While a step is planned: the rank with which it begins; after the last comes the first.
    first: Option<Rank>,
    /// The first that found too little time left in the last step: the next begins with it.
    passed: Option<Rank>,
}

impl Default for Lane {
    fn default() -> Lane {
        Lane {
            waiting: Queue::default(),
            reached: StepId(0),
            asked: StepId(0),
            cursor: 0,
            capped: false,
            short: false,
            told: None,
            lap: Lap::Plain,
            first: NONE,
            runs: 0,
            running: Vec::new(),
        }
    }
}

impl Lane {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        !self.runs() && self.waiting.is_empty()
    }

    /// Whether requests of it run.
    #[inline]
    pub(crate) fn runs(&self) -> bool {
        self.runs > 0
    }

    /// Room for so many requests, waiting or running: steps move them about and should not have to allocate.
    pub(crate) fn reserve(&mut self, live: u32) {
        self.waiting.reserve(live as usize);
        self.running.reserve((live as usize).saturating_sub(self.running.len()));
    }

    /// Begins to ask it for rows of a step. It may be asked again for the same one, if the first try gave no row at all.
    pub(crate) fn ask(&mut self, requests: &Requests, turns: &mut Turns, step: StepId) {
        let again = core::mem::replace(&mut self.asked, step) == step;
        (self.cursor, self.capped, self.short) = (0, false, false);
        if self.lap == Lap::Plain {
            return;
        }
        if !again {
            turns.first = turns.passed.take();
        }
        self.lap = Lap::Plain;
        if let Some(first) = turns.first {
            self.lap = Lap::Begun;
            self.cursor = self.running.partition_point(|slot| requests.get(*slot).rank < first) as u32;
        }
    }

    /// The running request at the cursor; behind the last comes the first, if the step did not begin with it.
    #[inline]
    pub(crate) fn at_cursor(&mut self, requests: &Requests, turns: &Turns) -> Option<u32> {
        match (self.lap, self.cursor) {
            (Lap::Plain, 0) => (self.runs > 0).then_some(self.first),
            (Lap::Plain, at) if at >= self.runs => None,
            _ => self.at_cursor_of_many(requests, turns),
        }
    }

    /// The same where there are no turns, and whether it is the last.
    #[inline]
    pub(crate) fn at_plain_cursor(&self) -> Option<(u32, bool)> {
        if self.lap != Lap::Plain || self.cursor >= self.runs {
            return None;
        }
        let slot = if self.cursor == 0 { self.first } else { self.running[self.cursor as usize] };
        Some((slot, self.cursor + 1 == self.runs))
    }

    fn at_cursor_of_many(&mut self, requests: &Requests, turns: &Turns) -> Option<u32> {
        loop {
            match (self.running.get(self.cursor as usize), self.lap) {
                (None, Lap::Begun) => (self.cursor, self.lap) = (0, Lap::Wrapped),
                (Some(&slot), Lap::Wrapped) => {
                    return self.is_before(turns, requests.get(slot).rank).then_some(slot);
                }
                (slot, _) => return slot.copied(),
            }
        }
    }

    /// Whether the rank is before the one with which the step began; or the step began with the first.
    fn is_before(&self, turns: &Turns, rank: Rank) -> bool {
        self.lap == Lap::Plain || turns.first.is_none_or(|first| rank < first)
    }

    /// Whether one of these ranks has its turn before the other.
    pub(crate) fn goes_before(&self, turns: &Turns, one: Rank, other: Rank) -> bool {
        (self.is_before(turns, one), one) < (self.is_before(turns, other), other)
    }

    /// One of this rank found too little time left in the step.
    pub(crate) fn pass_over(&mut self, turns: &mut Turns, rank: Rank) {
        if self.lap == Lap::Plain {
            self.lap = Lap::Wrapped;
        }
        turns.passed.get_or_insert(rank);
    }

    /// A request waits from now on.
    pub(crate) fn push_waiting(&mut self, requests: &mut Requests, slot: u32) {
        self.told = None;
        self.waiting.push(requests, slot);
    }

    pub(crate) fn remove_waiting(&mut self, requests: &mut Requests, slot: u32) {
        self.told = None;
        self.waiting.remove(requests, slot);
    }

    /// The first of the waiting ones, if there is one, waits for this.
    #[inline]
    pub(crate) fn tell_first(&mut self, requests: &mut Requests, cause: Cause) {
        if self.told != Some(cause)
            && let Some((_, slot)) = self.waiting.head()
        {
            requests.wait(slot, cause);
            self.told = Some(cause);
        }
    }

    /// Whether the first of the waiting ones may start: its tenant may start one, and the step is open for one. If not, it is told what it
    /// waits for, which is memory from when somebody did not start for want of it.
    #[inline]
    pub(crate) fn first_may_start(
        &mut self,
        requests: &mut Requests,
        may_start: bool,
        no_room: bool,
        open: bool,
    ) -> bool {
        let cause = match may_start {
            false => Cause::Queue,
            true if no_room => Cause::Memory,
            true => Cause::Share,
        };
        self.tell_first(requests, cause);
        self.short |= may_start && !open;
        may_start && open
    }

    /// What is noted of the running ones is so, and the first of the waiting ones waits for what it was told last, unless it waits for the
    /// blocks it lost.
    pub(crate) fn check(&self, requests: &Requests) {
        let first = self.running.first().copied().unwrap_or(NONE);
        assert_eq!((self.first, self.runs as usize), (first, self.running.len()));
        assert!(self.running.is_sorted_by_key(|slot| requests.get(*slot).rank));
        if let (Some(cause), Some((_, slot))) = (self.told, self.waiting.head()) {
            let is = requests.get(slot).watch.cause();
            assert!(is == cause || is == Cause::Preemption, "{slot} was told {cause:?} and waits for {is:?}");
        }
    }

    /// Its requests were told something by others.
    pub(crate) fn forget_told(&mut self) {
        self.told = None;
    }

    /// Enters a running request at its rank. Before the cursor, a sequence is passed over, for it gets its row from whoever enters
    /// it; a list may want more rows.
    pub(crate) fn insert_running(&mut self, requests: &Requests, slot: u32) {
        let rank = requests.get(slot).rank;
        let at = self.running.partition_point(|other| requests.get(*other).rank < rank);
        self.running.insert(at, slot);
        self.note_running();
        if at < self.cursor as usize {
            self.cursor = match requests.get(slot).is_list {
                false => self.cursor + 1,
                true => at as u32,
            };
        }
    }

    pub(crate) fn remove_running(&mut self, requests: &Requests, slot: u32) {
        let rank: Rank = requests.get(slot).rank;
        let at = self.running.partition_point(|other| requests.get(*other).rank < rank);
        debug_assert_eq!(self.running[at], slot);
        self.running.remove(at);
        self.note_running();
        if at < self.cursor as usize {
            self.cursor -= 1;
        }
    }

    fn note_running(&mut self) {
        self.first = self.running.first().copied().unwrap_or(NONE);
        self.runs = self.running.len() as u32;
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) id: ModelId,
    pub(crate) limits: ModelLimits,
    pub(crate) cost: Cost,
    /// How far steps exceed what is predicted of them.
    pub(crate) margin: Margin,
    /// ITL targets of what runs.
    pub(crate) targets: Targets,
    pub(crate) pool: Pool,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) turns: Vec<Turns>,
    /// Tenants with running requests, and those with waiting ones.
    pub(crate) running_tenants: Roster,
    pub(crate) waiting_tenants: Roster,
    /// By virtual time: the tenants short of the device that have running requests, and those that only have waiting ones. See
    /// [`crate::standing`].
    pub(crate) short_running: Tournament<Virtual>,
    pub(crate) short_waiting: Tournament<Virtual>,
    /// Where the next one to take over waiting requests goes on looking; see `pull` in [`crate::place`].
    pub(crate) pulled_at: usize,
    /// Which requests begin alike.
    pub(crate) kin: Kin,
    /// Block tables of requests that no longer run, kept for their buffers: each has room for the longest context.
    tables: Vec<Vec<BlockId>>,
    /// Running requests over all lanes.
    pub(crate) running: u32,
    /// Blocks that come free when rows in flight have ended, of requests that get no more rows.
    pub(crate) yielding: u32,
    /// The last step that ran it.
    pub(crate) last_step: StepId,
    /// While a step is planned: this model was tried for it and had nothing to run.
    pub(crate) tried: bool,
    /// Device time of the prompts and lists that wait, their draws, and how many of them draw.
    pub(crate) waiting_prompts: Nanos,
    pub(crate) waiting_draws: u64,
    pub(crate) waiting_texts: u32,
    /// Mean ids drawn by a finished request, with 8 fractional bits.
    drawn_mean: u64,
    pub(crate) prefix_queries: u64,
    pub(crate) prefix_hits: u64,
}

/// What a model's steps on a device have taught; it outlives a loss of the device.
#[derive(Clone, Debug)]
pub(crate) struct Learnt {
    pub(crate) model: ModelId,
    cost: Cost,
    margin: Margin,
    drawn_mean: u64,
}

/// What a request is expected to need of a device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Need {
    /// Device time of its prompt, or its list, as one among the usual number of rows.
    pub(crate) prompt: Nanos,
    /// Time until it is computed, with whole steps: a part of a step is no sooner over than the step.
    pub(crate) latency: Nanos,
    /// Tokens before the first that it draws.
    pub(crate) known: u32,
    /// Ids that it draws.
    pub(crate) draws: u32,
    /// Tokens of the prompt that need not be computed.
    pub(crate) cached: u32,
}

/// Ids that a request is expected to draw before any has finished.
const DRAWN_PRIOR: u64 = 128;

impl Model {
    pub(crate) fn new(id: ModelId, limits: ModelLimits, config: &Config, tenants: usize) -> Model {
        let mut model = Model {
            id,
            limits,
            cost: Cost::new(config.step_cost_prior, config.token_cost_prior),
            margin: Margin::of_steps(),
            targets: Targets::default(),
            pool: Pool::new(limits.blocks, tenants),
            lanes: Vec::new(),
            turns: Vec::new(),
            running_tenants: Roster::default(),
            waiting_tenants: Roster::default(),
            short_running: Tournament::default(),
            short_waiting: Tournament::default(),
            pulled_at: 0,
            tables: Vec::new(),
            kin: Kin::new(config.locality_quantum),
            running: 0,
            yielding: 0,
            last_step: StepId(0),
            tried: false,
            waiting_prompts: Nanos::ZERO,
            waiting_draws: 0,
            waiting_texts: 0,
            drawn_mean: DRAWN_PRIOR << 8,
            prefix_queries: 0,
            prefix_hits: 0,
        };
        model.grow(tenants);
        model
    }

    pub(crate) fn grow(&mut self, tenants: usize) {
        self.pool.grow(tenants);
        self.lanes.resize(tenants, Lane::default());
        self.turns.resize(tenants, Turns::default());
        self.kin.grow(tenants);
        self.running_tenants.grow(tenants);
        self.waiting_tenants.grow(tenants);
        self.short_running.grow(tenants);
        self.short_waiting.grow(tenants);
    }

    /// Whether the tenant is in one of the lists of short ones.
    pub(crate) fn is_filed(&self, tenant: u32) -> bool {
        self.short_running.has(tenant) || self.short_waiting.has(tenant)
    }

    /// Enters a new request among those that begin like it.
    pub(crate) fn kin_of(&mut self, requests: &mut Requests, slot: u32) {
        self.kin.join(requests, &self.pool, slot);
    }

    /// Begins to ask a tenant's lane for rows of a step.
    pub(crate) fn ask(&mut self, requests: &Requests, tenant: u32, step: StepId) {
        self.lanes[tenant as usize].ask(requests, &mut self.turns[tenant as usize], step);
    }

    /// Whether as many run as a step has rows: another that starts takes the row of one that runs, which keeps its blocks and stands still.
    pub(crate) fn rows_taken(&self) -> bool {
        self.running >= self.limits.rows_max
    }

    /// Whether a waiting request of this rank goes before a running one of its tenant, by rank or by whose turn it is. Where all rows
    /// are taken, only one of a more urgent class does, that outranks the other although it came later. One that is older, and was overtaken
    /// or preempted, waits for a row to come free: to put its tenant's own work aside for it serves nobody, and takes blocks that were cached.
    pub(crate) fn starts_before(&self, tenant: u32, rank: Rank, running: Rank) -> bool {
        let before = self.lanes[tenant as usize].goes_before(&self.turns[tenant as usize], rank, running);
        before && (!self.rows_taken() || rank < running && rank.1 > running.1)
    }

    /// Gives a request that wants to start an empty block table.
    pub(crate) fn give_table(&mut self, request: &mut Request) {
        let len = self.limits.context_len_max.div_ceil(BLOCK_LEN).min(self.limits.blocks);
        request.blocks = self.tables.pop().unwrap_or_else(|| Vec::with_capacity(len as usize));
    }

    /// Takes the table back, whose blocks were released.
    pub(crate) fn take_back(&mut self, request: &mut Request) {
        let mut table = core::mem::take(&mut request.blocks);
        if table.capacity() > 0 {
            table.clear();
            self.tables.push(table);
        }
    }

    /// Learns how long answers are.
    pub(crate) fn observe_drawn(&mut self, drawn: u32) {
        self.drawn_mean = self.drawn_mean - self.drawn_mean / 32 + (u64::from(drawn) << 8) / 32;
    }

    /// Ids that a finished request drew on average.
    pub(crate) fn drawn_mean(&self) -> u64 {
        (self.drawn_mean >> 8).max(1)
    }

    /// What was learnt of it, for when its device comes back.
    pub(crate) fn into_learnt(self) -> Learnt {
        Learnt { model: self.id, cost: self.cost, margin: self.margin, drawn_mean: self.drawn_mean }
    }

    /// Takes over what was learnt here before the device was lost.
    pub(crate) fn recall(&mut self, learnt: Learnt) {
        (self.cost, self.margin, self.drawn_mean) = (learnt.cost, learnt.margin, learnt.drawn_mean);
    }

    /// What another device's copy knows of answers holds here, too.
    pub(crate) fn learn_from(&mut self, same: &Model) {
        self.drawn_mean = same.drawn_mean;
    }

    /// Leading blocks that are ready in the tenant's cache, out of those that need not be computed anyway: the last known token
    /// always is, for its logits.
    pub(crate) fn cached_blocks(&self, tenant: u32, hashes: &[BlockHash], known: u32) -> u32 {
        let usable = (known.saturating_sub(1) / BLOCK_LEN).min(hashes.len() as u32);
        let ready = |hash| {
            let at = self.pool.find(tenant, hash);
            at.is_some_and(|at| self.pool.blocks[at as usize].state == crate::block::BlockState::Ready)
        };
        hashes[..usable as usize].iter().take_while(|hash| ready(hash)).count() as u32
    }

    /// What work from outside is expected to need here.
    pub(crate) fn need(&self, tenant: u32, work: &Work) -> Need {
        match work {
            Work::Generate { prompt_len, new_tokens_max, hashes } => {
                self.need_of_text(tenant, hashes, *prompt_len, *new_tokens_max)
            }
            Work::Embed { lens } => self.need_of_list(lens),
        }
    }

    /// The same for a request that waits (again).
    pub(crate) fn need_of_waiting(&self, request: &Request) -> Need {
        match &request.work {
            Work::Generate { new_tokens_max, .. } => {
                let left = new_tokens_max.saturating_sub(request.drawn);
                self.need_of_text(request.tenant, &request.hashes, request.known, left)
            }
            Work::Embed { lens } => self.need_of_list(&lens[request.computed as usize..]),
        }
    }

    fn need_of_text(&self, tenant: u32, hashes: &[BlockHash], known: u32, draws: u32) -> Need {
        let cached = self.cached_blocks(tenant, hashes, known) * BLOCK_LEN;
        let draws = u64::from(draws).min((self.drawn_mean >> 8).max(1)) as u32;
        let prompt = Load::new(cached, known - cached);
        let steps = prompt.tokens.div_ceil(u64::from(self.limits.tokens_max.max(1)));
        let latency = self.whole_steps(prompt, steps);
        Need { prompt: self.cost.attributed(prompt, steps), latency, known, draws, cached }
    }

    fn need_of_list(&self, lens: &[u32]) -> Need {
        let mut load = Load::default();
        for len in lens {
            load.add(Load::new(0, *len));
        }
        let items = lens.len() as u64;
        let steps = load.tokens.div_ceil(u64::from(self.limits.tokens_max.max(1)));
        let latency = self.whole_steps(load, steps.max(items.div_ceil(u64::from(self.limits.rows_max.max(1)))));
        Need { prompt: self.cost.attributed(load, items), latency, ..Need::default() }
    }

    fn whole_steps(&self, load: Load, steps: u64) -> Nanos {
        self.cost.marginal(load).saturating_add(Nanos(self.cost.step().0.saturating_mul(steps)))
    }

    /// What a running request is expected to need yet.
    pub(crate) fn need_of_running(&self, request: &Request) -> Need {
        if let Work::Embed { lens } = &request.work {
            return self.need_of_list(&lens[request.computed as usize..]);
        }
        let mean = self.drawn_mean >> 8;
        // The longer a text has become, the longer it is expected to go on, for it is not one of the short ones.
        let expected = mean.saturating_sub(u64::from(request.drawn)).max(mean / 8).max(1);
        let draws = u64::from(request.draws_max() - request.drawn).min(expected) as u32;
        Need { prompt: self.estimate_known(request), known: request.known, draws, ..Need::default() }
    }

    /// Device time that it takes, as one among the usual number of rows.
    pub(crate) fn attributed(&self, need: &Need) -> Nanos {
        let draws = self.cost.attributed(Load::draws(need.known, need.draws), u64::from(need.draws));
        if need.draws == 0 { need.prompt } else { need.prompt.saturating_add(draws) }
    }

    /// Device time for what a running request is known to need next: the rest of its known tokens, or of its items.
    #[inline]
    pub(crate) fn estimate_known(&self, request: &Request) -> Nanos {
        if request.is_list {
            return self.estimate_item(request);
        }
        let len = request.known.min(request.limit()).saturating_sub(request.computed);
        let load = Load::new(request.computed, len);
        // Mostly it is one token, and one step.
        match self.limits.tokens_max.max(1) {
            most if len <= most => self.cost.attributed_row(self.cost.marginal(load)),
            most => self.cost.attributed(load, u64::from(len.div_ceil(most))),
        }
    }

    fn estimate_item(&self, request: &Request) -> Nanos {
        match &request.work {
            Work::Generate { .. } => Nanos::ZERO,
            // One item at a time is enough: a list yields between its items anyway.
            Work::Embed { lens } => match lens.get(request.computed as usize) {
                Some(len) => self.cost.attributed(Load::new(0, *len), 1),
                None => Nanos::ZERO,
            },
        }
    }
}
