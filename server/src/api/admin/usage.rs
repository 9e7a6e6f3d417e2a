//! What all tenants used.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use weir_runtime::{
    billing::{Dimension, Usage},
    store::PAGE_LEN_MAX,
};

use super::{Admin, respond};
use crate::{
    api::{
        query::Query,
        usage::{Asked, UsageReport, gather, of_store, report},
    },
    error::{ApiError, ErrorBody},
    identity::Now,
};

/// Everybody's use, or one tenant's (`tenant`).
#[utoipa::path(
    get, path = "/admin/v1/usage", tag = "Usage",
    params(("from" = Option<String>, Query, description = "The first day (UTC)"),
           ("to" = Option<String>, Query, description = "The last day"),
           ("group_by" = Option<String>, Query, description = "Some of tenant, day, model, key, plan, device_class"),
           ("tenant" = Option<String>, Query, description = "Of this tenant only")),
    responses((status = 200, description = "Use in groups, and their total", body = UsageReport),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn all(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    let query = Query::of(request.uri(), &["from", "to", "group_by", "tenant"])?;
    let asked = Asked::of(&query, &Dimension::ALL, Now::read().unix_us)?;
    let mut tx = admin.app.kept()?.read().await.map_err(of_store)?;
    let prices = tx.prices().await.map_err(of_store)?;
    let mut usage = Usage::by(asked.by.clone());
    let mut tenants = match query.get("tenant") {
        Some(id) => vec![tx.tenant(id).await.map_err(|error| no_such(id, error))?],
        None => tx.tenants("", PAGE_LEN_MAX).await.map_err(of_store)?,
    };
    while let Some(last) = tenants.last().map(|tenant| tenant.id.clone()) {
        for tenant in &tenants {
            let ppm = &tenant.settings.price_ppm;
            gather(&mut tx, &mut usage, &tenant.id, &asked, &prices, ppm, Some).await?;
        }
        tenants = match query.get("tenant") {
            Some(_) => Vec::new(),
            None => tx.tenants(&last, PAGE_LEN_MAX).await.map_err(of_store)?,
        };
    }
    Ok(respond::json(&report(&asked, &usage)))
}

/// A tenant that is not there is the caller's mistake.
pub(super) fn no_such(id: &str, error: weir_runtime::store::StoreError) -> ApiError {
    use weir_runtime::store::StoreError::{Invalid, Missing};
    match error {
        Missing { .. } | Invalid { .. } => {
            let message = format!("There is no tenant `{}`.", crate::error::excerpt(id));
            ApiError::param("tenant", "tenant_not_found", message)
        }
        error => of_store(error),
    }
}
