//! The settings of a run, and what no run can be made with.

use std::fmt;
use std::path::PathBuf;

use crate::error::BenchError;
use crate::lengths::Lengths;
use crate::slo::Slo;
use crate::target::Target;

/// The most connections a level may hold: one file descriptor each, and the default soft limit of 1,024 is common.
pub(crate) const CONNECTIONS_MAX: u32 = 1000;
/// The most requests of one level: each keeps its arrivals until the level ends.
pub(crate) const REQUESTS_MAX: u32 = 1 << 20;
/// The longest prompt, in tokens. Its JSON then stays under the servers' usual body limit of 4 MiB.
pub(crate) const PROMPT_TOKENS_MAX: u32 = 1 << 19;
/// The most tenants of a run; a table of more says nothing to a reader.
pub(crate) const TENANTS_MAX: usize = 64;

/// What is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoadKind {
    /// `POST /v1/completions` with prompts of token ids.
    Completions,
    /// `POST /v1/chat/completions` with one user message of as many words as there are prompt tokens: chat takes no
    /// token ids, so the prompt's length is what the server counts.
    Chat,
    /// `POST /v1/embeddings` with inputs of token ids.
    Embeddings,
}

/// What decides when a request is sent; each item of a list is a level.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Closed loop: so many connections, each sending its next request when its last one has ended.
    Concurrency(Vec<u32>),
    /// Open loop: requests are sent on a schedule, whatever became of those before.
    Rate {
        /// Requests per second, of all tenants together.
        rates: Vec<f64>,
        /// Shape of the Gamma distribution of the gaps: 1 is a Poisson process, below 1 comes in bursts, above 1 is more
        /// regular. The gaps' coefficient of variation is 1 / sqrt(burstiness).
        burstiness: f64,
    },
    /// Open loop, of the times, lengths and tenants that a file of JSON lines names.
    Trace(PathBuf),
}

/// Somebody who sends a part of the load.
#[derive(Clone, PartialEq)]
pub struct Tenant {
    /// How the report names it.
    pub name: String,
    /// Its bearer key; empty sends no `Authorization`.
    pub key: String,
    /// Its share of the load: of the rate, or of the connections.
    pub weight: f64,
}

// By hand, so that the key never reaches a log.
impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.weight)
    }
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// `http://host:port`, with a path if the API is not at the root. Plain HTTP only.
    pub url: String,
    /// Who sends, at least one.
    pub tenants: Vec<Tenant>,
    /// The model's name, as the server lists it.
    pub model: String,
    /// What is asked.
    pub kind: LoadKind,
    /// When.
    pub arrivals: Arrivals,
    /// Inputs of an embeddings request: each level is measured once with each; unused otherwise.
    pub inputs: Vec<u32>,
    /// Token ids of each prompt, or of each of a request's inputs.
    pub prompt_tokens: Lengths,
    /// `max_tokens` of each completion, drawn in full (`ignore_eos`); unused for embeddings.
    pub output_tokens: Lengths,
    /// Whether completions are streamed. If not, only the end-to-end latency is known.
    pub stream: bool,
    /// Whether the server is asked to count the tokens of each delta. If not, they are shared out evenly.
    pub count_deltas: bool,
    /// Measured requests per level; 0: as many as `seconds` allow. A trace is its own measure.
    pub requests: u32,
    /// How long a level starts new requests; used when `requests` is 0.
    pub seconds: u32,
    /// Unmeasured requests before each level.
    pub warmup: u32,
    /// Open requests that an open loop may have at once; an arrival above it is not sent, and the level void.
    pub open_max: u32,
    /// What makes a request a good one; None: no goodput is counted.
    pub slo: Option<Slo>,
    /// The steady window as fractions of the time in which requests begin; None: chosen from the requests themselves.
    pub window: Option<(f64, f64)>,
    /// Where lengths, prompts and arrivals are drawn from. A server that has seen a seed may have its prompts cached.
    pub seed: u64,
    /// The model's vocabulary size: prompts use ids below it.
    pub vocab: u32,
    /// The server's process, then its executors; empty: found by the listening port, else by the name `weir`.
    pub server_pids: Vec<u32>,
    /// Where to write JSON, one line per level with the field names of vLLM's benchmark.
    pub output: Option<PathBuf>,
    /// Whether that JSON also carries each request's lengths and latencies.
    pub detailed: bool,
    /// Where to write a plot of the levels, as SVG.
    pub plot: Option<PathBuf>,
}

impl LoadConfig {
    /// Refuses what no run can be made with, naming the field.
    pub(crate) fn check(&self) -> Result<Target, BenchError> {
        let refuse = |field, reason: &str| Err(BenchError::Config { field, reason: reason.to_string() });
        let target = Target::parse(&self.url)?;
        self.check_tenants()?;
        self.check_arrivals()?;
        if self.model.is_empty() {
            return refuse("model", "a model's name is needed");
        }
        if self.prompt_tokens.min == 0 || self.prompt_tokens.max > PROMPT_TOKENS_MAX {
            return refuse("prompt_tokens", &format!("must be 1 to {PROMPT_TOKENS_MAX}"));
        }
        let embeddings = self.kind == LoadKind::Embeddings;
        if !embeddings && self.output_tokens.min == 0 {
            return refuse("output_tokens", "must be at least 1");
        }
        if embeddings && (self.inputs.is_empty() || self.inputs.contains(&0)) {
            return refuse("inputs", "each must be at least 1");
        }
        if self.plot.is_some() && embeddings && self.inputs.len() != 1 {
            return refuse("plot", "takes one number of inputs");
        }
        if self.slo.is_some_and(|slo| slo.needs_stream()) && (embeddings || !self.stream) {
            return refuse("goodput", "only a streamed answer has more than an end-to-end latency");
        }
        if self.window.is_some_and(|(from, to)| !(0.0 <= from && from < to && to <= 1.0)) {
            return refuse("window", "is two fractions from 0 to 1, the first below the second");
        }
        if self.warmup > REQUESTS_MAX {
            return refuse("warmup", &format!("must be at most {REQUESTS_MAX}"));
        }
        if self.vocab < 2 {
            return refuse("vocab", "the model's vocabulary size is needed, at least 2");
        }
        Ok(target)
    }

    fn check_tenants(&self) -> Result<(), BenchError> {
        let refuse = |field, reason: &str| Err(BenchError::Config { field, reason: reason.to_string() });
        if self.tenants.is_empty() || self.tenants.len() > TENANTS_MAX {
            return refuse("tenants", &format!("must be 1 to {TENANTS_MAX}"));
        }
        for (index, tenant) in self.tenants.iter().enumerate() {
            if self.tenants[..index].iter().any(|other| other.name == tenant.name) {
                return refuse("tenants", &format!("`{}` stands twice", tenant.name));
            }
            if !tenant.weight.is_finite() || tenant.weight <= 0.0 {
                return refuse("tenants", &format!("the weight of `{}` must be above 0", tenant.name));
            }
            if tenant.key.chars().any(|c| !c.is_ascii_graphic()) {
                return refuse("key", "a bearer key is visible ASCII without spaces");
            }
        }
        Ok(())
    }

    fn check_arrivals(&self) -> Result<(), BenchError> {
        let refuse = |field, reason: &str| Err(BenchError::Config { field, reason: reason.to_string() });
        let timed = !matches!(self.arrivals, Arrivals::Trace(_));
        if timed && self.requests == 0 && self.seconds == 0 {
            return refuse("requests", "give requests, or seconds, above 0");
        }
        if self.requests > REQUESTS_MAX {
            return refuse("requests", &format!("must be at most {REQUESTS_MAX}"));
        }
        if self.open_max == 0 || self.open_max > CONNECTIONS_MAX {
            return refuse("open_max", &format!("must be 1 to {CONNECTIONS_MAX}"));
        }
        match &self.arrivals {
            Arrivals::Concurrency(levels) if levels.is_empty() => refuse("concurrency", "at least one level is needed"),
            Arrivals::Concurrency(levels) if levels.iter().any(|&n| n == 0 || n > CONNECTIONS_MAX) => {
                refuse("concurrency", &format!("each level must be 1 to {CONNECTIONS_MAX}"))
            }
            Arrivals::Concurrency(levels) if levels.iter().any(|&n| (n as usize) < self.tenants.len()) => {
                refuse("concurrency", "each tenant needs a connection of its own")
            }
            Arrivals::Rate { rates, .. } if rates.is_empty() => refuse("request_rate", "at least one level is needed"),
            Arrivals::Rate { rates, .. } if rates.iter().any(|rate| !rate.is_finite() || *rate <= 0.0) => {
                refuse("request_rate", "must be above 0")
            }
            Arrivals::Rate { rates, .. }
                if rates.iter().any(|rate| rate * f64::from(self.seconds) > f64::from(REQUESTS_MAX)) =>
            {
                refuse("request_rate", &format!("times the seconds must be at most {REQUESTS_MAX} requests"))
            }
            Arrivals::Rate { burstiness, .. } if !burstiness.is_finite() || *burstiness <= 0.0 => {
                refuse("burstiness", "must be above 0")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample_config() -> LoadConfig {
        LoadConfig {
            url: "http://127.0.0.1:8000".into(),
            tenants: vec![tenant("demo", "weir-secret", 1.0)],
            model: "m".into(),
            kind: LoadKind::Completions,
            arrivals: Arrivals::Concurrency(vec![1]),
            inputs: vec![1],
            prompt_tokens: Lengths::fixed(8),
            output_tokens: Lengths::fixed(4),
            stream: true,
            count_deltas: true,
            requests: 3,
            seconds: 0,
            warmup: 0,
            open_max: CONNECTIONS_MAX,
            slo: None,
            window: None,
            seed: 1,
            vocab: 300,
            server_pids: Vec::new(),
            output: None,
            detailed: false,
            plot: None,
        }
    }

    pub(crate) fn tenant(name: &str, key: &str, weight: f64) -> Tenant {
        Tenant { name: name.into(), key: key.into(), weight }
    }

    fn rate(rates: &[f64], burstiness: f64) -> Arrivals {
        Arrivals::Rate { rates: rates.to_vec(), burstiness }
    }

    #[test]
    fn each_bad_setting_is_refused_by_name() {
        type Spoil = fn(&mut LoadConfig);
        let cases: [(&str, Spoil); 28] = [
            ("url", |c| c.url = "x".into()),
            ("key", |c| c.tenants[0].key = "a\r\nb".into()),
            ("tenants", |c| c.tenants.clear()),
            ("tenants", |c| c.tenants[0].weight = 0.0),
            ("tenants", |c| c.tenants[0].weight = f64::NAN),
            ("tenants", |c| c.tenants.push(tenant("demo", "x", 1.0))),
            ("model", |c| c.model.clear()),
            ("concurrency", |c| c.arrivals = Arrivals::Concurrency(vec![])),
            ("concurrency", |c| c.arrivals = Arrivals::Concurrency(vec![1, 0])),
            ("concurrency", |c| c.arrivals = Arrivals::Concurrency(vec![CONNECTIONS_MAX + 1])),
            ("concurrency", |c| c.tenants.push(tenant("other", "x", 1.0))),
            ("request_rate", |c| c.arrivals = rate(&[], 1.0)),
            ("request_rate", |c| c.arrivals = rate(&[1.0, -1.0], 1.0)),
            ("request_rate", |c| c.arrivals = rate(&[f64::INFINITY], 1.0)),
            ("request_rate", |c| (c.arrivals, c.seconds) = (rate(&[1e6], 1.0), 2)),
            ("burstiness", |c| c.arrivals = rate(&[1.0], 0.0)),
            ("open_max", |c| c.open_max = 0),
            ("open_max", |c| c.open_max = CONNECTIONS_MAX + 1),
            ("prompt_tokens", |c| c.prompt_tokens = Lengths::fixed(0)),
            ("output_tokens", |c| c.output_tokens = Lengths::fixed(0)),
            ("requests", |c| c.requests = 0),
            ("requests", |c| c.requests = u32::MAX),
            ("warmup", |c| c.warmup = u32::MAX),
            ("vocab", |c| c.vocab = 1),
            ("window", |c| c.window = Some((0.5, 0.5))),
            ("inputs", |c| (c.kind, c.inputs) = (LoadKind::Embeddings, vec![1, 0])),
            ("plot", |c| (c.kind, c.inputs, c.plot) = (LoadKind::Embeddings, vec![1, 8], Some("x".into()))),
            ("goodput", |c| (c.stream, c.slo) = (false, Some("ttft:5".parse().unwrap()))),
        ];
        assert!(sample_config().check().is_ok());
        for (name, spoil) in cases {
            let mut config = sample_config();
            spoil(&mut config);
            match config.check() {
                Err(BenchError::Config { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_key_stays_out_of_debug_output() {
        assert!(!format!("{:?}", sample_config()).contains("weir-secret"));
    }
}
