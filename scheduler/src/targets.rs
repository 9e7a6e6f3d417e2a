//! When a request's first token can be expected, and the refusal of those whose plan promises it sooner.
//!
//! *The prediction.* Prompts are computed in chunks beside the decode rows that run, so the way to the first token is so many *rounds*: a step of the
//! model, and one of each other model that runs, each with its constant and its decode rows, and with a chunk in what these leave of the step's
//! budget. What is to be computed before it ends are the tenant's own prompts before it in rank, its own, and what others get meanwhile: by weight as
//! much as the tenant itself, and as much as it is ahead of the device's clock; but no more than they have. Where rows, blocks or `running_max` are
//! used up, there are at least the rounds in which enough of those that run are expected to end. Steps in flight come first. Of a group with one
//! prompt, the first computes it and the others what is beyond its last full block, a round later.
//!
//! *What is promised.* Only the waiting part of the prediction is uncertain: the part that depends on what others do, and on who comes later. What
//! waits turned out to be, against what was predicted, is learnt per device ([`Margin::of_waits`]), and a request is accepted
//! if 19 in 20 like it are expected in time. Alone on a device there is nothing to wait for, so nothing is refused that fits its target there, and nothing
//! is refused before the device's costs are known. What alone would take too long is refused too, and waiting does not help it.
//!
//! Cost: the running requests of a device and the tenant's own waiting ones, at admissions of tenants with a target only.

use crate::BLOCK_LEN;
use crate::admit::{Admission, Reject, RejectReason, Work, rank_of};
use crate::blocks::{Limits, ceiling};
use crate::budget::Margin;
use crate::cost::Load;
use crate::device::Device;
use crate::ids::{BlockHash, Nanos};
use crate::model::Model;
use crate::request::{Rank, Request, Requests, State};
use crate::scheduler::Scheduler;
use crate::tenant::Tenants;

/// Until the first token, as it was predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct First {
    /// If the device had nothing else to do.
    pub(crate) alone: Nanos,
    /// What comes on top because it has.
    pub(crate) waits: Nanos,
    /// A step of it all. Work ahead shrinks by whole steps, when their reports come.
    round: Nanos,
}

impl First {
    fn expected(&self, margin: &Margin) -> Nanos {
        self.alone.saturating_add(margin.upon(self.waits))
    }

    /// In how long it would be expected inside the target; nothing if no wait helps.
    fn excess(&self, margin: &Margin, target: Nanos) -> Option<Nanos> {
        let left = Nanos(target.0.checked_sub(self.alone.0)?);
        Some(self.waits.saturating_sub(margin.within(left)).saturating_add(self.round))
    }
}

impl Margin {
    /// Learns from a first token that came after `time`. Waits that are small beside the prompt itself say nothing.
    pub(crate) fn observe_first(&mut self, first: &First, time: Nanos) {
        if first.waits.0 > first.alone.0 / 4 {
            self.observe(first.waits, time.saturating_sub(first.alone));
        }
    }
}

/// The earliest a refused client is told to come back.
const RETRY_AFTER_MIN: Nanos = Nanos::from_millis(1);
const RETRY_AFTER_MAX: Nanos = Nanos::from_secs(600);

impl Scheduler {
    /// The place at which the request's TTFT target is met: the one it was given, or else the one where its first token is expected soonest.
    pub(crate) fn in_time(
        &self,
        now: Nanos,
        tenant: u32,
        admission: &Admission,
        (device, model): (u32, u32),
        fixed: bool,
        is_sibling: bool,
    ) -> Result<(u32, u32, Option<First>), Reject> {
        let plan = &self.tenants.get(tenant).plan;
        let priority = admission.priority.max(plan.priority_ceiling);
        let Some(target) =
            plan.ttft_target.filter(|_| matches!(admission.work, Work::Generate { new_tokens_max: 1.., .. }))
        else {
            return Ok((device, model, None));
        };
        let mut soonest: Option<(Nanos, u32, u32, First)> = None;
        let mut again: Option<Nanos> = None;
        let others = 0..if fixed { 0 } else { self.devices.len() as u32 };
        for d in core::iter::once(device).chain(others.filter(|d| *d != device)) {
            let place = &self.devices[d as usize];
            let m = match d == device {
                true => Some(model as usize),
                false => place.model_index(admission.model).filter(|_| place.up && !place.closed),
            };
            let Some(m) = m.filter(|m| self.fits(tenant, place, *m, &admission.work).is_ok()) else { continue };
            if !place.models[m].cost.tried() {
                return Ok((d, m as u32, None));
            }
            let rank = rank_of(now, priority, &self.config, self.next_seq);
            let newcomer = Newcomer { tenant, rank, work: &admission.work, is_sibling };
            let first = place.first_token(now, m, &newcomer, &self.requests, &self.tenants);
            let expected = first.expected(&place.waits);
            if expected <= target {
                if d == device {
                    return Ok((d, m as u32, Some(first)));
                }
                if soonest.is_none_or(|(least, ..)| expected < least) {
                    soonest = Some((expected, d, m as u32, first));
                }
            }
            let excess = first.excess(&place.waits, target);
            again = again.into_iter().chain(excess).min();
        }
        match soonest {
            Some((_, d, m, first)) => Ok((d, m, Some(first))),
            None => {
                let retry_after = again.map_or(Nanos::ZERO, |again| again.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX));
                Err(Reject { reason: RejectReason::TargetUnmet, retry_after })
            }
        }
    }
}

/// A request at the door.
struct Newcomer<'a> {
    tenant: u32,
    rank: Rank,
    work: &'a Work,
    /// It waits for the first request of its group that has the same prompt to compute it, and for the end of the prompt besides.
    is_sibling: bool,
}

/// The work that stands before a request on a device.
#[derive(Default)]
struct Ahead {
    /// Prompts of its tenant before it in rank, the rests of those that run with them.
    own: Nanos,
    /// Prompts of all others.
    others: Nanos,
    /// Sequences of its tenant and model that are before it in the queue, and the blocks they will want.
    queued: u32,
    blocks: u32,
    /// Weights of the others that have prompts.
    weights: u128,
    /// Weights of all others.
    weights_active: u128,
    /// Rows of the model's decodes, and the steps and rows of other models.
    rows: Nanos,
    beside: Nanos,
}

impl Device {
    fn first_token(&self, now: Nanos, m: usize, new: &Newcomer, requests: &Requests, tenants: &Tenants) -> First {
        let model = &self.models[m];
        let Newcomer { tenant, rank, .. } = *new;
        let need = model.need(tenant, new.work);
        let own = model.cost.marginal(Load::new(need.cached, need.known - need.cached));
        let account = tenants.get(tenant);
        let step = model.cost.step();
        let time = self.budget_beside(m, account.plan.itl_target).time;
        let chunk = |rows: Nanos, taken: u32| {
            let left = time.saturating_sub(step).saturating_sub(rows);
            model.chunk_time(left, taken, need.known)
        };
        let rounds = |work: Nanos, chunk: Nanos| work.0.div_ceil(chunk.0.max(1)).max(1);
        let alone = own.saturating_add(Nanos(step.0.saturating_mul(rounds(own, chunk(Nanos::ZERO, 0)))));

        let ahead = self.ahead(m, tenant, rank, requests, tenants);
        let shared = match new.work {
            Work::Generate { hashes, .. } if new.is_sibling => shared_len(need.known, hashes),
            _ => 0,
        };
        let own = match new.is_sibling {
            true => model.cost.marginal(Load::new(shared, need.known - shared)),
            false => own,
        };
        let own = own.saturating_add(ahead.own);
        let weight = u128::from(account.weight());
        let lead = account.service.measured().saturating_sub(self.clock) >> 32;
        let meanwhile = u128::from(own.0) * ahead.weights / weight + lead.min(1 << 60) * ahead.weights;
        let others = Nanos(u64::try_from(meanwhile).unwrap_or(u64::MAX)).min(ahead.others);
        let prompts = own.saturating_add(others);
        let blocks = (need.known - shared).div_ceil(BLOCK_LEN);
        let places = self.rounds_for_places(m, tenant, blocks, &ahead, tenants);
        let chunk = chunk(ahead.rows, model.running);
        // What is shared is there a round before the rest of it can be computed.
        let rounds = (rounds(prompts, chunk) + u64::from(new.is_sibling)).max(places);
        let round = step.saturating_add(ahead.rows).saturating_add(ahead.beside);
        let all = prompts.saturating_add(Nanos(round.0.saturating_mul(rounds))).saturating_add(self.busy_for(now));
        let all = all.saturating_add(self.alone_for(requests, tenants));
        First { alone, waits: all.saturating_sub(alone), round: round.saturating_add(chunk.min(prompts)) }
    }

    /// Until the one that runs alone has drawn its first id, after which others mostly run again. For one that waits for a grant nobody waits.
    fn alone_for(&self, requests: &Requests, tenants: &Tenants) -> Nanos {
        let alone = self.alone.and_then(|id| requests.find(id)).map(|slot| requests.get(slot));
        let Some(alone) = alone.filter(|alone| !tenants.get(alone.tenant).is_dry()) else { return Nanos::ZERO };
        let model = &self.models[alone.model as usize];
        let left = match alone.state {
            State::Waiting | State::Parked => alone.need.latency,
            _ => model.prompt_rest(alone),
        };
        left.saturating_add(model.cost.step())
    }

    fn ahead(&self, m: usize, tenant: u32, rank: Rank, requests: &Requests, tenants: &Tenants) -> Ahead {
        let mut ahead = Ahead::default();
        let mut own_waiting = Nanos::ZERO;
        for (n, model) in self.models.iter().enumerate() {
            ahead.others = ahead.others.saturating_add(model.waiting_prompts);
            for slot in model.lanes[tenant as usize].waiting.slots() {
                let request = requests.get(slot);
                own_waiting = own_waiting.saturating_add(request.need.prompt);
                if request.rank < rank {
                    let shared = if request.is_sibling { shared_len(request.known, &request.hashes) } else { 0 };
                    let prompt = match request.is_sibling {
                        true => model.cost.marginal(Load::new(shared, request.known - shared)),
                        false => request.need.prompt,
                    };
                    ahead.own = ahead.own.saturating_add(prompt);
                    ahead.queued += u32::from(n == m);
                    ahead.blocks += if n == m { (request.known - shared).div_ceil(BLOCK_LEN) } else { 0 };
                }
            }
            if n != m && model.running > 0 {
                ahead.beside = ahead.beside.saturating_add(model.cost.step());
            }
        }
        ahead.others = ahead.others.saturating_sub(own_waiting);
        let own_weight = if self.shares[tenant as usize].live > 0 { tenants.get(tenant).weight() } else { 0 };
        ahead.weights_active = u128::from(self.weights - u64::from(own_weight));
        ahead.weights = ahead.weights_active;
        for (n, model) in self.models.iter().enumerate() {
            for other in model.running_tenants.iter() {
                let is_first = self.models[..n].iter().all(|model| model.lanes[other as usize].running.is_empty());
                if is_first && !self.ahead_of_running(&mut ahead, m, tenant, other, requests) {
                    ahead.weights -= u128::from(tenants.get(other).weight());
                }
            }
        }
        ahead
    }

    /// Counts what a tenant has running. False if it is another that only decodes, and so wants no more of a step than its rows.
    fn ahead_of_running(&self, ahead: &mut Ahead, m: usize, tenant: u32, other: u32, requests: &Requests) -> bool {
        let mut prompts = other == tenant || self.shares[other as usize].waiting > 0;
        for (n, model) in self.models.iter().enumerate() {
            for &slot in &model.lanes[other as usize].running {
                let request = requests.get(slot);
                let rest = model.prompt_rest(request);
                prompts |= rest > Nanos::ZERO;
                let sum = if other == tenant { &mut ahead.own } else { &mut ahead.others };
                *sum = sum.saturating_add(rest);
                if request.draws_max() > 0 {
                    let row = model.cost.marginal(Load::new(request.known, 1));
                    let sum = if n == m { &mut ahead.rows } else { &mut ahead.beside };
                    *sum = sum.saturating_add(row);
                }
            }
        }
        prompts
    }

    /// Rounds until enough of those that run have ended, where rows, blocks or the tenant's running requests are at their bound. A sequence is expected
    /// to draw as many ids as the others did on average, so of `n` one ends every `mean / n` rounds.
    fn rounds_for_places(&self, m: usize, tenant: u32, blocks: u32, ahead: &Ahead, tenants: &Tenants) -> u64 {
        let model = &self.models[m];
        let account = tenants.get(tenant);
        let own_running = model.lanes[tenant as usize].running.len() as u32;
        let rows_max = u128::from(model.limits.rows_max.max(1));
        let weight = u128::from(account.weight());
        // New rows of a tenant inside its share go before old ones of another, so its share of the rows is its own at any time.
        let share = rows_max * weight / (weight + ahead.weights_active);
        let rows = (share as u32).max(model.limits.rows_max.saturating_sub(model.running - own_running)).max(1);
        let by_rows = (own_running + ahead.queued + 1).saturating_sub(rows);
        let running_max = account.plan.running_max.max(1);
        let by_plan = account.running.saturating_add(ahead.queued + 1).saturating_sub(running_max);
        let room = model.pool.room(tenant, ceiling(account, Limits::Bind), Limits::Bind);
        let short = u64::from((ahead.blocks + blocks).saturating_sub(room));
        let by_blocks = match short {
            0 => 0,
            _ => (short * u64::from(model.running)).div_ceil(u64::from(model.pool.counts().0.max(1))),
        };
        let mean = model.drawn_mean();
        let after = |ends: u64, of: u32| (ends * mean).div_ceil(u64::from(of.max(1)));
        let by_rows = after(u64::from(by_rows), own_running);
        by_rows.max(after(u64::from(by_plan), account.running)).max(after(by_blocks, model.running))
    }
}

/// Tokens of a prompt that requests with the same one find in the cache once the first of them has computed it.
fn shared_len(known: u32, hashes: &[BlockHash]) -> u32 {
    (known.saturating_sub(1) / BLOCK_LEN).min(hashes.len() as u32) * BLOCK_LEN
}

impl Model {
    /// What a step that leaves prompts `time`, and so many rows to others, takes for them; prompts of `len` tokens.
    fn chunk_time(&self, time: Nanos, taken: u32, len: u32) -> Nanos {
        let middle = len / 2;
        let tokens = u64::from(self.limits.tokens_max.saturating_sub(taken)).min(self.cost.tokens_within(middle, time));
        let tokens = (tokens / u64::from(BLOCK_LEN) * u64::from(BLOCK_LEN)).max(u64::from(BLOCK_LEN));
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        // Measured from where its middle is the prompt's middle.
        self.cost.marginal(Load::new(middle.saturating_sub(tokens / 2), tokens))
    }

    /// What is left of a running request's prompt, or of its list.
    fn prompt_rest(&self, request: &Request) -> Nanos {
        match &request.work {
            Work::Embed { .. } => self.need_of_running(request).prompt,
            Work::Generate { .. } => match request.known.min(request.limit()).saturating_sub(request.computed) {
                0 | 1 => Nanos::ZERO,
                len => self.cost.marginal(Load::new(request.computed, len)),
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{Config, DeviceId, ModelId, ModelLimits, RowOutcome, StepPlan, StepReport, Tenant, TenantId};
    use alloc::vec::Vec;

    const CHAT: ModelId = ModelId(0);

    fn plan(scheduler: &mut Scheduler, now: Nanos, device: DeviceId) -> Option<StepPlan> {
        let mut plan = StepPlan::new();
        scheduler.next_step(now, device, &mut plan).then_some(plan)
    }

    /// Finishes a step that took `pause` longer than its tokens do.
    fn finish(scheduler: &mut Scheduler, now: &mut Nanos, plan: &StepPlan, pause: Nanos) {
        let time = Nanos(5_000_000 + 20_000 * plan.tokens()) + pause;
        *now += time;
        let rows = alloc::vec![RowOutcome::Advanced; plan.rows.len()];
        let report = StepReport { step: plan.step, device_time: time, rows: &rows };
        assert!(scheduler.finish_step(*now, plan.device, &report, &mut Vec::new()));
    }

    fn text(tenant: u32, prompt_len: u32, new_tokens_max: u32) -> Admission {
        let work = Work::Generate { prompt_len, new_tokens_max, hashes: Vec::new() };
        Admission { tenant: TenantId(tenant), model: CHAT, priority: 0, work }
    }

    #[test]
    fn a_request_that_went_elsewhere_says_nothing_of_waits_there() {
        let mut scheduler = Scheduler::new(Config::default());
        let (devices, mut now) = ([DeviceId(0), DeviceId(1)], Nanos(0));
        for tenant in [1, 2] {
            scheduler.add_tenant(TenantId(tenant), Tenant::default());
        }
        let limits = ModelLimits { blocks: 64, rows_max: 1, tokens_max: 256, context_len_max: 1024 };
        for device in devices {
            scheduler.add_device(now, device);
            assert!(scheduler.add_model(device, CHAT, limits));
            scheduler.admit_to(now, device, text(2, 20, 40)).unwrap();
            while let Some(plan) = plan(&mut scheduler, now, device) {
                finish(&mut scheduler, &mut now, &plan, Nanos::ZERO);
            }
        }
        let bought = Tenant { ttft_target: Some(Nanos::from_secs(100)), ..Tenant::default() };
        scheduler.set_tenant(TenantId(1), bought);
        let margins = |scheduler: &Scheduler| [0, 1].map(|d: usize| scheduler.devices[d].waits.upon(Nanos(1 << 20)));
        let before = margins(&scheduler);
        // Behind a long prompt on the first device, for which it is meant until the second takes newcomers.
        scheduler.admit_to(now, devices[0], text(1, 900, 100)).unwrap();
        let long = plan(&mut scheduler, now, devices[0]).unwrap();
        scheduler.drain_device(devices[1]);
        let id = scheduler.admit(now, text(1, 20, 1)).unwrap();
        scheduler.resume_device(devices[1]);
        assert!(scheduler.requests.get(id.index() as u32).first.is_some_and(|first| 4 * first.waits.0 > first.alone.0));
        finish(&mut scheduler, &mut now, &long, Nanos::from_secs(1));
        assert!(plan(&mut scheduler, now, devices[0]).is_some(), "it is passed over");
        let pulled = plan(&mut scheduler, now, devices[1]).unwrap();
        finish(&mut scheduler, &mut now, &pulled, Nanos::from_secs(10));
        assert!(scheduler.why(now, id).is_none(), "it ended there");
        assert_eq!(margins(&scheduler), before);
    }
}
