//! What a request's reader has not read yet. The writer (the engine thread) never waits: text is coalesced in a bounded
//! outbox, so a slow reader costs at most [`OUTBOX_BYTES_MAX`] and holds neither KV blocks nor a step.
//!
//! Text is kept in deltas of at most [`DELTA_BYTES_MAX`], so that what a reader takes at once is bounded, too: what it
//! makes of a delta is all that it holds besides the outbox. Unread text of a choice is joined to that choice's last
//! delta even where other choices wrote in between, since the order between choices means nothing.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use prometheus_client::metrics::gauge::Gauge;

use crate::{
    error::{FailureKind, RequestFailure},
    stream::{FinishReason, StreamEvent, TokenLogprob, TopLogprob},
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

    /// An outbox in which a prepared story lies.
    pub(crate) fn scripted(events: impl IntoIterator<Item = StreamEvent>) -> Self {
        let outbox = Outbox::default();
        outbox.lock().events.extend(events);
        outbox
    }

    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever reads wants all of it: it is woken at the end, or when much has gathered.
    pub(crate) fn be_patient(&self) {
        self.lock().patient = true;
    }

    /// Takes the next event out, `None` after the last; where there is none yet, the reader is woken when there is.
    pub(crate) fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        let mut state = self.lock();
        if let Some(event) = state.events.pop_front() {
            let weight = weight(&event);
            state.forget(weight, &self.bytes);
            state.ended |= event.is_last();
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

    #[test]
    fn a_patient_reader_is_woken_for_much_and_for_the_end() {
        let outbox = Outbox::default();
        outbox.be_patient();
        let mut context = Context::from_waker(Waker::noop());
        assert!(outbox.poll_next(&mut context).is_pending());
        outbox.delta(0, "a", 1, Vec::new()).expect("room");
        assert!(outbox.due().is_none(), "it can wait");
        while outbox.due().is_none() {
            outbox.delta(0, &"x".repeat(DELTA_BYTES_MAX / 2), 1, Vec::new()).expect("woken before there is no room");
        }
        assert!(outbox.poll_next(&mut context).is_ready());
    }
}
