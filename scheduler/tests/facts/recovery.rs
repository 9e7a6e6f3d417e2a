//! A device that comes back, and requests that run alone on it.

use crate::rig::*;
use weir_scheduler::*;

fn lose_and_return(rig: &mut Rig, blocks: u32) {
    rig.scheduler.device_lost(rig.now, DEVICE);
    rig.scheduler.take_events(&mut rig.events);
    rig.now += STEP;
    rig.scheduler.add_device(rig.now, DEVICE);
    let limits = ModelLimits { blocks, rows_max: 8, tokens_max: 256, context_len_max: 4096 };
    assert!(rig.scheduler.add_model(DEVICE, CHAT, limits));
}

fn again(rig: &mut Rig, tenant: u32, prompt_len: u32, new_tokens_max: u32, redo: u32) -> RequestId {
    let work = Work::Generate { prompt_len, new_tokens_max, hashes: Vec::new() };
    let admission = Admission { tenant: TenantId(tenant), model: CHAT, priority: 0, work };
    rig.scheduler
        .admit_again(rig.now, Some(DEVICE), Resumption { admission, redo, since: rig.now, times: Times::default() })
        .unwrap()
}

#[test]
fn what_was_computed_before_a_loss_is_computed_again_at_the_operators_cost() {
    let mut rig = Rig::new(64);
    let lost = rig.ask(1, 40, 10);
    rig.step();
    rig.step();
    rig.step();
    lose_and_return(&mut rig, 64);
    let Some((End::Lost, before)) = rig.settled(lost) else { panic!("lost") };
    // Three drawn ids are known besides the prompt; all but the last of them were computed.
    let back = again(&mut rig, 1, 43, 7, 42);
    let plans = rig.run_dry();
    assert_eq!(row(&plans[0], back), Some((0, 43, true)));
    let Some((End::Finished, after)) = rig.settled(back) else { panic!("finished") };
    let spent: Nanos = plans.iter().map(|plan| Nanos(1_000_000 + 20_000 * plan.tokens())).sum();
    assert_eq!(spent - after, Nanos((1_000_000 + 20_000 * 43) * 42 / 43));
    assert_eq!(rig.charge(1), before + after);
    rig.books();
}

#[test]
fn requests_come_back_past_full_queues_and_drains() {
    let mut rig = Rig::new(64);
    rig.tenant(1, Tenant { queue_len_max: 1, ..Tenant::default() });
    rig.ask(1, 8, 4);
    lose_and_return(&mut rig, 64);
    rig.scheduler.drain();
    let back = [again(&mut rig, 1, 8, 4, 0), again(&mut rig, 1, 8, 4, 0)];
    assert!(rig.admit(1, CHAT, 0, Work::Generate { prompt_len: 8, new_tokens_max: 4, hashes: Vec::new() }).is_err());
    rig.run_dry();
    assert!(back.iter().all(|id| matches!(rig.settled(*id), Some((End::Finished, _)))));
}

#[test]
fn a_request_that_runs_alone_has_each_step_to_itself() {
    let mut rig = Rig::new(64);
    let (a, b, c) = (rig.ask(1, 8, 20), rig.ask(2, 8, 20), rig.ask(1, 8, 20));
    rig.scheduler.run_alone(DEVICE, Some(b));
    let plan = rig.plan().unwrap();
    assert_eq!(plan.rows.iter().map(|row| row.request).collect::<Vec<_>>(), [b]);
    assert!(rig.plan().is_none(), "one step at a time");
    rig.finish(&plan);
    // Running requests wait for it as those in the queue do.
    rig.scheduler.run_alone(DEVICE, None);
    assert_eq!(rig.step().unwrap().rows.len(), 3);
    rig.scheduler.run_alone(DEVICE, Some(c));
    for _ in 0..3 {
        let plan = rig.step().unwrap();
        assert_eq!((plan.rows.len(), plan.rows[0].request), (1, c));
    }
    // With its end, everybody runs again.
    rig.scheduler.cancel(rig.now, c);
    let plan = rig.step().unwrap();
    assert!(plan.rows.len() == 2 && row(&plan, a).is_some() && row(&plan, b).is_some());
}

#[test]
fn a_request_that_runs_alone_takes_the_blocks_it_needs() {
    let mut rig = Rig::new(9);
    let (mine, theirs) = (rig.ask(1, 100, 20), rig.ask(2, 100, 20));
    rig.step();
    rig.step();
    assert!(rig.blocks_free() < 4);
    let suspect = rig.ask(1, 100, 20);
    rig.scheduler.run_alone(DEVICE, Some(suspect));
    let plan = rig.step().unwrap();
    assert_eq!(plan.rows.iter().map(|row| row.request).collect::<Vec<_>>(), [suspect]);
    rig.scheduler.run_alone(DEVICE, None);
    rig.run_dry();
    assert!([mine, theirs, suspect].iter().all(|id| matches!(rig.settled(*id), Some((End::Finished, _)))));
}

#[test]
fn one_that_is_to_run_alone_starts_from_anywhere_in_its_line() {
    let mut rig = Rig::with(Config::default(), 64, 1, 256);
    let (first, second) = (rig.ask(1, 20, 5), rig.ask(1, 20, 5));
    rig.scheduler.run_alone(DEVICE, Some(second));
    let plan = rig.step().expect("it runs, though another was there before it");
    assert_eq!(plan.rows.iter().map(|row| row.request).collect::<Vec<_>>(), [second]);
    rig.scheduler.run_alone(DEVICE, None);
    rig.run_dry();
    assert!([first, second].iter().all(|id| matches!(rig.settled(*id), Some((End::Finished, _)))));
}
