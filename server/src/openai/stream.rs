//! Turns a stream's events into server-sent events, byte for byte as OpenAI's clients expect them.
//!
//! Each event is one `data: <json>` line and a blank line. A choice opens with a chunk that carries its role and empty
//! text (chat only), goes on with text, and ends with an empty chunk that carries the reason. Then comes the usage
//! chunk, if asked for, and `data: [DONE]`. An error after the status line is one event with `error` at its top, and
//! `[DONE]` all the same: every stream ends.

use weir_runtime::{StreamEvent, TokenLogprob};

use super::{
    answer::Head,
    reply::{
        ChatChunk, ChatDelta, ChatLogprobs, Completion, CompletionChoice, CompletionLogprobs, Delta, Usage, finish_word,
    },
    sampling::StreamOptions,
};
use crate::error::ApiError;

/// A comment: it keeps proxies from closing a silent connection, and clients skip it.
pub(crate) const KEEP_ALIVE: &str = ": keep-alive\n\n";

/// Which endpoint's chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Chat,
    Completion,
}

/// Whether more events follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Open,
    Ended,
}

/// The writer of one stream.
#[derive(Debug)]
pub(crate) struct Encoder {
    chunk: Chunk,
    logprobs_top: Option<u32>,
    options: StreamOptions,
    prompt_tokens: u32,
    /// One for each choice.
    choices: Vec<Choice>,
}

/// What is written for each event: only the choices and the usage change from one to the next.
#[derive(Debug)]
enum Chunk {
    Chat(ChatChunk),
    Completion(Completion),
}

#[derive(Debug, Clone, Default)]
struct Choice {
    opened: bool,
    tokens: u32,
}

impl Encoder {
    pub(crate) fn new(shape: Shape, head: Head, options: StreamOptions, prompt_tokens: u32, choices: usize) -> Self {
        let Head { id, created, model, system_fingerprint, logprobs_top } = head;
        let chunk = match shape {
            Shape::Chat => Chunk::Chat(ChatChunk {
                id,
                object: "chat.completion.chunk",
                created,
                model,
                system_fingerprint,
                choices: Vec::new(),
                usage: None,
            }),
            Shape::Completion => Chunk::Completion(Completion {
                id,
                object: "text_completion",
                created,
                model,
                system_fingerprint,
                choices: Vec::new(),
                usage: None,
            }),
        };
        Encoder { chunk, logprobs_top, options, prompt_tokens, choices: vec![Choice::default(); choices] }
    }

    /// Appends an event's lines to `out`.
    pub(crate) fn encode(&mut self, event: StreamEvent, out: &mut String) -> Progress {
        match event {
            StreamEvent::Delta { index, text, tokens, logprobs } => {
                self.open(index, out);
                if let Some(choice) = self.choices.get_mut(index as usize) {
                    choice.tokens = tokens;
                }
                // Bytes of an unfinished character show up as tokens before they show up as text.
                if !text.is_empty() || !logprobs.is_empty() {
                    self.chunk(index, Some(text), logprobs, None, out);
                }
                Progress::Open
            }
            StreamEvent::Finished { index, reason } => {
                self.open(index, out);
                self.chunk(index, None, Vec::new(), Some(finish_word(reason)), out);
                Progress::Open
            }
            StreamEvent::Done(usage) => {
                if self.options.include_usage == Some(true) {
                    self.usage_chunk(usage.into(), out);
                }
                done(out);
                Progress::Ended
            }
            StreamEvent::Failed(failure) => {
                Self::fail(&failure.into(), out);
                Progress::Ended
            }
        }
    }

    /// Appends an error and the end.
    pub(crate) fn fail(error: &ApiError, out: &mut String) {
        out.push_str("data: ");
        out.push_str(&error.body());
        out.push_str("\n\n");
        done(out);
    }

    fn open(&mut self, index: u32, out: &mut String) {
        let usage = self.usage_so_far();
        let Some(choice) = self.choices.get_mut(index as usize) else { return };
        if !std::mem::replace(&mut choice.opened, true)
            && let Chunk::Chat(chunk) = &mut self.chunk
        {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
            chunk.tell(Some(ChatDelta { index, delta, logprobs: None, finish_reason: None }), usage, out);
        }
    }

    fn chunk(
        &mut self,
        index: u32,
        text: Option<String>,
        logprobs: Vec<TokenLogprob>,
        finish_reason: Option<&'static str>,
        out: &mut String,
    ) {
        let usage = self.usage_so_far();
        let top = self.logprobs_top.filter(|_| !logprobs.is_empty());
        match &mut self.chunk {
            Chunk::Chat(chunk) => {
                let delta = Delta { role: None, content: text };
                let logprobs = top.map(|_| ChatLogprobs::new(logprobs));
                chunk.tell(Some(ChatDelta { index, delta, logprobs, finish_reason }), usage, out);
            }
            Chunk::Completion(chunk) => {
                let logprobs = top.map(|top| CompletionLogprobs::new(logprobs, top));
                let choice = CompletionChoice { text: text.unwrap_or_default(), index, logprobs, finish_reason };
                chunk.tell(Some(choice), usage, out);
            }
        }
    }

    fn usage_chunk(&mut self, usage: Usage, out: &mut String) {
        match &mut self.chunk {
            Chunk::Chat(chunk) => chunk.tell(None, Some(Some(usage)), out),
            Chunk::Completion(chunk) => chunk.tell(None, Some(Some(usage)), out),
        }
    }

    /// The `usage` of a chunk that is not the last: absent, null, or what is known.
    fn usage_so_far(&self) -> Option<Option<Usage>> {
        if self.options.continuous_usage_stats == Some(true) {
            let tokens = self.choices.iter().fold(0u32, |sum, c| sum.saturating_add(c.tokens));
            return Some(Some(Usage::so_far(self.prompt_tokens, tokens)));
        }
        (self.options.include_usage == Some(true)).then_some(None)
    }
}

impl ChatChunk {
    fn tell(&mut self, choice: Option<ChatDelta>, usage: Option<Option<Usage>>, out: &mut String) {
        self.choices.clear();
        self.choices.extend(choice);
        self.usage = usage;
        event(self, out);
    }
}

impl Completion {
    fn tell(&mut self, choice: Option<CompletionChoice>, usage: Option<Option<Usage>>, out: &mut String) {
        self.choices.clear();
        self.choices.extend(choice);
        self.usage = usage;
        event(self, out);
    }
}

fn event(chunk: &impl serde::Serialize, out: &mut String) {
    out.push_str("data: ");
    out.push_str(&serde_json::to_string(chunk).expect("strings and numbers always serialise"));
    out.push_str("\n\n");
}

fn done(out: &mut String) {
    out.push_str("data: [DONE]\n\n");
}
