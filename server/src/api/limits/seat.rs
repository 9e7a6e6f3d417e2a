//! A connection's place among its tenant's.

use std::sync::{Arc, Mutex, PoisonError, atomic::Ordering};

use weir_runtime::TenantId;

use super::TenantRates;

/// One for each connection, in the extensions of all of its requests. Whose it is shows with its first request, and may
/// change: a proxy sends several tenants' over one.
#[derive(Debug, Clone, Default)]
pub struct Seat(Arc<Mutex<Option<Taken>>>);

#[derive(Debug)]
struct Taken {
    tenant: TenantId,
    rates: Arc<TenantRates>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.rates.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Seat {
    /// Counts the connection as this tenant's, unless it has `max` others.
    pub(super) fn take(&self, tenant: TenantId, rates: &Arc<TenantRates>, max: Option<u32>) -> bool {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.as_ref().is_some_and(|taken| taken.tenant == tenant) {
            return true;
        }
        let next = Taken { tenant, rates: rates.clone() };
        let others = rates.connections.fetch_add(1, Ordering::Relaxed);
        // Dropped where there is no place, which takes it off the count again.
        *taken = max.is_none_or(|max| others < max).then_some(next);
        taken.is_some()
    }

    /// Whether it counts as anybody's.
    pub(super) fn is_taken(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}
