//! Leases of device time: who has a quota gets it in grants of a few device seconds.
//!
//! The scheduler runs a metered tenant's rows only against what was granted to it (`weir_scheduler`, `grant.rs`). Here its questions are
//! answered from [`Quotas`], which keeps the balances: for now [`Windows`], in this process's memory; a store shared by replicas takes the same place.
//!
//! A *lease* is the time that was taken out of one set of windows. It has an epoch, ends [`LEASE_TIME`] after it was last extended, on the
//! monotonic clock and so also when the store cannot be reached, and it is extended for as long as its tenant uses it. What it
//! did not use goes back to the windows that it came from. When a window ends the next grant is of another lease, so every
//! nanosecond is spent in one window; rows in flight at that moment belong to the window in which they began.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use weir_scheduler::{Grant, Nanos, Scheduler, TenantId};

use super::windows::{Answer, Quotas, Windows};
use crate::config::{DeviceQuota, TenantSpec};

/// A grant, where there is plenty: a few steps of several devices, and little enough to be gone for [`LEASE_TIME`].
const GRANT: Nanos = Nanos::from_secs(2);
/// No grant is smaller, unless no more is left.
const GRANT_LEAST: Nanos = Nanos::from_millis(50);
/// How long a lease lives that nobody extends.
const LEASE_TIME: Duration = Duration::from_secs(5);
/// Leases are looked at this often, and extended when less than half of their time is left.
const LOOK_INTERVAL: Nanos = Nanos::from_millis(500);
/// A window that was spent opens again when this much came back to it. Less is not worth a request.
const REOPENS_AT: Nanos = Nanos::from_millis(100);
/// What a client is told to wait that got no grant, though its window is not known to be spent.
pub(super) const RETRY_UNKNOWN: Duration = Duration::from_secs(10);

/// What is held for the tenants of this node.
pub(super) struct Leases {
    quotas: Box<dyn Quotas + Send>,
    held: BTreeMap<TenantId, Lease>,
    looked: Nanos,
    /// Something was granted: a device that had nothing to do may have now.
    pub(super) gave: bool,
}

#[derive(Debug, Default)]
struct Lease {
    epoch: u64,
    expires: Nanos,
    /// Spent when it was last looked at.
    spent: Nanos,
    /// Until when the scheduler was told that the window is spent.
    closed: Option<Nanos>,
}

impl Leases {
    /// For the tenants that have a quota.
    pub(super) fn new(tenants: &[TenantSpec]) -> Leases {
        let ids = (1..).map(TenantId);
        let metered = ids.zip(tenants).filter(|(_, tenant)| tenant.quota != DeviceQuota::default());
        let quotas: Vec<(TenantId, DeviceQuota)> = metered.map(|(id, tenant)| (id, tenant.quota)).collect();
        Leases::from_quotas(Box::new(Windows::new(&quotas)))
    }

    fn from_quotas(quotas: Box<dyn Quotas + Send>) -> Leases {
        Leases { quotas, held: BTreeMap::new(), looked: Nanos(0), gave: false }
    }

    /// Answers the scheduler's question: a row (or request) of the tenant's takes `wanted`, and little or nothing is left.
    pub(super) fn ask(&mut self, scheduler: &mut Scheduler, now: Nanos, tenant: TenantId, wanted: Nanos) {
        self.ask_at(scheduler, now, SystemTime::now(), tenant, wanted);
    }

    fn ask_at(&mut self, scheduler: &mut Scheduler, now: Nanos, at: SystemTime, tenant: TenantId, wanted: Nanos) {
        let at = unix_time(at);
        // Twice what is wanted, for the next row wants it, too.
        let least = wanted.saturating_add(wanted).max(GRANT_LEAST);
        let lease = self.held.entry(tenant).or_default();
        match self.quotas.take(tenant, at, GRANT.max(least), least) {
            Answer::Taken { epoch, amount } => {
                let expires = now.saturating_add(nanos(LEASE_TIME));
                (lease.epoch, lease.expires, lease.closed) = (epoch, expires, None);
                scheduler.grant(now, tenant, Grant { epoch, amount, expires });
                self.gave = true;
            }
            Answer::Spent { until } => {
                let until = now.saturating_add(nanos(until.saturating_sub(at)));
                lease.closed = Some(until);
                scheduler.window_spent(now, tenant, until);
            }
        }
    }

    /// What a lease did not use goes back.
    pub(super) fn take_back(&mut self, scheduler: &mut Scheduler, tenant: TenantId, epoch: u64, amount: Nanos) {
        self.take_back_at(scheduler, SystemTime::now(), tenant, epoch, amount);
    }

    fn take_back_at(&mut self, scheduler: &mut Scheduler, at: SystemTime, tenant: TenantId, epoch: u64, amount: Nanos) {
        self.quotas.give_back(tenant, epoch, amount);
        let lease = self.held.entry(tenant).or_default();
        if lease.closed.is_some() && self.quotas.balance(tenant, unix_time(at)) >= REOPENS_AT {
            lease.closed = None;
            scheduler.window_reopened(tenant);
        }
    }

    /// Extends the leases that are in use.
    pub(super) fn look(&mut self, scheduler: &mut Scheduler, now: Nanos) {
        self.look_at(scheduler, now, SystemTime::now());
    }

    fn look_at(&mut self, scheduler: &mut Scheduler, now: Nanos, at: SystemTime) {
        if now < self.looked.saturating_add(LOOK_INTERVAL) {
            return;
        }
        self.looked = now;
        let at = unix_time(at);
        for (&tenant, lease) in &mut self.held {
            // The wall clock may have jumped, as after a sleep: the window that was spent is over before its time here.
            if lease.closed.is_some() && self.quotas.balance(tenant, at) >= REOPENS_AT {
                lease.closed = None;
                scheduler.window_reopened(tenant);
            }
            let left = lease.expires.saturating_sub(now);
            if left == Nanos(0) || left > nanos(LEASE_TIME / 2) {
                continue;
            }
            let books = scheduler.grant_books(tenant);
            let used = books.spent != lease.spent || books.reserved > Nanos(0);
            // A lease of windows that are over is left to expire.
            if used && self.quotas.extends(tenant, at, lease.epoch) {
                (lease.spent, lease.expires) = (books.spent, now.saturating_add(nanos(LEASE_TIME)));
                let grant = Grant { epoch: lease.epoch, amount: Nanos(0), expires: lease.expires };
                scheduler.grant(now, tenant, grant);
            }
        }
    }

    /// How long the tenant's window is spent yet, as far as that is known.
    pub(super) fn retry_after(&self, tenant: TenantId, now: Nanos) -> Duration {
        let closed = self.held.get(&tenant).and_then(|lease| lease.closed);
        closed.map_or(RETRY_UNKNOWN, |until| Duration::from_nanos(until.saturating_sub(now).0))
    }
}

fn nanos(time: Duration) -> Nanos {
    Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Since 1970, in UTC; a clock before that is at its beginning.
fn unix_time(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use weir_scheduler::{
        Admission, Config, DeviceId, Event, ModelId, ModelLimits, RowOutcome, StepPlan, StepReport, Tenant, Work,
    };

    use super::*;

    const A: TenantId = TenantId(1);

    /// A scheduler with one metered tenant, whose quota is so many milliseconds an hour.
    fn rig(millis: u64) -> (Scheduler, Leases) {
        let mut scheduler = Scheduler::new(Config::default());
        scheduler.add_tenant(A, Tenant { metered: true, ..Tenant::default() });
        let quota = DeviceQuota { hour: Some(Duration::from_millis(millis)), ..DeviceQuota::default() };
        (scheduler, Leases::new(&[TenantSpec { quota, ..TenantSpec::named("a") }]))
    }

    /// Half past some hour.
    fn wall(plus: Duration) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + 1_800) + plus
    }

    fn returned(scheduler: &mut Scheduler) -> Vec<(u64, Nanos)> {
        let mut events = Vec::new();
        scheduler.take_events(&mut events);
        let back = |event: Event| match event {
            Event::GrantReturned { epoch, amount, .. } => Some((epoch, amount)),
            _ => None,
        };
        events.into_iter().filter_map(back).collect()
    }

    #[test]
    fn grants_never_exceed_the_quota_and_the_end_is_told_with_its_time() {
        let (mut scheduler, mut leases) = rig(10_000);
        let at = wall(Duration::ZERO);
        for _ in 0..100 {
            leases.ask_at(&mut scheduler, Nanos(0), at, A, Nanos::from_millis(5));
        }
        let books = scheduler.grant_books(A);
        assert_eq!(books.granted, Nanos::from_secs(10), "all of it, and no more");
        assert_eq!(leases.retry_after(A, Nanos(0)), Duration::from_secs(1_800), "the hour ends in half an hour");
        assert_eq!(leases.retry_after(TenantId(9), Nanos(0)), RETRY_UNKNOWN);
    }

    #[test]
    fn grants_grow_smaller_as_little_is_left() {
        let (mut scheduler, mut leases) = rig(10_000);
        let mut amounts = Vec::new();
        for _ in 0..30 {
            let before = scheduler.grant_books(A).granted;
            leases.ask_at(&mut scheduler, Nanos(0), wall(Duration::ZERO), A, Nanos::from_millis(5));
            amounts.push((scheduler.grant_books(A).granted - before).0);
        }
        assert!(amounts.is_sorted_by(|a, b| a >= b), "{amounts:?}");
        assert!(amounts[0] == GRANT.0 && amounts[10] < GRANT.0 / 4, "{amounts:?}");
    }

    #[test]
    fn a_lease_nobody_uses_ends_and_its_time_is_there_again() {
        let (mut scheduler, mut leases) = rig(2_000);
        leases.ask_at(&mut scheduler, Nanos(0), wall(Duration::ZERO), A, Nanos::from_millis(5));
        let granted = scheduler.grant_books(A).granted;
        for second in 1..=6 {
            let now = Nanos::from_secs(second);
            leases.look_at(&mut scheduler, now, wall(Duration::from_secs(second)));
            scheduler.tick(now);
        }
        let back = returned(&mut scheduler);
        assert_eq!(back.iter().map(|(_, amount)| amount.0).sum::<u64>(), granted.0);
        for (epoch, amount) in back {
            leases.take_back_at(&mut scheduler, wall(Duration::ZERO), A, epoch, amount);
        }
        assert_eq!(leases.quotas.balance(A, unix_time(wall(Duration::ZERO))), Nanos::from_secs(2));
    }

    #[test]
    fn a_lease_in_use_goes_on_without_a_gap() {
        let (mut scheduler, mut leases) = rig(1_000_000);
        let (device, model) = (DeviceId(0), ModelId(0));
        scheduler.add_device(Nanos(0), device);
        let limits = ModelLimits { blocks: 64, rows_max: 8, tokens_max: 64, context_len_max: 1024 };
        assert!(scheduler.add_model(device, model, limits));
        let work = Work::Generate { prompt_len: 4, new_tokens_max: 200, hashes: Vec::new() };
        let admission = Admission { tenant: A, model, priority: 0, work };
        scheduler.admit(Nanos(0), admission).expect("a place");
        let (mut plan, mut events) = (StepPlan::new(), Vec::new());
        for n in 1..=100 {
            // A step of 10 ms in every 200.
            let now = Nanos::from_millis(200 * n);
            let at = wall(Duration::from_millis(200 * n));
            scheduler.take_events(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::GrantLow { wanted, .. } => leases.ask_at(&mut scheduler, now, at, A, wanted),
                    Event::GrantReturned { .. } => panic!("nothing ends while it is used"),
                    _ => {}
                }
            }
            leases.look_at(&mut scheduler, now, at);
            assert!(scheduler.next_step(now, device, &mut plan), "step {n}");
            let time = Nanos::from_millis(10);
            let report = StepReport { step: plan.step, device_time: time, rows: &[RowOutcome::Advanced] };
            assert!(scheduler.finish_step(now + time, device, &report, &mut events));
        }
        assert_eq!(scheduler.grant_books(A).spent, Nanos::from_secs(1));
    }

    #[test]
    fn a_window_that_was_spent_opens_again_when_enough_of_it_came_back() {
        let (mut scheduler, mut leases) = rig(200);
        let at = wall(Duration::ZERO);
        for _ in 0..9 {
            leases.ask_at(&mut scheduler, Nanos(0), at, A, Nanos::from_millis(200));
        }
        assert!(leases.held[&A].closed.is_some());
        leases.take_back_at(&mut scheduler, at, A, 1, Nanos::from_millis(99));
        assert!(leases.held[&A].closed.is_some());
        leases.take_back_at(&mut scheduler, at, A, 1, Nanos::from_millis(1));
        assert!(leases.held[&A].closed.is_none());
        assert_eq!(leases.retry_after(A, Nanos(0)), RETRY_UNKNOWN);
    }

    #[test]
    fn the_next_window_is_another_lease() {
        let (mut scheduler, mut leases) = rig(10_000);
        leases.ask_at(&mut scheduler, Nanos(0), wall(Duration::ZERO), A, Nanos::from_millis(5));
        let later = wall(Duration::from_secs(1_800));
        leases.ask_at(&mut scheduler, Nanos::from_secs(1), later, A, Nanos::from_millis(5));
        assert_eq!(returned(&mut scheduler), [(1, GRANT)], "what was left of the hour that is over");
        leases.take_back_at(&mut scheduler, later, A, 1, GRANT);
        assert_eq!(leases.quotas.balance(A, unix_time(later)), Nanos::from_secs(8), "is not the new hour's");
    }
}
