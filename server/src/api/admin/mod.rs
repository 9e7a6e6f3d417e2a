//! The operators' listener: tenants, keys, plans and prices are looked after, models are added while others are served, devices
//! are drained and taken back, requests are explained. It has an address of its own, a key of its own, and no
//! tenant's key opens it.

pub(crate) mod audit;
mod devices;
pub(crate) mod invoices;
pub(crate) mod keys;
pub(crate) mod ledger;
pub(crate) mod months;
pub(crate) mod plans;
mod requests;
mod root;
pub(crate) mod tenants;
pub(crate) mod usage;
pub(crate) mod webhooks;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use weir_runtime::{AddModelError, ModelFault};

use super::{
    App, body,
    edit::Shared,
    id, method_not_allowed,
    models::{Model, ModelList},
    permitted, refused, respond, unknown_route,
};
use crate::{error::ApiError, identity::Door, openapi};
pub use root::ModelsRoot;

/// Largest body: two names.
const BODY_BYTES_MAX: usize = 4 << 10;

/// What the handlers share.
pub(crate) struct Admin {
    app: Arc<App>,
    root: Option<ModelsRoot>,
}

impl Shared for Arc<Admin> {
    fn app(&self) -> &App {
        &self.app
    }
}

/// The operators' API. Models come from beneath `root`, or not at all.
pub fn admin_router(app: Arc<App>, root: Option<ModelsRoot>) -> Router {
    let admin = Arc::new(Admin { app, root });
    Router::new()
        .route("/admin/v1/models", get(list).post(add))
        .route("/admin/v1/devices", get(devices::list))
        .route("/admin/v1/requests/{*id}", get(requests::one))
        .route("/admin/v1/devices/{name}/drain", post(devices::drain))
        .route("/admin/v1/devices/{name}/resume", post(devices::resume))
        .route("/admin/v1/tenants", get(tenants::list).post(tenants::create))
        .route("/admin/v1/tenants/{id}", get(tenants::one).patch(tenants::change))
        .route("/admin/v1/tenants/{id}/quotas", get(tenants::quotas))
        .route("/admin/v1/tenants/{id}/suspend", post(tenants::suspend))
        .route("/admin/v1/tenants/{id}/activate", post(tenants::activate))
        .route("/admin/v1/tenants/{id}/keys", get(keys::list).post(keys::create))
        .route("/admin/v1/tenants/{id}/keys/{key}/rotate", post(keys::rotate))
        .route("/admin/v1/tenants/{id}/keys/{key}/revoke", post(keys::revoke))
        .route("/admin/v1/plans", get(plans::list).post(plans::create))
        .route("/admin/v1/plans/{id}", get(plans::one).patch(plans::change).delete(plans::remove))
        .route("/admin/v1/prices", get(plans::prices).post(plans::set_price))
        .route("/admin/v1/audit", get(audit::list))
        .route("/admin/v1/audit/verify", get(audit::verify))
        .route("/admin/v1/openapi.json", get(openapi::serve_admin))
        .route("/admin/v1/usage", get(usage::all))
        .route("/admin/v1/invoices/{tenant}/{month}", get(invoices::one))
        .route("/admin/v1/ledger", get(ledger::export))
        .route("/admin/v1/ledger/verify", get(ledger::verify))
        .route("/admin/v1/ledger/months", get(months::list))
        .route("/admin/v1/ledger/months/{month}", get(months::one))
        .route("/admin/v1/ledger/months/{month}/close", post(months::close))
        .route("/admin/v1/ledger/months/{month}/rows", get(months::rows))
        .route("/admin/v1/ledger/months/{month}/archive", post(months::archive))
        .route("/admin/v1/webhooks", get(webhooks::list).post(webhooks::create))
        .route("/admin/v1/webhooks/{id}", get(webhooks::one).patch(webhooks::edit).delete(webhooks::delete))
        .route("/admin/v1/webhooks/{id}/test", post(webhooks::test))
        .route("/admin/v1/deliveries", get(webhooks::deliveries))
        .route("/admin/v1/deliveries/{id}/retry", post(webhooks::retry))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(admin.clone(), guard))
        .layer(from_fn(id::tag))
        .with_state(admin)
}

/// Nothing here is for anyone but operators and auditors, not even which routes there are.
async fn guard(State(admin): State<Arc<Admin>>, mut request: Request, next: Next) -> Response {
    let outcome = admin.app.identify(Door::Admin, &mut request).await;
    match outcome.and_then(|caller| permitted(Door::Admin, &caller, &request).map(|()| caller)) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => refused(Door::Admin, error, &request),
    }
}

/// All models, whoever may use them.
async fn list(State(admin): State<Arc<Admin>>) -> Result<Response, ApiError> {
    Ok(respond::json(&ModelList::new(admin.app.engine()?.models().iter().map(|card| Model::from(&**card)).collect())))
}

/// What is to be added.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddRequest {
    /// The name clients will ask for.
    name: String,
    /// A folder or a file beneath the models' root.
    source: String,
}

/// Loads a model and serves it.
async fn add(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    let (parts, content) = request.into_parts();
    let bytes = body::read(&parts.headers, content, BODY_BYTES_MAX).await?;
    let wanted: AddRequest = serde_json::from_slice(&bytes).map_err(|error| ApiError::Invalid {
        message: format!("The request body is not valid: {error}."),
        param: None,
        code: "invalid_json",
    })?;
    let Some(root) = admin.root.clone() else {
        return Err(ApiError::Forbidden(
            "Models can be added once the server has a folder to take them from: set `models_root` in [server].".into(),
        ));
    };
    let engine = admin.app.engine()?.clone();
    let (finder, source) = (root.clone(), wanted.source);
    let found = tokio::task::spawn_blocking(move || finder.find(&source)).await;
    let path = found
        .map_err(|error| ApiError::Internal(error.to_string()))?
        .map_err(|error| ApiError::param("source", "invalid_source", error.to_string()))?;
    let name = wanted.name;
    match engine.add_model(name.clone(), path).await {
        Ok(card) => {
            tracing::info!(model = name, "an operator added a model");
            Ok((StatusCode::CREATED, respond::json(&Model::from(&*card))).into_response())
        }
        Err(error) => {
            let refused = refusal(error, &root);
            tracing::warn!(model = name.escape_debug().to_string(), reason = %refused, "a model was not added");
            Err(refused)
        }
    }
}

fn refusal(error: AddModelError, root: &ModelsRoot) -> ApiError {
    let invalid = |param: &str, code, message: String| ApiError::param(param, code, root.shown(&message));
    let later = |message: String| ApiError::Overloaded { message, retry_after: Duration::from_secs(1) };
    let message = error.to_string();
    match error {
        AddModelError::Name(_) => invalid("name", "invalid_value", message),
        AddModelError::Taken(_) => ApiError::Conflict { message, code: "model_exists" },
        AddModelError::Full => ApiError::Conflict { message, code: "too_many_models" },
        AddModelError::Refused(refusal) => {
            let code = match refusal.fault {
                ModelFault::Invalid => "invalid_model_file",
                ModelFault::Unsupported => "unsupported_model",
                ModelFault::TooCostly => "model_too_costly_to_inspect",
            };
            invalid("source", code, message)
        }
        AddModelError::NoMemory { .. } => invalid("source", "model_too_large", message),
        AddModelError::Busy | AddModelError::ExecutorDown | AddModelError::Draining => later(message),
        AddModelError::Failed(_) => ApiError::Internal(root.shown(&message)),
    }
}

#[cfg(test)]
mod tests;
