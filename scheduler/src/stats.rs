//! Counts for metrics and autoscalers. Made on demand, off the step path.

use alloc::vec::Vec;

use crate::cost::Load;
use crate::ids::{DeviceId, ModelId, Nanos, TenantId};
use crate::request::State;
use crate::scheduler::Scheduler;

/// A tenant's work at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantStats {
    /// Which tenant.
    pub tenant: TenantId,
    /// Requests in queues.
    pub waiting: u32,
    /// Requests running.
    pub running: u32,
    /// Device time that the waiting ones are expected to take.
    pub demand: Nanos,
    /// Its bill so far.
    pub charge: Nanos,
}

/// A model on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelStats {
    /// Which device.
    pub device: DeviceId,
    /// Which model.
    pub model: ModelId,
    /// Requests in queues.
    pub waiting: u32,
    /// Requests running.
    pub running: u32,
    /// Device time that the waiting ones are expected to take.
    pub demand: Nanos,
    /// Blocks in the pool.
    pub blocks: u32,
    /// Blocks nobody holds and that hold nothing.
    pub blocks_free: u32,
    /// Blocks that requests hold.
    pub blocks_used: u32,
    /// Blocks that only the prefix cache holds.
    pub blocks_cached: u32,
    /// Tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Tokens found there.
    pub prefix_hits: u64,
    /// Cached blocks given up for room.
    pub evictions: u64,
    /// The fitted constant of a step.
    pub step_cost: Nanos,
    /// The fitted cost of 1,000 rows, each beside what it computes.
    pub kilorow_cost: Nanos,
    /// The fitted cost of 1,000 new tokens, without what attention reads.
    pub kilotoken_cost: Nanos,
    /// The fitted cost of 1,000 positions of context.
    pub kilocontext_cost: Nanos,
    /// The fitted cost of 1,000,000 reads, pairs of a new token and a position that it looks at.
    pub megaread_cost: Nanos,
}

/// Everything countable, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Requests in queues, over all tenants.
    pub waiting: u32,
    /// Requests running, over all tenants.
    pub running: u32,
    /// Preemptions so far.
    pub preemptions: u64,
    /// Device time that waiting requests are expected to take, over all devices.
    pub demand: Nanos,
    /// By tenant, in the order they were added; the operator first.
    pub tenants: Vec<TenantStats>,
    /// By device and model, in the order they were added.
    pub models: Vec<ModelStats>,
}

impl Scheduler {
    /// Counts what there is. Takes time in proportion to requests and tenants.
    pub fn stats(&self) -> Stats {
        let mut models = Vec::new();
        let mut tenants: Vec<TenantStats> = self
            .tenants
            .iter()
            .map(|account| TenantStats {
                tenant: account.id,
                waiting: account.waiting,
                running: account.running,
                demand: Nanos::ZERO,
                charge: account.charge,
            })
            .collect();
        for (d, device) in self.devices.iter().enumerate() {
            for (share, tenant) in device.shares.iter().zip(&mut tenants) {
                tenant.demand += share.demand;
            }
            for (m, model) in device.models.iter().enumerate() {
                let here = |state: State| matches!(state, State::Waiting | State::Parked);
                let waiting = self.requests.iter().map(|(_, request)| request).filter(|request| {
                    here(request.state) && (request.device as usize, request.model as usize) == (d, m)
                });
                let (mut count, mut demand) = (0, Nanos::ZERO);
                for request in waiting {
                    count += 1;
                    demand += request.estimate;
                }
                let (used, cached) = model.pool.counts();
                models.push(ModelStats {
                    device: device.id,
                    model: model.id,
                    waiting: count,
                    running: model.running,
                    demand,
                    blocks: model.pool.len(),
                    blocks_free: model.pool.free_len(),
                    blocks_used: used,
                    blocks_cached: cached,
                    prefix_queries: model.prefix_queries,
                    prefix_hits: model.prefix_hits,
                    evictions: model.pool.evictions,
                    step_cost: model.cost.step(),
                    kilorow_cost: model.cost.marginal(Load { rows: 1_000, ..Load::default() }),
                    kilotoken_cost: model.cost.marginal(Load { tokens: 1_000, ..Load::default() }),
                    kilocontext_cost: model.cost.marginal(Load { context: 1_000, ..Load::default() }),
                    megaread_cost: model.cost.marginal(Load { reads: 1_000_000, ..Load::default() }),
                });
            }
        }
        Stats {
            waiting: self.tenants.waiting,
            running: tenants.iter().map(|tenant| tenant.running).sum(),
            preemptions: self.preemptions,
            demand: tenants.iter().map(|tenant| tenant.demand).sum(),
            tenants,
            models,
        }
    }
}
