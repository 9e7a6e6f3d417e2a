//! Why a request waited: each cause where only it can explain the wait, to the nanosecond.

use crate::rig::*;
use weir_scheduler::*;

/// The times of a settled request.
fn times(rig: &Rig, id: RequestId) -> Times {
    let settled = rig.events.iter().find_map(|event| match event {
        Event::Settled { request, times, .. } if *request == id => Some(*times),
        _ => None,
    });
    settled.expect("the request has settled")
}

/// What there is besides nothing, in nanoseconds.
fn parts(times: Times) -> Vec<(Cause, u64)> {
    Cause::ALL.into_iter().map(|cause| (cause, times.of(cause).0)).filter(|(_, time)| *time > 0).collect()
}

fn millis(rig: &Rig, id: RequestId) -> Vec<(Cause, u64)> {
    parts(times(rig, id)).into_iter().map(|(cause, time)| (cause, time / 1_000_000)).collect()
}

fn cause(rig: &Rig, id: RequestId) -> Cause {
    rig.scheduler.why(rig.now, id).unwrap().cause
}

fn one_row() -> Rig {
    Rig::with(Config::default(), 64, 1, 256)
}

#[test]
fn behind_its_own_tenants_requests_it_is_the_queue() {
    let mut rig = one_row();
    let ids = [rig.ask(1, 8, 3), rig.ask(1, 8, 2), rig.ask(1, 8, 1)];
    let why = rig.scheduler.why(rig.now, ids[2]).unwrap();
    assert_eq!((why.cause, why.queued.unwrap().position), (Cause::Queue, 3));
    while rig.step().is_some() {}
    use Cause::*;
    assert_eq!(millis(&rig, ids[0]), [(Steps, 30)]);
    assert_eq!(millis(&rig, ids[1]), [(Steps, 20), (Share, 30)]);
    // First in line from when the second started.
    assert_eq!(millis(&rig, ids[2]), [(Steps, 10), (Queue, 30), (Share, 20)]);
}

#[test]
fn where_its_tenant_runs_as_many_as_it_may_it_is_the_queue() {
    let mut rig = Rig::new(64);
    rig.tenant(1, Tenant { running_max: 1, ..Tenant::default() });
    let first = rig.ask(1, 8, 3);
    let plan = rig.plan().unwrap();
    // Nothing is planned before the report, and yet it is known why.
    let second = rig.ask(1, 8, 1);
    assert_eq!(cause(&rig, second), Cause::Queue);
    rig.finish(&plan);
    while rig.step().is_some() {}
    assert_eq!(millis(&rig, first), [(Cause::Steps, 30)]);
    assert_eq!(millis(&rig, second), [(Cause::Steps, 10), (Cause::Queue, 30)]);
}

#[test]
fn where_its_tenant_holds_as_many_blocks_as_it_may_it_is_the_queue() {
    let mut rig = Rig::new(64);
    rig.tenant(1, Tenant { kv_blocks_ceiling: Some(2), ..Tenant::default() });
    let (first, second) = (rig.ask(1, 40, 2), rig.ask(1, 40, 1));
    while rig.step().is_some() {}
    assert_eq!(millis(&rig, first), [(Cause::Steps, 20)]);
    assert_eq!(millis(&rig, second), [(Cause::Steps, 10), (Cause::Queue, 20)]);
}

#[test]
fn a_more_urgent_request_makes_the_first_in_line_wait_in_the_queue() {
    let mut rig = one_row();
    rig.ask(2, 8, 1);
    let plan = rig.plan().unwrap();
    let work = |new_tokens_max| Work::Generate { prompt_len: 8, new_tokens_max, hashes: Vec::new() };
    let patient = rig.admit(1, CHAT, 1, work(1)).unwrap();
    rig.now += Nanos(7);
    let urgent = rig.admit(1, CHAT, 0, work(1)).unwrap();
    rig.finish(&plan);
    while rig.step().is_some() {}
    // The first 7 ns in line for the tenant's turn, then behind the urgent one until that starts, then first again.
    assert_eq!(parts(times(&rig, urgent)), [(Cause::Steps, STEP.0), (Cause::Share, STEP.0)]);
    let patient = parts(times(&rig, patient));
    assert_eq!(patient, [(Cause::Steps, STEP.0), (Cause::Queue, STEP.0), (Cause::Share, STEP.0 + 7)]);
}

#[test]
fn where_another_tenants_rows_take_the_step_it_is_the_share() {
    let mut rig = one_row();
    let ids = [rig.ask(1, 8, 3), rig.ask(2, 8, 3)];
    while rig.step().is_some() {}
    let [mine, theirs] = ids.map(|id| millis(&rig, id));
    assert_eq!(mine[0], (Cause::Steps, 30));
    assert_eq!(theirs[0], (Cause::Steps, 30));
    // One waits first, and the other while it skips steps.
    assert!(mine.len() == 2 && mine[1].0 == Cause::Share && mine[1].1 >= 20, "{mine:?}");
    assert!(theirs.len() == 2 && theirs[1].0 == Cause::Share && theirs[1].1 >= 20, "{theirs:?}");
}

#[test]
fn where_the_steps_tokens_are_used_up_it_is_the_share() {
    let mut rig = Rig::with(Config::default(), 64, 8, 32);
    let (long, short) = (rig.ask(1, 64, 1), rig.ask(2, 20, 1));
    let plan = rig.step().unwrap();
    assert!(row(&plan, long).is_some() && row(&plan, short).is_none());
    assert_eq!(cause(&rig, short), Cause::Share);
    while rig.step().is_some() {}
    let short = millis(&rig, short);
    assert!(short.len() == 2 && short[0] == (Cause::Steps, 10) && short[1].0 == Cause::Share, "{short:?}");
}

#[test]
fn the_moment_between_a_report_and_the_next_plan_is_the_shares() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 8, 2);
    rig.step();
    rig.now += Nanos(5);
    rig.step();
    assert_eq!(parts(times(&rig, id)), [(Cause::Steps, 2 * STEP.0), (Cause::Share, 5)]);
}

#[test]
fn two_steps_in_flight_are_one_stretch_of_time() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 8, 4);
    let mut plan = rig.plan().unwrap();
    while let Some(next) = rig.plan() {
        rig.finish(&plan);
        plan = next;
    }
    rig.finish(&plan);
    assert_eq!(parts(times(&rig, id)), [(Cause::Steps, 4 * STEP.0)]);
}

#[test]
fn without_blocks_it_is_the_memory() {
    let mut rig = Rig::new(4);
    // The first grows into its third block; the second needs three.
    let (first, second) = (rig.ask(1, 60, 8), rig.ask(2, 80, 1));
    rig.step();
    assert_eq!(cause(&rig, second), Cause::Memory);
    while rig.step().is_some() {}
    assert_eq!(millis(&rig, first), [(Cause::Steps, 80)]);
    assert_eq!(millis(&rig, second), [(Cause::Steps, 10), (Cause::Memory, 80)]);
}

#[test]
fn who_may_not_start_because_another_waits_for_blocks_waits_for_them_too() {
    let mut rig = Rig::new(4);
    let (_, second, third) = (rig.ask(1, 60, 8), rig.ask(2, 80, 1), rig.ask(3, 8, 1));
    rig.step();
    assert_eq!([cause(&rig, second), cause(&rig, third)], [Cause::Memory; 2]);
}

#[test]
fn beside_one_that_runs_alone_it_is_the_placement() {
    let mut rig = Rig::new(64);
    let running = rig.ask(1, 8, 2);
    rig.step();
    let (alone, waiting) = (rig.ask(2, 8, 3), rig.ask(3, 8, 1));
    rig.scheduler.run_alone(DEVICE, Some(alone));
    for _ in 0..3 {
        rig.step();
    }
    rig.step();
    assert_eq!(millis(&rig, alone), [(Cause::Steps, 30)]);
    assert_eq!(millis(&rig, running), [(Cause::Steps, 20), (Cause::Placement, 30)]);
    assert_eq!(millis(&rig, waiting), [(Cause::Steps, 10), (Cause::Placement, 30)]);
}

#[test]
fn while_another_computes_its_prefix_it_is_the_placement() {
    let mut rig = Rig::new(64);
    let (first, second) = (rig.ask_text(1, 7, 70, 1), rig.ask_text(1, 7, 70, 1));
    rig.step();
    rig.step();
    assert_eq!(rig.cached_tokens(second), Some(64));
    assert_eq!(millis(&rig, first), [(Cause::Steps, 10)]);
    assert_eq!(millis(&rig, second), [(Cause::Steps, 10), (Cause::Placement, 10)]);
}

#[test]
fn without_a_device_it_is_the_placement_and_what_was_before_is_kept() {
    let mut rig = Rig::new(64);
    rig.now = Nanos(40);
    let since = rig.now;
    let id = rig.ask(1, 40, 10);
    rig.now += Nanos(3);
    rig.step();
    let plan = rig.plan().unwrap();
    rig.now += Nanos(11);
    rig.scheduler.device_lost(rig.now, DEVICE);
    rig.scheduler.take_events(&mut rig.events);
    assert!(!rig.scheduler.finish_step(
        rig.now,
        DEVICE,
        &StepReport { step: plan.step, device_time: STEP, rows: &[] },
        &mut rig.events
    ));
    let before = times(&rig, id);
    assert_eq!(parts(before), [(Cause::Steps, STEP.0 + 11), (Cause::Share, 3)]);
    rig.now += Nanos(500);
    rig.scheduler.add_device(rig.now, DEVICE);
    let limits = ModelLimits { blocks: 64, rows_max: 8, tokens_max: 256, context_len_max: 4096 };
    assert!(rig.scheduler.add_model(DEVICE, CHAT, limits));
    let work = Work::Generate { prompt_len: 41, new_tokens_max: 1, hashes: Vec::new() };
    let admission = Admission { tenant: TenantId(1), model: CHAT, priority: 0, work };
    let resumption = Resumption { admission, redo: 41, since, times: before };
    let again = rig.scheduler.admit_again(rig.now, None, resumption).unwrap();
    rig.step();
    let after = times(&rig, again);
    assert_eq!(parts(after), [(Cause::Steps, 2 * STEP.0 + 11), (Cause::Share, 3), (Cause::Placement, 500)]);
    assert_eq!(after.total(), rig.now - since);
}

#[test]
fn while_a_running_request_has_no_block_to_grow_into_it_is_the_memory() {
    let mut rig = Rig::new(5);
    let (_, second) = (rig.ask(1, 60, 40), rig.ask(1, 60, 40));
    let lost = |rig: &Rig| rig.events.iter().any(|event| matches!(event, Event::Preempted { .. }));
    let mut without = 0;
    while !lost(&rig) {
        let plan = rig.step().unwrap();
        let stands = row(&plan, second).is_none();
        without += u64::from(stands && !lost(&rig));
    }
    while rig.step().is_some() {}
    assert!(without > 20, "{without}");
    assert_eq!(millis(&rig, second)[1], (Cause::Memory, 10 * without));
}

#[test]
fn from_losing_its_blocks_to_its_next_row_it_is_the_preemption() {
    let mut rig = Rig::new(5);
    let (first, second) = (rig.ask(1, 60, 20), rig.ask(1, 80, 10));
    let lost = |rig: &Rig| rig.events.iter().any(|event| matches!(event, Event::Preempted { .. }));
    let mut ran = 0;
    while !lost(&rig) {
        ran += u64::from(row(&rig.step().unwrap(), second).is_some());
    }
    assert_eq!(cause(&rig, second), Cause::Preemption);
    let mut without = 1;
    while rig.settled(first).is_none() {
        let plan = rig.step().unwrap();
        without += u64::from(row(&plan, second).is_none());
    }
    let mut after = 0;
    while rig.step().is_some() {
        after += 1;
    }
    assert_eq!(millis(&rig, second), [(Cause::Steps, 10 * (ran + after)), (Cause::Preemption, 10 * without)]);
}

#[test]
fn a_cancelled_request_is_explained_too() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 8, 9);
    rig.now += Nanos(9);
    let plan = rig.plan().unwrap();
    rig.now += Nanos(2);
    rig.scheduler.cancel(rig.now, id);
    rig.finish(&plan);
    assert_eq!(parts(times(&rig, id)), [(Cause::Steps, STEP.0 + 2), (Cause::Share, 9)]);
    assert_eq!(rig.scheduler.why(rig.now, id), None);
}

#[test]
fn a_place_in_line_counts_its_tenants_requests_and_the_tenants_before_it() {
    let mut rig = one_row();
    for _ in 0..3 {
        rig.ask(1, 8, 4);
    }
    rig.step();
    let theirs: Vec<_> = (0..4).map(|_| rig.ask(2, 8, 4)).collect();
    let own = rig.ask(1, 8, 4);
    let queued = |rig: &Rig, id| rig.scheduler.why(rig.now, id).unwrap().queued.unwrap();
    let positions: Vec<_> = theirs.iter().map(|id| queued(&rig, *id).position).collect();
    assert_eq!(positions, [1, 2, 3, 4]);
    assert_eq!((queued(&rig, own).position, queued(&rig, own).tenants_ahead), (3, 1));
    assert_eq!(queued(&rig, theirs[0]).tenants_ahead, 0);
    rig.scheduler.cancel(rig.now, theirs[1]);
    assert_eq!(queued(&rig, theirs[3]).position, 3);
    rig.step();
    rig.step();
    assert!(rig.scheduler.why(rig.now, theirs[0]).unwrap().queued.is_none(), "who runs has no place in line");
}

/// Two tenants of different weights keep the device busy; what a newcomer is told is held against when it starts.
#[test]
fn an_expected_start_is_about_when_it_starts() {
    let mut rig = Rig::with(Config::default(), 400, 4, 256);
    rig.tenant(1, Tenant { weight: 1, ..Tenant::default() });
    rig.tenant(2, Tenant { weight: 3, ..Tenant::default() });
    let cost = |plan: &StepPlan| Nanos(2_000_000 + 50_000 * plan.tokens());
    let (mut told, mut ratios) = (Vec::new(), Vec::new());
    let mut waiting = [Vec::new(), Vec::new()];
    for _ in 0..4_000 {
        for tenant in [1, 2] {
            let line = &mut waiting[tenant as usize - 1];
            line.retain(|id| rig.scheduler.why(rig.now, *id).is_some_and(|why| why.queued.is_some()));
            while line.len() < 12 {
                let id = rig.ask(tenant, 50, 20);
                line.push(id);
                if rig.now > Nanos::from_secs(5) {
                    told.push((id, rig.now, rig.scheduler.why(rig.now, id).unwrap().queued.unwrap()));
                }
            }
        }
        rig.step_at(cost);
        told.retain(|(id, at, queued)| {
            let started = rig.scheduler.why(rig.now, *id).is_none_or(|why| why.queued.is_none());
            if started {
                ratios.push((rig.now - *at).0 as f64 / queued.expected_start.0 as f64);
            }
            !started
        });
    }
    ratios.sort_by(f64::total_cmp);
    let at = |part: f64| ratios[(part * (ratios.len() - 1) as f64) as usize];
    println!("{} starts, waited over expected: {:.2} {:.2} {:.2}", ratios.len(), at(0.05), at(0.5), at(0.95));
    assert!(ratios.len() > 100 && (0.7..1.4).contains(&at(0.5)) && at(0.05) > 0.5 && at(0.95) < 2.0);
}

#[test]
fn while_its_tenant_has_no_grant_it_is_the_quota() {
    let mut rig = Rig::new(64);
    for _ in 0..40 {
        rig.ask(2, 10, 1);
        rig.step();
    }
    rig.tenant(1, Tenant { metered: true, ..Tenant::default() });
    let later = Nanos::from_secs(3600);
    let grant = |rig: &mut Rig, millis| {
        let grant = Grant { epoch: 1, amount: Nanos::from_millis(millis), expires: later };
        rig.scheduler.grant(rig.now, TenantId(1), grant);
    };
    // It waits for the first grant before it starts, and for the second while it runs; the one behind it is in line all the while.
    let (first, second) = (rig.ask(1, 10, 6), rig.ask(1, 10, 1));
    rig.tenant(1, Tenant { metered: true, running_max: 1, ..Tenant::default() });
    assert!(rig.step().is_none());
    rig.now += Nanos::from_millis(300);
    grant(&mut rig, 35);
    while rig.step().is_some() {}
    assert_eq!(cause(&rig, first), Cause::Quota);
    rig.now += Nanos::from_millis(200);
    grant(&mut rig, 1_000);
    while rig.step().is_some() {}
    use Cause::*;
    assert_eq!(millis(&rig, first), [(Steps, 60), (Quota, 500)]);
    assert_eq!(millis(&rig, second), [(Steps, 10), (Queue, 560)]);
}
