//! One level's attempts, reduced to its report.

use std::ops::Range;

use crate::config::LoadKind;
use crate::lengths::Lengths;
use crate::machine::MachineReport;
use crate::notes::{Failure, failures, notes};
use crate::pace::Pace;
use crate::punctuality::Punctuality;
use crate::sample::{Attempt, Sample};
use crate::slo::Slo;
use crate::stats::Summary;
use crate::window::{self, Rates};

const NANOS_PER_MILLI: f64 = 1e6;
const NANOS_PER_SECOND: f64 = 1e9;
/// What was asked in a level.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) kind: LoadKind,
    pub(crate) model: String,
    pub(crate) pace: Pace,
    pub(crate) inputs: u32,
    pub(crate) prompt_tokens: Lengths,
    pub(crate) output_tokens: Lengths,
    pub(crate) stream: bool,
    pub(crate) slo: Option<Slo>,
    /// Fractions of the level, where the window was asked for.
    pub(crate) window: Option<(f64, f64)>,
    /// Names, in the order of their places.
    pub(crate) tenants: Vec<String>,
    /// Requests that the level was to send; None when time decided.
    pub(crate) requests: Option<u32>,
    /// Open requests that an open loop may have at once.
    pub(crate) open_max: u32,
    /// Where lengths, prompts and arrivals were drawn from.
    pub(crate) seed: u64,
    /// Whether each request is kept.
    pub(crate) detailed: bool,
}

/// What came of a level.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) attempts: Vec<Attempt>,
    /// The most requests that were open at once.
    pub(crate) open_peak: u32,
    /// Arrivals that were not sent because too many requests were open.
    pub(crate) unsent: u32,
    /// When it began, in seconds since 1970.
    pub(crate) unix_seconds: u64,
}

/// Latencies of the requests of a window, ms. None where no request has one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latencies {
    /// Time to first token.
    pub ttft: Option<Summary>,
    /// Time per output token after the first, by request.
    pub tpot: Option<Summary>,
    /// Time between tokens.
    pub itl: Option<Summary>,
    /// End-to-end latency.
    pub e2el: Option<Summary>,
}

impl Latencies {
    fn of(samples: &[&Sample]) -> Latencies {
        let millis = |values: Vec<f64>| Summary::of(values.into_iter().map(|nanos| nanos / NANOS_PER_MILLI).collect());
        Latencies {
            ttft: millis(samples.iter().filter_map(|s| s.ttft()).map(|nanos| nanos as f64).collect()),
            tpot: millis(samples.iter().filter_map(|s| s.tpot()).collect()),
            itl: millis(samples.iter().flat_map(|s| s.token_gaps()).collect()),
            e2el: millis(samples.iter().map(|s| s.e2el() as f64).collect()),
        }
    }

    /// Under the names that vLLM gives them.
    pub(crate) fn named(&self) -> [(&'static str, Option<Summary>); 4] {
        [("ttft", self.ttft), ("tpot", self.tpot), ("itl", self.itl), ("e2el", self.e2el)]
    }
}

/// One tenant's part of a level, over the level's own window.
#[derive(Clone, Debug)]
pub struct TenantReport {
    /// Its name.
    pub name: String,
    /// Requests that succeeded.
    pub completed: u32,
    /// Requests that failed.
    pub failed: u32,
    /// Its rates.
    pub rates: Rates,
    /// Its latencies.
    pub latencies: Latencies,
}

/// What one level gave.
#[derive(Clone, Debug)]
pub struct LevelReport {
    /// What was asked.
    pub kind: LoadKind,
    /// Of which model.
    pub model: String,
    /// At which pace.
    pub pace: Pace,
    /// Inputs per embeddings request; 1 otherwise.
    pub inputs: u32,
    /// Tokens of each prompt, as asked.
    pub prompt_length: Lengths,
    /// Tokens of each answer, as asked.
    pub output_length: Lengths,
    /// Whether answers were streamed.
    pub stream: bool,
    /// Where the load was drawn from.
    pub seed: u64,
    /// When the level began, in seconds since 1970.
    pub unix_seconds: u64,
    /// Requests that succeeded, warm-up and cool-down included.
    pub completed: u32,
    /// Requests that failed.
    pub failed: u32,
    /// How they failed.
    pub failures: Vec<Failure>,
    /// The most requests that were open at once.
    pub open_peak: u32,
    /// From the first request to the end of the last, s.
    pub duration_s: f64,
    /// The window that rates are taken over, s.
    pub window_s: f64,
    /// Whether that window leaves warm-up and cool-down out; if not, it is the whole level.
    pub steady: bool,
    /// Prompt tokens of the whole level, by the server's count.
    pub prompt_tokens: u64,
    /// Those among them that a cache held.
    pub cached_tokens: u64,
    /// Output tokens of the whole level.
    pub output_tokens: u64,
    /// Amounts per second in the window.
    pub rates: Rates,
    /// The lowest of each over five parts of the window.
    pub rates_low: Rates,
    /// The highest.
    pub rates_high: Rates,
    /// The limits that good requests kept.
    pub slo: Option<Slo>,
    /// Output tokens per second while every connection was decoding; closed loop only.
    pub decode_tokens_per_s: Option<f64>,
    /// Prompt tokens per second of the time in which at least one connection waited for its first token.
    pub prompt_tokens_per_s: Option<f64>,
    /// Of the requests of the window.
    pub latencies: Latencies,
    /// Of an open loop.
    pub punctuality: Option<Punctuality>,
    /// Each tenant's part, where there are several.
    pub tenants: Vec<TenantReport>,
    /// Each request, where that was asked for.
    pub(crate) samples: Vec<Attempt>,
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
        self.rates.prompt_tokens + self.rates.output_tokens
    }

    /// Processor time per request, us, of whoever used so many cores while the level ran.
    pub(crate) fn micros_per_request(&self, cores: f64) -> Option<f64> {
        let requests = self.completed + self.failed - self.punctuality.map_or(0, |p| p.unsent);
        let machine = self.machine.as_ref().filter(|_| requests > 0)?;
        Some(cores * machine.elapsed_s * 1e6 / f64::from(requests))
    }

    pub(crate) fn new(shape: &Shape, outcome: Outcome, machine: Option<MachineReport>) -> LevelReport {
        let attempts = &outcome.attempts;
        let samples: Vec<&Sample> = attempts.iter().filter_map(|attempt| attempt.outcome.as_ref().ok()).collect();
        let whole = window::whole(&samples);
        let steady = window::steady(shape.pace, shape.window, attempts, &samples);
        let window = steady.clone().unwrap_or(whole.clone());
        let typical = window::typical(shape.pace, &samples, &window);
        let (rates_low, rates_high) = Rates::spread(&samples, &window, shape.slo);
        let failures = failures(attempts);
        let latencies = Latencies::of(&typical);
        let punctuality = shape.pace.is_open().then(|| Punctuality::of(attempts, &window, outcome.unsent));
        let decode = match shape.pace {
            Pace::Closed { concurrency } => window::decode_rate(concurrency, &samples),
            _ => None,
        };
        let void = punctuality
            .and_then(|p| p.void(shape.open_max, latencies.e2el.map_or(0.0, |e2el| e2el.median)))
            .or_else(|| machine.as_ref().and_then(MachineReport::void));
        let mut report = LevelReport {
            kind: shape.kind,
            model: shape.model.clone(),
            pace: shape.pace,
            inputs: shape.inputs,
            prompt_length: shape.prompt_tokens,
            output_length: shape.output_tokens,
            stream: shape.stream,
            seed: shape.seed,
            unix_seconds: outcome.unix_seconds,
            completed: samples.len() as u32,
            failed: failures.iter().map(|failure| failure.count).sum(),
            failures,
            open_peak: outcome.open_peak,
            duration_s: window::length(&whole) / NANOS_PER_SECOND,
            window_s: window::length(&window) / NANOS_PER_SECOND,
            steady: steady.is_some(),
            prompt_tokens: samples.iter().map(|s| u64::from(s.prompt_tokens)).sum(),
            cached_tokens: samples.iter().map(|s| u64::from(s.cached_tokens)).sum(),
            output_tokens: samples.iter().map(|s| u64::from(s.output_tokens)).sum(),
            rates: Rates::of(&samples, &window, shape.slo),
            rates_low,
            rates_high,
            slo: shape.slo,
            decode_tokens_per_s: decode,
            prompt_tokens_per_s: if shape.stream { window::prompt_rate(&samples) } else { None },
            latencies,
            punctuality,
            tenants: tenants(shape, attempts, &window),
            samples: Vec::new(),
            machine,
            void,
            notes: Vec::new(),
        };
        report.notes = notes(&report, shape, &samples);
        if shape.detailed {
            report.samples = outcome.attempts;
            report.samples.sort_by_key(|attempt| attempt.begin);
        }
        report
    }
}

fn tenants(shape: &Shape, attempts: &[Attempt], window: &Range<u64>) -> Vec<TenantReport> {
    if shape.tenants.len() < 2 {
        return Vec::new();
    }
    let report = |(place, name): (usize, &String)| {
        let own = || attempts.iter().filter(move |attempt| usize::from(attempt.tenant) == place);
        let samples: Vec<&Sample> = own().filter_map(|attempt| attempt.outcome.as_ref().ok()).collect();
        TenantReport {
            name: name.clone(),
            completed: samples.len() as u32,
            failed: own().count() as u32 - samples.len() as u32,
            rates: Rates::of(&samples, window, shape.slo),
            latencies: Latencies::of(&window::typical(shape.pace, &samples, window)),
        }
    };
    shape.tenants.iter().enumerate().map(report).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::error::RequestError;
    use crate::sample::tests::completion;

    pub(crate) const MS: u64 = 1_000_000;

    pub(crate) fn shape(concurrency: u32) -> Shape {
        Shape {
            kind: LoadKind::Completions,
            model: "m".into(),
            pace: Pace::Closed { concurrency },
            inputs: 1,
            prompt_tokens: Lengths::fixed(10),
            output_tokens: Lengths::fixed(11),
            stream: true,
            slo: None,
            window: None,
            tenants: vec!["demo".into()],
            requests: None,
            open_max: 1000,
            seed: 1,
            detailed: false,
        }
    }

    /// A request that waits `wait` ms for its first token and then takes 10 ms for each of `tokens - 1` more.
    pub(crate) fn steady_sample(connection: u32, begin: u64, wait: u64, tokens: u64) -> Sample {
        let arrivals: Vec<(u64, u32)> = (0..tokens).map(|i| ((begin + wait + 10 * i) * MS, 1)).collect();
        completion(connection, begin * MS, (begin + wait + 10 * (tokens - 1)) * MS, &arrivals)
    }

    pub(crate) fn attempts(samples: Vec<Sample>) -> Vec<Attempt> {
        let attempt = |s: Sample| Attempt {
            connection: s.connection,
            tenant: s.tenant,
            begin: s.begin,
            end: s.end,
            late: 0,
            outcome: Ok(s),
        };
        samples.into_iter().map(attempt).collect()
    }

    pub(crate) fn outcome(samples: Vec<Sample>) -> Outcome {
        Outcome { attempts: attempts(samples), open_peak: 1, unsent: 0, unix_seconds: 1_790_000_000 }
    }

    pub(crate) fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{a} is not {b}");
    }

    #[test]
    fn one_connection_gives_prompt_rate_decode_rate_and_throughput() {
        // Each request: 100 ms for the prompt, 10 more tokens in 100 ms.
        let report =
            LevelReport::new(&shape(1), outcome((0..4).map(|i| steady_sample(0, 200 * i, 100, 11)).collect()), None);
        assert!(report.steady);
        close(report.window_s, 0.6);
        close(report.duration_s, 0.8);
        close(report.decode_tokens_per_s.unwrap(), 100.0);
        close(report.prompt_tokens_per_s.unwrap(), 100.0);
        close(report.rates.requests, 5.0);
        close(report.rates.output_tokens, 55.0);
        close(report.rates.prompt_tokens, 50.0);
        close(report.total_throughput(), 105.0);
        let (ttft, itl, e2el) =
            (report.latencies.ttft.unwrap(), report.latencies.itl.unwrap(), report.latencies.e2el.unwrap());
        assert_eq!((ttft.count, itl.count), (3, 30));
        close(ttft.median, 100.0);
        close(itl.p99, 10.0);
        close(report.latencies.tpot.unwrap().mean, 10.0);
        close(e2el.p90, 200.0);
        assert_eq!((report.completed, report.output_tokens, report.prompt_tokens), (4, 44, 40));
    }

    #[test]
    fn ramp_and_drain_lie_outside_the_window() {
        // Connection 1 is slow at first, and connection 0 runs out of work first.
        let report = LevelReport::new(
            &shape(2),
            outcome(vec![
                steady_sample(0, 0, 100, 11),
                steady_sample(1, 0, 400, 11),
                steady_sample(0, 200, 100, 11),
                steady_sample(0, 400, 100, 11),
                steady_sample(1, 500, 100, 11),
                steady_sample(0, 600, 100, 11),
                steady_sample(1, 700, 300, 11),
            ]),
            None,
        );
        // From 500 (connection 1 has ended its first) to 800 (connection 0 has nothing left).
        close(report.window_s, 0.3);
        // Shares: (400-600) half, (500-700) whole, (600-800) whole, (700-1100) a quarter.
        close(report.rates.requests, 2.75 / 0.3);
        // Tokens after 500 up to 800: 10 of the first, 11 of the second and third, none of the last.
        close(report.rates.output_tokens, 32.0 / 0.3);
        // Of prompts: none of the first, all of the second and third, a third of the last.
        close(report.rates.prompt_tokens, (20.0 + 10.0 / 3.0) / 0.3);
        assert_eq!(report.latencies.e2el.unwrap().count, 3);
    }

    #[test]
    fn a_level_of_one_round_is_measured_whole_and_says_so() {
        let report = LevelReport::new(
            &shape(2),
            outcome(vec![steady_sample(0, 0, 100, 11), steady_sample(1, 0, 300, 11)]),
            None,
        );
        assert!(!report.steady);
        close(report.window_s, 0.4);
        close(report.rates.output_tokens, 22.0 / 0.4);
        assert!(report.notes.iter().any(|note| note.contains("too short")), "{:?}", report.notes);
    }

    #[test]
    fn embeddings_are_rated_by_inputs() {
        let sample = |begin: u64| Sample { inputs: 8, ..completion(0, begin * MS, (begin + 100) * MS, &[]) };
        let shape = Shape { kind: LoadKind::Embeddings, inputs: 8, ..shape(1) };
        let report = LevelReport::new(&shape, outcome((0..3).map(|i| sample(100 * i)).collect()), None);
        close(report.rates.embeddings, 80.0);
        close(report.rates.prompt_tokens, 100.0);
        close(report.prompt_tokens_per_s.unwrap(), 100.0);
        assert_eq!((report.latencies.ttft, report.rates.output_tokens), (None, 0.0));
    }

    pub(crate) fn open_shape() -> Shape {
        Shape { pace: Pace::Open { rate: 10.0, burstiness: 1.0 }, ..shape(1) }
    }

    /// An open loop with an arrival every 100 ms, each ready `late` ms after it was due and answered in 200 ms.
    pub(crate) fn open_outcome(late: u64) -> Outcome {
        let mut outcome = outcome((0..41).map(|i| steady_sample(0, 100 * i, 100, 11)).collect());
        outcome.attempts.iter_mut().for_each(|attempt| attempt.late = late * MS);
        outcome
    }

    #[test]
    fn tenants_add_up_to_the_level() {
        let mut outcome = outcome((0..41).map(|i| steady_sample(0, 100 * i, 100, 11)).collect());
        for (i, attempt) in outcome.attempts.iter_mut().enumerate() {
            attempt.tenant = u16::from(i % 4 == 0);
            if i == 40 {
                attempt.outcome = Err(RequestError::Stalled(1));
            }
        }
        let shape = Shape { tenants: vec!["a".into(), "b".into()], ..open_shape() };
        let report = LevelReport::new(&shape, outcome, None);
        let [a, b] = &report.tenants[..] else { panic!("{:?}", report.tenants) };
        assert_eq!((a.name.as_str(), a.completed, a.failed), ("a", 30, 0));
        assert_eq!((b.name.as_str(), b.completed, b.failed), ("b", 10, 1));
        close(a.rates.requests + b.rates.requests, report.rates.requests);
        close(a.rates.output_tokens + b.rates.output_tokens, report.rates.output_tokens);
        assert!(LevelReport::new(&open_shape(), open_outcome(0), None).tenants.is_empty());
    }

    #[test]
    fn processor_time_is_shared_by_the_requests_that_were_sent() {
        let machine = MachineReport { elapsed_s: 2.0, ..crate::machine::tests::quiet() };
        let mut report = LevelReport::new(&open_shape(), open_outcome(0), Some(machine));
        close(report.micros_per_request(0.5).unwrap(), 1e6 / 41.0);
        (report.failed, report.punctuality.as_mut().unwrap().unsent) = (9, 10);
        close(report.micros_per_request(0.5).unwrap(), 1e6 / 40.0);
        report.machine = None;
        assert_eq!(report.micros_per_request(0.5), None);
    }
}
