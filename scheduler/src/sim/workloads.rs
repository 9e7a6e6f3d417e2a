//! Loads with a name: those of the VTC paper, and those that the paper has not.
//!
//! The paper's (Sheng et al., OSDI'24, section 5.2; the rates, lengths and phases are those of its artifact) are for one A10G, which
//! ends about 1.6 requests of 256 prompt and 256 drawn tokens a second. What matters in them is who asks for how much of the machine:
//! so every rate is kept as a part of what the machine can do, worked out from the cost model at hand, and the times are
//! shortened, because a machine thirty times as fast shows the same in less of it. A load is overloaded here exactly where it was
//! there.

use alloc::vec;
use alloc::vec::Vec;

use super::arrivals::Phases;
use super::scenario::{Arrivals, Ask, Scenario, SimModel, Source, StepCost};
use crate::BLOCK_LEN;
use crate::config::{Config, ModelLimits};
use crate::ids::{ModelId, Nanos, TenantId};
use crate::tenant::Tenant;

/// A named load.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// A tenant that asks for less than its share, if there is one to look at: what others do should not be felt by it.
    pub polite: Option<TenantId>,
    /// Prompts share beginnings, so that the order decides how much the prefix cache saves.
    pub shares_prefixes: bool,
    /// For how long requests come, in seconds, unless said otherwise; some loads count requests instead.
    pub seconds: u64,
    make: fn(&Machine) -> Vec<Source>,
}

/// All of them.
pub const WORKLOADS: [Workload; 13] = [
    Workload::plain("overload", "two tenants, both over their share, one twice as much", 120, overload),
    Workload {
        polite: Some(TenantId(1)),
        ..Workload::plain(
            "proportional",
            "three tenants, the first two under their share, the third far over",
            120,
            proportional,
        )
    },
    Workload {
        polite: Some(TenantId(1)),
        ..Workload::plain(
            "on-off",
            "a tenant under its share that comes and goes beside one that is over it",
            240,
            on_off,
        )
    },
    Workload::plain(
        "on-off-overload",
        "a tenant over its share that comes and goes beside one that is over it",
        240,
        on_off_overload,
    ),
    Workload::plain(
        "poisson-short-long",
        "many short requests beside few long ones, both over their share",
        120,
        short_long,
    ),
    Workload::plain("shift", "on-off, then both over their share, then one under and one over", 360, shift),
    Workload {
        polite: Some(TenantId(1)),
        ..Workload::plain(
            "noisy-neighbour",
            "a tenant that chats beside prompts of 30,000 tokens at 20 times its rate",
            120,
            noisy,
        )
    },
    Workload::plain("zipf-1000", "a thousand tenants whose rates fall as 1/n, a quarter more than fits", 120, zipf),
    Workload {
        polite: Some(TenantId(4)),
        ..Workload::plain(
            "mixed-embeddings",
            "texts, embeddings, both, and a tenant that chats now and then",
            120,
            mixed,
        )
    },
    Workload {
        shares_prefixes: true,
        ..Workload::plain(
            "prefix-system",
            "many system prompts, each shared by many short requests",
            120,
            prefix_system,
        )
    },
    Workload {
        shares_prefixes: true,
        ..Workload::plain("prefix-documents", "few long documents, and questions about each", 120, prefix_documents)
    },
    Workload {
        shares_prefixes: true,
        ..Workload::plain("prefix-turns", "conversations whose prompts repeat all that was said", 0, prefix_turns)
    },
    Workload::plain("steady", "eight tenants alike with as much to do as fits, and a little more", 120, steady),
];

/// The workload of this name as a scenario on so many devices, each with the model `cost`; nothing if there is none. No faults,
/// no floors, a cap of 50 ms on a step, and queues without end, so that every policy does the same work.
pub fn workload(name: &str, seed: u64, devices: u16, cost: SimModel) -> Option<Scenario> {
    WORKLOADS
        .iter()
        .find(|workload| workload.name == name)
        .map(|found| found.scenario(seed, devices, cost, found.seconds))
}

/// The cap on a step in every workload.
pub const STEP_CAP: Nanos = Nanos::from_millis(50);
/// Where the embeddings of the mixed workload go.
const VECTORS: ModelId = ModelId(1_000);

impl Workload {
    const fn plain(
        name: &'static str,
        about: &'static str,
        seconds: u64,
        make: fn(&Machine) -> Vec<Source>,
    ) -> Workload {
        Workload { name, about, polite: None, shares_prefixes: false, seconds, make }
    }

    /// The load on so many devices for so many seconds. Phases are that much shorter or longer, too.
    pub fn scenario(&self, seed: u64, devices: u16, cost: SimModel, seconds: u64) -> Scenario {
        let machine = Machine { cost, devices: devices.max(1), seconds };
        let sources = (self.make)(&machine);
        let vectors = sources.iter().any(|source| source.model == VECTORS);
        let endless = sources.iter().any(|source| matches!(source.arrivals, Arrivals::Backlog(_)));
        let config = Config {
            queue_len_max: u32::MAX,
            step_latency_max: STEP_CAP,
            token_cost_prior: cost.cost.token,
            step_cost_prior: cost.cost.step,
            ..Config::default()
        };
        let mut models = vec![cost];
        models.extend(vectors.then_some(h200_embeddings()));
        Scenario {
            seed,
            config,
            devices: machine.devices,
            models,
            sources,
            requests_max: if endless { TURNS_REQUESTS * u64::from(machine.devices) } else { u64::MAX },
            recount_every: u64::MAX,
            ..Scenario::default()
        }
    }

    /// The same load with nobody in it but this tenant.
    pub fn solo(scenario: &Scenario, tenant: TenantId) -> Scenario {
        let mut solo = scenario.clone();
        solo.sources.retain(|source| source.tenant == tenant);
        solo
    }
}

/// An encoder of 335 million parameters on one H200, worked out as `h200-llama8b` is: 0.67 GB of weights, 0.67 GFLOP a token, at
/// 400 TFLOP/s for its smaller matrices.
fn h200_embeddings() -> SimModel {
    SimModel {
        id: VECTORS,
        limits: ModelLimits { blocks: 0, rows_max: 256, tokens_max: 16_384, context_len_max: 512 },
        cost: StepCost {
            step: Nanos::from_micros(175),
            token: Nanos(1_700),
            kilocontext: Nanos::ZERO,
            kiloread: Nanos(260),
            overhead: Nanos::from_micros(50),
        },
    }
}

/// What a load is made for.
struct Machine {
    cost: SimModel,
    devices: u16,
    seconds: u64,
}

/// Requests a second of the paper's machine, in thousandths.
const PAPER_PER_MILLE: u64 = 1_600;
/// Requests of the conversations, per device, since those who talk wait for answers.
const TURNS_REQUESTS: u64 = 8_000;

impl Machine {
    /// Device time of a text among as many others as fit side by side.
    fn text_time(&self, prompt: u64, drawn: u64) -> u64 {
        let ModelLimits { rows_max, blocks, tokens_max, .. } = self.cost.limits;
        let StepCost { step, token, kilocontext, kiloread, overhead } = self.cost.cost;
        let held = (prompt + drawn).div_ceil(u64::from(BLOCK_LEN)).max(1);
        let rows = u64::from(rows_max).min(u64::from(blocks) / held).max(1);
        let constant = step.0 + overhead.0;
        let context = prompt + drawn / 2;
        let draw = token.0 + constant / rows + (kilocontext.0 + kiloread.0) * context / 1_000;
        let reads = prompt * prompt / 2;
        drawn * draw + prompt * (token.0 + constant / u64::from(tokens_max.max(1))) + kiloread.0 * reads / 1_000
    }

    /// The mean gap between requests of so much device time that ask for `per_mille` of all devices.
    fn gap(&self, time: u64, per_mille: u64) -> Nanos {
        Nanos(time * 1_000 / (per_mille.max(1) * u64::from(self.devices)))
    }

    /// The gap that stands for the paper's rate of texts of 256 and 256 tokens, in thousandths of a request per second.
    fn paper_gap(&self, rate: u64) -> Nanos {
        self.gap(self.text_time(256, 256), rate * 1_000 / PAPER_PER_MILLE)
    }

    fn seconds(&self, part: u64, of: u64) -> Nanos {
        Nanos(self.seconds * 1_000_000_000 / of * part)
    }

    /// Requests all the time.
    fn always(&self, gap: Nanos, even: bool) -> Arrivals {
        let until = self.seconds(1, 1);
        Arrivals::Phases(Phases { gap, even, on: until, off: Nanos::ZERO, until })
    }

    fn texts(&self, tenant: u32, arrivals: Arrivals, prompt_len: (u32, u32), drawn: (u32, u32)) -> Source {
        let ask = Ask::Generate { prompt_len, drawn, shared_blocks: 0, beginnings: 0 };
        self.source(tenant, arrivals, ask)
    }

    fn source(&self, tenant: u32, arrivals: Arrivals, ask: Ask) -> Source {
        Source {
            tenant: TenantId(tenant),
            plan: Tenant { queue_len_max: u32::MAX, ..Tenant::default() },
            model: self.cost.id,
            priority: 0,
            from: Nanos::ZERO,
            arrivals,
            ask,
        }
    }

    /// Texts of 256 and 256 tokens, evenly spaced at the paper's rate.
    fn paper(&self, tenant: u32, rate: u64) -> Source {
        self.texts(tenant, self.always(self.paper_gap(rate), true), PAPER_LEN, PAPER_LEN)
    }

    /// The same between two of `of` parts of the time, on and off for one part each if wished.
    fn paper_phase(&self, tenant: u32, rate: u64, (from, until, of): (u64, u64, u64), pauses: bool) -> Source {
        let (on, off) = if pauses { (self.seconds(1, of), self.seconds(1, of)) } else { (Nanos::ZERO, Nanos::ZERO) };
        let phases = Phases { gap: self.paper_gap(rate), even: true, on, off, until: self.seconds(until, of) };
        let source = self.texts(tenant, Arrivals::Phases(phases), PAPER_LEN, PAPER_LEN);
        Source { from: self.seconds(from, of), ..source }
    }
}

const PAPER_LEN: (u32, u32) = (256, 256);

fn overload(machine: &Machine) -> Vec<Source> {
    vec![machine.paper(1, 1_500), machine.paper(2, 3_000)]
}

fn proportional(machine: &Machine) -> Vec<Source> {
    vec![machine.paper(1, 250), machine.paper(2, 500), machine.paper(3, 1_500)]
}

fn on_off(machine: &Machine) -> Vec<Source> {
    vec![machine.paper_phase(1, 500, (0, 6, 6), true), machine.paper(2, 2_000)]
}

fn on_off_overload(machine: &Machine) -> Vec<Source> {
    vec![machine.paper_phase(1, 2_000, (0, 6, 6), true), machine.paper(2, 3_000)]
}

fn short_long(machine: &Machine) -> Vec<Source> {
    let poisson = |rate| machine.always(machine.paper_gap(rate), false);
    vec![machine.texts(1, poisson(8_000), (64, 64), (64, 64)), machine.texts(2, poisson(1_500), PAPER_LEN, PAPER_LEN)]
}

fn shift(machine: &Machine) -> Vec<Source> {
    vec![
        machine.paper_phase(1, 500, (0, 6, 18), true),
        machine.paper_phase(2, 2_000, (0, 6, 18), false),
        machine.paper_phase(1, 1_000, (6, 12, 18), false),
        machine.paper_phase(2, 1_000, (6, 12, 18), false),
        machine.paper_phase(1, 500, (12, 18, 18), false),
        machine.paper_phase(2, 1_500, (12, 18, 18), false),
    ]
}

fn noisy(machine: &Machine) -> Vec<Source> {
    let per_second = |rate| Nanos(1_000_000_000 / (rate * u64::from(machine.devices)));
    vec![
        machine.texts(1, machine.always(per_second(1), false), (512, 1_536), (64, 256)),
        machine.texts(2, machine.always(per_second(20), false), (30_000, 30_000), (64, 256)),
    ]
}

fn zipf(machine: &Machine) -> Vec<Source> {
    // The sum of 1/n up to 1,000 is 7.4855.
    let gap = |n: u64| Nanos(machine.gap(machine.text_time(256, 256), 1_250).0 * n * 74_855 / 10_000);
    let texts = |n: u32| machine.texts(n, machine.always(gap(n.into()), false), (32, 480), (32, 480));
    (1..=1_000).map(texts).collect()
}

fn mixed(machine: &Machine) -> Vec<Source> {
    let poisson = |time, per_mille| machine.always(machine.gap(time, per_mille), false);
    let texts = |tenant, per_mille| {
        machine.texts(tenant, poisson(machine.text_time(256, 256), per_mille), (32, 480), (32, 480))
    };
    let StepCost { step, token, .. } = h200_embeddings().cost;
    let list_time = 32 * 288 * token.0 + step.0;
    let vectors = |tenant, per_mille| {
        let ask = Ask::Embed { items: (1, 63), len: (64, 512) };
        Source { model: VECTORS, ..machine.source(tenant, poisson(list_time, per_mille), ask) }
    };
    vec![texts(1, 800), vectors(2, 800), texts(3, 500), vectors(3, 500), texts(4, 50)]
}

/// Texts of tenants alike that share `shared_blocks` with others of theirs, at `per_mille` of what the devices could do without
/// a cache.
fn sharing(
    machine: &Machine,
    tenants: u32,
    beginnings: u32,
    shared_blocks: u32,
    own: (u32, u32),
    per_mille: u64,
) -> Vec<Source> {
    let shared = shared_blocks * BLOCK_LEN;
    let drawn = (32, 128);
    let time = machine.text_time(u64::from(shared + (own.0 + own.1) / 2), 80);
    let arrivals = machine.always(machine.gap(time, per_mille / u64::from(tenants)), false);
    let ask = Ask::Generate { prompt_len: (shared + own.0, shared + own.1), drawn, shared_blocks, beginnings };
    (1..=tenants).map(|tenant| machine.source(tenant, arrivals, ask)).collect()
}

fn prefix_system(machine: &Machine) -> Vec<Source> {
    sharing(machine, 32, 32, 48, (32, 256), 4_000)
}

/// 192 documents of 8,192 tokens take 1.75 times the blocks of `h200-llama8b`, so that the order decides which stay. Four tenants, since
/// to read one costs a quarter of a second: of sixteen, each has 0.6 s of a window of ten, and two readings more or fewer are all
/// that an index of shares would show.
fn prefix_documents(machine: &Machine) -> Vec<Source> {
    sharing(machine, 4, 48, 256, (32, 128), 4_000)
}

/// 384 conversations of 107 blocks on average: half as many again as the pool of `h200-llama8b` holds, so that some must wait cold while
/// others go on. Whoever talks asks again at once, so an order that follows nothing but the cache lets the first finish and the
/// others wait for minutes. Four tenants, for the same reason as above.
fn prefix_turns(machine: &Machine) -> Vec<Source> {
    let ask = Ask::Turns { first: 512, more: 512, drawn: (64, 256), turns: 12 };
    let voice = |n: u32| machine.source(1 + n % 4, Arrivals::Backlog(1), ask);
    (0..384 * u32::from(machine.devices)).map(voice).collect()
}

fn steady(machine: &Machine) -> Vec<Source> {
    let gap = machine.gap(machine.text_time(256, 256), 150);
    (1..=8).map(|tenant| machine.texts(tenant, machine.always(gap, false), (32, 480), (32, 480))).collect()
}
