//! Facts about recorded loads played again.

use std::sync::Arc;

use weir_scheduler::sim::{
    Arrivals, Ask, Diary, Given, GivenWork, Outcome, Scenario, SimModel, Source, StepCost, Watch, replay,
};
use weir_scheduler::*;

const CHAT: ModelId = ModelId(0);

fn scenario() -> Scenario {
    let cost = StepCost {
        step: Nanos::from_millis(4),
        token: Nanos::from_micros(20),
        kilocontext: Nanos::ZERO,
        kiloread: Nanos::ZERO,
        overhead: Nanos::ZERO,
    };
    let limits = ModelLimits { blocks: 512, rows_max: 8, tokens_max: 256, context_len_max: 4096 };
    let source = |tenant| Source {
        tenant: TenantId(tenant),
        plan: Tenant::default(),
        model: CHAT,
        priority: 0,
        from: Nanos::ZERO,
        arrivals: Arrivals::Given,
        ask: Ask::Embed { items: (1, 1), len: (1, 1) },
    };
    Scenario {
        seed: 1,
        devices: 1,
        models: vec![SimModel { id: CHAT, limits, cost }],
        sources: vec![source(1), source(2)],
        requests_max: u64::MAX,
        recount_every: 1,
        ..Scenario::default()
    }
}

fn text(at: u64, source: usize, prompt_len: u32, drawn: &[u32], blocks: &[(u64, u32)]) -> Given {
    let work = GivenWork::Generate { prompt_len, new_tokens_max: 64, drawn: drawn.to_vec(), blocks: Arc::from(blocks) };
    Given { at: Nanos::from_millis(at), source, work, patience: None }
}

fn play(given: &[Given]) -> (Outcome, Diary) {
    replay(&scenario(), given, &mut Watch::new(Nanos::from_secs(1)))
}

#[test]
fn given_requests_come_when_they_came_and_are_as_long_as_they_were() {
    let given = [text(0, 0, 100, &[5], &[]), text(700, 1, 10, &[1, 9], &[]), text(5_000, 0, 1, &[64], &[])];
    let (outcome, diary) = play(&given);
    let seen: Vec<_> = diary.entries.iter().map(|e| (e.tenant.0, e.number, e.at, e.prompt_len, e.drawn)).collect();
    let ms = Nanos::from_millis;
    assert_eq!(seen, [(1, 0, ms(0), 100, 5), (2, 1, ms(700), 10, 1), (2, 1, ms(700), 10, 9), (1, 2, ms(5_000), 1, 64)]);
    // Nothing else was there: a step of 100 tokens, and ends with steps of one.
    assert_eq!(diary.entries[0].first, Some(Nanos(6_000_000)));
    assert_eq!(diary.entries[0].end, Some((Nanos(6_000_000 + 4 * 4_020_000), End::Finished)));
    let gaps = &diary.gaps[&TenantId(1)];
    assert_eq!(gaps.count(), 4 + 63);
    assert_eq!(outcome.accepted(), 4);
    assert_eq!(diary.devices[0].steps, outcome.steps);
    assert_eq!(diary.devices[0].tokens, outcome.tokens);
    // The operator has the steps that were planned before the ends before them were known.
    assert_eq!(diary.devices[0].busy, outcome.devices[0].tenants + outcome.devices[0].operator);
}

#[test]
fn a_list_is_embedded_whole_and_has_no_prompt() {
    let mut list = text(0, 0, 1, &[1], &[]);
    list.work = GivenWork::Embed { lens: vec![30, 70] };
    let (outcome, diary) = play(&[list]);
    let entry = diary.entries[0];
    assert_eq!((entry.prompt_len, entry.drawn, entry.first), (0, 0, None));
    assert_eq!(entry.end, Some((Nanos(6_000_000), End::Finished)));
    assert_eq!(outcome.tokens, 100);
}

#[test]
fn equal_numbers_are_found_in_the_tenants_own_cache_only() {
    let blocks = [(7, 2), (40, 1)];
    let given = [
        text(0, 0, 100, &[2], &blocks),
        text(1_000, 0, 100, &[2], &[(7, 2), (90, 1)]),
        text(2_000, 1, 100, &[2], &blocks),
        text(3_000, 0, 100, &[2], &[]),
    ];
    let cached: Vec<u32> = play(&given).1.entries.iter().map(|entry| entry.cached).collect();
    assert_eq!(cached, [0, 64, 0, 0]);
}

#[test]
fn what_an_answer_filled_is_found_by_the_next_turn() {
    let given = [text(0, 0, 64, &[40], &[(0, 3)]), text(1_000, 0, 200, &[1], &[(0, 3), (3, 3)])];
    let cached: Vec<u32> = play(&given).1.entries.iter().map(|entry| entry.cached).collect();
    assert_eq!(cached, [0, 96]);
}

#[test]
fn impatient_clients_go_away_and_refused_ones_are_noted() {
    let mut given = vec![text(0, 0, 100, &[64], &[]), text(0, 1, 100, &[64], &[])];
    given[0].patience = Some(Nanos::from_millis(50));
    given.push(text(1, 0, 5_000, &[1], &[]));
    let (outcome, diary) = play(&given);
    // At the end of the step that it was in.
    let (end, how) = diary.entries[0].end.unwrap();
    assert_eq!(how, End::Cancelled);
    assert!(Nanos::from_millis(50) <= end && end < Nanos::from_millis(58), "{end:?}");
    assert!(diary.entries[0].drawn < 64 && diary.entries[1].drawn == 64);
    assert_eq!(diary.entries[2].end, None);
    assert_eq!(outcome.tenants[0].rejected, 1);
}

#[test]
fn a_history_with_notes_is_the_history_without() {
    let given: Vec<Given> = (0..200u32)
        .map(|n| text(u64::from(n) * 11, n as usize % 2, 1 + n * 37 % 600, &[1 + n % 30], &[(u64::from(n % 5), 20)]))
        .collect();
    let (first, diary) = play(&given);
    let (second, _) = replay(&scenario(), &given, &mut Watch::new(Nanos::from_millis(10)));
    assert_eq!(first, second);
    assert_eq!(diary.entries.len(), 200);
    let billed: Nanos = diary.entries.iter().map(|entry| entry.charge).sum();
    assert_eq!(billed, first.tenants.iter().map(|tenant| tenant.charge).sum());
}
