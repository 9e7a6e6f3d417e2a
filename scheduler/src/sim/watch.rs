//! What a history looked like while it went on: who had how much of the devices in which window, and who waited all through it.
//!
//! Looked at from outside before every event: a tenant is *backlogged* in a window if at every moment of it some request of its waited
//! for its start. What a step was charged counts in the window in which the step ended.

use alloc::vec::Vec;

use crate::ids::{Nanos, TenantId};
use crate::scheduler::Scheduler;

/// One tenant in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Device time charged to it.
    pub charge: Nanos,
    /// A request of its waited at every moment.
    pub backlogged: bool,
}

/// What happened in one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// When it began.
    pub from: Nanos,
    /// New tokens in the steps that ended in it.
    pub tokens: u64,
    /// Time of all devices, together, in which no step ran.
    pub idle: Nanos,
    /// By tenant, in the order of [`Watch::tenants`].
    pub parts: Vec<Part>,
}

/// An observer of one history.
#[derive(Clone, Debug)]
pub struct Watch {
    /// How long a window is.
    pub len: Nanos,
    /// Everybody but the operator, with their weights.
    pub tenants: Vec<(TenantId, u32)>,
    /// Whole windows, in order.
    pub windows: Vec<Window>,
    /// At the start of the present window: charges by tenant, tokens, idle time.
    before: (Vec<Nanos>, u64, Nanos),
    from: Nanos,
    backlogged: Vec<bool>,
}

impl Watch {
    /// An observer with windows of this length.
    pub fn new(len: Nanos) -> Watch {
        Watch {
            len,
            tenants: Vec::new(),
            windows: Vec::new(),
            before: (Vec::new(), 0, Nanos::ZERO),
            from: Nanos::ZERO,
            backlogged: Vec::new(),
        }
    }

    /// Looks at how things have stood until `now`, when steps of so many tokens have ended; to be called before anything else happens.
    pub(super) fn look(&mut self, now: Nanos, scheduler: &Scheduler, tokens: u64) {
        if self.tenants.is_empty() {
            self.tenants = scheduler.tenants.iter().skip(1).map(|account| (account.id, account.weight())).collect();
            self.before.0 = alloc::vec![Nanos::ZERO; self.tenants.len()];
            self.backlogged = alloc::vec![false; self.tenants.len()];
        }
        for (backlogged, account) in self.backlogged.iter_mut().zip(scheduler.tenants.iter().skip(1)) {
            *backlogged &= account.waiting > 0;
        }
        while now >= self.from + self.len {
            self.close(scheduler, tokens);
        }
    }

    fn close(&mut self, scheduler: &Scheduler, tokens: u64) {
        let until = self.from + self.len;
        let idle: Nanos = scheduler.devices.iter().map(|device| device.accounts(until).idle).sum();
        let accounts = scheduler.tenants.iter().skip(1);
        let mut parts = Vec::with_capacity(self.tenants.len());
        for ((account, before), backlogged) in accounts.zip(&mut self.before.0).zip(&mut self.backlogged) {
            parts.push(Part { charge: account.charge - *before, backlogged: *backlogged });
            *before = account.charge;
            // Nothing has happened since the next window began, as far as that goes.
            *backlogged = account.waiting > 0;
        }
        self.windows.push(Window {
            from: self.from,
            tokens: tokens - self.before.1,
            idle: idle.saturating_sub(self.before.2),
            parts,
        });
        (self.before.1, self.before.2) = (tokens, idle);
        self.from = until;
    }
}
