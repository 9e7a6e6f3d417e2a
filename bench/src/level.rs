//! One level's attempts, reduced to its report.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::config::LoadKind;
use crate::machine::MachineReport;
use crate::sample::{Attempt, Sample};
use crate::stats::Summary;

const NANOS_PER_MILLI: f64 = 1e6;
const NANOS_PER_SECOND: f64 = 1e9;
/// Distinct failure texts kept per level; the rest are counted under one line.
const FAILURES_SHOWN_MAX: usize = 8;
/// The decode rate needs at least this many tokens per connection while all of them decode.
const DECODE_TOKENS_MIN: u64 = 8;

/// What was asked in a level.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) kind: LoadKind,
    pub(crate) model: String,
    pub(crate) concurrency: u32,
    pub(crate) inputs: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    /// Requests that the level was to send; None when time decided.
    pub(crate) requests: Option<u32>,
}

/// Requests that failed in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the failure says.
    pub reason: String,
    /// How many requests ended so.
    pub count: u32,
}

/// What one level gave.
#[derive(Clone, Debug)]
pub struct LevelReport {
    /// What was asked.
    pub kind: LoadKind,
    /// Of which model.
    pub model: String,
    /// Connections kept busy.
    pub concurrency: u32,
    /// Inputs per embeddings request; 1 for completions.
    pub inputs: u32,
    /// Requests that succeeded, ramp and drain included.
    pub completed: u32,
    /// Requests that failed.
    pub failed: u32,
    /// How they failed.
    pub failures: Vec<Failure>,
    /// From the first request to the end of the last, s.
    pub duration_s: f64,
    /// The window that throughputs are taken over, s.
    pub window_s: f64,
    /// Whether that window leaves ramp and drain out; if not, it is the whole level.
    pub steady: bool,
    /// Prompt tokens of the whole level, by the server's count.
    pub prompt_tokens: u64,
    /// Those among them that a cache held.
    pub cached_tokens: u64,
    /// Output tokens of the whole level.
    pub output_tokens: u64,
    /// Requests per second in the window.
    pub request_throughput: f64,
    /// Prompt tokens per second in the window.
    pub prompt_throughput: f64,
    /// Output tokens per second in the window.
    pub output_throughput: f64,
    /// Embeddings per second in the window; 0 for completions.
    pub embeddings_per_s: f64,
    /// Output tokens per second while every connection was decoding.
    pub decode_tokens_per_s: Option<f64>,
    /// Prompt tokens per second of the time in which at least one connection waited for its first token.
    pub prompt_tokens_per_s: Option<f64>,
    /// Time to first token, ms.
    pub ttft: Option<Summary>,
    /// Time per output token after the first, by request, ms.
    pub tpot: Option<Summary>,
    /// Time between tokens, ms.
    pub itl: Option<Summary>,
    /// End-to-end latency, ms.
    pub e2el: Option<Summary>,
    /// What the machine did; None where that cannot be read.
    pub machine: Option<MachineReport>,
    /// Why the figures cannot stand, if so.
    pub void: Option<String>,
    /// What a reader of the figures should know.
    pub notes: Vec<String>,
}

impl LevelReport {
    /// Output and prompt tokens per second in the window.
    pub fn total_throughput(&self) -> f64 {
        self.prompt_throughput + self.output_throughput
    }

    pub(crate) fn new(shape: &Shape, attempts: &[Attempt], machine: Option<MachineReport>) -> LevelReport {
        let samples: Vec<&Sample> = attempts.iter().filter_map(|attempt| attempt.outcome.as_ref().ok()).collect();
        let whole = whole(&samples);
        let steady = steady_window(shape.concurrency, attempts, &samples);
        let window = steady.clone().unwrap_or(whole.clone());
        let rate = |amount: f64| if window.is_empty() { 0.0 } else { amount * NANOS_PER_SECOND / length(&window) };
        let sum = |part: &dyn Fn(&Sample) -> f64| samples.iter().map(|s| part(s)).sum::<f64>();

        // A request that lies across an end of the window counts by the part of its life, or of its prompt's, inside.
        let requests = sum(&|s| share(&(s.begin..s.end), &window));
        let embeddings = sum(&|s| share(&(s.begin..s.end), &window) * f64::from(s.inputs));
        let prompts = sum(&|s| share(&(s.begin..s.prompt_end()), &window) * f64::from(s.prompt_tokens));
        let outputs = sum(&|s| tokens_in(s, &window) as f64);

        let mut typical: Vec<&Sample> =
            samples.iter().copied().filter(|s| share(&(s.begin..s.end), &window) >= 0.5).collect();
        if typical.is_empty() {
            typical.clone_from(&samples);
        }
        let millis = |values: Vec<f64>| Summary::of(values.into_iter().map(|nanos| nanos / NANOS_PER_MILLI).collect());
        let failures = failures(attempts);
        let decode = decode_rate(shape.concurrency, &samples);
        let void = machine.as_ref().and_then(MachineReport::void);
        let mut report = LevelReport {
            kind: shape.kind,
            model: shape.model.clone(),
            concurrency: shape.concurrency,
            inputs: shape.inputs,
            completed: samples.len() as u32,
            failed: failures.iter().map(|failure| failure.count).sum(),
            failures,
            duration_s: length(&whole) / NANOS_PER_SECOND,
            window_s: length(&window) / NANOS_PER_SECOND,
            steady: steady.is_some(),
            prompt_tokens: samples.iter().map(|s| u64::from(s.prompt_tokens)).sum(),
            cached_tokens: samples.iter().map(|s| u64::from(s.cached_tokens)).sum(),
            output_tokens: samples.iter().map(|s| u64::from(s.output_tokens)).sum(),
            request_throughput: rate(requests),
            prompt_throughput: rate(prompts),
            output_throughput: rate(outputs),
            embeddings_per_s: if shape.kind == LoadKind::Embeddings { rate(embeddings) } else { 0.0 },
            decode_tokens_per_s: decode,
            prompt_tokens_per_s: prompt_rate(&samples),
            ttft: millis(typical.iter().filter_map(|s| s.ttft()).map(|nanos| nanos as f64).collect()),
            tpot: millis(typical.iter().filter_map(|s| s.tpot()).collect()),
            itl: millis(typical.iter().flat_map(|s| s.token_gaps()).collect()),
            e2el: millis(typical.iter().map(|s| s.e2el() as f64).collect()),
            machine,
            void,
            notes: Vec::new(),
        };
        report.notes = notes(&report, shape, &samples);
        report
    }
}

fn length(range: &Range<u64>) -> f64 {
    range.end.saturating_sub(range.start) as f64
}

/// From the first request's begin to the last one's end.
fn whole(samples: &[&Sample]) -> Range<u64> {
    let begin = samples.iter().map(|s| s.begin).min().unwrap_or(0);
    begin..samples.iter().map(|s| s.end).max().unwrap_or(0)
}

/// From the moment every connection has ended a request to the moment the first one runs out of work. None when that is
/// less than half of a mean request (fewer than two rounds, as a rule), or on a connection nothing succeeded.
fn steady_window(concurrency: u32, attempts: &[Attempt], samples: &[&Sample]) -> Option<Range<u64>> {
    let mut ramp_end = 0;
    let mut drain_begin = u64::MAX;
    for connection in 0..concurrency {
        let first_end = samples.iter().filter(|s| s.connection == connection).map(|s| s.end).min()?;
        let last_end = attempts.iter().filter(|a| a.connection == connection).map(|a| a.end).max()?;
        ramp_end = ramp_end.max(first_end);
        drain_begin = drain_begin.min(last_end);
    }
    let mean = samples.iter().map(|s| s.e2el() as f64).sum::<f64>() / samples.len().max(1) as f64;
    let long_enough = ramp_end < drain_begin && (drain_begin - ramp_end) as f64 >= mean / 2.0;
    long_enough.then_some(ramp_end..drain_begin)
}

/// How much of `life` lies in `window`, 0 to 1.
fn share(life: &Range<u64>, window: &Range<u64>) -> f64 {
    let inside = life.start.max(window.start)..life.end.min(window.end);
    if life.is_empty() { 0.0 } else { length(&inside) / length(life) }
}

/// Tokens after the window's start, up to its end: a token ends the time that it took.
fn tokens_in(sample: &Sample, window: &Range<u64>) -> u64 {
    let inside = sample.arrivals.iter().filter(|a| window.start < a.at && a.at <= window.end);
    inside.map(|a| u64::from(a.tokens)).sum()
}

/// Prompt tokens over the union of the times in which prompts were waiting for their first token.
fn prompt_rate(samples: &[&Sample]) -> Option<f64> {
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
fn decode_rate(concurrency: u32, samples: &[&Sample]) -> Option<f64> {
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

/// Failures by their text, the commonest first; the rarest kinds share the last line.
fn failures(attempts: &[Attempt]) -> Vec<Failure> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for error in attempts.iter().filter_map(|attempt| attempt.outcome.as_ref().err()) {
        *counts.entry(error.to_string()).or_default() += 1;
    }
    let mut found: Vec<Failure> = counts.into_iter().map(|(reason, count)| Failure { reason, count }).collect();
    found.sort_by_key(|failure| std::cmp::Reverse(failure.count));
    if found.len() > FAILURES_SHOWN_MAX {
        let count = found.drain(FAILURES_SHOWN_MAX..).map(|failure| failure.count).sum();
        found.push(Failure { reason: "failures of other kinds".into(), count });
    }
    found
}

fn notes(report: &LevelReport, shape: &Shape, samples: &[&Sample]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |applies: bool, text: String| {
        if applies {
            notes.push(text);
        }
    };
    let sent = report.completed + report.failed;
    let stopped = shape.requests.is_some_and(|requests| sent < requests);
    note(stopped, format!("the level was ended after {sent} requests: only failures came"));
    note(
        !report.steady && report.completed > 0,
        "too short for a steady window: ramp and drain are in its throughputs".into(),
    );
    note(
        report.cached_tokens > 0,
        format!("{} prompt tokens came from a cache: take a seed the server has not seen", report.cached_tokens),
    );
    if shape.kind == LoadKind::Completions {
        let other_prompt = samples.iter().filter(|s| s.prompt_tokens != shape.prompt_tokens).count();
        note(other_prompt > 0, format!("{other_prompt} requests were counted with another prompt length than sent"));
        let other_output = samples.iter().filter(|s| s.output_tokens != shape.output_tokens).count();
        note(other_output > 0, format!("{other_output} requests gave another number of tokens than asked for"));
        let uncounted = samples.iter().any(|s| !s.counted);
        note(uncounted, "the server does not count tokens per delta: ITL is by even shares of the total".into());
        note(
            report.decode_tokens_per_s.is_none()
                && u64::from(shape.output_tokens) > DECODE_TOKENS_MIN
                && !samples.is_empty(),
            "no decode rate: all connections decoded together for too few tokens; ask for longer outputs".into(),
        );
    }
    match &report.machine {
        None => note(true, "this machine's processor times cannot be read: other load was not judged".into()),
        Some(machine) => {
            note(machine.server_pid.is_none(), "the server's process was not found: other load was not judged".into());
            note(
                machine.steal_cores > 0.05,
                format!("the hypervisor kept {:.0} % of a core from this machine", machine.steal_cores * 100.0),
            );
        }
    }
    notes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::error::RequestError;
    use crate::sample::tests::completion;

    const MS: u64 = 1_000_000;

    pub(crate) fn shape(concurrency: u32) -> Shape {
        Shape {
            kind: LoadKind::Completions,
            model: "m".into(),
            concurrency,
            inputs: 1,
            prompt_tokens: 10,
            output_tokens: 11,
            requests: None,
        }
    }

    /// A request that waits `wait` ms for its first token and then takes 10 ms for each of `tokens - 1` more.
    fn steady(connection: u32, begin: u64, wait: u64, tokens: u64) -> Sample {
        let arrivals: Vec<(u64, u32)> = (0..tokens).map(|i| ((begin + wait + 10 * i) * MS, 1)).collect();
        completion(connection, begin * MS, (begin + wait + 10 * (tokens - 1)) * MS, &arrivals)
    }

    pub(crate) fn attempts(samples: Vec<Sample>) -> Vec<Attempt> {
        samples.into_iter().map(|s| Attempt { connection: s.connection, end: s.end, outcome: Ok(s) }).collect()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{a} is not {b}");
    }

    #[test]
    fn one_connection_gives_prompt_rate_decode_rate_and_throughput() {
        // Each request: 100 ms for the prompt, 10 more tokens in 100 ms.
        let report =
            LevelReport::new(&shape(1), &attempts((0..4).map(|i| steady(0, 200 * i, 100, 11)).collect()), None);
        assert!(report.steady);
        close(report.window_s, 0.6);
        close(report.duration_s, 0.8);
        close(report.decode_tokens_per_s.unwrap(), 100.0);
        close(report.prompt_tokens_per_s.unwrap(), 100.0);
        close(report.request_throughput, 5.0);
        close(report.output_throughput, 55.0);
        close(report.prompt_throughput, 50.0);
        close(report.total_throughput(), 105.0);
        let (ttft, itl, e2el) = (report.ttft.unwrap(), report.itl.unwrap(), report.e2el.unwrap());
        assert_eq!((ttft.count, itl.count), (3, 30));
        close(ttft.median, 100.0);
        close(itl.p99, 10.0);
        close(report.tpot.unwrap().mean, 10.0);
        close(e2el.p90, 200.0);
        assert_eq!((report.completed, report.output_tokens, report.prompt_tokens), (4, 44, 40));
    }

    #[test]
    fn ramp_and_drain_lie_outside_the_window() {
        // Connection 1 is slow at first, and connection 0 runs out of work first.
        let report = LevelReport::new(
            &shape(2),
            &attempts(vec![
                steady(0, 0, 100, 11),
                steady(1, 0, 400, 11),
                steady(0, 200, 100, 11),
                steady(0, 400, 100, 11),
                steady(1, 500, 100, 11),
                steady(0, 600, 100, 11),
                steady(1, 700, 300, 11),
            ]),
            None,
        );
        // From 500 (connection 1 has ended its first) to 800 (connection 0 has nothing left).
        close(report.window_s, 0.3);
        // Shares: (400-600) half, (500-700) whole, (600-800) whole, (700-1100) a quarter.
        close(report.request_throughput, 2.75 / 0.3);
        // Tokens after 500 up to 800: 10 of the first, 11 of the second and third, none of the last.
        close(report.output_throughput, 32.0 / 0.3);
        // Of prompts: none of the first, all of the second and third, a third of the last.
        close(report.prompt_throughput, (20.0 + 10.0 / 3.0) / 0.3);
        assert_eq!(report.e2el.unwrap().count, 3);
    }

    #[test]
    fn a_level_of_one_round_is_measured_whole_and_says_so() {
        let report = LevelReport::new(&shape(2), &attempts(vec![steady(0, 0, 100, 11), steady(1, 0, 300, 11)]), None);
        assert!(!report.steady);
        close(report.window_s, 0.4);
        close(report.output_throughput, 22.0 / 0.4);
        assert!(report.notes.iter().any(|note| note.contains("too short")), "{:?}", report.notes);
    }

    #[test]
    fn decode_rate_counts_full_batches_only() {
        // Alone from 100 to 200, together from 200 to 300, alone until 400.
        let one = completion(0, 0, 300 * MS, &(0..21).map(|i| ((100 + 10 * i) * MS, 1)).collect::<Vec<_>>());
        let two = completion(1, 0, 400 * MS, &(0..21).map(|i| ((200 + 10 * i) * MS, 2)).collect::<Vec<_>>());
        close(decode_rate(2, &[&one, &two]).unwrap(), (10.0 + 20.0) / 0.1);
        assert_eq!(decode_rate(3, &[&one, &two]), None);
        // Too few tokens together.
        assert_eq!(decode_rate(1, &[&steady(0, 0, 10, 8)]), None);
        assert!(decode_rate(1, &[&steady(0, 0, 10, 9)]).is_some());
    }

    #[test]
    fn overlapping_waits_are_counted_once() {
        // Waits 0-100, 50-150 and 300-400: 250 ms for three prompts of ten tokens.
        let samples = [steady(0, 0, 100, 1), steady(1, 50, 100, 1), steady(0, 300, 100, 1)];
        close(prompt_rate(&samples.iter().collect::<Vec<_>>()).unwrap(), 30.0 / 0.25);
    }

    #[test]
    fn failures_are_counted_by_kind() {
        let failed = |error: RequestError| Attempt { connection: 0, end: 5, outcome: Err(error) };
        let mut all = vec![failed(RequestError::Truncated("a stream"))];
        all.extend((0..3).map(|_| failed(RequestError::Stream("no".into()))));
        all.extend((0..9).map(|i| failed(RequestError::Stream(format!("{i}")))));
        let report = LevelReport::new(&Shape { requests: Some(99), ..shape(1) }, &all, None);
        assert_eq!((report.completed, report.failed), (0, 13));
        assert_eq!(report.failures.iter().map(|f| f.count).sum::<u32>(), 13);
        assert_eq!(report.failures.len(), FAILURES_SHOWN_MAX + 1);
        assert_eq!(report.failures[0].count, 3);
        assert_eq!((report.request_throughput, report.ttft, report.decode_tokens_per_s), (0.0, None, None));
        assert!(report.notes[0].contains("after 13 requests"), "{:?}", report.notes);
    }

    #[test]
    fn what_a_reader_must_know_is_noted() {
        let mut sample = steady(0, 0, 100, 5);
        sample.cached_tokens = 3;
        sample.prompt_tokens = 12;
        sample.counted = false;
        let notes = LevelReport::new(&shape(1), &attempts(vec![sample]), None).notes.join("\n");
        for part in [
            "3 prompt tokens came from a cache",
            "another prompt length",
            "another number of tokens",
            "per delta",
            "no decode rate",
        ] {
            assert!(notes.contains(part), "{part}: {notes}");
        }
    }

    #[test]
    fn embeddings_are_rated_by_inputs() {
        let sample = |begin: u64| Sample { inputs: 8, ..completion(0, begin * MS, (begin + 100) * MS, &[]) };
        let shape = Shape { kind: LoadKind::Embeddings, inputs: 8, ..shape(1) };
        let report = LevelReport::new(&shape, &attempts((0..3).map(|i| sample(100 * i)).collect()), None);
        close(report.embeddings_per_s, 80.0);
        close(report.prompt_throughput, 100.0);
        close(report.prompt_tokens_per_s.unwrap(), 100.0);
        assert_eq!((report.ttft, report.output_throughput), (None, 0.0));
    }
}
