//! The events of all prompts of one request, as one stream.
//!
//! OpenAI numbers the choices of several prompts in a row: choice `i` of prompt `p` is `p * n + i`. Each prompt is a
//! submission of its own; here their events are renumbered and their usage is added up, so that the request still has
//! exactly one end.

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, ready},
};

use tokio::{sync::mpsc, task::JoinSet};
use weir_runtime::{FailureKind, FinishReason, RequestFailure, StopReason, StreamEvent, TokenStream, Usage};

use super::limits::Meter;

/// Events of all prompts waiting to be written; what does not fit waits in each stream's own bounded outbox.
const EVENTS_MAX: usize = 16;

/// The merged stream. Dropping it cancels every prompt.
#[derive(Debug)]
pub(super) struct Choices {
    of: Of,
    /// Sees every event on its way.
    meter: Option<Meter>,
}

#[derive(Debug)]
enum Of {
    /// The usual case needs no tasks.
    One(TokenStream),
    /// One task for each prompt.
    Many(Many),
}

/// Several prompts.
#[derive(Debug)]
struct Many {
    /// Events with the first choice of their prompt.
    events: mpsc::Receiver<(u32, StreamEvent)>,
    /// Aborted when dropped.
    _readers: JoinSet<()>,
    /// Choices of each prompt.
    n: u32,
    open: usize,
    usage: Usage,
    prompt_tokens: u32,
    /// Something of a prompt was told.
    begun: bool,
    /// Prompts, by their first choice, that a spent quota ended before anything of them was told; and what it said.
    unbegun: Vec<u32>,
    spent: Option<RequestFailure>,
    /// Ends of such choices that are to be told yet.
    ends: VecDeque<StreamEvent>,
    /// The one end was told.
    over: bool,
}

impl Choices {
    /// Merges streams of `n` choices each.
    pub(super) fn new(mut streams: Vec<TokenStream>, n: u32) -> Self {
        if streams.len() == 1
            && let Some(stream) = streams.pop()
        {
            return Choices { of: Of::One(stream), meter: None };
        }
        let open = streams.len();
        let prompt_tokens = streams.iter().fold(0u32, |sum, s| sum.saturating_add(s.prompt_tokens()));
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let mut readers = JoinSet::new();
        for (prompt, mut stream) in (0u32..).zip(streams) {
            let sender = sender.clone();
            let first = prompt.saturating_mul(n);
            readers.spawn(async move {
                while let Some(event) = stream.next().await {
                    if sender.send((first, renumbered(event, first))).await.is_err() {
                        return;
                    }
                }
            });
        }
        let many = Many {
            events,
            _readers: readers,
            n,
            open,
            usage: Usage::default(),
            prompt_tokens,
            begun: false,
            unbegun: Vec::new(),
            spent: None,
            ends: VecDeque::new(),
            over: false,
        };
        Choices { of: Of::Many(many), meter: None }
    }

    /// The same, with what its tenant is told of its use.
    pub(super) fn metered(self, meter: Meter) -> Self {
        meter.begun(self.prompt_tokens());
        Choices { meter: Some(meter), ..self }
    }

    /// The answer is wanted as a whole.
    pub(super) fn be_patient(&self) {
        if let Of::One(stream) = &self.of {
            stream.be_patient();
        }
    }

    /// Tokens of all prompts.
    pub(super) fn prompt_tokens(&self) -> u32 {
        match &self.of {
            Of::One(stream) => stream.prompt_tokens(),
            Of::Many(many) => many.prompt_tokens,
        }
    }

    /// The next event; the first failure of any prompt ends all. A quota that is spent is none once something was told: what was computed
    /// stands, and was paid for, and the rest ends as if cut.
    pub(super) async fn next(&mut self) -> Option<StreamEvent> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The next event, if there is one; else the task is woken when there is.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        let event = ready!(match &mut self.of {
            Of::One(stream) => stream.poll_next(context),
            Of::Many(many) => many.poll_next(context),
        });
        if let (Some(event), Some(meter)) = (&event, &self.meter) {
            meter.saw(event);
        }
        Poll::Ready(event)
    }
}

impl Many {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        loop {
            if let Some(end) = self.ends.pop_front() {
                return Poll::Ready(Some(end));
            }
            if self.open == 0 && !self.over {
                self.over = true;
                return Poll::Ready(match (self.begun, self.spent.take()) {
                    (false, Some(failure)) => Some(StreamEvent::Failed(failure)),
                    _ => Some(StreamEvent::Done(self.usage)),
                });
            }
            match ready!(self.events.poll_recv(context)) {
                Some((_, StreamEvent::Done(part))) => {
                    add(&mut self.usage, part);
                    self.open -= 1;
                }
                Some((first, StreamEvent::Failed(failure)))
                    if matches!(failure.kind, FailureKind::QuotaSpent { .. }) =>
                {
                    self.open -= 1;
                    self.unbegun.push(first);
                    self.spent = Some(failure);
                    self.usage.stop = Some(StopReason::Quota);
                    self.tell_ends();
                }
                Some((_, event)) => {
                    self.begun = true;
                    self.tell_ends();
                    self.ends.push_front(event);
                }
                None => return Poll::Ready(None),
            }
        }
    }

    /// Once something was told, what a spent quota kept from beginning ends as texts of nothing.
    fn tell_ends(&mut self) {
        if self.begun {
            let n = self.n;
            let choices =
                self.unbegun.drain(..).flat_map(|first| (0..n).map(move |choice| first.saturating_add(choice)));
            self.ends.extend(choices.map(|index| StreamEvent::Finished { index, reason: FinishReason::Length }));
        }
    }
}

fn renumbered(event: StreamEvent, first: u32) -> StreamEvent {
    match event {
        StreamEvent::Delta { index, text, tokens, logprobs } => {
            StreamEvent::Delta { index: index.saturating_add(first), text, tokens, logprobs }
        }
        StreamEvent::Finished { index, reason } => StreamEvent::Finished { index: index.saturating_add(first), reason },
        end => end,
    }
}

fn add(sum: &mut Usage, part: Usage) {
    sum.prompt_tokens = sum.prompt_tokens.saturating_add(part.prompt_tokens);
    sum.cached_tokens = sum.cached_tokens.saturating_add(part.cached_tokens);
    sum.completion_tokens = sum.completion_tokens.saturating_add(part.completion_tokens);
    sum.device_nanos = sum.device_nanos.saturating_add(part.device_nanos);
    sum.stop = sum.stop.or(part.stop);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(index: u32, text: &str) -> StreamEvent {
        StreamEvent::Delta { index, text: text.into(), tokens: 1, logprobs: Vec::new() }
    }

    fn finished(index: u32) -> StreamEvent {
        StreamEvent::Finished { index, reason: FinishReason::Stop }
    }

    fn usage(prompt_tokens: u32) -> Usage {
        Usage { prompt_tokens, cached_tokens: 1, completion_tokens: 2, device_nanos: 10, stop: None }
    }

    #[tokio::test]
    async fn prompts_are_numbered_in_a_row_and_end_once() {
        let story = |text: &str, tokens| {
            let events = [delta(0, text), delta(1, text), finished(0), finished(1), StreamEvent::Done(usage(tokens))];
            TokenStream::scripted(tokens, events)
        };
        let mut choices = Choices::new(vec![story("a", 3), story("b", 4)], 2);
        assert_eq!(choices.prompt_tokens(), 7);
        let mut events = Vec::new();
        while let Some(event) = choices.next().await {
            events.push(event);
        }
        let sum = Usage { prompt_tokens: 7, cached_tokens: 2, completion_tokens: 4, device_nanos: 20, stop: None };
        assert_eq!(events.pop(), Some(StreamEvent::Done(sum)));
        let of = |index: u32| -> Vec<&StreamEvent> {
            let is = |e: &&StreamEvent| matches!(e, StreamEvent::Delta { index: i, .. } | StreamEvent::Finished { index: i, .. } if *i == index);
            events.iter().filter(is).collect()
        };
        for (index, text) in [(0, "a"), (1, "a"), (2, "b"), (3, "b")] {
            assert_eq!(of(index), [&delta(index, text), &finished(index)]);
        }
        assert_eq!(events.len(), 8);
    }

    #[tokio::test]
    async fn one_failure_is_not_hidden_by_the_others() {
        let failure = RequestFailure { message: "gone".into(), kind: FailureKind::ExecutorLost };
        let good = TokenStream::scripted(1, [finished(0), StreamEvent::Done(usage(1))]);
        let bad = TokenStream::scripted(1, [StreamEvent::Failed(failure.clone())]);
        let mut choices = Choices::new(vec![good, bad], 1);
        let mut seen = Vec::new();
        while let Some(event) = choices.next().await {
            seen.push(event);
        }
        assert!(seen.contains(&StreamEvent::Failed(failure)));
        assert!(!seen.iter().any(|event| matches!(event, StreamEvent::Done(_))));
    }

    #[tokio::test]
    async fn a_spent_quota_leaves_what_other_prompts_were_told() {
        let kind = FailureKind::QuotaSpent { retry_after: std::time::Duration::from_secs(9) };
        let spent = StreamEvent::Failed(RequestFailure { message: "spent".into(), kind });
        let good = || TokenStream::scripted(1, [delta(0, "a"), finished(0), StreamEvent::Done(usage(1))]);
        let bad = || TokenStream::scripted(1, [spent.clone()]);
        for streams in [vec![good(), bad()], vec![bad(), good()]] {
            let mut choices = Choices::new(streams, 1);
            let mut events = Vec::new();
            while let Some(event) = choices.next().await {
                let end = matches!(event, StreamEvent::Done(_) | StreamEvent::Failed(_));
                events.push(event);
                if end {
                    break;
                }
            }
            let cut =
                |event: &&StreamEvent| matches!(event, StreamEvent::Finished { reason: FinishReason::Length, .. });
            assert_eq!(events.iter().filter(cut).count(), 1, "{events:?}");
            let Some(StreamEvent::Done(sum)) = events.last() else { panic!("{events:?}") };
            assert_eq!(sum.stop, Some(StopReason::Quota));
        }
        // If none began, the client is told when to come back.
        let mut choices = Choices::new(vec![bad(), bad()], 1);
        assert_eq!(choices.next().await, Some(spent));
    }
}
