//! A scheduler with one device and hands to drive it.

use weir_scheduler::*;

pub const DEVICE: DeviceId = DeviceId(0);
/// For facts about two devices.
pub const OTHER: DeviceId = DeviceId(1);
pub const CHAT: ModelId = ModelId(0);
pub const VECTORS: ModelId = ModelId(1);

pub struct Rig {
    pub scheduler: Scheduler,
    pub now: Nanos,
    pub events: Vec<Event>,
}

/// A step's time in every test that does not say otherwise.
pub const STEP: Nanos = Nanos::from_millis(10);

impl Rig {
    pub fn new(blocks: u32) -> Rig {
        Rig::with(Config::default(), blocks, 8, 256)
    }

    pub fn with(config: Config, blocks: u32, rows_max: u32, tokens_max: u32) -> Rig {
        // These tests plan the next step whenever they like.
        let mut scheduler = Scheduler::new(Config { lead_min: Nanos(u64::MAX), ..config });
        scheduler.add_device(Nanos(0), DEVICE);
        let limits = ModelLimits { blocks, rows_max, tokens_max, context_len_max: 4096 };
        assert!(scheduler.add_model(DEVICE, CHAT, limits));
        let limits = ModelLimits { blocks: 0, rows_max, tokens_max, context_len_max: 512 };
        assert!(scheduler.add_model(DEVICE, VECTORS, limits));
        for tenant in 1..=4 {
            scheduler.add_tenant(TenantId(tenant), Tenant::default());
        }
        Rig { scheduler, now: Nanos(0), events: Vec::new() }
    }

    pub fn tenant(&mut self, tenant: u32, plan: Tenant) {
        self.scheduler.set_tenant(TenantId(tenant), plan);
    }

    pub fn admit(&mut self, tenant: u32, model: ModelId, priority: u8, work: Work) -> Result<RequestId, Reject> {
        self.scheduler.admit(self.now, Admission { tenant: TenantId(tenant), model, priority, work })
    }

    /// A request that stays out of the cache.
    pub fn ask(&mut self, tenant: u32, prompt_len: u32, new_tokens_max: u32) -> RequestId {
        let work = Work::Generate { prompt_len, new_tokens_max, hashes: Vec::new() };
        self.admit(tenant, CHAT, 0, work).unwrap()
    }

    /// A request whose prompt is the text numbered `text`.
    pub fn ask_text(&mut self, tenant: u32, text: u8, prompt_len: u32, new_tokens_max: u32) -> RequestId {
        let hashes = (0..prompt_len / BLOCK_LEN).map(|n| hash(text, n)).collect();
        let work = Work::Generate { prompt_len, new_tokens_max, hashes };
        self.admit(tenant, CHAT, 0, work).unwrap()
    }

    pub fn embed(&mut self, tenant: u32, lens: &[u32]) -> RequestId {
        self.admit(tenant, VECTORS, 0, Work::Embed { lens: lens.to_vec() }).unwrap()
    }

    pub fn plan(&mut self) -> Option<StepPlan> {
        let mut plan = StepPlan::new();
        let planned = self.scheduler.next_step(self.now, DEVICE, &mut plan);
        self.scheduler.check_invariants();
        self.scheduler.take_events(&mut self.events);
        planned.then_some(plan)
    }

    /// Finishes a step that took `time`, each row as `outcome` says.
    pub fn finish_with(&mut self, plan: &StepPlan, time: Nanos, outcome: impl Fn(&PlanRow) -> RowOutcome) {
        self.now += time;
        let rows: Vec<RowOutcome> = plan.rows.iter().map(outcome).collect();
        let report = StepReport { step: plan.step, device_time: time, rows: &rows };
        assert!(self.scheduler.finish_step(self.now, DEVICE, &report, &mut self.events));
        self.scheduler.check_invariants();
    }

    pub fn finish(&mut self, plan: &StepPlan) {
        self.finish_with(plan, STEP, |_| RowOutcome::Advanced);
    }

    /// Plans a step and finishes it; nothing if there was nothing to do.
    pub fn step(&mut self) -> Option<StepPlan> {
        let plan = self.plan()?;
        self.finish(&plan);
        Some(plan)
    }

    /// Runs until nothing is left to do, with steps that cost by their tokens.
    pub fn run_dry(&mut self) -> Vec<StepPlan> {
        let mut plans = Vec::new();
        while let Some(plan) = self.plan() {
            self.finish_with(&plan, Nanos(1_000_000 + 20_000 * plan.tokens()), |_| RowOutcome::Advanced);
            plans.push(plan);
        }
        plans
    }

    /// Plans a step and finishes it after what it costs; false if there was nothing to do.
    pub fn step_at(&mut self, cost: impl Fn(&StepPlan) -> Nanos) -> bool {
        let Some(plan) = self.plan() else {
            return false;
        };
        self.finish_with(&plan, cost(&plan), |_| RowOutcome::Advanced);
        true
    }

    pub fn settled(&self, id: RequestId) -> Option<(End, Nanos)> {
        self.events.iter().find_map(|event| match event {
            Event::Settled { request, end, charge, .. } if *request == id => Some((*end, *charge)),
            _ => None,
        })
    }

    pub fn cached_tokens(&self, id: RequestId) -> Option<u32> {
        self.events.iter().find_map(|event| match event {
            Event::Started { request, cached_tokens } if *request == id => Some(*cached_tokens),
            _ => None,
        })
    }

    pub fn charge(&self, tenant: u32) -> Nanos {
        self.scheduler.tenant_charge(TenantId(tenant))
    }

    pub fn books(&self) -> DeviceAccounts {
        let books = self.scheduler.accounts(self.now, DEVICE);
        assert_eq!(books.wall, books.tenants + books.operator + books.idle + books.in_flight);
        books
    }

    pub fn blocks_free(&self) -> u32 {
        self.scheduler.stats().models[0].blocks_free
    }
}

pub fn hash(text: u8, block: u32) -> BlockHash {
    let mut bytes = [text; 32];
    bytes[..4].copy_from_slice(&(block * 0x9e37 + u32::from(text)).to_le_bytes());
    BlockHash(bytes)
}

/// The row of a request in a plan, as (from, len, samples).
pub fn row(plan: &StepPlan, id: RequestId) -> Option<(u32, u32, bool)> {
    plan.rows.iter().find(|row| row.request == id).map(|row| match row.kind {
        RowKind::Generate { from, len, samples, .. } => (from, len, samples),
        RowKind::Embed { item, len } => (item, len, false),
    })
}

/// Plans a step on this device.
pub fn plan_on(rig: &mut Rig, device: DeviceId) -> Option<StepPlan> {
    let mut plan = StepPlan::new();
    let planned = rig.scheduler.next_step(rig.now, device, &mut plan);
    rig.scheduler.check_invariants();
    rig.scheduler.take_events(&mut rig.events);
    planned.then_some(plan)
}

/// Finishes a step on this device after the time of a step.
pub fn finish_on(rig: &mut Rig, device: DeviceId, plan: &StepPlan) {
    let rows = vec![RowOutcome::Advanced; plan.rows.len()];
    let report = StepReport { step: plan.step, device_time: STEP, rows: &rows };
    assert!(rig.scheduler.finish_step(rig.now, device, &report, &mut rig.events));
    rig.scheduler.check_invariants();
}

/// A step on each device at once; false when neither had anything to do.
pub fn step_both(rig: &mut Rig) -> bool {
    let plans = [DEVICE, OTHER].map(|device| (device, plan_on(rig, device)));
    rig.now += STEP;
    for (device, plan) in &plans {
        if let Some(plan) = plan {
            finish_on(rig, *device, plan);
        }
    }
    plans.iter().any(|(_, plan)| plan.is_some())
}

/// How often a request was preempted.
pub fn preempted(rig: &Rig, id: RequestId) -> usize {
    rig.events.iter().filter(|event| **event == Event::Preempted { request: id }).count()
}
