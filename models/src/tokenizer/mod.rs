//! Text to ids and ids to bytes.

mod checked;
mod gguf;
mod pipeline;
mod special;
mod spelling;
mod spm;
mod words;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::PreTokenizerWrapper;

use crate::ModelError;
use pipeline::{Pipeline, SharedModel};
use special::{Piece, Special, Specials};
use spelling::{Spelling, TokenBytes};
use words::Cutter;

pub(crate) use gguf::{adds_bos, from_gguf};

/// The tokenizer of a model. Cheap to clone; safe to use from many threads at once.
///
/// Text of users is encoded with control tokens switched off ([`encode_text`](Self::encode_text)): `<|im_end|>` in it is six
/// ordinary tokens. Only the output of a chat template may hold control tokens ([`encode_rendered`](Self::encode_rendered)),
/// and content that goes into a template is passed through [`escape_specials`](Self::escape_specials) first.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Control tokens are recognised.
    rendered: Pipeline,
    /// Control tokens are text.
    text: Pipeline,
    /// As `text`, for a piece behind a control token; only where that makes a difference.
    text_behind: Option<Pipeline>,
    specials: Specials,
    is_special: Vec<bool>,
    bytes: TokenBytes,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(crate) fn from_json_file(path: &Path) -> Result<Self, ModelError> {
        let damaged = |reason: String| ModelError::Damaged { path: path.to_owned(), reason };
        let bytes = crate::json::read_bytes(path, crate::json::TOKENIZER_MAX)?;
        crate::json::check(path, &bytes)?;
        let added = checked::check(&bytes).map_err(damaged)?;
        let stock: tokenizers::Tokenizer = fenced(|| Ok(serde_json::from_slice(&bytes)))?
            .map_err(|error: serde_json::Error| damaged(error.to_string()))?;
        drop(bytes);
        // `tokenizers` numbers added tokens itself, and only warns where the file says otherwise.
        if let Some((token, id)) = added.iter().find(|(token, id)| stock.token_to_id(token) != Some(*id)) {
            return Err(damaged(format!("its added token `{token}` cannot have the id {id}")));
        }
        let spelling = spelling_of(&stock);
        let stock = stock.into_inner();
        // Truncation and padding that the file asks for are left behind: lengths are the caller's business.
        let mut pipeline = Pipeline::new(SharedModel::from(stock.get_model().clone()));
        pipeline.with_normalizer(stock.get_normalizer().cloned()).map_err(ModelError::tokenizer)?;
        pipeline.with_pre_tokenizer(stock.get_pre_tokenizer().cloned().map(Cutter::new).transpose()?);
        pipeline.with_post_processor(stock.get_post_processor().cloned());
        pipeline.with_added_vocabulary(stock.get_added_vocabulary().clone());
        let mut vocabulary: Vec<(String, u32)> = stock.get_vocab(true).into_iter().collect();
        vocabulary.sort_unstable_by_key(|(_, id)| *id);
        Self::assemble(pipeline, spelling, vocabulary.iter().map(|(token, id)| (token.as_str(), *id)))
    }

    /// Builds the three pipelines from the one that recognises control tokens. `vocabulary` is in the order of the ids.
    fn assemble<'a>(
        mut rendered: Pipeline,
        spelling: Spelling,
        vocabulary: impl Iterator<Item = (&'a str, u32)>,
    ) -> Result<Self, ModelError> {
        rendered.set_encode_special_tokens(false);
        let added = rendered.get_added_tokens_decoder();
        let mut bytes = TokenBytes::default();
        for (token, id) in vocabulary {
            if id as usize > VOCABULARY_MAX {
                return Err(ModelError::tokenizer(format!("the token id {id} is past {VOCABULARY_MAX}")));
            }
            while bytes.len() < id as usize {
                bytes.push(&[]);
            }
            match added.get(&id) {
                // Two tokens of one id: the first stays.
                _ if bytes.len() > id as usize => {}
                Some(added) => bytes.push(added.content.as_bytes()),
                None => bytes.push(&spelling.bytes(token)),
            }
        }
        let mut is_special = vec![false; bytes.len()];
        let mut specials = Vec::new();
        for (&id, token) in added.iter().filter(|(_, token)| token.special) {
            if let Some(flag) = is_special.get_mut(id as usize) {
                *flag = true;
            }
            specials.push(Special {
                id,
                content: token.content.clone(),
                strips_left: token.lstrip,
                strips_right: token.rstrip,
            });
        }
        let mut text = rendered.clone();
        text.set_encode_special_tokens(true);
        let text_behind = behind_special(text.get_pre_tokenizer().map(Cutter::declared))?;
        let text_behind = match text_behind {
            Some(declared) => {
                let mut behind = text.clone();
                behind.with_pre_tokenizer(Some(Cutter::new(declared)?));
                Some(behind)
            }
            None => None,
        };
        let specials = Specials::new(specials)?;
        Ok(Self(Arc::new(Inner { rendered, text, text_behind, specials, is_special, bytes })))
    }

    /// The ids of `text`, in which nothing is a control token. `add_special` adds what the model wants around a text
    /// (`<s>`, `[CLS]` and `[SEP]`).
    pub fn encode_text(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError> {
        encode(&self.0.text, text, add_special)
    }

    /// The ids of a rendered chat template, in which control tokens are recognised and to which none is added.
    ///
    /// With `mark`, the character given to [`escape_specials`](Self::escape_specials), broken control tokens are text and
    /// the mark itself vanishes. Text that was not escaped gives the same ids with a mark and without.
    pub fn encode_rendered(&self, rendered: &str, mark: Option<char>) -> Result<Vec<u32>, ModelError> {
        let Some(mark) = mark.filter(|mark| rendered.contains(*mark)) else {
            return encode(&self.0.rendered, rendered, false);
        };
        let mut ids = Vec::new();
        for (index, piece) in self.0.specials.split(rendered, mark).into_iter().enumerate() {
            match piece {
                Piece::Control(id) => ids.push(id),
                Piece::Text(text) => {
                    let behind = self.0.text_behind.as_ref().filter(|_| index > 0);
                    ids.extend(encode(behind.unwrap_or(&self.0.text), &text, false)?);
                }
            }
        }
        Ok(ids)
    }

    /// `content` with every control token in it broken by `mark`, a character that occurs in no message (a private-use one).
    pub fn escape_specials<'a>(&self, content: &'a str, mark: char) -> Cow<'a, str> {
        self.0.specials.escape(content, mark)
    }

    /// The exact bytes of `id`; empty when the vocabulary has no such id. A character may be spread over several tokens, so
    /// these are not always UTF-8.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.0.bytes.get(id)
    }

    /// Whether `id` is a control token, which has no place in the text of an answer.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.is_special.get(id as usize).copied().unwrap_or(false)
    }

    /// One more than the largest id. A model's output may be wider (padded); such ids have no bytes.
    pub fn vocab_size(&self) -> u32 {
        // Bounded by VOCABULARY_MAX.
        self.0.bytes.len() as u32
    }

    /// The id of `token` as the vocabulary writes it (`Ġthe`, `<|im_end|>`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.rendered.token_to_id(token)
    }

    /// The control tokens with their ids.
    pub fn specials(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0.specials.iter().map(|special| (special.content.as_str(), special.id))
    }
}

/// The largest token id that is accepted; vocabularies today end below 2^19.
const VOCABULARY_MAX: usize = 1 << 22;

fn encode(pipeline: &Pipeline, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError> {
    fenced(|| Ok(pipeline.encode_fast(text, add_special).map_err(ModelError::tokenizer)?.get_ids().to_vec()))
}

/// Runs code of `tokenizers`, which panics where a file breaks rules that it does not check. Those we know of are checked in
/// [`checked`]; one that we do not know of is an error of the model or of the text, and not the end of a thread. Nothing that
/// is shared is written to meanwhile, so nothing is left half done.
fn fenced<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(ModelError::tokenizer("it failed in a way that is a bug")))
}

/// The spelling that a `tokenizer.json` declares through its decoder, or else through its pre-tokenizer.
fn spelling_of(tokenizer: &tokenizers::Tokenizer) -> Spelling {
    let declared = [
        serde_json::to_value(tokenizer.get_decoder()),
        serde_json::to_value(tokenizer.get_pre_tokenizer()),
        serde_json::to_value(tokenizer.get_normalizer()),
    ];
    for value in declared.iter().flatten() {
        for (kind, spelling) in [
            ("ByteLevel", Spelling::ByteLevel),
            ("Metaspace", Spelling::SentencePiece),
            ("ByteFallback", Spelling::SentencePiece),
            ("WordPiece", Spelling::WordPiece),
        ] {
            if has_type(value, kind) {
                return spelling;
            }
        }
    }
    Spelling::Plain
}

/// Whether `value` is, or holds somewhere, an object of `"type": kind`.
fn has_type(value: &Value, kind: &str) -> bool {
    match value {
        Value::Object(map) => {
            map.get("type").and_then(Value::as_str) == Some(kind) || map.values().any(|value| has_type(value, kind))
        }
        Value::Array(values) => values.iter().any(|value| has_type(value, kind)),
        _ => false,
    }
}

/// A pre-tokenizer may put a space before the very beginning of a text (`"prepend_scheme": "first"`). The same one for a
/// piece that is not the beginning; `None` where there is no difference.
fn behind_special(pre_tokenizer: Option<&PreTokenizerWrapper>) -> Result<Option<PreTokenizerWrapper>, ModelError> {
    fn rewrite(value: &mut Value) -> bool {
        match value {
            Value::Object(map) => match map.get_mut("prepend_scheme") {
                Some(scheme) if scheme == "first" => {
                    *scheme = "never".into();
                    true
                }
                _ => map.values_mut().fold(false, |changed, value| rewrite(value) | changed),
            },
            Value::Array(values) => values.iter_mut().fold(false, |changed, value| rewrite(value) | changed),
            _ => false,
        }
    }
    let mut value = serde_json::to_value(pre_tokenizer).map_err(ModelError::tokenizer)?;
    if !rewrite(&mut value) {
        return Ok(None);
    }
    serde_json::from_value(value).map(Some).map_err(ModelError::tokenizer)
}
