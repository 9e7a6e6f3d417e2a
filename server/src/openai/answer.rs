//! Gathers a stream's events into one body.

use weir_runtime::{FinishReason, StreamEvent, TokenLogprob};

use super::reply::{
    AnswerMessage, ChatChoice, ChatCompletion, ChatLogprobs, Completion, CompletionChoice, CompletionLogprobs, Usage,
    finish_word,
};
use crate::error::ApiError;

/// What every body and every chunk of one request has in common.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) system_fingerprint: String,
    /// How many alternatives to report for each token; `None` reports no log-probabilities.
    pub(crate) logprobs_top: Option<u32>,
}

/// The choices as far as they have come.
#[derive(Debug)]
pub(crate) struct Answer {
    choices: Vec<Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    text: String,
    logprobs: Vec<TokenLogprob>,
    reason: Option<FinishReason>,
}

impl Answer {
    pub(crate) fn new(choices: usize) -> Self {
        Answer { choices: (0..choices).map(|_| Gathered::default()).collect() }
    }

    /// Takes one event; says what the request took when it was the last.
    pub(crate) fn add(&mut self, event: StreamEvent) -> Result<Option<weir_runtime::Usage>, ApiError> {
        match event {
            StreamEvent::Delta { index, text, logprobs, .. } => {
                let choice = self.choice(index)?;
                choice.text.push_str(&text);
                choice.logprobs.extend(logprobs);
            }
            StreamEvent::Finished { index, reason } => self.choice(index)?.reason = Some(reason),
            StreamEvent::Done(usage) => return Ok(Some(usage)),
            StreamEvent::Failed(failure) => return Err(failure.into()),
        }
        Ok(None)
    }

    fn choice(&mut self, index: u32) -> Result<&mut Gathered, ApiError> {
        let found = usize::try_from(index).ok().and_then(|i| self.choices.get_mut(i));
        found.ok_or_else(|| ApiError::Internal("The engine answered for a choice nobody asked for.".into()))
    }

    pub(crate) fn chat(self, head: Head, usage: Usage) -> ChatCompletion {
        let logprobs = head.logprobs_top.is_some();
        let choice = |(index, gathered): (u32, Gathered)| ChatChoice {
            index,
            message: AnswerMessage { role: "assistant", content: gathered.text, refusal: None },
            logprobs: logprobs.then(|| ChatLogprobs::new(gathered.logprobs)),
            finish_reason: gathered.reason.map(finish_word),
        };
        ChatCompletion {
            id: head.id,
            object: "chat.completion",
            created: head.created,
            model: head.model,
            system_fingerprint: head.system_fingerprint,
            choices: (0..).zip(self.choices).map(choice).collect(),
            usage,
        }
    }

    pub(crate) fn completion(self, head: Head, usage: Usage) -> Completion {
        let choice = |(index, gathered): (u32, Gathered)| CompletionChoice {
            text: gathered.text,
            index,
            logprobs: head.logprobs_top.map(|top| CompletionLogprobs::new(gathered.logprobs, top)),
            finish_reason: gathered.reason.map(finish_word),
        };
        Completion {
            choices: (0..).zip(self.choices).map(choice).collect(),
            id: head.id,
            object: "text_completion",
            created: head.created,
            model: head.model,
            system_fingerprint: head.system_fingerprint,
            usage: Some(Some(usage)),
        }
    }
}
