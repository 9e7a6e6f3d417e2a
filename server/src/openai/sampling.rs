//! The parameters that chat and completions share.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use weir_runtime::SamplingParams;

use super::fields::{Bounds, Fields, empty_string, integer, number, too_long, too_many, wrong_type};
use super::priority;
use crate::error::{ApiError, excerpt};

/// Choices of one request.
pub const N_MAX: u32 = 8;
/// Stop strings of one request.
pub const STOP_LEN_MAX: usize = 4;
/// Bytes of one stop string.
pub const STOP_BYTES_MAX: usize = 256;
/// Entries of `logit_bias`.
pub const LOGIT_BIAS_LEN_MAX: usize = 300;
/// Alternatives reported for each token.
pub const TOP_LOGPROBS_MAX: u32 = 20;
/// No context is longer, and sums with it stay far from overflow.
const TOKENS_MAX: u32 = i32::MAX as u32;

/// What to draw, how much of it, and when to stop.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Sampling {
    /// 0 takes the most likely token. Default 1.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Mass of the nucleus. Default 1.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Candidates kept; 0 and -1 keep all. Default 0. Not in OpenAI's API.
    #[schema(minimum = -1)]
    pub top_k: Option<i64>,
    /// Floor against the most likely token's probability. Default 0. Not in OpenAI's API.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f32>,
    /// Same seed and same body: same draw.
    pub seed: Option<i64>,
    /// Subtracted once per earlier occurrence. Default 0.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f32>,
    /// Subtracted from what occurred. Default 0.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f32>,
    /// Divides what occurred; 1 is off. Default 1. Not in OpenAI's API.
    #[schema(exclusive_minimum = 0, maximum = 2)]
    pub repetition_penalty: Option<f32>,
    /// Token ids in decimal, each with what is added to its logit (-100 to 100).
    #[schema(value_type = Option<std::collections::BTreeMap<String, f32>>)]
    pub logit_bias: Option<Vec<(u32, f32)>>,
    /// Class among the tenant's own requests, 0 the most urgent, if its plan allows that. Default 0. Not in OpenAI's API.
    #[schema(minimum = 0, maximum = 9)]
    pub priority: Option<u8>,
    /// Choices wanted. Default 1.
    #[schema(minimum = 1, maximum = 8)]
    pub n: Option<u32>,
    /// New tokens per choice; the older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    pub max_tokens: Option<u32>,
    /// New tokens per choice. Default: what the context leaves in chat, 16 in completions.
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<u32>,
    /// Tokens before an ending counts. Default 0. Not in OpenAI's API.
    #[schema(minimum = 0)]
    pub min_tokens: Option<u32>,
    /// A string, or up to four, that end a choice and are not part of it.
    #[schema(max_items = 4)]
    pub stop: Option<Vec<String>>,
    /// Go on past the end-of-sequence token. Default false. Not in OpenAI's API.
    pub ignore_eos: Option<bool>,
    /// Send events instead of one body. Default false.
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
}

/// What a stream carries beside text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct StreamOptions {
    /// A last chunk with the usage and no choices. Default false.
    pub include_usage: Option<bool>,
    /// The usage so far on every chunk. Default false. Not in OpenAI's API.
    pub continuous_usage_stats: Option<bool>,
}

impl Sampling {
    /// Takes its fields out of a body.
    pub(super) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let sampling = Sampling {
            temperature: fields.number("temperature", Bounds::closed(0.0, 2.0))?,
            top_p: fields.number("top_p", Bounds::above(0.0, 1.0))?,
            top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?,
            min_p: fields.number("min_p", Bounds::closed(0.0, 1.0))?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
            frequency_penalty: fields.number("frequency_penalty", Bounds::closed(-2.0, 2.0))?,
            presence_penalty: fields.number("presence_penalty", Bounds::closed(-2.0, 2.0))?,
            repetition_penalty: fields.number("repetition_penalty", Bounds::above(0.0, 2.0))?,
            logit_bias: logit_bias(fields)?,
            priority: priority(fields)?,
            n: fields.count("n", 1, N_MAX)?,
            max_tokens: fields.count("max_tokens", 1, TOKENS_MAX)?,
            max_completion_tokens: fields.count("max_completion_tokens", 1, TOKENS_MAX)?,
            min_tokens: fields.count("min_tokens", 0, TOKENS_MAX)?,
            stop: stop(fields)?,
            ignore_eos: fields.boolean("ignore_eos")?,
            stream: fields.boolean("stream")?,
            stream_options: stream_options(fields)?,
        };
        sampling.agrees()?;
        Ok(sampling)
    }

    /// What no field can tell by itself.
    fn agrees(&self) -> Result<(), ApiError> {
        if let (Some(old), Some(new)) = (self.max_tokens, self.max_completion_tokens)
            && old != new
        {
            let message = format!("'max_tokens' ({old}) and 'max_completion_tokens' ({new}) differ: send one of them.");
            return Err(ApiError::param("max_tokens", "invalid_value", message));
        }
        if let (Some(min), Some(max)) = (self.min_tokens, self.tokens_max())
            && min > max
        {
            let message = format!("'min_tokens' ({min}) is more than the most tokens asked for ({max}).");
            return Err(ApiError::param("min_tokens", "invalid_value", message));
        }
        if self.stream_options.is_some() && !self.streams() {
            let message = "'stream_options' is only allowed when 'stream' is true.";
            return Err(ApiError::param("stream_options", "invalid_value", message));
        }
        Ok(())
    }

    /// New tokens per choice, under either name.
    pub fn tokens_max(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// Choices wanted.
    pub fn choices(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// Class among the tenant's own requests.
    pub fn priority(&self) -> u8 {
        self.priority.unwrap_or(0)
    }

    /// Whether events are wanted.
    pub fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// What the events carry.
    pub fn options(&self) -> StreamOptions {
        self.stream_options.unwrap_or_default()
    }

    /// As the engine wants it, with OpenAI's defaults.
    pub fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            // -1 is how vLLM's clients say "all".
            top_k: self.top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(0),
            min_p: self.min_p.unwrap_or(0.0),
            // The bits are what counts: each seed of the 64-bit range is another one.
            seed: self.seed.map(i64::cast_unsigned),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            logit_bias: self.logit_bias.clone().unwrap_or_default(),
        }
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Option<Vec<(u32, f32)>>, ApiError> {
    let entries: Map<String, Value> = match fields.take("logit_bias") {
        None => return Ok(None),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(wrong_type("logit_bias", "an object", &other)),
    };
    if entries.len() > LOGIT_BIAS_LEN_MAX {
        return Err(too_many("logit_bias", entries.len(), LOGIT_BIAS_LEN_MAX));
    }
    let one = |(key, value): (String, Value)| {
        // One spelling per id, so that no id comes twice: no sign, no leading zero.
        let canonical = key.parse::<u32>().ok().filter(|id| id.to_string() == key);
        let Some(id) = canonical else {
            let message = format!("Invalid 'logit_bias': the key '{}' is not a token id.", excerpt(&key));
            return Err(ApiError::param("logit_bias", "invalid_value", message));
        };
        Ok((id, number(&format!("logit_bias.{id}"), &value, Bounds::closed(-100.0, 100.0))?))
    };
    entries.into_iter().map(one).collect::<Result<_, _>>().map(Some)
}

fn stop(fields: &mut Fields) -> Result<Option<Vec<String>>, ApiError> {
    let list = match fields.take("stop") {
        None => return Ok(None),
        Some(Value::Array(list)) if list.len() > STOP_LEN_MAX => {
            return Err(too_many("stop", list.len(), STOP_LEN_MAX));
        }
        Some(Value::Array(list)) => list,
        Some(one @ Value::String(_)) => vec![one],
        Some(other) => return Err(wrong_type("stop", "a string or a list of strings", &other)),
    };
    let one = |(index, item)| {
        let path = format!("stop[{index}]");
        match item {
            Value::String(text) if text.is_empty() => Err(empty_string(path)),
            Value::String(text) if text.len() > STOP_BYTES_MAX => Err(too_long(path, STOP_BYTES_MAX)),
            Value::String(text) => Ok(text),
            other => Err(wrong_type(path, "a string", &other)),
        }
    };
    list.into_iter().enumerate().map(one).collect::<Result<_, _>>().map(Some)
}

fn stream_options(fields: &mut Fields) -> Result<Option<StreamOptions>, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok(None) };
    let read = StreamOptions {
        include_usage: options.boolean("include_usage")?,
        continuous_usage_stats: options.boolean("continuous_usage_stats")?,
    };
    options.only("include_obfuscation", |wanted| *wanted == false, "Events are not padded.")?;
    options.finish()?;
    Ok(Some(read))
}

/// A list of token ids. Whether the model has them is the engine's to say.
pub(super) fn token_ids(path: &str, items: &[Value]) -> Result<Vec<u32>, ApiError> {
    let one = |(index, item)| {
        let id = integer(&format!("{path}[{index}]"), item, &(0..=i64::from(u32::MAX)))?;
        Ok(u32::try_from(id).expect("ranged to 32 bits"))
    };
    items.iter().enumerate().map(one).collect()
}
