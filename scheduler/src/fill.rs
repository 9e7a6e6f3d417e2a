//! Planning a step: which model, which rows.
//!
//! There are no phases. Every running request has computed tokens chasing known tokens; a row computes some of the gap, and where it
//! closes the gap an id is drawn. A prompt is a wide gap, a decode a gap of one.
//!
//! *Order.* Waiting requests that hit the cache go first, as far as [`crate::kin`] says. Then the tenant with the least virtual time gives one row; the row's expected cost is added to a copy of its virtual time, and
//! the next tenant is picked, until rows or tokens are used up. Inside a tenant, requests go by rank (arrival, put off by
//! priority class), running and waiting ones alike. So when rows are short, rows of a tenant over its share skip steps, and a tenant that
//! comes back finds room at once. Only tenants that were not short before are all looked at; of the others, those whose turn comes
//! (see [`crate::standing`]).
//!
//! *Chunks.* A prompt row takes what the token budget and the latency cap leave, less one token for each running row still to come, so
//! long prompts do not stall decodes. The first prompt row of a step always gets a block's worth, so decodes do not stall
//! prompts. While sequences with ITL targets run, see [`crate::budget`], all rows but the first are cut by time: one that would take the
//! step over the target skips it, and its tenant comes sooner in the next.
//!
//! *Two steps in flight.* Planning goes by what will be known when the steps in flight have ended, on the guess that their requests go on.
//! When the next step is planned, [`crate::ahead`] says.
//!
//! *Alone.* While a request is to run alone, everybody else's rows are passed over, in every step of the device.
//!
//! *Refusals.* Who cannot start for want of tokens or time stays in its place; after a few of them ([`STARTS_REFUSED_MAX`]), or the
//! first one without blocks, the step starts nobody else. So a step asks no more tenants than it has rows, and a few.
//!
//! What goes into a row is `row`'s matter, blocks are `room`'s.
//!
//! Cost: O(rows + arrivals) and O(log tenants) per row, whatever the number of tenants and of waiting requests; running requests that
//! can have no row now (what they know is in flight, or the step has no tokens left for a prompt) cost a look each. No
//! allocation once the buffers have grown.

use crate::BLOCK_LEN;
use crate::admit::Work;
use crate::blocks::Limits;
use crate::device::{Device, Step};
use crate::event::Event;
use crate::ids::{DeviceId, Nanos, StepId};
use crate::model::{Lane, Model};
use crate::plan::StepPlan;
use crate::request::{Rank, Requests, State};
use crate::scheduler::Scheduler;
use crate::share::{Virtual, virtual_time};
use crate::standing::least;
use crate::tenant::Tenants;
use crate::turn::{Order, Turn};
use crate::why::Cause;

use alloc::vec::Vec;

/// Requests that may fail to start in a step for want of tokens or time. Those behind them in order are hardly smaller, there can be any
/// number of them, and they have no claim to overtake.
const STARTS_REFUSED_MAX: u32 = 8;

impl Scheduler {
    /// Fills `plan` with the device's next step. False if there is nothing to run now, or enough steps are in flight; then the plan is
    /// empty. Worth calling again after every admission, cancellation and finished step, and at [`Scheduler::next_deadline`].
    pub fn next_step(&mut self, now: Nanos, id: DeviceId, plan: &mut StepPlan) -> bool {
        plan.clear();
        self.requests.tick(now);
        self.file_lowered();
        self.tick(now);
        let Some(d) = self.device(id) else {
            return false;
        };
        // Nobody waits for one that runs alone and cannot for want of a grant.
        let waits = self.lone_is_dry(d).then(|| self.devices[d].alone.take()).flatten();
        let planned = self.plan_next(now, d, plan);
        self.devices[d].alone = waits.or(self.devices[d].alone);
        self.end_broke(now);
        planned
    }

    fn plan_next(&mut self, now: Nanos, d: usize, plan: &mut StepPlan) -> bool {
        let device = &mut self.devices[d];
        let wanted = device.up && device.in_flight.len() < self.config.steps_in_flight_max.max(1) as usize;
        if wanted && device.puts_off(now, self.config.lead_min) {
            return false;
        }
        if wanted {
            self.pull(d);
        }
        let device = &mut self.devices[d];
        device.tell_time(now);
        if device.alone.is_some_and(|id| self.requests.find(id).is_none()) {
            device.alone = None;
            self.requests.alone(d as u32, None);
        }
        if device.alone.is_some() && !device.in_flight.is_empty() {
            return false;
        }
        if !wanted || device.live == 0 {
            return false;
        }
        device.lift(&mut self.tenants);
        let planning = StepId(self.next_step);
        let planned = self.plan_step(now, d, plan, Limits::Bind)
            || self.devices[d].in_flight.is_empty() && self.plan_step(now, d, plan, Limits::GiveWay);
        self.devices[d].note_short(&mut self.tenants, planning);
        planned
    }

    fn plan_step(&mut self, now: Nanos, d: usize, plan: &mut StepPlan, limits: Limits) -> bool {
        // Who is far ahead of those that wait for another model gets rows only if nothing else can run.
        for riders in 0..self.devices[d].models.len().min(2) {
            for model in &mut self.devices[d].models {
                model.tried = false;
            }
            while let Some(m) = self.next_model(d) {
                let rival = if riders > 0 { Virtual::MAX } else { self.devices[d].rival(&mut self.tenants, m) };
                self.devices[d].models[m].tried = true;
                if self.fill(now, d, m, rival, plan, limits) {
                    return true;
                }
            }
        }
        false
    }

    fn next_model(&mut self, d: usize) -> Option<usize> {
        #[cfg(feature = "sim")]
        if self.config.order.is_foreign() {
            return self.devices[d].next_model();
        }
        self.devices[d].choose_model(&mut self.tenants)
    }

    fn fill(&mut self, now: Nanos, d: usize, m: usize, rival: Virtual, plan: &mut StepPlan, limits: Limits) -> bool {
        let id = StepId(self.next_step);
        let device = &mut self.devices[d];
        let mut step = device.spare.pop().unwrap_or_default();
        step.id = id;
        step.model = m as u32;
        let budget = device.step_budget(m);
        let model = &mut device.models[m];
        (plan.step, plan.device, plan.model) = (id, device.id, model.id);
        let reserve = match model.limits.blocks {
            0 => 0,
            _ => model.running,
        };
        let mut fill = Fill {
            now,
            id,
            m,
            limits,
            rival,
            preemptions_max: self.config.preemptions_max,
            start_preempts_at: self.config.start_preempts_at,
            locality_quantum: self.config.locality_quantum,
            #[cfg(feature = "sim")]
            order: self.config.order,
            quota_wait_max: self.config.quota_wait_max,
            unpaid: false,
            rows_left: model.limits.rows_max.max(1),
            tokens_left: model.limits.tokens_max.max(1),
            time_left: budget.time.saturating_sub(model.cost.step()),
            strict: budget.strict,
            reserve,
            prompt_given: false,
            no_room: false,
            starts_left: STARTS_REFUSED_MAX,
            device,
            tenants: &mut self.tenants,
            requests: &mut self.requests,
            events: &mut self.events,
            preemptions: &mut self.preemptions,
            plan,
            step: &mut step,
        };
        #[cfg(feature = "sim")]
        match self.config.order.is_foreign() {
            true => fill.run_as(self.config.order, &mut self.policy),
            false => fill.run(&mut self.order),
        }
        #[cfg(not(feature = "sim"))]
        fill.run(&mut self.order);

        let device = &mut self.devices[d];
        if step.rows.is_empty() {
            device.spare.push(step);
            return false;
        }
        self.next_step += 1;
        device.expect(now, m, budget, &mut step);
        if device.in_flight.is_empty() {
            device.book_idle(now);
        }
        device.models[m].last_step = id;
        device.last_step = id;
        device.in_flight.push_back(step);
        true
    }
}

/// What a tenant gave when it was asked for a row.
enum Pick {
    /// A row of this expected cost.
    Row(Nanos),
    /// Nothing, now.
    Nothing,
}

/// What became of a waiting request at the head of its lane.
pub(crate) enum Start {
    Row(Nanos),
    /// Another request computes the block it needs next.
    Parked,
    /// Too few tokens or too little time are left in this step.
    NoBudget,
    /// Too few blocks.
    NoRoom,
    /// The tenant's ceiling.
    Capped,
    /// Too little of the tenant's grant.
    NoGrant,
}

/// A step being filled.
pub(crate) struct Fill<'a> {
    pub(crate) now: Nanos,
    pub(crate) id: StepId,
    pub(crate) m: usize,
    pub(crate) limits: Limits,
    /// Who has more virtual time gets no row; see [`crate::rival`].
    pub(crate) rival: Virtual,
    pub(crate) preemptions_max: u32,
    pub(crate) start_preempts_at: Nanos,
    pub(crate) locality_quantum: Nanos,
    #[cfg(feature = "sim")]
    pub(crate) order: crate::config::Order,
    pub(crate) quota_wait_max: Nanos,
    /// The row just asked for is passed over for want of a grant, not of the device.
    pub(crate) unpaid: bool,
    pub(crate) rows_left: u32,
    pub(crate) tokens_left: u32,
    pub(crate) time_left: Nanos,
    /// ITL targets are in `time_left`.
    pub(crate) strict: bool,
    /// Running rows not looked at yet: a token is kept for each.
    pub(crate) reserve: u32,
    /// A prompt row is in the plan.
    pub(crate) prompt_given: bool,
    /// A request did not start for want of blocks.
    pub(crate) no_room: bool,
    /// So many more may fail to start for want of tokens or time before nobody else is asked to.
    pub(crate) starts_left: u32,
    pub(crate) device: &'a mut Device,
    pub(crate) tenants: &'a mut Tenants,
    pub(crate) requests: &'a mut Requests,
    pub(crate) events: &'a mut Vec<Event>,
    pub(crate) preemptions: &'a mut u64,
    pub(crate) plan: &'a mut StepPlan,
    pub(crate) step: &'a mut Step,
}

impl Fill<'_> {
    pub(crate) fn model(&mut self) -> &mut Model {
        &mut self.device.models[self.m]
    }

    fn lane(&mut self, tenant: u32) -> &mut Lane {
        &mut self.device.models[self.m].lanes[tenant as usize]
    }

    fn run(&mut self, order: &mut Order) {
        self.start_kin();
        order.clear();
        match self.device.alone.map(|id| self.requests.find(id)) {
            // Nobody else's lane is asked, and nothing is noted.
            Some(alone) => {
                if let Some(tenant) = alone.map(|slot| self.requests.get(slot).tenant) {
                    let id = self.id;
                    self.lane(tenant).ask(id);
                    order.call(Turn::new(0, tenant));
                }
            }
            None => {
                let model = &mut self.device.models[self.m];
                for tenant in self.device.calm.iter().chain(self.device.at_hand.iter()) {
                    let lane = &mut model.lanes[tenant as usize];
                    if self.tenants.get(tenant).is_dry() {
                        self.reserve = self.reserve.saturating_sub(lane.running.len() as u32);
                    } else if !lane.is_empty() {
                        lane.ask(self.id);
                        order.call(Turn::new(self.tenants.get(tenant).service.virtual_time(), tenant));
                    }
                }
                self.device.touched += order.sort() as u64;
            }
        }
        let mut filed = self.next_filed();
        // Preemptions so far when the files were last looked at with starts closed.
        let mut looked_at = None;
        while self.rows_left > 0 && self.tokens_left > 0 {
            let first = order.first();
            let turn = first.min(filed);
            if turn == Turn::NEVER {
                return;
            }
            let (mut time, tenant) = (turn.time(), turn.tenant());
            if time > self.rival {
                break;
            }
            match first == turn {
                true => order.take(turn),
                false => {
                    // Unless it was preempted meanwhile, and turned calm.
                    let still = self.device.models[self.m].is_filed(tenant);
                    if still {
                        self.call(tenant);
                    }
                    filed = self.next_filed();
                    if !still {
                        continue;
                    }
                }
            }
            let next = order.first().min(filed);
            // Row by row, until the turn of another comes.
            while let Pick::Row(cost) = self.pick(tenant) {
                self.device.shares[tenant as usize].reached = self.id;
                // At least one unit, so that tenants take turns even where rows are free.
                time += virtual_time(cost, self.tenants.get(tenant).weight()).max(1);
                let over = self.rows_left == 0 || self.tokens_left == 0;
                if over || time > self.rival || next < Turn::new(time, tenant) {
                    if self.has_more(tenant) {
                        order.come_again(Turn::new(time, tenant));
                    }
                    break;
                }
            }
            // Nobody that only has waiting requests is called any more, and who lost the last running one is such a tenant.
            if filed != Turn::NEVER && !self.starts_open() && looked_at != Some(*self.preemptions) {
                looked_at = Some(*self.preemptions);
                filed = self.next_filed();
            }
        }
        // Those whose turn did not come, or may still have come again.
        for turn in order.left() {
            let tenant = turn.tenant();
            let share = &self.device.shares[tenant as usize];
            // Who was short and is passed over still is.
            let more = share.short && share.reached != self.id || self.has_more(tenant);
            self.lane(tenant).short |= more;
        }
    }

    fn has_more(&mut self, tenant: u32) -> bool {
        self.next_running(tenant).is_some() || self.next_waiting(tenant).is_some()
    }

    /// The turn of the tenant with the least time of those that are filed and may have something to run.
    fn next_filed(&mut self) -> Turn {
        if self.device.alone.is_some() {
            return Turn::NEVER;
        }
        let open = self.starts_open();
        let model = &mut self.device.models[self.m];
        let running = least(&mut model.short_running, self.tenants);
        let waiting = if open { least(&mut model.short_waiting, self.tenants) } else { None };
        let turn = |least: Option<(Virtual, u32)>| least.map_or(Turn::NEVER, |(time, tenant)| Turn::new(time, tenant));
        turn(running).min(turn(waiting))
    }

    /// Takes a tenant out of its files and to hand.
    fn call(&mut self, tenant: u32) {
        for model in &mut self.device.models {
            model.short_running.remove(tenant);
            model.short_waiting.remove(tenant);
        }
        self.device.at_hand.set(tenant, true);
        self.device.touched += 1;
        let id = self.id;
        self.lane(tenant).ask(id);
    }

    /// Whether requests may still start in this step.
    fn starts_open(&self) -> bool {
        self.starts_left > 0 && !self.no_room
    }

    /// One row of the tenant's, by rank.
    fn pick(&mut self, tenant: u32) -> Pick {
        loop {
            let running = self.next_running(tenant);
            let waiting = self.next_waiting(tenant);
            let start = match (running, waiting) {
                (None, None) => return Pick::Nothing,
                (Some(running), Some((rank, _))) => rank < self.requests.get(running).rank,
                (running, _) => running.is_none(),
            };
            if let (false, Some(slot)) = (start, running) {
                if let Some(cost) = self.go_on(slot) {
                    return Pick::Row(cost);
                }
                let short = !core::mem::take(&mut self.unpaid);
                let lane = self.lane(tenant);
                lane.short |= short;
                lane.cursor += 1;
            } else if let Some((_, slot)) = waiting {
                let by_rank = self.requests.get(slot).queue_pos == 0;
                match self.start(slot) {
                    Start::Row(cost) => {
                        self.device.models[self.m].kin.started(self.requests, slot, by_rank);
                        return Pick::Row(cost);
                    }
                    Start::Parked => {}
                    Start::Capped => {
                        self.requests.wait(slot, Cause::Queue);
                        self.lane(tenant).capped = true;
                    }
                    Start::NoGrant => self.lane(tenant).capped = true,
                    Start::NoBudget => {
                        self.starts_left = self.starts_left.saturating_sub(1);
                        let lane = self.lane(tenant);
                        (lane.capped, lane.short) = (true, true);
                    }
                    Start::NoRoom => {
                        if by_rank {
                            self.requests.wait(slot, Cause::Memory);
                        }
                        self.no_room = true;
                        self.lane(tenant).short = true;
                    }
                }
            }
        }
    }

    /// The tenant's next running request that can have a row in this step.
    fn next_running(&mut self, tenant: u32) -> Option<u32> {
        let id = self.id;
        let requests = &mut *self.requests;
        let alone = self.device.alone;
        let lane = &mut self.device.models[self.m].lanes[tenant as usize];
        while let Some(&slot) = lane.running.get(lane.cursor as usize) {
            let request = requests.get(slot);
            let barred = alone.is_some_and(|alone| requests.id(slot) != alone);
            if !barred && request.ready_len() > 0 && (request.is_list || request.last_step != id) {
                requests.wait(slot, Cause::Share);
                return Some(slot);
            }
            if barred {
                requests.wait(slot, Cause::Placement);
            }
            lane.cursor += 1;
            self.device.touched += 1;
        }
        None
    }

    /// The tenant's next waiting request, if it may start.
    fn next_waiting(&mut self, tenant: u32) -> Option<(Rank, u32)> {
        self.device.touched += 1;
        let (no_room, closed) = (self.no_room, !self.starts_open());
        let lane = &mut self.device.models[self.m].lanes[tenant as usize];
        if closed && lane.short {
            // It was told why already, and its line of memory is best left alone.
            return None;
        }
        let head = lane.waiting.head().filter(|_| !lane.capped)?;
        // One that is to run alone starts wherever it stands in its line.
        let lone = self.device.alone.and_then(|alone| self.requests.find(alone)).filter(|slot| {
            let request = self.requests.get(*slot);
            (request.state, request.tenant, request.model as usize) == (State::Waiting, tenant, self.m)
        });
        if let Some(slot) = lone.filter(|slot| *slot != head.1 && self.tenants.get(tenant).may_start() && !closed) {
            return Some((self.requests.get(slot).rank, slot));
        }
        let barred = self.device.alone.is_some_and(|alone| self.requests.id(head.1) != alone);
        let cause = match self.tenants.get(tenant).may_start() {
            false => Cause::Queue,
            true if barred => Cause::Placement,
            true if no_room => Cause::Memory,
            true => Cause::Share,
        };
        self.requests.wait(head.1, cause);
        if matches!(cause, Cause::Queue | Cause::Placement) {
            return None;
        }
        if closed {
            lane.short = true;
            return None;
        }
        // Its kin go in its place.
        let kin = self.device.models[self.m].kin.next(tenant);
        let kin = kin.filter(|_| self.device.alone.is_none());
        Some((head.0, kin.unwrap_or(head.1)))
    }

    /// A row for a running request, unless tokens, time or blocks are short.
    pub(crate) fn go_on(&mut self, slot: u32) -> Option<Nanos> {
        self.unpaid = false;
        self.reserve = self.reserve.saturating_sub(1);
        let request = self.requests.get(slot);
        if let (true, Work::Embed { lens }) = (request.is_list, &request.work) {
            let len = lens[request.planned as usize];
            let fits = self.fits_item(len) && self.afford(slot, 0, len, true).is_some();
            return fits.then(|| self.push_item(slot, len));
        }
        let from = request.planned;
        let len = self.chunk(from, request.ready_len())?;
        let len = self.afford(slot, from, len, false)?;
        if self.grow(slot, (from + len).div_ceil(BLOCK_LEN)).is_none() {
            self.requests.wait(slot, Cause::Memory);
            return None;
        }
        Some(self.push_stretch(slot, len))
    }

    /// Starts a waiting request and gives it its first row.
    pub(crate) fn start(&mut self, slot: u32) -> Start {
        let request = self.requests.get(slot);
        match &request.work {
            Work::Embed { lens } => {
                let len = lens[request.planned as usize];
                if !self.fits_item(len) {
                    return Start::NoBudget;
                }
                if self.afford(slot, 0, len, true).is_none() {
                    return Start::NoGrant;
                }
                self.enter(slot, 0);
                Start::Row(self.push_item(slot, len))
            }
            Work::Generate { .. } => self.start_sequence(slot),
        }
    }
}
