//! Rows of a step being filled: how much goes into one, and what it means for its request.

use crate::BLOCK_LEN;
use crate::admit::Work;
use crate::cost::Load;
use crate::device::Row;
use crate::event::Event;
use crate::fill::Fill;
use crate::ids::{Nanos, RequestId};
use crate::model::Model;
use crate::plan::{BlockRange, PlanRow, RowKind};
use crate::request::Rank;

/// Tokens of the prompts in a step before the cost of a token is known on this device.
const UNPROVEN_TOKENS: u64 = 128;

impl Fill<'_> {
    /// See [`Model::rows_taken`].
    pub(crate) fn rows_taken(&self) -> bool {
        self.device.models[self.m].rows_taken()
    }

    /// How many of `ready` tokens from position `from` go into this step.
    #[inline(always)]
    pub(crate) fn chunk(&mut self, from: u32, ready: u32) -> Option<u32> {
        match ready {
            1 => self.is_timely(Load::new(from, 1)).then_some(1),
            _ => self.chunk_of_prompt(from, ready),
        }
    }

    fn chunk_of_prompt(&mut self, from: u32, ready: u32) -> Option<u32> {
        let cost = &self.device.models[self.m].cost;
        let kept = self.reserve.min(self.rows_left.saturating_sub(1));
        let tokens = self.tokens_left.saturating_sub(kept);
        let timely = match cost.proven() {
            true => {
                let kept = cost.marginal(Load::new(0, 1)).0.saturating_mul(u64::from(kept));
                cost.tokens_within(from, self.time_left.saturating_sub(Nanos(kept)))
            }
            false => UNPROVEN_TOKENS.saturating_sub(self.plan.tokens()),
        };
        let mut len = ready.min(tokens).min(u32::try_from(timely).unwrap_or(u32::MAX));
        let least = ready.min(BLOCK_LEN).min(self.tokens_left);
        if !self.prompt_given && self.is_timely(Load::new(from, least)) {
            len = len.max(least);
        } else if len < ready.min(BLOCK_LEN) {
            return None;
        }
        let aligned = ((from + len) / BLOCK_LEN * BLOCK_LEN).saturating_sub(from);
        if len < ready && aligned >= BLOCK_LEN {
            len = aligned;
        }
        Some(len)
    }

    /// Whether a row goes into this step as far as ITL targets are concerned. The first always does.
    #[inline]
    fn is_timely(&self, load: Load) -> bool {
        !self.strict || self.step.rows.is_empty() || self.device.models[self.m].cost.marginal(load) <= self.time_left
    }

    /// A text found no time left in this step, or too few tokens. While ITL targets cut steps, the first of its tenant's to do so comes
    /// first of them in the next, or rows of a token each, which nearly always fit, would pass over a prompt for ever.
    pub(crate) fn pass_over(&mut self, tenant: u32, slot: u32, rank: Rank) {
        if self.strict && !self.requests.get(slot).is_list {
            let Model { lanes, turns, .. } = self.model();
            lanes[tenant as usize].pass_over(&mut turns[tenant as usize], rank);
        }
    }

    /// Whether an item goes into this step. The first always does.
    pub(crate) fn fits_item(&self, len: u32) -> bool {
        if self.step.rows.is_empty() {
            return true;
        }
        let cost = &self.device.models[self.m].cost;
        let timely = match cost.proven() {
            true => cost.marginal(Load::new(0, len)) <= self.time_left,
            false => self.plan.tokens() + u64::from(len) <= UNPROVEN_TOKENS,
        };
        len <= self.tokens_left && timely
    }

    /// A row for the next item of a list.
    pub(crate) fn push_item(&mut self, slot: u32, len: u32) -> Nanos {
        let request = self.requests.get(slot);
        let (tenant, item, load) = (request.tenant, request.planned, Load::new(0, len));
        let reserve = self.reserve_for(tenant, load);
        let (now, request) = (self.requests.now, self.requests.get_mut(slot));
        request.planned += 1;
        request.note_row(self.id, now);
        let kind = RowKind::Embed { item, len };
        let plan = PlanRow { request: RequestId::new(slot, request.generation), kind };
        self.push_row(plan, Row { slot, from: item, len, samples: false, is_item: true, weight: 0, reserve }, load)
    }

    /// A row of the next `len` tokens of a sequence; it draws if these are the last known ones.
    #[inline(always)]
    pub(crate) fn push_stretch(&mut self, slot: u32, len: u32) -> Nanos {
        let request = self.requests.get(slot);
        let (tenant, from) = (request.tenant, request.planned);
        let load = Load::new(from, len);
        let reserve = self.reserve_for(tenant, load);
        let (now, request) = (self.requests.now, self.requests.get_mut(slot));
        let draws_left = request.draws_max() - request.drawn - request.drawing;
        let samples = from + len == request.known + request.drawing && draws_left > 0;
        request.planned += len;
        request.drawing += u32::from(samples);
        request.note_row(self.id, now);
        self.prompt_given |= len > 1;
        let blocks = BlockRange { start: self.plan.blocks.len() as u32, len: request.blocks.len() as u32 };
        self.plan.blocks.extend_from_slice(&request.blocks);
        let kind = RowKind::Generate { from, len, samples, blocks };
        let plan = PlanRow { request: RequestId::new(slot, request.generation), kind };
        self.push_row(plan, Row { slot, from, len, samples, is_item: false, weight: 0, reserve }, load)
    }

    #[inline(always)]
    fn push_row(&mut self, plan: PlanRow, row: Row, load: Load) -> Nanos {
        self.rows_left -= 1;
        self.tokens_left = self.tokens_left.saturating_sub(row.len);
        let marginal = self.device.models[self.m].cost.marginal(load);
        self.time_left = self.time_left.saturating_sub(marginal);
        self.step.load.add(load);
        self.plan.rows.push(plan);
        self.step.rows.push(row);
        marginal
    }

    /// Moves a request from the queue to the running ones, with `cached` blocks that need not be computed.
    pub(crate) fn enter(&mut self, slot: u32, cached: u32) {
        self.device.start(self.requests, self.tenants, slot);
        let request = self.requests.get_mut(slot);
        let first = request.started_at.is_none();
        let still_waiting = self.device.shares[request.tenant as usize].waiting > 0;
        if let Work::Generate { .. } = request.work {
            let model = &mut self.device.models[self.m];
            request.computed = cached * BLOCK_LEN;
            request.planned = request.computed;
            request.published = cached;
            if request.uses_cache {
                model.prefix_queries += u64::from(request.known);
                model.prefix_hits += u64::from(request.computed);
            }
        }
        if first {
            request.started_at = Some(self.now);
            request.cached_tokens = cached * BLOCK_LEN;
            let cached_tokens = request.cached_tokens;
            self.device.observe_start(self.now, still_waiting);
            self.events.push(Event::Started { request: self.requests.id(slot), cached_tokens });
        }
        self.device.hold(self.requests, self.tenants, slot);
    }
}
