//! `weir serve`: from a configuration to a running server, and down again.

mod cover;
mod stored;

use std::{
    collections::BTreeSet,
    env, fs,
    io::ErrorKind,
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::Instant,
};
use weir_runtime::{
    Accounts, DeviceConfig, Engine, EngineConfig, ExecutorMode, ModelSpec, RecordConfig, devices, ledger::WriterOptions,
};

use self::{
    cover::{covered, keep_certificate_fresh, keep_tokens_fresh, tls},
    stored::{everybody, ledger_key, replica},
};
use super::{Start, put, quickstart};
#[cfg(feature = "nats")]
use crate::cloudevents;
use crate::{
    api::{App, Limits, ModelsRoot, admin_router, metrics_router, router},
    config::{
        ADMIN_KEY_FILE, Config, DEMO_KEY_FILE, DEMO_TENANT, ExecutorPlace, ModelEntry, PoolTable, STARTER_FILE,
        starter_text,
    },
    everybody::Everybody,
    http::{self, Connections, Phase},
    identity::{Peers, Tls},
    keys::{Key, write_key_file},
    webhooks::EnvelopeKey,
};

/// Time after the drain's deadline for the last events to leave. The process ends within two seconds of the deadline.
const CLOSE_TIME: Duration = Duration::from_millis(1500);
/// Time for a scrape, or an operator's request, that is under way.
const METRICS_CLOSE_TIME: Duration = Duration::from_millis(200);
/// Time for the store to write its last and to close.
const STORE_CLOSE_TIME: Duration = Duration::from_millis(200);
/// The key that seals webhooks' secrets lies beside the pepper.
const ENVELOPE_FILE: &str = "envelope.key";
/// Operators are few.
const ADMIN_CONNECTIONS_MAX: usize = 16;
/// The metrics are read by a scraper or two.
const METRICS_CONNECTIONS_MAX: usize = 16;
/// Descriptors that are not connections of the API: listeners, the metrics' connections, executors, files, the runtime's.
const DESCRIPTORS_APART: u64 = 64;

/// Serves until a signal says otherwise.
pub(super) fn run((config, start): (Config, Start)) -> anyhow::Result<()> {
    let (engine_config, without) = engine_config(&config)?;
    make_demo_key(&config)?;
    let admin = admin(&config)?;
    let tls = tls(&config)?;
    if start == Start::First {
        leave_starter(&config.models.value);
    }
    raise_descriptor_limit(config.connections_max.value);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("weir-http").build()?;
    if let Some(tls) = &tls {
        runtime.spawn(keep_certificate_fresh(tls.clone()));
    }
    let outcome = runtime.block_on(serve(&config, engine_config, &without, tls, admin));
    // What still runs has had its time.
    runtime.shutdown_background();
    outcome
}

/// What the operators' listener needs.
struct Admin {
    address: SocketAddr,
    root: Option<ModelsRoot>,
}

async fn serve(
    config: &Config,
    mut engine_config: EngineConfig,
    without: &[String],
    tls: Option<Arc<Tls>>,
    admin: Option<Admin>,
) -> anyhow::Result<()> {
    // Ports first: the answer to "is it running already?" should not take as long as loading a model.
    let listener = bind(&config.host.value, config.port.value, "--port").await?;
    let address = listener.local_addr()?;
    let peers = covered(config, "the API", address, tls.is_some())?;
    let metrics = match config.metrics_address() {
        Some(address) => Some(bind(&address.ip().to_string(), address.port(), "--metrics").await.context("metrics")?),
        None => None,
    };
    let admin = match admin {
        Some(admin) => {
            let (host, port) = (admin.address.ip().to_string(), admin.address.port());
            let peers = covered(config, "the operators' API", admin.address, tls.is_some())?;
            Some((bind(&host, port, "--admin").await.context("admin")?, admin, peers))
        }
        None => None,
    };
    let limits = Limits {
        body_bytes_max: usize::try_from(config.body_bytes_max.value.0)?,
        request_timeout: config.request_timeout.value.0,
        revoked_time: config.revoked_time.value.0,
        connections_max: config.connections_max.value as usize,
    };
    let ledger_key = ledger_key(config)?;
    let everybody = everybody(config).await?;
    engine_config.tenants = everybody.specs().await;
    engine_config.accounts = Some(Accounts {
        store: everybody.store().clone(),
        replica: replica(config),
        options: WriterOptions::default(),
    });
    tokio::spawn(everybody.clone().keep_fresh());
    tokio::spawn(keep_tokens_fresh(everybody.identity().clone()));
    let app = App::of(everybody.clone(), limits);
    let key = EnvelopeKey::open(&config.pepper_file.value.with_file_name(ENVELOPE_FILE));
    app.keep_books(key, config.tenant_webhooks.value, ledger_key);
    // Before the first connection is accepted: from then on a signal means an orderly end.
    let mut signals = Signals::new()?;
    let (phase, phases) = watch::channel(Phase::Serving);
    let shown = tls.clone();
    let api = tokio::spawn(http::serve(listener, router(app.clone()), shown, peers, app.connections().clone(), phases));
    // The metrics are there to the end: they show how the drain goes.
    let (metrics_phase, metrics_phases) = watch::channel(Phase::Serving);
    let metrics = metrics.map(|listener| {
        let connections = Connections::new(METRICS_CONNECTIONS_MAX);
        tokio::spawn(http::serve(
            listener,
            metrics_router(app.clone()),
            None,
            Peers::All,
            connections,
            metrics_phases.clone(),
        ))
    });
    // So is the operators' own.
    let admin = admin.map(|(listener, admin, peers)| {
        let router = admin_router(app.clone(), admin.root);
        // On this machine its key is nobody else's to read, and no certificate names it.
        let tls = tls.clone().filter(|_| !admin.address.ip().to_canonical().is_loopback());
        tokio::spawn(http::serve(listener, router, tls, peers, Connections::new(ADMIN_CONNECTIONS_MAX), metrics_phases))
    });
    tracing::info!(%address, models = engine_config.models.len(), "loading");
    let engine = tokio::select! {
        engine = Engine::start(engine_config) => engine?,
        // Nobody was promised anything yet.
        _ = signals.next() => return Ok(()),
    };
    everybody.set_engine(engine.clone()).await;
    app.set_engine(engine.clone());
    tell_nats(config, &everybody, &engine)?;
    put(&quickstart::text(&engine, address, tls.is_some(), &config.tenants));
    for line in without {
        put(&format!("{line}\n"));
    }
    let accept_time = match signals.next().await {
        Told::Terminate => config.drain_accept_time.value.0,
        // Someone at a terminal: nobody balances load over this server.
        Told::Interrupt => Duration::ZERO,
    };
    let drain = Drain { time: config.drain_time.value.0, accept_time };
    tracing::info!(seconds = drain.time.as_secs_f64(), "draining; send the signal again to end at once");
    tokio::select! {
        () = drain.run(&app, &engine, &phase, api) => tracing::info!("ended"),
        _ = signals.next() => bail!("ended at once, by a second signal"),
    }
    let _ = metrics_phase.send(Phase::Closing);
    for listener in [metrics, admin].into_iter().flatten() {
        let _ = tokio::time::timeout(METRICS_CLOSE_TIME, listener).await;
    }
    if let Ok(Err(error)) = tokio::time::timeout(STORE_CLOSE_TIME, everybody.note_uses()).await {
        tracing::warn!(%error, "when keys were last used is not written down");
    }
    let _ = tokio::time::timeout(STORE_CLOSE_TIME, everybody.store().clone().close()).await;
    Ok(())
}

/// Begins to send events to NATS, if the environment names a server.
#[cfg(feature = "nats")]
fn tell_nats(config: &Config, everybody: &Everybody, engine: &Engine) -> anyhow::Result<()> {
    if let (Some(address), Some(epoch)) = (cloudevents::address()?, engine.epoch()) {
        let (store, notices) = (everybody.store().clone(), engine.quota_notices());
        tokio::spawn(cloudevents::tell(address, store, replica(config), epoch, notices));
    }
    Ok(())
}

/// Nobody should believe that events are sent.
#[cfg(not(feature = "nats"))]
fn tell_nats(_: &Config, _: &Everybody, _: &Engine) -> anyhow::Result<()> {
    if env::var_os("NATS_URL").or(env::var_os("NATS_URL_FILE")).is_some() {
        tracing::warn!("NATS_URL is set, and this program was built without the feature `nats`: no events are sent");
    }
    Ok(())
}

/// How the server goes down.
struct Drain {
    /// For running requests.
    time: Duration,
    /// For clients that have not heard yet.
    accept_time: Duration,
}

impl Drain {
    /// From now on probes say that the server is going, new work is refused and connections are closed after their
    /// answer. After `accept_time` nothing is accepted any more. Running requests have until `time`; then each gets an
    /// error event.
    async fn run(&self, app: &App, engine: &Engine, phase: &watch::Sender<Phase>, mut api: JoinHandle<()>) {
        let deadline = Instant::now() + self.time;
        app.begin_drain();
        phase.send_replace(Phase::Draining);
        let accepting = async {
            tokio::time::sleep(self.accept_time.min(self.time)).await;
            phase.send_replace(Phase::Closing);
        };
        tokio::join!(engine.shutdown(self.time), accepting);
        // Answers that are made may still be on their way to slow readers.
        let _ = tokio::time::timeout_at(deadline + CLOSE_TIME, &mut api).await;
    }
}

/// Takes as many descriptors as the system allows: each connection is one, and a soft limit of 1024 is a common default.
fn raise_descriptor_limit(connections_max: u32) {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    if limits.current != limits.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "cannot raise the number of open files");
    }
    // Absent is no limit.
    let have = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let wanted = u64::from(connections_max) + DESCRIPTORS_APART;
    if have < wanted {
        tracing::warn!(
            open_files = have,
            connections_max,
            "fewer open files are allowed than connections_max needs: connections beyond them will wait"
        );
    }
}

/// Who wants the server to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// SIGINT: a person.
    Interrupt,
    /// SIGTERM: whatever runs servers.
    Terminate,
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Interrupt,
            _ = self.terminate.recv() => Told::Terminate,
        }
    }
}

/// Listens; `flag` is what to choose another port with.
async fn bind(host: &str, port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    let addresses: Vec<SocketAddr> =
        (host, port).to_socket_addrs().with_context(|| format!("cannot resolve the address `{host}`"))?.collect();
    match TcpListener::bind(addresses.as_slice()).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("port {port} on {host} is in use: is Weir running already? Choose another one with {flag}")
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {host}:{port}")),
    }
}

/// What the engine is started with, and a line for each GPU that it is started without.
fn engine_config(config: &Config) -> anyhow::Result<(EngineConfig, Vec<String>)> {
    if config.models.value.is_empty() {
        bail!("no model to serve: name one (`weir serve MODEL`) or put [[models]] into {STARTER_FILE}");
    }
    let models: Vec<ModelSpec> = config.models.value.iter().map(model_spec).collect::<anyhow::Result<_>>()?;
    let names: BTreeSet<&str> = models.iter().map(|m| m.name.as_str()).collect();
    for tenant in &config.tenants {
        let unknown = tenant.models.iter().flatten().find(|name| !names.contains(name.as_str()));
        if let Some(name) = unknown {
            tracing::warn!(tenant = tenant.name, model = name, "a tenant is allowed a model that is not served");
        }
    }
    let program = env::current_exe().context("cannot find this program's own file")?;
    let gpu = config.gpu_program(&program);
    let executor = match config.executor.value {
        ExecutorPlace::Thread => ExecutorMode::Thread,
        ExecutorPlace::Process => ExecutorMode::Process { program, args: vec!["executor".into()] },
    };
    let cpu = DeviceConfig {
        threads: config.threads.value as usize,
        kv_bytes: config.kv_memory.value.0,
        step_tokens_max: config.step_tokens_max.value,
        rows_max: config.rows_max.value,
        step_latency_max: config.step_latency_max.value.0,
        ..DeviceConfig::cpu(0, executor.clone())
    };
    // What nobody set is a GPU's own default there.
    let on_gpu = DeviceConfig::cuda(0, executor.clone());
    let on_gpu = DeviceConfig {
        threads: cpu.threads,
        kv_bytes: config.kv_memory.set().map_or(on_gpu.kv_bytes, |memory| memory.0),
        step_tokens_max: config.step_tokens_max.set().copied().unwrap_or(on_gpu.step_tokens_max),
        rows_max: config.rows_max.set().copied().unwrap_or(on_gpu.rows_max),
        step_latency_max: config.step_latency_max.set().map_or(on_gpu.step_latency_max, |span| span.0),
        ..on_gpu
    };
    let resolved = devices::resolve(&config.devices.value, &cpu, &on_gpu, &gpu, config.gpu_missing.value)?;
    for line in &resolved.without {
        tracing::warn!("{line}");
    }
    let mut devices = resolved.devices;
    reserve(&config.pools, &mut devices)?;
    for device in &mut devices {
        device.rate_ppm = config.device_classes.rate_ppm(&device.class);
        let (name, class, rate) = (&device.name, &device.class, f64::from(device.rate_ppm) / 1e6);
        tracing::info!(device = name, class, rate, "a device's class, and what its time counts against quotas");
    }
    let engine = EngineConfig {
        models,
        // The store's, once it is open.
        tenants: Vec::new(),
        devices,
        inspector: executor,
        queue_len_max: config.queue_len_max.value,
        locality_quantum: config.locality_quantum.value.0,
        canary_interval: config.canary_interval.value.0,
        seed: config.seed.value,
        record: config
            .record
            .value
            .0
            .clone()
            .map(|path| RecordConfig { path, bytes_max: config.record_bytes_max.value.0 }),
        accounts: None,
    };
    Ok((engine, resolved.without))
}

fn model_spec(entry: &ModelEntry) -> anyhow::Result<ModelSpec> {
    let spec = match &entry.name {
        Some(name) => format!("{name}={}", entry.source),
        None => entry.source.clone(),
    };
    Ok(ModelSpec { devices: entry.devices.clone(), ..spec.parse()? })
}

/// Puts devices into the pools that name them.
fn reserve(pools: &[PoolTable], devices: &mut [DeviceConfig]) -> anyhow::Result<()> {
    for pool in pools {
        for name in &pool.devices {
            let Some(device) = devices.iter_mut().find(|device| device.name == *name) else {
                bail!("pool `{}` names device `{name}`, which is not served", pool.name);
            };
            device.pool = Some(pool.name.clone());
        }
    }
    Ok(())
}

/// The first start of a server that nobody configured makes the key of its tenant `demo`. Any other key file that is
/// missing is an error: a typing mistake must not lock out the key's owner.
fn make_demo_key(config: &Config) -> anyhow::Result<()> {
    for tenant in config.tenants.iter().filter(|tenant| tenant.name == DEMO_TENANT) {
        for path in tenant.keys.iter().filter_map(|key| key.key_file.as_deref()) {
            if path.ends_with(DEMO_KEY_FILE) && !path.exists() {
                write_key_file(path, &Key::random()?)?;
                tracing::info!(path = %path.display(), "wrote a new key for tenant demo");
            }
        }
    }
    Ok(())
}

/// The operators' listener, unless it is off. Its key is made at the first start, as the demo tenant's is.
fn admin(config: &Config) -> anyhow::Result<Option<Admin>> {
    let Some(address) = config.admin.value.0 else { return Ok(None) };
    let path = config.admin_key_file.value.as_path();
    if path.ends_with(ADMIN_KEY_FILE) && !path.exists() {
        write_key_file(path, &Key::random()?)?;
        tracing::info!(path = %path.display(), "wrote a new key for operators");
    }
    let root = config.models_root.value.0.as_deref();
    let open = |root: &Path| ModelsRoot::open(root).with_context(|| format!("models_root {}", root.display()));
    Ok(Some(Admin { address, root: root.map(open).transpose()? }))
}

/// Leaves a file to start from. Not being able to is no reason not to serve.
fn leave_starter(models: &[ModelEntry]) {
    let path = Path::new(STARTER_FILE);
    let written = fs::OpenOptions::new().write(true).create_new(true).open(path).and_then(|mut file| {
        use std::io::Write;
        file.write_all(starter_text(models).as_bytes())
    });
    match written {
        Ok(()) => tracing::info!(path = STARTER_FILE, "left a configuration to start from"),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => tracing::warn!(path = STARTER_FILE, %error, "could not leave a configuration"),
    }
}
