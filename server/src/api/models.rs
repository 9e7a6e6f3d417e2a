//! `GET /v1/models` and `GET /v1/models/{id}`: what the caller may use.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;
use weir_runtime::ModelCard;

use super::{App, respond};
use crate::{
    error::{ApiError, ErrorBody},
    identity::Caller,
};

/// The models the caller may use.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`.
    object: &'static str,
    /// In the order of the configuration, then in that of being added.
    data: Vec<Model>,
}

/// A served model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    /// The name to ask for.
    id: String,
    /// `model`.
    object: &'static str,
    /// When it was loaded, in Unix seconds.
    created: u64,
    /// `weir`.
    owned_by: &'static str,
    /// Tokens of prompt and answer together, under the name vLLM gave it.
    max_model_len: u32,
    /// What else there is to know.
    weir: ModelDetail,
}

/// What OpenAI's model object has no room for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelDetail {
    /// It continues text.
    generates: bool,
    /// It takes conversations.
    chats: bool,
    /// It embeds text.
    embeds: bool,
    /// Size of its vectors.
    dimensions: Option<u32>,
    /// Weights, counted.
    parameters: u64,
    /// Their type.
    quantization: String,
    /// Their shape's name.
    architecture: String,
}

impl ModelList {
    pub(super) fn new(data: Vec<Model>) -> Self {
        ModelList { object: "list", data }
    }
}

impl From<&ModelCard> for Model {
    fn from(card: &ModelCard) -> Self {
        Model {
            id: card.name.clone(),
            object: "model",
            created: card.created,
            owned_by: "weir",
            max_model_len: card.context_len,
            weir: ModelDetail {
                generates: card.generates,
                chats: card.generates && card.has_chat_template,
                embeds: card.embeds,
                dimensions: card.embedding_dim,
                parameters: card.parameters,
                quantization: card.quantization.clone(),
                architecture: card.architecture.clone(),
            },
        }
    }
}

/// Lists the models the caller may use.
#[utoipa::path(
    get, path = "/v1/models", tag = "OpenAI",
    responses(
        (status = 200, description = "The models", body = ModelList),
        (status = "default", description = "Any error", body = ErrorBody)
    )
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, ApiError> {
    let models = app.engine()?.models();
    let models = models.iter().filter(|card| caller.may_use(&card.name));
    Ok(respond::json(&ModelList::new(models.map(|card| Model::from(&**card)).collect())))
}

/// One model.
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "OpenAI", params(("id" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = "default", description = "Any error", body = ErrorBody)
    )
)]
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // axum's own answer would not be in our shape.
    let not_text = |_| ApiError::param("model", "invalid_value", "Invalid 'model': the path is not UTF-8.");
    let Path(id) = path.map_err(not_text)?;
    Ok(respond::json(&Model::from(&*app.model(&caller, &id)?)))
}
