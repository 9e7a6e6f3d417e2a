//! Admission: what a caller asks for, whether it may wait here, and if not, why and for how long.

use alloc::vec::Vec;

use crate::BLOCK_LEN;
use crate::device::Device;
use crate::ids::{BlockHash, DeviceId, ModelId, Nanos, RequestId, TenantId};
use crate::scheduler::Scheduler;

/// What a request wants computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// A sequence that is continued.
    Generate {
        /// Tokens of the prompt, at least 1.
        prompt_len: u32,
        /// Ids to draw at most. With 0 the prompt is computed (into the prefix cache, say) and nothing is drawn.
        new_tokens_max: u32,
        /// Hash chain over the prompt's full blocks, keyed with the tenant's salt. Empty for a prompt of at least one full block
        /// means: stay out of the prefix cache. Hashes beyond the prompt's full blocks are ignored.
        hashes: Vec<BlockHash>,
    },
    /// Items that are embedded one by one, each whole.
    Embed {
        /// Tokens of each item, each at least 1.
        lens: Vec<u32>,
    },
}

/// A request at the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Who pays.
    pub tenant: TenantId,
    /// Which model.
    pub model: ModelId,
    /// Order inside the tenant: 0 is the most urgent class. See [`crate::Config::priority_spacing`] for ageing.
    pub priority: u8,
    /// What to compute.
    pub work: Work,
}

/// Why a request was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RejectReason {
    /// The queue of the whole scheduler is full.
    QueueFull,
    /// The tenant's own queue is full.
    TenantQueueFull,
    /// Prompt and new tokens together exceed the model's context.
    ContextTooLong,
    /// The prompt alone, or an item, exceeds the model's context.
    InputTooLong,
    /// It could not run even alone: more blocks than the pool or the tenant's ceiling has, work of a kind that the model does
    /// not do, or no work at all.
    NeverFits,
    /// No device has the model.
    UnknownModel,
    /// The tenant was never added.
    UnknownTenant,
    /// [`Scheduler::drain`] was called.
    Draining,
    /// No device is up.
    NoDevice,
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
    /// When a place is expected to be free, from the work queued and the measured rate at which it drains. Zero where waiting
    /// does not help or nothing is known.
    pub retry_after: Nanos,
}

/// A refused client is told to come back within these.
const RETRY_AFTER_MIN: Nanos = Nanos::from_millis(1);
const RETRY_AFTER_MAX: Nanos = Nanos::from_secs(600);

impl Scheduler {
    /// Accepts a request into its tenant's queue on the device that is expected to finish it first, or says why not.
    pub fn admit(&mut self, now: Nanos, admission: Admission) -> Result<RequestId, Reject> {
        self.admit_on(now, admission, None).map(|(id, _)| id)
    }

    /// Accepts all of the requests or none, for the `n` choices of one call. They share a device, and so a prompt's blocks.
    pub fn admit_group(&mut self, now: Nanos, admissions: Vec<Admission>) -> Result<Vec<RequestId>, Reject> {
        let mut ids = Vec::with_capacity(admissions.len());
        let mut place = None;
        for admission in admissions {
            match self.admit_on(now, admission, place) {
                Ok((id, device)) => {
                    ids.push(id);
                    place = Some(device);
                }
                Err(reject) => {
                    for id in ids {
                        self.revoke(id);
                    }
                    return Err(reject);
                }
            }
        }
        Ok(ids)
    }

    /// Takes back a request that was accepted a moment ago, as if it had never been.
    fn revoke(&mut self, id: RequestId) {
        let slot = self.requests.find(id).expect("the request was just accepted");
        let request = self.requests.get(slot);
        let (tenant, device) = (request.tenant as usize, &mut self.devices[request.device as usize]);
        device.dequeue(&mut self.requests, &mut self.tenants, slot);
        device.shares[tenant].live -= 1;
        self.requests.retire(slot);
        self.requests.release(slot);
    }

    /// Takes back a request that [`Scheduler::device_lost`] ended, onto the device that is there again: `admission` is what is
    /// left of it, the tokens known by now being its prompt. No queue's bound and no drain stands against it, for it was
    /// accepted before. Computing its first `redo` tokens once more is the operator's, and costs the tenant nothing.
    pub fn admit_again(
        &mut self,
        now: Nanos,
        device: DeviceId,
        admission: Admission,
        redo: u32,
    ) -> Result<RequestId, Reject> {
        let refuse = |reason| Reject { reason, retry_after: Nanos::ZERO };
        let tenant = self.tenants.slot(admission.tenant).ok_or(refuse(RejectReason::UnknownTenant))?;
        let device = self.device(device).ok_or(refuse(RejectReason::NoDevice))? as u32;
        let (device, model) = self.place(tenant, &admission, Some(device)).map_err(refuse)?;
        let id = self.enter(now, admission, tenant, device, model);
        let request = self.requests.get_mut(id.index() as u32);
        (request.redo_until, request.redo_free) = (redo, true);
        Ok(id)
    }

    fn admit_on(&mut self, now: Nanos, admission: Admission, place: Option<u32>) -> Result<(RequestId, u32), Reject> {
        let refuse = |reason| Reject { reason, retry_after: Nanos::ZERO };
        if self.draining {
            return Err(refuse(RejectReason::Draining));
        }
        let tenant = self.tenants.slot(admission.tenant);
        let tenant = tenant.ok_or(refuse(RejectReason::UnknownTenant))?;
        if !self.devices.iter().any(|device| device.up) {
            return Err(refuse(RejectReason::NoDevice));
        }
        let (device, model) = self.place(tenant, &admission, place).map_err(refuse)?;
        if self.tenants.waiting >= self.config.queue_len_max {
            let retry_after = self.retry_after(device, None);
            return Err(Reject { reason: RejectReason::QueueFull, retry_after });
        }
        let account = self.tenants.get(tenant);
        if account.waiting >= account.plan.queue_len_max {
            let retry_after = self.retry_after(device, Some(tenant));
            return Err(Reject { reason: RejectReason::TenantQueueFull, retry_after });
        }
        Ok((self.enter(now, admission, tenant, device, model), device))
    }

    /// Puts a request into its tenant's queue.
    fn enter(&mut self, now: Nanos, admission: Admission, tenant: u32, device: u32, model: u32) -> RequestId {
        let slot = self.requests.claim();
        let seq = self.next_seq;
        self.next_seq += 1;
        let lateness = self.config.priority_spacing.0.saturating_mul(u64::from(admission.priority));
        let request = self.requests.get_mut(slot);
        request.tenant = tenant;
        request.device = device;
        request.model = model;
        request.rank = (now.0.saturating_add(lateness), seq);
        request.admitted_at = now;
        request.work = admission.work;
        match &mut request.work {
            Work::Generate { prompt_len, hashes, .. } => {
                let full = *prompt_len / BLOCK_LEN;
                request.known = *prompt_len;
                request.uses_cache = full == 0 || !hashes.is_empty();
                request.hashes = core::mem::take(hashes);
                request.hashes.truncate(full as usize);
            }
            Work::Embed { lens } => request.known = lens.len() as u32,
        }
        let id = self.requests.id(slot);
        let at = &mut self.devices[device as usize];
        at.enter(tenant);
        at.enqueue(&mut self.requests, &mut self.tenants, slot);
        id
    }

    /// The device that is expected to finish the work first, among those that could do it at all.
    fn place(&self, tenant: u32, admission: &Admission, only: Option<u32>) -> Result<(u32, u32), RejectReason> {
        let mut best: Option<(u64, u32, u32)> = None;
        let mut why = RejectReason::UnknownModel;
        for (d, device) in self.devices.iter().enumerate() {
            if !device.up || only.is_some_and(|only| only as usize != d) {
                continue;
            }
            let Some(m) = device.models.iter().position(|model| model.id == admission.model) else {
                continue;
            };
            if let Err(reason) = self.fits(tenant, device, m, &admission.work) {
                why = reason;
                continue;
            }
            let finish = device.backlog().saturating_add(device.models[m].estimate(tenant, &admission.work));
            if best.is_none_or(|(least, _, _)| finish.0 < least) {
                best = Some((finish.0, d as u32, m as u32));
            }
        }
        best.map(|(_, device, model)| (device, model)).ok_or(why)
    }

    /// Whether the work could run if it had the device to itself.
    fn fits(&self, tenant: u32, device: &Device, model: usize, work: &Work) -> Result<(), RejectReason> {
        let limits = &device.models[model].limits;
        match work {
            Work::Generate { prompt_len, new_tokens_max, .. } => {
                if *prompt_len == 0 || limits.blocks == 0 {
                    return Err(RejectReason::NeverFits);
                }
                if *prompt_len > limits.context_len_max {
                    return Err(RejectReason::InputTooLong);
                }
                let len = u64::from(*prompt_len) + u64::from(*new_tokens_max);
                if len > u64::from(limits.context_len_max) {
                    return Err(RejectReason::ContextTooLong);
                }
                let positions = prompt_len + new_tokens_max.saturating_sub(1);
                let ceiling = self.tenants.get(tenant).plan.kv_blocks_ceiling.unwrap_or(u32::MAX);
                if positions.div_ceil(BLOCK_LEN) > limits.blocks.min(ceiling) {
                    return Err(RejectReason::NeverFits);
                }
            }
            Work::Embed { lens } => {
                if lens.is_empty() || lens.contains(&0) {
                    return Err(RejectReason::NeverFits);
                }
                if lens.iter().any(|len| *len > limits.context_len_max) {
                    return Err(RejectReason::InputTooLong);
                }
            }
        }
        Ok(())
    }

    /// When one place in a full queue is expected to be free. The work waiting on the device, at its fitted cost, divided by the
    /// requests it is spread over, is the time until the next of them starts; a tenant's own queue drains at its share of
    /// the device. The measured interval between starts is the floor, for estimates know nothing of stalls.
    fn retry_after(&self, device: u32, tenant: Option<u32>) -> Nanos {
        let device = &self.devices[device as usize];
        let each = match tenant {
            None => {
                let waiting: u64 = device.shares.iter().map(|share| u64::from(share.waiting)).sum();
                u128::from(device.demand().0) / u128::from(waiting.max(1))
            }
            Some(tenant) => {
                let weight = |slot: &u32| u128::from(self.tenants.get(*slot).weight());
                let active: u128 = device.active.iter().map(weight).sum();
                let share = &device.shares[tenant as usize];
                u128::from(share.demand.0) * active.max(1) / (u128::from(share.waiting.max(1)) * weight(&tenant))
            }
        };
        let each = Nanos(u64::try_from(each).unwrap_or(u64::MAX));
        each.max(device.start_interval()).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }
}
