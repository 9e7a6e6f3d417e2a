//! Planning a step: which model, which rows.
//!
//! There are no phases. Every running request has computed tokens chasing known tokens; a row computes some of the gap, and where it
//! closes the gap an id is drawn. A prompt is a wide gap, a decode a gap of one.
//!
//! *Order.* Waiting requests that hit the cache go first, as far as [`crate::kin`] says. Then the tenant with the least virtual time gives one row; the row's expected cost is added to a copy of its virtual time, and
//! the next tenant is picked, until rows or tokens are used up. Inside a tenant, requests go by rank (arrival, put off by
//! priority class), running and waiting ones alike, but where all rows are taken an older one does not put a running one aside
//! ([`Fill::starts_before`]). So when rows are short, rows of a tenant over its share skip steps, and a tenant that comes back finds room at once. Only tenants that were not short before are all looked at; of the others, those whose turn comes
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
//! *The usual row* is the next token of a running text, and nothing stands in its way. [`Fill::decode`] plans it in one go; for all others there
//! is [`Fill::pick`], which would plan the usual ones alike.
//!
//! Which row of a tenant's comes next is `pick`'s matter, what goes into a row is `row`'s, blocks are `room`'s.
//!
//! Cost: O(rows + arrivals) and O(log tenants) per row, whatever the number of tenants and of waiting requests; running requests that
//! can have no row now (what they know is in flight, or the step has no tokens left for a prompt) cost a look each. No
//! allocation once the buffers have grown.

use crate::blocks::Limits;
use crate::cost::Load;
use crate::device::{Device, Step};
use crate::event::Event;
use crate::ids::{DeviceId, Nanos, StepId};
use crate::lane::Lane;
use crate::model::Model;
use crate::pick::Pick;
use crate::plan::StepPlan;
use crate::request::Requests;
use crate::room::InVain;
use crate::scheduler::Scheduler;
use crate::share::{Virtual, virtual_time};
use crate::standing::least;
use crate::tenant::Tenants;
use crate::turn::{Order, Turn};

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
        self.devices[d].alone_waits = waits.is_some();
        let mut planned = self.plan_next(now, d, plan);
        while self.end_outgrown(now) && !planned {
            // Others of their tenants may have stood behind them.
            planned = self.plan_next(now, d, plan);
        }
        self.devices[d].alone = waits.or(self.devices[d].alone);
        self.devices[d].alone_waits = false;
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
        let is_here = |slot| self.requests.get(slot).device as usize == d;
        if device.alone.is_some_and(|id| !self.requests.find(id).is_some_and(is_here)) {
            // It has ended or left, and who runs alone next is not for us to say.
            device.set_alone(&mut self.requests, d as u32, None);
            device.alone_waits = true;
        }
        if device.alone.is_some() && !device.in_flight.is_empty() {
            return false;
        }
        if !wanted || device.live == 0 {
            return false;
        }
        device.lift(&mut self.tenants);
        self.claim(d);
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
        step.load = Load::default();
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
            held_back: false,
            rows_left: model.limits.rows_max.max(1),
            tokens_left: model.limits.tokens_max.max(1),
            time_left: budget.time.saturating_sub(model.cost.step()),
            strict: budget.strict,
            reserve,
            prompt_given: false,
            no_room: false,
            taken: 0,
            in_vain: None,
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
    /// The row just asked for is passed over by its tenant's own limit, a grant or a ceiling, and not for want of the device.
    pub(crate) held_back: bool,
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
    /// Blocks taken so far, and for whom there was none.
    pub(crate) taken: u32,
    pub(crate) in_vain: Option<InVain>,
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

    #[inline]
    pub(crate) fn lane(&mut self, tenant: u32) -> &mut Lane {
        &mut self.device.models[self.m].lanes[tenant as usize]
    }

    /// The tenant has a row of this step.
    #[inline]
    pub(crate) fn note_reached(&mut self, tenant: u32) {
        let id = self.id;
        self.lane(tenant).reached = id;
    }

    fn run(&mut self, order: &mut Order) {
        self.start_kin();
        order.clear();
        match self.device.alone.map(|id| self.requests.find(id)) {
            // Nobody else's lane is asked, and nothing is noted.
            Some(alone) => {
                if let Some(tenant) = alone.map(|slot| self.requests.get(slot).tenant) {
                    self.device.models[self.m].ask(self.requests, tenant, self.id);
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
                        model.ask(self.requests, tenant, self.id);
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
            while let Some((marginal, more)) = self.decode(tenant).or_else(|| self.think(tenant)) {
                // Mostly it had all it can have, and when its next turn would be is nobody's question.
                if !more {
                    break;
                }
                let cost = self.model().cost.attributed_row(marginal);
                // At least one unit, so that tenants take turns even where rows are free.
                time += virtual_time(cost, self.tenants.get(tenant).weight()).max(1);
                let over = self.rows_left == 0 || self.tokens_left == 0;
                if over || time > self.rival || next < Turn::new(time, tenant) {
                    order.come_again(Turn::new(time, tenant));
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
            // Who was short and is passed over still is.
            let id = self.id;
            let passed_over = self.device.shares[tenant as usize].short && self.lane(tenant).reached != id;
            let more = passed_over || self.has_more(tenant);
            self.lane(tenant).short |= more;
        }
    }

    /// One row of the tenant's, if it can have one, and whether it could have another.
    fn think(&mut self, tenant: u32) -> Option<(Nanos, bool)> {
        let Pick::Row(marginal) = self.pick(tenant) else { return None };
        self.note_reached(tenant);
        Some((marginal, self.has_more(tenant)))
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
        self.device.models[self.m].ask(self.requests, tenant, self.id);
    }

    /// Whether requests may still start in this step.
    #[inline]
    pub(crate) fn starts_open(&self) -> bool {
        self.starts_left > 0 && !self.no_room
    }
}
