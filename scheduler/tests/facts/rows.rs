//! Rows: computed tokens chase known tokens, chunk by chunk, two steps ahead.

use crate::rig::*;
use weir_scheduler::*;

#[test]
fn a_prompt_is_one_row_and_then_each_row_is_one_token() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 40, 3);
    assert_eq!(row(&rig.step().unwrap(), id), Some((0, 40, true)));
    assert_eq!(row(&rig.step().unwrap(), id), Some((40, 1, true)));
    assert_eq!(row(&rig.step().unwrap(), id), Some((41, 1, true)));
    assert_eq!(rig.settled(id), Some((End::Finished, STEP + STEP + STEP)));
    assert!(rig.plan().is_none());
    assert_eq!(rig.blocks_free(), 64);
}

#[test]
fn a_long_prompt_comes_in_chunks_and_only_the_last_draws() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 300, 1);
    let rows: Vec<_> = std::iter::from_fn(|| rig.step()).map(|plan| row(&plan, id).unwrap()).collect();
    let mut at = 0;
    for (n, (from, len, samples)) in rows.iter().enumerate() {
        assert_eq!(*from, at);
        at += len;
        assert_eq!(*samples, n == rows.len() - 1);
    }
    assert!(rows.len() > 1);
    assert_eq!(at, 300);
}

#[test]
fn a_prompt_without_new_tokens_is_computed_and_draws_nothing() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 40, 0);
    assert_eq!(row(&rig.step().unwrap(), id), Some((0, 40, false)));
    assert_eq!(rig.settled(id), Some((End::Finished, STEP)));
}

#[test]
fn a_long_prompt_does_not_stop_another_tenants_decodes() {
    let mut rig = Rig::with(Config::default(), 200, 8, 64);
    let talk = rig.ask(1, 10, 200);
    rig.step();
    rig.ask(2, 2000, 1);
    for _ in 0..20 {
        let plan = rig.step().unwrap();
        assert!(row(&plan, talk).is_some_and(|(_, len, _)| len == 1));
        assert_eq!(plan.rows.len(), 2, "the prompt moves too");
    }
}

#[test]
fn prompt_chunks_keep_the_step_latency() {
    let config = Config { step_latency_max: Nanos::from_millis(50), ..Config::default() };
    let mut rig = Rig::with(config, 400, 8, 4096);
    // 2 ms a step, 0.2 ms a token: 240 tokens fit into 50 ms.
    let cost = |plan: &StepPlan| Nanos(2_000_000 + 200_000 * plan.tokens());
    let mut longest = Nanos::ZERO;
    for n in 0..12 {
        rig.ask(1, 60 + 17 * n, 2);
        while let Some(plan) = rig.plan() {
            rig.finish_with(&plan, cost(&plan), |_| RowOutcome::Advanced);
        }
    }
    for _ in 0..4 {
        rig.ask(1, 2000, 1);
    }
    let mut tokens = 0;
    let mut steps = 0;
    while let Some(plan) = rig.plan() {
        longest = longest.max(cost(&plan));
        tokens += plan.tokens();
        steps += 1;
        rig.finish_with(&plan, cost(&plan), |_| RowOutcome::Advanced);
    }
    assert!(longest < Nanos::from_millis(55), "{longest:?}");
    assert!(tokens / steps > 180, "and steps are well filled: {}", tokens / steps);
}

#[test]
fn the_next_step_is_planned_on_the_guess_that_the_running_one_draws() {
    let mut rig = Rig::new(64);
    let id = rig.ask(1, 10, 5);
    let first = rig.plan().unwrap();
    let second = rig.plan().unwrap();
    assert_eq!(row(&second, id), Some((10, 1, true)));
    assert!(rig.plan().is_none(), "two steps in flight are enough");
    rig.finish(&first);
    let third = rig.plan().unwrap();
    assert_eq!(row(&third, id), Some((11, 1, true)));
}

#[test]
fn no_row_is_planned_beyond_the_last_token() {
    let mut rig = Rig::new(64);
    rig.ask(1, 10, 1);
    let first = rig.plan().unwrap();
    assert!(rig.plan().is_none());
    rig.finish(&first);
    assert!(rig.plan().is_none());
}

#[test]
fn embedding_lists_yield_between_items() {
    let mut rig = Rig::with(Config::default(), 8, 4, 256);
    let list = rig.embed(1, &[20; 100]);
    rig.step();
    let short = rig.embed(2, &[20]);
    let plan = rig.step().unwrap();
    assert!(row(&plan, short).is_some() && row(&plan, list).is_some());
    assert!(rig.settled(short).is_some());
    rig.run_dry();
    assert!(matches!(rig.settled(list), Some((End::Finished, _))));
}

#[test]
fn an_item_longer_than_the_token_budget_runs_alone() {
    let mut rig = Rig::with(Config::default(), 8, 4, 64);
    let id = rig.embed(1, &[30, 500, 30]);
    let plans = rig.run_dry();
    assert!(plans.iter().any(|plan| plan.rows.len() == 1 && plan.tokens() == 500));
    assert!(rig.settled(id).is_some());
}

#[test]
fn models_take_turns_by_their_tenants_shares() {
    let mut rig = Rig::new(64);
    for _ in 0..3 {
        rig.ask(1, 10, 60);
    }
    for _ in 0..60 {
        rig.embed(2, &[30; 8]);
    }
    let mut ran = [0u32; 2];
    for _ in 0..40 {
        let plan = rig.step().unwrap();
        ran[usize::from(plan.model.0)] += 1;
    }
    assert!(ran[0].abs_diff(ran[1]) <= 4, "equal tenants, equal step times, equal turns: {ran:?}");
}

#[test]
fn one_tenants_long_text_does_not_hold_up_its_embeddings() {
    let mut rig = Rig::new(64);
    rig.ask(1, 10, 500);
    rig.step();
    let vectors = rig.embed(1, &[10]);
    rig.step();
    rig.step();
    assert!(rig.settled(vectors).is_some());
}

#[test]
fn urgent_requests_overtake_and_age_bounds_it() {
    let config = Config { priority_spacing: Nanos::from_secs(1), ..Config::default() };
    let mut rig = Rig::with(config, 64, 1, 64);
    let ask = |rig: &mut Rig, priority| {
        let work = Work::Generate { prompt_len: 4, new_tokens_max: 1, hashes: Vec::new() };
        rig.admit(1, CHAT, priority, work).unwrap()
    };
    let low = ask(&mut rig, 3);
    let high = ask(&mut rig, 0);
    assert!(row(&rig.step().unwrap(), high).is_some(), "urgent first");
    let mut steps = 0;
    while rig.settled(low).is_none() {
        ask(&mut rig, 0);
        rig.step();
        steps += 1;
    }
    // Three classes below, one second each, at 10 ms a step.
    assert!((290..=310).contains(&steps), "{steps}");
}

#[test]
fn a_row_that_fails_after_its_request_was_cancelled_leaves_nothing_in_the_cache() {
    let mut rig = Rig::with(Config::default(), 64, 8, 64);
    let id = rig.ask_text(1, 7, 100, 4);
    rig.step();
    let plan = rig.plan().unwrap();
    // Whoever judges the row tells the reader first, and cancels.
    rig.scheduler.cancel(rig.now, id);
    rig.finish_with(&plan, STEP, |_| RowOutcome::Failed);
    let again = rig.ask_text(1, 7, 100, 4);
    rig.step();
    assert_eq!(rig.cached_tokens(again), Some(0));
}
