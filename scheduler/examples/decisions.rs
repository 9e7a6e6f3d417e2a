//! What a decision costs the scheduler's thread: `cargo run --release --locked -p weir-scheduler --features sim --example decisions`.
//!
//! A decision is `finish_step`, `take_events` and `next_step` of one step, with two steps in flight. The device is the simulated
//! `h200-llama8b`, scaled to the number of rows: prompts of about 500 and about 2,000 tokens, half of them under shared beginnings,
//! that draw 50 to 350 ids. For each request that ends a new one of the same tenant is admitted, outside the measured stretch, so
//! the number of waiting ones stays what it is said to be. Times are medians of runs; the spread is from the least to the
//! greatest of the runs' medians.

use std::time::Instant;

use weir_scheduler::sim::{Rng, SimModel};
use weir_scheduler::*;

const DEVICE: DeviceId = DeviceId(0);
const MODEL: ModelId = ModelId(0);

/// One scheduler under steady load.
struct Load {
    scheduler: Scheduler,
    now: Nanos,
    rng: Rng,
    tenants: u32,
    /// Planned steps, the oldest first.
    plans: Vec<StepPlan>,
    spare: Vec<StepPlan>,
    /// By request index: ids that it will draw yet.
    left: Vec<u32>,
    outcomes: Vec<RowOutcome>,
    events: Vec<Event>,
}

/// What one run measured, in nanoseconds.
struct Measured {
    decisions: Vec<u64>,
    admissions: Vec<u64>,
    rows: u64,
    prompts: u64,
    table: u64,
    touched: u64,
}

fn main() {
    if let Some(rows) = std::env::args().nth(1).and_then(|rows| rows.parse().ok()) {
        let (median, line) = report(rows, 10_000, 1_000);
        println!("figure=5.rows{rows}_us value={median:.2} {line}");
        return;
    }
    println!(
        "# rows waiting tenants: us per decision p50 p99 (p50 of {RUNS} runs from..to), rows/step, prompts/step, \
              table words/step, touched/step, admit us"
    );
    for rows in [32, 256] {
        let (median, line) = report(rows, 10_000, 1_000);
        println!("figure=5.rows{rows}_us value={median:.2} {line}");
    }
    for waiting in [100, 1_000, 10_000, 100_000] {
        let (median, line) = report(256, waiting, 1_000);
        println!("figure=5.growth_waiting_{waiting}_us value={median:.2} {line}");
    }
    for tenants in [10, 100, 1_000, 10_000] {
        let (median, line) = report(256, 10_000, tenants);
        println!("figure=5.growth_tenants_{tenants}_us value={median:.2} {line}");
    }
}

const RUNS: usize = 7;
const STEPS: usize = 1_500;

/// Median of the runs' medians, and the rest in words.
fn report(rows: u32, waiting: u32, tenants: u32) -> (f64, String) {
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let mut load = Load::new(rows, waiting, tenants);
    load.run(STEPS);
    let mut runs: Vec<Measured> = (0..RUNS).map(|_| load.run(STEPS)).collect();
    let mut medians = Vec::new();
    let (mut tails, mut admissions) = (Vec::new(), Vec::new());
    for run in &mut runs {
        run.decisions.sort_unstable();
        medians.push(run.decisions[STEPS / 2]);
        tails.push(run.decisions[STEPS * 99 / 100]);
        admissions.append(&mut run.admissions);
    }
    medians.sort_unstable();
    tails.sort_unstable();
    admissions.sort_unstable();
    let per_step = |of: fn(&Measured) -> u64| runs.iter().map(of).sum::<u64>() as f64 / (RUNS * STEPS) as f64;
    let line = format!(
        "p99={:.2} from={:.2} to={:.2} rows={:.1} prompts={:.2} table={:.0} touched={:.0} admit={:.2} waiting={}",
        micros(tails[RUNS / 2]),
        micros(medians[0]),
        micros(medians[RUNS - 1]),
        per_step(|run| run.rows),
        per_step(|run| run.prompts),
        per_step(|run| run.table),
        per_step(|run| run.touched),
        micros(admissions.get(admissions.len() / 2).copied().unwrap_or(0)),
        load.scheduler.stats().waiting,
    );
    (micros(medians[RUNS / 2]), line)
}

impl Load {
    fn new(rows: u32, waiting: u32, tenants: u32) -> Load {
        let config = Config { queue_len_max: u32::MAX, lead_min: Nanos(u64::MAX), ..Config::default() };
        let mut scheduler = Scheduler::new(config);
        scheduler.add_device(Nanos(0), DEVICE);
        let model = SimModel::h200_llama8b(MODEL);
        let blocks = (model.limits.blocks as u64 * u64::from(rows) / 256) as u32;
        let limits = ModelLimits { blocks, rows_max: rows, ..model.limits };
        assert!(scheduler.add_model(DEVICE, MODEL, limits));
        for tenant in 1..=tenants {
            let plan = Tenant { weight: 1 + tenant % 3, queue_len_max: u32::MAX, ..Tenant::default() };
            scheduler.add_tenant(TenantId(tenant), plan);
        }
        let mut load = Load {
            scheduler,
            now: Nanos(0),
            rng: Rng::new(1),
            tenants,
            plans: Vec::new(),
            spare: vec![StepPlan::new(), StepPlan::new(), StepPlan::new()],
            left: Vec::new(),
            outcomes: Vec::new(),
            events: Vec::new(),
        };
        // What the pool holds runs; the rest waits.
        for n in 0..waiting + blocks / 50 {
            load.admit(TenantId(1 + n % load.tenants));
        }
        load.plan();
        load.plan();
        load
    }

    fn admit(&mut self, tenant: TenantId) -> u64 {
        let prompt_len = match self.rng.between(0, 1) {
            0 => self.rng.between(300, 700),
            _ => self.rng.between(1_800, 2_200),
        };
        let (shared, text, own) = (self.rng.between(0, 1) == 0, self.rng.between(1, 4), self.rng.bits());
        let key = |n: u32| if shared && n < 8 { u64::from(text) } else { own };
        let hashes = (0..prompt_len / BLOCK_LEN).map(|n| hash(key(n), n)).collect();
        let work = Work::Generate { prompt_len, new_tokens_max: 512, hashes };
        let admission = Admission { tenant, model: MODEL, priority: 0, work };
        let begin = Instant::now();
        let id = self.scheduler.admit(self.now, admission).expect("the queues have no bound");
        let time = begin.elapsed().as_nanos() as u64;
        if self.left.len() <= id.index() {
            self.left.resize(id.index() + 1, 0);
        }
        self.left[id.index()] = self.rng.between(50, 350);
        time
    }

    fn plan(&mut self) {
        let mut plan = self.spare.pop().expect("a spare plan");
        match self.scheduler.next_step(self.now, DEVICE, &mut plan) {
            true => self.plans.push(plan),
            false => self.spare.push(plan),
        }
    }

    fn run(&mut self, steps: usize) -> Measured {
        let (decisions, admissions) = (Vec::with_capacity(steps), Vec::new());
        let mut measured = Measured { decisions, admissions, rows: 0, prompts: 0, table: 0, touched: 0 };
        let touched = self.scheduler.touched();
        for _ in 0..steps {
            if self.plans.is_empty() {
                self.plan();
            }
            let done = self.plans.remove(0);
            measured.rows += done.rows.len() as u64;
            measured.prompts += done.rows.iter().filter(|row| row.len() > 1).count() as u64;
            measured.table += done.blocks.len() as u64;
            let device_time = self.imitate(&done);
            self.now += device_time + Nanos::from_micros(50);
            let mut ahead = self.spare.pop().expect("a spare plan");

            let begin = Instant::now();
            let report = StepReport { step: done.step, device_time, rows: &self.outcomes };
            let known = self.scheduler.finish_step(self.now, DEVICE, &report, &mut self.events);
            let planned = self.scheduler.next_step(self.now, DEVICE, &mut ahead);
            self.scheduler.take_events(&mut self.events);
            measured.decisions.push(begin.elapsed().as_nanos() as u64);

            assert!(known);
            self.spare.push(done);
            match planned {
                true => self.plans.push(ahead),
                false => self.spare.push(ahead),
            }
            for event in std::mem::take(&mut self.events) {
                if let Event::Settled { tenant, .. } = event {
                    let time = self.admit(tenant);
                    measured.admissions.push(time);
                }
            }
        }
        measured.touched = self.scheduler.touched() - touched;
        measured
    }

    /// Runs the step as the device would: fills in the outcomes, says how long it took.
    fn imitate(&mut self, plan: &StepPlan) -> Nanos {
        let cost = SimModel::h200_llama8b(MODEL).cost;
        let mut time = cost.step.0;
        self.outcomes.clear();
        for row in &plan.rows {
            let RowKind::Generate { from, len, samples, .. } = row.kind else { unreachable!("there is only text") };
            let (from, len) = (u64::from(from), u64::from(len));
            let reads = len * from + len * (len + 1) / 2;
            time += cost.token.0 * len + cost.kilocontext.0 * (from + len) / 1_000 + cost.kiloread.0 * reads / 1_000;
            let left = &mut self.left[row.request.index()];
            *left = left.saturating_sub(u32::from(samples));
            self.outcomes.push(if *left == 0 { RowOutcome::Finished } else { RowOutcome::Advanced });
        }
        Nanos(time)
    }
}

fn hash(key: u64, n: u32) -> BlockHash {
    let mut rng = Rng::new(key ^ u64::from(n) << 40);
    let mut bytes = [0; 32];
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&rng.bits().to_le_bytes());
    }
    BlockHash(bytes)
}
