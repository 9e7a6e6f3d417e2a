//! Several models on one device: who may ride along.
//!
//! A step runs one model, and the tenant that deserves the device most chooses which. It rarely fills the step, so others with work for
//! the same model ride along, and that is good: a full step costs hardly more than an empty one. But it is not free, and who rides
//! along may be far over its share, while somebody with less waits for another model. Where many small tenants choose one model in
//! turn, such riders would get ahead of that somebody without end.
//!
//! So nobody gets a row whose virtual time, with the rows it has in this step, is more than a step ahead of the least among those that
//! are short of another model. A step's worth is left so that tenants with equal claims share steps as if there were no others:
//! their times differ by less. If nothing at all can run so, riders run after all.

use crate::device::Device;
use crate::model::Model;
use crate::share::{Virtual, virtual_time};
use crate::standing::least;
use crate::tenant::Tenants;

impl Device {
    /// The virtual time beyond which a tenant gets no row in a step of this model.
    pub(crate) fn rival(&mut self, tenants: &mut Tenants, m: usize) -> Virtual {
        if self.models.len() == 1 {
            return Virtual::MAX;
        }
        let mut rival: Option<Virtual> = None;
        for (other, model) in self.models.iter_mut().enumerate() {
            if other == m || model.tried {
                continue;
            }
            for file in [&mut model.short_running, &mut model.short_waiting] {
                if let Some((time, _)) = least(file, tenants) {
                    rival = Some(rival.map_or(time, |rival| rival.min(time)));
                }
            }
        }
        // Those at hand are not filed.
        for tenant in self.at_hand.iter().filter(|tenant| !tenants.get(*tenant).is_dry()) {
            let waits = |(other, model): (usize, &Model)| {
                other != m && !model.tried && !model.lanes[tenant as usize].is_empty()
            };
            if self.models.iter().enumerate().any(waits) {
                let time = tenants.get(tenant).service.virtual_time();
                rival = Some(rival.map_or(time, |rival| rival.min(time)));
            }
        }
        rival.map_or(Virtual::MAX, |rival| rival.saturating_add(virtual_time(self.step_latency_max, 1)))
    }
}
