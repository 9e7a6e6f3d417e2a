//! Floors and ceilings of blocks and of the cache, also when plans change under way.

use crate::rig::*;
use weir_scheduler::*;

#[test]
fn a_cache_inside_its_floor_is_not_taken_by_others() {
    let mut rig = Rig::new(16);
    rig.tenant(1, Tenant { kv_blocks_floor: 4, ..Tenant::default() });
    rig.ask_text(1, 7, 128, 1);
    rig.run_dry();
    for text in 20..40 {
        rig.ask_text(2, text, 250, 1);
    }
    rig.run_dry();
    let again = rig.ask_text(1, 7, 129, 1);
    rig.step();
    assert_eq!(rig.cached_tokens(again), Some(128));
}

#[test]
fn without_a_floor_the_oldest_cache_goes_first() {
    let mut rig = Rig::new(16);
    for text in 0..8 {
        rig.ask_text(1, text, 65, 1);
        rig.run_dry();
    }
    let id = rig.ask(2, 60, 1);
    rig.run_dry();
    assert!(rig.settled(id).is_some());
    let oldest = rig.ask_text(1, 0, 65, 1);
    let newest = rig.ask_text(1, 7, 65, 1);
    rig.step();
    assert_eq!((rig.cached_tokens(oldest), rig.cached_tokens(newest)), (Some(0), Some(64)));
}

#[test]
fn a_tenant_at_its_ceiling_takes_from_itself_and_stops_nobody() {
    let mut rig = Rig::new(64);
    rig.tenant(1, Tenant { kv_blocks_ceiling: Some(6), ..Tenant::default() });
    let ids: Vec<_> = (0..6).map(|n| rig.ask_text(1, n, 70, 60)).collect();
    let other = rig.ask(2, 300, 1);
    while let Some(plan) = rig.step() {
        let stats = rig.scheduler.stats();
        assert!(stats.models[0].blocks_used + stats.models[0].blocks_cached <= 6 + 10);
        assert!(!plan.rows.is_empty());
    }
    assert!(ids.iter().all(|id| matches!(rig.settled(*id), Some((End::Finished, _)))));
    assert!(rig.settled(other).is_some());
    assert_eq!(preempted(&rig, other), 0);
}

#[test]
fn limits_changed_under_running_requests_stop_nothing() {
    let mut rig = Rig::new(16);
    let ids = [rig.ask(1, 200, 100), rig.ask(2, 200, 100)];
    while ids.iter().any(|id| rig.cached_tokens(*id).is_none()) {
        rig.step();
    }
    rig.tenant(1, Tenant { kv_blocks_ceiling: Some(2), kv_blocks_floor: 16, ..Tenant::default() });
    rig.tenant(2, Tenant { kv_blocks_ceiling: Some(2), kv_blocks_floor: 16, ..Tenant::default() });
    rig.run_dry();
    assert!(ids.iter().all(|id| matches!(rig.settled(*id), Some((End::Finished, _)))));
}

/// Another tenant keeps the device busy from now on.
fn keep_busy(rig: &mut Rig) {
    for _ in 0..2 {
        rig.ask(4, 10, 300);
    }
    rig.step();
}

#[test]
fn a_waiting_request_that_a_lowered_ceiling_or_a_raised_floor_leaves_no_room_for_ends() {
    let mut rig = Rig::new(64);
    let ceiling = |blocks| Tenant { kv_blocks_ceiling: Some(blocks), running_max: 1, ..Tenant::default() };
    rig.tenant(1, ceiling(40));
    keep_busy(&mut rig);
    let (runs, waits, small) = (rig.ask(1, 300, 40), rig.ask(1, 300, 40), rig.ask(1, 60, 1));
    let other = rig.ask(2, 1_200, 1);
    rig.tenant(2, Tenant { running_max: 1, ..Tenant::default() });
    while rig.cached_tokens(runs).is_none() || rig.cached_tokens(other).is_none() {
        rig.step();
    }
    rig.tenant(1, ceiling(5));
    rig.tenant(3, Tenant { kv_blocks_floor: 30, ..Tenant::default() });
    while rig.settled(small).is_none() || rig.settled(other).is_none() {
        assert!(rig.step().is_some_and(|plan| plan.rows.len() > 1), "the device is never idle");
    }
    assert_eq!(rig.settled(runs).unwrap().0, End::Finished, "what is at work stays at work");
    assert_eq!(rig.settled(waits), Some((End::NeverFits, Nanos::ZERO)));
    assert_eq!(rig.settled(small).unwrap().0, End::Finished);
    // It ran already when the floor was raised.
    assert_eq!(rig.settled(other).unwrap().0, End::Finished);
    let later = rig.admit(2, CHAT, 0, Work::Generate { prompt_len: 1_200, new_tokens_max: 1, hashes: Vec::new() });
    assert_eq!(later.unwrap_err().reason, RejectReason::NeverFits);
}

#[test]
fn a_waiting_request_too_large_for_a_floor_that_was_raised_ends_and_stops_nobody() {
    let mut rig = Rig::new(64);
    keep_busy(&mut rig);
    rig.tenant(2, Tenant { running_max: 1, ..Tenant::default() });
    let (first, large) = (rig.ask(2, 60, 20), rig.ask(2, 1_200, 1));
    rig.step();
    rig.tenant(3, Tenant { kv_blocks_floor: 30, ..Tenant::default() });
    let filler = rig.ask_text(3, 7, 900, 1);
    let later: Vec<_> = (0..5).map(|_| rig.ask(1, 60, 5)).collect();
    for _ in 0..60 {
        rig.step().unwrap();
    }
    assert_eq!(rig.settled(large), Some((End::NeverFits, Nanos::ZERO)));
    assert!(later.iter().chain([&first, &filler]).all(|id| matches!(rig.settled(*id), Some((End::Finished, _)))));
}

#[test]
fn looking_for_blocks_in_vain_costs_a_look_for_each_row() {
    let looks = |tenants: u32| {
        let mut rig = Rig::with(Config::default(), tenants + tenants / 4, 256, 16_384);
        rig.ask(1, 10, 20);
        rig.run_dry();
        let plan = |floor| Tenant { kv_blocks_floor: floor, ..Tenant::default() };
        for tenant in 10..10 + tenants {
            rig.tenant(tenant, plan(0));
            rig.ask(tenant, 10, 200);
        }
        while rig.scheduler.stats().running < tenants {
            rig.step().unwrap();
        }
        // All that there is is promised by now, and each text comes to want a second block.
        (10..10 + tenants).for_each(|tenant| rig.tenant(tenant, plan(2)));
        while rig.blocks_free() > 0 {
            rig.step().unwrap();
        }
        let most = (0..5).map(|_| {
            let before = rig.scheduler.touched();
            let rows = rig.step().unwrap().rows.len() as u32;
            assert!(2 * rows < tenants, "most miss a block");
            rig.scheduler.touched() - before
        });
        most.max().unwrap()
    };
    let (few, many) = (looks(50), looks(200));
    println!("{few} looks with 50 rows that miss a block, {many} with 200");
    assert!(many < 6 * few, "{few} {many}");
}

#[test]
fn a_text_at_its_tenants_ceiling_waits_for_that_and_claims_nothing() {
    let mut rig = Rig::with(Config::default(), 64, 2, 256);
    rig.tenant(1, Tenant { kv_blocks_ceiling: Some(4), weight: 10, ..Tenant::default() });
    // The first has three of the four blocks to its end; the second, which has one, waits for that.
    let (_first, second) = (rig.ask(1, 2 * BLOCK_LEN + 1, BLOCK_LEN - 1), rig.ask(1, BLOCK_LEN - 2, BLOCK_LEN));
    let cause = |rig: &Rig| rig.scheduler.why(rig.now, second).unwrap().cause;
    while cause(&rig) != Cause::Queue || rig.cached_tokens(second).is_none() {
        rig.step().unwrap();
    }
    let other = rig.ask(2, 10, 200);
    for _ in 0..BLOCK_LEN / 3 {
        rig.step().unwrap();
    }
    assert_eq!(cause(&rig), Cause::Queue);
    // Were it short of the device, the device's clock would stand at its tenant's small time, and a newcomer go before the other.
    let newcomer = rig.ask(3, 10, 200);
    let mut rows = [0; 2];
    for _ in 0..BLOCK_LEN / 3 {
        let plan = rig.step().unwrap();
        rows[0] += u32::from(row(&plan, other).is_some());
        rows[1] += u32::from(row(&plan, newcomer).is_some());
    }
    assert_eq!(cause(&rig), Cause::Queue);
    assert!(rows[0].abs_diff(rows[1]) <= 2, "{rows:?}");
}

#[test]
fn one_that_starts_alone_computes_what_its_tenant_may_not_keep() {
    let mut rig = Rig::new(6);
    rig.tenant(1, Tenant { cache_blocks_ceiling: Some(0), ..Tenant::default() });
    let first = rig.ask_text(1, 7, 100, 60);
    (0..5).for_each(|_| assert!(rig.step().is_some()));
    // It finds three blocks of the first, and there are too few for the rest: the first loses its own, and nothing of them stays.
    let lone = rig.ask_text(1, 7, 190, 1);
    rig.scheduler.run_alone(DEVICE, Some(lone));
    rig.run_dry();
    assert_eq!((rig.cached_tokens(first), rig.cached_tokens(lone)), (Some(0), Some(0)));
    assert!([first, lone].iter().all(|id| matches!(rig.settled(*id), Some((End::Finished, _)))));
}

#[test]
fn a_request_that_fits_only_into_the_floors_of_others_is_refused() {
    let mut rig = Rig::new(64);
    rig.tenant(1, Tenant { kv_blocks_floor: 20, cache_blocks_floor: 4, ..Tenant::default() });
    rig.tenant(2, Tenant { cache_blocks_floor: 10, ..Tenant::default() });
    // 34 blocks are nobody's.
    let text = |blocks: u32| Work::Generate { prompt_len: blocks * BLOCK_LEN, new_tokens_max: 1, hashes: Vec::new() };
    let reason =
        |rig: &mut Rig, tenant, blocks| rig.admit(tenant, CHAT, 0, text(blocks)).map_err(|reject| reject.reason);
    assert_eq!(reason(&mut rig, 3, 35), Err(RejectReason::NeverFits));
    assert_eq!(reason(&mut rig, 1, 55), Err(RejectReason::NeverFits));
    assert_eq!(reason(&mut rig, 2, 45), Err(RejectReason::NeverFits));
    // The floors are full, and what is beside them is not touched.
    let floor = rig.ask_text(1, 7, 20 * BLOCK_LEN, 1);
    rig.run_dry();
    assert!(rig.settled(floor).is_some());
    for (tenant, blocks) in [(3, 34), (2, 44)] {
        let id = reason(&mut rig, tenant, blocks).unwrap();
        rig.run_dry();
        assert!(matches!(rig.settled(id), Some((End::Finished, _))));
    }
    let again = rig.ask_text(1, 7, 20 * BLOCK_LEN, 1);
    rig.step();
    assert_eq!(rig.cached_tokens(again), Some(19 * BLOCK_LEN));
    // Floors that promise more than there is leave everybody his own.
    rig.tenant(3, Tenant { kv_blocks_floor: 60, ..Tenant::default() });
    assert_eq!(reason(&mut rig, 4, 1), Err(RejectReason::NeverFits));
    assert!(reason(&mut rig, 3, 60).is_ok() && reason(&mut rig, 1, 20).is_ok());
}

#[test]
fn cached_blocks_inside_the_floor_of_the_cache_are_not_taken_whatever_is_in_use() {
    let found = |plan: Tenant| {
        let mut rig = Rig::new(24);
        rig.tenant(1, plan);
        rig.ask_text(1, 7, 128, 1);
        rig.run_dry();
        // The tenant's own running text is above any floor on what it has in all.
        let running = rig.ask(1, 100, 100);
        rig.step();
        let others: Vec<_> = (0..7).map(|_| rig.ask(2, 64, 400)).collect();
        for _ in 0..60 {
            rig.step();
        }
        assert!(rig.settled(running).is_none());
        others.iter().for_each(|id| rig.scheduler.cancel(rig.now, *id));
        let again = rig.ask_text(1, 7, 129, 1);
        rig.step();
        rig.cached_tokens(again)
    };
    assert_eq!(found(Tenant { kv_blocks_floor: 4, ..Tenant::default() }), Some(0));
    assert_eq!(found(Tenant { cache_blocks_floor: 3, ..Tenant::default() }), Some(96));
    assert_eq!(found(Tenant { cache_blocks_floor: 4, ..Tenant::default() }), Some(128));
}

#[test]
fn a_cache_at_its_ceiling_gives_up_its_own_oldest_block() {
    let mut rig = Rig::new(64);
    rig.tenant(1, Tenant { cache_blocks_ceiling: Some(5), ..Tenant::default() });
    rig.ask_text(2, 50, 65, 1);
    for text in 0..4 {
        rig.ask_text(1, text, 65, 1);
        rig.run_dry();
    }
    assert_eq!(rig.scheduler.stats().models[0].blocks_cached, 5 + 2);
    let ids: Vec<_> = (0..4).map(|text| rig.ask_text(1, text, 65, 1)).collect();
    let other = rig.ask_text(2, 50, 65, 1);
    rig.step();
    let found: Vec<_> = ids.iter().map(|id| rig.cached_tokens(*id).unwrap()).collect();
    assert_eq!(found, [0, 32, 64, 64], "the end of a text goes before its beginning");
    assert_eq!(rig.cached_tokens(other), Some(64));
    rig.run_dry();
    // What is lowered counts from the next event on.
    rig.tenant(1, Tenant { cache_blocks_ceiling: Some(0), ..Tenant::default() });
    rig.step();
    assert_eq!(rig.scheduler.stats().models[0].blocks_cached, 2);
    rig.ask_text(1, 9, 200, 10);
    rig.run_dry();
    assert_eq!(rig.scheduler.stats().models[0].blocks_cached, 2);
}
