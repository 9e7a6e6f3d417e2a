//! The configuration's tenants, which are put into the store once. From then on the store rules.

use std::time::Duration;

use anyhow::Context;
use weir_runtime::{
    TenantSpec,
    store::{Actor, Limits, NewTenant, Store, StoreError, Tenant, TenantSettings},
};

use crate::config::TenantTable;

/// The plan of tenants that came from the configuration: no limits but their own.
const OWN: &str = "own";

/// Makes those tenants that the store does not have, in the order of the file; of one that it has, and that the file says something
/// else of, a line says so. Any number of servers may do this at once.
pub async fn import(store: &Store, tables: &[TenantTable], at_us: i64) -> anyhow::Result<()> {
    let mut missing = false;
    for table in tables {
        match store.tenant(&table.name).await {
            Ok(known) => compare(store, table, &known).await?,
            Err(StoreError::Missing { .. }) => missing = true,
            Err(error) => return Err(error.into()),
        }
    }
    if !missing {
        return Ok(());
    }
    let mut change = store.change(&Actor::system(), at_us).await?;
    if let Err(StoreError::Missing { .. }) = change.tx().plan(OWN).await {
        change.create_plan(OWN, &Limits::default()).await?;
    }
    for table in tables {
        // Another server may have been faster.
        if let Err(StoreError::Missing { .. }) = change.tx().tenant(&table.name).await {
            let new = NewTenant { id: table.name.clone(), settings: settings(table) };
            let made = change.create_tenant(&new).await;
            made.with_context(|| format!("tenant `{}` of the configuration", table.name))?;
            tracing::info!(tenant = table.name, "put a tenant of the configuration into the store");
        }
    }
    Ok(change.commit().await?)
}

/// Says so if the file means something else than the store.
async fn compare(store: &Store, table: &TenantTable, known: &Tenant) -> anyhow::Result<()> {
    let plan = store.read().await?.plan(&known.settings.plan).await?;
    let wanted = settings(table);
    let has = Limits::effective(&plan.limits, &known.settings.overrides);
    // What the engine makes of both, so that a limit that says its default is no difference.
    let spec = |limits: &Limits| TenantSpec::of_limits(&table.name, OWN, limits);
    let same = spec(&wanted.overrides) == spec(&has)
        && (&wanted.models, &wanted.ip_allow, &wanted.domain)
            == (&known.settings.models, &known.settings.ip_allow, &known.settings.domain);
    if !same {
        tracing::warn!(
            tenant = table.name,
            "the configuration says something else of a tenant than the store: the store counts (`weir tenant set` changes it)"
        );
    }
    Ok(())
}

/// A tenant of the configuration as the store has it.
pub(super) fn settings(table: &TenantTable) -> TenantSettings {
    let nanos = |seconds: Option<f64>| {
        seconds.map(|s| u64::try_from(Duration::from_secs_f64(s).as_nanos()).unwrap_or(u64::MAX))
    };
    let micros = |time: Option<Duration>| time.map(|t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX));
    let overrides = Limits {
        device_ns_per_hour: nanos(table.device_seconds_per_hour),
        device_ns_per_day: nanos(table.device_seconds_per_day),
        device_ns_per_month: nanos(table.device_seconds_per_month),
        running_max: table.running_max,
        queue_len_max: table.queue_len_max,
        kv_blocks_floor: table.kv_blocks_floor,
        kv_blocks_ceiling: table.kv_blocks_ceiling,
        cache_blocks_floor: table.cache_blocks_floor,
        cache_blocks_ceiling: table.cache_blocks_ceiling,
        ttft_target_us: micros(table.ttft_target.map(|span| span.0)),
        itl_target_us: micros(table.itl_target.map(|span| span.0)),
        weight: table.weight,
        priority_ceiling: table.priority_ceiling,
        pool: table.pool.clone(),
        pool_only: table.pool_only,
        ..Limits::default()
    };
    TenantSettings {
        overrides,
        models: table.models.clone(),
        ip_allow: table.ip_allow.iter().flat_map(|list| &list.0).map(ToString::to_string).collect(),
        domain: table.domain.as_ref().map(|domain| domain.to_ascii_lowercase()),
        ..TenantSettings::named(&table.name, OWN)
    }
}
