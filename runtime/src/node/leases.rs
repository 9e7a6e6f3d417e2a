//! Leases of device time: who has a quota gets it in grants of a few device seconds.
//!
//! The scheduler runs a metered tenant's rows only against what was granted to it (`weir_scheduler`, `grant.rs`). Here its questions become
//! [`Order`]s, which are answered elsewhere (`desk.rs`), by the store or out of this process's memory: nothing here waits. There is one ask
//! for each tenant at a time, made when its first request comes and again when half of a grant is used, so that in the normal course the
//! next grant is here before the one at hand is empty.
//!
//! A *lease* ([`Lease`]) is the time that was taken out of one set of windows. Its grants are reported, and extended, twice a second for as
//! long as they are used; what is not extended ends by itself, a skew earlier here than for everybody else, and what was not used of it
//! goes back to the windows that it came from. When a window ends the next grant is of another lease, so every nanosecond is spent in one
//! window; rows in flight at that moment belong to the window in which they began.
//!
//! *The machine's clock is set.* What is held was taken by another time: it is reported and given back before more is asked for.
//!
//! *The store is out of reach.* What is held may be used until it ends. Then the tenant waits as one without a grant
//! (`Config::quota_wait_max`), and is asked for again every half second, until it has waited for longer than anybody may.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use weir_scheduler::{Grant, Nanos, Scheduler, TenantId};

use super::{
    desk::{Order, Told},
    lease::{Lease, Part, Terms},
};
use crate::{
    config::TenantSpec,
    quota::{Answer, Ask, LIFE, Limits, Period, ReportOf, Reported, SKEW, Taken, Unit, Want, micros},
};

/// A grant for each device, where there is plenty: a few of its steps, and little enough to be gone for [`LIFE`].
const GRANT: Nanos = Nanos::from_secs(2);
/// No grant is smaller, unless no more is left.
const GRANT_LEAST: Nanos = Nanos::from_millis(50);
/// Leases are looked at this often: then they are reported, extended and given back.
const LOOK_INTERVAL: Nanos = Nanos::from_millis(500);
/// A window that was spent opens again when this much came back to it. Less is not worth a request.
const REOPENS_AT: Nanos = Nanos::from_millis(100);
/// A window that is spent is asked about again this often, if there are requests for it: others may have given something back.
const PROBE_INTERVAL: Nanos = Nanos::from_secs(2);
/// An ask that came to nothing is made again for so long. Nobody waits for a grant for longer.
const WANT_TIME: Nanos = Nanos::from_secs(12);
/// Of a lease that is out of no window.
const NO_WINDOWS: [i64; 3] = [i64::MIN; 3];
/// A clock that has drifted by less was not set.
const STEP_US: u64 = SKEW.as_micros() as u64 / 2;
/// What a client is told to wait that got no grant, though its window is not known to be spent.
pub(super) const RETRY_UNKNOWN: Duration = Duration::from_secs(10);

/// What is held for the tenants of this node.
pub(super) struct Leases {
    orders: flume::Sender<Order>,
    /// Those that have, or had, a quota.
    held: BTreeMap<TenantId, Held>,
    /// What is asked for where there is plenty.
    grant: Nanos,
    /// A list of reports is under way.
    reporting: bool,
    /// Grants that came too late to be used.
    unused: Vec<i64>,
    looked: Nanos,
    /// Something was granted: a device that had nothing to do may have now.
    pub(super) gave: bool,
}

/// What is held for one tenant.
#[derive(Debug, Default)]
struct Held {
    name: Arc<str>,
    /// None if it is not metered any more.
    limits: Option<Limits>,
    /// By the scheduler's epochs; the last one is the one at hand.
    leases: BTreeMap<u64, Lease>,
    epoch: u64,
    /// An ask is under way.
    asking: bool,
    /// What is needed, and since when, until there is an answer.
    wants: Option<(Nanos, Nanos)>,
    closed: Option<Closed>,
    /// Something may have come back to the closed window, and somebody would use it.
    probe: bool,
    probed: Nanos,
}

/// A window is spent.
#[derive(Debug, Clone, Copy)]
struct Closed {
    /// Until when, by the engine's clock and by the machine's.
    until: Nanos,
    until_us: i64,
    /// What came back since then.
    back: u64,
}

impl Leases {
    /// For the tenants that have a quota, on so many devices.
    pub(super) fn new(tenants: &[TenantSpec], devices: usize, orders: flume::Sender<Order>) -> Leases {
        let grant = Nanos(GRANT.0.saturating_mul(devices.max(1) as u64));
        let (held, unused, looked) = (BTreeMap::new(), Vec::new(), Nanos::ZERO);
        let mut leases = Leases { orders, held, grant, reporting: false, unused, looked, gave: false };
        for (id, tenant) in (1..).map(TenantId).zip(tenants) {
            leases.note(id, tenant);
        }
        leases
    }

    fn note(&mut self, tenant: TenantId, spec: &TenantSpec) {
        let limits = spec.limits(Unit::DeviceNs);
        if limits.is_some() || self.held.contains_key(&tenant) {
            let held = self.held.entry(tenant).or_default();
            (held.name, held.limits) = (spec.name.as_str().into(), limits);
        }
    }

    /// A tenant has a quota, another one, or none any more. What it has taken stays taken.
    pub(super) fn put(&mut self, scheduler: &mut Scheduler, tenant: TenantId, spec: &TenantSpec) {
        self.note(tenant, spec);
        let Some(held) = self.held.get_mut(&tenant) else { return };
        if held.closed.take().is_some() {
            scheduler.window_reopened(tenant);
        }
        if held.limits.is_none() {
            held.wants = None;
            held.end_last();
            scheduler.revoke_grant(tenant);
        }
    }

    /// The scheduler's question: a row (or request) of the tenant's takes `wanted`, and little or nothing is left.
    pub(super) fn ask(&mut self, scheduler: &mut Scheduler, now: Nanos, tenant: TenantId, wanted: Nanos) {
        self.ask_at(scheduler, now, SystemTime::now(), tenant, wanted);
    }

    fn ask_at(&mut self, scheduler: &mut Scheduler, now: Nanos, at: SystemTime, tenant: TenantId, wanted: Nanos) {
        let Some(held) = self.held.get_mut(&tenant) else { return };
        held.wants = Some((wanted.max(held.wants.map_or(Nanos::ZERO, |(wanted, _)| wanted)), now));
        self.send_ask(scheduler, now, micros_of(at), tenant, Nanos(1));
    }

    fn send_ask(&mut self, scheduler: &mut Scheduler, now: Nanos, at_us: i64, tenant: TenantId, floor: Nanos) {
        let Some(held) = self.held.get_mut(&tenant).filter(|held| !held.asking) else { return };
        let Some(limits) = held.limits else { return };
        let ahead_us = ahead_us(at_us, now);
        if held.leases.values().any(|lease| lease.ahead_us.abs_diff(ahead_us) > STEP_US && !lease.parts.is_empty()) {
            // The machine's clock was set. By its new time what is held may be over, and the ask would close it with what it does not know to be
            // spent; so that is said first.
            held.end_last();
            return scheduler.revoke_grant(tenant);
        }
        let wanted = held.wants.map_or(Nanos::ZERO, |(wanted, _)| wanted);
        // Twice what is wanted, for the next row wants it, too.
        let least = wanted.saturating_add(wanted).max(GRANT_LEAST);
        let want = Want { wanted: signed(self.grant.max(least)), least: signed(least), floor: signed(floor) };
        held.asking = true;
        self.order(Order::Ask { tenant, name: held_name(&self.held, tenant), limits, want, sent: now, at_us });
    }

    /// A request was refused since the window is spent.
    pub(super) fn was_refused(&mut self, tenant: TenantId) {
        if let Some(held) = self.held.get_mut(&tenant).filter(|held| held.closed.is_some()) {
            held.probe = true;
        }
    }

    /// What a lease did not use.
    pub(super) fn take_back(&mut self, tenant: TenantId, epoch: u64, amount: Nanos) {
        if let Some(lease) = self.held.get_mut(&tenant).and_then(|held| held.leases.get_mut(&epoch)) {
            lease.returned += amount;
        }
    }

    /// What came of an order.
    pub(super) fn hear(&mut self, scheduler: &mut Scheduler, now: Nanos, told: Told) {
        match told {
            Told::Taken { tenant, ask, sent, taken } => self.taken(scheduler, now, tenant, &ask, sent, taken),
            Told::Reported { sent, reports, reported } => {
                self.reporting = false;
                for (report, reported) in reports.into_iter().zip(reported.into_iter().flatten()) {
                    self.reported(scheduler, now, sent, report, reported);
                }
            }
        }
    }

    fn taken(
        &mut self,
        scheduler: &mut Scheduler,
        now: Nanos,
        tenant: TenantId,
        ask: &Ask,
        sent: Nanos,
        taken: Option<Taken>,
    ) {
        let Some(held) = self.held.get_mut(&tenant) else { return };
        held.asking = false;
        match taken {
            Some(Taken::Answer(Answer::Granted { amount, .. })) => {
                let usable = sent.saturating_add(nanos(LIFE - SKEW));
                if usable <= now || held.limits.is_none() {
                    return self.unused.push(ask.id);
                }
                let amount = u64::try_from(amount).unwrap_or(0);
                let books = scheduler.grant_books(tenant);
                let windows = Period::ALL.map(|period| period.begin(ask.at_us));
                held.make_room(now, windows, usable);
                let epoch = held.epoch;
                // The books are those of the lease at hand, before this grant.
                let spent = held.leases.get(&epoch).map_or(Nanos::ZERO, |lease| lease.spent(&books, true));
                let lease = held.leases.entry(epoch).or_default();
                (lease.windows, lease.ahead_us) = (windows, ahead_us(ask.at_us, sent));
                lease.granted += Nanos(amount);
                lease.parts.push(Part { id: ask.id, amount, usable, told: 0 });
                lease.expires = lease.expires.max(lease.usable(spent).unwrap_or(usable));
                (held.wants, held.closed, held.probe) = (None, None, false);
                scheduler.grant(now, tenant, Grant { epoch, amount: Nanos(amount), expires: lease.expires });
                self.gave = true;
            }
            Some(Taken::Answer(Answer::Spent { until_us, .. })) => {
                let left = u64::try_from(until_us.saturating_sub(ask.at_us)).unwrap_or(0);
                let until = sent.saturating_add(Nanos(left.saturating_mul(1_000)));
                held.wants = None;
                held.closed = Some(Closed { until, until_us, back: 0 });
                scheduler.window_spent(now, tenant, until);
            }
            // Asked for again when leases are looked at. In shadow mode nobody waits for that: it is a grant that no window knows of.
            Some(Taken::Closed | Taken::Foreign) | None => {
                if held.limits.is_some_and(|limits| limits.shadow) {
                    let expires = now.saturating_add(nanos(LIFE - SKEW));
                    held.end_last();
                    held.epoch += 1;
                    let lease = Lease { windows: NO_WINDOWS, granted: self.grant, expires, ..Lease::default() };
                    held.leases.insert(held.epoch, lease);
                    held.wants = None;
                    scheduler.grant(now, tenant, Grant { epoch: held.epoch, amount: self.grant, expires });
                    self.gave = true;
                }
            }
        }
    }

    fn reported(&mut self, scheduler: &mut Scheduler, now: Nanos, sent: Nanos, report: ReportOf, reported: Reported) {
        let of = |lease: &Lease| lease.parts.iter().any(|part| part.id == report.id);
        let mut all = self.held.iter_mut();
        let found = all.find_map(|(id, held)| {
            let epoch = held.leases.iter().find(|(_, lease)| of(lease)).map(|(epoch, _)| *epoch)?;
            Some((*id, held, epoch))
        });
        let Some((tenant, held, epoch)) = found else { return };
        let is_last = epoch == held.epoch;
        let Some(lease) = held.leases.get_mut(&epoch) else { return };
        let Some(part) = lease.parts.iter_mut().find(|part| part.id == report.id) else { return };
        if reported.open {
            part.told = part.told.max(u64::try_from(report.spent).unwrap_or(0));
            if report.expires_us > 0 {
                part.usable = part.usable.max(sent.saturating_add(nanos(LIFE - SKEW)));
            }
            let books = scheduler.grant_books(tenant);
            let usable = lease.usable(lease.spent(&books, is_last)).filter(|usable| *usable > lease.expires);
            if let Some(expires) = usable.filter(|_| !lease.ended) {
                lease.expires = expires;
                scheduler.grant(now, tenant, Grant { epoch, amount: Nanos::ZERO, expires });
            }
            return;
        }
        let back = part.amount.saturating_sub(u64::try_from(report.spent).unwrap_or(0));
        lease.forget(report.id, report.spent);
        if report.closes {
            if lease.ended && lease.parts.is_empty() {
                held.leases.remove(&epoch);
            }
            // It is there for whoever asks now.
            if let Some(closed) = &mut held.closed {
                closed.back += back;
                if closed.back >= REOPENS_AT.0 {
                    held.closed = None;
                    scheduler.window_reopened(tenant);
                }
            }
        } else if is_last && !lease.ended {
            // By somebody's clock it was over, and others have what it had left.
            lease.ended = true;
            scheduler.revoke_grant(tenant);
        }
    }

    /// Reports and extends the leases that are in use, gives back what has ended, and asks again for what did not come.
    pub(super) fn look(&mut self, scheduler: &mut Scheduler, now: Nanos) {
        self.look_at(scheduler, now, SystemTime::now());
    }

    fn look_at(&mut self, scheduler: &mut Scheduler, now: Nanos, at: SystemTime) {
        if now < self.looked.saturating_add(LOOK_INTERVAL) {
            return;
        }
        self.looked = now;
        let at_us = micros_of(at);
        let windows = Period::ALL.map(|period| period.begin(at_us));
        let (mut reports, mut asks) = (Vec::new(), Vec::new());
        for (&tenant, held) in &mut self.held {
            // The wall clock may have jumped, as after a sleep: the window that was spent is over before its time here.
            if held.closed.is_some_and(|closed| closed.until_us <= at_us) {
                held.closed = None;
                scheduler.window_reopened(tenant);
            }
            if held.wants.is_some_and(|(_, since)| now >= since.saturating_add(WANT_TIME)) {
                held.wants = None;
            }
            if held.wants.is_some() {
                asks.push((tenant, Nanos(1)));
            } else if held.probe && now >= held.probed.saturating_add(PROBE_INTERVAL) {
                (held.probe, held.probed) = (false, now);
                asks.push((tenant, REOPENS_AT));
            }
            // One list at a time: reports are totals, and so the next one says all of it.
            if !self.reporting {
                held.reports(scheduler, tenant, now, (at_us, windows), &mut reports);
            }
        }
        for (tenant, floor) in asks {
            self.send_ask(scheduler, now, at_us, tenant, floor);
        }
        if !self.reporting {
            reports.extend(self.unused.drain(..).map(given_back));
        }
        if !reports.is_empty() {
            self.reporting = true;
            self.order(Order::Report { reports, sent: now });
        }
    }

    /// When leases are to be looked at, if there is anything to be seen.
    pub(super) fn next_look(&self) -> Option<Nanos> {
        let busy = |held: &Held| !held.leases.is_empty() || held.wants.is_some() || held.probe;
        let busy = !self.unused.is_empty() || self.held.values().any(busy);
        busy.then(|| self.looked.saturating_add(LOOK_INTERVAL))
    }

    /// What of a tenant's grants is spent by now and not yet known to the store, to be written beside a bill.
    pub(super) fn reports(&self, scheduler: &Scheduler, tenant: TenantId) -> Vec<ReportOf> {
        let Some(held) = self.held.get(&tenant) else { return Vec::new() };
        let books = scheduler.grant_books(tenant);
        let terms = Terms { expires_us: None, closes: false };
        let of = |(epoch, lease): (&u64, &Lease)| {
            let spent = lease.spent(&books, *epoch == held.epoch);
            // Closing one is for those who also forget it.
            lease.reports(spent, terms).map(|report| ReportOf { closes: false, ..report }).collect::<Vec<_>>()
        };
        held.leases.iter().flat_map(of).collect()
    }

    /// Gives back all that is not spent, when nothing runs any more.
    pub(super) fn end(&mut self, scheduler: &Scheduler) {
        let mut reports: Vec<ReportOf> = self.unused.drain(..).map(given_back).collect();
        for (&tenant, held) in &mut self.held {
            let books = scheduler.grant_books(tenant);
            for (epoch, lease) in &held.leases {
                // What is left to the scheduler is not spent, though it has not given it back.
                let spent = lease.spent(&books, *epoch == held.epoch);
                reports.extend(lease.reports(spent, Terms { expires_us: None, closes: true }));
            }
            held.leases.clear();
        }
        if !reports.is_empty() {
            self.order(Order::ReportLast { reports });
        }
    }

    /// How long the tenant's window is spent yet, as far as that is known.
    pub(super) fn retry_after(&self, tenant: TenantId, now: Nanos) -> Duration {
        let closed = self.held.get(&tenant).and_then(|held| held.closed);
        closed.map_or(RETRY_UNKNOWN, |closed| Duration::from_nanos(closed.until.saturating_sub(now).0))
    }

    fn order(&self, order: Order) {
        // Who serves goes last.
        let _ = self.orders.send(order);
    }
}

impl Held {
    /// A grant of these windows has come. It is more of the lease at hand, if that is of the same and does not outlive it; otherwise it is
    /// of a new lease, with which the one at hand ends.
    fn make_room(&mut self, now: Nanos, windows: [i64; 3], usable: Nanos) {
        let last = self.leases.get(&self.epoch);
        let joins =
            |lease: &Lease| !lease.ended && lease.windows == windows && now < lease.expires && lease.expires <= usable;
        if !last.is_some_and(joins) {
            self.end_last();
            self.epoch += 1;
        }
    }

    fn end_last(&mut self) {
        if let Some(lease) = self.leases.get_mut(&self.epoch) {
            lease.ended = true;
        }
    }

    fn reports(
        &mut self,
        scheduler: &Scheduler,
        tenant: TenantId,
        now: Nanos,
        (at_us, windows): (i64, [i64; 3]),
        reports: &mut Vec<ReportOf>,
    ) {
        let books = scheduler.grant_books(tenant);
        let last = self.epoch;
        self.leases.retain(|_, lease| !(lease.ended && lease.parts.is_empty()));
        for (epoch, lease) in &mut self.leases {
            let is_last = *epoch == last;
            lease.ended |= lease.expires <= now;
            let spent = lease.spent(&books, is_last);
            let used = spent != lease.looked || is_last && books.reserved > books.reserved_before;
            lease.looked = spent;
            // A lease of windows that are over is left to expire.
            let extends = used && !lease.ended && lease.windows == windows;
            let closes = lease.ended && lease.is_settled(&books, is_last);
            let expires_us = extends.then(|| at_us.saturating_add(micros(LIFE)));
            reports.extend(lease.reports(spent, Terms { expires_us, closes }));
        }
    }
}

fn held_name(held: &BTreeMap<TenantId, Held>, tenant: TenantId) -> Arc<str> {
    held.get(&tenant).map(|held| held.name.clone()).unwrap_or_default()
}

fn given_back(id: i64) -> ReportOf {
    ReportOf { id, spent: 0, expires_us: 0, closes: true }
}

/// The windows of device time; nothing, if it is not metered.
/// What the machine's clock says more than the engine's.
fn ahead_us(at_us: i64, now: Nanos) -> i64 {
    at_us.saturating_sub(signed(now) / 1_000)
}

fn signed(nanos: Nanos) -> i64 {
    i64::try_from(nanos.0).unwrap_or(i64::MAX)
}

fn nanos(time: Duration) -> Nanos {
    Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Since 1970, in UTC; a clock before that is at its beginning.
fn micros_of(at: SystemTime) -> i64 {
    micros(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests;
