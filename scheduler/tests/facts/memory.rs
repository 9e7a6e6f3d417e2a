//! Blocks: the prefix cache, its walls between tenants, and who gives way when blocks are short.

use crate::rig::*;
use weir_scheduler::*;

fn tables(plan: &StepPlan) -> Vec<Vec<BlockId>> {
    let table = |row: &PlanRow| match row.kind {
        RowKind::Generate { blocks, .. } => plan.blocks_of(blocks).to_vec(),
        RowKind::Embed { .. } => Vec::new(),
    };
    plan.rows.iter().map(table).collect()
}

fn preempted(rig: &Rig, id: RequestId) -> usize {
    rig.events.iter().filter(|event| **event == Event::Preempted { request: id }).count()
}

#[test]
fn the_same_tenants_second_request_finds_the_first_ones_prompt() {
    let mut rig = Rig::new(64);
    rig.ask_text(1, 7, 100, 1);
    rig.step();
    let second = rig.ask_text(1, 7, 100, 1);
    let plan = rig.step().unwrap();
    assert_eq!(row(&plan, second), Some((96, 4, true)));
    assert_eq!(rig.cached_tokens(second), Some(96));
    let stats = rig.scheduler.stats();
    assert_eq!((stats.models[0].prefix_queries, stats.models[0].prefix_hits), (200, 96));
    assert_eq!((stats.models[0].blocks_cached, stats.models[0].blocks_used), (3, 0));
}

#[test]
fn a_block_of_one_tenant_is_not_found_for_another_even_with_equal_hashes() {
    let mut rig = Rig::new(64);
    rig.ask_text(1, 7, 100, 1);
    rig.step();
    let other = rig.ask_text(2, 7, 100, 1);
    assert_eq!(row(&rig.step().unwrap(), other), Some((0, 100, true)));
    assert_eq!(rig.cached_tokens(other), Some(0));
}

#[test]
fn the_last_prompt_token_is_always_computed() {
    let mut rig = Rig::new(64);
    rig.ask_text(1, 7, 64, 1);
    rig.step();
    let second = rig.ask_text(1, 7, 64, 1);
    assert_eq!(row(&rig.step().unwrap(), second), Some((32, 32, true)));
}

#[test]
fn a_request_without_hashes_neither_finds_nor_leaves_anything() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 100, 40);
    rig.step();
    rig.scheduler.block_hashed(id, hash(7, 0));
    rig.run_dry();
    let model = &rig.scheduler.stats().models[0];
    assert_eq!((model.prefix_queries, model.blocks_cached, model.blocks_free), (0, 0, 64));
}

#[test]
fn drawn_blocks_are_cached_once_their_hashes_are_known() {
    let mut rig = Rig::new(64);
    let id = rig.ask_text(1, 7, 30, 40);
    let mut known = 30;
    while rig.settled(id).is_none() {
        rig.step().unwrap();
        known += 1;
        if known % BLOCK_LEN == 0 {
            rig.scheduler.block_hashed(id, hash(7, known / BLOCK_LEN - 1));
        }
    }
    // 69 positions were computed: two full blocks, and a third that is not.
    let next = rig.ask_text(1, 7, 90, 1);
    assert_eq!(row(&rig.step().unwrap(), next), Some((64, 26, true)));
}

#[test]
fn a_hash_beyond_the_known_tokens_is_ignored() {
    let mut rig = Rig::new(64);
    let id = rig.ask_text(1, 7, 40, 10);
    rig.step();
    rig.scheduler.block_hashed(id, hash(7, 1));
    rig.run_dry();
    assert_eq!(rig.scheduler.stats().models[0].blocks_cached, 1);
}

#[test]
fn requests_wait_for_a_prompt_that_is_just_being_computed() {
    let mut rig = Rig::new(64);
    let ids: Vec<_> = (0..6).map(|_| rig.ask_text(1, 7, 100, 1)).collect();
    let other = rig.ask_text(1, 8, 20, 1);
    let first = rig.plan().unwrap();
    assert_eq!(first.rows.len(), 2, "the first of them, and one with another prompt");
    assert!(row(&first, ids[0]).is_some() && row(&first, other).is_some());
    assert!(rig.plan().is_none(), "the others wait");
    rig.finish(&first);
    let second = rig.step().unwrap();
    assert_eq!(second.rows.len(), 5);
    assert!(ids[1..].iter().all(|id| row(&second, *id) == Some((96, 4, true))));
}

#[test]
fn waiting_for_a_prompt_ends_when_its_request_is_cancelled() {
    let mut rig = Rig::new(64);
    let first = rig.ask_text(1, 7, 100, 1);
    let second = rig.ask_text(1, 7, 100, 1);
    let third = rig.ask_text(1, 7, 100, 1);
    let plan = rig.plan().unwrap();
    rig.scheduler.cancel(rig.now, first);
    rig.scheduler.cancel(rig.now, third);
    assert!(rig.plan().is_none());
    rig.finish(&plan);
    assert_eq!(row(&rig.step().unwrap(), second), Some((0, 100, true)));
}

#[test]
fn blocks_of_a_failed_request_leave_the_cache() {
    let mut rig = Rig::new(64);
    let first = rig.ask_text(1, 7, 300, 1);
    rig.step();
    assert!(rig.settled(first).is_none(), "a chunk went well, and was published");
    let plan = rig.plan().unwrap();
    rig.finish_with(&plan, STEP, |_| RowOutcome::Failed);
    assert_eq!(rig.settled(first).unwrap().0, End::Failed);
    assert_eq!(rig.blocks_free(), 64);
    let second = rig.ask_text(1, 7, 300, 1);
    assert_eq!(row(&rig.step().unwrap(), second).unwrap().0, 0);
}

#[test]
fn cancelled_blocks_are_free_once_the_steps_in_flight_have_ended() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 40, 50);
    let first = rig.plan().unwrap();
    let second = rig.plan().unwrap();
    rig.scheduler.cancel(rig.now, id);
    rig.scheduler.cancel(rig.now, id);
    assert_eq!(rig.blocks_free(), 62);
    rig.finish(&first);
    assert_eq!(rig.blocks_free(), 62, "the second step still writes to them");
    assert!(rig.settled(id).is_none());
    rig.finish(&second);
    assert_eq!(rig.blocks_free(), 64);
    assert_eq!(rig.settled(id), Some((End::Cancelled, STEP + STEP)), "the tenant pays for both");
}

#[test]
fn no_block_is_held_twice() {
    let mut rig = Rig::new(32);
    for tenant in 1..=4 {
        rig.ask(tenant, 50, 20);
        rig.ask(tenant, 20, 20);
    }
    let plan = rig.step().unwrap();
    let mut blocks: Vec<_> = tables(&plan).concat();
    let count = blocks.len();
    blocks.sort();
    blocks.dedup();
    assert_eq!(blocks.len(), count);
}

#[test]
fn out_of_blocks_the_tenant_furthest_over_its_share_gives_way() {
    // Ten blocks; three requests of up to five.
    let mut rig = Rig::new(10);
    let greedy = rig.ask(1, 60, 100);
    for _ in 0..20 {
        rig.step();
    }
    let calm = [rig.ask(2, 60, 100), rig.ask(3, 60, 100)];
    let mut plans = 0;
    while rig.settled(calm[0]).is_none() || rig.settled(calm[1]).is_none() {
        rig.step().unwrap();
        plans += 1;
        assert!(plans < 1_000);
    }
    rig.run_dry();
    let times = [preempted(&rig, greedy), preempted(&rig, calm[0]) + preempted(&rig, calm[1])];
    assert!(times[0] > 0 && times[0] >= times[1], "{times:?}");
    assert!(matches!(rig.settled(greedy), Some((End::Finished, _))));
}

#[test]
fn a_request_is_preempted_at_most_so_often_and_the_operator_pays_for_redo() {
    let config = Config { preemptions_max: 2, start_preempts_at: Nanos::ZERO, ..Config::default() };
    let mut rig = Rig::with(config, 12, 8, 256);
    let ids: Vec<_> = (0..12).map(|n| rig.ask(1 + n % 4, 60, 200)).collect();
    rig.run_dry();
    let times: Vec<_> = ids.iter().map(|id| preempted(&rig, *id)).collect();
    assert!(times.iter().all(|n| *n <= 2) && times.contains(&2), "{times:?}");
    let bills: u64 = ids.iter().map(|id| rig.settled(*id).unwrap().1.0).sum();
    let books = rig.books();
    assert_eq!(bills, books.tenants.0);
    assert!(books.operator > Nanos::ZERO && books.idle == Nanos::ZERO);
}

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

fn block_time(rig: &Rig, tenant: u32) -> (u128, u128) {
    let times = rig.scheduler.block_times(rig.now);
    times
        .iter()
        .find(|entry| entry.tenant == TenantId(tenant))
        .map_or((0, 0), |entry| (entry.time.used, entry.time.cached))
}

#[test]
fn blocks_are_metered_for_as_long_as_they_are_there() {
    let mut rig = Rig::new(64);
    rig.now = Nanos(1_000);
    rig.ask_text(1, 7, 70, 1);
    let plan = rig.plan().unwrap();
    rig.now = Nanos(5_000);
    assert_eq!(block_time(&rig, 1), (3 * 4_000, 0), "read in the middle of a step");
    rig.finish_with(&plan, Nanos(6_000), |_| RowOutcome::Advanced);
    assert_eq!(block_time(&rig, 1), (3 * 10_000, 0));
    rig.now = Nanos(111_000);
    assert_eq!(block_time(&rig, 1), (3 * 10_000, 2 * 100_000), "two full blocks are cached");
    // Found again: in use, and no longer only cached.
    rig.ask_text(1, 7, 70, 1);
    let plan = rig.plan().unwrap();
    rig.finish_with(&plan, Nanos(1_000), |_| RowOutcome::Advanced);
    assert_eq!(block_time(&rig, 1), (3 * 11_000, 2 * 100_000));
    rig.now = Nanos(113_000);
    rig.scheduler.device_lost(rig.now, DEVICE);
    rig.now = Nanos(999_000);
    assert_eq!(block_time(&rig, 1), (3 * 11_000, 2 * 101_000), "what was held is not forgotten, and grows no more");
    assert_eq!(block_time(&rig, 2), (0, 0));
}

#[test]
fn the_tenants_block_times_add_up_to_the_pools() {
    let mut rig = Rig::new(40);
    rig.tenant(1, Tenant { cache_blocks_ceiling: Some(3), ..Tenant::default() });
    rig.tenant(2, Tenant { cache_blocks_floor: 6, ..Tenant::default() });
    let mut rng = weir_scheduler::sim::Rng::new(5);
    let (mut used, mut cached) = (0u128, 0u128);
    let mut live = Vec::new();
    for _ in 0..2_000 {
        let before = rig.scheduler.stats();
        let then = rig.now;
        rig.now += Nanos(u64::from(rng.between(0, 5_000_000)));
        let (time, model) = (u128::from((rig.now - then).0), &before.models[0]);
        used += time * u128::from(model.blocks_used);
        cached += time * u128::from(model.blocks_cached);
        match rng.between(0, 4) {
            0 => live.push(rig.ask_text(
                rng.between(1, 4),
                rng.between(0, 9) as u8,
                rng.between(1, 200),
                rng.between(1, 20),
            )),
            1 if !live.is_empty() => {
                let at = rng.between(0, live.len() as u32 - 1) as usize;
                rig.scheduler.cancel(rig.now, live.swap_remove(at));
            }
            _ => {
                if let Some(plan) = rig.plan() {
                    rig.finish_with(&plan, Nanos(0), |_| RowOutcome::Advanced);
                }
            }
        }
    }
    let sums = (1..=4).map(|tenant| block_time(&rig, tenant));
    let sum = sums.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(used > 0 && cached > 0);
    assert_eq!(sum, (used, cached));
}
