//! The store's rows, as the engine and identity want them.

use std::collections::{BTreeMap, BTreeSet};

use weir_runtime::{
    TenantId, TenantSpec,
    store::{Key, Limits, Plan, Status, Tenant},
};

use crate::identity::{Account, Cidr, KeyRow, Role, Scopes, SecretHash, Standing, TenantRow, is_key_id};

/// A tenant's limits as they hold.
fn limits(tenant: &Tenant, plan: &Plan) -> Limits {
    Limits::effective(&plan.limits, &tenant.settings.overrides)
}

/// A tenant as the engine plans for it. A pool that is not there is none: its devices were taken away.
pub(super) fn spec(tenant: &Tenant, plan: &Plan, pools: &BTreeSet<String>) -> TenantSpec {
    let mut spec = TenantSpec::of_limits(&tenant.id, &plan.id, &limits(tenant, plan));
    if let Some(pool) = spec.pool.take_if(|pool| !pools.contains(pool)) {
        tracing::warn!(tenant = tenant.id, pool, "a tenant's pool has no devices: it uses the common ones");
        spec.pool_only = false;
    }
    spec
}

/// A tenant as identity wants it. One whose list of addresses cannot be read is not served: without the list it would be
/// open to all.
pub(super) fn tenant_row(tenant: &Tenant, plan: &Plan, faults: &mut Vec<String>) -> TenantRow {
    let settings = &tenant.settings;
    let ranges: Result<Vec<Cidr>, String> = settings.ip_allow.iter().map(|range| range.parse()).collect();
    let standing = match (settings.status, &ranges) {
        (_, Err(error)) => {
            faults.push(format!("tenant `{}` is not served: ip_allow: {error}", tenant.id));
            Standing::Suspended(None)
        }
        (Status::Active | Status::Trial, Ok(_)) => Standing::Active,
        (Status::Pending, Ok(_)) => {
            Standing::Pending(settings.reason.clone().unwrap_or_else(|| "it was not activated.".into()))
        }
        (Status::Suspended | Status::Deleted, Ok(_)) => Standing::Suspended(settings.reason.clone()),
    };
    TenantRow {
        id: tenant.id.clone(),
        number: TenantId(tenant.number),
        standing,
        models: settings.models.clone(),
        ip_allow: ranges.unwrap_or_default(),
        domain: settings.domain.clone(),
        account: Account {
            plan: settings.plan.clone(),
            limits: limits(tenant, plan),
            default_models: settings.default_models.clone(),
            price_ppm: settings.price_ppm.clone(),
            flags: settings.flags.clone(),
            retention_days: settings.retention_days,
            retain_bodies: settings.retain_bodies,
        },
    }
}

/// A key as identity wants it. `None` of those that are nobody's: revoked, of a tenant that is not there, or with an id that is no
/// key's. A scope that nobody here knows does not count.
pub(crate) fn key_row(key: &Key, numbers: &BTreeMap<String, TenantId>) -> Option<KeyRow> {
    let tenant = match &key.tenant {
        Some(tenant) => *numbers.get(tenant)?,
        None => TenantId::OPERATOR,
    };
    if key.revoked_us.is_some() || !is_key_id(&key.id) {
        return None;
    }
    let scopes = key.scopes.iter().filter_map(|word| Scopes::parse([word.as_str()]).ok());
    Some(KeyRow {
        id: key.id.clone(),
        tenant,
        name: key.name.clone(),
        hash: SecretHash::from_bytes(key.hash),
        role: Role::parse(key.role.word())?,
        scopes: scopes.fold(Scopes::NONE, Scopes::or),
        models: key.models.clone(),
        expires_us: key.expires_us,
        created_us: key.created_us,
        created_by: key.created_by.clone(),
        revoked_us: key.revoked_us,
        last_used_us: key.last_used_us,
        replaces: key.replaces.clone(),
    })
}
