//! Which device a request goes to, and when it goes to another after all.
//!
//! *At the door* a request is bound to the device that is expected to finish it first: the prompts that are to be computed
//! there and its own, the tokens in that device's prefix cache left out, then its draws beside those of the others. So a
//! conversation comes back to where its past is, unless that device has so much more to do that computing the past again
//! elsewhere is sooner. All of it is integers from each device's own cost model, so devices of different speeds compare;
//! what is nearly equal is decided by what is certain, see [`best`].
//!
//! *Later* an estimate can turn out wrong, and a device can come or go. A request that still waits belongs to nobody:
//! before a device plans a step, it takes over (*pulls*) requests that wait elsewhere and came before what their tenant has waiting
//! here. It takes those that their own device has passed over in a step at least once, which leaves a cached prefix
//! its chance, and only if starting here at once is expected to end sooner than waiting there for the next place. Half of
//! the other's queue goes at a time, by rank, as far as there are rows and blocks for it. Whose tenant has had less than those who are
//! served here moves even if it ends later for it; see [`crate::claim`].
//!
//! *What this keeps.* No device stands idle for longer than a step of another while that one has work waiting that would gain by
//! moving, or for longer than a late step's allowance. A tenant with work waiting anywhere competes for every device that can do it, with what it had of all devices (see
//! [`crate::share`]), so the gap between two backlogged tenants over all devices does not grow with time.
//!
//! *Cost.* At the door, and for each request that a drained device hands on, the requests that run on each device that could do it are looked
//! at, and none that wait. It is no part of a step; a step that pulls looks at a few tenants of each other device, and at what it takes.
//!
//! *What does not move:* running requests (their KV blocks are there), requests that were given a device by name, and
//! those parked on a block that is being computed.

use crate::BLOCK_LEN;
use crate::admit::{Admission, RejectReason, Work};
use crate::blocks::{Limits, ceiling};
use crate::cost::Load;
use crate::device::Device;
use crate::event::{End, Event};
use crate::ids::{DeviceId, ModelId, Nanos, RequestId};
use crate::model::{Model, Need};
use crate::request::{Requests, State};
use crate::scheduler::Scheduler;

use alloc::vec::Vec;

/// Tenants that a device at work asks in a step for requests to take over, per model and other device.
const PULL_ASKS: usize = 8;

impl Scheduler {
    /// The device and model that the work goes to: the best that takes newcomers, or `only` that one.
    pub(crate) fn place(
        &self,
        tenant: u32,
        admission: &Admission,
        only: Option<u32>,
    ) -> Result<(u32, u32), RejectReason> {
        let mut why = RejectReason::UnknownModel;
        let mut places = Vec::with_capacity(self.devices.len());
        for (d, device) in self.devices.iter().enumerate() {
            if !device.up || only.map_or(device.closed, |only| only as usize != d) {
                continue;
            }
            let Some(m) = device.model_index(admission.model) else { continue };
            if let Err(reason) = self.fits(tenant, device, m, &admission.work) {
                // That a device is reserved for others says less than why one that is not cannot do it.
                if reason != RejectReason::NoDevice || why == RejectReason::UnknownModel {
                    why = reason;
                }
                continue;
            }
            // With nothing to compare, the estimate is for nobody.
            places.push(match only.is_some() || self.devices.len() == 1 {
                true => Place { d, m, ..Place::default() },
                false => device.place(d, m, &self.requests, &device.models[m].need(tenant, &admission.work)),
            });
        }
        best(&places).map(|place| (place.d as u32, place.m as u32)).ok_or(why)
    }

    /// Whether the work could run there beside others that keep no more than their floors, as they stand at present.
    pub(crate) fn fits(&self, tenant: u32, device: &Device, model: usize, work: &Work) -> Result<(), RejectReason> {
        if !device.serves(self.tenants.get(tenant)) {
            return Err(RejectReason::NoDevice);
        }
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
                if positions.div_ceil(BLOCK_LEN) > device.models[model].pool.reach(tenant).min(ceiling) {
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

    /// From now on the device takes no newcomers, and what waits for it goes to others that can do it. What runs there, and what no
    /// other can do, runs there to its end. Ends with [`Scheduler::resume_device`], or when the device is added anew.
    pub fn drain_device(&mut self, id: DeviceId) {
        let Some(d) = self.device(id) else { return };
        self.devices[d].closed = true;
        let waiting = |state| matches!(state, State::Waiting | State::Parked);
        let mut slots: Vec<u32> = self
            .requests
            .iter()
            .filter(|(_, request)| waiting(request.state) && request.device as usize == d && !request.pinned)
            .map(|(slot, _)| slot)
            .collect();
        // In the order in which they would have started, so that the first find the shortest queues.
        slots.sort_unstable_by_key(|slot| self.requests.get(*slot).rank);
        for slot in slots {
            if let Some((to, model)) = self.place_again(slot) {
                self.move_to(slot, to, model);
            }
        }
    }

    /// The device takes newcomers again.
    pub fn resume_device(&mut self, id: DeviceId) {
        if let Some(d) = self.device(id) {
            self.devices[d].closed = false;
        }
    }

    /// Whether the device has no request and no step in flight.
    pub fn is_device_empty(&self, id: DeviceId) -> bool {
        self.device(id).is_none_or(|d| self.devices[d].in_flight.is_empty() && self.devices[d].live == 0)
    }

    /// Requests bound to the device that have not ended.
    pub fn device_live(&self, id: DeviceId) -> u32 {
        self.device(id).map_or(0, |d| self.devices[d].live)
    }

    /// The device that the request is bound to; one that waits may yet go to another.
    pub fn device_of(&self, id: RequestId) -> Option<DeviceId> {
        let slot = self.requests.find(id)?;
        Some(self.devices[self.requests.get(slot).device as usize].id)
    }

    /// The best other device for a request that waits, among those that take newcomers.
    fn place_again(&self, slot: u32) -> Option<(usize, usize)> {
        let request = self.requests.get(slot);
        let id = self.devices[request.device as usize].models[request.model as usize].id;
        let mut places = Vec::with_capacity(self.devices.len());
        for (d, device) in self.devices.iter().enumerate() {
            if !device.up || device.closed || d == request.device as usize {
                continue;
            }
            let Some(m) = device.model_index(id) else { continue };
            if self.fits(request.tenant, device, m, &request.work).is_ok() {
                places.push(device.place(d, m, &self.requests, &device.models[m].need_of_waiting(request)));
            }
        }
        best(&places).map(|place| (place.d, place.m))
    }

    /// Ends requests that can never start, as far as no other device can do them. True if there were any.
    pub(crate) fn end_outgrown(&mut self, now: Nanos) -> bool {
        let mut any = false;
        while let Some(id) = self.tenants.outgrown.pop() {
            let Some(slot) = self.requests.find(id) else { continue };
            any = true;
            match self.place_again(slot).filter(|_| !self.requests.get(slot).pinned) {
                Some((to, model)) => self.move_to(slot, to, model),
                None => self.end_early(now, slot, End::NeverFits),
            }
        }
        any
    }

    /// Binds a request that waits to another device. Its rank goes with it.
    pub(crate) fn move_to(&mut self, slot: u32, to: usize, model: usize) {
        let Scheduler { devices, requests, tenants, events, .. } = self;
        let request = requests.get(slot);
        let (from, theirs, tenant) = (request.device as usize, request.model as usize, request.tenant);
        if request.charge > Nanos::ZERO {
            events.push(Event::Moved { request: requests.id(slot), from: devices[from].id, charge: request.charge });
        }
        devices[from].dequeue(requests, tenants, slot);
        devices[from].models[theirs].kin.leave(requests, slot);
        devices[from].leave(tenant);
        let request = requests.get_mut(slot);
        (request.device, request.model) = (to as u32, model as u32);
        // When its first token comes says nothing of waits there, for which it was predicted, and nothing of waits here.
        request.first = None;
        request.is_sibling = false;
        devices[to].enter(tenant);
        devices[to].models[model].kin_of(requests, slot);
        devices[to].enqueue(requests, tenants, slot);
    }

    /// Any device with the model may come to have all of the tenant's requests for it, and should not have to allocate in a step.
    pub(crate) fn make_room_to_pull(&mut self, tenant: u32, model: ModelId) {
        if self.devices.len() == 1 {
            return;
        }
        let live: u32 = self.devices.iter().map(|device| device.shares[tenant as usize].live).sum();
        for model in self.devices.iter_mut().flat_map(|device| &mut device.models).filter(|here| here.id == model) {
            model.lanes[tenant as usize].reserve(live);
        }
    }

    /// Takes over what waits for other devices and would start sooner here.
    pub(crate) fn pull(&mut self, d: usize) {
        let device = &self.devices[d];
        if self.devices.len() == 1 || self.tenants.waiting == 0 || device.closed || device.alone.is_some() {
            return;
        }
        for m in 0..self.devices[d].models.len() {
            for e in 0..self.devices.len() {
                let theirs = self.devices[e].model_index(self.devices[d].models[m].id);
                let Some(theirs) = theirs.filter(|_| e != d && self.devices[e].up) else { continue };
                self.pull_all((e, theirs), (d, m));
            }
        }
    }

    /// Takes over from the tenants that wait for a model there. A device that works asks a few of them each step, and goes on where it left
    /// off; one that stands still asks all.
    fn pull_all(&mut self, (e, theirs): (usize, usize), (d, m): (usize, usize)) {
        let idle = self.devices[d].in_flight.is_empty();
        let mut stands_still = idle && self.stands_still(d);
        let count = self.devices[e].models[theirs].waiting_tenants.len();
        for _ in 0..if idle { count } else { count.min(PULL_ASKS) } {
            let model = &self.devices[d].models[m];
            if model.limits.rows_max <= model.running && !stands_still {
                return;
            }
            let at = model.pulled_at;
            let there = &self.devices[e].models[theirs].waiting_tenants;
            let Some((at, tenant)) =
                there.get(at).map(|tenant| (at, tenant)).or(there.get(0).map(|tenant| (0, tenant)))
            else {
                return;
            };
            stands_still &= !self.pull_from(tenant, (e, theirs), (d, m), stands_still);
            let kept = self.devices[e].models[theirs].waiting_tenants.get(at) == Some(tenant);
            self.devices[d].models[m].pulled_at = at + usize::from(kept);
            self.devices[d].touched += 1;
        }
    }

    /// Whether anything came. Where nothing else runs, the first needs no room: it takes what it needs of those who have blocks and no grant.
    fn pull_from(&mut self, tenant: u32, from: (usize, usize), (d, m): (usize, usize), stands_still: bool) -> bool {
        let (e, theirs) = from;
        let waiting = self.devices[e].models[theirs].lanes[tenant as usize].waiting.len();
        let model = &self.devices[d].models[m];
        let rows = model.limits.rows_max.saturating_sub(model.running).max(u32::from(stands_still));
        let account = self.tenants.get(tenant);
        if waiting == 0 || rows == 0 || !account.may_start() || account.is_dry() {
            return false;
        }
        // What came before what waits here goes before it, wherever it was sent.
        let here = model.lanes[tenant as usize].waiting.head();
        let mut blocks = model.pool.room(tenant, ceiling(account, Limits::Bind), Limits::Bind);
        let mut came = false;
        for _ in 0..rows.min(waiting.div_ceil(2)) {
            let Some(slot) = self.next_to_pull(tenant, e, theirs) else { break };
            let request = self.requests.get(slot);
            if here.is_some_and(|(rank, _)| rank < request.rank) {
                break;
            }
            let wanted = match request.work {
                Work::Generate { .. } => request.known.div_ceil(BLOCK_LEN),
                Work::Embed { .. } => 0,
            };
            let has_room = wanted <= blocks || stands_still && !came;
            if !has_room || !self.gains(slot, d, m) {
                break;
            }
            blocks = blocks.saturating_sub(wanted);
            self.move_to(slot, d, m);
            came = true;
        }
        came
    }

    /// Whether all that is bound to the device waits for grants, or for requests of its own tenant elsewhere.
    fn stands_still(&self, d: usize) -> bool {
        let device = &self.devices[d];
        let dry = |tenant: u32| self.tenants.get(tenant).is_dry();
        let held_back = |tenant: u32| dry(tenant) || !self.tenants.get(tenant).may_start();
        device.in_flight.is_empty()
            && device
                .models
                .iter()
                .all(|model| model.running_tenants.iter().all(dry) && model.waiting_tenants.iter().all(held_back))
    }

    /// The first of the tenant's requests waiting there that may move.
    pub(crate) fn first_to_move(&self, tenant: u32, e: usize, model: usize) -> Option<u32> {
        let queue = &self.devices[e].models[model].lanes[tenant as usize].waiting;
        let free = |slot: &u32| !self.requests.get(*slot).pinned;
        let head = queue.head().map(|(_, slot)| slot).filter(free);
        head.or_else(|| queue.slots().filter(free).min_by_key(|slot| self.requests.get(*slot).rank))
    }

    /// The same, if its device has passed it over.
    fn next_to_pull(&self, tenant: u32, e: usize, model: usize) -> Option<u32> {
        let device = &self.devices[e];
        let slot = self.first_to_move(tenant, e, model)?;
        let passed_over = device.last_step > self.requests.get(slot).queued_at;
        (passed_over || device.closed || device.holds_up(self.requests.now)).then_some(slot)
    }

    /// Whether a request that waits elsewhere is expected to end sooner if it starts on this device at once.
    fn gains(&self, slot: u32, d: usize, m: usize) -> bool {
        let request = self.requests.get(slot);
        let there = &self.devices[request.device as usize];
        if self.fits(request.tenant, &self.devices[d], m, &request.work).is_err() {
            return false;
        }
        if there.closed || there.holds_up(self.requests.now) {
            return true;
        }
        let (here, theirs) = (&self.devices[d].models[m], &there.models[request.model as usize]);
        if !here.cost.tried() || !theirs.cost.tried() {
            return true;
        }
        let sooner = here.time_with(&here.need_of_waiting(request), here.running + 1);
        sooner <= theirs.time_with(&request.need, theirs.running).saturating_add(there.next_start())
    }

    /// Whether the device would pull something now; for those who check that it has.
    #[cfg(feature = "sim")]
    pub(crate) fn could_pull(&self, d: usize) -> bool {
        let device = &self.devices[d];
        let others = (0..self.devices.len()).filter(|&e| e != d && self.devices[e].up);
        device.up
            && !device.closed
            && device.alone.is_none()
            && others.into_iter().any(|e| {
                (0..self.devices[e].models.len()).any(|theirs| {
                    let Some(m) = device.model_index(self.devices[e].models[theirs].id) else { return false };
                    self.devices[e].models[theirs].waiting_tenants.iter().any(|tenant| {
                        self.tenants.get(tenant).may_start()
                            && !self.tenants.get(tenant).is_dry()
                            && self.next_to_pull(tenant, e, theirs).is_some_and(|slot| self.gains(slot, d, m))
                    })
                })
            })
    }
}

/// A device that could do a request, and how well.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    d: usize,
    m: usize,
    /// Nobody knows for how long everybody waits there.
    holds_up: bool,
    /// Reserved for those who ask; the others that they may use are everybody's.
    reserved: bool,
    /// Time from now until the request is expected to end there.
    finish: Nanos,
    /// Enough steps were measured to believe that.
    tried: bool,
    /// Tokens of its prompt in the cache there.
    cached: u32,
    /// Requests of the device that run or wait.
    live: u32,
}

/// The best place. Finishes within an eighth of the least count as equal, for they come from costs that were measured;
/// then a device of the tenant's own pool is better than a common one, which others need more; then a cached prefix decides, which
/// saves what it saves for certain, then the number of requests, then the device's number.
///
/// While one of them has run too few steps to be judged, finishes count for nothing: a device that looked slow at first would never be
/// chosen, and never be seen to be fast.
fn best(places: &[Place]) -> Option<Place> {
    let believed = places.iter().all(|place| place.tried);
    let finish = |place: &Place| if believed { place.finish } else { Nanos::ZERO };
    let least = places.iter().map(|place| (place.holds_up, finish(place))).min()?;
    let enough = least.1.saturating_add(Nanos(least.1.0 / 8));
    let near = |place: &&Place| place.holds_up == least.0 && finish(place) <= enough;
    let order = |place: &&Place| {
        let common = !place.reserved;
        (believed && common, core::cmp::Reverse(place.cached), place.live, common, place.d)
    };
    places.iter().filter(near).min_by_key(order).copied()
}

/// What a model on a device has to do: prompts one after the other, texts side by side.
struct Outlook {
    prompts: Nanos,
    /// Texts that run or wait, the ids they have to draw, and the time of a row of each.
    texts: u32,
    draws: u64,
    rows: Nanos,
}

impl Model {
    fn outlook(&self, requests: &Requests) -> Outlook {
        let waiting_rows = self.cost.marginal(Load::new(0, 1)).0.saturating_mul(u64::from(self.waiting_texts));
        let mut outlook = Outlook {
            prompts: self.waiting_prompts,
            texts: self.waiting_texts,
            draws: self.waiting_draws,
            rows: Nanos(waiting_rows),
        };
        for tenant in self.running_tenants.iter() {
            for &slot in &self.lanes[tenant as usize].running {
                let need = self.need_of_running(requests.get(slot));
                outlook.add(self, &need);
            }
        }
        outlook
    }

    /// Time in which all texts of an outlook draw as many ids as one of them does on average, but at least `draws`.
    fn texts_time(&self, outlook: &Outlook, draws: u64) -> Nanos {
        let rows_max = self.limits.rows_max.max(1);
        let (steps, rows) = match outlook.texts <= rows_max {
            true => (draws, outlook.rows.0),
            // More than run side by side: everybody's rows have to get through.
            false => {
                let rows = u128::from(outlook.rows.0) * u128::from(rows_max) / u128::from(outlook.texts);
                (draws.max(outlook.draws / u64::from(rows_max)), rows as u64)
            }
        };
        Nanos(self.cost.step().0.saturating_add(rows).saturating_mul(steps))
    }

    /// Time that a request takes beside so many others.
    fn time_with(&self, need: &Need, running: u32) -> Nanos {
        let row = self.cost.marginal(Load::new(need.known, 1)).0;
        let step = self.cost.step().0.saturating_add(row.saturating_mul(u64::from(running)));
        need.latency.saturating_add(Nanos(step.saturating_mul(u64::from(need.draws))))
    }
}

impl Outlook {
    fn add(&mut self, model: &Model, need: &Need) {
        self.prompts = self.prompts.saturating_add(need.prompt);
        if need.draws > 0 {
            self.texts += 1;
            self.draws += u64::from(need.draws);
            self.rows = self.rows.saturating_add(model.cost.marginal(Load::new(need.known, 1)));
        }
    }
}

impl Device {
    /// How well the device would do a request: every prompt there is and its own, then its draws beside the others'; while
    /// steps of another model are run, its own stand still.
    fn place(&self, d: usize, m: usize, requests: &Requests, need: &Need) -> Place {
        let mut outlooks: Vec<Outlook> = self.models.iter().map(|model| model.outlook(requests)).collect();
        outlooks[m].add(&self.models[m], need);
        let prompts = outlooks.iter().fold(Nanos::ZERO, |sum, outlook| sum.saturating_add(outlook.prompts));
        let own = match need.draws {
            0 => need.latency,
            draws => self.models[m].texts_time(&outlooks[m], u64::from(draws)),
        };
        let mut finish = prompts.saturating_sub(need.prompt).saturating_add(need.latency);
        finish = finish.saturating_add(if need.draws == 0 { Nanos::ZERO } else { own });
        for (n, (model, outlook)) in self.models.iter().zip(&outlooks).enumerate() {
            if outlook.texts > 0 && (n != m || need.draws == 0) {
                let mean = outlook.draws / u64::from(outlook.texts);
                finish = finish.saturating_add(model.texts_time(outlook, mean).min(own));
            }
        }
        let (holds_up, tried) = (self.holds_up(requests.now), self.models[m].cost.tried());
        let reserved = self.pool.is_some();
        Place { d, m, holds_up, reserved, finish, tried, cached: need.cached, live: self.live }
    }

    /// Whether who waits here waits for something without a foreseeable end: a request that runs alone, or a step that is late.
    fn holds_up(&self, now: Nanos) -> bool {
        self.alone.is_some() || self.is_late(now)
    }

    /// Until one of those that wait is expected to start: their work divided by their number, but at least the measured
    /// time between two starts, for estimates know nothing of stalls.
    pub(crate) fn next_start(&self) -> Nanos {
        Nanos(self.demand.0 / u64::from(self.waiting.max(1))).max(self.start_interval())
    }
}
