//! What a request's reader sees. The writer (the engine thread) never waits: text is coalesced in a bounded outbox, so
//! a slow reader costs at most [`OUTBOX_BYTES_MAX`] and holds neither KV blocks nor a step.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    error::{FailureKind, RequestFailure},
    submission::Usage,
};

/// Unread bytes a request may have; beyond it the request fails as [`FailureKind::SlowReader`].
pub const OUTBOX_BYTES_MAX: usize = 64 << 10;

/// One thing that happened to a request. Exactly one `Done` or `Failed` comes, and it comes last.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// New text of one choice.
    Delta {
        /// The choice.
        index: u32,
        /// Whole characters.
        text: String,
        /// Completion tokens of this choice so far.
        tokens: u32,
        /// One for each token of `text`, if asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// A choice has ended.
    Finished {
        /// The choice.
        index: u32,
        /// Why.
        reason: FinishReason,
    },
    /// All choices have ended and the request is settled.
    Done(Usage),
    /// The request ended without its answer.
    Failed(RequestFailure),
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence id or a stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

/// A token's log-probability under the model (before temperature and truncation) and its rivals'.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The chosen token.
    pub chosen: TopLogprob,
    /// The most likely ones, best first.
    pub top: Vec<TopLogprob>,
    /// Where the token's text begins in the choice's text, in characters.
    pub text_offset: usize,
}

/// One token and its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct TopLogprob {
    /// Its text, with replacement characters where its bytes are not UTF-8 by themselves.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f32,
}

/// The reader's end. Dropping it cancels the request.
#[derive(Debug)]
pub struct TokenStream {
    /// What comes before anything the engine writes; the caller's own text, so it does not count against the outbox.
    first: VecDeque<StreamEvent>,
    outbox: Arc<Outbox>,
    prompt_tokens: u32,
    cancel: Option<CancelOnDrop>,
}

/// Tells the engine, when it is dropped, that nobody waits for a request any more. It is made as the request is sent,
/// so that a caller may go away at any moment; a cancel of a request that was refused or has ended changes nothing.
pub(crate) struct CancelOnDrop(Option<Box<dyn FnOnce() + Send + Sync>>);

impl CancelOnDrop {
    pub(crate) fn new(cancel: impl FnOnce() + Send + Sync + 'static) -> Self {
        CancelOnDrop(Some(Box::new(cancel)))
    }

    /// The request has ended.
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(cancel) = self.0.take() {
            cancel();
        }
    }
}

impl std::fmt::Debug for CancelOnDrop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CancelOnDrop")
    }
}

impl TokenStream {
    pub(crate) fn new(outbox: Arc<Outbox>, prompt_tokens: u32, cancel: CancelOnDrop) -> Self {
        TokenStream { first: VecDeque::new(), outbox, prompt_tokens, cancel: Some(cancel) }
    }

    /// Puts a text before that of each of `n` choices.
    pub(crate) fn echo(&mut self, text: &str, n: u32) {
        self.first.extend((0..n).map(|index| StreamEvent::Delta {
            index,
            text: text.to_owned(),
            tokens: 0,
            logprobs: Vec::new(),
        }));
    }

    /// A stream that tells a prepared story; for tests of what reads streams.
    pub fn scripted(prompt_tokens: u32, events: impl IntoIterator<Item = StreamEvent>) -> Self {
        let outbox = Arc::new(Outbox::default());
        outbox.lock().events.extend(events);
        TokenStream { first: VecDeque::new(), outbox, prompt_tokens, cancel: None }
    }

    /// Tokens of the prompt, after the template.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        if let Some(event) = self.first.pop_front() {
            return Some(event);
        }
        loop {
            let notified = self.outbox.notify.notified();
            {
                let mut state = self.outbox.lock();
                if let Some(event) = state.events.pop_front() {
                    state.bytes = state.bytes.saturating_sub(weight(&event));
                    if matches!(event, StreamEvent::Done(_) | StreamEvent::Failed(_)) {
                        state.ended = true;
                        if let Some(cancel) = self.cancel.take() {
                            cancel.disarm();
                        }
                    }
                    return Some(event);
                }
                if state.ended || state.closed {
                    return None;
                }
            }
            notified.await;
        }
    }
}

/// The bounded buffer between the engine thread and one reader.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<OutboxState>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct OutboxState {
    events: VecDeque<StreamEvent>,
    /// Unread bytes, as [`weight`] counts them.
    bytes: usize,
    /// The last event was read.
    ended: bool,
    /// The last event was written.
    closed: bool,
}

/// The reader left more than [`OUTBOX_BYTES_MAX`] unread.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutboxFull;

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds text to a choice, joining it to the last delta where that is unread and of the same choice.
    pub(crate) fn delta(
        &self,
        index: u32,
        text: &str,
        tokens: u32,
        logprobs: Vec<TokenLogprob>,
    ) -> Result<(), OutboxFull> {
        let mut state = self.lock();
        if state.closed {
            return Ok(());
        }
        let event = StreamEvent::Delta { index, text: String::new(), tokens, logprobs };
        let added = text.len() + weight(&event);
        if state.bytes + added > OUTBOX_BYTES_MAX {
            return Err(OutboxFull);
        }
        let StreamEvent::Delta { logprobs, .. } = event else { return Ok(()) };
        match state.events.back_mut() {
            Some(StreamEvent::Delta { index: last, text: unread, tokens: count, logprobs: list }) if *last == index => {
                unread.push_str(text);
                *count = tokens;
                list.extend(logprobs);
                state.bytes += added;
            }
            _ => {
                state.events.push_back(StreamEvent::Delta { index, text: text.to_owned(), tokens, logprobs });
                state.bytes += added;
            }
        }
        drop(state);
        self.notify.notify_one();
        Ok(())
    }

    /// Ends one choice.
    pub(crate) fn finished(&self, index: u32, reason: FinishReason) {
        let mut state = self.lock();
        if !state.closed {
            state.events.push_back(StreamEvent::Finished { index, reason });
        }
        drop(state);
        self.notify.notify_one();
    }

    /// Writes the terminal event; later calls change nothing.
    pub(crate) fn close(&self, end: Result<Usage, RequestFailure>) {
        let mut state = self.lock();
        if !state.closed {
            state.closed = true;
            match end {
                Ok(usage) => state.events.push_back(StreamEvent::Done(usage)),
                Err(failure) => {
                    // A reader that is too slow has been told too much already: it gets the reason only.
                    if failure.kind == FailureKind::SlowReader {
                        state.events.clear();
                        state.bytes = 0;
                    }
                    state.events.push_back(StreamEvent::Failed(failure));
                }
            }
        }
        drop(state);
        self.notify.notify_one();
    }
}

/// What an event counts against the outbox: its text, and each delta and log-probability with its overhead.
fn weight(event: &StreamEvent) -> usize {
    match event {
        StreamEvent::Delta { text, logprobs, .. } => {
            let entries: usize = logprobs.iter().map(|l| 1 + l.top.len()).sum();
            text.len() + entries * 24
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unread_text_of_a_choice_is_joined() {
        let outbox = Arc::new(Outbox::default());
        outbox.delta(0, "a", 1, Vec::new()).expect("room");
        outbox.delta(0, "b", 2, Vec::new()).expect("room");
        outbox.delta(1, "c", 1, Vec::new()).expect("room");
        outbox.close(Ok(Usage::default()));
        let mut stream = TokenStream::new(outbox, 0, CancelOnDrop::new(|| {}));
        let delta = |index, text: &str, tokens| {
            Some(StreamEvent::Delta { index, text: text.into(), tokens, logprobs: Vec::new() })
        };
        assert_eq!(stream.next().await, delta(0, "ab", 2));
        assert_eq!(stream.next().await, delta(1, "c", 1));
        assert_eq!(stream.next().await, Some(StreamEvent::Done(Usage::default())));
        assert_eq!(stream.next().await, None);
    }

    #[test]
    fn outbox_refuses_more_than_its_bound() {
        let outbox = Outbox::default();
        let page = "x".repeat(OUTBOX_BYTES_MAX / 2);
        assert_eq!(outbox.delta(0, &page, 1, Vec::new()), Ok(()));
        assert_eq!(outbox.delta(0, &page, 2, Vec::new()), Ok(()));
        assert_eq!(outbox.delta(0, "y", 3, Vec::new()), Err(OutboxFull));
    }

    #[tokio::test]
    async fn only_the_first_ending_counts() {
        let outbox = Arc::new(Outbox::default());
        outbox.close(Ok(Usage::default()));
        outbox.close(Err(RequestFailure { message: "late".into(), kind: FailureKind::ExecutorLost }));
        let mut stream = TokenStream::new(outbox, 0, CancelOnDrop::new(|| {}));
        assert_eq!(stream.next().await, Some(StreamEvent::Done(Usage::default())));
        assert_eq!(stream.next().await, None);
    }

    #[test]
    fn dropping_an_unfinished_stream_cancels_once() {
        let (tell, told) = flume::unbounded();
        let cancel = CancelOnDrop::new(move || tell.send(()).expect("receiver lives"));
        drop(TokenStream::new(Arc::new(Outbox::default()), 0, cancel));
        assert_eq!(told.drain().count(), 1);
    }
}
