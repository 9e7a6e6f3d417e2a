//! Tenants on the callers' side: a list that grows, and whose plans change, while requests read it.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::oneshot;
use weir_scheduler::{PoolId, Tenant, TenantId};

use super::{Engine, nanos};
use crate::{
    config::{DeviceConfig, DeviceQuota, QuotaTerms, RequestQuota, TenantSpec},
    error::EngineError,
    node::message::{NodeMessage, PutTenant},
    recorder::TenantLine,
    store::Limits,
};

/// All tenants, in the order of their numbers, which begin at 1.
pub(super) struct Tenants {
    list: RwLock<Arc<[Arc<TenantSpec>]>>,
    /// Held while one is put: numbers are places in the list.
    putting: tokio::sync::Mutex<()>,
}

impl Tenants {
    pub(super) fn new(specs: Vec<TenantSpec>) -> Tenants {
        Tenants { list: RwLock::new(specs.into_iter().map(Arc::new).collect()), putting: tokio::sync::Mutex::default() }
    }

    fn all(&self) -> Arc<[Arc<TenantSpec>]> {
        // A list is put in place whole, so whoever panicked left a good one.
        self.list.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a tenant at its place, or behind the last.
    fn put(&self, at: usize, spec: Arc<TenantSpec>) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        let mut longer: Vec<_> = list.to_vec();
        match longer.get_mut(at) {
            Some(place) => *place = spec,
            None => longer.push(spec),
        }
        *list = longer.into();
    }
}

impl Engine {
    /// A tenant's number, by its name.
    pub fn tenant(&self, name: &str) -> Option<TenantId> {
        let index = self.shared.tenants.all().iter().position(|tenant| tenant.name == name)?;
        Some(TenantId(index as u32 + 1))
    }

    /// A tenant's name; nothing for the operator, who has none.
    pub fn tenant_name(&self, tenant: TenantId) -> Option<String> {
        let index = (tenant.0 as usize).checked_sub(1)?;
        self.shared.tenants.all().get(index).map(|tenant| tenant.name.clone())
    }

    /// How many tenants there are: the last one's number.
    pub fn tenants_len(&self) -> u32 {
        self.shared.tenants.all().len() as u32
    }

    /// Changes the plan of a tenant, or adds one with the next number, while everybody's work goes on. What the tenant has at work
    /// stays at work, under the new plan. Returns when the plan holds.
    ///
    /// # Errors
    /// [`EngineError::Config`]: the number is neither known nor the next, another tenant has the name, or no device is in the
    /// pool. Nothing has changed then. [`EngineError::Executor`]: the engine has ended.
    pub async fn put_tenant(&self, number: TenantId, spec: TenantSpec) -> Result<(), EngineError> {
        let engine = self.clone();
        // A caller that goes away must not leave the thread and this list with different plans.
        let put = tokio::spawn(async move { engine.put_tenant_now(number, spec).await }).await;
        put.unwrap_or_else(|error| Err(EngineError::Executor(error.to_string())))
    }

    async fn put_tenant_now(&self, number: TenantId, spec: TenantSpec) -> Result<(), EngineError> {
        let shared = &self.shared;
        let _turn = shared.tenants.putting.lock().await;
        let tenants = shared.tenants.all();
        let at = (number.0 as usize).checked_sub(1).filter(|at| *at <= tenants.len());
        let at = at.ok_or_else(|| {
            EngineError::Config(format!(
                "tenant number {} is not known, and the next is {}",
                number.0,
                tenants.len() + 1
            ))
        })?;
        if tenants.iter().enumerate().any(|(other, tenant)| other != at && tenant.name == spec.name) {
            return Err(EngineError::Config(format!("two tenants are named `{}`", spec.name)));
        }
        shared.pools.check(&spec)?;
        let (plan, spec) = (plan(&spec, &shared.pools), Arc::new(spec));
        let (done, holds) = oneshot::channel();
        let ended = || EngineError::Executor("the engine has ended".into());
        let put = PutTenant { number, spec: spec.clone(), plan, done };
        shared.inbox.send(NodeMessage::PutTenant(Box::new(put))).map_err(|_| ended())?;
        holds.await.map_err(|_| ended())?;
        shared.quotas.put(number, &spec);
        shared.tenants.put(at, spec);
        shared.metrics.name_tenants(shared.tenants.all().iter().map(|tenant| tenant.name.clone()).collect());
        Ok(())
    }
}

impl TenantSpec {
    /// A tenant of the store, by its id there, its plan's name, and its limits as they hold (its plan's, with its own in their place). What they leave
    /// open is as in [`TenantSpec::named`].
    pub fn of_limits(id: &str, plan: &str, limits: &Limits) -> TenantSpec {
        let default = TenantSpec::named(id);
        let time = |ns: Option<u64>| ns.map(Duration::from_nanos);
        TenantSpec {
            plan: plan.to_owned(),
            weight: limits.weight.unwrap_or(default.weight),
            queue_len_max: limits.queue_len_max.unwrap_or(default.queue_len_max),
            running_max: limits.running_max.unwrap_or(default.running_max),
            kv_blocks_floor: limits.kv_blocks_floor.unwrap_or(default.kv_blocks_floor),
            kv_blocks_ceiling: limits.kv_blocks_ceiling,
            cache_blocks_floor: limits.cache_blocks_floor.unwrap_or(default.cache_blocks_floor),
            cache_blocks_ceiling: limits.cache_blocks_ceiling,
            ttft_target: limits.ttft_target_us.map(Duration::from_micros),
            itl_target: limits.itl_target_us.map(Duration::from_micros),
            priority_ceiling: limits.priority_ceiling.unwrap_or(default.priority_ceiling),
            pool: limits.pool.clone(),
            pool_only: limits.pool_only.unwrap_or(default.pool_only),
            quota: DeviceQuota {
                hour: time(limits.device_ns_per_hour),
                day: time(limits.device_ns_per_day),
                month: time(limits.device_ns_per_month),
            },
            requests: RequestQuota {
                hour: limits.requests_per_hour,
                day: limits.requests_per_day,
                month: limits.requests_per_month,
            },
            terms: QuotaTerms {
                burst_percent: limits.burst_percent.unwrap_or(0),
                carry_over_percent: limits.carry_over_percent.unwrap_or(0),
                soft_limit_percent: limits.soft_limit_percent.unwrap_or(0),
                shadow: limits.shadow.unwrap_or(false),
            },
            ..default
        }
    }
}

/// The pools of the devices, in the order of their ids.
pub(super) struct Pools(Vec<Option<String>>);

impl Pools {
    pub(super) fn of(devices: &[DeviceConfig]) -> Pools {
        Pools(devices.iter().map(|device| device.pool.clone()).collect())
    }

    /// The number of a pool: the first device that is in it.
    fn id(&self, name: Option<&str>) -> Option<PoolId> {
        let name = name?;
        let first = self.0.iter().position(|pool| pool.as_deref() == Some(name))?;
        Some(PoolId(first as u16))
    }

    /// The pool of each device.
    pub(super) fn of_devices(&self) -> Vec<Option<PoolId>> {
        self.0.iter().map(|pool| self.id(pool.as_deref())).collect()
    }

    /// What a tenant names must be there.
    pub(super) fn check(&self, tenant: &TenantSpec) -> Result<(), EngineError> {
        match tenant.pool.as_deref().filter(|pool| self.id(Some(pool)).is_none()) {
            Some(pool) => {
                let message = format!("no device is in pool `{pool}`, which tenant `{}` names", tenant.name);
                Err(EngineError::Config(message))
            }
            None => Ok(()),
        }
    }
}

/// What the scheduler acts on of a tenant.
pub(super) fn plan(tenant: &TenantSpec, pools: &Pools) -> Tenant {
    Tenant {
        weight: tenant.weight,
        queue_len_max: tenant.queue_len_max,
        running_max: tenant.running_max,
        kv_blocks_floor: tenant.kv_blocks_floor,
        kv_blocks_ceiling: tenant.kv_blocks_ceiling,
        metered: tenant.quota != DeviceQuota::default(),
        cache_blocks_floor: tenant.cache_blocks_floor,
        cache_blocks_ceiling: tenant.cache_blocks_ceiling,
        ttft_target: tenant.ttft_target.map(nanos),
        itl_target: tenant.itl_target.map(nanos),
        priority_ceiling: tenant.priority_ceiling,
        pool: pools.id(tenant.pool.as_deref()),
        pool_only: tenant.pool_only,
    }
}

/// What a trace says of a tenant.
pub(crate) fn tenant_line(tenant: &TenantSpec) -> TenantLine {
    let time = |time: Option<Duration>| time.map(|time| nanos(time).0);
    TenantLine {
        name: tenant.name.clone(),
        weight: tenant.weight,
        queue_len_max: tenant.queue_len_max,
        running_max: tenant.running_max,
        priority_ceiling: tenant.priority_ceiling,
        kv_blocks_floor: tenant.kv_blocks_floor,
        kv_blocks_ceiling: tenant.kv_blocks_ceiling,
        cache_blocks_floor: tenant.cache_blocks_floor,
        cache_blocks_ceiling: tenant.cache_blocks_ceiling,
        ttft_target: time(tenant.ttft_target),
        itl_target: time(tenant.itl_target),
        pool: tenant.pool.clone(),
        pool_only: tenant.pool_only,
        device_time_per_hour: time(tenant.quota.hour),
        device_time_per_day: time(tenant.quota.day),
        device_time_per_month: time(tenant.quota.month),
    }
}
