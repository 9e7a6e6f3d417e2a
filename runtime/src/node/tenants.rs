//! Tenants in the engine thread: one has another plan, or is new.

use super::{Node, message::PutTenant};
use crate::{engine::tenant_line, recorder::Note};

impl Node {
    pub(super) fn put_tenant(&mut self, put: PutTenant) {
        let PutTenant { number, spec, plan, done } = put;
        self.scheduler.set_tenant(number, plan);
        self.put_quota(number, &spec);
        self.books.put_tenant(number, &spec);
        self.records.share_among(self.scheduler.stats().tenants.len());
        if self.recorder.is_on() {
            let (at, tenant) = (self.now().0, number.0.saturating_sub(1));
            self.recorder.note(Note::Tenant { at, tenant, plan: Box::new(tenant_line(&spec)) });
        }
        // Who asked may have gone; it holds all the same.
        let _ = done.send(());
    }
}
