//! `POST /v1/completions`: the body.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    fields::{Fields, empty, empty_string, required, too_many, wrong_type},
    json::parse_object,
    labels, model,
    sampling::{Sampling, TOP_LOGPROBS_MAX, token_ids},
};
use crate::error::ApiError;

/// Prompts of one request.
pub const PROMPTS_LEN_MAX: usize = 128;
/// Bytes that `echo` may repeat: each prompt once for each of its choices. Eight choices of a body at its cap would be an
/// answer of 32 MiB, and several times that while it is put together.
pub const ECHO_BYTES_MAX: usize = 4 << 20;
/// What an id counts as, as in the bound on prompts.
const ECHO_BYTES_PER_TOKEN: usize = 16;
/// New tokens per choice when the body does not say, as in OpenAI's API.
pub const TOKENS_DEFAULT: u32 = 16;

/// A checked completions request.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CompletionRequest {
    /// The model's served name. Default: the tenant's own for such requests, if it has one.
    pub model: Option<String>,
    /// A string, a list of strings, a list of token ids, or a list of such lists.
    #[schema(value_type = PromptSchema)]
    pub prompt: Vec<TextOrTokens>,
    /// How to go on.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Report log-probabilities, with that many alternatives (OpenAI stops at 5).
    #[schema(minimum = 0, maximum = 20)]
    pub logprobs: Option<u32>,
    /// Put the prompt before its completion. Default false; not with `logprobs`.
    pub echo: Option<bool>,
    /// The caller's own label for its end user; not used.
    pub user: Option<String>,
}

/// One prompt or one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum TextOrTokens {
    /// Text.
    Text(String),
    /// Token ids of the model.
    Tokens(Vec<u32>),
}

impl TextOrTokens {
    /// The length of its text, as far as that can be said without a vocabulary.
    fn bytes_max(&self) -> usize {
        match self {
            TextOrTokens::Text(text) => text.len(),
            TextOrTokens::Tokens(ids) => ids.len() * ECHO_BYTES_PER_TOKEN,
        }
    }
}

/// The four shapes of `prompt` and `input`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum PromptSchema {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One list of token ids.
    Tokens(Vec<u32>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

impl CompletionRequest {
    /// Parses a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::new("", parse_object(body)?);
        fields.only("best_of", |best| *best == 1, "Ask for 'n' choices instead.")?;
        fields.refuse("suffix", "Text is not filled in.")?;
        let model = model(&mut fields)?;
        let prompt = prompts(&mut fields, "prompt", PROMPTS_LEN_MAX)?;
        let mut sampling = Sampling::read(&mut fields)?;
        let request = CompletionRequest {
            model,
            prompt,
            logprobs: fields.count("logprobs", 0, TOP_LOGPROBS_MAX)?,
            echo: fields.boolean("echo")?,
            user: labels(&mut fields)?,
            sampling: {
                if sampling.tokens_max().is_none() {
                    // A larger `min_tokens` alone asks for at least that many.
                    sampling.max_tokens = Some(TOKENS_DEFAULT.max(sampling.min_tokens.unwrap_or(0)));
                }
                sampling
            },
        };
        fields.finish()?;
        if request.echoes() && request.logprobs.is_some() {
            return Err(ApiError::unsupported("echo", "It cannot be combined with 'logprobs' yet."));
        }
        let echoed: usize = request.prompt.iter().map(TextOrTokens::bytes_max).sum();
        let echoed = echoed.saturating_mul(request.sampling.choices() as usize);
        if request.echoes() && echoed > ECHO_BYTES_MAX {
            let message = format!(
                "Invalid 'echo': it would repeat {echoed} bytes of prompts, once for each choice; at most \
                 {ECHO_BYTES_MAX} are repeated."
            );
            return Err(ApiError::param("echo", "invalid_value", message));
        }
        Ok(request)
    }

    /// Whether the prompt comes first.
    pub fn echoes(&self) -> bool {
        self.echo.unwrap_or(false)
    }
}

/// Reads the four shapes of `prompt` and `input` into one list.
pub(super) fn prompts(fields: &mut Fields, name: &str, len_max: usize) -> Result<Vec<TextOrTokens>, ApiError> {
    let items = match required(fields.take(name), name)? {
        Value::String(text) => vec![Value::String(text)],
        Value::Array(items) if items.is_empty() => return Err(empty(name)),
        // A list that starts with a number is one prompt of token ids.
        Value::Array(items) if items[0].is_number() => {
            return Ok(vec![TextOrTokens::Tokens(token_ids(name, &items)?)]);
        }
        Value::Array(items) => items,
        other => return Err(wrong_type(name, "a string, a list of strings, or token ids", &other)),
    };
    if items.len() > len_max {
        return Err(too_many(name, items.len(), len_max));
    }
    let single = items.len() == 1;
    let texts = items[0].is_string();
    let one = |(index, item)| {
        let path = if single { name.to_owned() } else { format!("{name}[{index}]") };
        match item {
            Value::String(text) if text.is_empty() => Err(empty_string(path)),
            Value::String(text) if texts => Ok(TextOrTokens::Text(text)),
            Value::Array(ids) if ids.is_empty() => Err(empty(path)),
            Value::Array(ids) if !texts => Ok(TextOrTokens::Tokens(token_ids(&path, &ids)?)),
            other if texts => Err(wrong_type(path, "a string", &other)),
            other => Err(wrong_type(path, "a list of token ids", &other)),
        }
    };
    items.into_iter().enumerate().map(one).collect()
}
