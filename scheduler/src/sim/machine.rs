//! Devices as the simulation knows them, and the steps that they run.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::memory::Memory;
use super::rng::mix;
use super::world::{Happening, World};
use crate::BLOCK_LEN;
use crate::device::DeviceAccounts;
use crate::ids::{DeviceId, ModelId, Nanos, RequestId, StepId, TenantId};
use crate::plan::{PlanRow, RowKind, RowOutcome, StepPlan, StepReport};
use crate::request::State;

/// A device.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) up: bool,
    pub(super) closed: bool,
    pub(super) time_percent: u32,
    /// Since when it has been idle while requests waited.
    pub(super) idle_since: Option<Nanos>,
    /// Steps planned; the first of them runs.
    pub(super) queue: VecDeque<StepPlan>,
    pub(super) spare: Vec<StepPlan>,
    /// By the model's place in the scenario; empty for those that it does not have.
    pub(super) memories: Vec<Memory>,
    /// The measured time of the step that runs.
    pub(super) device_time: Nanos,
    /// Suspects, of which the first runs alone.
    pub(super) lane: VecDeque<RequestId>,
    /// The simulation's own books: time without a step, and time that steps were reported to have taken.
    pub(super) idle: Nanos,
    pub(super) busy: Nanos,
    /// What requests that ended or moved were charged here, as the scheduler's events tell.
    pub(super) billed: Nanos,
    /// The scheduler's books after the last event.
    pub(super) books: DeviceAccounts,
}

impl Machine {
    pub(super) fn new(time_percent: u32) -> Machine {
        Machine {
            up: false,
            closed: false,
            time_percent,
            idle_since: None,
            queue: VecDeque::new(),
            spare: Vec::new(),
            memories: Vec::new(),
            device_time: Nanos::ZERO,
            lane: VecDeque::new(),
            idle: Nanos::ZERO,
            busy: Nanos::ZERO,
            billed: Nanos::ZERO,
            books: DeviceAccounts::default(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.up && self.queue.is_empty()
    }
}

impl World<'_> {
    /// Time goes on.
    pub(super) fn pass(&mut self, to: Nanos) {
        for machine in self.machines.iter_mut().filter(|machine| machine.is_idle()) {
            machine.idle += to - self.now;
        }
        self.now = to;
    }

    pub(super) fn has_model(&self, d: usize, model: ModelId) -> bool {
        let lacks = |uneven: &super::Uneven| uneven.device.0 as usize == d && uneven.without.contains(&model);
        !self.scenario.uneven.iter().any(lacks)
    }

    pub(super) fn bring_up(&mut self, d: usize) {
        let id = DeviceId(d as u16);
        self.scheduler.add_device(self.now, id);
        (self.machines[d].up, self.machines[d].closed) = (true, false);
        self.machines[d].memories.clear();
        for model in &self.scenario.models {
            let has = self.has_model(d, model.id);
            assert!(!has || self.scheduler.add_model(id, model.id, model.limits));
            self.machines[d].memories.push(Memory::new(if has { model.limits.blocks } else { 0 }));
        }
    }

    /// Asks for steps until the device has enough.
    pub(super) fn feed(&mut self, d: usize) {
        loop {
            let is_dry = self.turn_lane(d);
            let first = self.machines[d].lane.front().copied();
            let mut plan = self.machines[d].spare.pop().unwrap_or_default();
            let planned = self.scheduler.next_step(self.now, DeviceId(d as u16), &mut plan);
            self.check_alone(d, &plan);
            self.hear();
            if planned {
                self.take_plan(d, &plan);
                self.machines[d].queue.push_back(plan);
                if self.machines[d].queue.len() == 1 {
                    self.begin_step(d);
                }
                continue;
            }
            assert!(plan.rows.is_empty());
            self.machines[d].spare.push(plan);
            // Its lane's first may have ended for want of a grant, and then others have their turn.
            let ended = self.machines[d].lane.front().copied() != first;
            if !ended && !self.pass_over(d, is_dry) {
                return;
            }
        }
    }

    /// Who runs alone is alone, but others run while it waits for a grant. No suspect ever runs in company.
    fn check_alone(&self, d: usize, plan: &StepPlan) {
        let suspect = |row: &&PlanRow| self.clients.get(row.request).is_some_and(|client| client.suspect);
        if let Some(suspect) = plan.rows.iter().find(suspect) {
            assert!(plan.rows.iter().all(|row| row.request == suspect.request), "a suspect runs in company");
        }
        if let Some(alone) = self.machines[d].lane.front() {
            let rows = plan.rows.iter().filter(|row| row.request == *alone).count();
            let metered = self
                .clients
                .get(*alone)
                .is_none_or(|client| self.plans[self.places[&self.scenario.sources[client.source].tenant]].metered);
            assert!(rows == plan.rows.len() || rows == 0 && metered, "who runs alone is alone");
        }
    }

    /// Checks a plan against what its clients know: rows follow on each other and draw exactly when they catch up.
    fn take_plan(&mut self, d: usize, plan: &StepPlan) {
        let model = self.scenario.models.iter().position(|model| model.id == plan.model).expect("a known model");
        let limits = self.scenario.models[model].limits;
        assert!(plan.rows.len() as u32 <= limits.rows_max);
        assert!(plan.tokens() <= u64::from(limits.tokens_max) || plan.rows.len() == 1);
        assert!(plan.device.0 as usize == d && self.machines[d].up && self.has_model(d, plan.model));
        let in_flight_max = self.scenario.config.steps_in_flight_max;
        assert!(self.machines[d].queue.len() < in_flight_max.max(1) as usize);
        let mut digest = mix(self.outcome.digest ^ plan.step.0 ^ (d as u64) << 48 ^ u64::from(plan.model.0) << 56);
        let pool = self.scenario.pools.iter().find(|(device, _)| *device == plan.device).map(|(_, pool)| *pool);
        let memory = &mut self.machines[d].memories[model];
        for row in &plan.rows {
            digest = mix(digest ^ row.request.0 ^ u64::from(row.len()) << 40);
            let client = self.clients.get_mut(row.request).expect("rows are of live requests");
            match row.kind {
                RowKind::Embed { item, len } => {
                    assert_eq!(item, client.planned, "items come in order");
                    assert_eq!(len, client.lens[(client.before + item) as usize]);
                    client.planned += 1;
                }
                RowKind::Generate { from, len, samples, blocks } => {
                    // A start, after a preemption say, may begin anywhere that the cache covers.
                    assert!(from == client.planned || from % BLOCK_LEN == 0, "rows follow on each other");
                    let next = client.known();
                    assert!(from + len < next + in_flight_max.max(1), "each step in flight draws one token at most");
                    assert!(!samples || from + len >= next, "ids are drawn at the end");
                    let starts = !client.runs && from != client.planned;
                    let cached = if starts { from / BLOCK_LEN } else { 0 };
                    let table = plan.blocks_of(blocks);
                    digest = mix(digest ^ u64::from(from) ^ u64::from(table.last().map_or(0, |block| block.0)) << 32);
                    memory.plan(row.request, table, from, len, cached);
                    client.planned = from + len;
                }
            }
            let tenant = self.scenario.sources[client.source].tenant;
            let plan = &self.plans[self.places[&tenant]];
            let serves = pool.map_or(!plan.pool_only || plan.pool.is_none(), |pool| plan.pool == Some(pool));
            assert!(serves || tenant == TenantId::OPERATOR, "{tenant:?} runs on a device that is not for it");
            // One that was preempted in this very step still has its row.
            client.runs = self.scheduler.requests.get(row.request.index() as u32).state == State::Running;
        }
        self.outcome.digest = digest;
    }

    fn begin_step(&mut self, d: usize) {
        let plan = &self.machines[d].queue[0];
        let model = self.scenario.models.iter().find(|model| model.id == plan.model);
        let cost = model.expect("a known model").cost;
        let (mut tokens, mut context, mut reads) = (0, 0, 0);
        for PlanRow { kind, .. } in &plan.rows {
            let (from, len) = match *kind {
                RowKind::Generate { from, len, .. } => (u64::from(from), u64::from(len)),
                RowKind::Embed { len, .. } => (0, u64::from(len)),
            };
            tokens += len;
            context += from + len;
            reads += len * from + len * (len + 1) / 2;
        }
        let (step, rows) = (plan.step, plan.rows.len());
        let mut time = cost.step.0 + cost.token.0 * tokens;
        time += cost.kilocontext.0 * context / 1_000 + cost.kiloread.0 * reads / 1_000;
        time = time * u64::from(self.machines[d].time_percent) / 100;
        let faults = &self.scenario.faults;
        if self.rng.per_mille(faults.slow_per_mille) {
            time *= u64::from(faults.slow_factor.max(1));
            self.outcome.incidents.slow_steps += 1;
        }
        self.machines[d].device_time = Nanos(time);
        if faults.mute_per_million > 0 && self.rng.between(0, 999_999) < faults.mute_per_million {
            self.plan(self.now + faults.silence, Happening::Silence(d, step));
            self.plan(self.now + faults.silence + faults.outage + faults.outage, Happening::Late(d, step, rows));
            return;
        }
        self.plan(self.now + Nanos(time) + cost.overhead, Happening::StepEnd(d, step));
    }

    pub(super) fn end_step(&mut self, d: usize, step: StepId) {
        if self.machines[d].queue.front().is_none_or(|plan| plan.step != step) {
            return; // The device was lost meanwhile.
        }
        let plan = self.machines[d].queue.pop_front().expect("the step was just seen");
        self.outcome.steps += 1;
        self.outcome.rows += plan.rows.len() as u64;
        self.outcome.tokens += plan.tokens();
        let model = self.scenario.models.iter().position(|model| model.id == plan.model).expect("a known model");
        let mut outcomes = core::mem::take(&mut self.outcomes);
        outcomes.clear();
        for row in &plan.rows {
            outcomes.push(self.run_row(d, model, &plan, row));
        }
        let device_time = self.machines[d].device_time;
        self.machines[d].busy += device_time;
        self.diary(|diary, _| diary.stepped(d, &plan, device_time));
        let report = StepReport { step, device_time, rows: &outcomes };
        assert!(self.scheduler.finish_step(self.now, DeviceId(d as u16), &report, &mut self.events));
        self.hear();
        self.outcomes = outcomes;
        for row in &plan.rows {
            self.hash_blocks(row.request);
        }
        self.machines[d].spare.push(plan);
        if !self.machines[d].queue.is_empty() {
            self.begin_step(d);
        }
        self.measure_lag();
    }

    /// What the row does to memory and text.
    fn run_row(&mut self, d: usize, model: usize, plan: &StepPlan, row: &PlanRow) -> RowOutcome {
        let fails = self.rng.per_mille(self.scenario.faults.fail_per_mille);
        let memory = &mut self.machines[d].memories[model];
        let Some(client) = self.clients.get_mut(row.request) else {
            // It settled while the step was in flight.
            if let RowKind::Generate { from, len, blocks, .. } = row.kind {
                memory.run(None, plan.blocks_of(blocks), from, len);
            }
            return RowOutcome::Advanced;
        };
        let mut outcome = RowOutcome::Advanced;
        let mut drew = false;
        match row.kind {
            RowKind::Embed { .. } => {
                client.run += 1;
                if client.before + client.run == client.lens.len() as u32 {
                    outcome = RowOutcome::Finished;
                }
            }
            RowKind::Generate { from, len, samples, blocks } => {
                memory.run(Some(&client.text), plan.blocks_of(blocks), from, len);
                client.run = from + len;
                client.computed = client.computed.max(from + len);
                if fails {
                    memory.taint(plan.blocks_of(blocks), from + len);
                }
                if samples && !client.over {
                    client.drawn += 1;
                    drew = !fails;
                    if let Some(diary) = &mut self.diary {
                        diary.drew(self.now, client.number);
                    }
                    if client.drawn == client.stop {
                        outcome = RowOutcome::Finished;
                    }
                }
            }
        }
        let advanced = matches!(row.kind, RowKind::Embed { .. } | RowKind::Generate { samples: true, .. });
        if advanced && !client.waited {
            client.waited = true;
            let place = self.places[&self.scenario.sources[client.source].tenant];
            self.outcome.tenants[place].waits.push(self.now.saturating_sub(client.came_at));
        }
        if fails {
            outcome = RowOutcome::Failed;
            self.outcome.incidents.failed_rows += 1;
        }
        client.over |= fails || outcome == RowOutcome::Finished && !client.is_list();
        if drew && client.suspect {
            self.survive(d, row.request);
        }
        outcome
    }

    /// Offers the hashes of blocks that drawn ids filled.
    fn hash_blocks(&mut self, id: RequestId) {
        let Some(client) = self.clients.get(id).filter(|client| client.uses_cache) else {
            return;
        };
        let known = client.known();
        if client.drawn > 0 && known % BLOCK_LEN == 0 {
            self.scheduler.block_hashed(id, client.text.hash(known / BLOCK_LEN - 1));
        }
    }
}
