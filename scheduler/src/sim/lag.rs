//! The service gap, measured: how far anybody runs ahead of a tenant that has work waiting.
//!
//! A tenant is *behind on nothing* while none of its requests waits in a queue; from then on a stretch begins, and in it nobody may be
//! served more than [`crate::Scheduler::gap_bound`] longer than this tenant, by weight; of two that weigh more than 1 that is less, and the
//! less is what is checked. That is more than what is promised of two
//! tenants that both wait: who comes and goes must not get ahead either. A stretch ends when nothing waits any more, when the
//! tenant's plan changes, and for everybody when a request runs alone, for that is outside the promise.
//!
//! Who has limits of its own, or asks for a model that some device is without, or has a pool, is not measured: it may wait for other
//! reasons, or has devices that others have not.

use alloc::vec::Vec;

use super::scenario::{Scenario, Source};
use super::waits::Mark;
use super::world::World;
use crate::bound::GapTerms;
use crate::ids::{Nanos, TenantId};

/// With more tenants than this nothing is measured: it takes time in proportion to their square.
pub(super) const TENANTS_MAX: usize = 64;
/// Steps after which the bound is worked out anew, for it follows the fitted costs.
const BOUND_EVERY: u64 = 64;

#[derive(Debug)]
pub(super) struct Lag {
    /// By place: whether it is measured at all, and since when it has been waiting.
    measured: Vec<bool>,
    since: Vec<Option<Mark>>,
    /// By place and other's place: what each had been served when the stretch began.
    base: Vec<Nanos>,
    served: Vec<Nanos>,
    /// The greatest terms of the bound there were, and the step they were last worked out in.
    terms: GapTerms,
    bound_at: u64,
}

impl Lag {
    pub(super) fn new(scenario: &Scenario, tenants: usize) -> Lag {
        let mut places = Vec::new();
        for source in &scenario.sources {
            if !places.contains(&source.tenant) {
                places.push(source.tenant);
            }
        }
        let missing = |source: &Source| {
            let without = scenario.uneven.iter().any(|uneven| uneven.without.contains(&source.model));
            let everywhere = !scenario.pools.is_empty() && source.tenant == TenantId::OPERATOR;
            without || everywhere || source.plan.pool.is_some()
        };
        let confined = |tenant| scenario.sources.iter().any(|source| source.tenant == tenant && missing(source));
        Lag {
            measured: places.into_iter().map(|tenant| tenants <= TENANTS_MAX && !confined(tenant)).collect(),
            since: alloc::vec![None; tenants],
            base: alloc::vec![Nanos::ZERO; tenants * tenants],
            served: alloc::vec![Nanos::ZERO; tenants],
            terms: GapTerms::default(),
            bound_at: 0,
        }
    }

    pub(super) fn since(&self, place: usize) -> Option<Mark> {
        self.since[place]
    }

    pub(super) fn bound(&self) -> Nanos {
        self.terms.of(1)
    }

    pub(super) fn all_measured(&self) -> bool {
        self.measured.iter().all(|measured| *measured)
    }

    /// The tenant's plan has changed: nobody's lead over it, nor its over others, goes on.
    pub(super) fn forget(&mut self, place: usize) {
        self.since[place] = None;
        let tenants = self.since.len();
        for i in 0..tenants {
            let lead = self.served[place].saturating_sub(self.served[i]);
            let behind = self.served[i].saturating_sub(self.served[place]);
            let own = self.base[i * tenants + i];
            self.base[i * tenants + place] = (own + lead).saturating_sub(behind);
        }
    }
}

impl World<'_> {
    /// After a step: how far is anybody ahead?
    pub(super) fn measure_lag(&mut self) {
        let tenants = self.plans.len();
        if tenants > TENANTS_MAX {
            return;
        }
        for place in 0..tenants {
            self.lag.served[place] = self.scheduler.tenant_service(self.outcome.tenants[place].tenant);
        }
        if self.machines.iter().any(|machine| !machine.lane.is_empty()) {
            self.lag.since.fill(None);
        }
        if self.outcome.steps >= self.lag.bound_at + BOUND_EVERY || self.lag.terms == GapTerms::default() {
            self.renew_bound();
        }
        for i in 0..tenants {
            if self.lag.since[i].is_none() {
                continue;
            }
            let own = self.lag.served[i].saturating_sub(self.lag.base[i * tenants + i]);
            for j in (0..tenants).filter(|j| *j != i) {
                if !self.lag.measured[j] {
                    continue;
                }
                let theirs = self.lag.served[j].saturating_sub(self.lag.base[i * tenants + j]);
                self.take_lead(i, j, theirs.saturating_sub(own));
            }
        }
    }

    fn take_lead(&mut self, i: usize, j: usize, lead: Nanos) {
        let weight = self.plans[i].weight.min(self.plans[j].weight);
        self.outcome.gap_max = self.outcome.gap_max.max(lead);
        let share = |bound: Nanos| (u128::from(lead.0) * 1_000 / u128::from(bound.0.max(1))) as u64;
        if share(self.lag.terms.of(weight)) <= self.outcome.gap_per_mille {
            return;
        }
        self.renew_bound();
        let bound = self.lag.terms.of(weight);
        let (of, over) = (self.outcome.tenants[j].tenant, self.outcome.tenants[i].tenant);
        assert!(
            lead <= bound || !self.scenario.gap_checked,
            "{of:?} is {lead:?} ahead of {over:?}, which has work waiting; the bound is {bound:?}"
        );
        self.outcome.gap_per_mille = self.outcome.gap_per_mille.max(share(bound));
    }

    fn renew_bound(&mut self) {
        self.lag.terms = self.lag.terms.max(self.scheduler.gap_terms());
        self.lag.bound_at = self.outcome.steps;
        self.outcome.gap_bound = self.lag.bound();
    }

    /// After an event: who has begun to wait, and who has nothing waiting any more?
    pub(super) fn note_backlogs(&mut self) {
        let tenants = self.plans.len();
        if tenants > TENANTS_MAX {
            return;
        }
        for i in 0..tenants {
            let plan = &self.plans[i];
            let bounded = plan.running_max != u32::MAX || plan.kv_blocks_ceiling.is_some() || plan.metered;
            let waits = !bounded && self.lag.measured[i] && self.has_queued(i);
            match (self.lag.since[i].is_some(), waits) {
                (true, false) => self.lag.since[i] = None,
                (false, true) => {
                    for j in 0..tenants {
                        let served = self.scheduler.tenant_service(self.outcome.tenants[j].tenant);
                        self.lag.base[i * tenants + j] = served;
                    }
                    self.lag.since[i] = Some(self.mark(i));
                }
                _ => {}
            }
        }
    }

    /// Whether a request of the tenant stands in a queue, where nothing but its turn keeps it.
    fn has_queued(&self, place: usize) -> bool {
        let slot = self.slots[place];
        if self.scheduler.tenants.get(slot).waiting == 0 {
            return false;
        }
        let mut models = self.scheduler.devices.iter().filter(|device| device.up).flat_map(|device| &device.models);
        models.any(|model| !model.lanes[slot as usize].waiting.is_empty())
    }
}
