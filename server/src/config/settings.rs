//! The settings themselves, once: keys of the file, flags, and (through the flags) environment variables.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer, de::Error};
use weir_runtime::devices::{DeviceList, GpuMissing};

use super::{ByteSize, DatabaseUrl, Span};
use crate::{identity::CidrList, webhooks::Reach};

/// Both tables.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct Settings {
    /// `[server]`.
    #[command(flatten)]
    pub server: ServerSettings,
    /// `[engine]`.
    #[command(flatten)]
    pub engine: EngineSettings,
}

/// `[server]`: who may connect, and how.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Server")]
pub struct ServerSettings {
    /// Address the API listens on [default: 127.0.0.1]
    #[arg(long)]
    pub host: Option<String>,
    /// Port of the API; 0 takes a free one [default: 8000, or PORT]
    #[arg(long)]
    pub port: Option<u16>,
    /// Address of the Prometheus metrics, or `off` [default: 127.0.0.1:8002]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<MetricsAddress>,
    /// Address of the operators' API, or `off` [default: 127.0.0.1:8001]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<MetricsAddress>,
    /// File with the operators' key; made at the first start where it has its default place [default: .weir/admin.key]
    #[arg(long, value_name = "FILE")]
    pub admin_key_file: Option<PathBuf>,
    /// File with the secret that key hashes are made with; made at the first start where it has its default place
    /// [default: .weir/pepper]
    #[arg(long, value_name = "FILE")]
    pub pepper_file: Option<PathBuf>,
    /// File with the key that closed months of the ledger are signed with; made at the first start where it has its default place.
    /// Without it months stay open [default: .weir/ledger.key]
    #[arg(long, value_name = "FILE")]
    pub ledger_key_file: Option<PathBuf>,
    /// The store of tenants, keys and the ledger: sqlite:FILE, or postgres://... where several servers share it, also in DATABASE_URL
    /// [default: sqlite:.weir/weir.db]
    #[arg(long, value_name = "URL")]
    pub database: Option<DatabaseUrl>,
    /// What this server is called in the store; of its own, and the same after a restart [default: local in a file, in PostgreSQL
    /// the machine's name and the API's port]
    #[arg(long, value_name = "NAME", value_parser = replica)]
    pub replica: Option<String>,
    /// How long what runs may go on once its key was revoked or its tenant suspended; 0s cuts it at once [default: 0s]
    #[arg(long, value_name = "TIME")]
    pub revoked_time: Option<Span>,
    /// Whether tenants make webhooks of their own: `public` (by https, to public addresses), `any` (to private networks, too), or `off`
    /// [default: public]
    #[arg(long, value_name = "WHERE")]
    pub tenant_webhooks: Option<Reach>,
    /// Addresses of proxies whose word on the client counts (X-Forwarded-For, Forwarded, X-Forwarded-Host, x-weir-tenant), as
    /// 10.0.0.0/8,2001:db8::/32; or `none` [default: none]
    #[arg(long, value_name = "RANGES")]
    pub trusted_proxies: Option<CidrList>,
    /// Listen where others can reach it without TLS or a trusted proxy: keys cross the network in the clear [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure_public: Option<bool>,
    /// `[server.tls]`.
    #[command(flatten)]
    #[serde(default)]
    pub tls: TlsSettings,
    /// Folder that operators may add models from, or `off` [default: off]
    #[arg(long, value_name = "FOLDER")]
    pub models_root: Option<OptionalFolder>,
    /// Largest request body [default: 4MiB]
    #[arg(long, value_name = "SIZE")]
    pub body_bytes_max: Option<ByteSize>,
    /// Connections open at once [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections_max: Option<u32>,
    /// Longest a request may take, streaming included [default: 600s]
    #[arg(long, value_name = "TIME", value_parser = more_than_none)]
    pub request_timeout: Option<Span>,
    /// Time for running requests when the server is told to end [default: 25s]
    #[arg(long, value_name = "TIME")]
    pub drain_time: Option<Span>,
    /// How much of it, after SIGTERM, connections are still accepted and told to go elsewhere [default: 5s]
    #[arg(long, value_name = "TIME")]
    pub drain_accept_time: Option<Span>,
    /// Write a trace of the load to this new file, for `weir simulate`: lengths, times and tenants, never text; or `off`
    /// [default: off]
    #[arg(long, value_name = "FILE")]
    pub record: Option<OptionalFile>,
    /// Where the trace ends [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub record_bytes_max: Option<ByteSize>,
}

/// `[server.tls]`: what the listeners show of themselves.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// File with the certificate and those it is signed with, in PEM; read again when it changes; or `off` [default: off]
    #[arg(long = "tls-certificate", value_name = "FILE")]
    pub certificate: Option<OptionalFile>,
    /// File with its key, in PEM; or `off` [default: off]
    #[arg(long = "tls-key", value_name = "FILE")]
    pub key: Option<OptionalFile>,
}

/// `[engine]`: what runs, and how much of it at once.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Engine")]
pub struct EngineSettings {
    /// Devices, each with an executor and a copy of every model: `cpu`, `cuda` (every GPU), `cuda:N`, or `auto` by itself
    /// (every GPU, else the CPU); at most 16, separated by commas [default: cpu]
    #[arg(long, value_name = "LIST")]
    pub devices: Option<DeviceList>,
    /// When a GPU that is named cannot be used: `exit`, with code 1, or serve without it, on the `cpu` if nothing else is left
    /// [default: exit]
    #[arg(long, value_name = "WHAT")]
    pub gpu_missing: Option<GpuMissing>,
    /// The program that runs GPUs: a file, or `beside` for weir-gpu beside this one [default: beside]
    #[arg(long, value_name = "FILE")]
    pub gpu_executor: Option<GpuExecutor>,
    /// Compute threads, divided among the CPU devices; 0 is one per core [default: 0]
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
    /// KV cache of each generation model, on each device [default: 1GiB; on a GPU, what weights leave]
    #[arg(long, value_name = "SIZE")]
    pub kv_memory: Option<ByteSize>,
    /// Tokens in one step, all requests together [default: 512; on a GPU, 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub step_tokens_max: Option<u32>,
    /// Sequences in one step [default: 64; on a GPU, 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rows_max: Option<u32>,
    /// What a step should stay under, 1ms to 60s; prompts and inputs to embed are cut to it, texts being drawn are not
    /// [default: 200ms; on a GPU, 100ms]
    #[arg(long, value_name = "TIME", value_parser = step_latency)]
    pub step_latency_max: Option<Span>,
    /// Device time for which requests whose beginning is cached go before others, up to 10s; more finds more in the cache and lets
    /// tenants be further apart, and with 0s the cache decides nothing [default: 250ms]
    #[arg(long, value_name = "TIME", value_parser = locality)]
    pub locality_quantum: Option<Span>,
    /// Requests waiting on the whole node [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub queue_len_max: Option<u32>,
    /// Where models run: a process of their own, or a thread of this one [default: process]
    #[arg(long)]
    pub executor: Option<ExecutorPlace>,
    /// Idle time before a canary request proves that steps still complete [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = more_than_none)]
    pub canary_interval: Option<Span>,
    /// Root of the seeds of requests that bring none [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Where the executor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutorPlace {
    /// A crash of a model ends only that process.
    Process,
    /// For tests and debuggers.
    Thread,
}

/// Where `weir-gpu` is; `None` is `beside`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuExecutor(pub Option<PathBuf>);

impl FromStr for GpuExecutor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a file's name, or `beside`".into()),
            "beside" => Ok(GpuExecutor(None)),
            file => Ok(GpuExecutor(Some(file.into()))),
        }
    }
}

impl fmt::Display for GpuExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(file) => file.display().fmt(f),
            None => f.write_str("beside"),
        }
    }
}

impl<'de> Deserialize<'de> for GpuExecutor {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?.parse().map_err(D::Error::custom)
    }
}

/// A folder; `None` is `off`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionalFolder(pub Option<PathBuf>);

impl FromStr for OptionalFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a folder's name, or `off`".into()),
            "off" => Ok(OptionalFolder(None)),
            folder => Ok(OptionalFolder(Some(folder.into()))),
        }
    }
}

impl fmt::Display for OptionalFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(folder) => folder.display().fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl<'de> Deserialize<'de> for OptionalFolder {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?.parse().map_err(D::Error::custom)
    }
}

/// A file; `None` is `off`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionalFile(pub Option<PathBuf>);

impl FromStr for OptionalFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a file's name, or `off`".into()),
            "off" => Ok(OptionalFile(None)),
            file => Ok(OptionalFile(Some(file.into()))),
        }
    }
}

impl fmt::Display for OptionalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(file) => file.display().fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl<'de> Deserialize<'de> for OptionalFile {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?.parse().map_err(D::Error::custom)
    }
}

/// Where the metrics or the operators' API listen; `None` is `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsAddress(pub Option<SocketAddr>);

impl MetricsAddress {
    /// A port of this machine only.
    pub fn loopback(port: u16) -> Self {
        MetricsAddress(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
    }
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(MetricsAddress(None));
        }
        let address = text.parse().map_err(|_| format!("`{text}` is neither ADDRESS:PORT nor `off`"))?;
        Ok(MetricsAddress(Some(address)))
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl<'de> Deserialize<'de> for MetricsAddress {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for ExecutorPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ExecutorPlace::Process => "process",
            ExecutorPlace::Thread => "thread",
        })
    }
}

impl ServerSettings {
    /// What flags refuse by their ranges, for values that came from a file.
    pub(super) fn check(&self) -> Result<(), String> {
        nonzero("server.connections_max", self.connections_max)?;
        if let Some(name) = &self.replica {
            replica(name).map_err(|error| format!("server.replica {error}"))?;
        }
        within("server.request_timeout", self.request_timeout, LEAST_TIME)
    }
}

impl EngineSettings {
    /// What flags refuse by their ranges, for values that came from a file.
    pub(super) fn check(&self) -> Result<(), String> {
        nonzero("engine.step_tokens_max", self.step_tokens_max)?;
        nonzero("engine.rows_max", self.rows_max)?;
        nonzero("engine.queue_len_max", self.queue_len_max)?;
        within("engine.step_latency_max", self.step_latency_max, STEP_LATENCY)?;
        within("engine.locality_quantum", self.locality_quantum, LOCALITY)?;
        within("engine.canary_interval", self.canary_interval, LEAST_TIME)
    }
}

/// Least and most.
type TimeRange = (Span, Span);
/// Anything but nothing, up to the longest time that can be written.
const LEAST_TIME: TimeRange = (Span(Duration::from_nanos(1)), Span::seconds(86_400));
/// Less than a step of one row of a small model leaves nothing to fit prompts into; more lets one step keep everybody waiting for
/// longer than clients do.
const STEP_LATENCY: TimeRange = (Span(Duration::from_millis(1)), Span::seconds(60));
/// It is a term of the bound on the service gap, whose other terms are some seconds.
const LOCALITY: TimeRange = (Span(Duration::ZERO), Span::seconds(10));

/// A name that fits a log, a metric and a row.
fn replica(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    match text.len() <= 64 && text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("must be at most 64 letters, digits and -_.:".into()),
    }
}

fn step_latency(text: &str) -> Result<Span, String> {
    text.parse().and_then(|time| ranged(time, STEP_LATENCY))
}

fn locality(text: &str) -> Result<Span, String> {
    text.parse().and_then(|time| ranged(time, LOCALITY))
}

fn more_than_none(text: &str) -> Result<Span, String> {
    text.parse().and_then(|time| ranged(time, LEAST_TIME))
}

fn ranged(time: Span, (least, most): TimeRange) -> Result<Span, String> {
    if (least..=most).contains(&time) { Ok(time) } else { Err(format!("must be {least} to {most}")) }
}

fn within(key: &str, value: Option<Span>, range: TimeRange) -> Result<(), String> {
    value.map_or(Ok(()), |time| ranged(time, range).map(|_| ()).map_err(|error| format!("{key} {error}")))
}

fn nonzero(key: &str, value: Option<u32>) -> Result<(), String> {
    if value == Some(0) { Err(format!("{key} must be at least 1")) } else { Ok(()) }
}
