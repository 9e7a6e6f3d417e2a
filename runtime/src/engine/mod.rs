//! The handle that the server holds: submit, watch, drain. Everything that takes time but not the device (templates,
//! tokenising, hashing) happens here, on the callers' side of the inbox.

mod devices;
mod encode;
mod ledger;
mod models;
mod open;
mod quota;
mod tenants;
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
use weir_scheduler::{Config, ModelId, Nanos, Scheduler, TenantId};

use self::{
    encode::{check_sampling, echo_text, invalid, new_tokens_max},
    ledger::Epoch,
    models::{Served, ServedModels},
    open::{OpenedModel, Opener},
    quota::Quotas,
    tenants::{Pools, Tenants, plan},
};
use crate::{
    card::ModelCard,
    codec::hash::{BlockChain, ChainSalt},
    config::{DeviceConfig, DeviceKind, EngineConfig},
    devices::DEVICES_LEN_MAX,
    error::{EngineError, FailureKind, NotReady, RequestFailure, SubmitError},
    ledger::{LedgerLine, LineWatch},
    metrics::{Metrics, Outcome},
    node::{
        Node, NodeParts,
        message::{GroupId, NodeMessage, Submit, SubmitWork},
        sequence::SequenceSpec,
    },
    recorder::{DeviceLine, Draft, Header, Recorder},
    sampler::mix,
    status::Status,
    stream::{CancelOnDrop, TokenStream},
    submission::{EmbedSubmission, Embeddings, Prompt, Submission},
    telemetry::{SAMPLE_INTERVAL, Sampler, nvml::NvmlTelemetry},
    why::Names,
};

pub use models::MODELS_LEN_MAX;
pub(crate) use tenants::tenant_line;

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
    tenants: Tenants,
    pools: Pools,
    quotas: Quotas,
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
    /// The life that the ledger has begun, until it is ended.
    epoch: Mutex<Option<Epoch>>,
    epoch_number: Option<i64>,
    ledger_line: Option<LineWatch>,
    cpu_devices: u64,
}

impl Engine {
    /// Loads the models, starts the executors and runs a first step.
    ///
    /// # Errors
    /// When a model cannot be read, downloaded or loaded, an executor does not start, or the ledger was changed.
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
        let pools = Pools::of(&config.devices);
        let (ledger, epoch) = match &config.accounts {
            Some(accounts) => Epoch::begin(accounts).await.map(|(ledger, epoch)| (Some(ledger), Some(epoch)))?,
            None => (None, None),
        };
        let source = quota::source(config.accounts.as_ref(), ledger.as_ref());
        let ledger_line = ledger.as_ref().map(|ledger| ledger.writer.watch());
        let (orders, ordered) = flume::unbounded();
        let parts = NodeParts {
            scheduler: scheduler(&config),
            models: opened.iter().map(|m| m.node_model()).collect(),
            loads: opened.iter().map(|m| m.load.clone()).zip(config.models.iter().map(|m| m.devices.clone())).collect(),
            pools: pools.of_devices(),
            devices: config.devices.clone(),
            tenants: config.tenants.clone(),
            orders,
            secret,
            canary_interval: config.canary_interval,
            inbox: messages,
            outlet: inbox.clone(),
            metrics: metrics.clone(),
            recorder,
            status: status.clone(),
            ledger,
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
            quotas: Quotas::start(source, &config.tenants, ordered, inbox.clone()),
            tenants: Tenants::new(config.tenants),
            pools,
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
            epoch_number: epoch.as_ref().map(Epoch::number),
            epoch: Mutex::new(epoch),
            ledger_line,
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

    /// The number of this life of the engine in the ledger, if it has one.
    pub fn epoch(&self) -> Option<i64> {
        self.shared.epoch_number
    }

    /// How long the line before the ledger's writer is, if there is a ledger.
    pub fn ledger_line(&self) -> Option<LedgerLine> {
        self.shared.ledger_line.as_ref().map(LineWatch::look)
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
        let Submission { request_id: request, answer_id: answer, key, bill, .. } = submission;
        let names = Names { request, answer, key, bill };
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
        let EmbedSubmission { request_id: request, key, bill, .. } = submission;
        let names = Names { request, answer: None, key, bill };
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
            FailureKind::LedgerUnavailable => SubmitError::LedgerUnavailable,
            _ => SubmitError::Internal { message: failure.message },
        };
        let (vectors, usage) = answer.map_err(|_| lost())?.map_err(failed)?;
        Ok(Embeddings { vectors, usage })
    }

    /// Admits nothing more, waits until what runs has ended or the deadline passes, then ends everything, and returns when that is
    /// done: every reader has its ending, the trace is written, and the ledger closed.
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
        // What is held goes back while the epoch that holds it is open.
        self.shared.quotas.end().await;
        if let Some(epoch) = self.shared.epoch.lock().await.take() {
            epoch.end().await;
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
        // Dropped on any way out but the last, it was not used.
        let counted = self.shared.quotas.take(tenant).await?;
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
            Ok(()) => {
                if let Some(ticket) = counted {
                    ticket.used();
                }
                Ok(cancel)
            }
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
    let pools = Pools::of(&config.devices);
    config.tenants.iter().try_for_each(|tenant| pools.check(tenant))
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
    let pools = Pools::of(&config.devices);
    for (number, tenant) in (1..).zip(&config.tenants) {
        scheduler.add_tenant(TenantId(number), plan(tenant, &pools));
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
    let header = Header {
        devices: devices.collect(),
        tenants: config.tenants.iter().map(tenant_line).collect(),
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
