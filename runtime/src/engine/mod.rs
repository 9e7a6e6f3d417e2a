//! The handle that the server holds: submit, watch, drain. Everything that takes time but not the device (templates,
//! tokenising, hashing) happens here, on the callers' side of the inbox.

mod devices;
mod encode;
mod models;
mod open;
mod why;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::{Mutex, Semaphore, oneshot};
use weir_scheduler::{Config, ModelId, Nanos, PoolId, Scheduler, Tenant, TenantId};

use self::{
    encode::{check_sampling, echo_text, invalid, new_tokens_max},
    models::{Served, ServedModels},
    open::{OpenedModel, Opener},
};
use crate::{
    card::ModelCard,
    codec::hash::{BlockChain, ChainSalt},
    config::{DeviceConfig, DeviceKind, DeviceQuota, EngineConfig, TenantSpec},
    devices::DEVICES_LEN_MAX,
    error::{EngineError, FailureKind, NotReady, RequestFailure, SubmitError},
    metrics::{Metrics, Outcome},
    node::{
        Node, NodeParts,
        message::{GroupId, NodeMessage, Submit, SubmitWork},
        sequence::SequenceSpec,
    },
    recorder::{DeviceLine, Draft, Header, Recorder, TenantLine},
    sampler::mix,
    status::Status,
    stream::{CancelOnDrop, TokenStream},
    submission::{EmbedSubmission, Embeddings, Prompt, Submission},
    telemetry::{SAMPLE_INTERVAL, Sampler, nvml::NvmlTelemetry},
    why::Names,
};

pub use models::MODELS_LEN_MAX;

/// Inputs of one embedding request.
pub const EMBED_INPUTS_MAX: usize = 2048;
/// How long a scrape waits for fresh gauges.
const METRICS_WAIT_MAX: Duration = Duration::from_millis(500);
/// How long the end waits for the engine thread once nothing runs. Only the trace's disk can hold it up.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);
/// Tokens of one embedding request, all inputs together.
pub const EMBED_TOKENS_MAX: usize = 300_000;

/// A running node. Cloning shares it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    models: ServedModels,
    /// Held while a model is added.
    adding: Mutex<()>,
    opener: Opener,
    tenants: Vec<TenantSpec>,
    inbox: flume::Sender<NodeMessage>,
    inbox_len_max: u32,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    secret: [u8; 32],
    seed: u64,
    groups: AtomicU64,
    /// Conversations and texts being encoded; more wait, so that a burst of long prompts cannot take every core.
    encoders: Arc<Semaphore>,
    encoders_max: usize,
    /// Questions about requests that the engine thread has at once: one.
    questions: Semaphore,
    /// Reads the GPUs for the metrics.
    _telemetry: Sampler,
    cpu_devices: u64,
}

impl Engine {
    /// Loads the models, starts the executors and runs a first step.
    ///
    /// # Errors
    /// When a model cannot be read, downloaded or loaded, or an executor does not start.
    pub async fn start(config: EngineConfig) -> Result<Engine, EngineError> {
        let mut names: Vec<&str> = config.models.iter().map(|m| m.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(EngineError::DuplicateModel(pair[0].to_owned()));
        }
        if names.is_empty() {
            return Err(EngineError::Config("no model to serve".into()));
        }
        if names.len() > MODELS_LEN_MAX {
            return Err(EngineError::Config(format!("{} models; at most {MODELS_LEN_MAX} are served", names.len())));
        }
        check_devices(&config.devices)?;
        check_places(&config)?;
        let opener = Opener {
            mode: config.inspector.clone(),
            step_tokens_max: config.devices.iter().map(|device| device.step_tokens_max).max().unwrap_or(0),
        };
        let (first, specs) = (opener.clone(), config.models.clone());
        let open = move || specs.iter().map(|spec| first.model(spec)).collect::<Result<Vec<_>, _>>();
        let opened = tokio::task::spawn_blocking(open)
            .await
            .map_err(|e| EngineError::Config(format!("opening the models failed: {e}")))??;
        let (inbox, messages) = flume::unbounded();
        let model_names: Vec<String> = config.models.iter().map(|m| m.name.clone()).collect();
        let metrics = Arc::new(Metrics::new(&model_names));
        metrics.name_tenants(config.tenants.iter().map(|tenant| tenant.name.clone()).collect());
        let status = Arc::new(Status::new());
        let (started, starting) = oneshot::channel();
        let secret = secret()?;
        let (recorder, draft) = recorder(&config, &metrics)?;
        let parts = NodeParts {
            scheduler: scheduler(&config),
            models: opened.iter().map(|m| m.node_model()).collect(),
            loads: opened.iter().map(|m| m.load.clone()).zip(config.models.iter().map(|m| m.devices.clone())).collect(),
            pools: config.devices.iter().map(|device| pool_id(&config, device.pool.as_deref())).collect(),
            devices: config.devices.clone(),
            tenants: config.tenants.clone(),
            secret,
            canary_interval: config.canary_interval,
            inbox: messages,
            outlet: inbox.clone(),
            metrics: metrics.clone(),
            recorder,
            status: status.clone(),
            started,
        };
        thread::Builder::new()
            .name("weir-node".into())
            .spawn(move || Node::new(parts).run())
            .map_err(|e| EngineError::Config(format!("the engine thread did not start: {e}")))?;
        starting.await.map_err(|_| EngineError::Executor("the engine thread ended".into()))??;
        let telemetry = Sampler::start(metrics.gpus().clone(), NvmlTelemetry::default(), SAMPLE_INTERVAL)
            .map_err(|e| EngineError::Config(format!("the telemetry thread did not start: {e}")))?;
        let encoders = thread::available_parallelism().map_or(1, usize::from);
        let shared = Shared {
            models: ServedModels::new(opened.into_iter().map(OpenedModel::served)),
            adding: Mutex::new(()),
            opener,
            tenants: config.tenants,
            inbox,
            inbox_len_max: config.queue_len_max,
            metrics,
            status,
            secret,
            seed: config.seed,
            groups: AtomicU64::new(1),
            encoders: Arc::new(Semaphore::new(encoders)),
            encoders_max: encoders,
            questions: Semaphore::new(1),
            _telemetry: telemetry,
            cpu_devices: config.devices.iter().filter(|device| device.kind == DeviceKind::Cpu).count() as u64,
        };
        if let Some(draft) = draft {
            draft.keep();
        }
        Ok(Engine { shared: Arc::new(shared) })
    }

    /// The served models.
    pub fn models(&self) -> Vec<Arc<ModelCard>> {
        self.shared.models.all().iter().map(|model| model.card.clone()).collect()
    }

    /// One of them.
    pub fn model(&self, name: &str) -> Option<Arc<ModelCard>> {
        self.shared.models.find(name).map(|(_, model)| model.card.clone())
    }

    /// A tenant's id, by the name it was configured with.
    pub fn tenant(&self, name: &str) -> Option<TenantId> {
        let index = self.shared.tenants.iter().position(|t| t.name == name)?;
        Some(TenantId(index as u32 + 1))
    }

    /// Time since a step completed; `None` before the first.
    pub fn last_step_age(&self) -> Option<Duration> {
        self.shared.status.last_step_age()
    }

    /// Whether requests can be expected to be answered.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<(), NotReady> {
        self.shared.status.ready()
    }

    /// All metrics, as Prometheus text. Gauges are brought up to date by the engine thread, which never waits for a
    /// device; should it be gone, they are as it left them.
    pub async fn metrics_text(&self) -> String {
        let (observed, fresh) = oneshot::channel();
        if self.shared.inbox.send(NodeMessage::Observe(observed)).is_ok() {
            let _ = tokio::time::timeout(METRICS_WAIT_MAX, fresh).await;
        }
        let encoding = self.shared.encoders_max - self.shared.encoders.available_permits();
        self.shared.metrics.observe_callers(self.shared.status.inbox_len(), encoding);
        self.shared.metrics.text()
    }

    /// Accepts a generation request: template, ids, checks, admission.
    ///
    /// # Errors
    /// Why it was not accepted; nothing was charged.
    pub async fn submit(&self, submission: Submission) -> Result<TokenStream, SubmitError> {
        let (index, model) = self.served(&submission.model)?;
        let card = &model.card;
        if !card.generates {
            let message = "is an embedding model: use /v1/embeddings";
            return Err(SubmitError::WrongKind { model: submission.model, message });
        }
        check_sampling(&submission, card)?;
        let echoed = if submission.echo { echo_text(&model, &submission.prompt) } else { None };
        let prompt_param = match submission.prompt {
            Prompt::Chat(_) => "messages",
            _ => "prompt",
        };
        let prompt: Arc<[u32]> = self.encode_prompt(&model, submission.prompt).await?.into();
        let asked = (submission.min_tokens, submission.max_tokens);
        let new_tokens_max = new_tokens_max(prompt.len(), asked, card, prompt_param)?;
        let salt = ChainSalt::new(&self.shared.secret, submission.tenant.0, &card.name);
        let mut chain = BlockChain::new(salt);
        let mut hashes = Vec::new();
        chain.extend(&prompt, |hash| hashes.push(hash));
        let group = GroupId(self.shared.groups.fetch_add(1, Ordering::Relaxed));
        let seed = submission.sampling.seed.unwrap_or_else(|| mix(self.shared.seed ^ mix(group.0)));
        let choices = (0..submission.n)
            .map(|choice| {
                let mut sampling = submission.sampling.clone();
                sampling.seed = Some(if choice == 0 { seed } else { mix(seed.wrapping_add(u64::from(choice))) });
                SequenceSpec {
                    sampling,
                    new_tokens_max,
                    min_tokens: submission.min_tokens.min(new_tokens_max),
                    stop: submission.stop.clone(),
                    ignore_eos: submission.ignore_eos,
                    eos: model.eos.clone(),
                    logprobs: submission.logprobs,
                }
            })
            .collect();
        let outbox = Arc::new(self.shared.metrics.outbox());
        let prompt_tokens = prompt.len() as u32;
        let work = SubmitWork::Generate { choices, prompt, hashes, chain, outbox: outbox.clone() };
        let names = Names { request: submission.request_id, answer: submission.answer_id };
        let cancel = self.admit(group, submission.tenant, index, work, submission.priority, names).await?;
        let mut stream = TokenStream::new(outbox, prompt_tokens, cancel);
        if let Some(text) = echoed {
            stream.echo(text, submission.n);
        }
        Ok(stream)
    }

    /// Embeds a list of inputs.
    ///
    /// # Errors
    /// Why not; what was computed before a failure is charged.
    pub async fn embed(&self, submission: EmbedSubmission) -> Result<Embeddings, SubmitError> {
        let (index, model) = self.served(&submission.model)?;
        if !model.card.embeds {
            let message = "does not make embeddings: use /v1/chat/completions or /v1/completions";
            return Err(SubmitError::WrongKind { model: submission.model, message });
        }
        if submission.inputs.is_empty() || submission.inputs.len() > EMBED_INPUTS_MAX {
            return Err(invalid(format!("input must hold 1 to {EMBED_INPUTS_MAX} items"), "input"));
        }
        let inputs = self.encode_inputs(&model, submission.inputs, submission.truncate).await?;
        let group = GroupId(self.shared.groups.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        let names = Names { request: submission.request_id, answer: None };
        let work = SubmitWork::Embed { inputs, reply };
        let cancel = self.admit(group, submission.tenant, index, work, submission.priority, names).await?;
        let answer = answer.await;
        cancel.disarm();
        let lost = || SubmitError::Internal { message: "The server is shutting down".into() };
        let failed = |failure: RequestFailure| match failure.kind {
            FailureKind::Draining => SubmitError::Draining,
            FailureKind::Quarantined => {
                SubmitError::Invalid { message: failure.message, param: None, code: Some("request_quarantined") }
            }
            FailureKind::QuotaSpent { retry_after } => {
                SubmitError::QuotaSpent { message: failure.message, retry_after }
            }
            _ => SubmitError::Internal { message: failure.message },
        };
        let (vectors, usage) = answer.map_err(|_| lost())?.map_err(failed)?;
        Ok(Embeddings { vectors, usage })
    }

    /// Admits nothing more, waits until what runs has ended or the deadline passes, then ends everything, and returns when that is
    /// done: every reader has its ending, and the trace is written.
    pub async fn shutdown(&self, deadline: Duration) {
        self.shared.status.begin_drain();
        let (drained, drain) = oneshot::channel();
        if self.shared.inbox.send(NodeMessage::Drain(drained)).is_ok() {
            let _ = tokio::time::timeout(deadline, drain).await;
        }
        let (ended, end) = oneshot::channel();
        if self.shared.inbox.send(NodeMessage::Stop(ended)).is_ok()
            && tokio::time::timeout(STOP_WAIT_MAX, end).await.is_err()
        {
            tracing::error!("the engine thread did not end in time: the last lines of the trace may be missing");
        }
    }

    fn served(&self, name: &str) -> Result<(usize, Arc<Served>), SubmitError> {
        let unknown = || SubmitError::UnknownModel { model: name.to_owned() };
        self.shared.models.find(name).ok_or_else(unknown)
    }

    /// Sends a request to the engine thread and waits for its word. What is returned cancels the request when dropped,
    /// as does dropping this future: the inbox keeps their order, and nothing is awaited between the two.
    async fn admit(
        &self,
        group: GroupId,
        tenant: TenantId,
        model: usize,
        work: SubmitWork,
        priority: u8,
        names: Names,
    ) -> Result<CancelOnDrop, SubmitError> {
        if self.shared.status.is_draining() {
            return Err(SubmitError::Draining);
        }
        if !self.shared.status.enter_inbox(self.shared.inbox_len_max) {
            self.shared.metrics.ended(Outcome::Rejected);
            let message = "The server has too many requests waiting".to_owned();
            return Err(SubmitError::Busy { message, retry_after: Duration::from_secs(1), tenant_limit: false });
        }
        let (accepted, answer) = oneshot::channel();
        let submit =
            Submit { group, tenant, model: ModelId(model as u16), work, priority, names, came: None, accepted };
        let gone = || SubmitError::Internal { message: "The engine has ended".into() };
        self.shared.inbox.send(NodeMessage::Submit(Box::new(submit))).map_err(|_| gone())?;
        let inbox = self.shared.inbox.clone();
        let cancel = CancelOnDrop::new(move || {
            // The engine thread is gone only when every request has ended.
            let _ = inbox.send(NodeMessage::Cancel(group));
        });
        match answer.await.map_err(|_| gone()).flatten() {
            Ok(()) => Ok(cancel),
            Err(error) => {
                cancel.disarm();
                Err(error)
            }
        }
    }
}

fn check_devices(devices: &[DeviceConfig]) -> Result<(), EngineError> {
    if devices.is_empty() || devices.len() > DEVICES_LEN_MAX {
        return Err(EngineError::Config(format!("{} devices; 1 to {DEVICES_LEN_MAX} can be served", devices.len())));
    }
    let twice = |(at, device): (usize, &DeviceConfig)| devices[..at].iter().any(|other| other.name == device.name);
    match devices.iter().enumerate().any(twice) {
        true => Err(EngineError::Config("two devices have the same name".into())),
        false => Ok(()),
    }
}

/// What models and tenants name must be there.
fn check_places(config: &EngineConfig) -> Result<(), EngineError> {
    for model in &config.models {
        let unknown = model.devices.iter().find(|name| !config.devices.iter().any(|device| device.name == **name));
        if let Some(name) = unknown {
            let message = format!("model `{}` is to be on device `{name}`, which is not served", model.name);
            return Err(EngineError::Config(message));
        }
    }
    for tenant in &config.tenants {
        if let Some(pool) = tenant.pool.as_deref().filter(|pool| pool_id(config, Some(pool)).is_none()) {
            let message = format!("no device is in pool `{pool}`, which tenant `{}` names", tenant.name);
            return Err(EngineError::Config(message));
        }
    }
    Ok(())
}

/// The number of a pool: the first device that is in it.
fn pool_id(config: &EngineConfig, name: Option<&str>) -> Option<PoolId> {
    let name = name?;
    let first = config.devices.iter().position(|device| device.pool.as_deref() == Some(name))?;
    Some(PoolId(first as u16))
}

fn nanos(time: Duration) -> Nanos {
    Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

fn scheduler(config: &EngineConfig) -> Scheduler {
    let mut scheduler = Scheduler::new(Config {
        queue_len_max: config.queue_len_max,
        locality_quantum: nanos(config.locality_quantum),
        ..Config::default()
    });
    for (index, tenant) in config.tenants.iter().enumerate() {
        let plan = Tenant {
            weight: tenant.weight,
            queue_len_max: tenant.queue_len_max,
            running_max: tenant.running_max,
            kv_blocks_floor: tenant.kv_blocks_floor,
            kv_blocks_ceiling: tenant.kv_blocks_ceiling,
            metered: tenant.quota != DeviceQuota::default(),
            cache_blocks_floor: tenant.cache_blocks_floor,
            cache_blocks_ceiling: tenant.cache_blocks_ceiling,
            ttft_target: tenant.ttft_target.map(nanos),
            itl_target: tenant.itl_target.map(nanos),
            priority_ceiling: tenant.priority_ceiling,
            pool: pool_id(config, tenant.pool.as_deref()),
            pool_only: tenant.pool_only,
        };
        scheduler.add_tenant(TenantId(index as u32 + 1), plan);
    }
    scheduler
}

/// The trace, if one is wanted. Its file is made before anything is loaded that takes minutes.
fn recorder(config: &EngineConfig, metrics: &Metrics) -> Result<(Recorder, Option<Draft>), EngineError> {
    let Some(record) = &config.record else { return Ok((Recorder::default(), None)) };
    let devices = config.devices.iter().map(|device| DeviceLine {
        name: device.name.clone(),
        step_latency_max: nanos(device.step_latency_max).0,
        pool: device.pool.clone(),
    });
    let time = |time: Option<Duration>| time.map(|time| nanos(time).0);
    let tenants = config.tenants.iter().map(|tenant| TenantLine {
        name: tenant.name.clone(),
        weight: tenant.weight,
        queue_len_max: tenant.queue_len_max,
        running_max: tenant.running_max,
        priority_ceiling: tenant.priority_ceiling,
        kv_blocks_floor: tenant.kv_blocks_floor,
        kv_blocks_ceiling: tenant.kv_blocks_ceiling,
        cache_blocks_floor: tenant.cache_blocks_floor,
        cache_blocks_ceiling: tenant.cache_blocks_ceiling,
        ttft_target: time(tenant.ttft_target),
        itl_target: time(tenant.itl_target),
        pool: tenant.pool.clone(),
        pool_only: tenant.pool_only,
        device_time_per_hour: time(tenant.quota.hour),
        device_time_per_day: time(tenant.quota.day),
        device_time_per_month: time(tenant.quota.month),
    });
    let header = Header {
        devices: devices.collect(),
        tenants: tenants.collect(),
        queue_len_max: config.queue_len_max,
        locality_quantum: nanos(config.locality_quantum).0,
    };
    let (written, dropped) = metrics.trace_lines();
    Recorder::start(record, &header, written, dropped)
        .map(|(recorder, draft)| (recorder, Some(draft)))
        .map_err(|error| EngineError::Config(format!("the trace {}: {error}", record.path.display())))
}

/// The root of every tenant's block names: 256 bits from the operating system, new at each start, unknown outside.
fn secret() -> Result<[u8; 32], EngineError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|e| EngineError::Config(format!("the system gives no random bytes: {e}")))?;
    Ok(secret)
}
