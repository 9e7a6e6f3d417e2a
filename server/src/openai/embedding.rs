//! `POST /v1/embeddings`: the body.

use serde::Serialize;
use utoipa::ToSchema;
use weir_runtime::{EMBED_INPUTS_MAX, EMBED_TOKENS_MAX};

use super::{
    completion::{PromptSchema, TextOrTokens, prompts},
    fields::Fields,
    json::parse_object,
    labels, model, priority,
};
use crate::error::ApiError;

/// No model's vectors are longer.
const DIMENSIONS_MAX: u32 = 1 << 20;

/// A checked embeddings request.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EmbeddingRequest {
    /// The model's served name. Default: the tenant's own for such requests, if it has one.
    pub model: Option<String>,
    /// A string, a list of strings, a list of token ids, or a list of such lists.
    #[schema(value_type = PromptSchema)]
    pub input: Vec<TextOrTokens>,
    /// `float`, or `base64` for little-endian 32-bit floats. Default `float`.
    pub encoding_format: Option<EncodingFormat>,
    /// Accepted only when it is the model's own size.
    #[schema(minimum = 1)]
    pub dimensions: Option<u32>,
    /// Cut inputs that are too long instead of refusing them. Default false. Not in OpenAI's API.
    pub truncate: Option<bool>,
    /// Class among the tenant's own requests, 0 the most urgent, if its plan allows that. Default 0. Not in OpenAI's API.
    #[schema(minimum = 0, maximum = 9)]
    pub priority: Option<u8>,
    /// The caller's own label for its end user; not used.
    pub user: Option<String>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// Little-endian 32-bit floats.
    Base64,
}

impl EmbeddingRequest {
    /// Parses a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::new("", parse_object(body)?);
        let request = EmbeddingRequest {
            model: model(&mut fields)?,
            input: prompts(&mut fields, "input", EMBED_INPUTS_MAX)?,
            encoding_format: encoding_format(&mut fields)?,
            dimensions: fields.count("dimensions", 1, DIMENSIONS_MAX)?,
            truncate: fields.boolean("truncate")?,
            priority: priority(&mut fields)?,
            user: labels(&mut fields)?,
        };
        fields.finish()?;
        // The engine counts again with the tokens of texts; lists of ids can be refused before they are copied.
        let tokens: usize = request
            .input
            .iter()
            .map(|input| match input {
                TextOrTokens::Text(_) => 0,
                TextOrTokens::Tokens(ids) => ids.len(),
            })
            .sum();
        if tokens > EMBED_TOKENS_MAX {
            let message = format!("Invalid 'input': at most {EMBED_TOKENS_MAX} tokens in all, got {tokens}.");
            return Err(ApiError::param("input", "array_above_max_length", message));
        }
        Ok(request)
    }
}

fn encoding_format(fields: &mut Fields) -> Result<Option<EncodingFormat>, ApiError> {
    match fields.string("encoding_format", 64)?.as_deref() {
        None => Ok(None),
        Some("float") => Ok(Some(EncodingFormat::Float)),
        Some("base64") => Ok(Some(EncodingFormat::Base64)),
        Some(other) => Err(ApiError::param(
            "encoding_format",
            "invalid_value",
            format!("Invalid 'encoding_format': '{other}' is not one of float, base64."),
        )),
    }
}
