//! Requests that begin alike, and what the fair order gives up for them.

use crate::rig::*;
use weir_scheduler::sim::{Arrivals, Ask, Outcome, Scenario, SimModel, Source, StepCost, run};
use weir_scheduler::*;

/// One row at a time, so that the order is seen.
fn one_by_one(locality_quantum: Nanos) -> Rig {
    Rig::with(Config { locality_quantum, steps_in_flight_max: 1, ..Config::default() }, 64, 1, 256)
}

/// The order in which requests start in so many steps.
fn starts(rig: &mut Rig, steps: usize) -> Vec<RequestId> {
    let from = rig.events.len();
    let done = (0..steps).take_while(|_| rig.step().is_some()).count();
    assert!(done > 0);
    let started = |event: &Event| match event {
        Event::Started { request, .. } => Some(*request),
        _ => None,
    };
    rig.events[from..].iter().filter_map(started).collect()
}

#[test]
fn what_begins_like_the_last_goes_before_older_requests() {
    let mut rig = one_by_one(Nanos::from_millis(250));
    let ids = [7, 8, 7, 8, 7].map(|text| rig.ask_text(1, text, 100, 1));
    assert_eq!(starts(&mut rig, 5), [ids[0], ids[2], ids[4], ids[1], ids[3]]);
}

#[test]
fn the_most_alike_goes_first() {
    let mut rig = one_by_one(Nanos::from_millis(250));
    let texts = [(7, 7), (7, 9), (7, 7), (8, 8)];
    let ask = |rig: &mut Rig, (first, rest): (u8, u8)| {
        let hashes = (0..5).map(|n| hash(if n < 2 { first } else { rest }, n)).collect();
        rig.admit(1, CHAT, 0, Work::Generate { prompt_len: 165, new_tokens_max: 1, hashes }).unwrap()
    };
    let ids = texts.map(|text| ask(&mut rig, text));
    assert_eq!(starts(&mut rig, 20), [ids[0], ids[2], ids[1], ids[3]]);
}

#[test]
fn without_a_quantum_requests_go_by_rank() {
    let mut rig = one_by_one(Nanos::ZERO);
    let ids = [7, 8, 7, 8, 7].map(|text| rig.ask_text(1, text, 100, 1));
    assert_eq!(starts(&mut rig, 5), ids);
}

#[test]
fn a_cold_prompt_is_overtaken_for_four_quanta_and_no_longer() {
    let mut rig = one_by_one(Nanos::from_millis(250));
    for _ in 0..40 {
        rig.ask_text(1, 7, 100, 1);
    }
    starts(&mut rig, 20);
    // Those that are older by rank go first, and what is left of their quantum.
    let cold = rig.ask_text(1, 8, 100, 1);
    let (mut overtaken, mut steps) = (0, 0);
    while rig.cached_tokens(cold).is_none() {
        let late = rig.ask_text(1, 7, 100, 1);
        rig.step().unwrap();
        steps += 1;
        overtaken += u32::from(rig.cached_tokens(late).is_some());
        assert!(steps < 200, "it starves");
    }
    let after = steps - 20;
    println!("started after {steps} steps, {after} of them for others that came later; {overtaken} at once");
    // A step takes 10 ms and is estimated at about that. The last one that was older left something of its time.
    assert!((30..=110).contains(&after), "{after}");
}

#[test]
fn who_was_overtaken_waits_for_a_row_and_who_is_more_urgent_takes_one() {
    let mut rig = Rig::with(Config { steps_in_flight_max: 1, ..Config::default() }, 64, 2, 256);
    rig.ask_text(1, 7, 100, 1);
    rig.run_dry();
    let cold = rig.ask_text(1, 8, 100, 1);
    let alike = [rig.ask_text(1, 7, 100, 20), rig.ask_text(1, 7, 100, 20)];
    for _ in 0..15 {
        let plan = rig.step().unwrap();
        assert!(alike.iter().all(|id| row(&plan, *id).is_some()), "both rows are taken by those that overtook it");
    }
    rig.run_dry();
    assert_eq!(rig.cached_tokens(cold), Some(0));
    // Of a lower class, they make way.
    let low = |rig: &mut Rig| {
        rig.admit(1, CHAT, 1, Work::Generate { prompt_len: 10, new_tokens_max: 20, hashes: Vec::new() }).unwrap()
    };
    let running = [low(&mut rig), low(&mut rig)];
    let plan = rig.step().unwrap();
    assert!(running.iter().all(|id| row(&plan, *id).is_some()));
    let urgent = rig.ask(1, 10, 1);
    assert!(row(&rig.step().unwrap(), urgent).is_some());
}

#[test]
fn a_tenant_goes_on_with_what_it_has_cached_until_it_is_a_quantum_ahead() {
    let order = |locality_quantum| {
        let config = Config { locality_quantum, steps_in_flight_max: 1, hold_max: Nanos::ZERO, ..Config::default() };
        let mut rig = Rig::with(config, 64, 1, 256);
        for _ in 0..30 {
            rig.ask_text(1, 7, 100, 1);
            rig.ask_text(2, 8, 100, 1);
        }
        let mut served = Vec::new();
        for _ in 0..40 {
            let before = rig.charge(1);
            rig.step().unwrap();
            served.push(rig.charge(1) > before);
        }
        let gap = rig.charge(1).0.abs_diff(rig.charge(2).0);
        (served.windows(2).filter(|pair| pair[0] != pair[1]).count(), Nanos(gap))
    };
    let (turns, gap) = order(Nanos::ZERO);
    assert!(turns > 30 && gap <= STEP + STEP, "{turns} {gap:?}");
    let (turns, gap) = order(Nanos(5 * STEP.0));
    assert!((3..=12).contains(&turns), "{turns}");
    assert!(gap <= Nanos(7 * STEP.0), "{gap:?}");
}

#[test]
fn what_a_waiting_request_begins_with_is_evicted_after_what_nobody_waits_for() {
    let mut rig =
        Rig::with(Config { locality_quantum: Nanos::ZERO, steps_in_flight_max: 1, ..Config::default() }, 12, 1, 512);
    for text in [7, 70] {
        rig.ask_text(1, text, 100, 1);
        rig.run_dry();
    }
    // Eight blocks are needed and six are free. The blocks of the first text are older, and wanted.
    let large = rig.ask(1, 250, 1);
    let wants = rig.ask_text(1, 7, 100, 1);
    let late = rig.ask_text(1, 70, 100, 1);
    rig.scheduler.cancel(rig.now, late);
    rig.run_dry();
    assert_eq!((rig.cached_tokens(large), rig.cached_tokens(wants)), (Some(0), Some(96)));
    // Without anybody who waits for it, the older one goes.
    let mut rig =
        Rig::with(Config { locality_quantum: Nanos::ZERO, steps_in_flight_max: 1, ..Config::default() }, 12, 1, 512);
    for text in [7, 70] {
        rig.ask_text(1, text, 100, 1);
        rig.run_dry();
    }
    rig.ask(1, 250, 1);
    rig.run_dry();
    let left = rig.ask_text(1, 7, 100, 1);
    rig.run_dry();
    assert!(rig.cached_tokens(left) < Some(96));
}

/// Tenants with 48 beginnings among them, in a pool that holds few of them.
fn play(order: Order, locality_quantum: Nanos, tenants: u32) -> Outcome {
    let limits = ModelLimits { blocks: 200, rows_max: 8, tokens_max: 512, context_len_max: 2048 };
    let cost = StepCost {
        step: Nanos::from_millis(4),
        token: Nanos::from_micros(50),
        kilocontext: Nanos::ZERO,
        kiloread: Nanos::from_micros(5),
        overhead: Nanos::from_micros(30),
    };
    let source = |tenant| Source {
        tenant: TenantId(tenant),
        plan: Tenant::default(),
        model: CHAT,
        priority: 0,
        from: Nanos::ZERO,
        arrivals: Arrivals::Backlog(160 / tenants),
        ask: Ask::Generate { prompt_len: (330, 400), drawn: (1, 6), shared_blocks: 9, beginnings: 48 / tenants },
    };
    run(&Scenario {
        seed: 11,
        config: Config { order, locality_quantum, ..Config::default() },
        models: vec![SimModel { id: CHAT, limits, cost }],
        sources: (1..=tenants).map(source).collect(),
        requests_max: 4_000,
        ..Scenario::default()
    })
}

/// Prompt tokens found in the cache, per mille.
fn hits(outcome: &Outcome) -> u64 {
    let sum = |of: fn(&weir_scheduler::sim::TenantOutcome) -> u64| outcome.tenants.iter().map(of).sum::<u64>();
    1_000 * sum(|tenant| tenant.cached_tokens) / sum(|tenant| tenant.prompt_tokens)
}

#[test]
fn the_fair_order_keeps_nine_tenths_of_the_hits_of_locality_alone() {
    for tenants in [1, 4] {
        let best = play(Order::Prefix, Nanos::ZERO, tenants);
        let ours = play(Order::DeviceTime, Config::default().locality_quantum, tenants);
        let without = play(Order::DeviceTime, Nanos::ZERO, tenants);
        let (b, o, w) = (hits(&best), hits(&ours), hits(&without));
        println!("{tenants} tenants: hits per mille {b} by locality alone, {o} here, {w} without a quantum");
        println!("gap {:?}, {:?}, {:?}", best.gap_max, ours.gap_max, without.gap_max);
        assert!(10 * o >= 9 * b, "{o} of {b}");
        assert!(w < o, "the pool is too large to tell");
    }
}

#[test]
fn conversations_of_many_tenants_keep_most_of_the_hits_of_locality_alone() {
    // Sixty-four of them, on average ten blocks long, in a pool of 400.
    let limits = ModelLimits { blocks: 400, rows_max: 64, tokens_max: 512, context_len_max: 2048 };
    let cost = StepCost {
        step: Nanos::from_millis(4),
        token: Nanos::from_micros(50),
        kilocontext: Nanos::from_micros(30),
        kiloread: Nanos::from_micros(5),
        overhead: Nanos::from_micros(30),
    };
    let source = |n: u32| Source {
        tenant: TenantId(1 + n % 16),
        plan: Tenant::default(),
        model: CHAT,
        priority: 0,
        from: Nanos::ZERO,
        arrivals: Arrivals::Backlog(1),
        ask: Ask::Turns { first: 64, more: 64, drawn: (4, 24), turns: 8 },
    };
    let play = |order, locality_quantum| {
        hits(&run(&Scenario {
            seed: 5,
            config: Config { order, locality_quantum, ..Config::default() },
            models: vec![SimModel { id: CHAT, limits, cost }],
            sources: (0..64).map(source).collect(),
            requests_max: 4_000,
            ..Scenario::default()
        }))
    };
    let quantum = Config::default().locality_quantum;
    let (best, ours) = (play(Order::Prefix, quantum), play(Order::DeviceTime, quantum));
    let without = play(Order::DeviceTime, Nanos::ZERO);
    println!("conversations: hits per mille {best} by locality alone, {ours} here, {without} without a quantum");
    assert!(20 * ours >= 17 * best, "{ours} of {best}");
    assert!(without < ours, "the pool is too large to tell");
}
