//! Webhooks and their deliveries, for operators.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Extension,
    extract::{Path, Request, State, rejection::PathRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::ToSchema;
use weir_runtime::store::{Delivery, DeliveryState, PAGE_LEN_MAX, StoreError, Webhook, WebhookSettings};

use super::{Admin, body, respond};
use crate::{
    api::{RequestId, query::Query, usage::of_store},
    error::{ApiError, ErrorBody, excerpt},
    identity::{Caller, Now},
    keys::random_id,
    webhooks::{EventKind, SigningSecret, Webhooks},
};

/// Largest body: an address and some words.
const BODY_BYTES_MAX: usize = 8 << 10;

#[derive(Debug, Serialize)]
struct WebhookReport {
    object: &'static str,
    id: String,
    tenant: Option<String>,
    #[serde(flatten)]
    settings: WebhookSettings,
    version: i64,
    created_us: i64,
    updated_us: i64,
    /// Where it was made or made anew just now; it is not shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

impl WebhookReport {
    fn new(webhook: Webhook, secret: Option<&SigningSecret>) -> Self {
        WebhookReport {
            object: "webhook",
            id: webhook.id,
            tenant: webhook.tenant,
            settings: webhook.settings,
            version: webhook.version,
            created_us: webhook.created_us,
            updated_us: webhook.updated_us,
            secret: secret.map(|secret| secret.reveal().to_owned()),
        }
    }
}

#[derive(Debug, Serialize)]
struct DeliveryReport {
    object: &'static str,
    id: i64,
    webhook: String,
    tenant: Option<String>,
    event: String,
    body: String,
    state: &'static str,
    attempts: u32,
    next_us: i64,
    status: Option<i64>,
    error: Option<String>,
    created_us: i64,
}

impl From<Delivery> for DeliveryReport {
    fn from(d: Delivery) -> Self {
        let state = d.state.word();
        let Delivery { id, webhook, tenant, event, body, attempts, next_us, status, error, created_us, .. } = d;
        let object = "delivery";
        DeliveryReport { object, id, webhook, tenant, event, body, state, attempts, next_us, status, error, created_us }
    }
}

#[derive(Debug, Serialize)]
struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

/// What a webhook is made of.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewWebhook {
    /// Where to.
    url: String,
    /// `quota.soft_limit`, `quota.hard_limit`, `webhook.test`.
    events: BTreeSet<String>,
    /// Whose events; everybody's where absent.
    tenant: Option<String>,
    /// Whether anything is sent.
    #[serde(default = "yes")]
    enabled: bool,
}

fn yes() -> bool {
    true
}

/// What of it is changed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WebhookEdit {
    /// Where to.
    url: Option<String>,
    /// What it wants.
    events: Option<BTreeSet<String>>,
    /// Whether anything is sent.
    enabled: Option<bool>,
    /// The version that the edit was made from, if it is to hold.
    version: Option<i64>,
    /// Makes a new secret, which the answer shows.
    #[serde(default)]
    new_secret: bool,
}

/// Lists webhooks, without their secrets.
#[utoipa::path(
    get, path = "/admin/v1/webhooks", tag = "Webhooks",
    params(("tenant" = Option<String>, Query, description = "Of this tenant only"),
           ("after" = Option<String>, Query, description = "The last id of the page before")),
    responses((status = 200, description = "Webhooks"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn list(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    let query = Query::of(request.uri(), &["tenant", "after"])?;
    let after = query.get("after").unwrap_or_default();
    let found = admin.app.kept()?.webhooks(query.get("tenant"), after, PAGE_LEN_MAX).await.map_err(told)?;
    let data = found.into_iter().map(|webhook| WebhookReport::new(webhook, None)).collect();
    Ok(respond::json(&List { object: "list", data }))
}

/// Shows a webhook.
#[utoipa::path(
    get, path = "/admin/v1/webhooks/{id}", tag = "Webhooks",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The webhook"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn one(
    State(admin): State<Arc<Admin>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let webhook = admin.app.kept()?.webhook(None, &id_of(path)?).await.map_err(told)?;
    Ok(respond::json(&WebhookReport::new(webhook, None)))
}

/// Makes a webhook. Its secret is in this answer and in no other.
#[utoipa::path(
    post, path = "/admin/v1/webhooks", tag = "Webhooks",
    request_body = NewWebhook,
    responses((status = 201, description = "The webhook, with its secret"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn create(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    Extension(request_id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let (store, webhooks) = (admin.app.kept()?, sender(&admin)?);
    let wanted: NewWebhook = read(request).await?;
    let settings = WebhookSettings { url: wanted.url, events: wanted.events, enabled: wanted.enabled };
    check(&settings)?;
    let (id, tenant) = (format!("wh_{}", random_id()), wanted.tenant.as_deref());
    let (secret, sealed) = new_secret(webhooks, &id)?;
    let actor = super::actor(&caller, &request_id);
    let mut change = store.change(&actor, Now::read().unix_us).await.map_err(told)?;
    change.create_webhook(&id, tenant, &sealed, &settings).await.map_err(told)?;
    let made = change.tx().webhook(None, &id).await.map_err(told)?;
    change.commit().await.map_err(told)?;
    Ok((StatusCode::CREATED, respond::json(&WebhookReport::new(made, Some(&secret)))).into_response())
}

/// Changes a webhook, or gives it a new secret.
#[utoipa::path(
    patch, path = "/admin/v1/webhooks/{id}", tag = "Webhooks",
    request_body = WebhookEdit,
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The webhook"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn edit(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    Extension(request_id): Extension<RequestId>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let (store, webhooks, id) = (admin.app.kept()?, sender(&admin)?, id_of(path)?);
    let wanted: WebhookEdit = read(request).await?;
    let secret = wanted.new_secret.then(|| new_secret(webhooks, &id)).transpose()?;
    let actor = super::actor(&caller, &request_id);
    let mut change = store.change(&actor, Now::read().unix_us).await.map_err(told)?;
    let before = change.tx().webhook(None, &id).await.map_err(told)?;
    let settings = WebhookSettings {
        url: wanted.url.unwrap_or(before.settings.url),
        events: wanted.events.unwrap_or(before.settings.events),
        enabled: wanted.enabled.unwrap_or(before.settings.enabled),
    };
    check(&settings)?;
    let version = wanted.version.unwrap_or(before.version);
    let sealed = secret.as_ref().map(|(_, sealed)| sealed.as_slice());
    let edited = change.update_webhook(None, &id, version, sealed, &settings).await.map_err(told)?;
    change.commit().await.map_err(told)?;
    Ok(respond::json(&WebhookReport::new(edited, secret.as_ref().map(|(secret, _)| secret))))
}

/// Removes a webhook and its deliveries.
#[utoipa::path(
    delete, path = "/admin/v1/webhooks/{id}", tag = "Webhooks",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 204, description = "It is gone"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn delete(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    Extension(request_id): Extension<RequestId>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (store, id) = (admin.app.kept()?, id_of(path)?);
    let mut change = store.change(&super::actor(&caller, &request_id), Now::read().unix_us).await.map_err(told)?;
    change.delete_webhook(None, &id).await.map_err(told)?;
    change.commit().await.map_err(told)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Sends it an event of no meaning.
#[utoipa::path(
    post, path = "/admin/v1/webhooks/{id}/test", tag = "Webhooks",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 202, description = "It is on its way"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn test(
    State(admin): State<Arc<Admin>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let store = admin.app.kept()?;
    let delivery = sender(&admin)?.test(store, &id_of(path)?, Now::read().unix_us).await.map_err(told)?;
    Ok((StatusCode::ACCEPTED, respond::json(&serde_json::json!({"object": "delivery", "id": delivery})))
        .into_response())
}

/// Deliveries of a state, dead ones unless it says otherwise; of all webhooks or of one.
#[utoipa::path(
    get, path = "/admin/v1/deliveries", tag = "Webhooks",
    params(("state" = Option<String>, Query, description = "waiting, delivered or dead"),
           ("webhook" = Option<String>, Query, description = "Of this webhook only"),
           ("after" = Option<String>, Query, description = "The last number of the page before")),
    responses((status = 200, description = "Deliveries"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn deliveries(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    let query = Query::of(request.uri(), &["state", "webhook", "after"])?;
    let invalid = |name: &str, what: &str| ApiError::param(name, "invalid_value", format!("Invalid '{name}': {what}."));
    let word = query.get("state").unwrap_or("dead");
    let state = DeliveryState::parse(word).ok_or_else(|| invalid("state", "waiting, delivered or dead"))?;
    let after =
        query.get("after").map_or(Ok(0), |text| text.parse().map_err(|_| invalid("after", "a delivery's number")))?;
    let store = admin.app.kept()?;
    let found = store.deliveries(query.get("webhook"), state, after, PAGE_LEN_MAX).await.map_err(told)?;
    Ok(respond::json(&List { object: "list", data: found.into_iter().map(DeliveryReport::from).collect() }))
}

/// Sends a dead delivery again.
#[utoipa::path(
    post, path = "/admin/v1/deliveries/{id}/retry", tag = "Webhooks",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 202, description = "It is on its way"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn retry(
    State(admin): State<Arc<Admin>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let id = id_of(path)?;
    let missing = || not_found("delivery", &id);
    let number: i64 = id.parse().map_err(|_| missing())?;
    if !admin.app.kept()?.delivery_again(number, Now::read().unix_us).await.map_err(told)? {
        return Err(missing());
    }
    sender(&admin)?.wake();
    Ok(StatusCode::ACCEPTED.into_response())
}

fn id_of(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    crate::api::requests::id_of(path)
}

fn sender(admin: &Admin) -> Result<&Webhooks, ApiError> {
    admin.app.webhooks().ok_or_else(|| ApiError::Internal("The server sends no webhooks.".into()))
}

fn new_secret(webhooks: &Webhooks, id: &str) -> Result<(SigningSecret, Vec<u8>), ApiError> {
    let internal = |error: String| ApiError::Internal(error);
    let secret = SigningSecret::random().map_err(|error| internal(error.to_string()))?;
    let sealed = webhooks.key().seal(id, secret.reveal().as_bytes()).map_err(|error| internal(error.to_string()))?;
    Ok((secret, sealed))
}

fn check(settings: &WebhookSettings) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::param("events", "invalid_value", message));
    match EventKind::unknown(&settings.events) {
        Some(word) => invalid(format!("There is no event `{}`.", excerpt(word))),
        None if settings.events.is_empty() => invalid("A webhook wants one event at least.".into()),
        None => Ok(()),
    }
}

async fn read<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let (parts, content) = request.into_parts();
    let bytes = body::read(&parts.headers, content, BODY_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::Invalid {
        message: format!("The request body is not valid: {error}."),
        param: None,
        code: "invalid_json",
    })
}

fn not_found(kind: &'static str, id: &str) -> ApiError {
    ApiError::param("id", "not_found", format!("There is no {kind} `{}`.", excerpt(id)))
}

fn told(error: StoreError) -> ApiError {
    match error {
        StoreError::Missing { kind, id } => not_found(kind, &id),
        StoreError::Invalid { field, message } => {
            ApiError::param(field.as_str(), "invalid_value", format!("Invalid '{field}': {message}."))
        }
        error @ StoreError::Conflict { .. } => {
            ApiError::Conflict { message: format!("{error}."), code: "version_conflict" }
        }
        error => of_store(error),
    }
}
