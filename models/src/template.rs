//! Chat templates as models carry them. Rendering is not done here.

use std::path::Path;

use serde::Deserialize;

use crate::ModelError;
use crate::json;

/// The chat template of a model and the variables that models expect beside the messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    /// Jinja source.
    pub source: String,
    /// Text of the token a text begins with; empty when there is none.
    pub bos_token: String,
    /// Text of the token an answer ends with; empty when there is none.
    pub eos_token: String,
}

/// The parts of a `tokenizer_config.json` that are used.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct TokenizerConfig {
    chat_template: Option<TemplateField>,
    bos_token: Option<TokenField>,
    eos_token: Option<TokenField>,
    pub(crate) add_bos_token: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenField {
    Text(String),
    Added { content: String },
}

impl TokenField {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

impl TokenizerConfig {
    /// The text of the token a text begins with.
    pub(crate) fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_ref().map(TokenField::text)
    }
}

/// The template of a folder: `chat_template.jinja`, or else the one in `tokenizer_config.json` (of several, `default`).
pub(crate) fn from_folder(folder: &Path, config: &TokenizerConfig) -> Result<Option<ChatTemplate>, ModelError> {
    let file = folder.join("chat_template.jinja");
    let source = if file.is_file() {
        let bytes = json::read_bytes(&file, json::TEMPLATE_MAX)?;
        Some(
            String::from_utf8(bytes)
                .map_err(|_| ModelError::Damaged { path: file, reason: "it is not UTF-8".into() })?,
        )
    } else {
        match &config.chat_template {
            None => None,
            Some(TemplateField::One(source)) => Some(source.clone()),
            Some(TemplateField::Named(list)) => {
                list.iter().find(|named| named.name == "default").map(|named| named.template.clone())
            }
        }
    };
    if let Some(source) = &source {
        check_len(&folder.join("tokenizer_config.json"), source)?;
    }
    let text = |token: &Option<TokenField>| token.as_ref().map_or(String::new(), |token| token.text().to_owned());
    Ok(source.map(|source| ChatTemplate {
        source,
        bos_token: text(&config.bos_token),
        eos_token: text(&config.eos_token),
    }))
}

/// A template is compiled when the model is opened and runs for every conversation: its size is bounded.
pub(crate) fn check_len(path: &Path, source: &str) -> Result<(), ModelError> {
    if source.len() as u64 <= json::TEMPLATE_MAX {
        return Ok(());
    }
    let reason = format!("its chat template has {} bytes, at most {} are read", source.len(), json::TEMPLATE_MAX);
    Err(ModelError::Damaged { path: path.to_owned(), reason })
}
