//! What a tenant is owed on devices that its requests do not wait for, and what happens to those that wait for a device which stands still.

use crate::rig::*;
use weir_scheduler::sim::{Arrivals, Ask, Outcome, Scenario, SimModel, Source, StepCost, Uneven, run};
use weir_scheduler::*;

fn source(tenant: u32, model: ModelId, backlog: u32, ask: Ask) -> Source {
    Source {
        tenant: TenantId(tenant),
        plan: Tenant::default(),
        model,
        priority: 0,
        from: Nanos::ZERO,
        arrivals: Arrivals::Backlog(backlog),
        ask,
    }
}

/// Three tenants that chat and one that embeds, on a quick device and one that takes ten times as long.
fn uneven(requests_max: u64) -> Outcome {
    let limits = ModelLimits { blocks: 1024, rows_max: 16, tokens_max: 512, context_len_max: 2048 };
    let cost = StepCost {
        step: Nanos::from_millis(4),
        token: Nanos::from_micros(20),
        kilocontext: Nanos::ZERO,
        kiloread: Nanos::from_micros(5),
        overhead: Nanos::from_micros(30),
    };
    let chat = Ask::Generate { prompt_len: (64, 656), drawn: (4, 64), shared_blocks: 0, beginnings: 0 };
    let lists = Ask::Embed { items: (1, 60), len: (5, 300) };
    let mut sources: Vec<Source> = (1..=3).map(|tenant| source(tenant, CHAT, 40, chat)).collect();
    sources.push(source(4, VECTORS, 40, lists));
    run(&Scenario {
        seed: 3,
        devices: 2,
        uneven: vec![Uneven { device: OTHER, time_percent: 1_000, without: Vec::new() }],
        models: vec![
            SimModel { id: CHAT, limits, cost },
            SimModel { id: VECTORS, limits: ModelLimits { blocks: 0, context_len_max: 512, ..limits }, cost },
        ],
        sources,
        requests_max,
        recount_every: 1_000,
        ..Scenario::default()
    })
}

#[test]
fn who_waits_for_a_quick_device_is_served_by_a_slow_one_as_far_as_it_is_owed() {
    let (short, long) = (uneven(2_000), uneven(20_000));
    println!("gap {:?} in {:?}, {:?} in {:?}", short.gap_max, short.end, long.gap_max, long.end);
    assert!(long.end > Nanos(8 * short.end.0));
    // The quantum, and what is in flight.
    let most = Config::default().locality_quantum + Nanos::from_millis(500);
    assert!(short.gap_max < most && long.gap_max < most, "it grows with time");
}

/// Two devices that know what their steps cost, with a tenant that has work for both.
fn two() -> Rig {
    let mut rig = Rig::with(Config { step_latency_max: Nanos::from_millis(50), ..Config::default() }, 256, 8, 256);
    rig.scheduler.add_device(rig.now, OTHER);
    let limits = ModelLimits { blocks: 256, rows_max: 8, tokens_max: 256, context_len_max: 4096 };
    assert!(rig.scheduler.add_model(OTHER, CHAT, limits));
    for _ in 0..24 {
        rig.ask(1, 40, 20);
    }
    while step_both(&mut rig) {}
    rig
}

#[test]
fn what_waits_for_a_device_that_is_late_goes_elsewhere_and_newcomers_too() {
    let mut rig = two();
    let first = [rig.ask(1, 40, 20), rig.ask(1, 40, 20)];
    let running = [plan_on(&mut rig, DEVICE).unwrap(), plan_on(&mut rig, OTHER).unwrap()];
    let there = first.map(|id| rig.scheduler.device_of(id).unwrap());
    assert_eq!(there, [DEVICE, OTHER]);
    // These come after steps were planned, so nobody has passed them over.
    let waiting: Vec<RequestId> = (0..4).map(|_| rig.ask(1, 40, 20)).collect();
    let bound_to = |rig: &Rig, device: DeviceId| {
        let here = |id: &&RequestId| rig.scheduler.device_of(**id) == Some(device);
        waiting.iter().filter(here).count()
    };
    assert_eq!((bound_to(&rig, DEVICE), bound_to(&rig, OTHER)), (2, 2));
    rig.now += STEP;
    finish_on(&mut rig, DEVICE, &running[0]);
    let next = plan_on(&mut rig, DEVICE).unwrap();
    assert_eq!(bound_to(&rig, OTHER), 2, "a step that takes as long as it should is waited for");
    let due = rig.scheduler.next_deadline();
    assert!(due.is_some_and(|at| at > rig.now && at < rig.now + Nanos::from_millis(60)), "{due:?}");
    rig.now += Nanos::from_millis(60);
    finish_on(&mut rig, DEVICE, &next);
    // Half a queue goes at a time.
    for _ in 0..2 {
        let next = plan_on(&mut rig, DEVICE).unwrap();
        rig.now += STEP;
        finish_on(&mut rig, DEVICE, &next);
    }
    assert_eq!(bound_to(&rig, OTHER), 0, "nobody waits for a device that may never answer");
    assert_eq!(rig.scheduler.next_deadline(), None, "nothing is due there any more");
    let late = rig.ask(1, 40, 20);
    assert_eq!(rig.scheduler.device_of(late), Some(DEVICE));
}

#[test]
fn who_came_to_a_device_that_answers_no_more_is_served_by_one_whose_rows_are_full() {
    let mut rig = two();
    rig.scheduler.drain_device(OTHER);
    for _ in 0..12 {
        rig.ask(1, 40, 400);
    }
    rig.scheduler.resume_device(OTHER);
    for _ in 0..3 {
        rig.step().unwrap();
    }
    // Its report is lost, and these come after it was planned.
    plan_on(&mut rig, OTHER).unwrap();
    let waiting: Vec<RequestId> = (0..4).map(|_| rig.ask(2, 40, 200)).collect();
    assert!(waiting.iter().all(|id| rig.scheduler.device_of(*id) == Some(OTHER)));
    let served = |rig: &Rig, tenant| rig.scheduler.tenant_service(TenantId(tenant)).0;
    let lead = |rig: &Rig| served(rig, 1).saturating_sub(served(rig, 2));
    let (before, mut most) = (lead(&rig), 0);
    for _ in 0..150 {
        let plan = rig.step().unwrap();
        assert_eq!(plan.rows.len(), 8, "its rows are full");
        most = most.max(lead(&rig) - before);
    }
    println!("behind by {most} ns at most");
    let quantum = Config::default().locality_quantum + Config::default().hold_max;
    assert!(most < (quantum + Nanos::from_millis(200)).0, "{most}");
}

#[test]
fn a_device_full_of_those_who_wait_for_grants_takes_what_waits_elsewhere() {
    // All the rows of a step, and blocks without which nobody else's prompt has room.
    for (count, prompt_len) in [(8, 20), (4, 400)] {
        let mut rig = Rig::new(64);
        rig.scheduler.add_device(rig.now, OTHER);
        let limits = ModelLimits { blocks: 64, rows_max: 8, tokens_max: 256, context_len_max: 4096 };
        assert!(rig.scheduler.add_model(OTHER, CHAT, limits));
        rig.tenant(1, Tenant { metered: true, ..Tenant::default() });
        let grant = Grant { epoch: 1, amount: Nanos::from_secs(60), expires: Nanos::from_secs(3_600) };
        rig.scheduler.grant(rig.now, TenantId(1), grant);
        for _ in 0..count {
            let work = Work::Generate { prompt_len, new_tokens_max: 100, hashes: Vec::new() };
            let admission = Admission { tenant: TenantId(1), model: CHAT, priority: 0, work };
            rig.scheduler.admit_to(rig.now, OTHER, admission).unwrap();
        }
        // Each has its whole prompt in blocks when the grant goes.
        while rig.scheduler.stats().models[2].blocks_used < count * prompt_len.div_ceil(BLOCK_LEN) {
            let plan = plan_on(&mut rig, OTHER).unwrap();
            rig.now += STEP;
            finish_on(&mut rig, OTHER, &plan);
        }
        rig.scheduler.revoke_grant(TenantId(1));
        rig.scheduler.drain_device(OTHER);
        let waiting: Vec<_> = (0..24).map(|_| rig.ask(2, 600, 30)).collect();
        rig.scheduler.resume_device(OTHER);
        plan_on(&mut rig, DEVICE).unwrap();
        assert!(plan_on(&mut rig, OTHER).is_none(), "its rows have no grant, which shows only now");
        let plan = plan_on(&mut rig, OTHER).expect("work of tenant 2");
        assert!(plan.rows.iter().all(|row| waiting.contains(&row.request)), "{count} prompts of {prompt_len}");
    }
}
