//! What a request's reader sees. The writer (the engine thread) never waits: text is coalesced in a bounded outbox, so
//! a slow reader costs at most [`OUTBOX_BYTES_MAX`] and holds neither KV blocks nor a step.
//!
//! Text is kept in deltas of at most [`DELTA_BYTES_MAX`], so that what a reader takes at once is bounded, too: what it
//! makes of a delta is all that it holds besides the outbox. Unread text of a choice is joined to that choice's last
//! delta even where other choices wrote in between, since the order between choices means nothing.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use prometheus_client::metrics::gauge::Gauge;

use crate::{
    error::{FailureKind, RequestFailure},
    submission::Usage,
};

/// Unread text a request may have, with what it takes to keep it; beyond it the request fails as
/// [`FailureKind::SlowReader`]. A stream may cost 64 KiB in all: the rest is for what was taken out and not yet sent, for the
/// connection's own buffers, and for its sequence.
pub const OUTBOX_BYTES_MAX: usize = 28 << 10;
/// The same for log-probabilities, which are a few hundred times the size of their token: with 20 alternatives it is the
/// last 50 tokens or so, which a reader that is not slow takes long before.
pub(crate) const OUTBOX_LOGPROBS_BYTES_MAX: usize = 128 << 10;
/// Text and log-probabilities that are joined into one delta. A single token may bring more.
pub(crate) const DELTA_BYTES_MAX: usize = 2 << 10;
/// How far back a choice's last delta is looked for; with the eight choices a request may have it is at most that far,
/// or full.
const JOIN_REACH: usize = 16;
/// What the allocator adds to a small piece of memory, about.
const ALLOCATION: usize = 16;

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
        let outbox = Arc::new(Outbox::default());
        outbox.lock().events.extend(events);
        TokenStream { echo: None, outbox, prompt_tokens, cancel: None }
    }

    /// The reader wants the whole answer: it is woken at the end, or when much has gathered, and not for every piece.
    pub fn be_patient(&self) {
        self.outbox.lock().patient = true;
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
        let mut state = self.outbox.lock();
        if let Some(event) = state.events.pop_front() {
            let weight = weight(&event);
            state.forget(weight, &self.outbox.bytes);
            if matches!(event, StreamEvent::Done(_) | StreamEvent::Failed(_)) {
                state.ended = true;
                if let Some(cancel) = self.cancel.take() {
                    cancel.disarm();
                }
            }
            return Poll::Ready(Some(event));
        }
        if state.ended || state.closed {
            return Poll::Ready(None);
        }
        match &mut state.reader {
            Some(reader) => reader.clone_from(context.waker()),
            None => state.reader = Some(context.waker().clone()),
        }
        Poll::Pending
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

/// The bounded buffer between the engine thread and one reader.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<OutboxState>,
    /// Outboxes there are.
    live: Gauge,
    /// Unread bytes in all of them.
    bytes: Gauge,
}

#[derive(Debug, Default)]
struct OutboxState {
    events: VecDeque<StreamEvent>,
    /// What is unread, as [`weight`] counts it.
    unread: Weight,
    /// Who waits for the next event.
    reader: Option<Waker>,
    /// The reader wants all of it or nothing.
    patient: bool,
    /// The last event was read.
    ended: bool,
    /// The last event was written.
    closed: bool,
}

impl OutboxState {
    fn forget(&mut self, read: Weight, bytes: &Gauge) {
        let before = self.unread;
        self.unread.text = before.text.saturating_sub(read.text);
        self.unread.logprobs = before.logprobs.saturating_sub(read.logprobs);
        bytes.dec_by((before.sum() - self.unread.sum()) as i64);
    }
}

/// The reader left more unread than an outbox holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutboxFull;

impl Outbox {
    /// An outbox that is counted.
    pub(crate) fn new(live: Gauge, bytes: Gauge) -> Self {
        live.inc();
        Outbox { state: Mutex::default(), live, bytes }
    }

    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is to be woken for what was written since it last read, once. The writer wakes when it has written to
    /// everybody: a reader woken at once would take the core from under it, for each of them.
    pub(crate) fn due(&self) -> Option<Waker> {
        let mut state = self.lock();
        let waits = state.patient && !state.closed && state.unread.sum() < OUTBOX_BYTES_MAX / 2;
        if waits { None } else { state.reader.take() }
    }

    /// Adds text to a choice, joining it to the choice's last delta where that is unread and not full.
    pub(crate) fn delta(
        &self,
        index: u32,
        text: &str,
        tokens: u32,
        logprobs: Vec<TokenLogprob>,
    ) -> Result<(), OutboxFull> {
        let state = &mut *self.lock();
        if state.closed {
            return Ok(());
        }
        let added = Weight { text: text.len(), logprobs: logprobs_weight(&logprobs) };
        let of_choice = |event: &&mut StreamEvent| match event {
            StreamEvent::Delta { index: of, .. } | StreamEvent::Finished { index: of, .. } => *of == index,
            StreamEvent::Done(_) | StreamEvent::Failed(_) => true,
        };
        let last = state.events.iter_mut().rev().take(JOIN_REACH).find(of_choice);
        let joined = last.filter(|event| weight(event).sum() + added.sum() <= DELTA_BYTES_MAX);
        let added = match joined {
            Some(StreamEvent::Delta { .. }) => added,
            _ => Weight { text: added.text + EVENT, ..added },
        };
        let sum = Weight { text: state.unread.text + added.text, logprobs: state.unread.logprobs + added.logprobs };
        if sum.text > OUTBOX_BYTES_MAX || sum.logprobs > OUTBOX_LOGPROBS_BYTES_MAX {
            return Err(OutboxFull);
        }
        match joined {
            Some(StreamEvent::Delta { text: unread, tokens: count, logprobs: list, .. }) => {
                let len = unread.len() + text.len();
                if len > unread.capacity() {
                    // Doubled, as always, but never beyond what a delta may hold.
                    unread.reserve_exact((2 * len).min(DELTA_BYTES_MAX).max(len) - unread.len());
                }
                unread.push_str(text);
                *count = tokens;
                list.extend(logprobs);
            }
            _ => state.events.push_back(StreamEvent::Delta { index, text: text.to_owned(), tokens, logprobs }),
        }
        state.unread = sum;
        self.bytes.inc_by(added.sum() as i64);
        Ok(())
    }

    /// Ends one choice.
    pub(crate) fn finished(&self, index: u32, reason: FinishReason) {
        let mut state = self.lock();
        if !state.closed {
            state.events.push_back(StreamEvent::Finished { index, reason });
        }
    }

    /// Writes the terminal event, and wakes the reader; later calls change nothing.
    pub(crate) fn close(&self, end: Result<Usage, RequestFailure>) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        match end {
            Ok(usage) => state.events.push_back(StreamEvent::Done(usage)),
            Err(failure) => {
                // A reader that is too slow has been told too much already: it gets the reason only.
                if failure.kind == FailureKind::SlowReader {
                    state.events = VecDeque::new();
                    let unread = state.unread;
                    state.forget(unread, &self.bytes);
                }
                state.events.push_back(StreamEvent::Failed(failure));
            }
        }
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.bytes.dec_by(state.unread.sum() as i64);
        self.live.dec();
    }
}

/// Bytes that something takes in an outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Weight {
    text: usize,
    logprobs: usize,
}

impl Weight {
    fn sum(self) -> usize {
        self.text + self.logprobs
    }
}

/// What a delta takes besides its text.
const EVENT: usize = size_of::<StreamEvent>() + ALLOCATION;

fn weight(event: &StreamEvent) -> Weight {
    match event {
        StreamEvent::Delta { text, logprobs, .. } => {
            Weight { text: EVENT + text.len(), logprobs: logprobs_weight(logprobs) }
        }
        // As many as there are choices, and one.
        _ => Weight::default(),
    }
}

fn logprobs_weight(logprobs: &[TokenLogprob]) -> usize {
    let one = |top: &TopLogprob| size_of::<TopLogprob>() + top.token.len() + top.bytes.len() + 2 * ALLOCATION;
    let of_token = |token: &TokenLogprob| {
        size_of::<TokenLogprob>() + ALLOCATION + one(&token.chosen) + token.top.iter().map(one).sum::<usize>()
    };
    logprobs.iter().map(of_token).sum()
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

    fn delta(index: u32, text: &str, tokens: u32) -> StreamEvent {
        StreamEvent::Delta { index, text: text.into(), tokens, logprobs: Vec::new() }
    }

    /// Everything unread.
    fn unread(outbox: &Outbox) -> Vec<StreamEvent> {
        outbox.lock().events.iter().cloned().collect()
    }

    #[test]
    fn choices_that_take_turns_are_joined_each_to_itself() {
        let outbox = Outbox::default();
        for tokens in 1..=3 {
            outbox.delta(0, "a", tokens, Vec::new()).expect("room");
            outbox.delta(1, "b", tokens, Vec::new()).expect("room");
        }
        outbox.finished(0, FinishReason::Length);
        outbox.delta(1, "c", 4, Vec::new()).expect("room");
        let end = StreamEvent::Finished { index: 0, reason: FinishReason::Length };
        assert_eq!(unread(&outbox), [delta(0, "aaa", 3), delta(1, "bbbc", 4), end]);
    }

    #[test]
    fn outbox_refuses_more_than_its_bound_and_never_holds_more() {
        for (choices, piece) in [(1, 1), (1, 700), (8, 1), (8, 1024), (1, DELTA_BYTES_MAX)] {
            let (live, bytes) = (Gauge::default(), Gauge::default());
            let outbox = Outbox::new(live.clone(), bytes.clone());
            let text = "x".repeat(piece);
            let mut written = 0;
            while outbox.delta(written % choices, &text, written, Vec::new()).is_ok() {
                written += 1;
                assert!((written as usize) < OUTBOX_BYTES_MAX, "no bound");
            }
            let held: usize = unread(&outbox)
                .iter()
                .map(|event| match event {
                    StreamEvent::Delta { text, .. } => {
                        assert!(text.len() <= DELTA_BYTES_MAX, "a delta of {} bytes", text.len());
                        size_of::<StreamEvent>() + text.len()
                    }
                    _ => 0,
                })
                .sum();
            assert!(held <= OUTBOX_BYTES_MAX, "{choices} choices hold {held} bytes in pieces of {piece}");
            assert!(
                written as usize * piece > OUTBOX_BYTES_MAX * 2 / 5,
                "{choices} choices, pieces of {piece}: {written}"
            );
            assert_eq!((live.get(), bytes.get() as usize <= OUTBOX_BYTES_MAX), (1, true));
            outbox.close(Err(RequestFailure { message: "slow".into(), kind: FailureKind::SlowReader }));
            assert_eq!((unread(&outbox).len(), bytes.get()), (1, 0));
            drop(outbox);
            assert_eq!(live.get(), 0);
        }
    }

    #[test]
    fn log_probabilities_are_weighed_as_what_they_take() {
        let one = |token: &str| TopLogprob { token: token.into(), bytes: token.into(), logprob: -1.0 };
        let token = || TokenLogprob { chosen: one("ab"), top: vec![one("cd"); 20], text_offset: 0 };
        let outbox = Outbox::default();
        let written = (0u32..).take_while(|&count| outbox.delta(0, "ab", count, vec![token()]).is_ok()).count();
        assert!((40..80).contains(&written), "{written}");
        assert_eq!(unread(&outbox).len(), written, "two tokens of this size are not one delta");
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
    async fn a_patient_reader_is_woken_for_much_and_for_the_end() {
        let outbox = Arc::new(Outbox::default());
        let mut stream = TokenStream::new(outbox.clone(), 0, CancelOnDrop::new(|| {}));
        stream.be_patient();
        let mut context = Context::from_waker(Waker::noop());
        assert!(stream.poll_next(&mut context).is_pending());
        outbox.delta(0, "a", 1, Vec::new()).expect("room");
        assert!(outbox.due().is_none(), "it can wait");
        while outbox.due().is_none() {
            outbox.delta(0, &"x".repeat(DELTA_BYTES_MAX / 2), 1, Vec::new()).expect("woken before there is no room");
        }
        assert!(stream.poll_next(&mut context).is_ready());
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
