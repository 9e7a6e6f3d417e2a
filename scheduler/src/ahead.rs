//! When the next step is planned while one runs.
//!
//! A device should never stand still for want of a plan, so the next step is there before the one that runs has ended. But a plan that was made
//! too early is a queue: who comes after it waits for the step that runs and for a whole step that was planned before he came, and a
//! tenant that asks for little sees its neighbours' prompts. So the next step is planned when the one that runs is about to end by
//! prediction: an eighth of its time before, or [`crate::Config::lead_min`], whichever is more; then a newcomer waits for the step that runs, and
//! for his own. Steps that are shorter than the lead, and steps of a model whose cost is not known yet, are planned for at once.
//!
//! A step that takes much longer than it should holds up who waits for its device, and nobody knows for how long. From a step's cap
//! ([`crate::Config::step_latency_max`]) after its expected end on, the device is *late*: others take over what waits for it, and newcomers
//! go elsewhere.
//!
//! A step that ends sooner than that is followed by the time it takes to plan and send the next one, a fraction of a millisecond.

use crate::device::Device;
use crate::ids::Nanos;
use crate::scheduler::Scheduler;

/// The part of a step's time before its end in which the next one is planned.
const LEAD_PART: u64 = 8;

impl Scheduler {
    /// How long before the expected end of a step the next is planned at least, from now on; see [`crate::Config::lead_min`].
    pub fn set_lead(&mut self, lead_min: Nanos) {
        self.config.lead_min = lead_min;
    }
}

impl Device {
    /// Whether it is too early to plan another step; notes when it will not be.
    pub(crate) fn puts_off(&mut self, now: Nanos, lead_min: Nanos) -> bool {
        self.put_off = self.plans_at(lead_min).filter(|at| now < *at);
        self.put_off.is_some()
    }

    /// Whether the step that runs should have ended long ago.
    pub(crate) fn is_late(&self, now: Nanos) -> bool {
        self.late_at().is_some_and(|at| at <= now)
    }

    /// When the step that runs will be late; nothing if none runs, or nobody knows what it should take.
    pub(crate) fn late_at(&self) -> Option<Nanos> {
        let first = self.in_flight.front()?;
        let time = first.predicted.saturating_add(self.step_latency_max);
        let known = self.models[first.model as usize].cost.proven();
        known.then(|| self.reported.max(first.planned_at).saturating_add(time))
    }

    /// When the next step is to be planned; nothing if at once.
    fn plans_at(&self, lead_min: Nanos) -> Option<Nanos> {
        let first = self.in_flight.front()?;
        if !self.models[first.model as usize].cost.proven() {
            return None;
        }
        let time = self.in_flight.iter().fold(Nanos::ZERO, |sum, step| sum.saturating_add(step.predicted));
        let lead = lead_min.max(Nanos(time.0 / LEAD_PART));
        let began = self.reported.max(first.planned_at);
        (lead < time).then(|| began.saturating_add(time.saturating_sub(lead)))
    }
}
