//! What clients may know of a model.

/// A served model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// The name clients use.
    pub name: String,
    /// It continues text.
    pub generates: bool,
    /// It embeds text.
    pub embeds: bool,
    /// Positions of a sequence, or tokens of an input.
    pub context_len: u32,
    /// Ids there are.
    pub vocab_size: u32,
    /// Dimensions of a vector.
    pub embedding_dim: Option<u32>,
    /// It can be given a conversation.
    pub has_chat_template: bool,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// Weights, counted.
    pub parameters: u64,
    /// Their type.
    pub quantization: String,
    /// Their shape's name.
    pub architecture: String,
}
