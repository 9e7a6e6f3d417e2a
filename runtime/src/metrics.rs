//! The metrics registry: Prometheus text, tenant labels only where a tenant's own use is counted. Everything is an atomic or behind a short lock, so neither a
//! step nor a scrape waits for the other.

use std::{
    fmt::{self, Write},
    sync::{Arc, PoisonError, RwLock, atomic::AtomicU64},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use weir_scheduler::{Cause, DeviceId, Nanos, Scheduler, Times};

use crate::{
    cost_metrics::{CostMetrics, Decision},
    device_metrics::DeviceMetrics,
    devices::DeviceStatus,
    node::NodeModel,
    outbox::Outbox,
    submission::Usage,
    telemetry::Board,
};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Answered in full.
    Completed,
    /// The client went away.
    Cancelled,
    /// Accepted, and not answered in full.
    Failed,
    /// Not accepted.
    Rejected,
    /// Ended, or not begun, because its tenant's quota was spent.
    Quota,
    /// The operator's own.
    Canary,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

/// Why a request waited.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum TokenKind {
    Prompt,
    Cached,
    Completion,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabel {
    kind: TokenKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Account {
    Tenants,
    Operator,
    Overrun,
    Idle,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AccountLabel {
    device: String,
    account: Account,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum BlockUse {
    Used,
    Cached,
}

/// Tenants are those of the configuration, so there are only so many.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BlocksLabel {
    tenant: String,
    model: String,
    state: BlockUse,
}

/// Label values in lower case, as Prometheus users expect them.
macro_rules! label_values {
    ($($label:ty: $($variant:ident = $value:literal),+;)+) => {
        $(impl EncodeLabelValue for $label {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                encoder.write_str(match self { $(<$label>::$variant => $value),+ })
            }
        })+
    };
}

label_values! {
    Outcome: Completed = "completed", Cancelled = "cancelled", Failed = "failed", Rejected = "rejected", Quota = "quota",
        Canary = "canary";
    TokenKind: Prompt = "prompt", Cached = "cached", Completion = "completion";
    BlockUse: Used = "used", Cached = "cached";
    Account: Tenants = "tenants", Operator = "operator", Overrun = "overrun", Idle = "idle";
}

type Seconds = Gauge<f64, AtomicU64>;

/// Every metric of the node.
pub(crate) struct Metrics {
    registry: Registry,
    /// In the order of their ids.
    models: RwLock<Vec<String>>,
    /// In the order of their ids, the operator left out.
    tenants: RwLock<Vec<String>>,
    requests: Family<OutcomeLabel, Counter>,
    tokens: Family<TokenLabel, Counter>,
    waiting: Family<ModelLabel, Gauge>,
    running: Family<ModelLabel, Gauge>,
    blocks_total: Family<ModelLabel, Gauge>,
    blocks_used: Family<ModelLabel, Gauge>,
    blocks_cached: Family<ModelLabel, Gauge>,
    kv_usage: Family<ModelLabel, Seconds>,
    device_seconds: Family<AccountLabel, Counter<f64, AtomicU64>>,
    block_seconds: Family<BlocksLabel, Counter<f64, AtomicU64>>,
    demand: Seconds,
    gap_bound: Seconds,
    costs: CostMetrics,
    preemptions: Counter,
    restarts: Counter,
    hangs: Counter,
    resumed: Counter,
    quarantined: Counter,
    trace_lines: Counter,
    trace_dropped: Counter,
    executor_up: Gauge,
    devices: DeviceMetrics,
    prefix_queries: Counter,
    prefix_hits: Counter,
    first_token: Histogram,
    inter_token: Histogram,
    request_time: Histogram,
    queue_time: Histogram,
    waits: Family<CauseLabel, Counter<f64, AtomicU64>>,
    step_time: Family<ModelLabel, Histogram>,
    step_rows: Family<ModelLabel, Histogram>,
    step_tokens: Family<ModelLabel, Histogram>,
    requests_live: Gauge,
    inbox: Gauge,
    encoding: Gauge,
    outboxes: Gauge,
    outbox_bytes: Gauge,
    gpus: Arc<Board>,
}

const LATENCY_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const COUNT_BUCKETS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 2048.0];

fn latency() -> Histogram {
    Histogram::new(LATENCY_BUCKETS)
}

fn count() -> Histogram {
    Histogram::new(COUNT_BUCKETS)
}

impl Metrics {
    pub(crate) fn new(models: &[String]) -> Self {
        let mut registry = Registry::with_prefix("weir");
        let requests = Family::<OutcomeLabel, Counter>::default();
        registry.register("requests", "Requests by how they ended", requests.clone());
        let tokens = Family::<TokenLabel, Counter>::default();
        registry.register("tokens", "Tokens of completed requests; cached is a part of prompt", tokens.clone());
        let mut model_gauge = |name: &str, help: &str| {
            let family = Family::<ModelLabel, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let waiting = model_gauge("requests_waiting", "Requests in the queue");
        let running = model_gauge("requests_running", "Requests in the batch");
        let blocks_total = model_gauge("kv_blocks", "KV blocks there are");
        let blocks_used = model_gauge("kv_blocks_used", "KV blocks held by running requests");
        let blocks_cached = model_gauge("kv_blocks_cached", "KV blocks kept for their prefix only");
        let kv_usage = Family::<ModelLabel, Seconds>::default();
        registry.register("kv_cache_usage_ratio", "Share of the KV blocks held by running requests", kv_usage.clone());
        let device_seconds = Family::<AccountLabel, Counter<f64, AtomicU64>>::default();
        let help = "Device time by who pays; the accounts of a device add up to the time since it was added";
        registry.register_with_unit("device", help, Unit::Seconds, device_seconds.clone());
        let block_seconds = Family::<BlocksLabel, Counter<f64, AtomicU64>>::default();
        let help = "KV blocks times the seconds that they were held (used) or kept for their prefix only (cached)";
        registry.register_with_unit("tenant_kv_block", help, Unit::Seconds, block_seconds.clone());
        let demand = Seconds::default();
        registry.register_with_unit("demand", "Estimated device time of what waits", Unit::Seconds, demand.clone());
        let gap_bound = Seconds::default();
        let help = "Most device time, divided by weight, that one of two tenants with work waiting can be served ahead of the other";
        registry.register_with_unit("service_gap_bound", help, Unit::Seconds, gap_bound.clone());
        let costs = CostMetrics::new(&mut registry);
        let preemptions = Counter::default();
        registry.register("preemptions", "Running requests that had to give their KV blocks back", preemptions.clone());
        let restarts = Counter::default();
        registry.register("executor_restarts", "Executors started again after they were lost", restarts.clone());
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let hangs = counter("executor_hangs", "Executors ended because they got nowhere");
        let resumed = counter("requests_resumed", "Choices and lists taken up again after their executor was lost");
        let quarantined = counter("requests_quarantined", "Requests kept out because they bring executors down");
        let trace_lines = counter("trace_lines", "Lines written to the trace");
        let trace_dropped = counter("trace_lines_dropped", "Lines of the trace that its writer had no time for");
        let executor_up = Gauge::default();
        registry.register("executor_up", "1 while the executor of any device is ready", executor_up.clone());
        let devices = DeviceMetrics::new(&mut registry);
        let prefix_queries = Counter::default();
        registry.register("prefix_cache_queries", "Prompt tokens looked up", prefix_queries.clone());
        let prefix_hits = Counter::default();
        registry.register("prefix_cache_hits", "Prompt tokens found", prefix_hits.clone());
        let mut histogram = |name: &str, help: &str| {
            let histogram = latency();
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let first_token = histogram("time_to_first_token", "From submission to the first token");
        let inter_token = histogram("inter_token_latency", "Between two tokens of a choice");
        let request_time = histogram("request", "From submission to the end");
        let queue_time = histogram("request_queue", "From submission to the first step");
        let waits = Family::<CauseLabel, Counter<f64, AtomicU64>>::default();
        let help = "Time that ended requests, or choices of them, were in the scheduler without a step, by cause";
        registry.register_with_unit("request_wait", help, Unit::Seconds, waits.clone());
        let step_time = Family::<ModelLabel, Histogram>::new_with_constructor(latency);
        registry.register_with_unit("step", "Device time of a step", Unit::Seconds, step_time.clone());
        let step_rows = Family::<ModelLabel, Histogram>::new_with_constructor(count);
        registry.register("step_rows", "Rows of a step", step_rows.clone());
        let step_tokens = Family::<ModelLabel, Histogram>::new_with_constructor(count);
        registry.register("step_tokens", "Tokens of a step", step_tokens.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let requests_live = gauge("requests_live", "Requests the engine thread holds, waiting, running or ending");
        let inbox = gauge("inbox_requests", "Requests on their way to the engine thread");
        let encoding = gauge("encoders_busy", "Prompts being tokenised");
        let outboxes = gauge("outboxes", "Streams whose reader has not left");
        let outbox_bytes = gauge("outbox_bytes", "Unread text and log-probabilities of all streams");
        let gpus = Arc::new(Board::default());
        registry.register_collector(Box::new(gpus.clone()));
        use Outcome::{Canary, Cancelled, Completed, Failed, Quota, Rejected};
        for outcome in [Completed, Cancelled, Failed, Rejected, Quota, Canary] {
            drop(requests.get_or_create(&OutcomeLabel { outcome }));
        }
        Metrics {
            registry,
            models: RwLock::new(models.to_vec()),
            tenants: RwLock::default(),
            requests,
            tokens,
            waiting,
            running,
            blocks_total,
            blocks_used,
            blocks_cached,
            kv_usage,
            device_seconds,
            block_seconds,
            demand,
            gap_bound,
            costs,
            preemptions,
            restarts,
            hangs,
            resumed,
            quarantined,
            trace_lines,
            trace_dropped,
            executor_up,
            devices,
            prefix_queries,
            prefix_hits,
            first_token,
            inter_token,
            request_time,
            queue_time,
            waits,
            step_time,
            step_rows,
            step_tokens,
            requests_live,
            inbox,
            encoding,
            outboxes,
            outbox_bytes,
            gpus,
        }
    }

    /// An outbox that is counted here for as long as it lives.
    pub(crate) fn outbox(&self) -> Outbox {
        Outbox::new(self.outboxes.clone(), self.outbox_bytes.clone())
    }

    /// Counters of the trace: written, dropped.
    pub(crate) fn trace_lines(&self) -> (Counter, Counter) {
        (self.trace_lines.clone(), self.trace_dropped.clone())
    }

    /// What the GPUs say of themselves.
    pub(crate) fn gpus(&self) -> &Arc<Board> {
        &self.gpus
    }

    /// What is counted on the callers' side of the engine thread.
    pub(crate) fn observe_callers(&self, inbox: u32, encoding: usize) {
        self.inbox.set(i64::from(inbox));
        self.encoding.set(encoding as i64);
    }

    /// Requests the engine thread knows of, canaries included.
    pub(crate) fn requests_live(&self, requests: usize) {
        self.requests_live.set(requests as i64);
    }

    /// One more model has steps to be counted.
    pub(crate) fn add_model(&self, name: &str) {
        self.models.write().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }

    /// The whole registry as Prometheus text.
    pub(crate) fn text(&self) -> String {
        let mut buffer = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut buffer, &self.registry);
        buffer
    }

    pub(crate) fn ended(&self, outcome: Outcome) {
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn completed(&self, took: Duration, usage: Usage) {
        self.request_time.observe(took.as_secs_f64());
        let add = |kind, count: u32| self.tokens.get_or_create(&TokenLabel { kind }).inc_by(u64::from(count));
        add(TokenKind::Prompt, usage.prompt_tokens);
        add(TokenKind::Cached, usage.cached_tokens);
        add(TokenKind::Completion, usage.completion_tokens);
    }

    pub(crate) fn started(&self, waited: Duration) {
        self.queue_time.observe(waited.as_secs_f64());
    }

    /// Where the time of an ended request went.
    pub(crate) fn waited(&self, times: &Times) {
        for cause in Cause::ALL.into_iter().filter(|cause| *cause != Cause::Steps) {
            let label = CauseLabel { cause: cause.name() };
            self.waits.get_or_create(&label).inc_by(times.of(cause).0 as f64 / 1e9);
        }
    }

    pub(crate) fn first_token(&self, took: Duration) {
        self.first_token.observe(took.as_secs_f64());
    }

    /// A token came, that long after the one before it.
    pub(crate) fn token(&self, since_last: Option<Duration>) {
        if let Some(gap) = since_last {
            self.inter_token.observe(gap.as_secs_f64());
        }
    }

    pub(crate) fn preempted(&self) {
        self.preemptions.inc();
    }

    pub(crate) fn restarted(&self) {
        self.restarts.inc();
    }

    pub(crate) fn hung(&self) {
        self.hangs.inc();
    }

    pub(crate) fn resumed(&self) {
        self.resumed.inc();
    }

    pub(crate) fn quarantined(&self) {
        self.quarantined.inc();
    }

    pub(crate) fn executor_up(&self, up: bool) {
        self.executor_up.set(i64::from(up));
    }

    pub(crate) fn step(&self, model: usize, took: Duration, rows: usize, tokens: u64) {
        let name = self.models.read().unwrap_or_else(PoisonError::into_inner).get(model).cloned();
        let Some(name) = name else { return };
        let label = ModelLabel { model: name };
        self.step_time.get_or_create(&label).observe(took.as_secs_f64());
        self.step_rows.get_or_create(&label).observe(rows as f64);
        self.step_tokens.get_or_create(&label).observe(tokens as f64);
    }

    /// The scheduler has decided about a step.
    pub(crate) fn decided(&self, decision: Decision, took: Duration) {
        self.costs.decided(decision, took);
    }

    /// Who the tenants are.
    pub(crate) fn name_tenants(&self, names: Vec<String>) {
        *self.tenants.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// A tenant's name, for the log.
    pub(crate) fn tenant_name(&self, id: u32) -> Option<String> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        (id as usize).checked_sub(1).and_then(|at| tenants.get(at)).cloned()
    }

    fn observe_blocks(&self, scheduler: &Scheduler, now: Nanos, models: &[NodeModel]) {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        for blocks in scheduler.block_times(now) {
            let tenant = (blocks.tenant.0 as usize).checked_sub(1).and_then(|at| tenants.get(at));
            let (Some(tenant), Some(model)) = (tenant, models.get(blocks.model.0 as usize)) else { continue };
            for (state, nanos) in [(BlockUse::Used, blocks.time.used), (BlockUse::Cached, blocks.time.cached)] {
                let label = BlocksLabel { tenant: tenant.clone(), model: model.name.clone(), state };
                let counter = self.block_seconds.get_or_create(&label);
                counter.inc_by((nanos as f64 / 1e9 - counter.get()).max(0.0));
            }
        }
    }

    /// Copies what the scheduler counts.
    pub(crate) fn observe(&self, scheduler: &Scheduler, now: Nanos, models: &[NodeModel], devices: &[DeviceStatus]) {
        self.devices.observe(Instant::now(), devices);
        self.observe_blocks(scheduler, now, models);
        let stats = scheduler.stats();
        self.demand.set(stats.demand.0 as f64 / 1e9);
        self.gap_bound.set(scheduler.gap_bound().0 as f64 / 1e9);
        self.costs.observe(&stats, models, devices);
        let queries: u64 = stats.models.iter().map(|m| m.prefix_queries).sum();
        let hits: u64 = stats.models.iter().map(|m| m.prefix_hits).sum();
        // Counted by the scheduler; a model that was loaded again counts from nothing, and this goes on.
        self.prefix_queries.inc_by(queries.saturating_sub(self.prefix_queries.get()));
        self.prefix_hits.inc_by(hits.saturating_sub(self.prefix_hits.get()));
        for (index, model) in models.iter().enumerate() {
            let label = ModelLabel { model: model.name.clone() };
            let of_model = |m: &&weir_scheduler::ModelStats| m.model.0 as usize == index;
            let sum = |field: fn(&weir_scheduler::ModelStats) -> u32| -> i64 {
                stats.models.iter().filter(of_model).map(|m| i64::from(field(m))).sum()
            };
            self.waiting.get_or_create(&label).set(sum(|m| m.waiting));
            self.running.get_or_create(&label).set(sum(|m| m.running));
            let (total, used) = (sum(|m| m.blocks), sum(|m| m.blocks_used));
            self.blocks_total.get_or_create(&label).set(total);
            self.blocks_used.get_or_create(&label).set(used);
            self.blocks_cached.get_or_create(&label).set(sum(|m| m.blocks_cached));
            self.kv_usage.get_or_create(&label).set(if total == 0 { 0.0 } else { used as f64 / total as f64 });
        }
        for (index, device) in devices.iter().enumerate() {
            let accounts = scheduler.accounts(now, DeviceId(index as u16));
            let shares = [
                (Account::Tenants, accounts.tenants),
                (Account::Operator, accounts.operator - accounts.overrun),
                // The operator's, too: what metered tenants took above their grants.
                (Account::Overrun, accounts.overrun),
                (Account::Idle, accounts.idle),
            ];
            for (account, nanos) in shares {
                let label = AccountLabel { device: device.name.clone(), account };
                let counter = self.device_seconds.get_or_create(&label);
                // An account never shrinks.
                counter.inc_by((nanos.0 as f64 / 1e9 - counter.get()).max(0.0));
            }
        }
    }
}
