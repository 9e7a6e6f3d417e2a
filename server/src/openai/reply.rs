//! What goes out: bodies and stream chunks, field by field as OpenAI's specification has them.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;
use weir_runtime::{FinishReason, StopReason, TokenLogprob, TopLogprob};

/// What OpenAI sends for a probability of zero; JSON has no infinities.
const LOGPROB_MIN: f32 = -9999.0;

/// A whole chat answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// As asked for.
    pub model: String,
    /// Changes when the same seed may draw differently.
    pub system_fingerprint: String,
    /// In order of `index`.
    pub choices: Vec<ChatChoice>,
    /// What it took.
    pub usage: Usage,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatChoice {
    /// From 0.
    pub index: u32,
    /// The text.
    pub message: AnswerMessage,
    /// If asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: Option<&'static str>,
}

/// The assistant's message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// Always null.
    pub refusal: Option<String>,
}

/// One event of a chat stream.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatChunk {
    /// The same on every chunk.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// The same on every chunk.
    pub created: u64,
    /// As asked for.
    pub model: String,
    /// The same on every chunk.
    pub system_fingerprint: String,
    /// One choice, or none on the usage chunk.
    pub choices: Vec<ChatDelta>,
    /// Absent unless asked for; null on all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// What is new of one choice.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatDelta {
    /// From 0.
    pub index: u32,
    /// Empty on the last chunk of a choice.
    pub delta: Delta,
    /// If asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// On the last chunk of a choice: `stop` or `length`.
    pub finish_reason: Option<&'static str>,
}

/// New text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Delta {
    /// `assistant`, on the first chunk of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Empty on the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Log-probabilities of chat tokens.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One for each token.
    pub content: Vec<ChatTokenLogprob>,
    /// Always null.
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatTokenLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The most likely tokens at this place.
    pub top_logprobs: Vec<ChatTopLogprob>,
}

/// A token that could have been chosen.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatTopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A completions answer, or one event of a completions stream.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Completion {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// As asked for.
    pub model: String,
    /// Changes when the same seed may draw differently.
    pub system_fingerprint: String,
    /// `n` for each prompt, prompt by prompt; one in an event, none on the usage chunk.
    pub choices: Vec<CompletionChoice>,
    /// Always there in a body; as with chat chunks in a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// One continuation.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// The text.
    pub text: String,
    /// `prompt index * n + choice`.
    pub index: u32,
    /// If asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: Option<&'static str>,
}

/// Log-probabilities of completion tokens, one entry for each in every list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// Their text.
    pub tokens: Vec<String>,
    /// Natural logarithms.
    pub token_logprobs: Vec<f32>,
    /// The most likely tokens at each place; null when none were asked for.
    pub top_logprobs: Option<Vec<BTreeMap<String, f32>>>,
    /// Where each begins in the choice's text, in characters.
    pub text_offset: Vec<usize>,
}

/// An embeddings answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EmbeddingList {
    /// `list`.
    pub object: &'static str,
    /// In the order of the inputs.
    pub data: Vec<Embedding>,
    /// As asked for.
    pub model: String,
    /// What it took.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// Which input.
    pub index: u32,
    /// L2-normalised.
    pub embedding: Vector,
}

/// A vector in either encoding.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Little-endian 32-bit floats in base64.
    Base64(String),
}

/// Tokens and device time of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Usage {
    /// After the template; each prompt once, however many choices.
    pub prompt_tokens: u32,
    /// All choices together.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// Known at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// Known at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weir: Option<DeviceUsage>,
}

/// Where prompt tokens came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Found in the tenant's own prefix cache.
    pub cached_tokens: u32,
}

/// What the tenant pays.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct DeviceUsage {
    /// Device time charged, to the microsecond.
    pub device_seconds: f64,
    /// `quota`: the tenant's quota of device time was spent, and every choice with `finish_reason` `length` may have ended there. Absent
    /// otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<&'static str>,
}

/// Tokens and device time of an embedding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct EmbeddingUsage {
    /// All inputs together.
    pub prompt_tokens: u32,
    /// The same.
    pub total_tokens: u32,
    /// What the tenant pays.
    pub weir: DeviceUsage,
}

impl Usage {
    /// What is known while a stream runs.
    pub(crate) fn so_far(prompt_tokens: u32, completion_tokens: u32) -> Self {
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: None,
            weir: None,
        }
    }
}

impl From<weir_runtime::Usage> for Usage {
    fn from(usage: weir_runtime::Usage) -> Self {
        Usage {
            prompt_tokens_details: Some(PromptTokensDetails { cached_tokens: usage.cached_tokens }),
            weir: Some(DeviceUsage { stop: usage.stop.map(stop_word), ..usage.device_nanos.into() }),
            ..Usage::so_far(usage.prompt_tokens, usage.completion_tokens)
        }
    }
}

impl From<weir_runtime::Usage> for EmbeddingUsage {
    fn from(usage: weir_runtime::Usage) -> Self {
        EmbeddingUsage {
            prompt_tokens: usage.prompt_tokens,
            total_tokens: usage.prompt_tokens,
            weir: usage.device_nanos.into(),
        }
    }
}

impl From<u64> for DeviceUsage {
    /// From nanoseconds, rounded to the nearest microsecond.
    fn from(nanos: u64) -> Self {
        let micros = nanos / 1000 + u64::from(nanos % 1000 >= 500);
        DeviceUsage { device_seconds: micros as f64 / 1e6, stop: None }
    }
}

/// OpenAI's word for an ending.
pub(crate) fn finish_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

fn stop_word(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Quota => "quota",
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LOGPROB_MIN }
}

impl ChatLogprobs {
    pub(crate) fn new(tokens: Vec<TokenLogprob>) -> Self {
        let top = |t: TopLogprob| ChatTopLogprob { token: t.token, logprob: finite(t.logprob), bytes: t.bytes };
        let one = |t: TokenLogprob| ChatTokenLogprob {
            token: t.chosen.token,
            logprob: finite(t.chosen.logprob),
            bytes: t.chosen.bytes,
            top_logprobs: t.top.into_iter().map(top).collect(),
        };
        ChatLogprobs { content: tokens.into_iter().map(one).collect(), refusal: None }
    }
}

impl CompletionLogprobs {
    /// `top` is how many alternatives were asked for.
    pub(crate) fn new(tokens: Vec<TokenLogprob>, top: u32) -> Self {
        let mut lists = CompletionLogprobs { top_logprobs: (top > 0).then(Vec::new), ..Default::default() };
        for token in tokens {
            lists.tokens.push(token.chosen.token);
            lists.token_logprobs.push(finite(token.chosen.logprob));
            lists.text_offset.push(token.text_offset);
            if let Some(list) = &mut lists.top_logprobs {
                list.push(token.top.into_iter().map(|t| (t.token, finite(t.logprob))).collect());
            }
        }
        lists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_time_is_rounded_to_microseconds() {
        let cases = [(0, 0.0), (499, 0.0), (500, 1e-6), (1_234_567_890, 1.234568), (86_400_000_000_000, 86_400.0)];
        for (nanos, seconds) in cases {
            assert_eq!(DeviceUsage::from(nanos).device_seconds, seconds, "{nanos} ns");
        }
    }

    #[test]
    fn impossible_tokens_have_a_finite_logprob() {
        let top = TopLogprob { token: "a".into(), bytes: vec![97], logprob: f32::NEG_INFINITY };
        let token = TokenLogprob { chosen: top.clone(), top: vec![top], text_offset: 0 };
        let json = serde_json::to_value(ChatLogprobs::new(vec![token])).expect("JSON");
        assert_eq!(json["content"][0]["logprob"], -9999.0);
        assert_eq!(json["content"][0]["top_logprobs"][0]["logprob"], -9999.0);
    }
}
