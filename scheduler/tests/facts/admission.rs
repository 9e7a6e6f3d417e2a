//! The door: what is refused, why, and until when.

use crate::rig::*;
use weir_scheduler::*;

fn generate(prompt_len: u32, new_tokens_max: u32) -> Work {
    Work::Generate { prompt_len, new_tokens_max, hashes: Vec::new() }
}

fn reason(rig: &mut Rig, tenant: u32, model: ModelId, work: Work) -> RejectReason {
    rig.admit(tenant, model, 0, work).unwrap_err().reason
}

#[test]
fn each_refusal_has_its_reason() {
    let mut rig = Rig::new(64);
    use RejectReason::*;
    assert_eq!(reason(&mut rig, 99, CHAT, generate(1, 1)), UnknownTenant);
    assert_eq!(reason(&mut rig, 1, ModelId(9), generate(1, 1)), UnknownModel);
    assert_eq!(reason(&mut rig, 1, CHAT, generate(4097, 1)), InputTooLong);
    assert_eq!(reason(&mut rig, 1, CHAT, generate(4096, 1)), ContextTooLong);
    assert_eq!(reason(&mut rig, 1, CHAT, generate(u32::MAX, u32::MAX)), InputTooLong);
    assert_eq!(reason(&mut rig, 1, CHAT, generate(1, u32::MAX)), ContextTooLong);
    // 64 blocks hold 2,048 positions, and the last id drawn needs none.
    assert_eq!(reason(&mut rig, 1, CHAT, generate(2000, 50)), NeverFits);
    assert!(rig.admit(1, CHAT, 0, generate(2000, 49)).is_ok());
    assert_eq!(reason(&mut rig, 1, CHAT, generate(0, 5)), NeverFits);
    assert_eq!(reason(&mut rig, 1, VECTORS, generate(5, 5)), NeverFits);
    assert_eq!(reason(&mut rig, 1, VECTORS, Work::Embed { lens: vec![] }), NeverFits);
    assert_eq!(reason(&mut rig, 1, VECTORS, Work::Embed { lens: vec![3, 0] }), NeverFits);
    assert_eq!(reason(&mut rig, 1, VECTORS, Work::Embed { lens: vec![3, 513] }), InputTooLong);
    rig.tenant(2, Tenant { kv_blocks_ceiling: Some(3), ..Tenant::default() });
    assert_eq!(reason(&mut rig, 2, CHAT, generate(90, 8)), NeverFits);
    rig.scheduler.drain();
    assert_eq!(reason(&mut rig, 1, CHAT, generate(1, 1)), Draining);
    assert_eq!(rig.scheduler.stats().waiting, 1);
}

#[test]
fn without_a_device_nothing_is_accepted() {
    let mut rig = Rig::new(64);
    rig.scheduler.remove_device(rig.now, DEVICE);
    assert_eq!(reason(&mut rig, 1, CHAT, generate(1, 1)), RejectReason::NoDevice);
    assert_eq!(rig.scheduler.accounts(Nanos(5), DEVICE), DeviceAccounts::default());
}

#[test]
fn queues_are_bounded_per_tenant_and_over_all() {
    let mut rig = Rig::with(Config { queue_len_max: 5, ..Config::default() }, 64, 8, 256);
    rig.tenant(1, Tenant { queue_len_max: 3, ..Tenant::default() });
    for _ in 0..3 {
        rig.ask(1, 10, 1);
    }
    assert_eq!(reason(&mut rig, 1, CHAT, generate(1, 1)), RejectReason::TenantQueueFull);
    rig.ask(2, 10, 1);
    rig.ask(2, 10, 1);
    assert_eq!(reason(&mut rig, 2, CHAT, generate(1, 1)), RejectReason::QueueFull);
}

#[test]
fn retry_after_is_about_when_a_place_is_free() {
    let mut rig = Rig::with(Config::default(), 400, 4, 256);
    rig.tenant(1, Tenant { queue_len_max: 20, ..Tenant::default() });
    let cost = |plan: &StepPlan| Nanos(2_000_000 + 50_000 * plan.tokens());
    // Learn what things cost, then fill the queue.
    for _ in 0..40 {
        rig.ask(2, 50, 20);
        for _ in 0..4 {
            rig.step_at(cost);
        }
    }
    while rig.step_at(cost) {}
    for _ in 0..24 {
        let _ = rig.admit(1, CHAT, 0, generate(50, 20));
        rig.step_at(cost);
    }
    while rig.admit(1, CHAT, 0, generate(50, 20)).is_ok() {}
    let (mut ratios, mut refusals) = (Vec::new(), 0);
    for _ in 0..60 {
        let reject = rig.admit(1, CHAT, 0, generate(50, 20)).unwrap_err();
        assert_eq!(reject.reason, RejectReason::TenantQueueFull);
        refusals += 1;
        let asked_at = rig.now;
        while rig.admit(1, CHAT, 0, generate(50, 20)).is_err() {
            rig.step_at(cost);
        }
        ratios.push((reject.retry_after.0, (rig.now - asked_at).0));
    }
    let (said, was) = ratios.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{refusals} refusals: said {said} ns, was {was} ns in all");
    assert!(said * 2 > was && said < was * 2);
}

#[test]
fn a_group_is_accepted_whole_or_not_at_all() {
    let mut rig = Rig::new(64);
    rig.tenant(1, Tenant { queue_len_max: 3, ..Tenant::default() });
    let group = |n: usize| {
        let work = generate(10, 1);
        vec![Admission { tenant: TenantId(1), model: CHAT, priority: 0, work }; n]
    };
    let reject = rig.scheduler.admit_group(rig.now, group(4)).unwrap_err();
    assert_eq!(reject.reason, RejectReason::TenantQueueFull);
    rig.scheduler.check_invariants();
    assert_eq!(rig.scheduler.stats().waiting, 0);
    rig.scheduler.take_events(&mut rig.events);
    assert_eq!(rig.events, [], "what was never accepted has no end");
    assert_eq!(rig.scheduler.admit_group(rig.now, group(3)).unwrap().len(), 3);
}

#[test]
fn a_stale_id_harms_nobody() {
    let mut rig = Rig::new(64);
    let old = rig.ask(1, 10, 1);
    rig.run_dry();
    let new = rig.ask(1, 10, 1);
    assert_eq!(old.index(), new.index(), "the slot is used again");
    assert_ne!(old, new);
    rig.scheduler.cancel(rig.now, old);
    rig.scheduler.block_hashed(old, hash(1, 0));
    rig.scheduler.cancel(rig.now, RequestId(u64::MAX));
    rig.run_dry();
    assert!(matches!(rig.settled(new), Some((End::Finished, _))));
}

#[test]
fn cancelling_a_waiting_request_settles_it_at_once_and_for_nothing() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 10, 1);
    rig.now = Nanos(77);
    rig.scheduler.cancel(rig.now, id);
    rig.scheduler.cancel(rig.now, id);
    rig.scheduler.take_events(&mut rig.events);
    let mut times = Times::default();
    times.add(Cause::Share, Nanos(77));
    let expected = Event::Settled {
        request: id,
        tenant: TenantId(1),
        end: End::Cancelled,
        device: DeviceId(0),
        charge: Nanos::ZERO,
        cached_tokens: 0,
        queued: Nanos(77),
        times,
        preemptions: 0,
    };
    assert_eq!(rig.events, [expected]);
    assert!(rig.plan().is_none());
}

#[test]
fn requests_spread_over_devices_by_expected_finish_and_go_where_their_prefix_is() {
    let mut rig = Rig::new(64);
    let other = DeviceId(1);
    rig.scheduler.add_device(rig.now, other);
    let limits = ModelLimits { blocks: 64, rows_max: 8, tokens_max: 256, context_len_max: 4096 };
    rig.scheduler.add_model(other, CHAT, limits);
    for _ in 0..10 {
        rig.ask(1, 100, 20);
    }
    let waiting: Vec<u32> =
        rig.scheduler.stats().models.iter().filter(|m| m.model == CHAT).map(|m| m.waiting).collect();
    assert_eq!(waiting, [5, 5]);

    let mut rig = Rig::new(64);
    rig.ask_text(1, 7, 640, 1);
    rig.run_dry();
    rig.scheduler.add_device(rig.now, other);
    rig.scheduler.add_model(other, CHAT, limits);
    rig.ask(1, 10, 1);
    let id = rig.ask_text(1, 7, 640, 1);
    rig.run_dry();
    assert_eq!(rig.cached_tokens(id), Some(608));
}

#[test]
fn demand_is_what_the_queue_is_expected_to_cost() {
    let mut rig = Rig::with(Config::default(), 400, 4, 256);
    let cost = |plan: &StepPlan| Nanos(2_000_000 + 50_000 * plan.tokens());
    for _ in 0..60 {
        rig.ask(2, 50, 20);
    }
    while rig.step_at(cost) {}
    for _ in 0..40 {
        rig.ask(1, 50, 20);
    }
    let demand = rig.scheduler.stats().demand.0;
    let before = rig.now;
    while rig.step_at(cost) {}
    let took = (rig.now - before).0;
    println!("expected {demand} ns, took {took} ns");
    assert!(demand * 4 > took * 3 && demand * 3 < took * 4);
}
