//! What a request's reader sees: the events of its answer, out of an [`Outbox`](crate::outbox::Outbox) that the engine
//! thread fills.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    error::RequestFailure,
    outbox::{DELTA_BYTES_MAX, Outbox},
    submission::Usage,
};

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

impl StreamEvent {
    /// Whether nothing comes after it.
    pub(crate) fn is_last(&self) -> bool {
        matches!(self, StreamEvent::Done(_) | StreamEvent::Failed(_))
    }
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
    echo: Option<Echo>,
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
        TokenStream { echo: None, outbox, prompt_tokens, cancel: Some(cancel) }
    }

    /// Puts a text before that of each of `n` choices.
    pub(crate) fn echo(&mut self, text: String, n: u32) {
        self.echo = Some(Echo { text, n, index: 0, at: 0 }).filter(|echo| n > 0 && !echo.text.is_empty());
    }

    /// A stream that tells a prepared story; for tests of what reads streams.
    pub fn scripted(prompt_tokens: u32, events: impl IntoIterator<Item = StreamEvent>) -> Self {
        TokenStream { echo: None, outbox: Arc::new(Outbox::scripted(events)), prompt_tokens, cancel: None }
    }

    /// The reader wants the whole answer: it is woken at the end, or when much has gathered, and not for every piece.
    pub fn be_patient(&self) {
        self.outbox.be_patient();
    }

    /// Tokens of the prompt, after the template.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The next event, if there is one; else the task is woken when there is.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        if let Some(echo) = &mut self.echo {
            let piece = echo.next();
            if echo.index == echo.n {
                self.echo = None;
            }
            return Poll::Ready(Some(piece));
        }
        let next = self.outbox.poll_next(context);
        if let Poll::Ready(Some(event)) = &next
            && event.is_last()
            && let Some(cancel) = self.cancel.take()
        {
            cancel.disarm();
        }
        next
    }
}

/// A text that each choice begins with, kept once and told in pieces.
#[derive(Debug)]
struct Echo {
    text: String,
    n: u32,
    /// Where the next piece is from.
    index: u32,
    at: usize,
}

impl Echo {
    fn next(&mut self) -> StreamEvent {
        let rest = &self.text[self.at..];
        let end = rest.floor_char_boundary(DELTA_BYTES_MAX);
        let event =
            StreamEvent::Delta { index: self.index, text: rest[..end].to_owned(), tokens: 0, logprobs: Vec::new() };
        self.at += end;
        if self.at == self.text.len() {
            (self.index, self.at) = (self.index + 1, 0);
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FailureKind;

    fn delta(index: u32, text: &str, tokens: u32) -> StreamEvent {
        StreamEvent::Delta { index, text: text.into(), tokens, logprobs: Vec::new() }
    }

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

    #[tokio::test]
    async fn an_echo_is_told_in_pieces_before_each_choice() {
        let prompt = "é".repeat(DELTA_BYTES_MAX);
        let outbox = Arc::new(Outbox::default());
        outbox.delta(0, "text", 1, Vec::new()).expect("room");
        outbox.close(Ok(Usage::default()));
        let mut stream = TokenStream::new(outbox, 0, CancelOnDrop::new(|| {}));
        stream.echo(prompt.clone(), 2);
        let mut texts = [String::new(), String::new()];
        while let Some(event) = stream.next().await {
            if let StreamEvent::Delta { index, text, .. } = event {
                assert!(text.len() <= DELTA_BYTES_MAX);
                texts[index as usize].push_str(&text);
            }
        }
        assert_eq!(texts, [format!("{prompt}text"), prompt]);
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let outbox = Arc::new(Outbox::default());
        let mut stream = TokenStream::new(outbox.clone(), 0, CancelOnDrop::new(|| {}));
        let reader = tokio::spawn(async move { (stream.next().await, stream.next().await) });
        tokio::task::yield_now().await;
        outbox.delta(0, "a", 1, Vec::new()).expect("room");
        outbox.due().expect("somebody waits").wake();
        assert!(outbox.due().is_none(), "once is enough");
        tokio::task::yield_now().await;
        outbox.close(Ok(Usage::default()));
        let got = reader.await.expect("read");
        assert_eq!(got, (Some(delta(0, "a", 1)), Some(StreamEvent::Done(Usage::default()))));
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
