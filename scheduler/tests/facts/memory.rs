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
