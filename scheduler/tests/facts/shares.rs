//! Fair shares of device time.

use crate::rig::*;
use weir_scheduler::sim::{Arrivals, Ask, Faults, Outcome, Scenario, SimModel, Source, StepCost, run};
use weir_scheduler::*;

/// Runs `steps` steps and says how much each of two tenants was charged in them.
fn charged(rig: &mut Rig, steps: usize) -> (u64, u64) {
    let before = (rig.charge(1).0, rig.charge(2).0);
    for _ in 0..steps {
        rig.step().unwrap();
    }
    (rig.charge(1).0 - before.0, rig.charge(2).0 - before.1)
}

#[test]
fn two_backlogged_tenants_share_by_weight() {
    let mut rig = Rig::with(Config::default(), 400, 4, 256);
    rig.tenant(2, Tenant { weight: 3, ..Tenant::default() });
    for _ in 0..40 {
        rig.ask(1, 20, 100);
        rig.ask(2, 20, 100);
    }
    charged(&mut rig, 20);
    let (one, two) = charged(&mut rig, 400);
    assert!((28..=32).contains(&(two * 10 / one)), "{one} {two}");
}

#[test]
fn idle_tenant_gains_no_credit() {
    let mut rig = Rig::with(Config::default(), 400, 2, 256);
    for _ in 0..40 {
        rig.ask(1, 20, 100);
    }
    charged(&mut rig, 300);
    for _ in 0..40 {
        rig.ask(2, 20, 100);
    }
    // The newcomer gets its half from now on, and not the 300 steps that it did not ask for.
    let (one, two) = charged(&mut rig, 100);
    assert!(one.abs_diff(two) <= 10 * STEP.0, "{one} {two}");
}

#[test]
fn service_taken_while_nobody_waited_is_nobodys_debt() {
    let mut rig = Rig::with(Config::default(), 400, 4, 256);
    for _ in 0..2 {
        rig.ask(1, 20, 1000);
    }
    rig.ask(2, 20, 1000);
    // Everyone gets all it wants, the first tenant twice as much.
    let (one, two) = charged(&mut rig, 200);
    assert!(one > two * 19 / 10);
    for _ in 0..20 {
        rig.ask(1, 20, 100);
        rig.ask(2, 20, 100);
    }
    let (one, two) = charged(&mut rig, 100);
    assert!(one.abs_diff(two) <= 10 * STEP.0, "{one} {two}");
}

#[test]
fn a_returning_tenant_gets_rows_at_once_from_one_that_has_them_all() {
    let mut rig = Rig::with(Config::default(), 400, 4, 256);
    for _ in 0..8 {
        rig.ask(1, 20, 100);
    }
    charged(&mut rig, 10);
    let id = rig.ask(2, 20, 10);
    let waited = (1..20).find(|_| row(&rig.step().unwrap(), id).is_some()).unwrap();
    assert!(waited <= 2, "{waited}");
}

#[test]
fn the_rows_of_one_step_go_to_tenants_in_turn() {
    let mut rig = Rig::with(Config::default(), 400, 4, 256);
    let of = |rig: &mut Rig, tenant| (0..8).map(|_| rig.ask(tenant, 20, 10)).collect::<Vec<_>>();
    let (one, other) = (of(&mut rig, 1), of(&mut rig, 2));
    let plan = rig.step().unwrap();
    let rows = |ids: &[RequestId]| ids.iter().filter(|id| row(&plan, **id).is_some()).count();
    assert_eq!((rows(&one), rows(&other)), (2, 2), "what it got in this step counts before it is measured");
}

#[test]
fn a_lone_tenant_uses_the_whole_device() {
    let mut rig = Rig::with(Config::default(), 400, 4, 256);
    for _ in 0..4 {
        rig.ask(1, 20, 50);
    }
    rig.run_dry();
    assert_eq!(rig.books().idle, Nanos::ZERO);
}

#[test]
fn running_max_bounds_a_tenant_and_nobody_else() {
    let mut rig = Rig::with(Config::default(), 400, 8, 256);
    rig.tenant(1, Tenant { running_max: 2, ..Tenant::default() });
    for _ in 0..5 {
        rig.ask(1, 10, 50);
        rig.ask(2, 10, 50);
    }
    let plan = rig.step().unwrap();
    assert_eq!(plan.rows.len(), 7);
}

fn source(tenant: u32, weight: u32, arrivals: Arrivals) -> Source {
    Source {
        tenant: TenantId(tenant),
        plan: Tenant { weight, ..Tenant::default() },
        model: CHAT,
        priority: 0,
        from: Nanos::ZERO,
        arrivals,
        ask: Ask::Generate { prompt_len: (10, 400), drawn: (5, 60), shared_blocks: 0, beginnings: 0 },
    }
}

fn play(sources: Vec<Source>, requests_max: u64, blocks: u32) -> Outcome {
    let limits = ModelLimits { blocks, rows_max: 16, tokens_max: 512, context_len_max: 2048 };
    let cost = StepCost {
        step: Nanos::from_millis(4),
        token: Nanos::from_micros(20),
        kilocontext: Nanos::ZERO,
        kiloread: Nanos::from_micros(5),
        overhead: Nanos::from_micros(30),
    };
    let limits_of_vectors = ModelLimits { blocks: 0, context_len_max: 512, ..limits };
    let vectors = SimModel { id: VECTORS, limits: limits_of_vectors, cost };
    run(&Scenario {
        seed: 3,
        config: Config::default(),
        devices: 1,
        models: vec![SimModel { id: CHAT, limits, cost }, vectors],
        sources,
        faults: Faults::default(),
        requests_max,
        recount_every: 100,
        ..Scenario::default()
    })
}

#[test]
fn the_gap_between_backlogged_tenants_does_not_grow_with_time() {
    let sources = || (1..=4).map(|t| source(t, t, Arrivals::Backlog(20))).collect();
    let (short, long) = (play(sources(), 1_000, 1024), play(sources(), 20_000, 1024));
    println!("gap: {:?} in {:?}, {:?} in {:?}", short.gap_max, short.end, long.gap_max, long.end);
    assert!(long.end > Nanos(15 * short.end.0));
    // The largest prompt costs 400 * 20 us, and each row may be one chunk ahead.
    assert!(short.gap_max < Nanos::from_millis(100) && long.gap_max < Nanos::from_millis(100));
}

#[test]
fn a_gap_stays_bounded_when_blocks_are_short_too() {
    let sources = (1..=3).map(|t| source(t, 1, Arrivals::Backlog(20))).collect();
    let outcome = play(sources, 5_000, 60);
    let (gap, end, redone) = (outcome.gap_max, outcome.end, outcome.preemptions);
    println!("gap: {gap:?} in {end:?}, {redone} preemptions, blocks short");
    assert!(gap < Nanos::from_millis(500));
    assert!(redone < 500, "and little is redone");
}

#[test]
fn a_flood_does_not_slow_a_tenant_inside_its_share() {
    let calm = || source(1, 1, Arrivals::Poisson(Nanos::from_millis(400)));
    let alone = play(vec![calm()], 500, 1024);
    let beside = play(vec![calm(), source(2, 1, Arrivals::Backlog(200))], 8_000, 1024);
    let waits = |outcome: &Outcome| (outcome.tenants[0].wait(500), outcome.tenants[0].wait(990));
    println!("first id, p50 and p99: {:?} alone, {:?} beside a flood", waits(&alone), waits(&beside));
    // Steps are longer beside others; queueing behind the flood would be seconds.
    assert!(waits(&beside).1 < Nanos::from_millis(100));
}

#[test]
fn text_and_vectors_share_a_device_by_time_and_not_by_count() {
    let sources = || {
        let ask = Ask::Embed { items: (1, 200), len: (5, 300) };
        let vectors = Source { model: VECTORS, ask, ..source(2, 1, Arrivals::Backlog(30)) };
        vec![source(1, 1, Arrivals::Backlog(30)), vectors]
    };
    let (short, long) = (play(sources(), 1_000, 1024), play(sources(), 10_000, 1024));
    println!("gap: {:?} in {:?}, {:?} in {:?}", short.gap_max, short.end, long.gap_max, long.end);
    // Up to 16 running prompts of up to 8 ms each are held against text before they are measured.
    assert!(short.gap_max.max(long.gap_max) < Nanos::from_millis(200));
}

#[test]
fn who_rides_along_in_the_steps_of_others_does_not_get_ahead_of_those_who_wait_for_another_model() {
    let play_for = |requests_max| {
        let ask = Ask::Embed { items: (1, 60), len: (5, 300) };
        let mut sources = vec![source(1, 1, Arrivals::Backlog(40))];
        // They ask for little, and so they are nearly always the ones who choose the model.
        sources.extend((2..=5).map(|t| source(t, 8, Arrivals::Poisson(Nanos::from_millis(250)))));
        sources.push(Source { model: VECTORS, ask, ..source(6, 8, Arrivals::Backlog(30)) });
        play(sources, requests_max, 1024)
    };
    let (short, long) = (play_for(1_000), play_for(10_000));
    println!("gap: {:?} in {:?}, {:?} in {:?}", short.gap_max, short.end, long.gap_max, long.end);
    assert!(long.end > Nanos(8 * short.end.0));
    assert!(short.gap_max.max(long.gap_max) < Nanos::from_millis(400));
}
