//! The settings of a run, and the address parsed out of them.

use std::fmt;
use std::path::PathBuf;

use crate::error::BenchError;

/// Inputs per embeddings request: each concurrency is measured once with each of these.
pub const EMBEDDING_BATCHES: [u32; 3] = [1, 8, 32];

/// The most connections a level may hold: one file descriptor each, and the default soft limit of 1,024 is common.
const CONCURRENCY_MAX: u32 = 1000;
/// The most requests of one level: each keeps its arrivals until the level ends.
pub(crate) const REQUESTS_MAX: u32 = 1 << 20;
/// The longest prompt, in tokens. Its JSON then stays under the servers' usual body limit of 4 MiB.
const PROMPT_TOKENS_MAX: u32 = 1 << 19;

/// What is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoadKind {
    /// `POST /v1/completions`, streamed, with prompts of token ids.
    Completions,
    /// `POST /v1/embeddings`, with each of [`EMBEDDING_BATCHES`] inputs of token ids.
    Embeddings,
}

/// The settings of a run.
#[derive(Clone)]
pub struct LoadConfig {
    /// `http://host:port`, with a path if the API is not at the root. Plain HTTP only.
    pub url: String,
    /// The bearer key; empty sends no `Authorization`.
    pub key: String,
    /// The model's name, as the server lists it.
    pub model: String,
    /// What is asked.
    pub kind: LoadKind,
    /// The levels, in order: connections kept busy at once.
    pub concurrency: Vec<u32>,
    /// Token ids per prompt, or per embeddings input.
    pub prompt_tokens: u32,
    /// `max_tokens` of each completion, drawn in full (`ignore_eos`); unused for embeddings.
    pub output_tokens: u32,
    /// Measured requests per level; 0: as many as `seconds` allow.
    pub requests: u32,
    /// How long a level starts new requests; used when `requests` is 0.
    pub seconds: u32,
    /// Unmeasured requests before each level.
    pub warmup: u32,
    /// Where the prompts are drawn from. A server that has seen a seed may have its prompts cached.
    pub seed: u64,
    /// The model's vocabulary size: prompts use ids below it.
    pub vocab: u32,
    /// The server's process, then its executors; empty: found by the listening port, else by the name `weir`.
    pub server_pids: Vec<u32>,
    /// Where to write JSON, one line per level with the field names of vLLM's benchmark.
    pub json: Option<PathBuf>,
}

// By hand, so that the key never reaches a log.
impl fmt::Debug for LoadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadConfig")
            .field("url", &self.url)
            .field("key", &"***")
            .field("model", &self.model)
            .field("kind", &self.kind)
            .field("concurrency", &self.concurrency)
            .field("prompt_tokens", &self.prompt_tokens)
            .field("output_tokens", &self.output_tokens)
            .field("requests", &self.requests)
            .field("seconds", &self.seconds)
            .field("warmup", &self.warmup)
            .field("seed", &self.seed)
            .field("vocab", &self.vocab)
            .field("server_pids", &self.server_pids)
            .field("json", &self.json)
            .finish()
    }
}

impl LoadConfig {
    /// Refuses what no run can be made with, naming the field.
    pub(crate) fn check(&self) -> Result<Target, BenchError> {
        let refuse = |field, reason: &str| Err(BenchError::Config { field, reason: reason.to_string() });
        let target = Target::parse(&self.url)?;
        if self.key.chars().any(|c| !c.is_ascii_graphic()) {
            return refuse("key", "a bearer key is visible ASCII without spaces");
        }
        if self.model.is_empty() {
            return refuse("model", "a model's name is needed");
        }
        if self.concurrency.is_empty() {
            return refuse("concurrency", "at least one level is needed");
        }
        if self.concurrency.iter().any(|&n| n == 0 || n > CONCURRENCY_MAX) {
            return refuse("concurrency", &format!("each level must be 1 to {CONCURRENCY_MAX}"));
        }
        if self.prompt_tokens == 0 || self.prompt_tokens > PROMPT_TOKENS_MAX {
            return refuse("prompt_tokens", &format!("must be 1 to {PROMPT_TOKENS_MAX}"));
        }
        if self.kind == LoadKind::Completions && self.output_tokens == 0 {
            return refuse("output_tokens", "must be at least 1");
        }
        if self.requests == 0 && self.seconds == 0 {
            return refuse("requests", "give requests, or seconds, above 0");
        }
        if self.requests > REQUESTS_MAX {
            return refuse("requests", &format!("must be at most {REQUESTS_MAX}"));
        }
        if self.warmup > REQUESTS_MAX {
            return refuse("warmup", &format!("must be at most {REQUESTS_MAX}"));
        }
        if self.vocab < 2 {
            return refuse("vocab", "the model's vocabulary size is needed, at least 2");
        }
        Ok(target)
    }
}

/// Where the requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Host as dialled: a name, an IPv4 address, or an IPv6 address without its brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path before `/v1/...`, without a trailing slash.
    pub(crate) base: String,
}

impl Target {
    fn parse(url: &str) -> Result<Target, BenchError> {
        let refuse = |reason: &str| BenchError::Config { field: "url", reason: format!("`{url}` {reason}") };
        if url.starts_with("https://") {
            return Err(refuse("is https: the load generator speaks plain HTTP, to the server itself"));
        }
        let rest = url.strip_prefix("http://").ok_or_else(|| refuse("does not begin with http://"))?;
        if rest.bytes().any(|b| !b.is_ascii_graphic() || matches!(b, b'?' | b'#' | b'@')) {
            return Err(refuse("holds a character that has no place here"));
        }
        let (authority, base) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or_else(|| refuse("has a `[` without its `]`"))?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':').unwrap_or("")) })
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err(refuse("has no host"));
        }
        let port = match port {
            None => 80,
            Some(text) => match text.parse::<u16>() {
                Ok(port) if port > 0 => port,
                _ => return Err(refuse("has a port that is not 1 to 65535")),
            },
        };
        Ok(Target { host: host.to_string(), port, base: base.trim_end_matches('/').to_string() })
    }

    /// `host:port`, as the `Host` header and error texts show it.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether the server is on this machine, so that its processes can be looked at.
    pub(crate) fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample_config() -> LoadConfig {
        LoadConfig {
            url: "http://127.0.0.1:8000".into(),
            key: "weir-secret".into(),
            model: "m".into(),
            kind: LoadKind::Completions,
            concurrency: vec![1],
            prompt_tokens: 8,
            output_tokens: 4,
            requests: 3,
            seconds: 0,
            warmup: 0,
            seed: 1,
            vocab: 300,
            server_pids: Vec::new(),
            json: None,
        }
    }

    fn target(url: &str) -> Result<Target, String> {
        Target::parse(url).map_err(|e| e.to_string())
    }

    #[test]
    fn addresses_are_parsed() {
        let t = |host: &str, port, base: &str| Ok(Target { host: host.into(), port, base: base.into() });
        assert_eq!(target("http://127.0.0.1:8000"), t("127.0.0.1", 8000, ""));
        assert_eq!(target("http://127.0.0.1:8000/"), t("127.0.0.1", 8000, ""));
        assert_eq!(target("http://box/api/"), t("box", 80, "/api"));
        assert_eq!(target("http://[::1]:9000"), t("::1", 9000, ""));
        assert_eq!(target("http://[::1]"), t("::1", 80, ""));
        assert_eq!(Target::parse("http://[::1]:9000").unwrap().authority(), "[::1]:9000");
    }

    #[test]
    fn bad_addresses_are_refused() {
        for url in [
            "",
            "127.0.0.1:8000",
            "https://x",
            "http://",
            "http://:80",
            "http://x:0",
            "http://x:65536",
            "http://x:",
            "http://[::1",
            "http://[::1]80",
            "http://x y",
            "http://x\r\nEvil: 1",
            "http://user@x",
            "http://x/?q",
        ] {
            assert!(target(url).is_err(), "{url:?} was taken");
        }
    }

    #[test]
    fn loopback_is_local() {
        for (url, local) in [
            ("http://127.0.0.1", true),
            ("http://localhost:1", true),
            ("http://[::1]", true),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(Target::parse(url).unwrap().is_local(), local, "{url}");
        }
    }

    #[test]
    fn each_bad_setting_is_refused_by_name() {
        type Spoil = fn(&mut LoadConfig);
        let cases: [(&str, Spoil); 12] = [
            ("url", |c| c.url = "x".into()),
            ("key", |c| c.key = "a\r\nb".into()),
            ("model", |c| c.model.clear()),
            ("concurrency", |c| c.concurrency.clear()),
            ("concurrency", |c| c.concurrency = vec![1, 0]),
            ("concurrency", |c| c.concurrency = vec![CONCURRENCY_MAX + 1]),
            ("prompt_tokens", |c| c.prompt_tokens = 0),
            ("output_tokens", |c| c.output_tokens = 0),
            ("requests", |c| c.requests = 0),
            ("requests", |c| c.requests = u32::MAX),
            ("warmup", |c| c.warmup = u32::MAX),
            ("vocab", |c| c.vocab = 1),
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
