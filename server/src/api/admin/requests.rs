//! Any tenant's request, for operators: also whose it is, and who comes first. To one who is confined to a tenant there
//! are no others' requests.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    response::Response,
};
use serde::Serialize;

use super::{Admin, respond};
use crate::{
    api::requests::{RequestReport, id_of},
    error::ApiError,
    identity::Caller,
};

#[derive(Debug, Serialize)]
struct OperatorReport {
    #[serde(flatten)]
    report: RequestReport,
    tenant: String,
    /// Tenants whose turn comes before its tenant's, while it waits in line.
    tenants_ahead: Option<u32>,
}

pub(super) async fn one(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let id = id_of(path)?;
    let engine = admin.app.engine()?;
    let Some(why) = engine.why(caller.only, &id).await else { return Err(ApiError::UnknownRequest(id)) };
    let tenant = engine.tenant_name(why.tenant).unwrap_or_default();
    let tenants_ahead = why.place.map(|place| place.tenants_ahead);
    Ok(respond::json(&OperatorReport { report: RequestReport::new(id, &why), tenant, tenants_ahead }))
}
