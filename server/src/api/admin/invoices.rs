//! A tenant's bill of a month, as JSON or CSV.

use std::sync::Arc;

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use weir_runtime::{
    billing::{self, Invoice},
    quota::calendar,
};

use super::{Admin, respond, usage::no_such};
use crate::{
    error::{ApiError, ErrorBody},
    identity::Now,
};

#[derive(Debug, Serialize)]
struct InvoiceReport<'a> {
    object: &'static str,
    #[serde(flatten)]
    invoice: &'a Invoice,
}

/// A tenant's bill of a month, such as `2026-11`; with `.csv` after it, as a table.
#[utoipa::path(
    get, path = "/admin/v1/invoices/{tenant}/{month}", tag = "Usage",
    params(("tenant" = String, Path, description = "Whose"), ("month" = String, Path, description = "Such as 2026-11, or 2026-11.csv")),
    responses((status = 200, description = "The bill, as JSON or CSV"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn one(
    State(admin): State<Arc<Admin>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, ApiError> {
    let invalid = || ApiError::param("month", "invalid_value", "Invalid 'month': write it as 2026-11.");
    let Path((tenant, file)) = path.map_err(|_| invalid())?;
    let month = file.strip_suffix(".csv").unwrap_or(&file);
    let month_us = calendar::month_begins_us(month).ok_or_else(invalid)?;
    let signs = admin.app.ledger_key().is_some();
    let bill = billing::invoice(admin.app.kept()?, &tenant, month_us, Now::read().unix_us, signs).await;
    let bill = bill.map_err(|error| no_such(&tenant, error))?;
    if month == file {
        return Ok(respond::json(&InvoiceReport { object: "invoice", invoice: &bill }));
    }
    let mut response = bill.csv().into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8; header=present"));
    if let Ok(name) = HeaderValue::from_str(&format!("attachment; filename=\"invoice-{}-{month}.csv\"", bill.tenant)) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}
