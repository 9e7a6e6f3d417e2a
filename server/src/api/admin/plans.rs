//! `/admin/v1/plans` and `/admin/v1/prices`: what can be bought, and for how much.

use std::sync::Arc;

use axum::{
    extract::{Path, Request, State},
    response::Response,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use weir_runtime::{
    quota::Period,
    store::{ANY, Limits, Plan, Price},
};

use super::{
    super::edit::{Edit, Page, Wanted, patched},
    Admin, respond,
};
use crate::error::{ApiError, ErrorBody};

/// A plan.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlanBody {
    /// Its name.
    id: String,
    /// `plan`.
    object: &'static str,
    /// What it allows; what is absent has no limit.
    #[schema(value_type = Object)]
    limits: Limits,
    /// Grows by one with each change; to be sent back with the next.
    version: i64,
    /// When it was made, in microseconds since 1970.
    created_us: i64,
    /// When it was last changed.
    updated_us: i64,
}

impl From<Plan> for PlanBody {
    fn from(plan: Plan) -> Self {
        let Plan { id, limits, version, created_us, updated_us } = plan;
        PlanBody { id, object: "plan", limits, version, created_us, updated_us }
    }
}

/// Lists plans in the order of their names.
#[utoipa::path(
    get, path = "/admin/v1/plans", tag = "Plans",
    params(("after" = Option<String>, Query, description = "`next` of the page before"),
           ("limit" = Option<u32>, Query, description = "Rows of a page")),
    responses((status = 200, description = "A page", body = Page<PlanBody>),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn list(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    let wanted = Wanted::read(request.uri())?;
    let rows = admin.app.kept()?.plans(&wanted.after, wanted.rows()).await?;
    Ok(respond::json(&wanted.page(rows, |plan| plan.id.clone(), PlanBody::from)))
}

/// Shows a plan.
#[utoipa::path(
    get, path = "/admin/v1/plans/{id}", tag = "Plans", params(("id" = String, Path, description = "Its name")),
    responses((status = 200, description = "The plan", body = PlanBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn one(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    Ok(respond::json(&PlanBody::from(admin.app.kept()?.plan(&id).await?)))
}

/// What a plan's body may say beside its version.
fn limits(edit: &mut Edit, base: &Limits) -> Result<Limits, ApiError> {
    let patch = match edit.body.remove("limits") {
        None => Map::new(),
        Some(Value::Object(patch)) => patch,
        Some(_) => return Err(ApiError::param("limits", "invalid_value", "Invalid 'limits': must be an object.")),
    };
    edit.nothing_else()?;
    patched(base, patch)
}

/// Makes a plan. The body has `id` and `limits`.
#[utoipa::path(
    post, path = "/admin/v1/plans", tag = "Plans", request_body = PlanBody,
    responses((status = 200, description = "The plan", body = PlanBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn create(mut edit: Edit) -> Result<Response, ApiError> {
    let Some(id) = edit.take_text("id")? else {
        return Err(ApiError::param("id", "missing_required_parameter", "Missing required parameter: 'id'."));
    };
    let limits = limits(&mut edit, &Limits::default())?;
    let mut change = edit.begin().await?;
    let plan = change.create_plan(&id, &limits).await?;
    edit.commit(change).await?;
    Ok(respond::json(&PlanBody::from(plan)))
}

/// Changes those of a plan's limits that are named (RFC 7396), for all of its tenants at once.
#[utoipa::path(
    patch, path = "/admin/v1/plans/{id}", tag = "Plans", request_body = PlanBody,
    params(("id" = String, Path, description = "Its name")),
    responses((status = 200, description = "The plan", body = PlanBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn change(Path(id): Path<String>, mut edit: Edit) -> Result<Response, ApiError> {
    let version = edit.version()?;
    let mut change = edit.begin().await?;
    let before = change.tx().plan(&id).await?;
    let limits = limits(&mut edit, &before.limits)?;
    let plan = change.update_plan(&id, version, &limits).await?;
    edit.commit(change).await?;
    Ok(respond::json(&PlanBody::from(plan)))
}

/// Removes a plan that no tenant ever had.
#[utoipa::path(
    delete, path = "/admin/v1/plans/{id}", tag = "Plans", params(("id" = String, Path, description = "Its name")),
    responses((status = 200, description = "It is gone"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn remove(Path(id): Path<String>, edit: Edit) -> Result<Response, ApiError> {
    edit.nothing_else()?;
    let mut change = edit.begin().await?;
    let version = change.tx().plan(&id).await?.version;
    change.delete_plan(&id, edit.version_or(version)).await?;
    edit.commit(change).await?;
    Ok(respond::json(&json!({"id": id, "object": "plan", "deleted": true})))
}

/// A price of a device hour.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PriceBody {
    /// `price`.
    object: &'static str,
    /// A served name, or `*`.
    model: String,
    /// A plan, or `*`.
    plan: String,
    /// A class of devices, or `*`.
    device_class: String,
    /// From when on, in microseconds since 1970.
    from_us: i64,
    /// Millionths of the currency for 3,600 s of a device of that class.
    micros_per_device_hour: i64,
}

impl From<Price> for PriceBody {
    fn from(price: Price) -> Self {
        let Price { model, plan, device_class, from_us, micros_per_device_hour } = price;
        PriceBody { object: "price", model, plan, device_class, from_us, micros_per_device_hour }
    }
}

/// Lists all prices, those that no longer hold among them.
#[utoipa::path(
    get, path = "/admin/v1/prices", tag = "Prices",
    params(("after" = Option<String>, Query, description = "`next` of the page before"),
           ("limit" = Option<u32>, Query, description = "Rows of a page")),
    responses((status = 200, description = "A page", body = Page<PriceBody>),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn prices(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    let wanted = Wanted::read(request.uri())?;
    // Prices are only ever added, so that a place in their list is a cursor until then.
    let begin = match wanted.after.as_str() {
        "" => 0,
        place => place.parse::<usize>().map_err(|_| {
            ApiError::param("after", "invalid_value", "Invalid 'after': it must be `next` of the page before.")
        })?,
    };
    let rows = admin.app.kept()?.prices().await?.into_iter().enumerate();
    let rows = rows.skip(begin).take(wanted.rows() as usize).collect();
    let page =
        wanted.page(rows, |(place, _): &(usize, Price)| (place + 1).to_string(), |(_, price)| PriceBody::from(price));
    Ok(respond::json(&page))
}

/// Sets a price from a moment of this month on, from now if nothing is said. Earlier months keep theirs.
#[utoipa::path(
    post, path = "/admin/v1/prices", tag = "Prices", request_body = PriceBody,
    responses((status = 200, description = "The price", body = PriceBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn set_price(mut edit: Edit) -> Result<Response, ApiError> {
    if !edit.body.contains_key("micros_per_device_hour") {
        let message = "Missing required parameter: 'micros_per_device_hour'.";
        return Err(ApiError::param("micros_per_device_hour", "missing_required_parameter", message));
    }
    let any = || ANY.to_owned();
    let base = Price { model: any(), plan: any(), device_class: any(), from_us: edit.at_us, micros_per_device_hour: 0 };
    let price = patched(&base, std::mem::take(&mut edit.body))?;
    let mut change = edit.begin().await?;
    change.set_price(&price, Period::Month.begin(edit.at_us)).await?;
    edit.commit(change).await?;
    Ok(respond::json(&PriceBody::from(price)))
}
