//! The orders that Weir's is compared with, in the same scheduler: the same rows, chunks, blocks, cache and charges, and only the
//! choice of who goes next replaced.
//!
//! All three serve what runs before what waits, as vLLM, SGLang and the VTC paper's server do: each running request gets its row, in
//! the order of arrival, and what is left of the step goes to requests that start, until one does not fit (passing it over would
//! starve it). They differ in whose request starts next:
//!
//! * [`Order::Fcfs`]: the one that came first, whoever sent it. What vLLM does.
//! * [`Order::RoundRobin`]: tenants take turns, one request each; a tenant with nothing waiting is passed over and keeps nothing. What
//!   gateways do in front of an engine, here without their queue in between. Weights count for nothing.
//! * [`Order::Tokens`]: VTC (Sheng et al., OSDI'24, algorithm 2): the tenant with the smallest counter. A counter grows by 1 for each
//!   prompt token, all of them when the request starts, and by 2 for each drawn one, divided by the weight. A tenant that had
//!   nothing waiting is lifted when something arrives: to the least counter of those that wait, or, if nobody waits, to that of the
//!   one whose queue was the last to run empty.
//!
//! Nobody's running request is stopped so that another can start. When a running request cannot grow, the one that came last
//! gives its blocks up, as in vLLM. Of several models on a device, the one that ran least recently goes first: the three say
//! nothing of models.

use alloc::vec::Vec;

use crate::admit::Work;
use crate::config::Order;
use crate::device::Device;
use crate::fill::Fill;
use crate::pick::Start;
use crate::request::Rank;
use crate::share::{Virtual, virtual_time};

use crate::ids::Nanos;

/// What a prompt token and a drawn one count for, in VTC and its artifact.
const PROMPT_TOKEN: u64 = 1;
const DRAWN_TOKEN: u64 = 2;

/// What the orders remember of a tenant.
#[derive(Clone, Debug, Default)]
struct Past {
    /// VTC's counter.
    counter: Virtual,
    /// The number of its last start, for turns.
    turn: u64,
    /// It had something waiting when a step was last planned.
    waited: bool,
}

/// What the orders remember, by tenant slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    pasts: Vec<Past>,
    turns: u64,
    /// The counter of the tenant whose queue was the last to run empty.
    last_left: Virtual,
    /// Scratch: running requests by rank.
    running: Vec<(Rank, u32)>,
}

impl Order {
    /// Whether the order is another's than Weir's.
    pub(crate) fn is_foreign(self) -> bool {
        !matches!(self, Order::DeviceTime)
    }
}

impl Device {
    /// Of the models not tried yet, the one with work that ran least recently.
    pub(crate) fn next_model(&self) -> Option<usize> {
        let work = |m: &usize| {
            let model = &self.models[*m];
            !model.tried && model.running_tenants.len() + model.waiting_tenants.len() > 0
        };
        (0..self.models.len()).filter(work).min_by_key(|m| self.models[*m].last_step)
    }
}

impl Fill<'_> {
    /// Fills the step in another order than Weir's.
    pub(crate) fn run_as(&mut self, order: Order, policy: &mut Policy) {
        policy.pasts.resize(self.tenants.len(), Past::default());
        policy.lift(self);
        self.run_running(policy);
        while self.rows_left > 0 && self.tokens_left > 0 {
            let Some((tenant, slot)) = policy.next(self, order) else { return };
            let new = self.requests.get(slot).started_at.is_none();
            match self.start(slot) {
                Start::Row(_) => policy.count_start(self, tenant, slot, new),
                Start::Parked => {}
                Start::Capped | Start::NoGrant => self.device.models[self.m].lanes[tenant as usize].capped = true,
                Start::NoBudget | Start::NoRoom => return,
            }
        }
    }

    /// A row for each running request, lists as many as fit.
    fn run_running(&mut self, policy: &mut Policy) {
        policy.running.clear();
        let model = &mut self.device.models[self.m];
        for tenant in model.running_tenants.iter().chain(model.waiting_tenants.iter()) {
            model.lanes[tenant as usize].ask(self.requests, &mut model.turns[tenant as usize], self.id);
        }
        for tenant in model.running_tenants.iter() {
            let running = &model.lanes[tenant as usize].running;
            policy.running.extend(running.iter().map(|&slot| (self.requests.get(slot).rank, slot)));
        }
        policy.running.sort_unstable();
        for at in 0..policy.running.len() {
            let slot = policy.running[at].1;
            // A row before it may have taken its blocks.
            let goes_on = |fill: &Fill<'_>| {
                let request = fill.requests.get(slot);
                fill.rows_left > 0
                    && fill.tokens_left > 0
                    && request.state == crate::request::State::Running
                    && request.ready_len() > 0
            };
            while goes_on(self) && self.go_on(slot).is_some() {
                policy.count_row(self, slot);
                if matches!(self.requests.get(slot).work, Work::Generate { .. }) {
                    break;
                }
            }
        }
    }

    /// Whose blocks a running request takes: those of the one that came last, and after it.
    pub(crate) fn last_to_come(&self, rank: Option<Rank>) -> Option<u32> {
        let rank = rank?;
        let model = &self.device.models[self.m];
        let running = model.running_tenants.iter().flat_map(|tenant| &model.lanes[tenant as usize].running);
        let last = running
            .copied()
            .filter(|&slot| {
                let request = self.requests.get(slot);
                request.preemptions < self.preemptions_max && !request.blocks.is_empty()
            })
            .max_by_key(|&slot| self.requests.get(slot).rank)?;
        (self.requests.get(last).rank > rank).then_some(last)
    }
}

/// Of all requests that wait, the one whose prompt is cached furthest.
fn longest(fill: &Fill<'_>) -> Option<(u32, u32)> {
    let model = &fill.device.models[fill.m];
    let tenants = model
        .waiting_tenants
        .iter()
        .filter(|tenant| !model.lanes[*tenant as usize].capped && fill.tenants.get(*tenant).may_start());
    let waiting = tenants.flat_map(|tenant| model.lanes[tenant as usize].waiting.slots());
    let slot = waiting.min_by_key(|slot| {
        let request = fill.requests.get(*slot);
        let cached = model.cached_blocks(request.tenant, &request.hashes, request.known);
        (core::cmp::Reverse(cached), request.rank)
    })?;
    Some((fill.requests.get(slot).tenant, slot))
}

impl Policy {
    /// The tenant and the request that start next.
    fn next(&self, fill: &Fill<'_>, order: Order) -> Option<(u32, u32)> {
        let model = &fill.device.models[fill.m];
        if order == Order::Prefix {
            return longest(fill);
        }
        let waiting = model.waiting_tenants.iter().filter_map(|tenant| {
            let lane = &model.lanes[tenant as usize];
            let may = !lane.capped && fill.tenants.get(tenant).may_start();
            let (rank, slot) = lane.waiting.head().filter(|_| may)?;
            let past = &self.pasts[tenant as usize];
            let key = match order {
                Order::RoundRobin => u128::from(past.turn),
                Order::Tokens => past.counter,
                _ => 0,
            };
            Some((key, rank, tenant, slot))
        });
        waiting.min().map(|(_, _, tenant, slot)| (tenant, slot))
    }

    /// Forgets the credit of those who had nothing waiting.
    fn lift(&mut self, fill: &Fill<'_>) {
        let waits = |tenant: u32| fill.tenants.get(tenant).waiting > 0;
        for (slot, past) in self.pasts.iter().enumerate().filter(|(_, past)| past.waited) {
            if !waits(slot as u32) {
                self.last_left = past.counter;
            }
        }
        let queued = self.pasts.iter().enumerate().filter(|(slot, past)| past.waited && waits(*slot as u32));
        let least = queued.map(|(_, past)| past.counter).min().unwrap_or(self.last_left);
        for (slot, past) in self.pasts.iter_mut().enumerate() {
            let waited = core::mem::replace(&mut past.waited, waits(slot as u32));
            if past.waited && !waited {
                past.counter = past.counter.max(least);
            }
        }
    }

    /// A request started with its first row.
    fn count_start(&mut self, fill: &Fill<'_>, tenant: u32, slot: u32, new: bool) {
        self.turns += 1;
        let past = &mut self.pasts[tenant as usize];
        past.turn = self.turns;
        let request = fill.requests.get(slot);
        if let (true, Work::Generate { .. }) = (new, &request.work) {
            let prompt = u64::from(request.known - request.cached_tokens);
            past.counter += virtual_time(Nanos(prompt * PROMPT_TOKEN), fill.tenants.get(tenant).weight());
        }
        self.count_row(fill, slot);
    }

    /// A row was given.
    fn count_row(&mut self, fill: &Fill<'_>, slot: u32) {
        let row = fill.step.rows.last().expect("a row was just given");
        let tokens = match row.is_item {
            true => u64::from(row.len) * PROMPT_TOKEN,
            false => u64::from(row.samples) * DRAWN_TOKEN,
        };
        let tenant = fill.requests.get(slot).tenant;
        self.pasts[tenant as usize].counter += virtual_time(Nanos(tokens), fill.tenants.get(tenant).weight());
    }
}
