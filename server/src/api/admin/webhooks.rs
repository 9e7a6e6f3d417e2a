//! Everybody's webhooks and deliveries, for operators.

use std::sync::Arc;

use axum::{
    extract::{Path, Request, State},
    response::Response,
};

use super::{
    super::{
        edit::{Edit, Page},
        webhooks::{self, DeliveryBody, NewWebhook, WebhookBody},
    },
    Admin,
};
use crate::{
    error::{ApiError, ErrorBody},
    webhooks::Maker,
};

/// Lists webhooks, without their secrets.
#[utoipa::path(
    get, path = "/admin/v1/webhooks", tag = "Webhooks",
    params(("tenant" = Option<String>, Query, description = "Of this tenant only"),
           ("after" = Option<String>, Query, description = "`next` of the page before"),
           ("limit" = Option<u32>, Query, description = "Rows of a page")),
    responses((status = 200, description = "A page", body = Page<WebhookBody>),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn list(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    webhooks::list(&admin.app, Maker::Operator, request.uri()).await
}

/// Shows a webhook.
#[utoipa::path(
    get, path = "/admin/v1/webhooks/{id}", tag = "Webhooks", params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The webhook", body = WebhookBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn one(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    webhooks::one(&admin.app, Maker::Operator, &id).await
}

/// Makes a webhook. Its secret is in this answer and in no other.
#[utoipa::path(
    post, path = "/admin/v1/webhooks", tag = "Webhooks", request_body = NewWebhook,
    responses((status = 201, description = "The webhook, with its secret", body = WebhookBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn create(State(admin): State<Arc<Admin>>, edit: Edit) -> Result<Response, ApiError> {
    webhooks::create(&admin.app, Maker::Operator, edit).await
}

/// Changes what is named of a webhook, or gives it a new secret (`new_secret`).
#[utoipa::path(
    patch, path = "/admin/v1/webhooks/{id}", tag = "Webhooks", request_body = NewWebhook,
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The webhook", body = WebhookBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn edit(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    edit: Edit,
) -> Result<Response, ApiError> {
    webhooks::edit(&admin.app, Maker::Operator, &id, edit).await
}

/// Removes a webhook and its deliveries.
#[utoipa::path(
    delete, path = "/admin/v1/webhooks/{id}", tag = "Webhooks", params(("id" = String, Path, description = "Its id")),
    responses((status = 204, description = "It is gone"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn delete(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    edit: Edit,
) -> Result<Response, ApiError> {
    webhooks::remove(&admin.app, Maker::Operator, &id, edit).await
}

/// Sends it an event of no meaning.
#[utoipa::path(
    post, path = "/admin/v1/webhooks/{id}/test", tag = "Webhooks", params(("id" = String, Path, description = "Its id")),
    responses((status = 202, description = "It is on its way"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn test(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    webhooks::test(&admin.app, Maker::Operator, &id).await
}

/// Deliveries of a state, dead ones unless it says otherwise; of all webhooks or of one.
#[utoipa::path(
    get, path = "/admin/v1/deliveries", tag = "Webhooks",
    params(("state" = Option<String>, Query, description = "waiting, delivered or dead"),
           ("webhook" = Option<String>, Query, description = "Of this webhook only"),
           ("after" = Option<String>, Query, description = "`next` of the page before"),
           ("limit" = Option<u32>, Query, description = "Rows of a page")),
    responses((status = 200, description = "A page", body = Page<DeliveryBody>),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn deliveries(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    webhooks::deliveries(&admin.app, Maker::Operator, None, request.uri()).await
}

/// Sends a dead delivery again.
#[utoipa::path(
    post, path = "/admin/v1/deliveries/{id}/retry", tag = "Webhooks", params(("id" = String, Path, description = "Its number")),
    responses((status = 202, description = "It is on its way"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn retry(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    webhooks::retry(&admin.app, Maker::Operator, None, &id).await
}
