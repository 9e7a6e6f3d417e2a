//! What is in force: flags over environment over file over defaults, each value with where it came from.
//!
//! The same structs ([`ServerSettings`], [`EngineSettings`]) are read from the file by serde and from the command line
//! by clap; the environment goes through clap too, as if each `WEIR_NAME` were `--name`. So a key, a flag and a variable
//! cannot drift apart, and all three refuse the same values.

mod database;
mod env;
mod file;
mod print;
mod settings;
mod starter;
mod units;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use database::DatabaseUrl;
pub use env::read_env;
pub use file::{DeviceClasses, FileError, FileSettings, KeySource, KeyTable, PoolTable, TenantTable, read_file};
pub use print::print;
pub use settings::{
    EngineSettings, ExecutorPlace, GpuExecutor, MetricsAddress, OptionalFile, OptionalFolder, ServerSettings, Settings,
    TlsSettings,
};
pub use starter::{
    ADMIN_KEY_FILE, DEMO_KEY_FILE, DEMO_TENANT, LEDGER_KEY_FILE, PEPPER_FILE, STARTER_FILE, demo_tenant, starter_text,
};
pub use units::{ByteSize, Span};

use crate::{
    identity::{CidrList, jwt::JwtTable},
    webhooks::Reach,
};
use weir_runtime::{
    DeviceConfig, ExecutorMode, GpuProgram, LOCALITY_QUANTUM,
    devices::{DeviceList, GpuMissing},
};

/// Where a value came from, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// A `WEIR_*` variable, or `PORT`.
    Env,
    /// The file.
    File,
    /// Nobody said anything.
    Default,
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced<T> {
    /// What is in force.
    pub value: T,
    /// Who said so.
    pub origin: Origin,
}

impl<T> Sourced<T> {
    /// The value, if anybody said something.
    pub fn set(&self) -> Option<&T> {
        (self.origin != Origin::Default).then_some(&self.value)
    }
}

/// A model to serve, as written: the name may be left to the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// The served name.
    pub name: Option<String>,
    /// `MODEL` on the command line.
    pub source: String,
    /// Devices that load it; none means all.
    pub devices: Vec<String>,
}

/// Everything in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Address of the API.
    pub host: Sourced<String>,
    /// Port of the API.
    pub port: Sourced<u16>,
    /// Address of the metrics.
    pub metrics: Sourced<MetricsAddress>,
    /// Address of the operators' API.
    pub admin: Sourced<MetricsAddress>,
    /// Where the operators' key is.
    pub admin_key_file: Sourced<PathBuf>,
    /// Where the secret of key hashes is.
    pub pepper_file: Sourced<PathBuf>,
    /// Where the key is that months are signed with.
    pub ledger_key_file: Sourced<PathBuf>,
    /// Where the store is.
    pub database: Sourced<DatabaseUrl>,
    /// What this server is called there; empty is what the database and the port say.
    pub replica: Sourced<String>,
    /// How long what runs may go on once its key was revoked.
    pub revoked_time: Sourced<Span>,
    /// How far webhooks of tenants reach.
    pub tenant_webhooks: Sourced<Reach>,
    /// Whose word on the client counts.
    pub trusted_proxies: Sourced<CidrList>,
    /// Whether keys may cross a network in the clear.
    pub insecure_public: Sourced<bool>,
    /// The listeners' certificate.
    pub tls_certificate: Sourced<OptionalFile>,
    /// Its key.
    pub tls_key: Sourced<OptionalFile>,
    /// What operators may add models from.
    pub models_root: Sourced<OptionalFolder>,
    /// Largest request body.
    pub body_bytes_max: Sourced<ByteSize>,
    /// Connections open at once.
    pub connections_max: Sourced<u32>,
    /// Longest a request may take.
    pub request_timeout: Sourced<Span>,
    /// Time for running requests when the server is told to end.
    pub drain_time: Sourced<Span>,
    /// How much of it connections are still accepted.
    pub drain_accept_time: Sourced<Span>,
    /// Where a trace of the load is written.
    pub record: Sourced<OptionalFile>,
    /// Where it ends.
    pub record_bytes_max: Sourced<ByteSize>,
    /// The devices.
    pub devices: Sourced<DeviceList>,
    /// What to do when a GPU that is named cannot be used.
    pub gpu_missing: Sourced<GpuMissing>,
    /// Where `weir-gpu` is.
    pub gpu_executor: Sourced<GpuExecutor>,
    /// Compute threads; 0 is one per core.
    pub threads: Sourced<u32>,
    /// KV cache of each generation model.
    pub kv_memory: Sourced<ByteSize>,
    /// Tokens in one step.
    pub step_tokens_max: Sourced<u32>,
    /// Rows in one step.
    pub rows_max: Sourced<u32>,
    /// What a step should stay under.
    pub step_latency_max: Sourced<Span>,
    /// Device time for which what is cached goes first.
    pub locality_quantum: Sourced<Span>,
    /// Requests waiting on the node.
    pub queue_len_max: Sourced<u32>,
    /// Where the executor runs.
    pub executor: Sourced<ExecutorPlace>,
    /// Idle time before a canary.
    pub canary_interval: Sourced<Span>,
    /// Root of all seeds.
    pub seed: Sourced<u64>,
    /// The models, from one place: those of the strongest layer that names any.
    pub models: Sourced<Vec<ModelEntry>>,
    /// Reserved devices, from the file.
    pub pools: Vec<PoolTable>,
    /// What devices' time counts for, from the file.
    pub device_classes: DeviceClasses,
    /// The issuers of tokens, from the file.
    pub jwt: Vec<JwtTable>,
    /// The tenants, from the file.
    pub tenants: Vec<TenantTable>,
}

/// Values of one layer that are not settings of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layer {
    /// Settings of both tables.
    pub settings: Settings,
    /// `[NAME=]MODEL`s.
    pub models: Vec<String>,
}

impl Config {
    /// Puts the layers on top of each other.
    pub fn merge(flags: Layer, env: Layer, file: Option<(PathBuf, FileSettings)>) -> Self {
        let (path, file) = file.map_or((None, FileSettings::default()), |(path, file)| (Some(path), file));
        let models = match (flags.models.is_empty(), env.models.is_empty(), file.models.is_empty()) {
            (false, _, _) => Sourced { value: entries(flags.models), origin: Origin::Flag },
            (_, false, _) => Sourced { value: entries(env.models), origin: Origin::Env },
            (_, _, false) => Sourced { value: file.models, origin: Origin::File },
            _ => Sourced { value: Vec::new(), origin: Origin::Default },
        };
        let (f, e, t) = (flags.settings, env.settings, file.settings);
        let cpu = DeviceConfig::cpu(0, ExecutorMode::Thread);
        Config {
            file: path,
            host: pick(f.server.host, e.server.host, t.server.host, "127.0.0.1".to_owned()),
            port: pick(f.server.port, e.server.port, t.server.port, 8000),
            metrics: pick(f.server.metrics, e.server.metrics, t.server.metrics, MetricsAddress::loopback(8002)),
            admin: pick(f.server.admin, e.server.admin, t.server.admin, MetricsAddress::loopback(8001)),
            admin_key_file: pick(
                f.server.admin_key_file,
                e.server.admin_key_file,
                t.server.admin_key_file,
                PathBuf::from(ADMIN_KEY_FILE),
            ),
            pepper_file: pick(f.server.pepper_file, e.server.pepper_file, t.server.pepper_file, PEPPER_FILE.into()),
            ledger_key_file: pick(
                f.server.ledger_key_file,
                e.server.ledger_key_file,
                t.server.ledger_key_file,
                LEDGER_KEY_FILE.into(),
            ),
            database: pick(f.server.database, e.server.database, t.server.database, DatabaseUrl::default()),
            replica: pick(f.server.replica, e.server.replica, t.server.replica, String::new()),
            revoked_time: pick(
                f.server.revoked_time,
                e.server.revoked_time,
                t.server.revoked_time,
                Span(Duration::ZERO),
            ),
            tenant_webhooks: pick(
                f.server.tenant_webhooks,
                e.server.tenant_webhooks,
                t.server.tenant_webhooks,
                Reach::default(),
            ),
            trusted_proxies: pick(
                f.server.trusted_proxies,
                e.server.trusted_proxies,
                t.server.trusted_proxies,
                CidrList::default(),
            ),
            insecure_public: pick(f.server.insecure_public, e.server.insecure_public, t.server.insecure_public, false),
            tls_certificate: pick(
                f.server.tls.certificate,
                e.server.tls.certificate,
                t.server.tls.certificate,
                OptionalFile(None),
            ),
            tls_key: pick(f.server.tls.key, e.server.tls.key, t.server.tls.key, OptionalFile(None)),
            models_root: pick(f.server.models_root, e.server.models_root, t.server.models_root, OptionalFolder(None)),
            body_bytes_max: pick(
                f.server.body_bytes_max,
                e.server.body_bytes_max,
                t.server.body_bytes_max,
                ByteSize(4 << 20),
            ),
            connections_max: pick(f.server.connections_max, e.server.connections_max, t.server.connections_max, 1024),
            request_timeout: pick(
                f.server.request_timeout,
                e.server.request_timeout,
                t.server.request_timeout,
                Span::seconds(600),
            ),
            drain_time: pick(f.server.drain_time, e.server.drain_time, t.server.drain_time, Span::seconds(25)),
            drain_accept_time: pick(
                f.server.drain_accept_time,
                e.server.drain_accept_time,
                t.server.drain_accept_time,
                Span::seconds(5),
            ),
            record: pick(f.server.record, e.server.record, t.server.record, OptionalFile(None)),
            record_bytes_max: pick(
                f.server.record_bytes_max,
                e.server.record_bytes_max,
                t.server.record_bytes_max,
                ByteSize(1 << 30),
            ),
            devices: pick(f.engine.devices, e.engine.devices, t.engine.devices, DeviceList::default()),
            gpu_missing: pick(f.engine.gpu_missing, e.engine.gpu_missing, t.engine.gpu_missing, GpuMissing::default()),
            gpu_executor: pick(f.engine.gpu_executor, e.engine.gpu_executor, t.engine.gpu_executor, GpuExecutor(None)),
            threads: pick(f.engine.threads, e.engine.threads, t.engine.threads, 0),
            kv_memory: pick(f.engine.kv_memory, e.engine.kv_memory, t.engine.kv_memory, ByteSize(cpu.kv_bytes)),
            step_tokens_max: pick(
                f.engine.step_tokens_max,
                e.engine.step_tokens_max,
                t.engine.step_tokens_max,
                cpu.step_tokens_max,
            ),
            rows_max: pick(f.engine.rows_max, e.engine.rows_max, t.engine.rows_max, cpu.rows_max),
            step_latency_max: pick(
                f.engine.step_latency_max,
                e.engine.step_latency_max,
                t.engine.step_latency_max,
                Span(cpu.step_latency_max),
            ),
            locality_quantum: pick(
                f.engine.locality_quantum,
                e.engine.locality_quantum,
                t.engine.locality_quantum,
                Span(LOCALITY_QUANTUM),
            ),
            queue_len_max: pick(f.engine.queue_len_max, e.engine.queue_len_max, t.engine.queue_len_max, 1024),
            executor: pick(f.engine.executor, e.engine.executor, t.engine.executor, ExecutorPlace::Process),
            canary_interval: pick(
                f.engine.canary_interval,
                e.engine.canary_interval,
                t.engine.canary_interval,
                Span::seconds(5),
            ),
            seed: pick(f.engine.seed, e.engine.seed, t.engine.seed, 0),
            models,
            pools: file.pools,
            device_classes: file.device_classes,
            jwt: file.jwt,
            tenants: file.tenants,
        }
    }

    /// The program that runs GPUs, where `program` is this one.
    pub fn gpu_program(&self, program: &Path) -> GpuProgram {
        match &self.gpu_executor.value.0 {
            Some(file) => GpuProgram::at(file.clone()),
            None => GpuProgram::beside(program),
        }
    }

    /// Where the metrics listen; `None` when they are off.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.value.0
    }
}

fn pick<T>(flag: Option<T>, env: Option<T>, file: Option<T>, default: T) -> Sourced<T> {
    let layers = [(flag, Origin::Flag), (env, Origin::Env), (file, Origin::File)];
    let found = layers.into_iter().find_map(|(value, origin)| value.map(|value| Sourced { value, origin }));
    found.unwrap_or(Sourced { value: default, origin: Origin::Default })
}

fn entries(specs: Vec<String>) -> Vec<ModelEntry> {
    specs.into_iter().map(|source| ModelEntry { name: None, source, devices: Vec::new() }).collect()
}

#[cfg(test)]
mod tests;
