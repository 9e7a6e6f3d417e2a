//! Webhooks and their deliveries: what operators do with everybody's (`/admin/v1/webhooks`) and a tenant's administrator with its
//! own (`/v1/webhooks`), and the latter's routes.
//!
//! A tenant knows of the webhooks that it has made, and not of those by which operators hear of it.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use weir_runtime::store::{Delivery, DeliveryState, StoreError, Webhook, WebhookSettings};

use super::{
    App,
    edit::{Edit, Page, Wanted, patched},
    query::Query,
    respond,
};
use crate::{
    error::{ApiError, ErrorBody, excerpt},
    identity::{Caller, Now},
    webhooks::{EventKind, Maker, Reach, SigningSecret, Webhooks},
};

/// Webhooks that a tenant can have made.
const OWN_MAX: usize = 16;

/// A webhook as it may be shown.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WebhookBody {
    /// `webhook`.
    object: &'static str,
    /// Its id.
    id: String,
    /// Whose events; null is everybody's.
    tenant: Option<String>,
    /// Where to.
    url: String,
    /// What it wants.
    events: BTreeSet<String>,
    /// Whether anything is sent.
    enabled: bool,
    /// Grows by one with each change.
    version: i64,
    /// When it was made, in microseconds since 1970.
    created_us: i64,
    /// When it was last changed.
    updated_us: i64,
    /// Where it was made or made anew just now; it is not shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

impl WebhookBody {
    fn new(webhook: Webhook, secret: Option<&SigningSecret>) -> Self {
        let WebhookSettings { url, events, enabled } = webhook.settings;
        WebhookBody {
            object: "webhook",
            id: webhook.id,
            tenant: webhook.tenant,
            url,
            events,
            enabled,
            version: webhook.version,
            created_us: webhook.created_us,
            updated_us: webhook.updated_us,
            secret: secret.map(|secret| secret.reveal().to_owned()),
        }
    }
}

/// An event on its way, or arrived, or given up.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeliveryBody {
    /// `delivery`.
    object: &'static str,
    /// Its number.
    id: i64,
    /// To which webhook.
    webhook: String,
    /// The tenant that it tells of.
    tenant: Option<String>,
    /// The event's type.
    event: String,
    /// What is sent.
    body: String,
    /// `waiting`, `delivered` or `dead`.
    state: &'static str,
    /// Tries so far.
    attempts: u32,
    /// When it is tried next, in microseconds since 1970.
    next_us: i64,
    /// The last answer's HTTP status.
    status: Option<i64>,
    /// Why the last try failed.
    error: Option<String>,
    /// When the event took place.
    created_us: i64,
}

impl From<Delivery> for DeliveryBody {
    fn from(d: Delivery) -> Self {
        let (object, state) = ("delivery", d.state.word());
        let Delivery { id, webhook, tenant, event, body, attempts, next_us, status, error, created_us, .. } = d;
        DeliveryBody { object, id, webhook, tenant, event, body, state, attempts, next_us, status, error, created_us }
    }
}

/// What a webhook is made of.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewWebhook {
    /// Where to.
    url: String,
    /// `quota.soft_limit`, `quota.hard_limit`, `webhook.test`.
    events: BTreeSet<String>,
    /// Of operators' webhooks: whose events; everybody's where absent.
    tenant: Option<String>,
    /// Whether anything is sent; true where absent.
    enabled: bool,
}

/// A page of webhooks, of a tenant's if `tenant` is in the query and operators ask.
pub(super) async fn list(app: &App, maker: Maker<'_>, uri: &Uri) -> Result<Response, ApiError> {
    let known: &[&str] = match maker {
        Maker::Operator => &["after", "limit", "tenant"],
        Maker::Tenant(_) => &Wanted::KNOWN,
    };
    let query = Query::of(uri, known)?;
    let wanted = Wanted::of(&query)?;
    let rows = app.kept()?.webhooks(maker.tenant().or(query.get("tenant")), &wanted.after, wanted.rows()).await?;
    let rows = rows.into_iter().filter(|webhook| maker.knows(&webhook.id)).collect();
    Ok(respond::json(&wanted.page(rows, |webhook| webhook.id.clone(), |webhook| WebhookBody::new(webhook, None))))
}

/// A webhook that the maker may know of.
async fn found(app: &App, maker: Maker<'_>, id: &str) -> Result<Webhook, ApiError> {
    match maker.knows(id) {
        true => Ok(app.kept()?.webhook(maker.tenant(), id).await?),
        false => Err(missing("webhook", id)),
    }
}

fn missing(kind: &'static str, id: &str) -> ApiError {
    StoreError::Missing { kind, id: id.to_owned() }.into()
}

pub(super) async fn one(app: &App, maker: Maker<'_>, id: &str) -> Result<Response, ApiError> {
    Ok(respond::json(&WebhookBody::new(found(app, maker, id).await?, None)))
}

pub(super) async fn create(app: &App, maker: Maker<'_>, mut edit: Edit) -> Result<Response, ApiError> {
    let webhooks = sender(app)?;
    if let (Maker::Tenant(_), true) = (maker, edit.body.contains_key("tenant")) {
        return Err(ApiError::param("tenant", "unknown_parameter", "Unknown parameter: 'tenant'."));
    }
    let base = NewWebhook { url: String::new(), events: BTreeSet::new(), tenant: None, enabled: true };
    let wanted = patched(&base, std::mem::take(&mut edit.body))?;
    let tenant = maker.tenant().or(wanted.tenant.as_deref());
    let settings = WebhookSettings { url: wanted.url, events: wanted.events, enabled: wanted.enabled };
    check(&settings, maker, webhooks.reach())?;
    let id = maker.id();
    let (secret, sealed) = new_secret(webhooks, &id)?;
    let mut change = edit.begin().await?;
    if let Maker::Tenant(name) = maker {
        // Nobody else makes one while this change lasts.
        let all = change.tx().webhooks(Some(name), "", u32::MAX).await?;
        if all.iter().filter(|webhook| maker.knows(&webhook.id)).count() >= OWN_MAX {
            let message = format!("Your tenant has {OWN_MAX} webhooks, which is as many as it can have.");
            return Err(ApiError::Conflict { message, code: "too_many_webhooks" });
        }
    }
    change.create_webhook(&id, tenant, &sealed, &settings).await?;
    let made = change.tx().webhook(tenant, &id).await?;
    edit.commit(change).await?;
    Ok((StatusCode::CREATED, respond::json(&WebhookBody::new(made, Some(&secret)))).into_response())
}

pub(super) async fn edit(app: &App, maker: Maker<'_>, id: &str, mut edit: Edit) -> Result<Response, ApiError> {
    let webhooks = sender(app)?;
    found(app, maker, id).await?;
    let anew = match edit.body.remove("new_secret") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(anew)) => anew,
        Some(_) => {
            return Err(ApiError::param("new_secret", "invalid_value", "Invalid 'new_secret': must be a boolean."));
        }
    };
    let secret = anew.then(|| new_secret(webhooks, id)).transpose()?;
    let mut change = edit.begin().await?;
    let before = change.tx().webhook(maker.tenant(), id).await?;
    let settings = patched(&before.settings, std::mem::take(&mut edit.body))?;
    check(&settings, maker, webhooks.reach())?;
    let sealed = secret.as_ref().map(|(_, sealed)| sealed.as_slice());
    let version = edit.version_or(before.version);
    let edited = change.update_webhook(maker.tenant(), id, version, sealed, &settings).await?;
    edit.commit(change).await?;
    Ok(respond::json(&WebhookBody::new(edited, secret.as_ref().map(|(secret, _)| secret))))
}

pub(super) async fn remove(app: &App, maker: Maker<'_>, id: &str, edit: Edit) -> Result<Response, ApiError> {
    edit.nothing_else()?;
    found(app, maker, id).await?;
    let mut change = edit.begin().await?;
    change.delete_webhook(maker.tenant(), id).await?;
    edit.commit(change).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn test(app: &App, maker: Maker<'_>, id: &str) -> Result<Response, ApiError> {
    found(app, maker, id).await?;
    let delivery = sender(app)?.test(app.kept()?, maker.tenant(), id, Now::read().unix_us).await?;
    Ok((StatusCode::ACCEPTED, respond::json(&json!({"object": "delivery", "id": delivery}))).into_response())
}

/// A page of deliveries in a state, dead ones unless the query says otherwise: of one webhook, or of all.
pub(super) async fn deliveries(
    app: &App,
    maker: Maker<'_>,
    webhook: Option<&str>,
    uri: &Uri,
) -> Result<Response, ApiError> {
    let known: &[&str] = match webhook {
        None => &["state", "webhook", "after", "limit"],
        Some(_) => &["state", "after", "limit"],
    };
    let query = Query::of(uri, known)?;
    let wanted = Wanted::of(&query)?;
    if let Some(id) = webhook {
        found(app, maker, id).await?;
    }
    let invalid = |name: &str, what: &str| ApiError::param(name, "invalid_value", format!("Invalid '{name}': {what}."));
    let word = query.get("state").unwrap_or("dead");
    let state = DeliveryState::parse(word).ok_or_else(|| invalid("state", "waiting, delivered or dead"))?;
    let after = match wanted.after.as_str() {
        "" => 0,
        text => text.parse().map_err(|_| invalid("after", "a delivery's number"))?,
    };
    let rows = app.kept()?.deliveries(webhook.or(query.get("webhook")), state, after, wanted.rows()).await?;
    Ok(respond::json(&wanted.page(rows, |delivery| delivery.id.to_string(), DeliveryBody::from)))
}

pub(super) async fn retry(
    app: &App,
    maker: Maker<'_>,
    webhook: Option<&str>,
    delivery: &str,
) -> Result<Response, ApiError> {
    if let Some(id) = webhook {
        found(app, maker, id).await?;
    }
    let none = || missing("delivery", delivery);
    let number: i64 = delivery.parse().map_err(|_| none())?;
    if !app.kept()?.delivery_again(webhook, number, Now::read().unix_us).await? {
        return Err(none());
    }
    sender(app)?.wake();
    Ok(StatusCode::ACCEPTED.into_response())
}

fn sender(app: &App) -> Result<&Webhooks, ApiError> {
    app.webhooks().ok_or_else(|| ApiError::Internal("The server sends no webhooks.".into()))
}

fn new_secret(webhooks: &Webhooks, id: &str) -> Result<(SigningSecret, Vec<u8>), ApiError> {
    let secret = SigningSecret::random().map_err(|error| ApiError::Internal(error.to_string()))?;
    let sealed = webhooks.key().seal(id, secret.reveal().as_bytes());
    Ok((secret, sealed.map_err(|error| ApiError::Internal(error.to_string()))?))
}

/// What the store does not know of: which events there are, and how far tenants' webhooks reach.
fn check(settings: &WebhookSettings, maker: Maker<'_>, reach: Reach) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::param("events", "invalid_value", message));
    if let Some(word) = EventKind::unknown(&settings.events) {
        return invalid(format!("There is no event `{}`.", excerpt(word)));
    }
    if settings.events.is_empty() {
        return invalid("A webhook wants one event at least.".into());
    }
    match (maker, reach) {
        (Maker::Operator, _) | (Maker::Tenant(_), Reach::Any) => Ok(()),
        (Maker::Tenant(_), Reach::Off) => Err(ApiError::Forbidden("This server has no webhooks of tenants.".into())),
        (Maker::Tenant(_), Reach::Public) if settings.url.starts_with("https://") => Ok(()),
        (Maker::Tenant(_), Reach::Public) => {
            Err(ApiError::param("url", "invalid_value", "Invalid 'url': must begin with https://."))
        }
    }
}

/// Lists the webhooks that the caller's tenant has made.
#[utoipa::path(
    get, path = "/v1/webhooks", tag = "Webhooks",
    params(("after" = Option<String>, Query, description = "`next` of the page before"),
           ("limit" = Option<u32>, Query, description = "Rows of a page")),
    responses((status = 200, description = "A page, without secrets", body = Page<WebhookBody>),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn list_own(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Response, ApiError> {
    list(&app, Maker::Tenant(&caller.name), &uri).await
}

/// Makes a webhook of the caller's tenant. Its secret is in this answer and in no other.
#[utoipa::path(
    post, path = "/v1/webhooks", tag = "Webhooks", request_body = NewWebhook,
    responses((status = 201, description = "The webhook, with its secret", body = WebhookBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn create_own(State(app): State<Arc<App>>, edit: Edit) -> Result<Response, ApiError> {
    let name = edit.caller.name.clone();
    create(&app, Maker::Tenant(&name), edit).await
}

/// Shows a webhook of the caller's tenant.
#[utoipa::path(
    get, path = "/v1/webhooks/{webhook}", tag = "Webhooks", params(("webhook" = String, Path, description = "Its id")),
    responses((status = 200, description = "The webhook", body = WebhookBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn one_own(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    one(&app, Maker::Tenant(&caller.name), &id).await
}

/// Changes what is named of a webhook of the caller's tenant, or gives it a new secret (`new_secret`).
#[utoipa::path(
    patch, path = "/v1/webhooks/{webhook}", tag = "Webhooks", request_body = NewWebhook,
    params(("webhook" = String, Path, description = "Its id")),
    responses((status = 200, description = "The webhook", body = WebhookBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn edit_own(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    read: Edit,
) -> Result<Response, ApiError> {
    let name = read.caller.name.clone();
    edit(&app, Maker::Tenant(&name), &id, read).await
}

/// Removes a webhook of the caller's tenant, and its deliveries.
#[utoipa::path(
    delete, path = "/v1/webhooks/{webhook}", tag = "Webhooks", params(("webhook" = String, Path, description = "Its id")),
    responses((status = 204, description = "It is gone"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn remove_own(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    read: Edit,
) -> Result<Response, ApiError> {
    let name = read.caller.name.clone();
    remove(&app, Maker::Tenant(&name), &id, read).await
}

/// Sends a webhook of the caller's tenant an event of no meaning.
#[utoipa::path(
    post, path = "/v1/webhooks/{webhook}/test", tag = "Webhooks", params(("webhook" = String, Path, description = "Its id")),
    responses((status = 202, description = "It is on its way"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn test_own(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    test(&app, Maker::Tenant(&caller.name), &id).await
}

/// Deliveries to a webhook of the caller's tenant, dead ones unless `state` says otherwise.
#[utoipa::path(
    get, path = "/v1/webhooks/{webhook}/deliveries", tag = "Webhooks",
    params(("webhook" = String, Path, description = "Its id"),
           ("state" = Option<String>, Query, description = "waiting, delivered or dead"),
           ("after" = Option<String>, Query, description = "`next` of the page before"),
           ("limit" = Option<u32>, Query, description = "Rows of a page")),
    responses((status = 200, description = "A page", body = Page<DeliveryBody>),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn deliveries_own(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, ApiError> {
    deliveries(&app, Maker::Tenant(&caller.name), Some(&id), &uri).await
}

/// Sends a dead delivery to a webhook of the caller's tenant again.
#[utoipa::path(
    post, path = "/v1/webhooks/{webhook}/deliveries/{delivery}/retry", tag = "Webhooks",
    params(("webhook" = String, Path, description = "The webhook's id"),
           ("delivery" = String, Path, description = "The delivery's number")),
    responses((status = 202, description = "It is on its way"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn retry_own(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path((webhook, delivery)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    retry(&app, Maker::Tenant(&caller.name), Some(&webhook), &delivery).await
}
