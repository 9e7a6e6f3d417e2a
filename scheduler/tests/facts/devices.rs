//! Several devices: where requests go, when they move, and that nothing is lost or unfair on the way.

use crate::rig::*;
use weir_scheduler::sim::{Arrivals, Ask, Faults, Outcome, Scenario, SimModel, Source, StepCost, Uneven, run};
use weir_scheduler::*;

const LIMITS: ModelLimits = ModelLimits { blocks: 64, rows_max: 8, tokens_max: 256, context_len_max: 4096 };

/// A rig with two devices alike.
fn two() -> Rig {
    let mut rig = Rig::new(64);
    add_other(&mut rig, LIMITS);
    rig
}

fn add_other(rig: &mut Rig, limits: ModelLimits) {
    rig.scheduler.add_device(rig.now, OTHER);
    assert!(rig.scheduler.add_model(OTHER, CHAT, limits));
    assert!(rig.scheduler.add_model(OTHER, VECTORS, ModelLimits { blocks: 0, context_len_max: 512, ..limits }));
}

fn device_of(rig: &Rig, id: RequestId) -> u16 {
    rig.scheduler.device_of(id).unwrap().0
}

fn generate(prompt_len: u32, new_tokens_max: u32) -> Work {
    Work::Generate { prompt_len, new_tokens_max, hashes: Vec::new() }
}

fn admission(tenant: u32, model: ModelId, work: Work) -> Admission {
    Admission { tenant: TenantId(tenant), model, priority: 0, work }
}

#[test]
fn running_texts_count_as_work_to_come() {
    let mut rig = two();
    let first = rig.ask(1, 10, 200);
    for _ in 0..5 {
        step_both(&mut rig);
    }
    // Nothing waits anywhere, and the first device has most of a long text before it.
    let second = rig.ask(1, 10, 200);
    assert_eq!((device_of(&rig, first), device_of(&rig, second)), (0, 1));
}

#[test]
fn a_device_that_was_slow_at_first_is_tried() {
    let mut rig = two();
    for (device, time) in [(DEVICE, Nanos::from_millis(1)), (OTHER, Nanos::from_millis(100))] {
        rig.scheduler.admit_to(rig.now, device, admission(1, CHAT, generate(20, 1))).unwrap();
        let plan = plan_on(&mut rig, device).unwrap();
        rig.now += time;
        let report = StepReport { step: plan.step, device_time: time, rows: &[RowOutcome::Advanced] };
        assert!(rig.scheduler.finish_step(rig.now, device, &report, &mut rig.events));
    }
    let ids: Vec<u16> = (0..6)
        .map(|_| {
            let id = rig.ask(1, 20, 50);
            device_of(&rig, id)
        })
        .collect();
    assert_eq!(ids, [0, 1, 0, 1, 0, 1]);
}

#[test]
fn ties_go_to_the_first_device_and_the_choices_of_a_group_stay_together() {
    let mut rig = two();
    let group = vec![admission(1, CHAT, generate(100, 50)); 4];
    let ids = rig.scheduler.admit_group(rig.now, group).unwrap();
    assert!(ids.iter().all(|id| device_of(&rig, *id) == 0));
    assert_eq!(rig.embed(1, &[100; 20]).index(), 4);
    let list = rig.embed(1, &[100; 20]);
    assert_eq!(device_of(&rig, list), 1, "lists to embed spread, too");
}

#[test]
fn a_prefix_draws_its_text_until_the_queue_costs_more() {
    let mut rig = two();
    for device in [DEVICE, OTHER] {
        rig.scheduler.admit_to(rig.now, device, admission(3, CHAT, generate(20, 20))).unwrap();
    }
    while step_both(&mut rig) {}
    rig.ask_text(1, 7, 640, 1);
    while step_both(&mut rig) {}
    let same = rig.ask_text(1, 7, 640, 1);
    let new = rig.ask_text(1, 8, 640, 1);
    assert_eq!((device_of(&rig, same), device_of(&rig, new)), (0, 1));
    // Enough work on the first device makes computing the prefix again the sooner way.
    for _ in 0..6 {
        let busy = admission(2, CHAT, generate(600, 100));
        rig.scheduler.admit_to(rig.now, DEVICE, busy).unwrap();
    }
    let elsewhere = rig.ask_text(1, 7, 640, 1);
    assert_eq!(device_of(&rig, elsewhere), 1);
}

#[test]
fn a_device_without_the_model_is_no_candidate() {
    let mut rig = Rig::new(64);
    rig.scheduler.add_device(rig.now, OTHER);
    assert!(rig.scheduler.add_model(OTHER, VECTORS, ModelLimits { blocks: 0, ..LIMITS }));
    for _ in 0..6 {
        let id = rig.ask(1, 100, 100);
        assert_eq!(device_of(&rig, id), 0);
    }
    let list = rig.embed(1, &[50]);
    assert_eq!(device_of(&rig, list), 1);
    // What waits for the one is nothing to the other.
    assert!(plan_on(&mut rig, OTHER).unwrap().rows.iter().all(|row| row.request == list));
}

#[test]
fn a_device_takes_over_what_another_passed_over() {
    let mut rig = Rig::with(Config::default(), 400, 2, 256);
    let ids: Vec<RequestId> = (0..6).map(|_| rig.ask(1, 10, 30)).collect();
    add_other(&mut rig, ModelLimits { rows_max: 2, ..LIMITS });
    assert!(plan_on(&mut rig, OTHER).is_none(), "its own device has not looked at them yet");
    let plan = rig.plan().unwrap();
    assert_eq!(plan.rows.len(), 2);
    let pulled = plan_on(&mut rig, OTHER).unwrap();
    let rows: Vec<RequestId> = pulled.rows.iter().map(|row| row.request).collect();
    assert_eq!(rows, ids[2..4], "the first of those that wait, by rank");
    assert_eq!(device_of(&rig, ids[4]), 0);
}

#[test]
fn a_far_slower_device_does_not_take_over() {
    let mut rig = Rig::with(Config::default(), 400, 2, 256);
    add_other(&mut rig, LIMITS);
    // Each learns what it costs: the second is a thousand times as slow.
    for _ in 0..20 {
        for (device, time) in [(DEVICE, Nanos::from_millis(1)), (OTHER, Nanos::from_secs(1))] {
            rig.scheduler.admit_to(rig.now, device, admission(1, CHAT, generate(20, 1))).unwrap();
            let plan = plan_on(&mut rig, device).unwrap();
            rig.now += time;
            let rows = vec![RowOutcome::Advanced; plan.rows.len()];
            let report = StepReport { step: plan.step, device_time: time, rows: &rows };
            assert!(rig.scheduler.finish_step(rig.now, device, &report, &mut rig.events));
        }
    }
    let ids: Vec<RequestId> = (0..6).map(|_| rig.ask(1, 20, 10)).collect();
    assert!(ids.iter().all(|id| device_of(&rig, *id) == 0));
    rig.plan().unwrap();
    assert!(plan_on(&mut rig, OTHER).is_none());
}

#[test]
fn requests_that_were_given_a_device_stay_there() {
    let mut rig = two();
    for _ in 0..20 {
        rig.scheduler.admit_to(rig.now, DEVICE, admission(1, CHAT, generate(10, 20))).unwrap();
    }
    rig.plan().unwrap();
    assert!(plan_on(&mut rig, OTHER).is_none());
    rig.scheduler.drain_device(DEVICE);
    assert!(plan_on(&mut rig, OTHER).is_none());
}

#[test]
fn a_drained_device_hands_on_its_queue_and_ends_what_it_runs() {
    let mut rig = two();
    let ids: Vec<RequestId> = (0..20).map(|_| rig.ask(1, 10, 20)).collect();
    rig.plan().unwrap();
    let running: Vec<RequestId> = ids.iter().copied().filter(|id| device_of(&rig, *id) == 0).take(8).collect();
    rig.scheduler.drain_device(DEVICE);
    rig.scheduler.check_invariants();
    let here: Vec<RequestId> = ids.iter().copied().filter(|id| device_of(&rig, *id) == 0).collect();
    assert_eq!(here, running);
    let newcomer = rig.ask(1, 10, 1);
    assert_eq!(device_of(&rig, newcomer), 1);
    let mut rig = two();
    let ids: Vec<RequestId> = (0..20).map(|_| rig.ask(1, 10, 20)).collect();
    step_both(&mut rig);
    rig.scheduler.drain_device(DEVICE);
    while step_both(&mut rig) {}
    assert!(rig.scheduler.is_device_empty(DEVICE));
    assert!(ids.iter().all(|id| matches!(rig.settled(*id), Some((End::Finished, _)))));
    rig.scheduler.resume_device(DEVICE);
    let id = rig.ask(1, 10, 1);
    assert_eq!(device_of(&rig, id), 0);
}

#[test]
fn what_only_a_draining_device_can_do_ends_there_and_newcomers_for_it_are_refused() {
    let mut rig = Rig::new(64);
    rig.scheduler.add_device(rig.now, OTHER);
    let waits = rig.ask(1, 10, 4);
    rig.scheduler.drain_device(DEVICE);
    let refused = rig.admit(1, CHAT, 0, generate(10, 4)).unwrap_err();
    assert_eq!(refused.reason, RejectReason::UnknownModel);
    rig.run_dry();
    assert!(matches!(rig.settled(waits), Some((End::Finished, _))));
    rig.scheduler.drain_device(OTHER);
    let refused = rig.admit(1, CHAT, 0, generate(10, 4)).unwrap_err();
    assert_eq!(refused.reason, RejectReason::NoDevice);
}

#[test]
fn what_a_lost_device_ran_goes_on_elsewhere_in_its_old_place() {
    let mut rig = two();
    let lost = rig.scheduler.admit_to(rig.now, DEVICE, admission(1, CHAT, generate(10, 50))).unwrap();
    let since = rig.now;
    rig.step();
    let later: Vec<RequestId> = (0..16).map(|_| rig.ask(1, 10, 50)).collect();
    let plan = plan_on(&mut rig, OTHER).unwrap();
    rig.now += STEP;
    finish_on(&mut rig, OTHER, &plan);
    rig.scheduler.device_lost(rig.now, DEVICE);
    rig.scheduler.take_events(&mut rig.events);
    assert!(matches!(rig.settled(lost), Some((End::Lost, _))));
    let resumption =
        Resumption { admission: admission(1, CHAT, generate(11, 49)), redo: 10, since, times: Times::default() };
    let back = rig.scheduler.admit_again(rig.now, None, resumption).unwrap();
    assert_eq!(device_of(&rig, back), 1);
    let waits = rig.ask(1, 10, 1);
    rig.scheduler.cancel(rig.now, later.into_iter().find(|id| rig.scheduler.device_of(*id).is_some()).unwrap());
    // The next place goes to the one that came first.
    let mut order = Vec::new();
    while order.len() < 2 && step_both(&mut rig) {
        for id in [back, waits] {
            if rig.cached_tokens(id).is_some() && !order.contains(&id) {
                order.push(id);
            }
        }
    }
    assert_eq!(order.first(), Some(&back));
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

fn scenario(devices: u16, sources: Vec<Source>, requests_max: u64, faults: Faults) -> Scenario {
    let limits = ModelLimits { blocks: 1024, rows_max: 16, tokens_max: 512, context_len_max: 2048 };
    let cost = StepCost {
        step: Nanos::from_millis(4),
        token: Nanos::from_micros(20),
        kilocontext: Nanos::ZERO,
        kiloread: Nanos::from_micros(5),
        overhead: Nanos::from_micros(30),
    };
    Scenario {
        seed: 5,
        config: Config::default(),
        devices,
        models: vec![
            SimModel { id: CHAT, limits, cost },
            SimModel { id: VECTORS, limits: ModelLimits { blocks: 0, context_len_max: 512, ..limits }, cost },
        ],
        sources,
        faults,
        requests_max,
        recount_every: 100,
        ..Scenario::default()
    }
}

fn play(devices: u16, sources: Vec<Source>, requests_max: u64, faults: Faults) -> Outcome {
    run(&scenario(devices, sources, requests_max, faults))
}

#[test]
fn no_device_stands_idle_for_longer_than_a_step_while_requests_wait() {
    for devices in [2, 3] {
        // Long backlogs, and one that is about as long as there are rows.
        for backlog in [200, 16 * u32::from(devices) + 1] {
            let outcome = play(devices, vec![source(1, 1, Arrivals::Backlog(backlog))], 4_000, Faults::default());
            let idle: Vec<Nanos> = outcome.devices.iter().map(|books| books.idle).collect();
            let (longest, end) = (outcome.idle_waiting_max, outcome.end);
            println!("{devices} devices, backlog {backlog}: idle {idle:?} of {end:?}, with work waiting {longest:?}");
            assert!(outcome.idle_waiting_max < Nanos::from_millis(60));
            assert!(idle.iter().all(|idle| idle.0 * 20 < outcome.end.0));
        }
    }
}

#[test]
fn the_gap_between_tenants_over_several_devices_does_not_grow_with_time() {
    for devices in [2, 3] {
        // More than there are rows, so that each always has work waiting.
        let backlog = 20 * u32::from(devices);
        let sources = || (1..=4).map(|t| source(t, t, Arrivals::Backlog(backlog))).collect();
        let short = play(devices, sources(), 2_000, Faults::default());
        let long = play(devices, sources(), 20_000, Faults::default());
        println!("{devices}: gap {:?} in {:?}, {:?} in {:?}", short.gap_max, short.end, long.gap_max, long.end);
        assert!(long.end > Nanos(8 * short.end.0));
        let bound = Nanos::from_millis(100 * u64::from(devices));
        assert!(short.gap_max < bound && long.gap_max < bound);
    }
}

#[test]
fn a_request_is_not_overtaken_without_end_by_later_ones_on_another_device() {
    // Who embeds has one device, and little of it. Who chats has the other besides, and so is far ahead, and what it has waiting on the first
    // would wait there for as long as it lasts.
    let ask = Ask::Embed { items: (1, 40), len: (5, 300) };
    let lists = Source { model: VECTORS, ask, ..source(2, 1, Arrivals::Backlog(40)) };
    let mut scenario = scenario(2, vec![source(1, 1, Arrivals::Backlog(60)), lists], 10_000, Faults::default());
    scenario.uneven.push(Uneven { device: OTHER, time_percent: 100, without: vec![VECTORS] });
    let outcome = run(&scenario);
    println!("overtaken by {} at most", outcome.overtaken_max);
    assert!(outcome.overtaken_max < 60);
}

#[test]
fn work_spreads_evenly_over_devices_alike() {
    let texts = source(1, 1, Arrivals::Poisson(Nanos::from_millis(12)));
    let ask = Ask::Embed { items: (1, 40), len: (5, 300) };
    let lists = Source { model: VECTORS, ask, ..source(1, 1, Arrivals::Poisson(Nanos::from_millis(30))) };
    for source in [texts, lists] {
        let outcome = play(3, vec![source], 5_000, Faults::default());
        let busy: Vec<u64> = outcome.devices.iter().map(|books| books.tenants.0).collect();
        println!("{busy:?} of {:?}", outcome.end);
        let (least, most) = (busy.iter().min().unwrap(), busy.iter().max().unwrap());
        assert!(most * 10 < least * 15, "{busy:?}");
    }
}

#[test]
fn a_device_that_comes_back_knows_what_its_steps_cost() {
    let mut rig = two();
    for _ in 0..5 {
        rig.scheduler.admit_to(rig.now, OTHER, admission(1, CHAT, generate(50, 10))).unwrap();
    }
    while step_both(&mut rig) {}
    let cost = |rig: &Rig| {
        let stats = rig.scheduler.stats();
        let model = stats.models.iter().find(|model| (model.device, model.model) == (OTHER, CHAT)).unwrap();
        (model.step_cost, model.kilotoken_cost)
    };
    let learnt = cost(&rig);
    rig.scheduler.device_lost(rig.now, OTHER);
    add_other(&mut rig, LIMITS);
    assert_eq!(cost(&rig), learnt);
}

#[test]
fn drains_and_losses_keep_every_invariant() {
    let faults = Faults {
        cancel_per_mille: 20,
        lost: vec![(Nanos::from_secs(3), DeviceId(0), Nanos::from_secs(2))],
        drained: vec![
            (Nanos::from_secs(8), DeviceId(1), Nanos::from_secs(3)),
            (Nanos::from_secs(14), DeviceId(2), Nanos::from_millis(10)),
        ],
        ..Faults::default()
    };
    let sources = (1..=3).map(|t| source(t, 1, Arrivals::Backlog(40))).collect();
    let outcome = play(3, sources, 10_000, faults);
    assert!(outcome.incidents.resumed > 0 && outcome.end > Nanos::from_secs(20));
    let idle = outcome.devices[1].idle;
    assert!((Nanos::from_secs(2)..Nanos::from_secs(4)).contains(&idle), "it stands idle while it is drained: {idle:?}");
}
