//! What a caller hands to the engine: wire-free, already ranged. The engine still checks what only it knows: the
//! vocabulary, the context length, the template.

use std::sync::Arc;

use weir_scheduler::TenantId;

/// One generation request: `n` choices from one prompt.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Who pays.
    pub tenant: TenantId,
    /// Who asks, by the visible part of the credential; empty where nobody said.
    pub key: Arc<str>,
    /// The id under which its bill is to be found: unique for its tenant for ever. The engine makes one where there is none.
    pub bill: Option<Arc<str>>,
    /// The model's served name.
    pub model: String,
    /// The id in the request's headers, under which it can be asked for; never interpreted.
    pub request_id: String,
    /// The id in the answer, if it has one: unique, and the same for all prompts of it. The request can be asked for by it, too.
    pub answer_id: Option<String>,
    /// Its class inside the tenant, 0 the most urgent.
    pub priority: u8,
    /// What to continue.
    pub prompt: Prompt,
    /// Choices wanted, at least 1.
    pub n: u32,
    /// How ids are drawn.
    pub sampling: SamplingParams,
    /// New tokens per choice; absent takes what the context leaves.
    pub max_tokens: Option<u32>,
    /// Tokens before an end-of-sequence id or a stop string counts.
    pub min_tokens: u32,
    /// Strings that end a choice; none is empty.
    pub stop: Vec<String>,
    /// Go on past the end-of-sequence id.
    pub ignore_eos: bool,
    /// Report log-probabilities, with that many alternatives.
    pub logprobs: Option<u32>,
    /// Put the prompt's text before the completion's.
    pub echo: bool,
}

/// What a request continues.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A conversation, put through the model's template.
    Chat(Vec<ChatMessage>),
    /// Plain text; special tokens spelled in it stay text.
    Text(String),
    /// Token ids, checked against the vocabulary.
    Tokens(Vec<u32>),
}

/// One message of a conversation.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// The participant's name, where the template shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ChatMessage {
    /// Bytes that its sender chose: content and name.
    pub(crate) fn bytes(&self) -> usize {
        self.content.len() + self.name.as_ref().map_or(0, String::len)
    }
}

/// How ids are drawn from the logits.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SamplingParams {
    /// 0 takes the most likely id.
    pub temperature: f32,
    /// Mass of the nucleus, in (0, 1].
    pub top_p: f32,
    /// Candidates kept; 0 keeps all.
    pub top_k: u32,
    /// Floor against the most likely id's probability, in [0, 1].
    pub min_p: f32,
    /// Same seed, same prompt: same draw.
    pub seed: Option<u64>,
    /// Subtracted from a logit once per earlier occurrence in the output.
    pub frequency_penalty: f32,
    /// Subtracted from a logit that occurred in the output.
    pub presence_penalty: f32,
    /// Divides (or multiplies) a logit that occurred in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Added to single logits.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
        }
    }
}

/// One embedding request: a vector for each input.
#[derive(Debug, Clone)]
pub struct EmbedSubmission {
    /// Who pays.
    pub tenant: TenantId,
    /// Who asks, by the visible part of the credential; empty where nobody said.
    pub key: Arc<str>,
    /// The id under which its bill is to be found: unique for its tenant for ever. The engine makes one where there is none.
    pub bill: Option<Arc<str>>,
    /// The model's served name.
    pub model: String,
    /// The id in the request's headers, under which it can be asked for; never interpreted.
    pub request_id: String,
    /// Its class inside the tenant, 0 the most urgent.
    pub priority: u8,
    /// What to embed, in order.
    pub inputs: Vec<EmbedInput>,
    /// Cut inputs that are too long, instead of refusing them.
    pub truncate: bool,
}

/// One text to embed.
#[derive(Debug, Clone)]
pub enum EmbedInput {
    /// Text; special tokens spelled in it stay text.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
}

/// The answer to an [`EmbedSubmission`].
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// One L2-normalised vector for each input, in order.
    pub vectors: Vec<Vec<f32>>,
    /// What it took.
    pub usage: Usage,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, after the template.
    pub prompt_tokens: u32,
    /// Those of them that were found in the tenant's prefix cache.
    pub cached_tokens: u32,
    /// Tokens drawn, all choices together.
    pub completion_tokens: u32,
    /// Device time charged, in nanoseconds.
    pub device_nanos: u64,
    /// Why it was cut short, if it was not the model or the caller that ended it.
    pub stop: Option<StopReason>,
}

/// What cut an answer short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The tenant's quota of device time was spent.
    Quota,
}
