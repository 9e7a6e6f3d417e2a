//! `/admin/v1/tenants`: made, looked at, changed, suspended, activated. None is ever removed: bills name it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    extract::{Path, Request, State},
    response::Response,
};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use weir_runtime::{
    TenantId,
    store::{Limits, NewTenant, Plan, Status, Tenant, TenantSettings, Tx},
};

use super::{
    super::{
        edit::{Edit, Page, Wanted, patched},
        keys::{Key, Owner, make},
        quotas::{QuotaList, report},
    },
    Admin, respond,
};
use crate::error::{ApiError, ErrorBody};

/// The plan of those for whom no other was named.
const PLAN: &str = "starter";

/// A tenant as operators see it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantBody {
    /// Its name in every place, for ever.
    id: String,
    /// `tenant`.
    object: &'static str,
    /// Its number for the scheduler.
    number: u32,
    /// For people.
    name: String,
    /// The host name by which a trusted proxy means it.
    domain: Option<String>,
    /// `pending`, `trial`, `active`, `suspended` or `deleted`.
    status: &'static str,
    /// Why it is pending or suspended.
    reason: Option<String>,
    /// Its plan's name.
    plan: String,
    /// What is different from the plan.
    #[schema(value_type = Object)]
    overrides: Limits,
    /// The limits that hold: the plan's with the overrides in their place.
    #[schema(value_type = Object)]
    limits: Limits,
    /// The models it may use; null is all.
    models: Option<BTreeSet<String>>,
    /// The model it gets where it names none, by what is asked for.
    default_models: BTreeMap<String, String>,
    /// By model, what its price is multiplied by, in millionths.
    price_ppm: BTreeMap<String, u64>,
    /// Features that are on or off for it.
    flags: BTreeMap<String, bool>,
    /// Addresses and networks it may come from; empty is anywhere.
    ip_allow: Vec<String>,
    /// Days for which request logs and kept bodies stay.
    retention_days: Option<u32>,
    /// Whether bodies are kept.
    retain_bodies: bool,
    /// Whatever the platform wants to remember.
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    /// Grows by one with each change; to be sent back with the next.
    version: i64,
    /// When it was made, in microseconds since 1970.
    created_us: i64,
    /// When it was last changed.
    updated_us: i64,
    /// Its first key, in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Key>,
}

impl TenantBody {
    fn new(tenant: Tenant, plan: &Limits) -> Self {
        let s = tenant.settings;
        TenantBody {
            id: tenant.id,
            object: "tenant",
            number: tenant.number,
            name: s.name,
            domain: s.domain,
            status: s.status.word(),
            reason: s.reason,
            plan: s.plan,
            limits: Limits::effective(plan, &s.overrides),
            overrides: s.overrides,
            models: s.models,
            default_models: s.default_models,
            price_ppm: s.price_ppm,
            flags: s.flags,
            ip_allow: s.ip_allow,
            retention_days: s.retention_days,
            retain_bodies: s.retain_bodies,
            metadata: s.metadata,
            version: tenant.version,
            created_us: tenant.created_us,
            updated_us: tenant.updated_us,
            key: None,
        }
    }

    async fn of(tx: &mut Tx, tenant: Tenant) -> Result<Self, ApiError> {
        let plan: Plan = tx.plan(&tenant.settings.plan).await?;
        Ok(TenantBody::new(tenant, &plan.limits))
    }
}

/// Lists tenants in the order of their ids.
#[utoipa::path(
    get, path = "/admin/v1/tenants", tag = "Tenants",
    params(("after" = Option<String>, Query, description = "`next` of the page before"),
           ("limit" = Option<u32>, Query, description = "Rows of a page")),
    responses((status = 200, description = "A page", body = Page<TenantBody>),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn list(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    let wanted = Wanted::read(request.uri())?;
    let mut tx = admin.app.kept()?.read().await?;
    let mut rows = Vec::new();
    let mut plans: BTreeMap<String, Limits> = BTreeMap::new();
    for tenant in tx.tenants(&wanted.after, wanted.rows()).await? {
        let name = &tenant.settings.plan;
        if !plans.contains_key(name) {
            plans.insert(name.clone(), tx.plan(name).await?.limits);
        }
        let body = TenantBody::new(tenant.clone(), plans.get(name).expect("it was just put there"));
        rows.push(body);
    }
    Ok(respond::json(&wanted.page(rows, |tenant| tenant.id.clone(), |tenant| tenant)))
}

/// Shows a tenant.
#[utoipa::path(
    get, path = "/admin/v1/tenants/{id}", tag = "Tenants", params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The tenant", body = TenantBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn one(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let mut tx = admin.app.kept()?.read().await?;
    let tenant = tx.tenant(&id).await?;
    Ok(respond::json(&TenantBody::of(&mut tx, tenant).await?))
}

/// Shows how full a tenant's windows are: of those that have a limit.
#[utoipa::path(
    get, path = "/admin/v1/tenants/{id}/quotas", tag = "Tenants", params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "Windows", body = QuotaList),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn quotas(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let mut tx = admin.app.kept()?.read().await?;
    let tenant = tx.tenant(&id).await?;
    let plan = tx.plan(&tenant.settings.plan).await?;
    let limits = Limits::effective(&plan.limits, &tenant.settings.overrides);
    Ok(respond::json(&report(&mut tx, &id, &plan.id, &limits).await?))
}

/// Makes a tenant and its first key, or neither.
///
/// The body has `id`, any of a tenant's settings (`plan` is `starter` if nothing is said), and `key`: what is asked of the key, as for
/// `/admin/v1/tenants/{id}/keys`, or null for none.
#[utoipa::path(
    post, path = "/admin/v1/tenants", tag = "Tenants", request_body = TenantBody,
    responses((status = 200, description = "The tenant, with its key in the clear: this once", body = TenantBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn create(mut edit: Edit) -> Result<Response, ApiError> {
    let Some(id) = edit.take_text("id")? else {
        return Err(ApiError::param("id", "missing_required_parameter", "Missing required parameter: 'id'."));
    };
    let key = match edit.body.remove("key") {
        None => Some(Map::new()),
        Some(Value::Null) => None,
        Some(Value::Object(asked)) => Some(asked),
        Some(_) => return Err(ApiError::param("key", "invalid_value", "Invalid 'key': must be an object or null.")),
    };
    let settings = patched(&TenantSettings::named(&id, PLAN), std::mem::take(&mut edit.body))?;
    let mut change = edit.begin().await?;
    let tenant = change.create_tenant(&NewTenant { id, settings }).await?;
    let owner = Owner { tenant: Some(tenant.id.clone()), number: TenantId(tenant.number) };
    let key = match key {
        Some(asked) => Some(make(&edit, &mut change, &owner, asked).await?),
        None => None,
    };
    let body = TenantBody { key, ..TenantBody::of(change.tx(), tenant).await? };
    edit.commit(change).await?;
    Ok(respond::json(&body))
}

/// Changes a tenant's settings: those that are named (RFC 7396). `version`, or If-Match, says what was read before.
#[utoipa::path(
    patch, path = "/admin/v1/tenants/{id}", tag = "Tenants", request_body = TenantBody,
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The tenant", body = TenantBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn change(Path(id): Path<String>, mut edit: Edit) -> Result<Response, ApiError> {
    let version = edit.version()?;
    let mut change = edit.begin().await?;
    let before = change.tx().tenant(&id).await?;
    let settings = patched(&before.settings, std::mem::take(&mut edit.body))?;
    let tenant = change.update_tenant(&id, version, &settings).await?;
    let body = TenantBody::of(change.tx(), tenant).await?;
    edit.commit(change).await?;
    Ok(respond::json(&body))
}

/// Suspends a tenant: its keys read 403, and what runs is cut as `revoked_time` says. The body may hold a `reason`.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{id}/suspend", tag = "Tenants", params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The tenant", body = TenantBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn suspend(Path(id): Path<String>, edit: Edit) -> Result<Response, ApiError> {
    set_status(&id, edit, Status::Suspended).await
}

/// Lets a tenant work, whatever it was before.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{id}/activate", tag = "Tenants", params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The tenant", body = TenantBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn activate(Path(id): Path<String>, edit: Edit) -> Result<Response, ApiError> {
    set_status(&id, edit, Status::Active).await
}

async fn set_status(id: &str, mut edit: Edit, status: Status) -> Result<Response, ApiError> {
    let reason = edit.take_text("reason")?;
    edit.nothing_else()?;
    let mut change = edit.begin().await?;
    let before = change.tx().tenant(id).await?;
    // Twice is as good as once.
    let same = before.settings.status == status && before.settings.reason == reason;
    let tenant = match same {
        true => before,
        false => change.set_status(id, edit.version_or(before.version), status, reason.as_deref()).await?,
    };
    let body = TenantBody::of(change.tx(), tenant).await?;
    if !same {
        edit.commit(change).await?;
    }
    Ok(respond::json(&body))
}
