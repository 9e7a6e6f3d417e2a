//! A metered tenant's purse: the device time it may still spend, and what became of the rest.
//!
//! ```text
//! granted = returned + spent + reserved + left
//! ```
//!
//! holds after every call; none of the five is ever negative, so `spent <= granted` holds exactly. `left` belongs to one grant, the one
//! with the highest epoch so far. When it ends (it expires, is taken back, or a later epoch begins) `left` goes back at once, and what its
//! rows in flight reserved goes back, as far as they did not need it, when they report.

use crate::ids::{Nanos, StepId};

/// What a device's time counts in grants: so many millionths of it. Grants are in the time of a device whose rate is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate(u32);

impl Rate {
    pub(crate) const ONE: Rate = Rate(1_000_000);

    /// No device is for nothing.
    pub(crate) fn from_ppm(ppm: u32) -> Rate {
        Rate(ppm.max(1))
    }

    pub(crate) fn is_at_most_one(self) -> bool {
        self.0 <= Rate::ONE.0
    }

    /// What device time costs, rounded up.
    #[inline]
    pub(crate) fn cost(self, time: Nanos) -> Nanos {
        match self {
            Rate::ONE => time,
            Rate(ppm) => Nanos(saturated((u128::from(time.0) * u128::from(ppm)).div_ceil(1_000_000))),
        }
    }

    /// The device time that costs no more than that.
    #[inline]
    pub(crate) fn time(self, cost: Nanos) -> Nanos {
        match self {
            Rate::ONE => cost,
            Rate(ppm) => Nanos(saturated(u128::from(cost.0) * 1_000_000 / u128::from(ppm))),
        }
    }
}

fn saturated(nanos: u128) -> u64 {
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// Device time kept for a row in flight, at the rate of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserve {
    /// Of the grant it was taken from.
    pub(crate) epoch: u64,
    pub(crate) amount: Nanos,
    pub(crate) rate: Rate,
}

/// Device time leased to a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which lease this is (more) time of. Lower than one seen before, it comes back whole; higher, it ends the one before.
    pub epoch: u64,
    /// How much.
    pub amount: Nanos,
    /// Until when rows may be started against the lease, all of it. A later grant of the same epoch can only put it off.
    pub expires: Nanos,
}

/// What was granted to a tenant since the start, and what became of it:
/// `granted == returned + spent + reserved + left`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantBooks {
    /// The sum of all grants.
    pub granted: Nanos,
    /// Given back, each time with an [`crate::Event::GrantReturned`].
    pub returned: Nanos,
    /// Billed against grants.
    pub spent: Nanos,
    /// Kept for rows in flight.
    pub reserved: Nanos,
    /// Of that, what is of leases before the last one.
    pub reserved_before: Nanos,
    /// For rows to come.
    pub left: Nanos,
    /// Its work waits for a grant: no row of it could be started since this moment.
    pub dry_since: Option<Nanos>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Purse {
    epoch: u64,
    /// A grant is at hand; without one nothing is left.
    open: bool,
    expires: Nanos,
    left: Nanos,
    /// Below this the next grant is asked for.
    low: Nanos,
    /// It was asked for.
    asked: bool,
    granted: Nanos,
    returned: Nanos,
    spent: Nanos,
    reserved: Nanos,
    reserved_before: Nanos,
    /// The step for which a row already reserved the constant.
    constant_in: StepId,
    /// Since when no row could reserve what it needs, the least that one of them wanted, and the step this was last noted in.
    dry_since: Option<Nanos>,
    wanted: Nanos,
    wanted_in: StepId,
    /// When the wait of the first of its requests is over.
    wait_ends: Nanos,
    /// No more comes until then.
    spent_until: Option<Nanos>,
}

impl Purse {
    pub(crate) fn books(&self) -> GrantBooks {
        GrantBooks {
            granted: self.granted,
            returned: self.returned,
            spent: self.spent,
            reserved: self.reserved,
            reserved_before: self.reserved_before,
            left: self.left,
            dry_since: self.dry_since.filter(|_| self.is_dry()),
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn left(&self) -> Nanos {
        self.left
    }

    /// Takes a grant in; the lease before it, if it was another, is to be closed first. False for one that comes too late.
    pub(crate) fn put(&mut self, now: Nanos, grant: &Grant) -> bool {
        self.granted += grant.amount;
        if grant.epoch < self.epoch || grant.expires <= now {
            self.returned += grant.amount;
            return false;
        }
        let before = if self.open { self.expires } else { Nanos::ZERO };
        if grant.epoch > self.epoch {
            self.reserved_before = self.reserved;
        }
        (self.epoch, self.open, self.expires) = (grant.epoch, true, grant.expires.max(before));
        self.left += grant.amount;
        if grant.amount > Nanos::ZERO {
            self.low = Nanos(grant.amount.0 / 2);
            (self.asked, self.dry_since, self.spent_until) = (false, None, None);
        }
        true
    }

    /// Ends the grant at hand and returns what is left of it.
    pub(crate) fn close(&mut self) -> Nanos {
        (self.open, self.asked) = (false, false);
        let left = core::mem::replace(&mut self.left, Nanos::ZERO);
        self.returned += left;
        left
    }

    /// Whether the grant at hand has run out of time.
    pub(crate) fn has_expired(&self, now: Nanos) -> bool {
        self.open && self.expires <= now
    }

    /// Whether a row of this step has to reserve the step's constant, too: one row of the tenant does so for all of them.
    pub(crate) fn reserves_constant(&self, step: StepId) -> bool {
        self.constant_in != step
    }

    /// Keeps `amount` for a row on a device of this rate; it must be there.
    pub(crate) fn reserve(&mut self, step: StepId, amount: Nanos, rate: Rate) -> Reserve {
        assert!(self.open && amount <= self.left, "a row starts only against grant held for it");
        self.left = self.left - amount;
        self.reserved += amount;
        self.constant_in = step;
        self.dry_since = None;
        Reserve { epoch: self.epoch, amount, rate }
    }

    /// A row wanted so much and could not have it.
    pub(crate) fn refuse(&mut self, now: Nanos, step: StepId, wanted: Nanos, wait_max: Nanos) {
        // A try that gave no row at all is followed by another for the same step. What was wanted before and is left by now says nothing.
        let least = if self.wanted_in == step && self.is_dry() { self.wanted.min(wanted) } else { wanted };
        (self.wanted, self.wanted_in) = (least, step);
        if self.dry_since.is_none() {
            self.dry_since = Some(now);
            self.wait_ends = now.saturating_add(wait_max);
        }
    }

    /// Pays what a row's time costs from its reserve and, if that is too small, from what is left of the same grant. Returns what was paid and what
    /// goes back at once because the grant has ended.
    pub(crate) fn pay(&mut self, reserve: Reserve, bill: Nanos) -> (Nanos, Nanos) {
        let current = self.open && reserve.epoch == self.epoch;
        let more = if current { self.left } else { Nanos::ZERO };
        let paid = bill.min(reserve.amount.saturating_add(more));
        self.reserved = self.reserved - reserve.amount;
        if reserve.epoch != self.epoch {
            self.reserved_before = self.reserved_before - reserve.amount;
        }
        self.spent += paid;
        if current {
            self.left = self.left + reserve.amount - paid;
            return (paid, Nanos::ZERO);
        }
        let back = reserve.amount - paid;
        self.returned += back;
        (paid, back)
    }

    /// Whether the next grant is to be asked for now; says so once.
    pub(crate) fn asks(&mut self) -> bool {
        let asks = !self.asked && self.spent_until.is_none();
        self.asked |= asks;
        asks
    }

    pub(crate) fn is_low(&self) -> bool {
        self.left <= self.low
    }

    /// No row of the tenant can start: what is left is less than the least that one wanted.
    pub(crate) fn is_dry(&self) -> bool {
        self.dry_since.is_some() && self.left < self.wanted
    }

    /// The same for good: nothing comes back from rows in flight, and no grant will come.
    pub(crate) fn is_broke(&self) -> bool {
        self.is_dry() && self.reserved == Nanos::ZERO && self.spent_until.is_some()
    }

    pub(crate) fn set_spent(&mut self, until: Nanos) {
        self.spent_until = Some(until);
    }

    /// Until when the window is spent.
    pub(crate) fn spent_until(&self) -> Option<Nanos> {
        self.spent_until
    }

    /// A new window may have begun: grants can be asked for again. True if that is news.
    pub(crate) fn forget_spent(&mut self, now: Nanos) -> bool {
        let over = self.spent_until.is_some_and(|until| until <= now);
        if over {
            self.reopen();
        }
        over
    }

    pub(crate) fn reopen(&mut self) {
        (self.spent_until, self.asked) = (None, false);
    }

    /// Since when its work waits, if the wait of one of its requests is over.
    pub(crate) fn overdue(&mut self, now: Nanos) -> Option<Nanos> {
        let since = self.dry_since.filter(|_| self.wait_ends <= now)?;
        if !self.is_dry() {
            self.dry_since = None;
        }
        self.is_dry().then_some(since)
    }

    /// Nobody waits any more; whoever comes next asks, and waits, anew.
    pub(crate) fn end_wait(&mut self) {
        (self.dry_since, self.asked) = (None, false);
    }

    pub(crate) fn set_wait_end(&mut self, at: Nanos) {
        self.wait_ends = at;
    }

    /// The next moment at which time alone changes something.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        let expires = self.open.then_some(self.expires);
        let waits = self.dry_since.map(|_| self.wait_ends);
        [expires, waits, self.spent_until].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(epoch: u64, amount: u64, expires: u64) -> Grant {
        Grant { epoch, amount: Nanos(amount), expires: Nanos(expires) }
    }

    fn adds_up(purse: &Purse) {
        let books = purse.books();
        assert_eq!(books.granted, books.returned + books.spent + books.reserved + books.left);
    }

    #[test]
    fn a_bill_above_the_reserve_takes_what_is_left_and_no_more() {
        let mut purse = Purse::default();
        assert!(purse.put(Nanos(0), &grant(1, 100, 50)));
        let first = purse.reserve(StepId(1), Nanos(40), Rate::ONE);
        let second = purse.reserve(StepId(1), Nanos(50), Rate::ONE);
        assert_eq!(purse.pay(first, Nanos(70)), (Nanos(50), Nanos(0)));
        assert_eq!(purse.pay(second, Nanos(20)), (Nanos(20), Nanos(0)));
        adds_up(&purse);
        assert_eq!((purse.books().spent, purse.left()), (Nanos(70), Nanos(30)));
    }

    #[test]
    fn the_reserve_of_a_grant_that_ended_pays_and_the_rest_of_it_goes_back() {
        let mut purse = Purse::default();
        purse.put(Nanos(0), &grant(1, 100, 50));
        let (first, second) =
            (purse.reserve(StepId(1), Nanos(40), Rate::ONE), purse.reserve(StepId(1), Nanos(10), Rate::ONE));
        assert_eq!(purse.close(), Nanos(50));
        assert!(purse.put(Nanos(60), &grant(2, 100, 90)));
        assert_eq!((purse.books().reserved, purse.books().reserved_before), (Nanos(50), Nanos(50)));
        let third = purse.reserve(StepId(2), Nanos(20), Rate::ONE);
        assert_eq!((purse.books().reserved, purse.books().reserved_before), (Nanos(70), Nanos(50)));
        assert_eq!(purse.pay(third, Nanos(0)), (Nanos(0), Nanos(0)));
        assert_eq!(purse.pay(first, Nanos(30)), (Nanos(30), Nanos(10)));
        assert_eq!(purse.books().reserved_before, Nanos(10));
        assert_eq!(purse.pay(second, Nanos(30)), (Nanos(10), Nanos(0)));
        adds_up(&purse);
        assert_eq!(purse.left(), Nanos(100), "the new grant is not touched");
    }

    #[test]
    fn what_another_row_wanted_before_something_came_back_makes_nobody_less_dry() {
        let mut purse = Purse::default();
        purse.put(Nanos(0), &grant(1, 100, 50));
        let row = purse.reserve(StepId(6), Nanos(70), Rate::ONE);
        purse.refuse(Nanos(1), StepId(7), Nanos(50), Nanos(10));
        assert!(purse.is_dry());
        purse.pay(row, Nanos(30));
        assert_eq!((purse.left(), purse.is_dry()), (Nanos(70), false));
        // Nothing else ran, so it is still that step for which one wants more.
        purse.refuse(Nanos(2), StepId(7), Nanos(80), Nanos(10));
        assert!(purse.is_dry());
        // Of those that are refused side by side, the least one is who waits.
        purse.refuse(Nanos(2), StepId(7), Nanos(90), Nanos(10));
        purse.close();
        purse.put(Nanos(3), &grant(2, 85, 50));
        purse.refuse(Nanos(3), StepId(7), Nanos(90), Nanos(10));
        assert!(purse.is_dry());
    }

    #[test]
    fn time_and_cost_are_each_others_inverse_and_never_in_the_tenants_favour() {
        for ppm in [1, 999, 10_000, 333_333, 999_999, 1_000_000, 1_000_001, 7_500_000, u32::MAX] {
            let rate = Rate::from_ppm(ppm);
            for time in [0, 1, 2, 999, 1_000_000, 123_456_789_012, u64::MAX / 5_000] {
                let cost = rate.cost(Nanos(time));
                assert!(rate.time(cost).0 >= time, "{ppm} {time}");
                assert!(rate.cost(rate.time(cost)) <= cost, "{ppm} {time}");
            }
        }
        assert_eq!(Rate::from_ppm(0).cost(Nanos(5)), Nanos(1));
        assert_eq!(Rate::from_ppm(250_000).cost(Nanos(10)), Nanos(3));
    }

    #[test]
    fn a_grant_that_comes_too_late_goes_back_whole() {
        let mut purse = Purse::default();
        assert!(purse.put(Nanos(0), &grant(2, 100, 50)));
        assert!(!purse.put(Nanos(10), &grant(1, 70, 90)), "an older epoch");
        assert!(!purse.put(Nanos(50), &grant(2, 30, 50)), "expired");
        adds_up(&purse);
        assert_eq!((purse.left(), purse.books().returned), (Nanos(100), Nanos(100)));
    }
}
