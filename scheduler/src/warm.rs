//! Requests that hit the cache and go before all others of a step; see [`crate::kin`] for why and how far.

use crate::fill::Fill;
use crate::pick::Start;
use crate::request::NONE;
use crate::share::{Virtual, virtual_time};
use crate::standing::least;

/// Tenants that a step passes over here because they may start nothing, by a limit or for want of a grant.
const ASIDE_MAX: usize = 8;

impl Fill<'_> {
    /// Lets requests go first that hit the cache and whose tenants are less than a quantum ahead of those that are short; see
    /// [`crate::kin`].
    pub(crate) fn start_kin(&mut self) {
        let Some(least) = self.device.least.filter(|_| self.device.alone.is_none() && !self.device.alone_waits) else {
            return;
        };
        let until = least.saturating_add(virtual_time(self.locality_quantum, 1)).min(self.rival);
        // Tenants that may start nothing for now; a few of them.
        let (mut aside, mut refused) = ([NONE; ASIDE_MAX], 0);
        let mut tenant = self.device.models[self.m].kin.last;
        while self.rows_left > 0 && self.tokens_left > 0 && refused < aside.len() && !self.rows_taken() {
            tenant = tenant.filter(|tenant| self.may_start_kin(*tenant, until)).or_else(|| self.next_kin(until));
            let Some(next) = tenant else { break };
            let slot = self.device.models[self.m].kin.next(next).filter(|_| self.may_start_kin(next, until));
            let Some(slot) = slot else {
                self.model().kin.ahead.remove(next);
                aside[refused] = next;
                refused += 1;
                tenant = None;
                continue;
            };
            let by_rank = self.requests.get(slot).queue_pos == 0;
            match self.start(slot) {
                Start::Row(_) => {
                    self.device.models[self.m].kin.started(self.requests, slot, by_rank);
                    self.note_reached(next);
                }
                _ => break,
            }
        }
        for tenant in aside.into_iter().filter(|tenant| *tenant != NONE) {
            self.model().kin.file(tenant);
        }
    }

    fn may_start_kin(&self, tenant: u32, until: Virtual) -> bool {
        let account = self.tenants.get(tenant);
        !account.is_dry()
            && account.may_start()
            && account.service.virtual_time() < until
            && self.device.models[self.m].kin.next(tenant).is_some()
    }

    /// The tenant with the least time of those with requests that hit the cache.
    fn next_kin(&mut self, until: Virtual) -> Option<u32> {
        self.device.touched += 1;
        let first = least(&mut self.device.models[self.m].kin.ahead, self.tenants);
        first.filter(|(time, _)| *time < until).map(|(_, tenant)| tenant)
    }
}
