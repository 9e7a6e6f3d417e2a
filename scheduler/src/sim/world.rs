//! Playing a scenario.

use alloc::collections::{BTreeMap, BinaryHeap, VecDeque};
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::memory::{Memory, Text};
use super::outcome::{Outcome, TenantOutcome};
use super::rng::{Rng, mix};
use super::scenario::{Arrivals, Ask, Scenario, Source};
use super::watch::Watch;
use crate::BLOCK_LEN;
use crate::admit::{Admission, Work};
use crate::event::{End, Event};
use crate::ids::{DeviceId, Nanos, RequestId, StepId, TenantId};
use crate::plan::{PlanRow, RowKind, RowOutcome, StepPlan, StepReport};
use crate::scheduler::Scheduler;

/// Something that will happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happening {
    Arrival(usize),
    StepEnd(usize, StepId),
    Cancel(RequestId),
    Lost(usize, Nanos),
    Back(usize),
    Drain(usize),
    Resume(usize),
}

/// A request as the simulation knows it.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) id: RequestId,
    pub(super) source: usize,
    pub(super) text: Text,
    pub(super) admitted_at: Nanos,
    pub(super) uses_cache: bool,
    pub(super) prompt_len: u32,
    /// Ids after which the text ends, and the most that were asked for.
    pub(super) stop: u32,
    pub(super) drawn: u32,
    pub(super) items: u32,
    /// Positions (or items) run, and planned.
    pub(super) run: u32,
    pub(super) planned: u32,
    pub(super) waited: bool,
    /// The caller judged a stop or a failure: rows still in flight count for nothing.
    pub(super) over: bool,
}

/// A device as the simulation knows it.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) up: bool,
    pub(super) closed: bool,
    /// Since when it has been idle while requests waited.
    pub(super) idle_since: Option<Nanos>,
    /// Steps planned, with the time each begins at.
    pub(super) queue: VecDeque<StepPlan>,
    pub(super) spare: Vec<StepPlan>,
    pub(super) memories: Vec<Memory>,
    /// The measured time of the step that runs.
    pub(super) device_time: Nanos,
}

pub(super) struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) scheduler: Scheduler,
    pub(super) rng: Rng,
    pub(super) now: Nanos,
    pub(super) seq: u64,
    pub(super) heap: BinaryHeap<Reverse<(Nanos, u64, Happening)>>,
    pub(super) machines: Vec<Machine>,
    pub(super) clients: BTreeMap<RequestId, Client>,
    pub(super) outcome: Outcome,
    pub(super) places: BTreeMap<TenantId, usize>,
    pub(super) asked: u64,
    /// By source: turns so far of those who talk, see [`Ask::Turns`].
    pub(super) turns: BTreeMap<usize, u32>,
    pub(super) events: Vec<Event>,
    pub(super) outcomes: Vec<RowOutcome>,
}

/// Plays a scenario to its end: until every accepted request has ended. Panics where something that must be true is not.
pub fn run(scenario: &Scenario) -> Outcome {
    run_watched(scenario, None)
}

/// The same, with somebody looking on.
pub fn run_watched(scenario: &Scenario, mut watch: Option<&mut Watch>) -> Outcome {
    let mut world = World::new(scenario);
    while let Some(Reverse((at, _, happening))) = world.heap.pop() {
        world.now = at;
        if let Some(watch) = &mut watch {
            watch.look(at, &world.scheduler, world.outcome.tokens);
        }
        world.happen(happening);
        world.check_books();
        // What one device passes over in this turn is there for another that has nothing to do.
        for _ in 0..2 {
            for d in 0..world.machines.len() {
                world.feed(d);
            }
        }
        world.check_idleness();
    }
    world.finish()
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> World<'a> {
        let mut scheduler = Scheduler::new(scenario.config.clone());
        let mut machines = Vec::new();
        let (mut tenants, mut places) = (Vec::new(), BTreeMap::new());
        for source in &scenario.sources {
            scheduler.add_tenant(source.tenant, source.plan);
            places.entry(source.tenant).or_insert_with(|| {
                tenants.push(TenantOutcome {
                    tenant: source.tenant,
                    accepted: 0,
                    rejected: 0,
                    ends: [0; 5],
                    charge: Nanos::ZERO,
                    waits: Vec::new(),
                    cached_tokens: 0,
                    prompt_tokens: 0,
                    drawn_tokens: 0,
                });
                tenants.len() - 1
            });
        }
        for d in 0..scenario.devices {
            machines.push(Machine {
                up: false,
                closed: false,
                idle_since: None,
                queue: VecDeque::new(),
                spare: Vec::new(),
                memories: Vec::new(),
                device_time: Nanos::ZERO,
            });
            scheduler.add_device(Nanos::ZERO, DeviceId(d));
        }
        let outcome = Outcome {
            end: Nanos::ZERO,
            steps: 0,
            rows: 0,
            tokens: 0,
            preemptions: 0,
            gap_max: Nanos::ZERO,
            idle_waiting_max: Nanos::ZERO,
            tenants,
            devices: Vec::new(),
            digest: 0,
        };
        let mut world = World {
            scenario,
            scheduler,
            rng: Rng::new(scenario.seed),
            now: Nanos::ZERO,
            seq: 0,
            heap: BinaryHeap::new(),
            machines,
            clients: BTreeMap::new(),
            outcome,
            places,
            asked: 0,
            turns: BTreeMap::new(),
            events: Vec::new(),
            outcomes: Vec::new(),
        };
        for d in 0..world.machines.len() {
            world.bring_up(d);
        }
        for (n, source) in scenario.sources.iter().enumerate() {
            world.plan_first(n, source);
        }
        for (at, device, outage) in &scenario.faults.lost {
            world.plan(*at, Happening::Lost(device.0 as usize, *outage));
        }
        for (at, device, pause) in &scenario.faults.drained {
            world.plan(*at, Happening::Drain(device.0 as usize));
            world.plan(*at + *pause, Happening::Resume(device.0 as usize));
        }
        world
    }

    pub(super) fn plan(&mut self, at: Nanos, happening: Happening) {
        self.seq += 1;
        self.heap.push(Reverse((at, self.seq, happening)));
    }

    fn note(&mut self, word: u64) {
        self.outcome.digest = mix(self.outcome.digest ^ word);
    }

    fn bring_up(&mut self, d: usize) {
        let id = DeviceId(d as u16);
        self.scheduler.add_device(self.now, id);
        (self.machines[d].up, self.machines[d].closed) = (true, false);
        self.machines[d].memories.clear();
        for model in &self.scenario.models {
            assert!(self.scheduler.add_model(id, model.id, model.limits));
            self.machines[d].memories.push(Memory::new(model.limits.blocks));
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrival(n) => self.arrive(n),
            Happening::StepEnd(d, step) => self.end_step(d, step),
            Happening::Cancel(id) => self.scheduler.cancel(self.now, id),
            Happening::Lost(d, outage) => {
                self.scheduler.device_lost(self.now, DeviceId(d as u16));
                let machine = &mut self.machines[d];
                machine.up = false;
                machine.spare.extend(machine.queue.drain(..));
                self.plan(self.now + outage, Happening::Back(d));
            }
            Happening::Back(d) => self.bring_up(d),
            Happening::Drain(d) => {
                self.scheduler.drain_device(DeviceId(d as u16));
                self.machines[d].closed = true;
            }
            Happening::Resume(d) => {
                self.scheduler.resume_device(DeviceId(d as u16));
                self.machines[d].closed = false;
            }
        }
        let mut events = core::mem::take(&mut self.events);
        self.scheduler.take_events(&mut events);
        self.hear(&mut events);
        self.events = events;
    }

    fn arrive(&mut self, n: usize) {
        if self.asked == self.scenario.requests_max {
            return;
        }
        self.asked += 1;
        let source = &self.scenario.sources[n];
        self.plan_next(n, source);
        let mut client = self.client(n, source);
        let work = self.work(source, &mut client);
        let (tenant, model) = (source.tenant, source.model);
        let admission = Admission { tenant, model, priority: source.priority, work };
        let place = self.places[&tenant];
        match self.scheduler.admit(self.now, admission) {
            Err(reject) => {
                self.outcome.tenants[place].rejected += 1;
                self.note(reject.retry_after.0);
                if let Arrivals::Backlog(_) = source.arrivals {
                    let again = reject.retry_after.max(Nanos::from_millis(1));
                    self.plan(self.now + again, Happening::Arrival(n));
                }
            }
            Ok(id) => {
                self.outcome.tenants[place].accepted += 1;
                client.id = id;
                if self.rng.per_mille(self.scenario.faults.cancel_per_mille) {
                    let after = self.rng.exponential(200_000_000);
                    self.plan(self.now + Nanos(after), Happening::Cancel(id));
                }
                assert!(self.clients.insert(id, client).is_none(), "ids are not given twice");
            }
        }
    }

    fn client(&mut self, n: usize, source: &Source) -> Client {
        let own = self.rng.bits();
        Client {
            id: RequestId(0),
            source: n,
            text: Text { tenant: source.tenant.0, beginning: 0, shared_blocks: 0, own },
            admitted_at: self.now,
            uses_cache: false,
            prompt_len: 0,
            stop: 0,
            drawn: 0,
            items: 0,
            run: 0,
            planned: 0,
            waited: false,
            over: false,
        }
    }

    fn work(&mut self, source: &Source, client: &mut Client) -> Work {
        match source.ask {
            Ask::Generate { prompt_len, drawn, shared_blocks, beginnings } => {
                client.prompt_len = self.rng.between(prompt_len.0, prompt_len.1);
                client.stop = self.rng.between(drawn.0, drawn.1);
                let full = client.prompt_len / BLOCK_LEN;
                client.text.shared_blocks = shared_blocks.min(full);
                client.text.beginning = u64::from(self.rng.between(1, beginnings.max(1)));
                client.uses_cache = beginnings > 0;
                let hashed = if client.uses_cache { full } else { 0 };
                Work::Generate {
                    prompt_len: client.prompt_len,
                    new_tokens_max: drawn.1,
                    hashes: (0..hashed).map(|n| client.text.hash(n)).collect(),
                }
            }
            Ask::Turns { .. } => self.turn(source, client),
            Ask::Embed { items, len } => {
                client.items = self.rng.between(items.0, items.1);
                let lens: Vec<u32> = (0..client.items).map(|_| self.rng.between(len.0, len.1)).collect();
                client.prompt_len = lens.iter().sum();
                Work::Embed { lens }
            }
        }
    }

    /// Asks for steps until the device has enough.
    fn feed(&mut self, d: usize) {
        loop {
            let mut plan = self.machines[d].spare.pop().unwrap_or_default();
            if !self.scheduler.next_step(self.now, DeviceId(d as u16), &mut plan) {
                assert!(plan.rows.is_empty());
                self.machines[d].spare.push(plan);
                break;
            }
            self.check_plan(&plan);
            self.machines[d].queue.push_back(plan);
            if self.machines[d].queue.len() == 1 {
                self.begin_step(d);
            }
        }
        let mut events = core::mem::take(&mut self.events);
        self.scheduler.take_events(&mut events);
        self.hear(&mut events);
        self.events = events;
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
        let step = plan.step;
        let mut time = cost.step.0 + cost.token.0 * tokens;
        time += cost.kilocontext.0 * context / 1_000 + cost.kiloread.0 * reads / 1_000;
        if self.rng.per_mille(self.scenario.faults.slow_per_mille) {
            time *= u64::from(self.scenario.faults.slow_factor.max(1));
        }
        self.machines[d].device_time = Nanos(time);
        self.plan(self.now + Nanos(time) + cost.overhead, Happening::StepEnd(d, step));
    }

    fn end_step(&mut self, d: usize, step: StepId) {
        if self.machines[d].queue.front().is_none_or(|plan| plan.step != step) {
            return; // The device was lost meanwhile.
        }
        let plan = self.machines[d].queue.pop_front().expect("the step was just seen");
        self.outcome.steps += 1;
        self.outcome.rows += plan.rows.len() as u64;
        self.outcome.tokens += plan.tokens();
        let mut outcomes = core::mem::take(&mut self.outcomes);
        outcomes.clear();
        for row in &plan.rows {
            outcomes.push(self.run_row(d, &plan, row));
        }
        let mut events = core::mem::take(&mut self.events);
        let report = StepReport { step, device_time: self.machines[d].device_time, rows: &outcomes };
        assert!(self.scheduler.finish_step(self.now, DeviceId(d as u16), &report, &mut events));
        self.hear(&mut events);
        self.events = events;
        self.outcomes = outcomes;
        for row in &plan.rows {
            self.hash_blocks(row.request);
        }
        self.machines[d].spare.push(plan);
        if !self.machines[d].queue.is_empty() {
            self.begin_step(d);
        }
        if self.outcome.steps.is_multiple_of(self.scenario.recount_every.max(1)) {
            self.scheduler.check_invariants();
        }
        self.measure_gap();
    }

    /// Offers the hashes of blocks that drawn ids filled.
    fn hash_blocks(&mut self, id: RequestId) {
        let Some(client) = self.clients.get(&id).filter(|client| client.uses_cache) else {
            return;
        };
        let known = client.prompt_len + client.drawn;
        if client.drawn > 0 && known % BLOCK_LEN == 0 {
            self.scheduler.block_hashed(id, client.text.hash(known / BLOCK_LEN - 1));
        }
    }

    fn hear(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            match event {
                Event::Started { request, cached_tokens } => {
                    self.note(request.0 ^ u64::from(cached_tokens) << 32);
                    assert!(self.clients.contains_key(&request), "only live requests start");
                }
                Event::Preempted { request } => {
                    self.note(!request.0);
                    assert!(self.clients.contains_key(&request), "only live requests are preempted");
                    self.outcome.preemptions += 1;
                }
                Event::GrantLow { .. } | Event::GrantReturned { .. } => {}
                Event::Settled { request, tenant, end, charge, cached_tokens, preemptions, times, .. } => {
                    self.note(request.0 ^ charge.0.rotate_left(20) ^ end as u64);
                    let client = self.clients.remove(&request).expect("a request ends once");
                    let source = &self.scenario.sources[client.source];
                    assert_eq!(source.tenant, tenant);
                    assert_eq!(times.total(), self.now - client.admitted_at, "each nanosecond has its cause");
                    assert!(preemptions <= self.scenario.config.preemptions_max);
                    if end == End::Finished {
                        assert!(client.drawn == client.stop && client.run >= client.items);
                    }
                    let place = self.places[&tenant];
                    let part = &mut self.outcome.tenants[place];
                    part.ends[end as usize] += 1;
                    part.charge += charge;
                    part.cached_tokens += u64::from(cached_tokens);
                    part.prompt_tokens += u64::from(client.prompt_len);
                    part.drawn_tokens += u64::from(client.drawn);
                    if let Arrivals::Backlog(_) = source.arrivals {
                        self.plan(self.now, Happening::Arrival(client.source));
                    }
                }
            }
        }
    }
}
