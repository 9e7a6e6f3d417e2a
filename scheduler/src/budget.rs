//! How long a step may take, so that nobody's tokens come later than its plan says.
//!
//! *What an ITL target means here.* Between two tokens of a sequence lies one step of its model and, where several models have work, a step of each
//! of the others. So while sequences with targets run on a device, a step of any model there may take the least of these targets divided by the
//! number of models that run: one round of all of them stays inside it. That bounds *steps*; it does not buy a share. Where more rows run than
//! fit into such a step, they take turns in fair order, and those of a tenant over its share skip steps whatever its target says. Of one
//! tenant's, the first that found no time left in a step comes first in the next, and the others follow by rank, round and round. A block of a
//! prompt that fits beside nothing has its turn like the others, once in a round, with the step to itself. `running_max` and TTFT targets keep
//! things from coming to that.
//!
//! *Margin.* A prediction is right on average, a target is to hold nearly always. So what a step may take by prediction is the target divided by a
//! ratio that 99 in 100 measured steps stay under, see [`Margin`]. It is learnt from the time between reports, which is what a reader sees, and
//! only from steps that were filled to half of what they might take or more: a small step late by a millisecond of the host's says
//! nothing of one that fills its target.
//!
//! Cost: the least target of a model is the head of a short sorted list, kept when sequences start and end.

use alloc::vec::Vec;

use crate::cost::Load;
use crate::device::{Device, Step};
use crate::ids::{DeviceId, ModelId, Nanos, TenantId};
use crate::scheduler::Scheduler;

/// Fractional bits of a ratio.
const FRAC: u32 = 16;
const ONE: u64 = 1 << FRAC;

/// A high quantile of what was measured divided by what was predicted: the answer to "how much longer can it take than we think".
///
/// A sample above it moves it up by `odds` units, one below it down by one, so it rests where one sample in `odds + 1` is above. It never moves past the
/// sample, and an accident of a hundredfold counts for no more than a slight overrun.
#[derive(Clone, Debug)]
pub(crate) struct Margin {
    ratio: u64,
    unit: u64,
    odds: u64,
    least: u64,
}

/// No margin is larger: what takes four times as long as predicted is not learnt to be predicted.
const RATIO_MAX: u64 = 4 * ONE;

impl Margin {
    /// Of steps: 99 in 100 stay inside it.
    pub(crate) fn of_steps() -> Margin {
        Margin { ratio: ONE, unit: ONE / 8192, odds: 99, least: ONE }
    }

    /// Of waits for a first token: 19 in 20 stay inside it. Waits may turn out shorter than predicted, for others can end early.
    pub(crate) fn of_waits() -> Margin {
        Margin { ratio: ONE, unit: ONE / 1024, odds: 19, least: ONE / 2 }
    }

    pub(crate) fn observe(&mut self, predicted: Nanos, measured: Nanos) {
        let sample = (u128::from(measured.0) << FRAC) / u128::from(predicted.0.max(1));
        let sample = u64::try_from(sample).unwrap_or(u64::MAX);
        self.ratio = match sample > self.ratio {
            true => sample.min(self.ratio + self.odds * self.unit),
            false => sample.max(self.ratio.saturating_sub(self.unit)),
        };
        self.ratio = self.ratio.clamp(self.least, RATIO_MAX);
    }

    /// The longest prediction that still ends inside `time`.
    pub(crate) fn within(&self, time: Nanos) -> Nanos {
        Nanos(((u128::from(time.0) << FRAC) / u128::from(self.ratio)).min(u128::from(u64::MAX)) as u64)
    }

    /// What a prediction can turn out to be.
    pub(crate) fn upon(&self, predicted: Nanos) -> Nanos {
        Nanos(((u128::from(predicted.0) * u128::from(self.ratio)) >> FRAC).min(u128::from(u64::MAX)) as u64)
    }
}

/// The ITL targets of a model's running sequences: each value once, ascending, with the number of sequences that have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    counts: Vec<(Nanos, u32)>,
}

impl Targets {
    pub(crate) fn enter(&mut self, target: Option<Nanos>) {
        let Some(target) = target else { return };
        match self.counts.binary_search_by_key(&target, |entry| entry.0) {
            Ok(at) => self.counts[at].1 += 1,
            Err(at) => self.counts.insert(at, (target, 1)),
        }
    }

    pub(crate) fn leave(&mut self, target: Option<Nanos>) {
        let Some(target) = target else { return };
        let at = self.counts.binary_search_by_key(&target, |entry| entry.0).expect("what leaves has entered");
        self.counts[at].1 -= 1;
        if self.counts[at].1 == 0 {
            self.counts.remove(at);
        }
    }

    pub(crate) fn least(&self) -> Option<Nanos> {
        self.counts.first().map(|entry| entry.0)
    }
}

/// What a step may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Budget {
    /// By prediction.
    pub(crate) time: Nanos,
    /// Somebody's target is in it, so decode rows are cut to it, too.
    pub(crate) strict: bool,
}

impl Device {
    /// What a step of the model may take at present.
    pub(crate) fn step_budget(&self, m: usize) -> Budget {
        self.budget_beside(m, None)
    }

    /// The same, if a sequence with this target ran as well.
    pub(crate) fn budget_beside(&self, m: usize, target: Option<Nanos>) -> Budget {
        let targets = self.models.iter().filter_map(|model| model.targets.least());
        let target = targets.chain(target).min();
        let running = |(n, model): &(usize, &crate::model::Model)| *n == m || model.running > 0;
        let models = self.models.iter().enumerate().filter(running).count() as u64;
        let target = target.map(|target| Nanos(target.0 / models.max(1)));
        let model = &self.models[m];
        let time = target.map_or(self.step_latency_max, |target| target.min(self.step_latency_max));
        Budget { time: model.margin.within(time), strict: target.is_some() && model.cost.proven() }
    }

    /// Notes when a step was planned, what it may take, and what it is expected to.
    pub(crate) fn expect(&self, now: Nanos, m: usize, budget: Budget, step: &mut Step) {
        step.planned_at = now;
        step.budget = budget.time;
        step.predicted = self.models[m].cost.predict(step.load);
    }

    /// Learns from how long a step kept its readers waiting. To be called before the step's time is booked.
    pub(crate) fn learn_margin(&mut self, now: Nanos, step: &Step) {
        let span = now.saturating_sub(self.reported.max(step.planned_at));
        let model = &mut self.models[step.model as usize];
        if model.cost.proven() && step.predicted.0.saturating_mul(2) >= step.budget.0 {
            model.margin.observe(step.predicted, span);
        }
    }

    /// Until the steps in flight have ended.
    pub(crate) fn busy_for(&self, now: Nanos) -> Nanos {
        let since = self.in_flight.front().map_or(now, |step| self.reported.max(step.planned_at));
        let all = self.in_flight.iter().fold(Nanos::ZERO, |sum, step| sum.saturating_add(step.predicted));
        all.saturating_sub(now.saturating_sub(since))
    }
}

/// A target that no step can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetProblem {
    /// Whose.
    pub tenant: TenantId,
    /// Where.
    pub device: DeviceId,
    /// Of which model.
    pub model: ModelId,
    /// The ITL target.
    pub target: Nanos,
    /// What a step of one short row takes.
    pub step: Nanos,
}

impl Scheduler {
    /// The ITL targets that cannot be met even by steps of one row, by what steps were measured to take so far. For a line in the log: such
    /// a target stops nothing, but all sequences beside it get steps of one row.
    pub fn target_problems(&self) -> Vec<TargetProblem> {
        let mut problems = Vec::new();
        for device in self.devices.iter().filter(|device| device.up) {
            for model in device.models.iter().filter(|model| model.cost.tried() && model.limits.blocks > 0) {
                let step = model.cost.predict(Load::new(0, 1));
                for account in self.tenants.iter().filter(|account| device.serves(account)) {
                    if let Some(target) = account.plan.itl_target.filter(|target| *target < step) {
                        let (tenant, device, model) = (account.id, device.id, model.id);
                        problems.push(TargetProblem { tenant, device, model, target, step });
                    }
                }
            }
        }
        problems
    }

    /// Puts a changed ITL target in the place of the old one for what runs.
    pub(crate) fn retarget(&mut self, tenant: u32, old: Option<Nanos>) {
        let new = self.tenants.get(tenant).plan.itl_target;
        for model in self.devices.iter_mut().flat_map(|device| &mut device.models) {
            for &slot in &model.lanes[tenant as usize].running {
                if self.requests.get(slot).draws_max() > 0 {
                    model.targets.leave(old);
                    model.targets.enter(new);
                }
            }
        }
    }

    /// Recounts the targets of what runs; panics where they do not agree.
    pub(crate) fn check_targets(&self, d: usize, m: usize) {
        let model = &self.devices[d].models[m];
        let mut targets = Targets::default();
        for (tenant, lane) in model.lanes.iter().enumerate() {
            let draws = lane.running.iter().filter(|slot| self.requests.get(**slot).draws_max() > 0);
            for _ in draws {
                targets.enter(self.tenants.get(tenant as u32).plan.itl_target);
            }
        }
        assert_eq!(model.targets, targets, "targets of what runs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uniform between 80 and 120 per cent, by a linear congruence.
    fn samples(count: u64) -> impl Iterator<Item = u64> {
        (0..count).scan(1u64, |state, _| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Some(800_000 + (*state >> 33) % 400_001)
        })
    }

    #[test]
    fn few_steps_are_longer_than_their_margin() {
        let mut margin = Margin::of_steps();
        let predicted = Nanos(1_000_000);
        let mut over = 0;
        for (n, sample) in samples(40_000).enumerate() {
            over += usize::from(n >= 20_000 && Nanos(sample) > margin.upon(predicted));
            margin.observe(predicted, Nanos(sample));
        }
        // One in a hundred is aimed at; that it never moves past a sample costs something.
        assert!((50..=600).contains(&over), "{over} of 20,000");
        assert!(margin.upon(predicted) > Nanos(1_150_000) && margin.upon(predicted) < Nanos(1_210_000));
    }

    #[test]
    fn one_accident_counts_for_little() {
        let mut margin = Margin::of_steps();
        margin.observe(Nanos(1_000_000), Nanos(100_000_000));
        assert!(margin.upon(Nanos(1_000_000)) < Nanos(1_013_000));
        assert!(margin.within(Nanos(1_000_000)) > Nanos(987_000));
    }

    #[test]
    fn the_least_target_is_kept_as_sequences_come_and_go() {
        let mut targets = Targets::default();
        for target in [50, 20, 50, 90, 20] {
            targets.enter(Some(Nanos(target)));
        }
        targets.enter(None);
        targets.leave(Some(Nanos(20)));
        assert_eq!(targets.least(), Some(Nanos(20)));
        targets.leave(Some(Nanos(20)));
        targets.leave(None);
        assert_eq!(targets.least(), Some(Nanos(50)));
        for target in [50, 90, 50] {
            targets.leave(Some(Nanos(target)));
        }
        assert_eq!(targets, Targets::default());
    }
}
