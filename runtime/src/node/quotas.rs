//! What a tenant's quota means for its requests: leases are asked for and given back, and requests end for want of them.

use weir_scheduler::{Nanos, TenantId};

use super::{Live, Node, desk::Told, group::Output, message::GroupId};
use crate::{
    config::TenantSpec, error::FailureKind, metrics::Outcome, quota::ReportOf, stream::FinishReason,
    submission::StopReason,
};

/// What a client is told; how long it has to wait stands beside it.
pub(super) const QUOTA_SPENT: &str =
    "You have used your quota of device time. It begins anew at the time that Retry-After says.";

impl Node {
    pub(super) fn ask_lease(&mut self, tenant: TenantId, wanted: Nanos) {
        let now = self.now();
        self.leases.ask(&mut self.scheduler, now, tenant, wanted);
    }

    /// A tenant has a quota, another one, or none any more.
    pub(super) fn put_quota(&mut self, tenant: TenantId, spec: &TenantSpec) {
        self.leases.put(&mut self.scheduler, tenant, spec);
    }

    pub(super) fn return_lease(&mut self, tenant: TenantId, epoch: u64, amount: Nanos) {
        self.leases.take_back(tenant, epoch, amount);
    }

    /// What came of an order for device time.
    pub(super) fn hear_of_lease(&mut self, told: Told) {
        let now = self.now();
        self.leases.hear(&mut self.scheduler, now, told);
    }

    /// What of a tenant's grants is spent by now, to be written beside a bill.
    pub(super) fn grant_reports(&self, tenant: TenantId) -> Vec<ReportOf> {
        self.leases.reports(&self.scheduler, tenant)
    }

    /// Lets grants expire and waits end, and extends the leases that are in use.
    pub(super) fn look_at_leases(&mut self) {
        let now = self.now();
        // First what expires: it is given back in the same look.
        self.scheduler.tick(now);
        self.settle();
        self.leases.look(&mut self.scheduler, now);
        self.settle();
    }

    /// Whether something was granted since it was last asked, so that who had nothing to run may have now.
    pub(super) fn has_given(&mut self) -> bool {
        self.settle();
        std::mem::take(&mut self.leases.gave)
    }

    /// The quota ends a choice or a list: what text was held back is told.
    pub(super) fn cut(&mut self, live: &mut Live) {
        let Some(group) = self.groups.get_mut(&live.group).filter(|group| group.is_wanted()) else { return };
        group.cut.push(live.choice);
        group.usage.stop = Some(StopReason::Quota);
        if let (Output::Text(outbox), Some(sequence)) = (&group.output, &mut live.sequence) {
            let rest = sequence.cut();
            if !rest.text.is_empty() || !rest.logprobs.is_empty() {
                // A reader for whom this is too much learns of the end all the same.
                let _ = outbox.delta(live.choice, &rest.text, sequence.drawn(), rest.logprobs);
            }
        }
    }

    /// All of a request has ended, some of it by its quota. A text that was begun ends there; a list without all its vectors is of no
    /// use, and what never began is told when to come back.
    pub(super) fn end_cut(&mut self, id: GroupId) {
        let now = self.now();
        let Some(group) = self.groups.get_mut(&id).filter(|group| group.is_wanted()) else { return };
        match &group.output {
            Output::Text(outbox) if group.started => {
                group.cut.iter().for_each(|&choice| outbox.finished(choice, FinishReason::Length));
            }
            _ => {
                let retry_after = self.leases.retry_after(group.tenant, now);
                if group.fail(FailureKind::QuotaSpent { retry_after }, QUOTA_SPENT) {
                    self.metrics.ended(Outcome::Quota);
                }
            }
        }
    }
}
