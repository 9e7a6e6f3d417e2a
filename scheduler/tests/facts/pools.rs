//! Reserved devices: who may use them, wherever a request is bound to a device.

use crate::rig::*;
use weir_scheduler::*;

const COMMON: DeviceId = DEVICE;
const GOLD: DeviceId = DeviceId(1);
const POOL: PoolId = PoolId(7);

/// A common device and one in a pool; tenant 1 has no pool, 2 has, 3 keeps to it.
fn rig() -> Rig {
    let mut rig = Rig::new(64);
    rig.scheduler.add_device(rig.now, GOLD);
    rig.scheduler.set_pool(GOLD, Some(POOL));
    add_model(&mut rig);
    rig.tenant(2, Tenant { pool: Some(POOL), ..Tenant::default() });
    rig.tenant(3, Tenant { pool: Some(POOL), pool_only: true, ..Tenant::default() });
    rig
}

fn add_model(rig: &mut Rig) {
    let limits = ModelLimits { blocks: 64, rows_max: 8, tokens_max: 256, context_len_max: 4096 };
    assert!(rig.scheduler.add_model(GOLD, CHAT, limits));
}

fn places(rig: &mut Rig, tenant: u32, count: usize) -> Vec<DeviceId> {
    (0..count)
        .map(|_| {
            let id = rig.ask(tenant, 60, 20);
            rig.scheduler.device_of(id).unwrap()
        })
        .collect()
}

#[test]
fn a_reserved_device_serves_those_whose_plan_names_its_pool() {
    let mut rig = rig();
    assert_eq!(places(&mut rig, 1, 12), [COMMON; 12]);
    assert_eq!(places(&mut rig, 3, 12), [GOLD; 12]);
    let mut rig = self::rig();
    let both = places(&mut rig, 2, 12);
    assert_eq!(both[0], GOLD, "its own pool comes first");
    assert!(both.contains(&COMMON), "and the common devices when that is full: {both:?}");
    let canary = Admission {
        tenant: TenantId::OPERATOR,
        model: CHAT,
        priority: 0,
        work: Work::Generate { prompt_len: 1, new_tokens_max: 1, hashes: Vec::new() },
    };
    assert!(rig.scheduler.admit_to(rig.now, GOLD, canary.clone()).is_ok(), "the operator goes everywhere");
    let refused = rig.scheduler.admit_to(rig.now, GOLD, Admission { tenant: TenantId(1), ..canary });
    assert_eq!(refused.unwrap_err().reason, RejectReason::NoDevice);
}

/// Runs requests on a device until it is known what its steps cost.
fn teach(rig: &mut Rig, device: DeviceId) {
    let work = Work::Generate { prompt_len: 40, new_tokens_max: 30, hashes: Vec::new() };
    let admission = Admission { tenant: TenantId::OPERATOR, model: CHAT, priority: 0, work };
    rig.scheduler.admit_to(rig.now, device, admission).unwrap();
    let mut plan = StepPlan::new();
    while rig.scheduler.next_step(rig.now, device, &mut plan) {
        rig.now += STEP;
        let rows = vec![RowOutcome::Advanced; plan.rows.len()];
        let report = StepReport { step: plan.step, device_time: STEP, rows: &rows };
        assert!(rig.scheduler.finish_step(rig.now, device, &report, &mut rig.events));
    }
}

#[test]
fn the_common_devices_are_left_to_those_who_have_no_other() {
    let mut rig = rig();
    teach(&mut rig, COMMON);
    teach(&mut rig, GOLD);
    assert_eq!(places(&mut rig, 2, 3), [GOLD; 3], "though fewer run on the other");
    assert_eq!(places(&mut rig, 1, 1), [COMMON]);
    assert!(places(&mut rig, 2, 60).contains(&COMMON), "where its own has too much to do");
}

#[test]
fn another_pools_plan_is_no_key() {
    let mut rig = rig();
    rig.tenant(4, Tenant { pool: Some(PoolId(8)), ..Tenant::default() });
    assert_eq!(places(&mut rig, 4, 12), [COMMON; 12]);
    rig.tenant(4, Tenant { pool: Some(PoolId(8)), pool_only: true, ..Tenant::default() });
    let work = Work::Generate { prompt_len: 1, new_tokens_max: 1, hashes: Vec::new() };
    assert_eq!(rig.admit(4, CHAT, 0, work).unwrap_err().reason, RejectReason::NoDevice);
}

#[test]
fn a_floor_keeps_blocks_only_on_devices_that_serve_its_tenant() {
    let mut rig = rig();
    // Of 64 blocks each: the pool's is for tenant 2, besides the common one, and for 3, which keeps to it.
    rig.tenant(1, Tenant { kv_blocks_floor: 10, ..Tenant::default() });
    rig.tenant(3, Tenant { pool: Some(POOL), pool_only: true, kv_blocks_floor: 40, ..Tenant::default() });
    let long = |rig: &mut Rig, tenant: u32, device: DeviceId, blocks: u32| {
        let work = Work::Generate { prompt_len: blocks * BLOCK_LEN, new_tokens_max: 1, hashes: Vec::new() };
        let admission = Admission { tenant: TenantId(tenant), model: CHAT, priority: 0, work };
        let answer = rig.scheduler.admit_to(rig.now, device, admission).map_err(|reject| reject.reason);
        rig.scheduler.check_invariants();
        answer.map(|id| rig.scheduler.cancel(rig.now, id))
    };
    assert_eq!(long(&mut rig, 1, COMMON, 64), Ok(()), "nobody else has a floor there");
    assert_eq!(long(&mut rig, 2, COMMON, 54), Ok(()));
    assert_eq!(long(&mut rig, 2, COMMON, 55), Err(RejectReason::NeverFits));
    assert_eq!(long(&mut rig, 2, GOLD, 24), Ok(()));
    assert_eq!(long(&mut rig, 2, GOLD, 25), Err(RejectReason::NeverFits));
    // A device that leaves its pool is one that tenant 1 may use, and 3 no more.
    rig.scheduler.set_pool(GOLD, None);
    assert_eq!(long(&mut rig, 2, GOLD, 54), Ok(()));
    assert_eq!(long(&mut rig, 2, GOLD, 55), Err(RejectReason::NeverFits));
    rig.scheduler.set_pool(GOLD, Some(POOL));
    rig.scheduler.device_lost(rig.now, GOLD);
    rig.scheduler.add_device(rig.now, GOLD);
    add_model(&mut rig);
    assert_eq!(long(&mut rig, 2, GOLD, 24), Ok(()));
    assert_eq!(long(&mut rig, 2, GOLD, 25), Err(RejectReason::NeverFits));
}

#[test]
fn an_idle_reserved_device_pulls_nothing_that_is_not_its_own() {
    let pulled = |tenant: u32| {
        let mut rig = rig();
        // All of it waits for the common device, as if the other had just come.
        rig.scheduler.drain_device(GOLD);
        let ids: Vec<_> = (0..30).map(|_| rig.ask(tenant, 60, 20)).collect();
        for _ in 0..4 {
            rig.step();
        }
        rig.scheduler.resume_device(GOLD);
        let mut plan = StepPlan::new();
        rig.scheduler.next_step(rig.now, GOLD, &mut plan);
        rig.scheduler.check_invariants();
        ids.iter().filter(|id| rig.scheduler.device_of(**id) == Some(GOLD)).count()
    };
    assert_eq!(pulled(1), 0);
    assert!(pulled(2) > 0);
}

#[test]
fn draining_sends_nobody_where_he_may_not_be() {
    let mut rig = rig();
    let kept: Vec<_> = (0..4).map(|_| rig.ask(3, 60, 20)).collect();
    let free: Vec<_> = (0..4).map(|_| rig.ask(2, 60, 20)).collect();
    rig.scheduler.drain_device(GOLD);
    let of = |rig: &Rig, ids: &[RequestId]| -> Vec<_> {
        ids.iter().map(|id| rig.scheduler.device_of(*id).unwrap()).collect()
    };
    assert_eq!(of(&rig, &kept), [GOLD; 4], "they end where they may run");
    assert_eq!(of(&rig, &free), [COMMON; 4]);
    rig.scheduler.resume_device(GOLD);
    let own = rig.ask(1, 60, 20);
    rig.scheduler.drain_device(COMMON);
    assert_eq!(of(&rig, &[own]), [COMMON], "no other may have it");
}

#[test]
fn after_a_loss_a_request_goes_on_only_where_its_plan_lets_it() {
    let mut rig = rig();
    rig.scheduler.device_lost(rig.now, GOLD);
    let resumption = |tenant: u32| Resumption {
        admission: Admission {
            tenant: TenantId(tenant),
            model: CHAT,
            priority: 0,
            work: Work::Generate { prompt_len: 10, new_tokens_max: 5, hashes: Vec::new() },
        },
        redo: 5,
        times: Default::default(),
        since: Nanos(0),
    };
    assert!(rig.scheduler.admit_again(rig.now, None, resumption(2)).is_ok());
    let refused = rig.scheduler.admit_again(rig.now, None, resumption(3));
    assert_eq!(refused.unwrap_err().reason, RejectReason::NoDevice);
    rig.scheduler.add_device(rig.now, GOLD);
    add_model(&mut rig);
    assert_eq!(rig.scheduler.pool_of(GOLD), Some(POOL), "a device that comes back is in its pool");
    assert!(rig.scheduler.admit_again(rig.now, None, resumption(3)).is_ok());
    rig.scheduler.check_invariants();
}

#[test]
fn what_a_tenant_had_of_its_own_device_is_not_asked_of_those_who_come_to_a_common_one() {
    let mut rig = rig();
    let third = DeviceId(2);
    rig.scheduler.add_device(rig.now, third);
    let limits = ModelLimits { blocks: 64, rows_max: 8, tokens_max: 256, context_len_max: 4096 };
    assert!(rig.scheduler.add_model(third, CHAT, limits));
    let ask = |rig: &mut Rig, tenant: u32, device: DeviceId, count: u32| {
        for _ in 0..count {
            let work = Work::Generate { prompt_len: 16, new_tokens_max: 60, hashes: Vec::new() };
            let admission = Admission { tenant: TenantId(tenant), model: CHAT, priority: 0, work };
            rig.scheduler.admit_to(rig.now, device, admission).unwrap();
        }
    };
    let step = |rig: &mut Rig, devices: &[DeviceId]| {
        let plans: Vec<_> = devices.iter().map(|device| (*device, plan_on(rig, *device))).collect();
        rig.now += STEP;
        for (device, plan) in plans {
            finish_on(rig, device, &plan.unwrap());
        }
    };
    // The first common device has nobody while tenant 2 uses its own, and tenant 1 more than the third has.
    ask(&mut rig, 2, GOLD, 60);
    (0..200).for_each(|_| step(&mut rig, &[GOLD]));
    rig.scheduler.drain_device(COMMON);
    for _ in 0..40 {
        rig.ask(1, 16, 60);
    }
    rig.scheduler.resume_device(COMMON);
    (0..4).for_each(|_| step(&mut rig, &[GOLD, third]));
    // Then all three come there at once, the newcomer among them.
    ask(&mut rig, 1, COMMON, 1);
    ask(&mut rig, 2, COMMON, 1);
    ask(&mut rig, 4, COMMON, 40);
    let served = |rig: &Rig, tenant: u32| rig.scheduler.tenant_service(TenantId(tenant));
    let before = (served(&rig, 1), served(&rig, 4));
    (0..60).for_each(|_| step(&mut rig, &[GOLD, third, COMMON]));
    let (first, newcomer) = (served(&rig, 1) - before.0, served(&rig, 4) - before.1);
    assert!(newcomer.0 > first.0 / 2, "{newcomer:?} beside {first:?}");
}
