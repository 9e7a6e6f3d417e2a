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
        api::probes::health,
        api::probes::ready,
        api::probes::version,
    ),
    components(schemas(openai::reply::ChatChunk)),
    security(("key" = [])),
    modifiers(&BearerKey)
)]
struct Document;

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
    let text = document().to_json().unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], text)
}
