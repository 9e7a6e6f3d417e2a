//! Admission: what a caller asks for, whether it may wait here, and if not, why and for how long.

use alloc::vec::Vec;

use crate::BLOCK_LEN;
use crate::config::Config;
use crate::ids::{BlockHash, DeviceId, ModelId, Nanos, RequestId, TenantId};
use crate::request::Rank;
use crate::scheduler::Scheduler;
use crate::why::{Times, Watch};

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
    /// Order inside the tenant: 0 is the most urgent class, but none is more so than [`crate::Tenant::priority_ceiling`]. See
    /// [`crate::Config::priority_spacing`] for ageing.
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
    /// It could never run: more blocks than the tenant's ceiling, or than the pool has above the floors of others, work of a kind that
    /// the model does not do, or no work at all.
    NeverFits,
    /// No device has the model.
    UnknownModel,
    /// The tenant was never added.
    UnknownTenant,
    /// The tenant is metered and its window is spent; the retry time is when the next one begins.
    QuotaSpent,
    /// [`Scheduler::drain`] was called.
    Draining,
    /// No device is up.
    NoDevice,
    /// Its first token is not expected within the plan's [`crate::Tenant::ttft_target`]. The retry time is when it would be, or zero if the
    /// prompt alone takes longer.
    TargetUnmet,
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

/// A request that goes on after its device was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumption {
    /// What is left of it, the tokens known by now being its prompt.
    pub admission: Admission,
    /// How many of them were computed before.
    pub redo: u32,
    /// When it came first.
    pub since: Nanos,
    /// Where its time went until it was lost; see [`crate::Event::Settled`].
    pub times: Times,
}

/// What stands for a prompt, as far as others can find it in the cache: the hash of a block stands for all before it.
fn beginning(admission: &Admission) -> Option<(TenantId, ModelId, u32, BlockHash)> {
    let Work::Generate { prompt_len, hashes, .. } = &admission.work else { return None };
    let full = hashes.get(..(*prompt_len / BLOCK_LEN) as usize).unwrap_or(hashes);
    Some((admission.tenant, admission.model, *prompt_len, *full.last()?))
}

/// The rank of a request of this class that came then.
pub(crate) fn rank_of(since: Nanos, priority: u8, config: &Config, seq: u64) -> Rank {
    (since.0.saturating_add(config.priority_spacing.0.saturating_mul(u64::from(priority))), seq)
}

/// The most of a grant that is asked for when a request comes.
const AT_DOOR_MAX: Nanos = Nanos::from_secs(1);

/// A refused client is told to come back within these.
const RETRY_AFTER_MIN: Nanos = Nanos::from_millis(1);
const RETRY_AFTER_MAX: Nanos = Nanos::from_secs(600);

impl Scheduler {
    /// Accepts a request into its tenant's queue on the device that is expected to finish it first, or says why not.
    pub fn admit(&mut self, now: Nanos, admission: Admission) -> Result<RequestId, Reject> {
        self.admit_on(now, admission, None, true, false).map(|(id, _)| id)
    }

    /// Accepts all of the requests or none, for the `n` choices of one call. They share a device, and so a prompt's blocks.
    pub fn admit_group(&mut self, now: Nanos, admissions: Vec<Admission>) -> Result<Vec<RequestId>, Reject> {
        let mut ids = Vec::with_capacity(admissions.len());
        let mut place = None;
        let beginnings: Vec<_> = admissions.iter().map(beginning).collect();
        for (n, admission) in admissions.into_iter().enumerate() {
            let is_sibling = beginnings[n].is_some() && beginnings[..n].contains(&beginnings[n]);
            match self.admit_on(now, admission, place, true, is_sibling) {
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
        let (tenant, model) = (request.tenant, request.model as usize);
        let device = &mut self.devices[request.device as usize];
        device.dequeue(&mut self.requests, &mut self.tenants, slot);
        device.models[model].kin.leave(&mut self.requests, slot);
        device.leave(tenant);
        self.requests.retire(slot);
        self.requests.release(slot);
    }

    /// Accepts a request onto this device and no other, whatever that device has to do.
    pub fn admit_to(&mut self, now: Nanos, id: DeviceId, admission: Admission) -> Result<RequestId, Reject> {
        let device = self.device(id).ok_or(Reject { reason: RejectReason::NoDevice, retry_after: Nanos::ZERO })?;
        let (id, _) = self.admit_on(now, admission, Some(device as u32), false, false)?;
        self.requests.get_mut(id.index() as u32).pinned = true;
        Ok(id)
    }

    /// It may go to any device, and run beside others while one that is to run alone waits for a grant.
    pub fn unpin(&mut self, id: RequestId) {
        if let Some(slot) = self.requests.find(id) {
            self.requests.get_mut(slot).pinned = false;
        }
    }

    /// Takes back a request that [`Scheduler::device_lost`] ended: onto the best device there is, or onto that one and no other. No
    /// queue's bound and no drain stands against it, for it was accepted before; it keeps its place in its tenant's order.
    /// Computing its first tokens once more is the operator's, and costs the tenant nothing.
    pub fn admit_again(
        &mut self,
        now: Nanos,
        device: Option<DeviceId>,
        resumption: Resumption,
    ) -> Result<RequestId, Reject> {
        let refuse = |reason| Reject { reason, retry_after: Nanos::ZERO };
        let Resumption { admission, redo, since, times } = resumption;
        let tenant = self.tenants.slot(admission.tenant).ok_or(refuse(RejectReason::UnknownTenant))?;
        let only = match device {
            Some(id) => Some(self.device(id).ok_or(refuse(RejectReason::NoDevice))? as u32),
            None => None,
        };
        let (device, model) = self.place(tenant, &admission, only).map_err(refuse)?;
        let id = self.enter(now, since, admission, tenant, device, model);
        let request = self.requests.get_mut(id.index() as u32);
        (request.redo_until, request.redo_free, request.pinned) = (redo, true, only.is_some());
        request.watch.resume(since, times);
        Ok(id)
    }

    fn admit_on(
        &mut self,
        now: Nanos,
        admission: Admission,
        place: Option<u32>,
        timely: bool,
        is_sibling: bool,
    ) -> Result<(RequestId, u32), Reject> {
        let refuse = |reason| Reject { reason, retry_after: Nanos::ZERO };
        if self.draining {
            return Err(refuse(RejectReason::Draining));
        }
        let tenant = self.tenants.slot(admission.tenant);
        let tenant = tenant.ok_or(refuse(RejectReason::UnknownTenant))?;
        if let Some(until) = self.tenants.get(tenant).spent_until(now) {
            return Err(Reject { reason: RejectReason::QuotaSpent, retry_after: until - now });
        }
        if !self.devices.iter().any(|device| device.up && !device.closed) && place.is_none() {
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
        let (device, model, first) = match timely {
            true => self.in_time(now, tenant, &admission, (device, model), place.is_some(), is_sibling)?,
            false => (device, model, None),
        };
        let id = self.enter(now, now, admission, tenant, device, model);
        let request = self.requests.get_mut(id.index() as u32);
        (request.first, request.is_sibling) = (first, is_sibling);
        Ok((id, device))
    }

    /// Puts a request into its tenant's queue, as one that came at `since`.
    fn enter(
        &mut self,
        now: Nanos,
        since: Nanos,
        admission: Admission,
        tenant: u32,
        device: u32,
        model: u32,
    ) -> RequestId {
        self.requests.tick(now);
        let slot = self.requests.claim();
        let priority = admission.priority.max(self.tenants.get(tenant).plan.priority_ceiling);
        let rank = rank_of(since, priority, &self.config, self.next_seq);
        self.next_seq += 1;
        let request = self.requests.get_mut(slot);
        request.tenant = tenant;
        request.device = device;
        request.model = model;
        request.rank = rank;
        request.admitted_at = now;
        request.watch = Watch::begin(now);
        let mut work = admission.work;
        match &mut work {
            Work::Generate { prompt_len, hashes, .. } => {
                let full = *prompt_len / BLOCK_LEN;
                request.known = *prompt_len;
                request.uses_cache = full == 0 || !hashes.is_empty();
                request.hashes = core::mem::take(hashes);
                request.hashes.truncate(full as usize);
            }
            Work::Embed { lens } => request.known = lens.len() as u32,
        }
        request.set_work(work);
        let id = self.requests.id(slot);
        let at = &mut self.devices[device as usize];
        at.enter(tenant);
        at.models[model as usize].kin_of(&mut self.requests, slot);
        at.enqueue(&mut self.requests, &mut self.tenants, slot);
        self.make_room_to_pull(tenant, admission.model);
        // Its rows ask for more when it comes to that.
        let wanted = self.requests.get(slot).estimate.min(AT_DOOR_MAX);
        self.tenants.ask_at_door(tenant, wanted, &mut self.events);
        id
    }

    /// When one place in a full queue is expected to be free. The work waiting on the device, at its fitted cost, divided by the
    /// requests it is spread over, is the time until the next of them starts; a tenant's own queue drains at its share of
    /// the device. The measured interval between starts is the floor, for estimates know nothing of stalls.
    fn retry_after(&self, device: u32, tenant: Option<u32>) -> Nanos {
        let device = &self.devices[device as usize];
        let each = match tenant {
            None => device.next_start(),
            Some(tenant) => {
                let share = &device.shares[tenant as usize];
                let each = Nanos(share.demand.0 / u64::from(share.waiting.max(1)));
                self.at_share(device, tenant, each)
            }
        };
        each.max(device.start_interval()).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }
}
