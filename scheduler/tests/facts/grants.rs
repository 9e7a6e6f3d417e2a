//! Quotas in the step loop: what is granted, what may start, who pays for the rest, and how it ends. Plans that change and long histories are in `leases`.

use crate::rig::*;
use weir_scheduler::*;

pub const MS: u64 = 1_000_000;
pub const LATER: Nanos = Nanos::from_secs(3600);

pub fn metered() -> Tenant {
    Tenant { metered: true, ..Tenant::default() }
}

/// A rig whose steps are known to cost 10 ms, with tenant 1 metered.
pub fn rig() -> Rig {
    let mut rig = Rig::new(64);
    for _ in 0..40 {
        rig.ask(2, 10, 1);
        rig.step();
    }
    rig.events.clear();
    rig.tenant(1, metered());
    rig
}

impl Rig {
    pub fn grant(&mut self, tenant: u32, epoch: u64, millis: u64, expires: Nanos) {
        let grant = Grant { epoch, amount: Nanos(millis * MS), expires };
        self.scheduler.grant(self.now, TenantId(tenant), grant);
        self.scheduler.check_invariants();
    }

    pub fn grants(&self, tenant: u32) -> GrantBooks {
        self.scheduler.grant_books(TenantId(tenant))
    }

    pub fn hear(&mut self) {
        self.scheduler.take_events(&mut self.events);
        self.scheduler.check_invariants();
    }

    fn lows(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::GrantLow { .. })).count()
    }

    fn returned(&self) -> Vec<(u64, u64)> {
        let back = |event: &Event| match event {
            Event::GrantReturned { epoch, amount, .. } => Some((*epoch, amount.0)),
            _ => None,
        };
        self.events.iter().filter_map(back).collect()
    }
}

#[test]
fn no_row_starts_without_a_grant_and_the_reserve_covers_it() {
    let mut rig = rig();
    let id = rig.ask(1, 10, 3);
    assert!(rig.plan().is_none());
    assert_eq!(rig.lows(), 1, "asked for at the door, and not again by the row");
    rig.grant(1, 1, 1_000, LATER);
    let plan = rig.plan().unwrap();
    let books = rig.grants(1);
    assert!(books.reserved >= STEP, "the estimate is not below the cost: {books:?}");
    rig.finish(&plan);
    assert_eq!((rig.grants(1).spent, rig.grants(1).reserved), (STEP, Nanos::ZERO));
    rig.run_dry();
    assert_eq!(rig.settled(id).unwrap().0, End::Finished);
    assert_eq!(rig.charge(1), rig.grants(1).spent);
    assert_eq!(rig.books().overrun, Nanos::ZERO);
}

#[test]
fn time_above_the_grant_is_the_operators() {
    let mut rig = rig();
    let id = rig.ask(1, 10, 1);
    rig.grant(1, 1, 20, LATER);
    let plan = rig.plan().unwrap();
    let before = rig.books();
    rig.finish_with(&plan, Nanos(500 * MS), |_| RowOutcome::Advanced);
    assert_eq!(rig.settled(id), Some((End::Finished, Nanos(20 * MS))));
    let books = rig.books();
    assert_eq!((books.overrun, books.operator), (Nanos(480 * MS), before.operator + Nanos(480 * MS)));
    assert_eq!((rig.grants(1).spent, rig.grants(1).left), (Nanos(20 * MS), Nanos::ZERO));
}

#[test]
fn time_of_a_device_counts_by_its_rate_and_bills_do_not() {
    let mut rig = rig();
    rig.scheduler.set_device_rate(DeviceId(0), 2_500_000);
    let id = rig.ask(1, 10, 3);
    rig.grant(1, 1, 1_000, LATER);
    let plan = rig.plan().unwrap();
    assert!(rig.grants(1).reserved.0 >= STEP.0 * 5 / 2);
    rig.finish(&plan);
    assert_eq!((rig.charge(1), rig.grants(1).spent), (STEP, Nanos(STEP.0 * 5 / 2)));
    rig.run_dry();
    assert_eq!(rig.settled(id).unwrap().0, End::Finished);
    assert_eq!(rig.grants(1).spent.0, rig.charge(1).0 * 5 / 2);
    assert_eq!(rig.books().overrun, Nanos::ZERO);
}

#[test]
fn a_grant_covers_as_much_time_as_it_is_worth_on_the_device() {
    let mut rig = rig();
    rig.scheduler.set_device_rate(DeviceId(0), 500_000);
    let id = rig.ask(1, 10, 1);
    rig.grant(1, 1, 20, LATER);
    let plan = rig.plan().unwrap();
    rig.finish_with(&plan, Nanos(500 * MS), |_| RowOutcome::Advanced);
    assert_eq!(rig.settled(id), Some((End::Finished, Nanos(40 * MS))));
    assert_eq!((rig.books().overrun, rig.grants(1).spent), (Nanos(460 * MS), Nanos(20 * MS)));
}

#[test]
fn time_above_the_grant_advances_virtual_time() {
    let mut rig = Rig::with(Config::default(), 64, 1, 64);
    rig.tenant(1, metered());
    // Two each, so that both always want more than they get.
    let mine = [rig.ask(1, 4, 200), rig.ask(1, 4, 200)];
    let _theirs = [rig.ask(2, 4, 200), rig.ask(2, 4, 200)];
    rig.grant(1, 1, 60, LATER);
    let mut rows = [0, 0];
    for n in 0..60 {
        let plan = rig.plan().unwrap();
        let own = mine.iter().any(|id| row(&plan, *id).is_some());
        // One of its rows takes a while, and most of that is more than it has.
        let long = n == 4 || n == 5;
        rig.finish_with(&plan, if own && long { Nanos(500 * MS) } else { STEP }, |_| RowOutcome::Advanced);
        if long && own {
            assert!(rig.books().overrun > Nanos(400 * MS) && rows[0] > 0);
            rig.grant(1, 1, 10_000, LATER);
            rows = [0, 0];
        } else {
            rows[usize::from(!own)] += 1;
        }
    }
    assert!(rows[0] <= 5 && rows[1] >= 45, "half a second ahead, it does not get the next rows: {rows:?}");
}

#[test]
fn spent_and_reserved_stay_within_the_grant_with_two_steps_in_flight() {
    let mut rig = rig();
    for _ in 0..6 {
        rig.ask(1, 10, 200);
    }
    rig.grant(1, 1, 100, LATER);
    let mut steps = 0;
    while let Some(first) = rig.plan() {
        let second = rig.plan();
        let books = rig.grants(1);
        assert!(books.spent.0 + books.reserved.0 <= 100 * MS);
        rig.finish_with(&first, Nanos(11 * MS), |_| RowOutcome::Advanced);
        if let Some(second) = second {
            rig.finish_with(&second, Nanos(11 * MS), |_| RowOutcome::Advanced);
        }
        steps += 1;
    }
    let books = rig.grants(1);
    assert!(steps >= 4 && books.spent.0 > 80 * MS && books.spent.0 <= 100 * MS, "{books:?}");
    assert_eq!(rig.charge(1), books.spent);
    assert!(books.dry_since.is_some());
}

#[test]
fn a_reserve_that_was_not_needed_comes_back() {
    let mut rig = rig();
    let id = rig.ask(1, 10, 50);
    rig.grant(1, 1, 1_000, LATER);
    let (first, second) = (rig.plan().unwrap(), rig.plan().unwrap());
    rig.finish_with(&first, STEP, |_| RowOutcome::Finished);
    assert!(rig.grants(1).reserved > Nanos::ZERO, "the second step is still in flight");
    rig.finish(&second);
    assert_eq!(rig.settled(id).unwrap().1, STEP);
    let books = rig.grants(1);
    assert_eq!((books.spent, books.reserved, books.left), (STEP, Nanos::ZERO, Nanos(990 * MS)));
    // A row that failed costs nothing either.
    rig.ask(1, 10, 50);
    let plan = rig.plan().unwrap();
    rig.finish_with(&plan, STEP, |_| RowOutcome::Failed);
    assert_eq!((rig.grants(1).spent, rig.grants(1).left), (STEP, Nanos(990 * MS)));
    assert_eq!(rig.books().overrun, Nanos::ZERO);
}

#[test]
fn when_a_grant_expires_its_rows_in_flight_end_on_their_reserve_and_nothing_new_starts() {
    let mut rig = rig();
    rig.ask(1, 10, 50);
    let expires = rig.now + Nanos(5 * MS);
    rig.grant(1, 3, 1_000, expires);
    assert_eq!(rig.scheduler.next_deadline(), Some(expires));
    let plan = rig.plan().unwrap();
    let reserved = rig.grants(1).reserved;
    rig.now = expires;
    assert!(rig.plan().is_none(), "a second step would have been possible");
    let left = 1_000 * MS - reserved.0;
    assert_eq!(rig.returned(), [(3, left)]);
    assert_eq!(rig.lows(), 2, "at the door, and when it expired");
    rig.finish_with(&plan, Nanos(4 * MS), |_| RowOutcome::Advanced);
    // The step began before `expires` and took 9 ms of wall time, 4 of them computing.
    assert_eq!(rig.returned(), [(3, left), (3, reserved.0 - 4 * MS)]);
    let books = rig.grants(1);
    assert_eq!((books.spent, books.returned), (Nanos(4 * MS), Nanos(996 * MS)));
    assert!(rig.plan().is_none());
}

#[test]
fn a_later_grant_of_the_same_lease_renews_it_and_a_new_lease_ends_the_one_before() {
    let mut rig = rig();
    rig.grant(1, 1, 100, Nanos(rig.now.0 + 50 * MS));
    rig.grant(1, 1, 100, Nanos(rig.now.0 + 90 * MS));
    rig.now += Nanos(60 * MS);
    rig.scheduler.tick(rig.now);
    assert_eq!(rig.grants(1).left, Nanos(200 * MS));
    rig.grant(1, 2, 10, LATER);
    rig.hear();
    assert_eq!((rig.returned(), rig.grants(1).left), (vec![(1, 200 * MS)], Nanos(10 * MS)));
    rig.grant(1, 1, 70, LATER);
    rig.scheduler.revoke_grant(TenantId(1));
    rig.hear();
    assert_eq!(rig.returned(), [(1, 200 * MS), (1, 70 * MS), (2, 10 * MS)]);
    rig.scheduler.grant(rig.now, TenantId(99), Grant { epoch: 1, amount: Nanos(5), expires: LATER });
    rig.hear();
    assert_eq!(rig.returned().last(), Some(&(1, 5)), "a tenant that is not there spends nothing");
}

#[test]
fn a_sequence_waits_ten_seconds_for_the_next_grant_and_then_ends() {
    let mut rig = rig();
    let running = rig.ask(1, 10, 500);
    rig.grant(1, 1, 30, LATER);
    while rig.step().is_some() {}
    let dry = rig.grants(1).dry_since.unwrap();
    rig.now += Nanos::from_secs(4);
    let late = rig.ask(1, 10, 1);
    let due = dry + Nanos::from_secs(10);
    rig.scheduler.tick(Nanos(due.0 - 1));
    rig.hear();
    assert_eq!((rig.settled(running), rig.scheduler.next_deadline()), (None, Some(due)));
    rig.scheduler.tick(due);
    rig.hear();
    let spent = rig.grants(1).spent;
    assert_eq!(rig.settled(running), Some((End::Quota, spent)));
    assert_eq!(rig.settled(late), None, "the other came four seconds later");
    let its_due = rig.now + Nanos::from_secs(10);
    assert_eq!(rig.scheduler.next_deadline(), Some(its_due));
    rig.now = its_due;
    assert!(rig.plan().is_none());
    assert_eq!(rig.settled(late), Some((End::Quota, Nanos::ZERO)));

    // Whoever comes next asks anew, and a grant in time is in time.
    rig.events.clear();
    let last = rig.ask(1, 10, 1);
    assert!(rig.plan().is_none());
    assert_eq!(rig.lows(), 1);
    rig.now += Nanos::from_secs(9);
    rig.grant(1, 1, 100, LATER);
    rig.now += Nanos::from_secs(9);
    rig.step();
    assert_eq!(rig.settled(last).unwrap().0, End::Finished);
}

#[test]
fn when_the_window_is_spent_everything_ends_at_once_and_newcomers_are_told_until_when() {
    let mut rig = rig();
    let running = rig.ask(1, 10, 500);
    rig.grant(1, 1, 30, LATER);
    let queued = rig.ask(1, 10, 500);
    let (first, second) = (rig.plan().unwrap(), rig.plan());
    let until = rig.now + Nanos::from_secs(100);
    rig.scheduler.window_spent(rig.now, TenantId(1), until);
    rig.hear();
    assert_eq!(rig.settled(running), None, "there is something left, and in flight");
    let work = Work::Generate { prompt_len: 1, new_tokens_max: 1, hashes: Vec::new() };
    let reject = rig.admit(1, CHAT, 0, work).unwrap_err();
    assert_eq!((reject.reason, reject.retry_after), (RejectReason::QuotaSpent, Nanos::from_secs(100)));
    rig.finish(&first);
    if let Some(second) = second {
        rig.finish(&second);
    }
    while rig.step().is_some() {}
    let spent = rig.grants(1).spent;
    assert!(spent >= Nanos(20 * MS));
    let bills = [running, queued].map(|id| rig.settled(id).unwrap());
    assert!(bills.iter().all(|(end, _)| *end == End::Quota));
    assert_eq!(bills[0].1 + bills[1].1, spent, "each pays what it had, none twice");
    assert_eq!(rig.grants(1).left, Nanos::ZERO, "the rest went back");
    assert_eq!(rig.blocks_free(), 64, "nothing is held for them");

    rig.now = until;
    assert!(rig.scheduler.next_deadline().is_some_and(|at| at <= until));
    let id = rig.ask(1, 10, 1);
    rig.grant(1, 2, 100, LATER);
    rig.step();
    assert_eq!(rig.settled(id).unwrap().0, End::Finished);
}

#[test]
fn the_last_row_in_flight_is_waited_for_before_a_spent_tenant_ends() {
    let mut rig = rig();
    let id = rig.ask(1, 10, 500);
    rig.grant(1, 1, 14, LATER);
    let plan = rig.plan().unwrap();
    assert!(rig.plan().is_none(), "too little is left for a second");
    rig.scheduler.window_spent(rig.now, TenantId(1), LATER);
    rig.hear();
    assert_eq!(rig.settled(id), None);
    rig.finish(&plan);
    assert_eq!(rig.settled(id), Some((End::Quota, STEP)));
    assert_eq!(rig.returned(), [(1, 4 * MS)]);
}

#[test]
fn a_window_that_opens_again_takes_requests_and_asks_for_grants() {
    let mut rig = rig();
    rig.scheduler.window_spent(rig.now, TenantId(1), LATER);
    let work = Work::Generate { prompt_len: 1, new_tokens_max: 1, hashes: Vec::new() };
    assert_eq!(rig.admit(1, CHAT, 0, work).unwrap_err().reason, RejectReason::QuotaSpent);
    rig.scheduler.window_reopened(TenantId(1));
    let id = rig.ask(1, 10, 1);
    rig.hear();
    assert_eq!(rig.lows(), 1);
    rig.grant(1, 1, 100, LATER);
    rig.step();
    assert_eq!(rig.settled(id).unwrap().0, End::Finished);
}

#[test]
fn the_next_grant_is_asked_for_once_before_the_last_is_used_up() {
    let mut rig = rig();
    rig.ask(1, 10, 1_000);
    rig.grant(1, 1, 200, LATER);
    rig.hear();
    rig.events.clear();
    let mut left = Vec::new();
    for _ in 0..30 {
        rig.step();
        left.extend(rig.events.drain(..).filter_map(|event| match event {
            Event::GrantLow { left, .. } => Some(left),
            _ => None,
        }));
        if left.len() == 1 && rig.grants(1).left < Nanos(50 * MS) {
            break;
        }
    }
    assert_eq!(left.len(), 1);
    assert!(left[0] <= Nanos(100 * MS) && left[0] > Nanos(80 * MS), "at half of the last: {left:?}");
}

#[test]
fn a_tenant_without_grant_holds_nobody_up_and_earns_no_claim() {
    let mut rig = rig();
    let limits = ModelLimits { blocks: 64, rows_max: 1, tokens_max: 64, context_len_max: 4096 };
    let single = ModelId(7);
    assert!(rig.scheduler.add_model(DEVICE, single, limits));
    let ask = |rig: &mut Rig, tenant| {
        let work = Work::Generate { prompt_len: 4, new_tokens_max: 900, hashes: Vec::new() };
        rig.admit(tenant, single, 0, work).unwrap()
    };
    let mine = ask(&mut rig, 1);
    let theirs = ask(&mut rig, 2);
    // Chat work of the same tenant, which has had least, must not draw the device to the other model either.
    rig.ask(1, 10, 900);
    for _ in 0..300 {
        let plan = rig.step().expect("the device is not idle");
        assert!(row(&plan, theirs).is_some() && row(&plan, mine).is_none());
    }
    // Three seconds without a row are no claim: from now on it gets its half.
    rig.grant(1, 1, 60_000, LATER);
    let mut rows = [0, 0];
    for _ in 0..60 {
        let plan = rig.step().unwrap();
        let own = plan.rows.iter().filter(|row| row.request != theirs).count();
        rows[0] += u32::from(own > 0);
        rows[1] += u32::from(own < plan.rows.len());
    }
    assert!(rows[0].abs_diff(rows[1]) <= 4, "{rows:?}");
}

#[test]
fn a_tenant_without_grant_does_not_choose_the_model() {
    let mut rig = rig();
    let ahead = rig.ask(3, 10, 900);
    rig.embed(2, &[200; 200]);
    let plan = loop {
        let plan = rig.plan().unwrap();
        if row(&plan, ahead).is_some() {
            break plan;
        }
        rig.finish(&plan);
    };
    rig.finish_with(&plan, Nanos(500 * MS), |_| RowOutcome::Advanced);
    rig.ask(1, 10, 900);
    // That it can have no row is found out by asking it for one.
    rig.step();
    for _ in 0..20 {
        let plan = rig.step().unwrap();
        assert!(row(&plan, ahead).is_none(), "half a second ahead, it has to wait for the other model's turn");
    }
}

#[test]
fn one_that_runs_alone_and_waits_for_a_grant_lets_others_run() {
    let mut rig = rig();
    let lone = rig.ask(1, 10, 20);
    let other = rig.ask(2, 10, 20);
    rig.scheduler.run_alone(DEVICE, Some(lone));
    assert!(rig.plan().is_none(), "found out");
    let plan = rig.step().unwrap();
    assert!(row(&plan, other).is_some());
    rig.grant(1, 1, 1_000, LATER);
    let plan = rig.step().unwrap();
    assert!(row(&plan, lone).is_some() && row(&plan, other).is_none());
}

#[test]
fn blocks_of_a_tenant_without_grant_are_the_first_to_go() {
    let mut rig = rig();
    rig.tenant(3, metered());
    rig.grant(1, 1, 60_000, LATER);
    rig.grant(3, 1, 40, LATER);
    let (mine, theirs) = (rig.ask(1, 31 * 32, 100), rig.ask(3, 10 * 32, 100));
    while rig.grants(3).dry_since.is_none() {
        rig.step().unwrap();
    }
    // Tenant 1 holds three times as many, but tenant 3 cannot use its own.
    let large = rig.ask(2, 26 * 32, 1);
    rig.step().unwrap();
    rig.step().unwrap();
    let preempted: Vec<RequestId> = rig
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Preempted { request } => Some(*request),
            _ => None,
        })
        .collect();
    assert_eq!(preempted, [theirs]);
    rig.grant(3, 1, 60_000, LATER);
    rig.run_dry();
    assert!([mine, theirs, large].iter().all(|id| rig.settled(*id).unwrap().0 == End::Finished));
}

#[test]
fn a_chunk_of_a_prompt_shrinks_to_what_is_left() {
    let mut rig = Rig::with(Config::default(), 400, 8, 2048);
    let cost = |plan: &StepPlan| Nanos(2 * MS + 100_000 * plan.tokens());
    for n in 0..60 {
        rig.ask(2, 10 + 37 * n % 900, 2);
        rig.step_at(cost);
    }
    while rig.step_at(cost) {}
    rig.tenant(1, metered());
    let id = rig.ask(1, 2_000, 5);
    rig.grant(1, 1, 30, LATER);
    let plan = rig.plan().unwrap();
    let (_, len, _) = row(&plan, id).unwrap();
    let took = cost(&plan);
    assert!(len > 100 && took <= Nanos(30 * MS), "{len} tokens, {took:?}");
    rig.finish_with(&plan, took, |_| RowOutcome::Advanced);
    assert_eq!((rig.grants(1).spent, rig.books().overrun), (took, Nanos::ZERO));
}

#[test]
fn items_of_a_list_are_reserved_whole_and_the_list_ends_when_nothing_comes() {
    let mut rig = rig();
    let id = rig.embed(1, &[200; 10]);
    rig.grant(1, 1, 60, LATER);
    while rig.step().is_some() {}
    rig.scheduler.window_spent(rig.now, TenantId(1), LATER);
    rig.hear();
    let (end, charge) = rig.settled(id).unwrap();
    assert_eq!((end, charge), (End::Quota, rig.grants(1).spent));
    assert!(charge <= Nanos(60 * MS));
}

#[test]
fn the_reserves_of_a_lost_device_come_back() {
    let mut rig = rig();
    rig.ask(1, 10, 50);
    rig.grant(1, 1, 1_000, LATER);
    rig.plan().unwrap();
    rig.plan().unwrap();
    rig.now += Nanos(3 * MS);
    rig.scheduler.device_lost(rig.now, DEVICE);
    rig.hear();
    let books = rig.grants(1);
    assert_eq!((books.spent, books.reserved, books.left), (Nanos::ZERO, Nanos::ZERO, Nanos(1_000 * MS)));
}

#[test]
fn the_operator_is_never_metered() {
    let mut rig = rig();
    rig.tenant(0, metered());
    let id = rig.ask(0, 10, 1);
    rig.step();
    assert_eq!(rig.settled(id), Some((End::Finished, STEP)));
}
