//! Requests of several sorts, whose steps the scheduler plans and charges.

use weir_models::{BLOCK_LEN, ModelKind};
use weir_scheduler::{
    Admission, Config, DeviceId, Event, ModelId, ModelLimits, Nanos, RequestId, RowKind, RowOutcome, Scheduler,
    StepPlan, StepReport, Tenant, TenantId, Work,
};

use super::super::ProbeError;
use crate::config::{DeviceConfig, ExecutorMode};

const DEVICE: DeviceId = DeviceId(0);
const MODEL: ModelId = ModelId(0);
/// Steps after which other numbers of requests are kept up.
const SEASON: u64 = 12;

/// One sort of requests.
pub(super) struct Source {
    /// At most so many at once.
    pub(super) crowd: u32,
    /// Lengths of prompts, or of items.
    pub(super) len: (u32, u32),
    /// Ids drawn.
    pub(super) draws: (u32, u32),
}

/// What a row is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    LongDecode,
    ShortDecode,
    Prefill,
    LongEmbedding,
    ShortEmbedding,
}

impl Group {
    pub(super) const ALL: [Group; 5] =
        [Group::LongDecode, Group::ShortDecode, Group::Prefill, Group::LongEmbedding, Group::ShortEmbedding];

    pub(super) fn name(self) -> &'static str {
        match self {
            Group::LongDecode => "long_decode",
            Group::ShortDecode => "short_decode",
            Group::Prefill => "prefill",
            Group::LongEmbedding => "long_embedding",
            Group::ShortEmbedding => "short_embedding",
        }
    }
}

/// Texts with this much context are long ones, and items of this many tokens.
const LONG_CONTEXT: u32 = 1024;
const LONG_ITEM: u32 = 100;

/// A row of a planned step.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) group: Group,
    pub(super) from: u32,
    pub(super) samples: bool,
    pub(super) ids: Vec<u32>,
    pub(super) blocks: Vec<u32>,
    tenant: TenantId,
    /// What it was charged.
    pub(super) charge: u64,
}

/// A request that is under way. Each has a tenant of its own, so that the tenant's charges are the request's.
struct Live {
    id: RequestId,
    tenant: TenantId,
    source: usize,
}

pub(super) struct Traffic {
    sources: Vec<Source>,
    kind: ModelKind,
    scheduler: Scheduler,
    plan: StepPlan,
    live: Vec<Live>,
    free: Vec<TenantId>,
    wanted: Vec<u32>,
    now: Nanos,
    steps: u64,
    random: u64,
}

impl Traffic {
    /// Requests for a model of this kind, on a CPU with the default settings.
    pub(super) fn new(kind: ModelKind, blocks: u32, tokens_max: u32, context_len_max: u32, seed: u64) -> Traffic {
        let sources = match kind {
            ModelKind::Generate => vec![
                Source { crowd: 3, len: (1_100, 1_800), draws: (128, 384) },
                Source { crowd: 10, len: (16, 96), draws: (32, 128) },
                Source { crowd: 2, len: (100, 900), draws: (1, 1) },
            ],
            ModelKind::Embed => vec![
                Source { crowd: 3, len: (120, 240), draws: (0, 0) },
                Source { crowd: 12, len: (4, 40), draws: (0, 0) },
            ],
        };
        let cpu = DeviceConfig::cpu(0, ExecutorMode::Thread);
        let config = Config { step_latency_max: Nanos(cpu.step_latency_max.as_nanos() as u64), ..Config::default() };
        let mut scheduler = Scheduler::new(config);
        scheduler.add_device(Nanos(0), DEVICE);
        let crowd: u32 = sources.iter().map(|source| source.crowd).sum();
        let free: Vec<TenantId> = (1..=crowd).map(TenantId).collect();
        for &tenant in &free {
            scheduler.add_tenant(tenant, Tenant::default());
        }
        let limits = ModelLimits { blocks, rows_max: cpu.rows_max, tokens_max, context_len_max };
        scheduler.add_model(DEVICE, MODEL, limits);
        Traffic {
            wanted: vec![0; sources.len()],
            sources,
            kind,
            scheduler,
            plan: StepPlan::new(),
            live: Vec::new(),
            free,
            now: Nanos(0),
            steps: 0,
            random: seed,
        }
    }

    /// The next step's rows.
    pub(super) fn next(&mut self) -> Result<Vec<Part>, ProbeError> {
        let season = match self.kind {
            ModelKind::Generate => SEASON,
            // A request is one item, and gone with its step.
            ModelKind::Embed => 1,
        };
        if self.steps.is_multiple_of(season) {
            for source in 0..self.sources.len() {
                self.wanted[source] = self.draw((0, self.sources[source].crowd));
            }
            if self.wanted.iter().all(|wanted| *wanted == 0) {
                self.wanted[0] = 1;
            }
        }
        for source in 0..self.sources.len() {
            let present = self.live.iter().filter(|live| live.source == source).count() as u32;
            for _ in present..self.wanted[source] {
                self.admit(source)?;
            }
        }
        if !self.scheduler.next_step(self.now, DEVICE, &mut self.plan) {
            return Err(ProbeError::Failed("the scheduler plans no step".into()));
        }
        self.plan
            .rows
            .iter()
            .map(|row| {
                let live = self.live.iter().find(|live| live.id == row.request);
                let tenant = live.ok_or_else(|| ProbeError::Failed("a row is nobody's".into()))?.tenant;
                let id = |at: u32| 1 + (at.wrapping_mul(7) + tenant.0 * 13) % 200;
                let part = |group, from, len, samples, blocks| Part {
                    group,
                    from,
                    samples,
                    ids: (from..from + len).map(id).collect(),
                    blocks,
                    tenant,
                    charge: 0,
                };
                Ok(match row.kind {
                    RowKind::Generate { from, len, samples, blocks } => {
                        let group = match (len, from) {
                            (1, LONG_CONTEXT..) => Group::LongDecode,
                            (1, _) => Group::ShortDecode,
                            _ => Group::Prefill,
                        };
                        let blocks = self.plan.blocks_of(blocks).iter().map(|block| block.0).collect();
                        part(group, from, len, samples, blocks)
                    }
                    RowKind::Embed { len, .. } => {
                        let group = if len >= LONG_ITEM { Group::LongEmbedding } else { Group::ShortEmbedding };
                        part(group, 0, len, false, Vec::new())
                    }
                })
            })
            .collect()
    }

    /// The step took so long: the rows are charged, by what the scheduler knew before it saw this time, and then it learns.
    pub(super) fn finish(&mut self, parts: &mut [Part], took: Nanos) -> Result<(), ProbeError> {
        for part in parts.iter_mut() {
            part.charge = self.scheduler.tenant_charge(part.tenant).0;
        }
        self.now = self.now.saturating_add(took);
        let rows = vec![RowOutcome::Advanced; parts.len()];
        let report = StepReport { step: self.plan.step, device_time: took, rows: &rows };
        let mut events = Vec::new();
        if !self.scheduler.finish_step(self.now, DEVICE, &report, &mut events) {
            return Err(ProbeError::Failed("the scheduler does not take the step's report".into()));
        }
        for part in parts.iter_mut() {
            part.charge = self.scheduler.tenant_charge(part.tenant).0 - part.charge;
        }
        for event in events {
            if let Event::Settled { request, .. } = event
                && let Some(at) = self.live.iter().position(|live| live.id == request)
            {
                self.free.push(self.live.swap_remove(at).tenant);
            }
        }
        self.steps += 1;
        Ok(())
    }

    fn admit(&mut self, source: usize) -> Result<(), ProbeError> {
        let Source { len, draws, .. } = self.sources[source];
        let (len, draws) = (self.draw(len), self.draw(draws));
        let work = match self.kind {
            // Without hashes it stays out of the prefix cache, so that its prompt is computed whole.
            ModelKind::Generate => Work::Generate { prompt_len: len, new_tokens_max: draws, hashes: Vec::new() },
            ModelKind::Embed => Work::Embed { lens: vec![len] },
        };
        let Some(tenant) = self.free.pop() else { return Ok(()) };
        let admission = Admission { tenant, model: MODEL, priority: 0, work };
        let id = self.scheduler.admit(self.now, admission);
        let id = id.map_err(|reject| ProbeError::Failed(format!("not admitted: {:?}", reject.reason)))?;
        self.live.push(Live { id, tenant, source });
        Ok(())
    }

    /// A whole number of the range, by splitmix64.
    fn draw(&mut self, (least, most): (u32, u32)) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        least + ((z ^ (z >> 31)) % u64::from(most - least + 1)) as u32
    }
}

/// Blocks that the requests of a decoder can hold at once.
pub(super) fn blocks() -> u32 {
    let long = (1_800 + 384u32).div_ceil(BLOCK_LEN as u32) + 1;
    16 * long
}
