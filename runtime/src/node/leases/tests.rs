use weir_scheduler::{
    Admission, Config, DeviceId, Event, ModelId, ModelLimits, RowOutcome, StepPlan, StepReport, Tenant, Work,
};

use super::*;
use crate::{config::DeviceQuota, node::desk::done, quota::Source};

const A: TenantId = TenantId(1);

/// A scheduler with one metered tenant, its leases, and a desk that serves when it is told to.
struct Rig {
    scheduler: Scheduler,
    leases: Leases,
    orders: flume::Receiver<Order>,
    source: Source,
    /// The store does not answer.
    cut: bool,
    served: usize,
    now: Nanos,
    /// What the machine's clock says at the beginning.
    began_us: i64,
}

fn spec(millis: u64) -> TenantSpec {
    let quota = DeviceQuota { hour: Some(Duration::from_millis(millis)), ..DeviceQuota::default() };
    TenantSpec { quota, ..TenantSpec::named("a") }
}

/// Half past some hour.
const HALF_PAST: i64 = (1_800_000_000 + 1_800) * 1_000_000;

impl Rig {
    /// Of a tenant whose quota is so many milliseconds an hour.
    fn new(millis: u64) -> Rig {
        let mut scheduler = Scheduler::new(Config::default());
        scheduler.add_tenant(A, Tenant { metered: true, ..Tenant::default() });
        let (sender, orders) = flume::unbounded();
        let leases = Leases::new(&[spec(millis)], 1, sender);
        let source = Source::memory();
        Rig { scheduler, leases, orders, source, cut: false, served: 0, now: Nanos::ZERO, began_us: HALF_PAST }
    }

    /// What the machine's clock says.
    fn wall(&self, now: Nanos) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.began_us as u64) + Duration::from_nanos(now.0)
    }

    fn ask(&mut self, millis: u64) {
        self.ask_at(self.now, millis);
    }

    fn ask_at(&mut self, now: Nanos, millis: u64) {
        let at = self.wall(now);
        self.leases.ask_at(&mut self.scheduler, now, at, A, Nanos::from_millis(millis));
        self.serve();
    }

    /// Does what was ordered. Memory never waits.
    fn serve(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        while let Ok(order) = self.orders.try_recv() {
            self.served += 1;
            let told = match (self.cut, order) {
                (false, order) => runtime.block_on(done(&self.source, order)),
                (true, Order::Ask { tenant, name, want, sent, at_us, .. }) => {
                    let ask = self.source.ask(&name, crate::quota::Unit::DeviceNs, want, at_us);
                    Some(Told::Taken { tenant, ask, sent, taken: None })
                }
                (true, Order::Report { reports, sent }) => Some(Told::Reported { sent, reports, reported: None }),
                (true, Order::ReportLast { .. }) => None,
            };
            if let Some(told) = told {
                self.leases.hear(&mut self.scheduler, self.now, told);
            }
        }
    }

    /// Lets time pass: what the engine thread does in a turn.
    fn turn(&mut self, now: Nanos) {
        self.now = now;
        self.scheduler.tick(now);
        self.events();
        let at = self.wall(now);
        self.leases.look_at(&mut self.scheduler, now, at);
        self.serve();
        self.events();
        self.serve();
    }

    fn events(&mut self) {
        let mut events = Vec::new();
        self.scheduler.take_events(&mut events);
        for event in events {
            match event {
                Event::GrantLow { tenant, wanted, .. } => {
                    let at = self.wall(self.now);
                    self.leases.ask_at(&mut self.scheduler, self.now, at, tenant, wanted);
                }
                Event::GrantReturned { tenant, epoch, amount } => self.leases.take_back(tenant, epoch, amount),
                _ => {}
            }
        }
    }

    fn granted(&self) -> Nanos {
        self.scheduler.grant_books(A).granted
    }

    /// What another replica would get now.
    fn left(&mut self) -> Nanos {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let at_us = micros_of(self.wall(self.now));
        let ask = self.source.ask("a", crate::quota::Unit::DeviceNs, Want::of(i64::MAX), at_us);
        let limits = self.leases.held[&A].limits.expect("it is metered");
        match runtime.block_on(self.source.take(&ask, &limits)) {
            Some(Taken::Answer(Answer::Granted { amount, .. })) => {
                runtime.block_on(self.source.report(&[given_back(ask.id)]));
                Nanos(amount as u64)
            }
            _ => Nanos::ZERO,
        }
    }

    /// A device with a model and a text that never ends.
    fn work(&mut self) -> Worker {
        let (device, model) = (DeviceId(0), ModelId(0));
        self.scheduler.add_device(Nanos(0), device);
        let limits = ModelLimits { blocks: 64, rows_max: 8, tokens_max: 64, context_len_max: 1024 };
        assert!(self.scheduler.add_model(device, model, limits));
        let work = Work::Generate { prompt_len: 4, new_tokens_max: 1_000, hashes: Vec::new() };
        let admission = Admission { tenant: A, model, priority: 0, work };
        self.scheduler.admit(Nanos(0), admission).expect("a place");
        self.events();
        self.serve();
        Worker { device, plan: StepPlan::new(), steps: 0 }
    }
}

struct Worker {
    device: DeviceId,
    plan: StepPlan,
    steps: u32,
}

impl Worker {
    /// A step of 10 ms, if the tenant may have one.
    fn step(&mut self, rig: &mut Rig) -> bool {
        if !rig.scheduler.next_step(rig.now, self.device, &mut self.plan) {
            return false;
        }
        let (time, mut events) = (Nanos::from_millis(10), Vec::new());
        let report = StepReport { step: self.plan.step, device_time: time, rows: &[RowOutcome::Advanced] };
        assert!(rig.scheduler.finish_step(rig.now + time, self.device, &report, &mut events));
        self.steps += 1;
        true
    }
}

#[test]
fn grants_never_exceed_the_quota_and_the_end_is_told_with_its_time() {
    let mut rig = Rig::new(10_000);
    for _ in 0..100 {
        rig.ask(5);
    }
    assert_eq!(rig.granted(), Nanos::from_secs(10), "all of it, and no more");
    assert_eq!(rig.leases.retry_after(A, Nanos(0)), Duration::from_secs(1_800), "the hour ends in half an hour");
    assert_eq!(rig.leases.retry_after(TenantId(9), Nanos(0)), RETRY_UNKNOWN);
}

#[test]
fn grants_grow_smaller_as_little_is_left() {
    let mut rig = Rig::new(10_000);
    let mut amounts = Vec::new();
    for _ in 0..30 {
        let before = rig.granted();
        rig.ask(5);
        amounts.push((rig.granted() - before).0);
    }
    assert!(amounts.is_sorted_by(|a, b| a >= b), "{amounts:?}");
    assert!(amounts[0] == GRANT.0 && amounts[10] < GRANT.0 / 4, "{amounts:?}");
}

#[test]
fn a_lease_nobody_uses_ends_and_its_time_is_there_again() {
    let mut rig = Rig::new(2_000);
    rig.ask(5);
    assert!(rig.left() < Nanos::from_secs(2));
    for step in 1..=9 {
        rig.turn(Nanos::from_millis(500 * step));
    }
    assert_eq!(rig.left(), Nanos::from_secs(2), "before its time is over for everybody else");
    assert!(rig.leases.held[&A].leases.is_empty() && rig.leases.next_look().is_none());
}

#[test]
fn a_lease_in_use_goes_on_without_a_gap_and_the_store_knows_what_is_spent() {
    let mut rig = Rig::new(1_000_000);
    let mut worker = rig.work();
    for n in 1..=100 {
        // A step of 10 ms in every 200.
        rig.turn(Nanos::from_millis(200 * n));
        assert!(worker.step(&mut rig), "step {n}");
    }
    assert_eq!(rig.scheduler.grant_books(A).spent, Nanos::from_secs(1));
    assert_eq!(rig.scheduler.grant_books(A).returned, Nanos::ZERO, "nothing ends while it is used");
    let held = &rig.leases.held[&A];
    assert_eq!((held.leases.len(), held.epoch), (1, 1), "one lease, extended");
    rig.leases.end(&rig.scheduler);
    rig.serve();
    assert_eq!(rig.left(), Nanos::from_secs(999), "what was not spent is back");
}

#[test]
fn what_a_bill_reports_is_what_was_spent() {
    let mut rig = Rig::new(1_000_000);
    let mut worker = rig.work();
    assert!(rig.leases.reports(&rig.scheduler, A).is_empty());
    for n in 0..7 {
        rig.turn(Nanos::from_millis(20 * n));
        assert!(worker.step(&mut rig));
    }
    let reports = rig.leases.reports(&rig.scheduler, A);
    assert_eq!(reports.iter().map(|report| (report.spent, report.closes)).collect::<Vec<_>>(), [(70_000_000, false)]);
    assert!(rig.leases.reports(&rig.scheduler, TenantId(2)).is_empty());
}

#[test]
fn a_store_out_of_reach_leaves_what_is_held_until_it_ends_and_nothing_more() {
    let mut rig = Rig::new(1_000_000);
    let mut worker = rig.work();
    rig.turn(Nanos::from_millis(500));
    assert!(worker.step(&mut rig));
    rig.cut = true;
    let mut last = Nanos::ZERO;
    for n in 1..=160 {
        rig.turn(Nanos::from_millis(500 + 100 * n));
        if worker.step(&mut rig) {
            last = rig.now;
        }
    }
    let usable = Nanos(nanos(LIFE - SKEW).0 + Nanos::from_millis(500).0);
    assert!(last > Nanos::from_secs(3) && last <= usable, "{last:?}");
    assert_eq!(rig.leases.retry_after(A, rig.now), RETRY_UNKNOWN);
    assert!(rig.served < 120, "asked and told twice a second, and no more: {}", rig.served);
    // It is there again, and so is what was held: the lease has ended for everybody by now.
    rig.cut = false;
    rig.turn(Nanos::from_secs(20));
    let spent = rig.scheduler.grant_books(A).spent;
    rig.turn(Nanos::from_secs(21));
    assert!(rig.left() >= Nanos::from_secs(1_000) - spent, "the late report is the operator's");
}

#[test]
fn in_shadow_mode_work_goes_on_without_the_store() {
    let mut rig = Rig::new(100);
    let mut shadow = spec(100);
    shadow.terms.shadow = true;
    rig.leases.put(&mut rig.scheduler, A, &shadow);
    let mut worker = rig.work();
    for n in 1..=200 {
        rig.cut = (50..150).contains(&n);
        rig.turn(Nanos::from_millis(100 * n));
        assert!(worker.step(&mut rig), "step {n}");
    }
    rig.cut = false;
    rig.leases.end(&rig.scheduler);
    rig.serve();
}

#[test]
fn a_window_that_was_spent_opens_again_when_enough_of_it_came_back() {
    let mut rig = Rig::new(200);
    for _ in 0..9 {
        rig.ask(200);
    }
    assert!(rig.leases.held[&A].closed.is_some());
    rig.scheduler.revoke_grant(A);
    rig.leases.held.get_mut(&A).expect("held").end_last();
    rig.turn(Nanos::from_secs(1));
    assert!(rig.leases.held[&A].closed.is_none());
    assert_eq!(rig.leases.retry_after(A, Nanos(0)), RETRY_UNKNOWN);
    assert_eq!(rig.left(), Nanos::from_millis(200));
}

#[test]
fn what_another_replica_gave_back_is_found_by_whoever_is_refused() {
    let mut rig = Rig::new(2_000);
    let (at_us, limits) = (micros_of(rig.wall(rig.now)), rig.leases.held[&A].limits.expect("it is metered"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let other = rig.source.ask("a", crate::quota::Unit::DeviceNs, Want::of(i64::MAX), at_us);
    runtime.block_on(rig.source.take(&other, &limits));
    rig.ask(5);
    assert!(rig.leases.held[&A].closed.is_some());
    runtime.block_on(rig.source.report(&[given_back(other.id)]));
    rig.turn(Nanos::from_secs(4));
    assert!(rig.leases.held[&A].closed.is_some(), "nobody wants it");
    rig.leases.was_refused(A);
    rig.turn(Nanos::from_secs(5));
    assert!(rig.leases.held[&A].closed.is_none() && rig.granted() > Nanos::ZERO);
}

#[test]
fn the_next_window_is_another_lease() {
    let mut rig = Rig::new(10_000);
    // A second before the hour ends.
    rig.began_us = Period::Hour.end(Period::Hour.begin(HALF_PAST)) - 1_000_000;
    rig.ask(5);
    rig.turn(Nanos::from_millis(1_500));
    rig.ask(5);
    rig.events();
    let held = &rig.leases.held[&A];
    assert_eq!((held.epoch, held.leases[&1].ended, held.leases[&1].returned), (2, true, GRANT));
    assert_eq!(rig.granted() - rig.scheduler.grant_books(A).returned, GRANT);
    rig.turn(Nanos::from_millis(2_100));
    assert_eq!(rig.left(), Nanos::from_secs(8), "what was left of the hour that is over is not the new hour's");
}

#[test]
fn a_clock_that_is_set_has_what_is_held_reported_before_more_is_asked_for() {
    let mut rig = Rig::new(1_000_000);
    let mut worker = rig.work();
    assert!(worker.step(&mut rig));
    rig.began_us += 600_000_000;
    rig.now = Nanos::from_millis(20);
    rig.ask(5);
    rig.events();
    assert!(rig.leases.held[&A].leases[&1].ended && rig.leases.held[&A].wants.is_some());
    rig.turn(Nanos::from_millis(520));
    rig.turn(Nanos::from_millis(1_020));
    assert!(worker.step(&mut rig));
    assert_eq!(rig.leases.held[&A].epoch, 2);
    rig.leases.end(&rig.scheduler);
    rig.serve();
    assert_eq!(rig.left(), Nanos::from_secs(1_000) - Nanos::from_millis(20));
}

#[test]
fn a_quota_that_is_lifted_gives_back_what_is_left() {
    let mut rig = Rig::new(10_000);
    rig.ask(5);
    rig.scheduler.set_tenant(A, Tenant::default());
    rig.leases.put(&mut rig.scheduler, A, &TenantSpec::named("a"));
    rig.turn(Nanos::from_secs(1));
    assert!(rig.leases.held[&A].leases.is_empty() && rig.orders.is_empty());
    rig.leases.put(&mut rig.scheduler, A, &spec(10_000));
    assert_eq!(rig.left(), Nanos::from_secs(10));
}

/// Months of each length, a leap day, a leap century and one that is none.
const BOUNDARIES: [&str; 6] = ["2024-03", "2023-03", "2026-01", "2000-03", "2100-03", "2026-05"];

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    /// A tenant works on while the machine's clock runs, and steps, over the ends of months.
    #[test]
    fn windows_sum_to_device_time_whatever_the_clock_does(
        boundary in 0usize..BOUNDARIES.len(), seconds in 1i64..40,
        steps in proptest::collection::vec((1u64..900, 0u32..40, -4_000i64..4_000), 20..200),
    ) {
        let mut rig = Rig::new(3_000);
        rig.began_us = crate::quota::calendar::month_begins_us(BOUNDARIES[boundary]).expect("a month") - seconds * 1_000_000;
        let mut worker = rig.work();
        let mut now = 0;
        for (millis, rare, jump) in steps {
            now += millis;
            if rare == 0 {
                rig.began_us += jump * 1_000_000;
            }
            rig.turn(Nanos::from_millis(now));
            worker.step(&mut rig);
        }
        rig.scheduler.device_lost(rig.now, DeviceId(0));
        rig.turn(Nanos::from_millis(now + 1_000));
        rig.leases.end(&rig.scheduler);
        rig.serve();
        let spent = rig.scheduler.grant_books(A).spent.0 as i64;
        let windows: Vec<_> =
            rig.source.in_memory(|grants| grants.windows().clone()).expect("memory").into_iter().collect();
        for period in Period::ALL {
            let of = windows.iter().filter(|(key, _)| key.2 == period);
            proptest::prop_assert_eq!(of.map(|(_, window)| window.spent).sum::<i64>(), spent);
        }
        for ((_, _, period, begins_us), window) in windows {
            proptest::prop_assert_eq!(period.begin(begins_us), begins_us);
            proptest::prop_assert_eq!(window.granted, window.spent, "all was given back");
            proptest::prop_assert!(period != Period::Hour || window.granted <= 3_000_000_000);
        }
    }
}
