//! Reserved devices: pools, which plans buy.
//!
//! A device may belong to a pool. It then does the work of those tenants only whose plan names that pool, and the operator's. A device without
//! a pool is common: everybody's, except that a plan can keep to its pool ([`crate::Tenant::pool_only`]), for tenants whose work must not
//! share a device with that of others. A plan with a pool goes where it is expected to end first, to its pool where that is no later, and so leaves the
//! common devices to those who have no other.
//!
//! This holds wherever a request is bound to a device: at the door, when a waiting one is pulled or its device is drained, and when
//! it goes on after a loss. A plan that changes its pool changes it for what comes; what waits or runs stays where it is.

use crate::device::Device;
use crate::ids::{DeviceId, PoolId, TenantId};
use crate::scheduler::Scheduler;
use crate::tenant::Account;

impl Device {
    /// Whether the tenant's work may run here.
    pub(crate) fn serves(&self, account: &Account) -> bool {
        if account.id == TenantId::OPERATOR {
            return true;
        }
        match self.pool {
            None => account.plan.pool.is_none() || !account.plan.pool_only,
            Some(_) => self.pool == account.plan.pool,
        }
    }
}

impl Scheduler {
    /// Puts a device into a pool, or makes it common. Lasts over losses of the device.
    pub fn set_pool(&mut self, id: DeviceId, pool: Option<PoolId>) {
        if let Some(d) = self.device(id) {
            self.devices[d].pool = pool;
            // Whom it serves has floors there, and nobody else.
            for tenant in 0..self.tenants.len() as u32 {
                self.devices[d].set_plan(&self.tenants, tenant);
            }
        }
    }

    /// The pool that the device belongs to.
    pub fn pool_of(&self, id: DeviceId) -> Option<PoolId> {
        self.device(id).and_then(|d| self.devices[d].pool)
    }
}
