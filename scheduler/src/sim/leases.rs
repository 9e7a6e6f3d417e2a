//! Grants for metered tenants, as a store would give them: out of a window's limit, some time after they were asked for, for some time
//! only; some answers take long, some leases are taken back. What is checked is kept here and not in the scheduler's books.

use alloc::vec::Vec;

use super::world::{Happening, World};
use crate::ids::Nanos;
use crate::purse::Grant;

/// How device time is leased to metered tenants; without an amount there is none to be had.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leases {
    /// Device time in a lease, unless more is wanted or less is left of the window.
    pub amount: Nanos,
    /// How long it may be used.
    pub life: Nanos,
    /// How long the store takes to answer, and, per mille of answers, a hundred times as long.
    pub delay: Nanos,
    /// See `delay`.
    pub late_per_mille: u32,
    /// How long a window is, and what each tenant may spend in one.
    pub window: Nanos,
    /// See `window`.
    pub limit: Nanos,
    /// The mean gap between two leases taken back.
    pub revoke_gap: Nanos,
}

/// What the store knows of one tenant.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Balance {
    epoch: u64,
    /// All that was ever granted, and all that was ever given back.
    granted: Nanos,
    returned: Nanos,
    /// The window that was last looked at, and what is out in it.
    window: u64,
    out: Nanos,
    /// What the tenant had been charged when the window began.
    charged: Nanos,
    /// A lease was asked for and has not been given.
    pub(super) asked: bool,
}

impl World<'_> {
    pub(super) fn metered(&self) -> Vec<usize> {
        (0..self.plans.len()).filter(|place| self.plans[*place].metered).collect()
    }

    /// The scheduler asks for a lease.
    pub(super) fn ask_lease(&mut self, place: usize, wanted: Nanos) {
        if core::mem::replace(&mut self.balances[place].asked, true) {
            return;
        }
        let leases = &self.scenario.leases;
        let slow = self.rng.per_mille(leases.late_per_mille);
        let delay = Nanos(leases.delay.0 * if slow { 100 } else { 1 });
        self.plan(self.now + delay, Happening::Grant(place, wanted));
    }

    /// The store answers.
    pub(super) fn give_lease(&mut self, place: usize, wanted: Nanos) {
        let leases = self.scenario.leases;
        let tenant = self.outcome.tenants[place].tenant;
        let charged = self.scheduler.tenant_charge(tenant);
        let balance = &mut self.balances[place];
        balance.asked = false;
        let window = self.now.0 / leases.window.0.max(1);
        if window != balance.window {
            // What is still out counts in the new window, for it may be spent in it.
            let out = balance.granted - balance.returned - charged;
            (balance.window, balance.out, balance.charged) = (window, out, charged);
        }
        let amount = leases.amount.max(wanted).min(leases.limit.saturating_sub(balance.out));
        if amount == Nanos::ZERO {
            self.outcome.incidents.windows_spent += 1;
            return self.scheduler.window_spent(self.now, tenant, Nanos((window + 1) * leases.window.0));
        }
        // Every other lease is more of the one before.
        balance.epoch += self.rng.bits() & 1;
        balance.granted += amount;
        balance.out += amount;
        let grant = Grant { epoch: balance.epoch, amount, expires: self.now + leases.life };
        self.outcome.incidents.grants += 1;
        self.scheduler.grant(self.now, tenant, grant);
    }

    /// A part of a lease comes back.
    pub(super) fn take_back(&mut self, place: usize, amount: Nanos) {
        let balance = &mut self.balances[place];
        balance.returned += amount;
        balance.out = balance.out.saturating_sub(amount);
        self.outcome.incidents.grants_returned += 1;
    }

    /// Some lease is taken back.
    pub(super) fn revoke(&mut self) {
        let metered = self.metered();
        if !metered.is_empty() {
            let place = metered[self.rng.between(0, metered.len() as u32 - 1) as usize];
            self.scheduler.revoke_grant(self.outcome.tenants[place].tenant);
            self.outcome.incidents.grants_revoked += 1;
        }
    }

    /// Sees to it that the scheduler is told when time alone changes something.
    pub(super) fn plan_deadline(&mut self) {
        let due = self.scheduler.next_deadline().filter(|at| *at != self.deadline);
        if let Some(at) = due {
            self.deadline = at;
            self.plan(at.max(self.now), Happening::Deadline);
        }
    }

    /// Nobody is charged for more than was granted and not given back, in all and in a window.
    pub(super) fn check_grants(&self) {
        for place in (0..self.plans.len()).filter(|place| self.plans[*place].metered) {
            let (balance, tenant) = (&self.balances[place], self.outcome.tenants[place].tenant);
            let charged = self.scheduler.tenant_charge(tenant);
            assert!(charged + balance.returned <= balance.granted, "{tenant:?} spends more than it was granted");
            let books = self.scheduler.grant_books(tenant);
            assert_eq!(
                (books.granted, books.returned),
                (balance.granted, balance.returned),
                "what {tenant:?} was granted"
            );
            assert_eq!(books.spent, charged, "{tenant:?} pays from its grants");
            let in_window = charged - balance.charged;
            assert!(in_window <= self.scenario.leases.limit, "{tenant:?} spends more than its window's limit");
        }
    }
}
