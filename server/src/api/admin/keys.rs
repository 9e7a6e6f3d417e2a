//! `/admin/v1/tenants/{id}/keys`: everybody's keys, for operators. The tenant `operator` is those who run the server.

use std::sync::Arc;

use axum::{
    extract::{Path, Request, State},
    response::Response,
};

use super::{
    super::{
        edit::{Edit, Page},
        keys::{self, Key, KeyRequest},
    },
    Admin,
};
use crate::error::{ApiError, ErrorBody};

/// Lists a tenant's keys.
#[utoipa::path(
    get, path = "/admin/v1/tenants/{id}/keys", tag = "Keys",
    params(("id" = String, Path, description = "The tenant's id, or `operator`"),
           ("after" = Option<String>, Query, description = "`next` of the page before"),
           ("limit" = Option<u32>, Query, description = "Rows of a page")),
    responses((status = 200, description = "A page", body = Page<Key>),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    Path(tenant): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    keys::page(&admin.app, &request.into_parts().0, &tenant).await
}

/// Makes a key of a tenant.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{id}/keys", tag = "Keys", request_body = KeyRequest,
    params(("id" = String, Path, description = "The tenant's id, or `operator`")),
    responses((status = 200, description = "The key, in the clear: this once", body = Key),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn create(Path(tenant): Path<String>, edit: Edit) -> Result<Response, ApiError> {
    keys::create(edit, Some(&tenant)).await
}

/// Makes a key that takes the place of another, which works on for `overlap_s` seconds: a day, if nothing is said.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{id}/keys/{key}/rotate", tag = "Keys",
    params(("id" = String, Path, description = "The tenant's id, or `operator`"),
           ("key" = String, Path, description = "The old key's id")),
    responses((status = 200, description = "The new key, in the clear: this once", body = Key),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn rotate(Path((tenant, key)): Path<(String, String)>, edit: Edit) -> Result<Response, ApiError> {
    keys::rotate(edit, Some(&tenant), &key).await
}

/// Revokes a key for ever. What runs by it is cut as `revoked_time` says. The body may hold a `reason`.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{id}/keys/{key}/revoke", tag = "Keys",
    params(("id" = String, Path, description = "The tenant's id, or `operator`"),
           ("key" = String, Path, description = "The key's id")),
    responses((status = 200, description = "The key", body = Key),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn revoke(Path((tenant, key)): Path<(String, String)>, edit: Edit) -> Result<Response, ApiError> {
    keys::revoke(edit, Some(&tenant), &key).await
}
