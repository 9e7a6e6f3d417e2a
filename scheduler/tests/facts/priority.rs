//! Priority classes: order inside a tenant, under its plan's ceiling, with a bounded wait for the lowest.

use crate::rig::*;
use weir_scheduler::*;

fn ask(rig: &mut Rig, tenant: u32, priority: u8) -> RequestId {
    let work = Work::Generate { prompt_len: 10, new_tokens_max: 1, hashes: Vec::new() };
    rig.admit(tenant, CHAT, priority, work).unwrap()
}

/// One request a step, in the order of their starts.
fn order(rig: &mut Rig) -> Vec<RequestId> {
    let mut order = Vec::new();
    while let Some(plan) = rig.step() {
        assert_eq!(plan.rows.len(), 1);
        order.push(plan.rows[0].request);
    }
    order
}

#[test]
fn no_request_is_more_urgent_than_its_plan_allows() {
    let mut rig = Rig::with(Config::default(), 64, 1, 256);
    rig.tenant(1, Tenant { priority_ceiling: 3, ..Tenant::default() });
    let (first, urgent, third) = (ask(&mut rig, 1, 3), ask(&mut rig, 1, 0), ask(&mut rig, 1, 2));
    let late = ask(&mut rig, 1, 4);
    let fifth = ask(&mut rig, 1, 3);
    assert_eq!(order(&mut rig), [first, urgent, third, fifth, late], "0 and 2 count as 3");
    rig.tenant(1, Tenant::default());
    let (first, urgent) = (ask(&mut rig, 1, 3), ask(&mut rig, 1, 0));
    assert_eq!(order(&mut rig), [urgent, first]);
}

#[test]
fn a_class_does_not_reach_beyond_its_tenant() {
    let mut rig = Rig::with(Config::default(), 64, 1, 256);
    let low: Vec<_> = (0..5).map(|_| ask(&mut rig, 1, 9)).collect();
    let high: Vec<_> = (0..5).map(|_| ask(&mut rig, 2, 0)).collect();
    let order = order(&mut rig);
    for n in 0..5 {
        let turn = &order[2 * n..2 * n + 2];
        assert!(turn.contains(&low[n]) && turn.contains(&high[n]), "they take turns");
    }
}

#[test]
fn the_lowest_class_is_overtaken_only_by_what_comes_within_its_spacing() {
    let mut rig = Rig::with(Config::default(), 64, 1, 256);
    let spacing = Config::default().priority_spacing;
    let low = ask(&mut rig, 1, 9);
    let bound = Nanos(9 * spacing.0);
    // Class 0 comes faster than it is served, for ever.
    let mut served_at = None;
    for _ in 0..6_000 {
        ask_if_room(&mut rig);
        ask_if_room(&mut rig);
        let plan = rig.step().unwrap();
        if plan.rows[0].request == low {
            served_at = Some(rig.now);
            break;
        }
    }
    // It runs when those that came within the spacing have: twice as many as were served meanwhile.
    let served_at = served_at.unwrap();
    assert!(served_at >= bound && served_at <= Nanos(2 * bound.0 + 2 * STEP.0), "{served_at:?}");
}

fn ask_if_room(rig: &mut Rig) {
    let work = Work::Generate { prompt_len: 10, new_tokens_max: 1, hashes: Vec::new() };
    let _ = rig.scheduler.admit(rig.now, Admission { tenant: TenantId(1), model: CHAT, priority: 0, work });
}
