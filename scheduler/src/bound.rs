//! How far one tenant's service can run ahead of another's: the number that is promised, worked out from the settings and from what
//! steps cost. The proof is in `docs/fairness.md`; each term below is one of its cases.

use crate::BLOCK_LEN;
use crate::cost::Load;
use crate::device::Device;
use crate::ids::{Nanos, TenantId};
use crate::model::Model;
use crate::scheduler::Scheduler;

/// The parts of the bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GapTerms {
    /// Device time: to be divided by a weight.
    pub(crate) by_weight: Nanos,
    /// Virtual time: the same for all.
    pub(crate) fixed: Nanos,
}

impl GapTerms {
    /// The bound between tenants of this weight and more.
    pub(crate) fn of(self, weight: u32) -> Nanos {
        Nanos(self.by_weight.0 / u64::from(weight.max(1))).saturating_add(self.fixed)
    }

    /// The greater of each.
    #[cfg(feature = "sim")]
    pub(crate) fn max(self, other: GapTerms) -> GapTerms {
        GapTerms { by_weight: self.by_weight.max(other.by_weight), fixed: self.fixed.max(other.fixed) }
    }
}

impl Scheduler {
    /// The service gap: of two tenants that both have work waiting which may run on the same devices, neither is served more than this much
    /// longer than the other, in device time divided by weight, for as long as both have. It does not grow with time.
    ///
    /// Device nanoseconds for tenants of weight 1; between heavier ones it is that much less. It follows the fitted costs, so it is
    /// an estimate until steps of each model were measured, and it grows if a step ever takes longer than steps should.
    pub fn gap_bound(&self) -> Nanos {
        self.gap_terms().of(1)
    }

    pub(crate) fn gap_terms(&self) -> GapTerms {
        let in_flight = u64::from(self.config.steps_in_flight_max.max(1));
        let quantum = self.config.locality_quantum;
        let (mut steps, mut redo, mut ahead, mut turn) = (Nanos::ZERO, Nanos::ZERO, quantum, Nanos::ZERO);
        let mut others = 0u64;
        for device in self.devices.iter().filter(|device| !device.gone && !device.models.is_empty()) {
            let step = device.longest_step();
            steps = steps.saturating_add(Nanos(step.0.saturating_mul(in_flight + 1)));
            redo = redo.max(device.longest_redo());
            // Riders in a step of one model may be so far ahead of who waits for another; see `rival`.
            ahead = if device.models.len() > 1 { ahead.max(device.step_latency_max) } else { ahead };
            // Until who came just now is considered: the steps in flight, or until the device counts as late; see `ahead`.
            let wait = Nanos(step.0.saturating_mul(in_flight)).saturating_add(device.step_latency_max);
            turn = turn.max(wait);
            others += 1;
        }
        others = others.saturating_sub(1);
        let elsewhere = match others {
            0 => Nanos::ZERO,
            // Beyond the quantum there is a claim; see `claim`.
            _ => quantum,
        };
        let wait = Nanos(turn.0.saturating_mul(others));
        let by_weight = [wait, self.config.hold_max, self.config.start_preempts_at, redo];
        let by_weight = by_weight.into_iter().fold(steps, Nanos::saturating_add);
        GapTerms { by_weight, fixed: ahead.saturating_add(elsewhere) }
    }

    /// What the tenant was served over all devices: device time divided by its weight, in nanoseconds. Unlike the bill it counts what was
    /// computed again, unless that was for nothing that the tenant did. This is what [`Scheduler::gap_bound`] is about.
    pub fn tenant_service(&self, id: TenantId) -> Nanos {
        let served = self.tenants.slot(id).map_or(0, |slot| self.tenants.get(slot).service.served());
        Nanos(u64::try_from(served >> 32).unwrap_or(u64::MAX))
    }
}

impl Device {
    /// The longest step there can be, by the fit, or the longest there was.
    fn longest_step(&self) -> Nanos {
        let longest = self.models.iter().map(Model::longest_step).max().unwrap_or(Nanos::ZERO);
        longest.max(self.step_latency_max).max(self.slowest)
    }

    /// What it takes to compute the longest sequence again.
    fn longest_redo(&self) -> Nanos {
        let generates = self.models.iter().filter(|model| model.limits.blocks > 0);
        generates
            .map(|model| model.cost.attributed(Load::new(0, model.longest_sequence()), 1))
            .max()
            .unwrap_or(Nanos::ZERO)
    }
}

impl Model {
    fn longest_sequence(&self) -> u32 {
        self.limits.context_len_max.min(self.limits.blocks.saturating_mul(BLOCK_LEN))
    }

    /// Chunks and items are cut to the latency cap; what is not are decode rows, which go on as long as there are rows and blocks for
    /// them, one block of a prompt beside them, and the first item of a list.
    fn longest_step(&self) -> Nanos {
        let len = self.longest_sequence();
        if self.limits.blocks == 0 {
            return self.cost.predict(Load::new(0, self.limits.context_len_max));
        }
        let positions = u64::from(self.limits.blocks) * u64::from(BLOCK_LEN);
        let full = (positions / u64::from(len.max(1))).min(u64::from(self.limits.rows_max));
        let chunk = BLOCK_LEN.min(len);
        let mut load = Load::new(len - chunk, chunk);
        for row in 0..u64::from(self.limits.rows_max) {
            let earlier = if row < full { len.saturating_sub(1) } else { 0 };
            load.add(Load::new(earlier, 1));
        }
        self.cost.predict(load)
    }
}
