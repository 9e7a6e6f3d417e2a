//! Long seeded histories; the simulator itself asserts what must always be true, see `weir_scheduler::sim`.

use weir_scheduler::sim::{Arrivals, Ask, Faults, Outcome, Rng, Scenario, SimModel, Source, StepCost, run};
use weir_scheduler::{Config, DeviceId, End, ModelId, ModelLimits, Nanos, Tenant, TenantId};

const CHAT: ModelId = ModelId(0);
const VECTORS: ModelId = ModelId(1);

fn chat_model(blocks: u32) -> SimModel {
    SimModel {
        id: CHAT,
        limits: ModelLimits { blocks, rows_max: 32, tokens_max: 512, context_len_max: 2048 },
        cost: StepCost {
            step: Nanos::from_millis(4),
            token: Nanos::from_micros(20),
            kilocontext: Nanos::ZERO,
            kiloread: Nanos::from_micros(5),
            overhead: Nanos::from_micros(30),
        },
    }
}

fn vector_model() -> SimModel {
    SimModel {
        id: VECTORS,
        limits: ModelLimits { blocks: 0, rows_max: 32, tokens_max: 512, context_len_max: 512 },
        cost: StepCost {
            step: Nanos::from_millis(1),
            token: Nanos::from_micros(5),
            kilocontext: Nanos::ZERO,
            kiloread: Nanos::from_micros(1),
            overhead: Nanos::from_micros(30),
        },
    }
}

fn chat(tenant: u32, weight: u32, arrivals: Arrivals) -> Source {
    Source {
        tenant: TenantId(tenant),
        plan: Tenant { weight, ..Tenant::default() },
        model: CHAT,
        priority: 0,
        from: Nanos::ZERO,
        arrivals,
        ask: Ask::Generate { prompt_len: (10, 200), drawn: (1, 40), shared_blocks: 2, beginnings: 3 },
    }
}

fn scenario(sources: Vec<Source>, requests_max: u64) -> Scenario {
    Scenario {
        seed: 1,
        config: Config::default(),
        devices: 1,
        models: vec![chat_model(512), vector_model()],
        sources,
        faults: Faults::default(),
        requests_max,
        recount_every: 16,
        ..Scenario::default()
    }
}

#[test]
fn a_hundred_thousand_requests_keep_every_invariant() {
    let mut sources: Vec<Source> =
        (1..=6).map(|t| chat(t, t, Arrivals::Poisson(Nanos::from_millis(60 + 20 * u64::from(t))))).collect();
    let embeds = Ask::Embed { items: (1, 60), len: (5, 200) };
    sources.push(Source { model: VECTORS, ask: embeds, ..chat(7, 1, Arrivals::Poisson(Nanos::from_millis(150))) });
    let mut scenario = scenario(sources, 100_000);
    scenario.sources[5].arrivals = Arrivals::Backlog(60);
    scenario.devices = 2;
    scenario.config.start_preempts_at = Nanos::from_millis(20);
    scenario.models[0].limits.blocks = 110;
    scenario.recount_every = 64;
    scenario.faults = Faults {
        cancel_per_mille: 20,
        fail_per_mille: 1,
        slow_per_mille: 2,
        slow_factor: 10,
        lost: vec![
            (Nanos::from_secs(60), DeviceId(0), Nanos::from_secs(5)),
            (Nanos::from_secs(120), DeviceId(1), Nanos::from_secs(1)),
        ],
        drained: vec![(Nanos::from_secs(30), DeviceId(1), Nanos::from_secs(10))],
        ..Faults::default()
    };
    let outcome = run(&scenario);
    println!("{outcome:?}", outcome = Outcome { tenants: Vec::new(), ..outcome.clone() });
    for end in [End::Finished, End::Cancelled, End::Failed] {
        assert!(outcome.ended(end) > 0, "{end:?} happens");
    }
    assert!(outcome.incidents.losses == 2 && outcome.incidents.resumed > 20);
    assert!(outcome.accepted() > 90_000 && outcome.preemptions > 0);
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let sources = (1..=4).map(|t| chat(t, 1, Arrivals::Poisson(Nanos::from_millis(50)))).collect();
    let mut scenario = scenario(sources, 2_000);
    scenario.faults.cancel_per_mille = 50;
    let first = run(&scenario);
    assert_eq!(first, run(&scenario));
    scenario.seed = 2;
    assert_ne!(first.digest, run(&scenario).digest);
}

#[test]
fn random_small_worlds_neither_break_nor_stand_still() {
    let (mut preemptions, mut cached, mut rejected) = (0, 0, 0);
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let blocks = rng.between(8, 64);
        let mut sources = Vec::new();
        for tenant in 1..=rng.between(1, 5) {
            let arrivals = match rng.between(0, 1) {
                0 => Arrivals::Poisson(Nanos::from_millis(u64::from(rng.between(1, 100)))),
                _ => Arrivals::Backlog(rng.between(1, 12)),
            };
            let mut source = chat(tenant, rng.between(1, 4), arrivals);
            source.priority = rng.between(0, 3) as u8;
            source.plan.running_max = rng.between(1, 12);
            source.plan.queue_len_max = rng.between(2, 40);
            source.plan.kv_blocks_floor = rng.between(0, blocks / 3);
            source.plan.kv_blocks_ceiling = (rng.between(0, 1) == 0).then(|| rng.between(6, blocks));
            source.ask = match rng.between(0, 4) {
                0 => Ask::Embed { items: (1, 50), len: (1, 300) },
                _ => Ask::Generate {
                    prompt_len: (1, rng.between(1, 130)),
                    drawn: (1, rng.between(1, 90)),
                    shared_blocks: rng.between(0, 3),
                    beginnings: rng.between(0, 2),
                },
            };
            if matches!(source.ask, Ask::Embed { .. }) {
                source.model = VECTORS;
            }
            sources.push(source);
        }
        let mut scenario = scenario(sources, 300);
        scenario.seed = seed;
        scenario.recount_every = 1;
        scenario.devices = rng.between(1, 3) as u16;
        scenario.models[0].limits.blocks = blocks;
        scenario.models[0].limits.rows_max = rng.between(1, 16);
        scenario.models[0].limits.tokens_max = rng.between(8, 200);
        scenario.config.steps_in_flight_max = rng.between(1, 3);
        scenario.config.preemptions_max = rng.between(0, 4);
        scenario.config.start_preempts_at = Nanos::from_millis(u64::from(rng.between(0, 1)) * 500);
        scenario.config.queue_len_max = rng.between(10, 100);
        scenario.faults.cancel_per_mille = rng.between(0, 200);
        scenario.faults.fail_per_mille = rng.between(0, 5);
        scenario.faults.slow_per_mille = rng.between(0, 20);
        scenario.faults.slow_factor = 10;
        if rng.between(0, 3) == 0 {
            scenario.faults.lost = vec![(Nanos::from_millis(500), DeviceId(0), Nanos::from_millis(100))];
        }
        if rng.between(0, 3) == 0 {
            scenario.faults.drained = vec![(Nanos::from_millis(200), DeviceId(0), Nanos::from_millis(400))];
        }
        println!("seed {seed}");
        let outcome = run(&scenario);
        preemptions += outcome.preemptions;
        for part in &outcome.tenants {
            cached += part.cached_tokens;
            rejected += part.rejected;
        }
    }
    println!("{preemptions} preemptions, {cached} cached tokens, {rejected} refusals");
    assert!(preemptions > 1_000 && cached > 10_000 && rejected > 1_000);
}
