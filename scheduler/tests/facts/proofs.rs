//! The proofs of `docs/proofs.md`: long histories with all faults on, in which the simulator checks every invariant after every event.
//! Each seed is a world of its own, of two to four devices and eight tenants.
//!
//! `WEIR_PROOFS=full` plays a million requests, `WEIR_PROOFS_REQUESTS=N` any other number, `WEIR_PROOFS_SEED=N` that seed alone,
//! `WEIR_PROOFS_FROM=N` seeds from that one on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use weir_scheduler::sim::{
    Arrivals, Ask, Faults, Leases, Outcome, Rng, Scenario, SimModel, Source, StepCost, Uneven, run,
};
use weir_scheduler::{Config, DeviceId, End, ModelId, ModelLimits, Nanos, PoolId, Tenant, TenantId};

const CHAT: ModelId = ModelId(0);
const VECTORS: ModelId = ModelId(1);

/// Requests of one seed.
const EACH: u64 = 10_000;

pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap())
}

pub fn is_full() -> bool {
    std::env::var("WEIR_PROOFS").is_ok_and(|size| size == "full")
}

fn requests() -> u64 {
    number("WEIR_PROOFS_REQUESTS").unwrap_or(if is_full() { 1_000_000 } else { 40_000 })
}

fn models(blocks: u32) -> Vec<SimModel> {
    let cost = StepCost {
        step: Nanos::from_millis(4),
        token: Nanos::from_micros(20),
        kilocontext: Nanos::from_micros(30),
        kiloread: Nanos::from_micros(2),
        overhead: Nanos::from_micros(40),
    };
    let chat = ModelLimits { blocks, rows_max: 32, tokens_max: 512, context_len_max: 2048 };
    let vectors = ModelLimits { blocks: 0, context_len_max: 512, ..chat };
    let quick = StepCost { step: Nanos::from_millis(1), token: Nanos::from_micros(5), ..cost };
    vec![SimModel { id: CHAT, limits: chat, cost }, SimModel { id: VECTORS, limits: vectors, cost: quick }]
}

/// Seven tenants that chat and one that embeds, with shared beginnings: prompts of 360 tokens in the mean, answers of 34.
fn tenants(rng: &mut Rng, devices: u16) -> Vec<Source> {
    let chat = Ask::Generate { prompt_len: (64, 656), drawn: (4, 64), shared_blocks: 6, beginnings: 4 };
    let mut sources = Vec::new();
    for tenant in 1..=8 {
        // Together, the Poisson tenants ask for about as much as there is.
        let gap = Nanos::from_micros(u64::from(rng.between(100_000, 260_000)) / u64::from(devices));
        let plan = Tenant { weight: rng.between(1, 8), queue_len_max: 200, ..Tenant::default() };
        let mut source = Source {
            tenant: TenantId(tenant),
            plan,
            model: CHAT,
            priority: rng.between(0, 2) as u8,
            from: Nanos::ZERO,
            arrivals: Arrivals::Poisson(gap),
            ask: chat,
        };
        match tenant {
            1 | 2 => source.arrivals = Arrivals::Backlog(rng.between(20, 60) * u32::from(devices)),
            3 => source.plan.kv_blocks_floor = 40,
            4 => source.plan.kv_blocks_ceiling = Some(120),
            5 => source.plan.running_max = 6,
            6 => (source.model, source.ask) = (VECTORS, Ask::Embed { items: (1, 60), len: (5, 300) }),
            8 => source.plan.metered = true,
            7 => sources.push(Source { ask: Ask::Embed { items: (1, 8), len: (5, 300) }, model: VECTORS, ..source }),
            _ => {}
        }
        sources.push(source);
    }
    sources
}

/// The world of a seed: every second one is short of blocks, every third has devices that differ, all have all faults.
fn world_of(seed: u64, requests_max: u64) -> Scenario {
    let mut rng = Rng::new(seed);
    let devices = 2 + (seed % 3) as u16;
    let blocks = if seed.is_multiple_of(2) { rng.between(180, 300) } else { rng.between(600, 1_200) };
    let mut sources = tenants(&mut rng, devices);
    let mut uneven = Vec::new();
    if seed % 6 < 2 {
        uneven.push(Uneven { device: DeviceId(0), time_percent: rng.between(50, 300), without: Vec::new() });
    }
    if seed % 6 == 1 {
        uneven.push(Uneven { device: DeviceId(1), time_percent: 100, without: vec![VECTORS] });
    }
    if seed % 5 == 4 {
        // The operator's own, as everybody's equal.
        sources.push(Source { tenant: TenantId::OPERATOR, plan: Tenant::default(), ..sources[7] });
    }
    let mut pools = Vec::new();
    if seed % 7 == 2 {
        // The last device is tenant 3's beside the common ones, and all that tenant 4 has.
        pools.push((DeviceId(devices - 1), PoolId(1)));
        sources.iter_mut().filter(|source| matches!(source.tenant.0, 3 | 4)).for_each(|source| {
            (source.plan.pool, source.plan.pool_only) = (Some(PoolId(1)), source.tenant.0 == 4);
        });
    }
    if seed % 4 == 1 {
        sources[1].plan.itl_target = Some(Nanos::from_millis(30));
        sources[3].plan.ttft_target = Some(Nanos::from_secs(1));
        (sources[2].plan.cache_blocks_floor, sources[3].plan.cache_blocks_ceiling) = (20, Some(30));
    }
    let config = Config {
        queue_len_max: 2_000,
        start_preempts_at: Nanos::from_millis(u64::from(rng.between(10, 1_000))),
        step_latency_max: Nanos::from_millis(50),
        ..Config::default()
    };
    let faults = Faults {
        cancel_per_mille: 20,
        fail_per_mille: 1,
        // A third without, for after a slow step the bound is wide.
        slow_per_mille: u32::from(seed % 3 < 2),
        slow_factor: 100,
        mute_per_million: 100,
        silence: Nanos::from_secs(6),
        outage: Nanos::from_secs(3),
        loss_gap: Nanos::from_secs(60),
        drain_gap: Nanos::from_secs(40),
        plan_gap: Nanos::from_secs(20),
        ..Faults::default()
    };
    // A little less than tenant 8 can use, so that its windows are spent now and then.
    let leases = Leases {
        amount: Nanos::from_millis(200),
        life: Nanos::from_millis(700),
        delay: Nanos::from_millis(3),
        late_per_mille: 20,
        window: Nanos::from_secs(10),
        limit: Nanos::from_millis(u64::from(rng.between(300, 2_000))),
        revoke_gap: Nanos::from_secs(10),
    };
    Scenario {
        seed,
        config,
        devices,
        uneven,
        pools,
        models: models(blocks),
        sources,
        faults,
        leases,
        gap_checked: true,
        requests_max,
        recount_every: 1_000,
    }
}

fn world(seed: u64) -> Scenario {
    world_of(seed, EACH)
}

/// Plays worlds on all processors, and gives their outcomes in the order of their seeds.
fn play(seeds: Range<u64>, world: fn(u64) -> Scenario) -> Vec<Outcome> {
    let (next, outcomes) = (AtomicU64::new(seeds.start), Mutex::new(BTreeMap::new()));
    let started = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let Ok(mut outcome) = catch_unwind(|| run(&world(seed))) else {
                panic!("an invariant breaks: WEIR_PROOFS_SEED={seed} plays it again");
            };
            outcome.tenants.iter_mut().for_each(|tenant| tenant.waits = Vec::new());
            let mut outcomes = outcomes.lock().unwrap();
            outcomes.insert(seed, outcome);
            if outcomes.len().is_multiple_of(50) {
                println!("{} requests in {:.0} s", outcomes.len() as u64 * EACH, started.elapsed().as_secs_f64());
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| {
            scope.spawn(work);
        });
    });
    outcomes.into_inner().unwrap().into_values().collect()
}

#[test]
fn no_invariant_breaks_with_all_faults_on() {
    let started = Instant::now();
    let seeds = match number("WEIR_PROOFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = number("WEIR_PROOFS_FROM").unwrap_or(0);
            from..from + requests().div_ceil(EACH)
        }
    };
    let from = seeds.start;
    let count = seeds.end - seeds.start;
    let outcomes = play(seeds, world);
    let seconds = started.elapsed().as_secs_f64();
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let most = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).max().unwrap_or(0);
    let requests = sum(Outcome::accepted);
    println!(
        "figure=1.requests value={requests} violations=0 seconds={seconds:.1} seeds={count} devices=2..4 tenants=8"
    );
    let (events, steps, rows) = (sum(|o| o.events), sum(|o| o.steps), sum(|o| o.rows));
    println!("figure=1.events value={events} recounts={} steps={steps} rows={rows}", sum(|o| o.events / 1_000));
    // Those who chat and do nothing else.
    let (mut prompts, mut drawn, mut chats) = (0, 0, 0);
    for tenant in outcomes.iter().flat_map(|o| &o.tenants).filter(|tenant| !matches!(tenant.tenant.0, 0 | 6 | 7)) {
        (prompts, drawn, chats) =
            (prompts + tenant.prompt_tokens, drawn + tenant.drawn_tokens, chats + tenant.accepted);
    }
    println!("figure=1.tokens_of_a_chat prompt={} drawn={}", prompts / chats, drawn / chats);
    let ends = [End::Finished, End::Cancelled, End::Failed, End::Quota, End::Lost, End::NeverFits]
        .map(|end| outcomes.iter().map(|outcome| outcome.ended(end)).sum::<u64>());
    println!(
        "figure=1.ends finished={} cancelled={} failed={} quota={} lost={} never_fits={}",
        ends[0], ends[1], ends[2], ends[3], ends[4], ends[5]
    );
    let faults: [(&str, u64); 14] = [
        ("cancels", sum(|o| o.incidents.cancels)),
        ("slow_steps", sum(|o| o.incidents.slow_steps)),
        ("lost_reports", sum(|o| o.incidents.lost_reports)),
        ("losses", sum(|o| o.incidents.losses)),
        ("resumed", sum(|o| o.incidents.resumed)),
        ("moves", sum(|o| o.incidents.moves)),
        ("drains", sum(|o| o.incidents.drains)),
        ("failed_rows", sum(|o| o.incidents.failed_rows)),
        ("plan_changes", sum(|o| o.incidents.plan_changes)),
        ("preemptions", sum(|o| o.preemptions)),
        ("grants", sum(|o| o.incidents.grants)),
        ("grants_returned", sum(|o| o.incidents.grants_returned)),
        ("grants_revoked", sum(|o| o.incidents.grants_revoked)),
        ("windows_spent", sum(|o| o.incidents.windows_spent)),
    ];
    print!("figure=1.faults");
    faults.iter().for_each(|(name, count)| print!(" {name}={count}"));
    println!();
    let gap = most(|o| o.gap_per_mille);
    println!("figure=1.gap_of_bound value={}.{} unit=percent", gap / 10, gap % 10);
    let mut nearest: Vec<_> = (from..).zip(&outcomes).map(|(seed, o)| (o.gap_per_mille, seed)).collect();
    nearest.sort_unstable_by(|a, b| b.cmp(a));
    nearest.truncate(5);
    let near = |(gap, seed): &(u64, u64)| format!("{seed}:{}.{}", gap / 10, gap % 10);
    println!("figure=1.gaps_nearest value={}", nearest.iter().map(near).collect::<Vec<_>>().join(","));
    let wait = most(|o| o.wait_per_mille);
    println!("figure=1.wait_of_bound value={}.{} unit=percent", wait / 10, wait % 10);
    let overtaken = most(|o| o.overtaken_per_mille);
    println!("figure=1.overtaken_max value={}", most(|o| o.overtaken_max));
    println!("figure=1.overtaken_of_bound value={}.{} unit=percent", overtaken / 10, overtaken % 10);
    assert_eq!(ends.iter().sum::<u64>(), requests);
    if count >= 40 {
        assert!(faults.iter().all(|(_, count)| *count > 0) && ends[..4].iter().all(|count| *count > 0));
        // Of other seeds any may be far from it.
        assert!(from > 0 || gap >= 200, "some history comes near the bound, or the bound says nothing");
    }
}

/// A world for its digest only: small, so that a hundred runs are quick without optimisation, too.
fn digest() -> u64 {
    let mut world = world_of(6, 400);
    world.faults.loss_gap = Nanos::from_secs(2);
    world.faults.plan_gap = Nanos::from_secs(1);
    let outcome = run(&world);
    assert!(outcome.incidents.resumed > 0 && outcome.incidents.plan_changes > 0 && outcome.ended(End::Cancelled) > 0);
    outcome.digest
}

#[test]
fn the_same_seed_gives_the_same_digest_in_every_build() {
    let runs = if is_full() { 100 } else { 10 };
    let digests: Vec<u64> = (0..runs).map(|_| digest()).collect();
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    println!("figure=2.same_digests value={runs} digest={:016x} build={build}", digests[0]);
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/digest.txt");
    if std::env::var("WEIR_BLESS").is_ok() {
        std::fs::write(golden, format!("{:016x}\n", digests[0])).unwrap();
    }
    let kept = std::fs::read_to_string(golden).unwrap();
    // A change of what the scheduler decides changes it: `make bless` writes it anew.
    assert_eq!(kept.trim(), format!("{:016x}", digests[0]), "plans and events are not what they were");
}
