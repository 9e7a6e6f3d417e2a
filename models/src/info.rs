//! What a model is, without its weights.

use serde::{Deserialize, Serialize};

/// The kind of work a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// It continues text; its rows hold KV blocks.
    Generate,
    /// It turns a text into one vector; its rows hold no KV.
    Embed,
}

/// What a model is, read from its headers and configuration without touching a weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `llama`, `mistral`, `qwen2`, `qwen3` or `bert`.
    pub architecture: String,
    /// The kind of work it does.
    pub kind: ModelKind,
    /// Width of the output, which bounds token ids. May be larger than the tokenizer's vocabulary.
    pub vocab_size: u32,
    /// Positions the model was trained for.
    pub context_len: u32,
    /// Transformer layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Ids that end an answer, ascending.
    pub eos: Vec<u32>,
    /// The id a text begins with, if the model has one.
    pub bos: Option<u32>,
    /// Whether a text begins with `bos` unless a template says otherwise.
    pub add_bos: bool,
    /// Weights, counted.
    pub parameters: u64,
    /// Bytes of the weights in their files.
    pub weight_bytes: u64,
    /// The storage type that most of the weights have (`Q4_1`, `BF16`).
    pub quantization: String,
    /// Length of the vectors of an embedding model.
    pub embedding_dim: Option<u32>,
    /// Tokens that one input may have, control tokens included.
    pub max_input_len: u32,
}
