//! `POST /v1/chat/completions`: the body.

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use weir_runtime::ChatMessage;

use super::{
    LABEL_BYTES_MAX,
    fields::{Fields, empty, required, wrong_type},
    json::parse_object,
    labels, model,
    sampling::{Sampling, TOP_LOGPROBS_MAX},
};
use crate::error::{ApiError, excerpt};

/// Messages of one conversation.
pub const MESSAGES_LEN_MAX: usize = 2048;
/// Bytes of a participant's name.
const NAME_BYTES_MAX: usize = 64;
/// Parts of one message's content.
const PARTS_LEN_MAX: usize = 2048;

const NO_TOOLS: &str = "This server does not call tools.";
const TEXT_ONLY: &str = "This server reads and writes text only.";

/// A checked chat request.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatRequest {
    /// The model's served name. Default: the tenant's own for such requests, if it has one.
    pub model: Option<String>,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// How to answer.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Report log-probabilities. Default false.
    pub logprobs: Option<bool>,
    /// Alternatives for each token; only with `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<u32>,
    /// The caller's own label for its end user; not used.
    pub user: Option<String>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Message {
    /// `system` (or `developer`, which is the same), `user` or `assistant`.
    pub role: String,
    /// Text, or a list of `{"type":"text","text":...}` parts, which are put together as they are.
    pub content: String,
    /// The participant's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ChatRequest {
    /// Parses a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::new("", parse_object(body)?);
        refuse_unsupported(&mut fields)?;
        let model = model(&mut fields)?;
        let list = required(fields.list("messages", MESSAGES_LEN_MAX)?, "messages")?;
        if list.is_empty() {
            return Err(empty("messages"));
        }
        let messages = list.into_iter().enumerate().map(|(i, m)| message(i, m)).collect::<Result<_, _>>()?;
        let request = ChatRequest {
            model,
            messages,
            sampling: Sampling::read(&mut fields)?,
            logprobs: fields.boolean("logprobs")?,
            top_logprobs: fields.count("top_logprobs", 0, TOP_LOGPROBS_MAX)?,
            user: labels(&mut fields)?,
        };
        fields.finish()?;
        if request.top_logprobs.is_some() && request.logprobs != Some(true) {
            let message = "'top_logprobs' is only allowed when 'logprobs' is true.";
            return Err(ApiError::param("top_logprobs", "invalid_value", message));
        }
        Ok(request)
    }

    /// How many alternatives to report for each token; `None` when no log-probabilities are wanted.
    pub fn logprobs_top(&self) -> Option<u32> {
        (self.logprobs == Some(true)).then(|| self.top_logprobs.unwrap_or(0))
    }
}

impl From<Message> for ChatMessage {
    fn from(message: Message) -> Self {
        ChatMessage { role: message.role, content: message.content, name: message.name }
    }
}

/// Fields of the specification that ask for something else than text from text.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["tools", "functions", "function_call"] {
        fields.refuse(name, NO_TOOLS)?;
    }
    fields.only("tool_choice", |choice| choice == "none", NO_TOOLS)?;
    fields.boolean("parallel_tool_calls")?;
    let text = |format: &Value| *format == json!({"type": "text"});
    fields.only("response_format", text, "Only {\"type\": \"text\"} is supported.")?;
    fields.refuse("audio", TEXT_ONLY)?;
    fields.only("modalities", |list| *list == json!(["text"]), TEXT_ONLY)?;
    fields.refuse("prediction", "Predicted outputs are not supported.")?;
    fields.refuse("reasoning_effort", "No model here takes it.")?;
    fields.refuse("verbosity", "No model here takes it.")?;
    fields.refuse("web_search_options", "This server does not search.")?;
    fields.only("store", |store| *store == false, "Nothing is stored.")?;
    fields.only("service_tier", |tier| tier == "auto" || tier == "default", "There is one tier.")?;
    fields.only("prompt_cache_retention", |kept| kept == "in_memory", "The prefix cache is in memory.")?;
    fields.refuse("best_of", "Ask for 'n' choices instead.")?;
    fields.refuse("echo", "Chat does not repeat its prompt.")?;
    fields.refuse("suffix", "Text is not filled in.")?;
    for name in ["safety_identifier", "prompt_cache_key"] {
        fields.string(name, LABEL_BYTES_MAX)?;
    }
    metadata(fields)
}

/// At most 16 pairs of strings, as OpenAI has it.
fn metadata(fields: &mut Fields) -> Result<(), ApiError> {
    let entries = match fields.take("metadata") {
        None => return Ok(()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(wrong_type("metadata", "an object", &other)),
    };
    let fits = |(key, value): (&String, &Value)| key.len() <= 64 && value.as_str().is_some_and(|v| v.len() <= 512);
    match entries.len() <= 16 && entries.iter().all(fits) {
        true => Ok(()),
        false => Err(ApiError::param(
            "metadata",
            "invalid_value",
            "Invalid 'metadata': at most 16 keys of 64 bytes with strings of 512 bytes.",
        )),
    }
}

fn message(index: usize, value: Value) -> Result<Message, ApiError> {
    let place = format!("messages[{index}]");
    let mut fields = Fields::of(place.clone(), value)?;
    let role_path = fields.path("role");
    let role = match required(fields.string("role", NAME_BYTES_MAX)?, &role_path)?.as_str() {
        role @ ("system" | "user" | "assistant") => role.to_owned(),
        "developer" => "system".to_owned(),
        "tool" | "function" => return Err(ApiError::unsupported(role_path, NO_TOOLS)),
        other => {
            let message = format!(
                "Invalid '{role_path}': '{}' is not one of system, developer, user, assistant.",
                excerpt(other)
            );
            return Err(ApiError::param(role_path, "invalid_value", message));
        }
    };
    // What a client sends back from our own answers is null or empty; anything else asks for something.
    for name in ["tool_calls", "function_call", "tool_call_id"] {
        fields.refuse(name, NO_TOOLS)?;
    }
    fields.refuse("audio", TEXT_ONLY)?;
    fields.refuse("refusal", "Refusals are text here.")?;
    fields.only("annotations", |list| *list == json!([]), "Answers carry none.")?;
    let content = content(&mut fields)?;
    let name = name(&mut fields)?;
    fields.finish()?;
    Ok(Message { role, content, name })
}

fn content(fields: &mut Fields) -> Result<String, ApiError> {
    let path = fields.path("content");
    let parts = match required(fields.take("content"), &path)? {
        Value::String(text) => return Ok(text),
        Value::Array(parts) if parts.is_empty() => return Err(empty(path)),
        Value::Array(parts) if parts.len() > PARTS_LEN_MAX => {
            return Err(super::fields::too_many(path, parts.len(), PARTS_LEN_MAX));
        }
        Value::Array(parts) => parts,
        other => return Err(wrong_type(path, "a string or a list of text parts", &other)),
    };
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(format!("{path}[{index}]"), part)?;
        let kind_path = part.path("type");
        let kind = required(part.string("type", NAME_BYTES_MAX)?, &kind_path)?;
        if kind != "text" {
            return Err(ApiError::unsupported(kind_path, TEXT_ONLY));
        }
        let text_path = part.path("text");
        text.push_str(&required(part.string("text", usize::MAX)?, &text_path)?);
        part.finish()?;
    }
    Ok(text)
}

fn name(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let path = fields.path("name");
    let Some(name) = fields.string("name", NAME_BYTES_MAX)? else { return Ok(None) };
    // OpenAI's own pattern; a template puts the name beside its control tokens.
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"<|\\/>".contains(c);
    match !name.is_empty() && name.chars().all(plain) {
        true => Ok(Some(name)),
        false => {
            let message = format!("Invalid '{path}': a name has no spaces and none of < | \\ / >.");
            Err(ApiError::param(path, "invalid_value", message))
        }
    }
}
