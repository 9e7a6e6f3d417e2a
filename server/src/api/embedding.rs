//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use weir_runtime::{EmbedInput, EmbedSubmission, SubmitError};

use super::{
    App, Asked, RequestId, body,
    limits::{Meter, estimate},
    respond::{self, Deadline, within},
};
use crate::{
    error::{ApiError, ErrorBody},
    identity::Caller,
    openai::{
        completion::TextOrTokens,
        embedding::{EmbeddingRequest, EncodingFormat},
        reply::{Embedding, EmbeddingList, Vector},
    },
};

/// Turns texts into vectors.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingRequest,
    responses(
        (status = 200, description = "One vector for each input, in order", body = EmbeddingList),
        (status = "default", description = "Any error", body = ErrorBody)
    )
)]
pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    Extension(meter): Extension<Meter>,
    request: Request,
) -> Result<Response, ApiError> {
    let deadline = Deadline::of(&app, &caller);
    let (parts, content) = request.into_parts();
    let bytes = body::read(&parts.headers, content, app.limits.body_bytes_max).await?;
    let request = EmbeddingRequest::parse(&bytes)?;
    let card = app.model_for(&caller, Asked::Embedding, request.model.as_deref())?;
    meter.reserve(estimate(bytes.len(), Some(0), 1))?;
    drop(bytes);
    let truncate = request.truncate.unwrap_or(false);
    if let (Some(asked), Some(native)) = (request.dimensions, card.embedding_dim)
        && asked != native
    {
        return Err(ApiError::unsupported("dimensions", &format!("This model's vectors have {native} dimensions.")));
    }
    let format = request.encoding_format.unwrap_or_default();
    let submission = EmbedSubmission {
        tenant: caller.tenant,
        key: caller.credential.clone(),
        bill: meter.bill(0),
        model: card.name.clone(),
        request_id: id.0.to_string(),
        priority: request.priority.unwrap_or(0),
        inputs: request.input.into_iter().map(Into::into).collect(),
        truncate,
    };
    meter.begun(0);
    let embedded = within(&deadline, app.engine()?.embed(submission)).await?;
    let embeddings = embedded.inspect_err(|error| {
        if nothing_was_done(error) {
            meter.not_begun();
        }
    })?;
    meter.done(embeddings.usage);
    let one = |(index, vector): (u32, Vec<f32>)| Embedding {
        object: "embedding",
        index,
        embedding: match format {
            EncodingFormat::Float => Vector::Float(vector),
            EncodingFormat::Base64 => Vector::Base64(base64_of(&vector)),
        },
    };
    Ok(respond::json(&EmbeddingList {
        object: "list",
        data: (0..).zip(embeddings.vectors).map(one).collect(),
        model: card.name.clone(),
        usage: embeddings.usage.into(),
    }))
}

/// Whether a refusal certainly came before any of the device's time was used. A spent quota or a drain may have ended a list
/// that was half done.
fn nothing_was_done(error: &SubmitError) -> bool {
    use SubmitError::{Busy, ContextTooLong, Invalid, TargetUnmet, UnknownModel, WrongKind};
    match error {
        // Its rows have brought executors down.
        Invalid { code, .. } => *code != Some("request_quarantined"),
        Busy { .. } | ContextTooLong { .. } | TargetUnmet { .. } | UnknownModel { .. } | WrongKind { .. } => true,
        _ => false,
    }
}

impl From<TextOrTokens> for EmbedInput {
    fn from(input: TextOrTokens) -> Self {
        match input {
            TextOrTokens::Text(text) => EmbedInput::Text(text),
            TextOrTokens::Tokens(ids) => EmbedInput::Tokens(ids),
        }
    }
}

/// Little-endian 32-bit floats in base64, which is what openai-python asks for unless told otherwise.
fn base64_of(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_little_endian() {
        // struct.pack("<2f", 1.0, -0.5) in Python.
        assert_eq!(base64_of(&[1.0, -0.5]), "AACAPwAAAL8=");
    }
}
