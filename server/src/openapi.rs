//! `/openapi.json`: the API as it is, gathered from the handlers and the wire structs.

use axum::{http::header, response::IntoResponse};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use crate::{api, openai};

#[derive(OpenApi)]
#[openapi(
    info(title = "Weir", description = "Multi-tenant inference with an OpenAI-compatible API."),
    paths(
        api::chat::handle,
        api::completion::handle,
        api::embedding::handle,
        api::models::list,
        api::models::one,
        api::requests::one,
        api::keys::list_own,
        api::keys::create_own,
        api::keys::rotate_own,
        api::keys::revoke_own,
        api::usage::own,
        api::quotas::own,
        api::webhooks::list_own,
        api::webhooks::create_own,
        api::webhooks::one_own,
        api::webhooks::edit_own,
        api::webhooks::remove_own,
        api::webhooks::test_own,
        api::webhooks::deliveries_own,
        api::webhooks::retry_own,
        api::probes::health,
        api::probes::ready,
        api::probes::version,
    ),
    components(schemas(openai::reply::ChatChunk)),
    security(("key" = [])),
    modifiers(&BearerKey)
)]
struct Document;

#[derive(OpenApi)]
#[openapi(
    info(title = "Weir, for operators", description = "Tenants, keys, plans, prices, use, bills, webhooks, the ledger and the audit log."),
    paths(
        api::admin::tenants::list,
        api::admin::tenants::create,
        api::admin::tenants::one,
        api::admin::tenants::change,
        api::admin::tenants::quotas,
        api::admin::tenants::suspend,
        api::admin::tenants::activate,
        api::admin::keys::list,
        api::admin::keys::create,
        api::admin::keys::rotate,
        api::admin::keys::revoke,
        api::admin::plans::list,
        api::admin::plans::create,
        api::admin::plans::one,
        api::admin::plans::change,
        api::admin::plans::remove,
        api::admin::plans::prices,
        api::admin::plans::set_price,
        api::admin::audit::list,
        api::admin::audit::verify,
        api::admin::ledger::verify,
        api::admin::ledger::export,
        api::admin::months::list,
        api::admin::months::one,
        api::admin::months::close,
        api::admin::months::rows,
        api::admin::months::archive,
        api::admin::usage::all,
        api::admin::invoices::one,
        api::admin::webhooks::list,
        api::admin::webhooks::create,
        api::admin::webhooks::one,
        api::admin::webhooks::edit,
        api::admin::webhooks::delete,
        api::admin::webhooks::test,
        api::admin::webhooks::deliveries,
        api::admin::webhooks::retry,
    ),
    security(("key" = [])),
    modifiers(&BearerKey)
)]
struct AdminDocument;

struct BearerKey;

impl Modify for BearerKey {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("An API key")).build();
        document.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}

/// The document.
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// Serves it.
pub(crate) async fn serve() -> impl IntoResponse {
    written(&document())
}

/// Serves the operators' document.
pub(crate) async fn serve_admin() -> impl IntoResponse {
    written(&AdminDocument::openapi())
}

fn written(document: &utoipa::openapi::OpenApi) -> impl IntoResponse + use<> {
    let text = document.to_json().unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], text)
}
