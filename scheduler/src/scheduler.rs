//! The state machine's outside: tenants, devices, cancellation, draining, and the books. Admission is in [`crate::admit`], planning
//! in `fill`, what follows a step in `step`.

use alloc::vec::Vec;

use crate::BLOCK_LEN;
use crate::config::{Config, ModelLimits};
use crate::device::{Device, DeviceAccounts};
use crate::event::{End, Event};
use crate::ids::{BlockHash, DeviceId, ModelId, Nanos, RequestId, TenantId};
use crate::model::Model;
use crate::purse::Rate;
use crate::request::{Requests, State};
use crate::tenant::{Tenant, Tenants};
use crate::turn::Order;

/// Who runs next, where, and who pays. One per node, owned by one thread; every method takes the caller's clock and returns at once.
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) tenants: Tenants,
    pub(crate) devices: Vec<Device>,
    pub(crate) requests: Requests,
    pub(crate) draining: bool,
    pub(crate) next_seq: u64,
    pub(crate) next_step: u64,
    /// Events not yet handed out.
    pub(crate) events: Vec<Event>,
    pub(crate) preemptions: u64,
    pub(crate) order: Order,
    #[cfg(feature = "sim")]
    pub(crate) policy: crate::sim::Policy,
}

impl Scheduler {
    /// A scheduler with no devices, and with the operator as its only tenant.
    pub fn new(config: Config) -> Scheduler {
        let (tenants, mut order) = (Tenants::new(config.hold_max), Order::default());
        order.grow(tenants.len());
        Scheduler {
            config,
            tenants,
            devices: Vec::new(),
            requests: Requests::default(),
            draining: false,
            next_seq: 0,
            next_step: 1,
            events: Vec::new(),
            preemptions: 0,
            order,
            #[cfg(feature = "sim")]
            policy: crate::sim::Policy::default(),
        }
    }

    /// Adds a tenant, or changes what it bought. What it has at work stays at work.
    pub fn add_tenant(&mut self, id: TenantId, tenant: Tenant) {
        let before = self.tenants.slot(id).map(|slot| self.tenants.get(slot).plan.itl_target);
        let slot = self.tenants.set(id, tenant, self.config.hold_max);
        self.order.grow(self.tenants.len());
        for device in &mut self.devices {
            device.grow(self.tenants.len());
            device.set_plan(&self.tenants, slot);
        }
        if before.is_some_and(|before| before != tenant.itl_target) {
            self.retarget(slot, before.flatten());
        }
    }

    /// The same as [`Scheduler::add_tenant`], under the name it has for a tenant that exists.
    pub fn set_tenant(&mut self, id: TenantId, tenant: Tenant) {
        self.add_tenant(id, tenant);
    }

    /// Adds a device, or takes one back that was lost: its books go on, its models must be added again. A device that is up is left
    /// as it is.
    pub fn add_device(&mut self, now: Nanos, id: DeviceId) {
        if let Some(d) = self.device(id) {
            let device = &mut self.devices[d];
            if !device.up {
                device.book_idle(now);
                (device.up, device.closed) = (true, false);
            }
            return;
        }
        let device = Device::new(id, now, &self.tenants, self.config.step_latency_max);
        match self.devices.iter_mut().find(|device| device.gone) {
            Some(vacant) => *vacant = device,
            None => self.devices.push(device),
        }
    }

    /// What a step of this device should stay under, in place of [`Config::step_latency_max`].
    pub fn set_step_latency(&mut self, id: DeviceId, step_latency_max: Nanos) {
        if let Some(d) = self.device(id) {
            self.devices[d].step_latency_max = step_latency_max;
        }
    }

    /// What this device's time counts in grants, in millionths: a device of another class may be worth more, or less, than one of rate one.
    pub fn set_device_rate(&mut self, id: DeviceId, ppm: u32) {
        if let Some(d) = self.device(id) {
            self.devices[d].rate = Rate::from_ppm(ppm);
        }
    }

    /// Adds a model to a device. False, and nothing happens, if the device is not up or has the model already.
    pub fn add_model(&mut self, device: DeviceId, id: ModelId, limits: ModelLimits) -> bool {
        let Some(d) = self.device(device) else {
            return false;
        };
        if !self.devices[d].up || self.devices[d].model_index(id).is_some() {
            return false;
        }
        let mut model = Model::new(id, limits, &self.config, self.tenants.len());
        let device = &mut self.devices[d];
        if let Some(at) = device.learnt.iter().position(|learnt| learnt.model == id) {
            model.recall(device.learnt.swap_remove(at));
        }
        if let Some(same) = self.devices.iter().flat_map(|device| &device.models).find(|model| model.id == id) {
            model.learn_from(same);
        }
        let device = &mut self.devices[d];
        for (tenant, account) in (0u32..).zip(self.tenants.iter()) {
            model.pool.set_plan(tenant, account, device.serves(account));
        }
        device.models.push(model);
        true
    }

    /// Takes a device out for good: its requests end as lost, its books are closed.
    pub fn remove_device(&mut self, now: Nanos, id: DeviceId) {
        self.device_lost(now, id);
        if let Some(d) = self.device(id) {
            self.devices[d].gone = true;
        }
    }

    /// The device's process died or its driver gave up. All its requests end as [`End::Lost`], its models and their caches are gone,
    /// and the time of its steps in flight and of the outage is the operator's, until [`Scheduler::add_device`] takes it back.
    pub fn device_lost(&mut self, now: Nanos, id: DeviceId) {
        let Some(d) = self.device(id) else { return };
        if !self.devices[d].up {
            return;
        }
        self.requests.tick(now);
        let device = &mut self.devices[d];
        if device.in_flight.is_empty() {
            device.book_idle(now);
        }
        device.tell_time(now);
        device.up = false;
        device.alone = None;
        self.unreserve(d);
        let device = &mut self.devices[d];
        device.in_flight.clear();
        device.put_off = None;
        device.book_idle(now);
        let slots: Vec<u32> = self
            .requests
            .iter()
            .filter(|(_, request)| request.state != State::Free && request.device as usize == d)
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            let state = self.requests.get(slot).state;
            if matches!(state, State::Waiting | State::Parked) {
                self.devices[d].dequeue(&mut self.requests, &mut self.tenants, slot);
            }
            self.devices[d].leave_lane(&mut self.requests, &mut self.tenants, slot);
            self.requests.get_mut(slot).in_flight = 0;
            match state {
                State::Ghost => self.discard(slot),
                _ => self.settle(now, slot, End::Lost),
            }
        }
        self.keep_block_times(now, d);
        let device = &mut self.devices[d];
        for model in device.models.drain(..) {
            device.learnt.retain(|learnt| learnt.model != model.id);
            device.learnt.push(model.into_learnt());
        }
        self.end_broke(now);
    }

    /// Ends a request. Blocks used by steps in flight stay until those have ended, and so does the [`Event::Settled`], for the
    /// tenant pays for them. A stale id, or a request that is ending already, is left alone.
    pub fn cancel(&mut self, now: Nanos, id: RequestId) {
        if let Some(slot) = self.requests.find(id) {
            self.end_early(now, slot, End::Cancelled);
        }
    }

    /// Ends a request that is not ending yet.
    pub(crate) fn end_early(&mut self, now: Nanos, slot: u32, end: End) {
        let Scheduler { devices, requests, tenants, .. } = self;
        requests.tick(now);
        let device = &mut devices[requests.get(slot).device as usize];
        device.tell_time(now);
        match requests.get(slot).state {
            State::Waiting | State::Parked => device.dequeue(requests, tenants, slot),
            State::Running => device.leave_lane(requests, tenants, slot),
            State::Draining => {}
            State::Ending | State::Ghost | State::Free => return,
        }
        if self.requests.get(slot).in_flight == 0 {
            self.settle(now, slot, end);
            return;
        }
        let request = self.requests.get_mut(slot);
        (request.state, request.ending) = (State::Ending, end);
        self.devices[request.device as usize].yield_blocks(&mut self.requests, slot);
    }

    /// Until further notice, the device runs rows of this request only, one step at a time: whatever happens then is its doing
    /// alone. Everybody else waits, so it is for moments in which that matters. Ends by itself when the request does, or when it goes to
    /// another device, as one that waits may.
    pub fn run_alone(&mut self, id: DeviceId, request: Option<RequestId>) {
        if let Some(d) = self.device(id) {
            self.devices[d].set_alone(&mut self.requests, d as u32, request);
        }
    }

    /// The caller computed the hash of the request's next full block of known tokens. The block is published once it is
    /// computed. Ignored for a stale id, for a request that stays out of the cache, and beyond the known tokens.
    pub fn block_hashed(&mut self, id: RequestId, hash: BlockHash) {
        let Some(slot) = self.requests.find(id) else {
            return;
        };
        let request = self.requests.get_mut(slot);
        let device = request.device as usize;
        let full = request.known / BLOCK_LEN;
        if request.draws_max() == 0 || !request.uses_cache || request.hashes.len() as u32 >= full {
            return;
        }
        request.hashes.push(hash);
        self.devices[device].publish(&mut self.requests, &mut self.tenants, slot);
    }

    /// Admits nothing more; what was accepted runs to its end.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Appends the events that happened outside [`Scheduler::finish_step`]: starts, preemptions, cancellations, losses.
    pub fn take_events(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.events);
    }

    /// Where the device's time went; all zero for a device that is not there.
    pub fn accounts(&self, now: Nanos, id: DeviceId) -> DeviceAccounts {
        self.device(id).map_or(DeviceAccounts::default(), |d| self.devices[d].accounts(now))
    }

    /// The device that a request is on, and what it was charged so far, on all devices; nothing for a stale id.
    pub fn charge_of(&self, id: RequestId) -> Option<(DeviceId, Nanos)> {
        let request = self.requests.get(self.requests.find(id)?);
        Some((self.devices[request.device as usize].id, request.charge))
    }

    /// What the tenant was billed so far, over all devices.
    pub fn tenant_charge(&self, id: TenantId) -> Nanos {
        self.tenants.slot(id).map_or(Nanos::ZERO, |slot| self.tenants.get(slot).charge)
    }

    pub(crate) fn device(&self, id: DeviceId) -> Option<usize> {
        self.devices.iter().position(|device| device.id == id && !device.gone)
    }

    /// The request's one end. It must be out of queue and lane. With rows in flight it stays as a ghost that holds its blocks.
    pub(crate) fn settle(&mut self, now: Nanos, slot: u32, end: End) {
        let id = self.requests.id(slot);
        let request = self.requests.get(slot);
        let account = self.tenants.get(request.tenant);
        self.events.push(Event::Settled {
            request: id,
            tenant: account.id,
            end,
            device: self.devices[request.device as usize].id,
            charge: request.charge,
            cached_tokens: request.cached_tokens,
            queued: request.started_at.unwrap_or(now).saturating_sub(request.admitted_at),
            times: request.watch.until(now),
            preemptions: request.preemptions,
        });
        let (d, m) = (request.device as usize, request.model as usize);
        let in_flight = request.in_flight;
        let device = &mut self.devices[d];
        device.leave(request.tenant);
        device.models[m].kin.leave(&mut self.requests, slot);
        let (device, request) = (&mut self.devices[d], self.requests.get(slot));
        if end == End::Finished && request.draws_max() > 0 {
            let (id, drawn) = (device.models[m].id, request.drawn);
            // How long answers are is the model's way, and its clients', on whatever device.
            for model in self.devices.iter_mut().flat_map(|device| &mut device.models).filter(|model| model.id == id) {
                model.observe_drawn(drawn);
            }
        }
        self.requests.retire(slot);
        if in_flight == 0 {
            self.discard(slot);
            return;
        }
        self.requests.get_mut(slot).state = State::Ghost;
        self.devices[d].yield_blocks(&mut self.requests, slot);
    }

    /// Frees the blocks and the slot of a settled request.
    pub(crate) fn discard(&mut self, slot: u32) {
        let request = self.requests.get(slot);
        let device = &mut self.devices[request.device as usize];
        device.release_blocks(&mut self.requests, &mut self.tenants, slot);
        self.requests.release(slot);
    }
}
