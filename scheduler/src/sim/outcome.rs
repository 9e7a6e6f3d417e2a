//! What came of a simulated history.

use alloc::vec::Vec;

use crate::device::DeviceAccounts;
use crate::event::End;
use crate::ids::{Nanos, TenantId};

/// One tenant's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantOutcome {
    /// Who.
    pub tenant: TenantId,
    /// Accepted requests.
    pub accepted: u64,
    /// Refused requests.
    pub rejected: u64,
    /// Settled requests by [`End`]: finished, cancelled, failed, lost, out of quota, too large.
    pub ends: [u64; 6],
    /// The sum of the bills.
    pub charge: Nanos,
    /// From admission to the first drawn id or embedded item, of each request that got so far, in ascending order.
    pub waits: Vec<Nanos>,
    /// Prompt tokens found in the cache.
    pub cached_tokens: u64,
    /// Prompt tokens of settled requests, found in the cache or not.
    pub prompt_tokens: u64,
    /// Ids drawn by settled requests.
    pub drawn_tokens: u64,
}

impl TenantOutcome {
    pub(super) fn new(tenant: TenantId) -> TenantOutcome {
        TenantOutcome {
            tenant,
            accepted: 0,
            rejected: 0,
            ends: [0; 6],
            charge: Nanos::ZERO,
            waits: Vec::new(),
            cached_tokens: 0,
            prompt_tokens: 0,
            drawn_tokens: 0,
        }
    }

    /// The wait that `per_mille` of the requests stay under; zero if there was none.
    pub fn wait(&self, per_mille: usize) -> Nanos {
        let at = self.waits.len() * per_mille / 1_000;
        self.waits.get(at.min(self.waits.len().saturating_sub(1))).copied().unwrap_or(Nanos::ZERO)
    }
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incidents {
    /// Requests cancelled by their clients.
    pub cancels: u64,
    /// Rows that failed.
    pub failed_rows: u64,
    /// Steps that took many times as long.
    pub slow_steps: u64,
    /// Reports that never came.
    pub lost_reports: u64,
    /// Devices lost, for whatever reason.
    pub losses: u64,
    /// Requests taken up again after that.
    pub resumed: u64,
    /// Suspects that could not run alone, by their tenants' limits, and went on in company.
    pub passed_over: u64,
    /// Requests that were charged on a device and went to another.
    pub moves: u64,
    /// Devices drained.
    pub drains: u64,
    /// Plans changed.
    pub plan_changes: u64,
    /// Leases given to metered tenants, and parts of them that came back: unused, expired or taken back.
    pub grants: u64,
    /// See `grants`.
    pub grants_returned: u64,
    /// Leases taken back.
    pub grants_revoked: u64,
    /// Leases asked for in vain, because the window was spent.
    pub windows_spent: u64,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// When the last event happened.
    pub end: Nanos,
    /// Events, and so checks.
    pub events: u64,
    /// Steps run to their end.
    pub steps: u64,
    /// Rows in them.
    pub rows: u64,
    /// New tokens in them.
    pub tokens: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// What went wrong.
    pub incidents: Incidents,
    /// The most that anybody's service, divided by its weight, ever ran ahead of that of a tenant that had work waiting all the while.
    pub gap_max: Nanos,
    /// The greatest bound that was promised for it.
    pub gap_bound: Nanos,
    /// The most of the bound that was ever used, per mille.
    pub gap_per_mille: u64,
    /// The most of the longest possible wait that a request ever waited, per mille; see `waits` in the source.
    pub wait_per_mille: u64,
    /// The most requests of its own tenant that ever started before a request although they should have come later.
    pub overtaken_max: u64,
    /// The most that such a number came to of what it may be, in thousandths.
    pub overtaken_per_mille: u64,
    /// The longest time in which a device that takes newcomers stood idle while requests waited.
    pub idle_waiting_max: Nanos,
    /// By tenant, in order of first appearance.
    pub tenants: Vec<TenantOutcome>,
    /// By device, at the end.
    pub devices: Vec<DeviceAccounts>,
    /// A digest of every plan and event in order: equal histories have equal digests.
    pub digest: u64,
}

impl Outcome {
    /// Accepted requests of all tenants.
    pub fn accepted(&self) -> u64 {
        self.tenants.iter().map(|tenant| tenant.accepted).sum()
    }

    /// Requests of all tenants that ended so.
    pub fn ended(&self, end: End) -> u64 {
        self.tenants.iter().map(|tenant| tenant.ends[end as usize]).sum()
    }
}
