//! From what a caller wrote to ids, off the async threads and a bounded number at a time; and the checks that only the
//! engine can make: vocabulary, context, template.

use crate::{
    card::ModelCard,
    codec::CodecError,
    error::SubmitError,
    submission::{ChatMessage, EmbedInput, Prompt, Submission},
};

use super::{EMBED_TOKENS_MAX, Engine, models::Served};

impl Engine {
    pub(super) async fn encode_prompt(&self, model: &Served, prompt: Prompt) -> Result<Vec<u32>, SubmitError> {
        let card = &model.card;
        let ids = match prompt {
            Prompt::Tokens(ids) => {
                check_ids(&ids, card.vocab_size, "prompt")?;
                ids
            }
            Prompt::Text(text) => {
                check_bytes(text.len(), card.context_len, "prompt")?;
                let codec = model.codec.clone();
                self.on_encoder(text.len(), move || codec.encode_text(&text))
                    .await?
                    .map_err(|e| encode_error(e, "prompt"))?
            }
            Prompt::Chat(messages) => {
                let len = messages.iter().map(ChatMessage::bytes).sum();
                check_bytes(len, card.context_len, "messages")?;
                let codec = model.codec.clone();
                self.on_encoder(len, move || codec.encode_chat(&messages))
                    .await?
                    .map_err(|e| encode_error(e, "messages"))?
            }
        };
        if ids.is_empty() {
            return Err(invalid("the prompt is empty".into(), "prompt"));
        }
        Ok(ids)
    }

    /// The ids of every input. With `truncate`, an input is cut to what the model takes: its text to the bytes that can
    /// matter, before it is tokenised, and then its ids.
    pub(super) async fn encode_inputs(
        &self,
        model: &Served,
        inputs: Vec<EmbedInput>,
        truncate: bool,
    ) -> Result<Vec<Vec<u32>>, SubmitError> {
        let (codec, vocab_size) = (model.codec.clone(), model.card.vocab_size);
        let len_max = model.embed_len_max as usize;
        let encode = move || {
            let mut all = Vec::with_capacity(inputs.len());
            let mut tokens = 0;
            for (at, input) in inputs.into_iter().enumerate() {
                let mut ids = match input {
                    EmbedInput::Text(text) => {
                        let text = match truncate {
                            true => &text[..text.floor_char_boundary(bytes_max(len_max))],
                            false => {
                                check_bytes(text.len(), len_max as u32, "input")?;
                                &text
                            }
                        };
                        codec.encode_text(text).map_err(|e| encode_error(e, "input"))?
                    }
                    EmbedInput::Tokens(ids) => {
                        check_ids(&ids, vocab_size, "input")?;
                        ids
                    }
                };
                if ids.is_empty() {
                    return Err(invalid(format!("input {at} is empty"), "input"));
                }
                if ids.len() > len_max {
                    if !truncate {
                        let message = format!(
                            "input {at} has {} tokens; the model takes {len_max} (set `truncate` to cut it)",
                            ids.len()
                        );
                        return Err(SubmitError::ContextTooLong { message, param: "input" });
                    }
                    // The closing special token is part of what the model was trained on: keep it.
                    let last = ids.last().copied();
                    ids.truncate(len_max);
                    if let (Some(slot), Some(last)) = (ids.last_mut(), last) {
                        *slot = last;
                    }
                }
                // Counted as they come, so that nothing beyond the bound is tokenised.
                tokens += ids.len();
                if tokens > EMBED_TOKENS_MAX {
                    let message = format!("input holds more than {EMBED_TOKENS_MAX} tokens in all");
                    return Err(SubmitError::Invalid {
                        message,
                        param: Some("input"),
                        code: Some("array_above_max_length"),
                    });
                }
                all.push(ids);
            }
            Ok(all)
        };
        self.on_encoder(usize::MAX, encode).await?
    }

    /// Runs tokenising of `len` bytes off the async threads, a bounded number at a time; or at once, where going there and
    /// back would take longer.
    async fn on_encoder<T: Send + 'static>(
        &self,
        len: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SubmitError> {
        if len <= INLINE_BYTES_MAX {
            return Ok(work());
        }
        let failed = |_| SubmitError::Internal { message: "The tokenizer failed".into() };
        let permit = self.shared.encoders.clone().acquire_owned().await.map_err(|e| failed(e.to_string()))?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
        .map_err(|e| failed(e.to_string()))
    }
}

pub(super) fn echo_text(model: &Served, prompt: &Prompt) -> Option<String> {
    match prompt {
        Prompt::Chat(_) => None,
        Prompt::Text(text) => Some(text.clone()),
        Prompt::Tokens(ids) => {
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| model.codec.output_bytes(id).to_vec()).collect();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
    }
}

pub(super) fn invalid(message: String, param: &'static str) -> SubmitError {
    SubmitError::Invalid { message, param: Some(param), code: None }
}

fn encode_error(error: CodecError, param: &'static str) -> SubmitError {
    invalid(error.to_string(), param)
}

fn check_ids(ids: &[u32], vocab_size: u32, param: &'static str) -> Result<(), SubmitError> {
    match ids.iter().find(|&&id| id >= vocab_size) {
        Some(id) => Err(invalid(format!("token id {id} is outside the vocabulary of {vocab_size}"), param)),
        None => Ok(()),
    }
}

/// Text that is tokenised where its request is, in some 100 us at most.
const INLINE_BYTES_MAX: usize = 512;

/// Bytes of text that are read for each position of the context. A token is rarely longer, so more cannot fit, and finding
/// that out by tokenising would cost far more.
const BYTES_PER_TOKEN_MAX: usize = 16;

fn bytes_max(context_len: usize) -> usize {
    context_len.saturating_mul(BYTES_PER_TOKEN_MAX)
}

/// Refuses text that cannot fit before it is rendered or tokenised.
fn check_bytes(len: usize, context_len: u32, param: &'static str) -> Result<(), SubmitError> {
    let len_max = bytes_max(context_len as usize);
    if len <= len_max {
        return Ok(());
    }
    let message = format!(
        "This model's context holds {context_len} tokens; {len} bytes of text are more than can fit ({len_max})."
    );
    Err(SubmitError::ContextTooLong { message, param })
}

pub(super) fn check_sampling(submission: &Submission, card: &ModelCard) -> Result<(), SubmitError> {
    for &(id, _) in &submission.sampling.logit_bias {
        if id >= card.vocab_size {
            let message = format!("logit_bias: token id {id} is outside the vocabulary of {}", card.vocab_size);
            return Err(invalid(message, "logit_bias"));
        }
    }
    if submission.n == 0 {
        return Err(invalid("n must be at least 1".into(), "n"));
    }
    Ok(())
}

/// Tokens a choice may add, checked against the context, as those are that it must.
pub(super) fn new_tokens_max(
    prompt_len: usize,
    (min, wanted): (u32, Option<u32>),
    card: &ModelCard,
    param: &'static str,
) -> Result<u32, SubmitError> {
    let context = card.context_len as usize;
    let too_long = |message: String| SubmitError::ContextTooLong { message, param };
    if prompt_len >= context {
        return Err(too_long(format!("The prompt has {prompt_len} tokens; the model's context holds {context}")));
    }
    let left = (context - prompt_len) as u32;
    match wanted {
        Some(wanted) if wanted > left => Err(too_long(format!(
            "The prompt has {prompt_len} tokens and {wanted} new ones were asked for; the model's context holds {context}"
        ))),
        Some(wanted) => Ok(wanted),
        None if min > left => Err(too_long(format!(
            "The prompt has {prompt_len} tokens and at least {min} new ones were asked for; the model's context holds \
             {context}"
        ))),
        None => Ok(left),
    }
}
