//! The steady window of a level, and the rates inside it.
//!
//! A request that lies across an end of the window counts by the part of its life, or of its prompt's, inside; a token
//! counts where it arrived. So a window's rates do not depend on whether it happens to hold one more end than begins.

use std::ops::Range;

use crate::pace::Pace;
use crate::sample::{Attempt, Sample};
use crate::slo::Slo;

const NANOS_PER_SECOND: f64 = 1e9;
/// The decode rate needs at least this many tokens per connection while all of them decode.
pub(crate) const DECODE_TOKENS_MIN: u64 = 8;
/// This part of an open loop's arrivals is taken to fill the server from empty.
const WARM_UP_SHARE: f64 = 0.1;
/// An open loop of fewer arrivals has no steady window.
const OPEN_ARRIVALS_MIN: usize = 20;
/// Parts of a window, whose lowest and highest rates show how steady it was.
const SLICES: u64 = 5;

/// Amounts per second inside a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Requests that succeeded.
    pub requests: f64,
    /// Those of them that were good ([`Slo`]); 0 without one.
    pub good_requests: f64,
    /// Prompt tokens.
    pub prompt_tokens: f64,
    /// Output tokens.
    pub output_tokens: f64,
    /// Vectors; 0 for completions.
    pub embeddings: f64,
}

impl Rates {
    pub(crate) fn of(samples: &[&Sample], window: &Range<u64>, slo: Option<Slo>) -> Rates {
        let mut sum = Rates::default();
        for sample in samples {
            let part = share(&(sample.begin..sample.end), window);
            sum.requests += part;
            sum.good_requests += if slo.is_some_and(|slo| slo.is_met_by(sample)) { part } else { 0.0 };
            sum.prompt_tokens += share(&(sample.begin..sample.prompt_end()), window) * f64::from(sample.prompt_tokens);
            sum.output_tokens += output_tokens(sample, window);
            sum.embeddings += if sample.output_tokens == 0 { part * f64::from(sample.inputs) } else { 0.0 };
        }
        let seconds = length(window) / NANOS_PER_SECOND;
        if seconds > 0.0 { sum.map(|amount| amount / seconds) } else { Rates::default() }
    }

    /// The lowest and the highest of each rate over five equal parts of the window.
    pub(crate) fn spread(samples: &[&Sample], window: &Range<u64>, slo: Option<Slo>) -> (Rates, Rates) {
        let at = |slice: u64| window.start + (window.end.saturating_sub(window.start)) / SLICES * slice;
        let rates = |slice| Rates::of(samples, &(at(slice)..at(slice + 1)), slo);
        let first = rates(0);
        (1..SLICES)
            .map(rates)
            .fold((first, first), |(low, high), rates| (low.with(rates, f64::min), high.with(rates, f64::max)))
    }

    fn map(self, change: impl Fn(f64) -> f64) -> Rates {
        self.with(self, |value, _| change(value))
    }

    fn with(self, other: Rates, merge: impl Fn(f64, f64) -> f64) -> Rates {
        Rates {
            requests: merge(self.requests, other.requests),
            good_requests: merge(self.good_requests, other.good_requests),
            prompt_tokens: merge(self.prompt_tokens, other.prompt_tokens),
            output_tokens: merge(self.output_tokens, other.output_tokens),
            embeddings: merge(self.embeddings, other.embeddings),
        }
    }
}

pub(crate) fn length(range: &Range<u64>) -> f64 {
    range.end.saturating_sub(range.start) as f64
}

/// From the first request's begin to the last one's end.
pub(crate) fn whole(samples: &[&Sample]) -> Range<u64> {
    let begin = samples.iter().map(|s| s.begin).min().unwrap_or(0);
    begin..samples.iter().map(|s| s.end).max().unwrap_or(0)
}

/// The window that leaves warm-up and cool-down out; None when the level is too short to have one. `asked` gives it as
/// fractions of the time in which requests began.
pub(crate) fn steady(
    pace: Pace,
    asked: Option<(f64, f64)>,
    attempts: &[Attempt],
    samples: &[&Sample],
) -> Option<Range<u64>> {
    let first = attempts.iter().map(|attempt| attempt.begin).min()?;
    let last = attempts.iter().map(|attempt| attempt.begin).max()?;
    let place = |fraction: f64| first + ((last - first) as f64 * fraction) as u64;
    if let Some((from, to)) = asked {
        let window = place(from)..place(to);
        return (!window.is_empty()).then_some(window);
    }
    match pace {
        Pace::Closed { concurrency } => steady_closed(concurrency, attempts, samples),
        // The load begins to fall at the last arrival. It has risen when a tenth of the arrivals' time has passed and the
        // first answer is there.
        Pace::Open { .. } | Pace::Trace => {
            let risen = place(WARM_UP_SHARE).max(samples.iter().map(|s| s.end).min()?);
            (risen < last && attempts.len() >= OPEN_ARRIVALS_MIN).then_some(risen..last)
        }
    }
}

/// From the moment every connection has ended a request to the moment the first one runs out of work. None when that is
/// less than half of a mean request (fewer than two rounds, as a rule), or on a connection nothing succeeded.
fn steady_closed(concurrency: u32, attempts: &[Attempt], samples: &[&Sample]) -> Option<Range<u64>> {
    // Per connection: the end of its first success, and the end of its last attempt.
    let mut ends: Vec<(u64, u64)> = vec![(u64::MAX, 0); concurrency as usize];
    for sample in samples {
        let first = &mut ends[sample.connection as usize].0;
        *first = sample.end.min(*first);
    }
    for attempt in attempts {
        let last = &mut ends[attempt.connection as usize].1;
        *last = attempt.end.max(*last);
    }
    let ramp_end = ends.iter().map(|end| end.0).max()?;
    let drain_begin = ends.iter().map(|end| end.1).min()?;
    let mean = samples.iter().map(|s| s.e2el() as f64).sum::<f64>() / samples.len().max(1) as f64;
    let long_enough = ramp_end < drain_begin && (drain_begin - ramp_end) as f64 >= mean / 2.0;
    long_enough.then_some(ramp_end..drain_begin)
}

/// The requests whose latencies are those of the window. In an open loop those that were due in it, however long they took:
/// leaving out the slow ones would flatter the server. In a closed loop those that spent half of their life in it.
pub(crate) fn typical<'a>(pace: Pace, samples: &[&'a Sample], window: &Range<u64>) -> Vec<&'a Sample> {
    let inside = |sample: &&'a Sample| {
        if pace.is_open() { window.contains(&sample.begin) } else { share(&(sample.begin..sample.end), window) >= 0.5 }
    };
    let typical: Vec<&Sample> = samples.iter().copied().filter(inside).collect();
    if typical.is_empty() { samples.to_vec() } else { typical }
}

/// How much of `life` lies in `window`, 0 to 1.
fn share(life: &Range<u64>, window: &Range<u64>) -> f64 {
    let inside = life.start.max(window.start)..life.end.min(window.end);
    if life.is_empty() { 0.0 } else { length(&inside) / length(life) }
}

/// Tokens after the window's start, up to its end: a token ends the time that it took. Those of an answer that came whole
/// are spread over its life.
fn output_tokens(sample: &Sample, window: &Range<u64>) -> f64 {
    if sample.arrivals.is_empty() {
        return share(&(sample.begin..sample.end), window) * f64::from(sample.output_tokens);
    }
    let inside = sample.arrivals.iter().filter(|a| window.start < a.at && a.at <= window.end);
    inside.map(|a| u64::from(a.tokens)).sum::<u64>() as f64
}

/// Prompt tokens over the union of the times in which prompts were waiting for their first token.
pub(crate) fn prompt_rate(samples: &[&Sample]) -> Option<f64> {
    let mut waits: Vec<(u64, u64)> = samples.iter().map(|s| (s.begin, s.prompt_end())).collect();
    waits.sort_unstable();
    let mut covered = 0;
    let mut until = 0;
    for (begin, end) in waits {
        covered += end.saturating_sub(begin.max(until));
        until = until.max(end);
    }
    let tokens: u64 = samples.iter().map(|s| u64::from(s.prompt_tokens)).sum();
    (covered > 0).then(|| tokens as f64 * NANOS_PER_SECOND / covered as f64)
}

/// Output tokens per second while all connections were between their first and last token: the rate of full batches,
/// with no prompt among them. A sweep over the begins and ends of decoding finds those times.
pub(crate) fn decode_rate(concurrency: u32, samples: &[&Sample]) -> Option<f64> {
    let mut turns: Vec<(u64, i64)> = Vec::new();
    for (first, last) in samples.iter().filter_map(|s| Some((s.arrivals.first()?.at, s.arrivals.last()?.at))) {
        // At the same moment ends sort before begins.
        turns.extend([(first, 1), (last, -1)]);
    }
    turns.sort_unstable();
    let mut decoding = 0;
    let mut full: Vec<Range<u64>> = Vec::new();
    for pair in turns.windows(2) {
        decoding += pair[0].1;
        if decoding == i64::from(concurrency) && pair[0].0 < pair[1].0 {
            full.push(pair[0].0..pair[1].0);
        }
    }
    // The ranges ascend and do not overlap: each arrival finds its own by binary search.
    let inside = |at: u64| full.get(full.partition_point(|range| range.end < at)).is_some_and(|range| range.start < at);
    let arrivals = samples.iter().flat_map(|s| &s.arrivals);
    let tokens: u64 = arrivals.filter(|a| inside(a.at)).map(|a| u64::from(a.tokens)).sum();
    let time: f64 = full.iter().map(length).sum();
    (tokens >= DECODE_TOKENS_MIN * u64::from(concurrency)).then(|| tokens as f64 * NANOS_PER_SECOND / time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RequestError;
    use crate::level::tests::{attempts, steady_sample};
    use crate::sample::tests::completion;

    const MS: u64 = 1_000_000;
    const OPEN: Pace = Pace::Open { rate: 10.0, burstiness: 1.0 };

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{a} is not {b}");
    }

    fn refs(samples: &[Sample]) -> Vec<&Sample> {
        samples.iter().collect()
    }

    #[test]
    fn decode_rate_counts_full_batches_only() {
        // Alone from 100 to 200, together from 200 to 300, alone until 400.
        let one = completion(0, 0, 300 * MS, &(0..21).map(|i| ((100 + 10 * i) * MS, 1)).collect::<Vec<_>>());
        let two = completion(1, 0, 400 * MS, &(0..21).map(|i| ((200 + 10 * i) * MS, 2)).collect::<Vec<_>>());
        close(decode_rate(2, &[&one, &two]).unwrap(), (10.0 + 20.0) / 0.1);
        assert_eq!(decode_rate(3, &[&one, &two]), None);
        // Too few tokens together.
        assert_eq!(decode_rate(1, &[&steady_sample(0, 0, 10, 8)]), None);
        assert!(decode_rate(1, &[&steady_sample(0, 0, 10, 9)]).is_some());
    }

    #[test]
    fn overlapping_waits_are_counted_once() {
        // Waits 0-100, 50-150 and 300-400: 250 ms for three prompts of ten tokens.
        let samples = [steady_sample(0, 0, 100, 1), steady_sample(1, 50, 100, 1), steady_sample(0, 300, 100, 1)];
        close(prompt_rate(&refs(&samples)).unwrap(), 30.0 / 0.25);
    }

    #[test]
    fn an_open_window_begins_when_the_load_has_risen_and_ends_with_the_arrivals() {
        // An arrival every 100 ms, each answered in 350 ms.
        let samples: Vec<Sample> = (0..41).map(|i| steady_sample(0, 100 * i, 250, 11)).collect();
        let all = attempts(samples.clone());
        assert_eq!(steady(OPEN, None, &all, &refs(&samples)), Some(400 * MS..4000 * MS));
        // A slow first answer moves the begin.
        let slow: Vec<Sample> = (0..41).map(|i| steady_sample(0, 100 * i, 900, 11)).collect();
        assert_eq!(steady(OPEN, None, &attempts(slow.clone()), &refs(&slow)), Some(1000 * MS..4000 * MS));
        // Too few arrivals, and an answer that came after all of them.
        assert_eq!(steady(OPEN, None, &all[..19], &refs(&samples[..19])), None);
        let late: Vec<Sample> = (0..41).map(|i| steady_sample(0, 100 * i, 5000, 11)).collect();
        assert_eq!(steady(OPEN, None, &attempts(late.clone()), &refs(&late)), None);
    }

    #[test]
    fn a_window_asked_for_is_a_part_of_the_time_in_which_requests_began() {
        let samples: Vec<Sample> = (0..5).map(|i| steady_sample(0, 100 * i, 50, 1)).collect();
        let all = attempts(samples.clone());
        assert_eq!(steady(OPEN, Some((0.25, 0.75)), &all, &refs(&samples)), Some(100 * MS..300 * MS));
        let closed = Pace::Closed { concurrency: 1 };
        assert_eq!(steady(closed, Some((0.0, 1.0)), &all, &refs(&samples)), Some(0..400 * MS));
    }

    #[test]
    fn an_open_loops_latencies_are_of_what_was_due_in_the_window_however_slow() {
        let (due_before, slow, due_after) =
            (steady_sample(0, 90, 60, 1), steady_sample(0, 150, 5000, 1), steady_sample(0, 200, 10, 1));
        let samples = [due_before, slow, due_after];
        let window = 100 * MS..200 * MS;
        assert_eq!(typical(OPEN, &refs(&samples), &window), [&samples[1]]);
        // A closed loop takes what lived in it.
        assert_eq!(typical(Pace::Closed { concurrency: 3 }, &refs(&samples), &window), [&samples[0]]);
    }

    #[test]
    fn good_requests_are_counted_apart() {
        // TTFT 100, 100, 300 and 100 ms, one second in all.
        let samples: Vec<Sample> = [100, 100, 300, 100]
            .iter()
            .enumerate()
            .map(|(i, &wait)| steady_sample(0, 250 * i as u64, wait, 1))
            .collect();
        let rates = Rates::of(&refs(&samples), &(0..1000 * MS), Some("ttft:200".parse().unwrap()));
        close(rates.requests, 4.0);
        close(rates.good_requests, 3.0);
        close(Rates::of(&refs(&samples), &(0..1000 * MS), None).good_requests, 0.0);
    }

    #[test]
    fn the_spread_is_over_fifths_of_the_window() {
        // Ten requests of 100 ms one after the other, then five of 200 ms.
        let mut samples: Vec<Sample> = (0..10).map(|i| steady_sample(0, 100 * i, 100, 1)).collect();
        samples.extend((0..5).map(|i| steady_sample(0, 1000 + 200 * i, 200, 1)));
        let (low, high) = Rates::spread(&refs(&samples), &(0..2000 * MS), None);
        close(low.requests, 5.0);
        close(high.requests, 10.0);
    }

    #[test]
    fn answers_that_came_whole_spread_their_tokens_over_their_life() {
        let sample = Sample { output_tokens: 8, ..completion(0, 0, 400 * MS, &[]) };
        close(Rates::of(&[&sample], &(100 * MS..200 * MS), None).output_tokens, 20.0);
    }

    #[test]
    fn connections_without_a_success_leave_no_closed_window() {
        let samples: Vec<Sample> = (0..5).map(|i| steady_sample(0, 100 * i, 100, 1)).collect();
        let mut all = attempts(samples.clone());
        let pace = Pace::Closed { concurrency: 1 };
        assert!(steady(pace, None, &all, &refs(&samples)).is_some());
        let outcome = Err(RequestError::Stalled(1));
        all.push(Attempt { connection: 1, tenant: 0, begin: 0, end: 500 * MS, late: 0, outcome });
        assert_eq!(steady(Pace::Closed { concurrency: 2 }, None, &all, &refs(&samples)), None);
    }
}
