//! OpenAI's wire format: bodies in, bodies and events out. Nothing here knows HTTP, tenants or the engine's state.
//!
//! A request body becomes a wire struct in one pass (`json` refuses what is not strict JSON, `fields` ranges each
//! field and names what is wrong), and a wire struct becomes a submission without further checks. Three kinds of fields:
//!
//! * *carried out*: ranged as the structs document;
//! * *accepted without effect*, because any value asks for what happens anyway: `user`, `metadata` (stored only with
//!   `store`), `safety_identifier`, `prompt_cache_key` (the prefix cache belongs to the tenant as a whole),
//!   `parallel_tool_calls` (there are no tools); and these with one value only: `store: false`,
//!   `service_tier: "auto" | "default"`, `response_format: {"type": "text"}`, `modalities: ["text"]`,
//!   `tool_choice: "none"`, `prompt_cache_retention: "in_memory"`, `best_of: 1`;
//! * everything else is refused by name, the known ones as `unsupported_parameter`, the rest as `unknown_parameter`.

pub(crate) mod answer;
pub mod chat;
pub mod completion;
pub mod embedding;
pub(crate) mod fields;
pub(crate) mod json;
pub mod reply;
pub mod sampling;
pub(crate) mod stream;

use crate::error::ApiError;
use fields::Fields;

/// Longest model name a body may ask for, in bytes.
const MODEL_BYTES_MAX: usize = 256;
/// Longest `user`, `safety_identifier` or `prompt_cache_key`, in bytes.
const LABEL_BYTES_MAX: usize = 512;

/// The model asked for; where none is, the tenant's default is meant.
fn model(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    match fields.string("model", MODEL_BYTES_MAX)? {
        Some(name) if name.is_empty() => Err(fields::empty_string("model")),
        name => Ok(name),
    }
}

/// The least urgent class. A class waits for the more urgent ones for so many spacings of the scheduler at most.
const PRIORITY_MAX: u32 = 9;

/// The request's class among those of its tenant; vLLM's field, where smaller is sooner, too.
fn priority(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    Ok(fields.count("priority", 0, PRIORITY_MAX)?.map(|class| class as u8))
}

/// Fields that label a request and ask for nothing: their shape is checked, their value is not used.
fn labels(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    fields.string("user", LABEL_BYTES_MAX)
}

#[cfg(test)]
mod tests;
