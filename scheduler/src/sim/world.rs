//! Playing a scenario: the events, one after the other.

use alloc::collections::{BTreeMap, BinaryHeap};
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::client::{Client, Clients};
use super::diary::Diary;
use super::given::Given;
use super::lag::Lag;
use super::leases::Balance;
use super::machine::Machine;
use super::outcome::{Incidents, Outcome, TenantOutcome};
use super::rng::{Rng, mix};
use super::scenario::{Arrivals, Scenario};
use super::waits::Waits;
use super::watch::Watch;
use crate::event::{End, Event};
use crate::ids::{DeviceId, Nanos, RequestId, StepId, TenantId};
use crate::plan::RowOutcome;
use crate::scheduler::Scheduler;
use crate::tenant::Tenant;

/// Something that will happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happening {
    Arrival(usize),
    Given(usize),
    StepEnd(usize, StepId),
    Cancel(RequestId),
    Lost(usize, Nanos),
    Back(usize),
    Drain(usize),
    Resume(usize),
    /// The report of a step has not come for too long.
    Silence(usize, StepId),
    /// A report comes after its device was given up; it has this many rows.
    Late(usize, StepId, usize),
    /// Chance strikes: some device is lost, is drained, some tenant's plan changes, or a lease is taken back.
    ChanceLoss,
    ChanceDrain,
    ChancePlan,
    ChanceRevoke,
    /// The store answers a tenant, by place, that wants so much.
    Grant(usize, Nanos),
    /// Something is due at the scheduler.
    Deadline,
}

pub(super) struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) scheduler: Scheduler,
    pub(super) rng: Rng,
    /// By source: see [`World::swap_draws`].
    pub(super) draws: Vec<Rng>,
    pub(super) now: Nanos,
    pub(super) seq: u64,
    pub(super) heap: BinaryHeap<Reverse<(Nanos, u64, Happening)>>,
    pub(super) machines: Vec<Machine>,
    pub(super) clients: Clients,
    /// Requests that a lost device had, until they are taken up.
    pub(super) returning: Vec<Client>,
    pub(super) outcome: Outcome,
    /// Tenants by place, in the order of the outcome: where to find one, its slot, what it has bought now.
    pub(super) places: BTreeMap<TenantId, usize>,
    pub(super) slots: Vec<u32>,
    pub(super) plans: Vec<Tenant>,
    pub(super) balances: Vec<Balance>,
    /// The last deadline of the scheduler's that is among the happenings.
    pub(super) deadline: Nanos,
    pub(super) lag: Lag,
    pub(super) waits: Waits,
    /// Requests that were accepted, and all that came.
    pub(super) accepted: u64,
    pub(super) numbers: u64,
    /// Requests that came, accepted or not.
    pub(super) asked: u64,
    /// By source: turns so far of those who talk, see [`super::Ask::Turns`].
    pub(super) turns: BTreeMap<usize, u32>,
    pub(super) events: Vec<Event>,
    pub(super) outcomes: Vec<RowOutcome>,
    pub(super) given: &'a [Given],
    pub(super) diary: Option<Diary>,
}

/// Plays a scenario to its end: until every accepted request has ended. Panics where something that must be true is not.
pub fn run(scenario: &Scenario) -> Outcome {
    run_watched(scenario, None)
}

/// The same, with somebody looking on.
pub fn run_watched(scenario: &Scenario, watch: Option<&mut Watch>) -> Outcome {
    play(World::new(scenario), watch).0
}

/// Plays a scenario with given requests beside those of its sources, and notes what each request saw. The given ones are in the order
/// of their times.
pub fn replay(scenario: &Scenario, given: &[Given], watch: &mut Watch) -> (Outcome, Diary) {
    let mut world = World::new(scenario);
    world.given = given;
    let tenants = world.outcome.tenants.iter().map(|tenant| tenant.tenant).collect();
    world.diary = Some(Diary::new(scenario.devices, tenants));
    world.plan_given(0);
    let (outcome, diary) = play(world, Some(watch));
    (outcome, diary.expect("it was put there"))
}

fn play(mut world: World<'_>, mut watch: Option<&mut Watch>) -> (Outcome, Option<Diary>) {
    while let Some(Reverse((at, _, happening))) = world.heap.pop() {
        if let Some(watch) = &mut watch {
            watch.look(at, &world.scheduler, world.outcome.tokens);
        }
        world.pass(at);
        world.happen(happening);
        // What one device passes over in this turn is there for another that has nothing to do.
        for _ in 0..2 {
            for d in 0..world.machines.len() {
                world.feed(d);
            }
        }
        world.plan_deadline();
        world.outcome.events += 1;
        world.check_event();
    }
    let diary = world.diary.take();
    (world.finish(), diary)
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> World<'a> {
        let mut scheduler = Scheduler::new(scenario.config.clone());
        let (mut tenants, mut places) = (Vec::new(), BTreeMap::new());
        let (mut slots, mut plans) = (Vec::new(), Vec::new());
        for source in &scenario.sources {
            scheduler.add_tenant(source.tenant, source.plan);
            let place = *places.entry(source.tenant).or_insert_with(|| {
                tenants.push(TenantOutcome::new(source.tenant));
                slots.push(scheduler.tenants.slot(source.tenant).expect("it was just added"));
                plans.push(source.plan);
                tenants.len() - 1
            });
            plans[place] = source.plan;
        }
        let mut machines = Vec::new();
        for d in 0..scenario.devices {
            let uneven = scenario.uneven.iter().find(|uneven| uneven.device == DeviceId(d));
            machines.push(Machine::new(uneven.map_or(100, |uneven| uneven.time_percent.max(1))));
            scheduler.add_device(Nanos::ZERO, DeviceId(d));
            let pool = scenario.pools.iter().find(|(device, _)| *device == DeviceId(d));
            scheduler.set_pool(DeviceId(d), pool.map(|(_, pool)| *pool));
        }
        let outcome = Outcome {
            end: Nanos::ZERO,
            events: 0,
            steps: 0,
            rows: 0,
            tokens: 0,
            preemptions: 0,
            incidents: Incidents::default(),
            gap_max: Nanos::ZERO,
            gap_bound: Nanos::ZERO,
            gap_per_mille: 0,
            wait_per_mille: 0,
            overtaken_max: 0,
            overtaken_per_mille: 0,
            idle_waiting_max: Nanos::ZERO,
            tenants,
            devices: Vec::new(),
            digest: 0,
        };
        let (lag, waits) = (Lag::new(scenario, plans.len()), Waits::new(plans.len()));
        let balances = alloc::vec![Balance::default(); plans.len()];
        let mut world = World {
            scenario,
            scheduler,
            rng: Rng::new(scenario.seed),
            draws: super::arrivals::draws(scenario),
            now: Nanos::ZERO,
            seq: 0,
            heap: BinaryHeap::new(),
            machines,
            clients: Clients::default(),
            returning: Vec::new(),
            outcome,
            places,
            slots,
            plans,
            balances,
            deadline: Nanos(u64::MAX),
            lag,
            waits,
            accepted: 0,
            numbers: 0,
            asked: 0,
            turns: BTreeMap::new(),
            events: Vec::new(),
            outcomes: Vec::new(),
            given: &[],
            diary: None,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let scenario = self.scenario;
        for d in 0..self.machines.len() {
            self.bring_up(d);
        }
        for (n, source) in scenario.sources.iter().enumerate() {
            self.plan_first(n, source);
        }
        let faults = &scenario.faults;
        for (at, device, outage) in &faults.lost {
            self.plan(*at, Happening::Lost(device.0 as usize, *outage));
        }
        for (at, device, pause) in &faults.drained {
            self.plan(*at, Happening::Drain(device.0 as usize));
            self.plan(*at + *pause, Happening::Resume(device.0 as usize));
        }
        self.plan_chance(faults.loss_gap, Happening::ChanceLoss);
        self.plan_chance(faults.drain_gap, Happening::ChanceDrain);
        self.plan_chance(faults.plan_gap, Happening::ChancePlan);
        self.plan_chance(scenario.leases.revoke_gap, Happening::ChanceRevoke);
    }

    pub(super) fn plan(&mut self, at: Nanos, happening: Happening) {
        self.seq += 1;
        self.heap.push(Reverse((at, self.seq, happening)));
    }

    /// No more requests come, and nothing happens by chance any more.
    pub(super) fn is_over(&self) -> bool {
        self.accepted >= self.scenario.requests_max
    }

    /// Plans the next of the happenings that come by chance, as long as requests come.
    pub(super) fn plan_chance(&mut self, gap: Nanos, happening: Happening) {
        if gap > Nanos::ZERO && !self.is_over() {
            let after = self.rng.exponential(gap.0);
            self.plan(self.now + Nanos(after), happening);
        }
    }

    pub(super) fn note(&mut self, word: u64) {
        self.outcome.digest = mix(self.outcome.digest ^ word);
    }

    fn happen(&mut self, happening: Happening) {
        let faults = &self.scenario.faults;
        match happening {
            Happening::Arrival(n) => self.arrive(n),
            Happening::Given(at) => self.arrive_given(at),
            Happening::StepEnd(d, step) => self.end_step(d, step),
            Happening::Cancel(id) => self.cancel(id),
            Happening::Lost(d, outage) => self.lose(d, outage),
            Happening::Back(d) => {
                self.bring_up(d);
                self.take_up();
            }
            Happening::Drain(d) => self.drain(d),
            Happening::Resume(d) => self.resume(d),
            Happening::Silence(d, step) => self.give_up(d, step),
            Happening::Late(d, step, rows) => self.hear_late(d, step, rows),
            Happening::ChanceLoss => {
                let d = self.any_machine();
                self.lose(d, faults.outage);
                self.plan_chance(faults.loss_gap, happening);
            }
            Happening::ChanceDrain => {
                let d = self.any_machine();
                self.drain(d);
                self.plan(self.now + faults.outage, Happening::Resume(d));
                self.plan_chance(faults.drain_gap, happening);
            }
            Happening::ChancePlan => {
                self.change_plan();
                self.plan_chance(faults.plan_gap, happening);
            }
            Happening::ChanceRevoke => {
                self.revoke();
                self.plan_chance(self.scenario.leases.revoke_gap, happening);
            }
            Happening::Grant(place, wanted) => self.give_lease(place, wanted),
            Happening::Deadline => self.scheduler.tick(self.now),
        }
        self.hear();
    }

    fn any_machine(&mut self) -> usize {
        self.rng.between(0, self.machines.len() as u32 - 1) as usize
    }

    fn cancel(&mut self, id: RequestId) {
        if self.clients.get(id).is_some() {
            self.outcome.incidents.cancels += 1;
        }
        self.scheduler.cancel(self.now, id);
    }

    /// Some tenant buys something else.
    fn change_plan(&mut self) {
        let place = self.rng.between(0, self.plans.len() as u32 - 1) as usize;
        let tenant = self.outcome.tenants[place].tenant;
        let bought = self.scenario.sources.iter().find(|source| source.tenant == tenant).expect("it has a source").plan;
        let mut plan = bought;
        if self.rng.between(0, 2) > 0 {
            plan.weight = self.rng.between(1, 2 * bought.weight.max(1));
        }
        match self.rng.between(0, 3) {
            0 => plan.running_max = self.rng.between(1, 16),
            1 => plan.kv_blocks_floor = self.rng.between(0, bought.kv_blocks_floor),
            2 => {
                let blocks = self.scenario.models.iter().map(|model| model.limits.blocks).max().unwrap_or(0);
                plan.kv_blocks_ceiling = Some(self.rng.between(blocks / 4, blocks));
            }
            _ => {}
        }
        self.plans[place] = plan;
        self.scheduler.set_tenant(tenant, plan);
        self.outcome.incidents.plan_changes += 1;
        self.lag.forget(place);
        self.waits.plan_changed();
    }

    /// Takes in what the scheduler has to tell.
    pub(super) fn hear(&mut self) {
        let mut events = core::mem::take(&mut self.events);
        self.scheduler.take_events(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Started { request, cached_tokens } => {
                    self.note(request.0 ^ u64::from(cached_tokens) << 32);
                    self.note_start(request);
                }
                Event::Preempted { request } => {
                    self.note(!request.0);
                    let client = self.clients.get_mut(request).expect("only live requests are preempted");
                    client.runs = false;
                    self.outcome.preemptions += 1;
                }
                Event::Moved { request, from, charge } => {
                    let client = self.clients.get_mut(request).expect("only live requests move");
                    self.machines[usize::from(from.0)].billed += charge - client.booked;
                    client.booked = charge;
                    self.outcome.incidents.moves += 1;
                }
                Event::GrantLow { tenant, wanted, .. } => {
                    self.note(wanted.0);
                    self.ask_lease(self.places[&tenant], wanted);
                }
                Event::GrantReturned { tenant, amount, .. } => {
                    self.note(amount.0);
                    self.take_back(self.places[&tenant], amount);
                }
                Event::Settled { request, tenant, end, device, charge, cached_tokens, preemptions, times, .. } => {
                    self.note(request.0 ^ charge.0.rotate_left(20) ^ end as u64);
                    let mut client = self.clients.remove(request).expect("a request ends once");
                    assert_eq!(self.scenario.sources[client.source].tenant, tenant);
                    assert_eq!(times.total(), self.now - client.came_at, "each nanosecond has its cause");
                    client.times = times;
                    assert!(preemptions <= self.scenario.config.preemptions_max);
                    self.machines[usize::from(device.0)].billed += charge - client.booked;
                    client.booked = Nanos::ZERO;
                    self.note_gone(&client);
                    self.diary(|diary, _| diary.charged(client.number, charge, cached_tokens));
                    let part = &mut self.outcome.tenants[self.places[&tenant]];
                    part.charge += charge;
                    part.cached_tokens += u64::from(cached_tokens);
                    if end == End::Lost && self.keeps(&client) {
                        self.returning.push(client);
                    } else {
                        self.close(client, end);
                    }
                }
            }
        }
        self.events = events;
        self.head_lanes();
    }

    /// The one end of a client's request.
    pub(super) fn close(&mut self, client: Client, end: End) {
        if end == End::Finished {
            let drawn_all = client.is_list() || client.drawn == client.stop;
            assert!(drawn_all && client.before + client.run >= client.lens.len() as u32, "what ends well is complete");
        }
        self.diary(|diary, now| diary.ended(now, client.number, end));
        let source = &self.scenario.sources[client.source];
        let part = &mut self.outcome.tenants[self.places[&source.tenant]];
        part.ends[end as usize] += 1;
        part.prompt_tokens += u64::from(client.prompt_len);
        part.drawn_tokens += u64::from(client.drawn);
        if let Arrivals::Backlog(_) = source.arrivals {
            self.plan(self.now, Happening::Arrival(client.source));
        }
    }
}
