//! Where the time went, and who pays.

use crate::rig::*;
use weir_scheduler::*;

#[test]
fn wall_is_tenants_and_operator_and_idle_at_every_moment() {
    let mut rig = Rig::new(64);
    rig.now = Nanos(1_000);
    assert_eq!(rig.books().idle, Nanos(1_000));
    let id = rig.ask(1, 10, 1);
    let plan = rig.plan().unwrap();
    rig.now = Nanos(1_400);
    assert_eq!((rig.books().in_flight, rig.books().idle), (Nanos(400), Nanos(1_000)));
    rig.now = Nanos(2_000);
    let report = StepReport { step: plan.step, device_time: Nanos(700), rows: &[RowOutcome::Finished] };
    assert!(rig.scheduler.finish_step(rig.now, DEVICE, &report, &mut rig.events));
    let books = rig.books();
    assert_eq!((books.tenants, books.operator, books.idle), (Nanos(700), Nanos(300), Nanos(1_000)));
    assert_eq!(rig.settled(id), Some((End::Finished, Nanos(700))));
    rig.now = Nanos(2_500);
    assert_eq!(rig.books().idle, Nanos(1_500));
}

#[test]
fn a_steps_time_is_split_to_the_last_nanosecond() {
    let mut rig = Rig::new(64);
    let ids: Vec<_> = (1..=3).map(|tenant| rig.ask(tenant, 10, 1)).collect();
    let plan = rig.plan().unwrap();
    rig.finish_with(&plan, Nanos(1_000), |_| RowOutcome::Finished);
    let charges: Vec<u64> = ids.iter().map(|id| rig.settled(*id).unwrap().1.0).collect();
    assert_eq!(charges.iter().sum::<u64>(), 1_000);
    assert!(charges.iter().all(|charge| *charge == 333 || *charge == 334), "{charges:?}");
}

#[test]
fn a_row_planned_for_a_request_that_had_ended_is_the_operators() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 10, 50);
    let first = rig.plan().unwrap();
    let second = rig.plan().unwrap();
    rig.finish_with(&first, STEP, |_| RowOutcome::Finished);
    assert_eq!(rig.settled(id), Some((End::Finished, STEP)), "it settles at once");
    assert_eq!(rig.blocks_free(), 63, "but keeps its block");
    rig.finish(&second);
    assert_eq!(rig.blocks_free(), 64);
    assert_eq!((rig.books().tenants, rig.books().operator), (STEP, STEP));
    assert_eq!(rig.events.len(), 2, "started, settled, and nothing after that");
}

#[test]
fn a_failed_row_is_the_operators_but_counts_for_fairness() {
    let mut rig = Rig::with(Config::default(), 64, 1, 64);
    for _ in 0..40 {
        rig.ask(1, 10, 1);
        rig.ask(2, 10, 1);
    }
    let mut failed = 0;
    for _ in 0..40 {
        let plan = rig.plan().unwrap();
        let mine = plan.rows[0].request.index().is_multiple_of(2);
        failed += u32::from(mine);
        let outcome = if mine { RowOutcome::Failed } else { RowOutcome::Finished };
        rig.finish_with(&plan, STEP, |_| outcome);
    }
    assert!((18..=22).contains(&failed), "failing earns no turns: {failed}");
    assert_eq!(rig.charge(1), Nanos::ZERO);
    assert_eq!(rig.books().operator.0, u64::from(failed) * STEP.0);
}

#[test]
fn the_operators_own_requests_are_operator_time() {
    let mut rig = Rig::new(64);
    let id = rig.ask(0, 10, 1);
    rig.step();
    assert_eq!(rig.settled(id), Some((End::Finished, STEP)));
    assert_eq!((rig.books().tenants, rig.books().operator), (Nanos::ZERO, STEP));
}

#[test]
fn a_lost_device_ends_its_requests_and_its_time_is_the_operators() {
    let mut rig = Rig::new(64);
    let ids = [rig.ask(1, 10, 50), rig.ask(2, 10, 50), rig.embed(2, &[5; 40])];
    rig.step();
    let before = rig.books();
    let plan = rig.plan().unwrap();
    rig.now += Nanos(500);
    rig.scheduler.device_lost(rig.now, DEVICE);
    rig.scheduler.take_events(&mut rig.events);
    rig.scheduler.check_invariants();
    assert!(ids.iter().all(|id| rig.settled(*id).unwrap().0 == End::Lost));
    let rows = vec![RowOutcome::Advanced; plan.rows.len()];
    let late = StepReport { step: plan.step, device_time: STEP, rows: &rows };
    assert!(!rig.scheduler.finish_step(rig.now, DEVICE, &late, &mut rig.events));
    rig.now += Nanos(300);
    assert_eq!(rig.books().operator, before.operator + Nanos(800));
    assert_eq!(rig.books().tenants, before.tenants);
    rig.scheduler.add_device(rig.now, DEVICE);
    rig.now += Nanos(200);
    assert_eq!(rig.books().idle, before.idle + Nanos(200));
    let settled = rig.events.iter().filter(|event| matches!(event, Event::Settled { .. }));
    assert_eq!(settled.count(), 3, "one end each");
}

#[test]
fn device_time_beyond_the_wall_is_cut_off() {
    let mut rig = Rig::new(64);
    rig.ask(1, 10, 1);
    let plan = rig.plan().unwrap();
    rig.now += Nanos(100);
    let report = StepReport { step: plan.step, device_time: Nanos(150), rows: &[RowOutcome::Finished] };
    assert!(rig.scheduler.finish_step(rig.now, DEVICE, &report, &mut rig.events));
    assert_eq!(rig.charge(1), Nanos(100));
    rig.books();
}

#[test]
fn a_report_that_does_not_belong_changes_nothing() {
    let mut rig = Rig::new(64);
    rig.ask(1, 10, 9);
    let (first, second) = (rig.plan().unwrap(), rig.plan().unwrap());
    for (step, rows) in [(second.step, 1), (first.step, 2), (StepId(99), 1)] {
        let rows = vec![RowOutcome::Finished; rows];
        let report = StepReport { step, device_time: STEP, rows: &rows };
        assert!(!rig.scheduler.finish_step(rig.now, DEVICE, &report, &mut rig.events));
    }
    rig.scheduler.check_invariants();
    assert_eq!(rig.charge(1), Nanos::ZERO);
    rig.finish(&first);
}

#[test]
fn a_long_prompt_pays_more_of_a_step_than_a_decode() {
    let mut rig = Rig::with(Config::default(), 400, 8, 4096);
    let cost = |plan: &StepPlan| Nanos(1_000_000 + 100_000 * plan.tokens());
    let decode = rig.ask(2, 10, 2000);
    for n in 0..30 {
        rig.ask(1, 40 + 13 * n, 1);
        let plan = rig.plan().unwrap();
        rig.finish_with(&plan, cost(&plan), |_| RowOutcome::Advanced);
        rig.step_at(cost);
    }
    let before = (rig.charge(1).0, rig.charge(2).0);
    rig.ask(1, 200, 1);
    let plan = rig.plan().unwrap();
    assert!(row(&plan, decode).is_some() && plan.tokens() == 201);
    rig.finish_with(&plan, cost(&plan), |_| RowOutcome::Advanced);
    let (prompt, token) = (rig.charge(1).0 - before.0, rig.charge(2).0 - before.1);
    // 200 tokens at 100 us and half of the constant, against one token and the other half.
    assert!(prompt.abs_diff(20_500_000) < 400_000, "{prompt} {token}");
}

#[test]
fn a_late_report_does_not_shorten_the_next_steps_bill() {
    let mut rig = Rig::new(64);
    rig.ask(1, 10, 9);
    let (first, second) = (rig.plan().unwrap(), rig.plan().unwrap());
    let finish = |rig: &mut Rig, plan: &StepPlan, at: u64| {
        rig.now = Nanos(at);
        let rows = [RowOutcome::Advanced];
        let report = StepReport { step: plan.step, device_time: Nanos(1_000), rows: &rows };
        assert!(rig.scheduler.finish_step(rig.now, DEVICE, &report, &mut rig.events));
        rig.books()
    };
    // The first ended at 1,000 and was heard of at 1,300; the second began at 1,000 and ended at 2,000.
    let books = finish(&mut rig, &first, 1_300);
    assert_eq!((books.tenants, books.operator, books.in_flight), (Nanos(1_000), Nanos(0), Nanos(300)));
    let books = finish(&mut rig, &second, 2_000);
    assert_eq!((books.tenants, books.operator, books.in_flight), (Nanos(2_000), Nanos(0), Nanos(0)));
}

#[test]
fn time_left_over_twice_is_the_operators() {
    let mut rig = Rig::new(64);
    rig.ask(1, 10, 9);
    let (first, second) = (rig.plan().unwrap(), rig.plan().unwrap());
    let rows = [RowOutcome::Advanced];
    for (plan, at) in [(first, 1_300), (second, 2_600)] {
        rig.now = Nanos(at);
        let report = StepReport { step: plan.step, device_time: Nanos(1_000), rows: &rows };
        assert!(rig.scheduler.finish_step(rig.now, DEVICE, &report, &mut rig.events));
    }
    let books = rig.books();
    assert_eq!((books.tenants, books.operator, books.in_flight), (Nanos(2_000), Nanos(600), Nanos(0)));
}

#[test]
fn what_was_in_flight_when_blocks_were_lost_is_billed_once() {
    let mut rig = Rig::with(Config::default(), 128, 8, 256);
    rig.tenant(2, Tenant { kv_blocks_floor: 10, ..Tenant::default() });
    let time = |plan: &StepPlan| Nanos(1_000 * plan.tokens());
    rig.ask(3, 120, 600);
    rig.step_at(time);
    let long = rig.ask(1, 3_700, 1);
    let mut running = rig.plan().unwrap();
    // Somebody within its floor takes the blocks while a step of them is in flight.
    rig.ask(2, 300, 1);
    while !rig.events.contains(&Event::Preempted { request: long }) {
        let next = rig.plan();
        let lost = rig.events.contains(&Event::Preempted { request: long });
        assert!(!lost || row(&running, long).is_some());
        rig.finish_with(&running, time(&running), |_| RowOutcome::Advanced);
        running = next.or_else(|| rig.plan()).unwrap();
    }
    rig.finish_with(&running, time(&running), |_| RowOutcome::Advanced);
    while rig.step_at(time) {}
    let (end, bill) = rig.settled(long).unwrap();
    assert_eq!(end, End::Finished);
    let billed = bill.0 / 1_000;
    assert!((3_690..=3_710).contains(&billed), "{billed} positions of 3,700");
}
