//! A model on a device: its limits, blocks, fitted cost, and one lane of requests per tenant.

use alloc::vec::Vec;

use crate::BLOCK_LEN;
use crate::admit::Work;
use crate::blocks::Pool;
use crate::budget::{Margin, Targets};
use crate::config::{Config, ModelLimits};
use crate::cost::{Cost, Load};
use crate::ids::{BlockHash, BlockId, ModelId, Nanos, StepId};
use crate::kin::Kin;
use crate::lane::{Lane, Turns};
use crate::request::{Rank, Request, Requests};
use crate::share::Virtual;
use crate::tournament::{Roster, Tournament};

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
