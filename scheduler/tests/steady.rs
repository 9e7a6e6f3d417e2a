//! A decision in steady state allocates nothing, and costs no more with more tenants or more requests waiting.
//!
//! The binary has a counting allocator of its own, which is what the one `unsafe` here is for.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;

use weir_scheduler::sim::Rng;
use weir_scheduler::*;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Gone only while the thread ends.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is handed on to the system's allocator with the arguments it came with, so its promises are kept by that
// one; counting touches a thread-local integer that needs no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: as above; `old` came from the system's allocator.
        unsafe { System.realloc(old, layout, len) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above; `old` came from the system's allocator.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Where there are two devices, requests are sent to the first, and this one pulls what it does.
const OTHER: DeviceId = DeviceId(1);
const CHAT: ModelId = ModelId(0);
const VECTORS: ModelId = ModelId(1);

/// A scheduler under a load that neither grows nor shrinks: for each request that ends, one of its tenant's comes.
struct Steady {
    scheduler: Scheduler,
    now: Nanos,
    rng: Rng,
    plans: Vec<VecDeque<StepPlan>>,
    spare: Vec<StepPlan>,
    outcomes: Vec<RowOutcome>,
    events: Vec<Event>,
    ended: u64,
    /// Requests that started on the second device.
    pulled: u64,
    /// Allocations inside `next_step`, `finish_step` and `take_events`, and what those looked at.
    allocations: u64,
    touched: u64,
    rows: u64,
}

impl Steady {
    fn new(devices: u16, rows: u32, tenants: u32, each: u32, vectors: bool) -> Steady {
        let mut scheduler =
            Scheduler::new(Config { queue_len_max: u32::MAX, lead_min: Nanos(u64::MAX), ..Config::default() });
        let limits = ModelLimits { blocks: 60 * rows, rows_max: rows, tokens_max: 1_024, context_len_max: 4_096 };
        for device in (0..devices).map(DeviceId) {
            scheduler.add_device(Nanos(0), device);
            assert!(scheduler.add_model(device, CHAT, limits));
            assert!(scheduler.add_model(device, VECTORS, ModelLimits { blocks: 0, ..limits }));
        }
        for tenant in 1..=tenants {
            let plan = Tenant {
                weight: 1 + tenant % 4,
                queue_len_max: u32::MAX,
                running_max: if tenant % 5 == 0 { 3 } else { u32::MAX },
                // In all less than there is, or nothing would fit beside them.
                kv_blocks_floor: if tenant < 1_000 { tenant % 3 } else { 0 },
                ..Tenant::default()
            };
            scheduler.add_tenant(TenantId(tenant), plan);
        }
        let plan = || {
            let mut plan = StepPlan::new();
            plan.rows.reserve(rows as usize);
            plan.blocks.reserve(rows as usize * 128);
            plan
        };
        let mut steady = Steady {
            scheduler,
            now: Nanos(0),
            rng: Rng::new(5),
            plans: vec![VecDeque::with_capacity(4); devices as usize],
            spare: (0..4 * devices).map(|_| plan()).collect(),
            outcomes: Vec::with_capacity(rows as usize),
            events: Vec::with_capacity(1 << 16),
            ended: 0,
            pulled: 0,
            allocations: 0,
            touched: 0,
            rows: 0,
        };
        for n in 0..tenants * each {
            steady.admit(TenantId(1 + n % tenants), vectors && n % tenants % 10 == 9);
        }
        steady
    }

    fn admit(&mut self, tenant: TenantId, vectors: bool) {
        let (model, work) = if vectors {
            let lens = (0..self.rng.between(1, 40)).map(|_| self.rng.between(5, 200)).collect();
            (VECTORS, Work::Embed { lens })
        } else {
            let prompt_len = self.rng.between(20, 900);
            let own = self.rng.between(0, 2) as u8 * 50 + 3;
            let hash = |n: u32| {
                let mut bytes = [own; 32];
                let key = if n < 4 { u64::from(n) } else { self.rng.bits() };
                bytes[..8].copy_from_slice(&(key.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
                BlockHash(bytes)
            };
            let hashes = (0..prompt_len / BLOCK_LEN).map(hash).collect();
            (CHAT, Work::Generate { prompt_len, new_tokens_max: 200, hashes })
        };
        let priority = self.rng.between(0, 2) as u8;
        let admission = Admission { tenant, model, priority, work };
        let only_first = self.plans.len() > 1;
        if only_first {
            self.scheduler.drain_device(OTHER);
        }
        self.scheduler.admit(self.now, admission).unwrap();
        if only_first {
            self.scheduler.resume_device(OTHER);
        }
    }

    /// Runs so many steps, two of them in flight, and counts what their decisions allocated and looked at.
    fn run(&mut self, steps: usize) {
        (self.allocations, self.touched, self.rows) = (0, 0, 0);
        for n in 0..steps * self.plans.len() {
            let d = n % self.plans.len();
            while self.plans[d].len() < 2 {
                let mut plan = self.spare.pop().unwrap();
                let device = DeviceId(d as u16);
                let planned = self.decide(|steady| steady.scheduler.next_step(steady.now, device, &mut plan));
                if !planned {
                    self.spare.push(plan);
                    break;
                }
                self.rows += plan.rows.len() as u64;
                self.plans[d].push_back(plan);
            }
            let plan = self.plans[d].pop_front().expect("there is always something to run");
            let time = Nanos(4_000_000 + 25_000 * plan.tokens());
            self.now += time;
            self.outcomes.clear();
            for _ in &plan.rows {
                let stops = self.rng.per_mille(10);
                self.outcomes.push(if stops { RowOutcome::Finished } else { RowOutcome::Advanced });
            }
            let outcomes = std::mem::take(&mut self.outcomes);
            let mut events = std::mem::take(&mut self.events);
            let report = StepReport { step: plan.step, device_time: time, rows: &outcomes };
            assert!(self.decide(|steady| {
                let known = steady.scheduler.finish_step(steady.now, plan.device, &report, &mut events);
                steady.scheduler.take_events(&mut events);
                known
            }));
            self.spare.push(plan);
            for event in events.drain(..) {
                if let Event::Started { request, .. } = event {
                    self.pulled += u64::from(self.scheduler.device_of(request) == Some(OTHER));
                }
                if let Event::Settled { tenant, .. } = event {
                    self.ended += 1;
                    self.admit(tenant, tenant.0.is_multiple_of(10));
                }
            }
            (self.outcomes, self.events) = (outcomes, events);
        }
    }

    fn decide<T>(&mut self, decision: impl FnOnce(&mut Steady) -> T) -> T {
        let (before, touched) = (ALLOCATIONS.get(), self.scheduler.touched());
        let decided = decision(self);
        self.allocations += ALLOCATIONS.get() - before;
        self.touched += self.scheduler.touched() - touched;
        decided
    }
}

fn allocates_nothing(devices: u16, rows: u32) {
    let mut steady = Steady::new(devices, rows, 2 * rows, 6, true);
    // Until as many have run at once as ever will: each of those has a block table. With two devices, until those of a tenant that begin
    // alike have met on both.
    steady.run(10_000 * usize::from(devices * devices));
    steady.scheduler.check_invariants();
    let ended = steady.ended;
    steady.run(1_000);
    let preemptions = steady.scheduler.stats().preemptions;
    println!("{} ends, {preemptions} preemptions, {} rows a step", steady.ended - ended, steady.rows / 1_000);
    assert!(steady.ended - ended > 100, "requests end and others start on the way");
    assert_eq!(steady.allocations, 0, "allocations in 1,000 decisions");
    assert!(devices == 1 || steady.pulled > 100, "{} pulled", steady.pulled);
}

#[test]
fn a_decision_with_32_rows_allocates_nothing() {
    allocates_nothing(1, 32);
}

#[test]
fn a_decision_with_256_rows_allocates_nothing() {
    allocates_nothing(1, 256);
}

#[test]
fn a_decision_that_pulls_requests_allocates_nothing() {
    allocates_nothing(2, 32);
}

/// What 32 rows make the planner look at: tenants, requests, and levels of trees.
fn touched(tenants: u32, each: u32) -> u64 {
    let mut steady = Steady::new(1, 32, tenants, each, false);
    steady.run(1_500);
    steady.run(500);
    assert!(steady.rows > 28 * 500, "steps are nearly full");
    32 * steady.touched / steady.rows
}

#[test]
fn ten_times_the_waiting_requests_cost_no_more_looks() {
    let (few, many) = (touched(200, 5), touched(200, 50));
    println!("{few} looks with 1,000 requests, {many} with 10,000");
    assert!(4 * many < 5 * few, "{few} {many}");
}

#[test]
fn ten_times_the_tenants_cost_a_few_levels_more() {
    let (few, many) = (touched(200, 10), touched(2_000, 10));
    println!("{few} looks with 200 tenants, {many} with 2,000");
    // 256 leaves have 8 levels, 2,048 have 11.
    assert!(2 * many < 3 * few, "{few} {many}");
}
