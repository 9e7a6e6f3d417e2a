//! The engine thread: one per node, owner of the scheduler. It waits for messages and for nothing else.
//!
//! ```text
//! submit, cancel --> inbox --> [ admit | plan steps | judge reports ] --> outboxes
//!                      ^                      |
//!                  executor <--- batches -----'
//! ```
//!
//! A turn takes every message that is there, then plans steps until each device has as many as it may have in flight.
//! Nothing in a turn waits: outboxes are bounded and cut slow readers off, links queue, metrics are atomics.

mod books;
pub(crate) mod desk;
mod device;
mod drain;
mod executors;
mod group;
mod lease;
mod leases;
pub(crate) mod message;
mod models;
mod quarantine;
mod quotas;
mod record;
mod recovery;
mod requests;
pub(crate) mod sequence;
mod steps;
mod tenants;
mod why;

pub(crate) use self::books::{Ledger, unix_us};

use std::{
    collections::{BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use weir_scheduler::{
    DeviceId, Event, ModelId, Nanos, PoolId, RequestId, RowOutcome, Scheduler, StepPlan, TargetProblem, TenantId, Times,
};

use self::{
    books::{Books, RETRY_INTERVAL},
    desk::Order,
    device::{Device, DeviceState, WATCH_INTERVAL},
    group::Group,
    leases::Leases,
    message::{DeviceChange, GroupId, NodeMessage, Submit},
    models::Adding,
    quarantine::Quarantine,
    sequence::Sequence,
    why::Records,
};
use crate::{
    codec::Codec,
    config::{DeviceConfig, TenantSpec},
    error::{EngineError, FailureKind, SubmitError},
    executor::{link::LinkEvent, wire::LoadModel},
    metrics::Metrics,
    numbers::NumberMap,
    recorder::Recorder,
    status::Status,
};

/// Shortest time between two looks at the clock while nothing is said.
const WAKE_MIN: Duration = Duration::from_millis(50);

/// A model as the engine thread knows it; its index is its id.
pub(crate) struct NodeModel {
    pub(crate) name: String,
    pub(crate) codec: Arc<Codec>,
    pub(crate) context_len: u32,
    pub(crate) embeds_only: bool,
    pub(crate) path: PathBuf,
}

/// What the engine thread is made of.
pub(crate) struct NodeParts {
    pub(crate) scheduler: Scheduler,
    pub(crate) models: Vec<NodeModel>,
    /// Where their weights are, in the same order, and the devices that load them, none meaning all.
    pub(crate) loads: Vec<(LoadModel, Vec<String>)>,
    pub(crate) devices: Vec<DeviceConfig>,
    /// In the order of their ids, which begin at 1.
    pub(crate) tenants: Vec<TenantSpec>,
    /// Where grants for them are ordered.
    pub(crate) orders: flume::Sender<Order>,
    /// The devices' pools, in the same order.
    pub(crate) pools: Vec<Option<PoolId>>,
    /// Key of what the node keeps as digests.
    pub(crate) secret: [u8; 32],
    pub(crate) canary_interval: Duration,
    pub(crate) inbox: flume::Receiver<NodeMessage>,
    pub(crate) outlet: flume::Sender<NodeMessage>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) recorder: Recorder,
    pub(crate) status: Arc<Status>,
    /// Where charges are written, if they are.
    pub(crate) ledger: Option<Ledger>,
    /// Told once, when every device has loaded or one cannot.
    pub(crate) started: oneshot::Sender<Result<(), EngineError>>,
}

/// The state of the engine thread.
pub(crate) struct Node {
    scheduler: Scheduler,
    leases: Leases,
    books: Books,
    models: Vec<NodeModel>,
    devices: Vec<Device>,
    pools: Vec<Option<PoolId>>,
    /// Targets that cannot be met and that were told of.
    warned: BTreeSet<(TenantId, DeviceId, ModelId)>,
    canary_interval: Duration,
    inbox: flume::Receiver<NodeMessage>,
    outlet: flume::Sender<NodeMessage>,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    status: Arc<Status>,
    started: Option<oneshot::Sender<Result<(), EngineError>>>,
    sequences: NumberMap<RequestId, Live>,
    groups: NumberMap<GroupId, Group>,
    /// Came while the executor was being restarted; they still count as the inbox's, and so are bounded.
    door: VecDeque<Submit>,
    /// What a lost device was running and is to go on.
    returning: Vec<Live>,
    quarantine: Quarantine,
    records: Records,
    canaries: u64,
    adding: Option<Adding>,
    drained: Option<oneshot::Sender<()>>,
    /// Told when all is over; there once the thread is to stop.
    stopping: Option<oneshot::Sender<()>>,
    /// Readers to be woken when the turn is over.
    due: Vec<Waker>,
    clock: Instant,
    plan: StepPlan,
    events: Vec<Event>,
    outcomes: Vec<RowOutcome>,
}

/// A scheduler's request: a choice being generated, or a list being embedded.
struct Live {
    group: GroupId,
    choice: u32,
    sequence: Option<Sequence>,
    last_token: Option<Instant>,
    /// It has left the queue once.
    started: bool,
    /// Of a list to embed that was taken up again: the inputs that its items are.
    items: Option<Vec<u32>>,
    /// Tokens that were computed for it, so that computing them again is known as that.
    computed: u32,
    /// The device and the epoch whose executor has its sequence.
    open_on: Option<(usize, u64)>,
    /// Of what it was charged under its present id, what its group's bill has.
    booked: Nanos,
    /// Steps of it that an executor died in.
    deaths: u32,
    /// The last of them is not explained yet.
    suspect: bool,
    /// Where its time went until it settled, and how often it lost its blocks; see [`why`].
    times: Times,
    preemptions: u32,
    /// When its device was lost, until it is taken up again.
    lost_at: Option<Nanos>,
}

impl Live {
    /// The input that an item of the scheduler's is.
    fn item(&self, item: u32) -> u32 {
        self.items.as_ref().and_then(|items| items.get(item as usize).copied()).unwrap_or(item)
    }
}

impl Node {
    pub(crate) fn new(parts: NodeParts) -> Self {
        let now = Instant::now();
        let records = Records::new(parts.scheduler.stats().tenants.len());
        Node {
            scheduler: parts.scheduler,
            leases: Leases::new(&parts.tenants, parts.devices.len(), parts.orders),
            books: Books::new(parts.ledger, &parts.tenants, parts.devices.len()),
            models: parts.models,
            devices: parts.devices.into_iter().map(|config| Device::new(config, &parts.loads)).collect(),
            pools: parts.pools,
            warned: BTreeSet::new(),
            canary_interval: parts.canary_interval,
            inbox: parts.inbox,
            outlet: parts.outlet,
            metrics: parts.metrics,
            recorder: parts.recorder,
            status: parts.status,
            started: Some(parts.started),
            sequences: NumberMap::default(),
            groups: NumberMap::default(),
            door: VecDeque::new(),
            returning: Vec::new(),
            quarantine: Quarantine::new(parts.secret),
            records,
            canaries: 0,
            adding: None,
            drained: None,
            stopping: None,
            due: Vec::new(),
            clock: now,
            plan: StepPlan::default(),
            events: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self) {
        for device in 0..self.devices.len() {
            self.start_executor(device);
        }
        while self.stopping.is_none() {
            let wait = self.next_deadline().saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(wait) {
                Ok(message) => self.take(message),
                Err(flume::RecvTimeoutError::Timeout) => {}
                Err(flume::RecvTimeoutError::Disconnected) => break,
            }
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message);
            }
            self.watch_executors();
            self.restart_executors();
            self.finish_drains();
            self.send_canaries();
            self.look_at_leases();
            self.look_at_books();
            // Twice: what one device passes over is there for another that has nothing to do.
            for _ in 0..self.devices.len().min(2) {
                for device in 0..self.devices.len() {
                    self.plan_steps(device);
                }
            }
            // After the devices have work again: readers take the cores that are left.
            self.due.drain(..).for_each(Waker::wake);
            if self.door.is_empty()
                && self.groups.values().all(Group::is_canary)
                && let Some(drained) = self.drained.take()
            {
                let _ = drained.send(());
            }
        }
        self.end_all();
        self.close_books();
        self.recorder.end();
        if let Some(ended) = self.stopping.take() {
            let _ = ended.send(());
        }
    }

    /// Ends what still runs. The steps it is in are lost, and what they took is the operator's.
    fn end_all(&mut self) {
        for submit in std::mem::take(&mut self.door) {
            self.status.left_inbox();
            let _ = submit.accepted.send(Err(SubmitError::Draining));
        }
        let left: Vec<GroupId> = self.groups.keys().copied().collect();
        for group in left {
            self.fail(group, FailureKind::Draining, "The server is shutting down");
        }
        let now = self.now();
        for device in (0..self.devices.len()).filter(|&device| self.devices[device].is_ready()) {
            self.scheduler.device_lost(now, DeviceId(device as u16));
        }
        self.settle();
        self.leases.end(&self.scheduler);
        // For whoever still looks: nothing is left, and every account is up to date.
        self.observe();
    }

    /// Says, once, which plans' targets no step can meet.
    fn warn_of_targets(&mut self) {
        for TargetProblem { tenant, device, model, target, step } in self.scheduler.target_problems() {
            if !self.warned.insert((tenant, device, model)) {
                continue;
            }
            let tenant = self.metrics.tenant_name(tenant.0);
            let device = self.devices.get(usize::from(device.0)).map(|device| device.config.name.as_str());
            let model = self.models.get(usize::from(model.0)).map(|model| model.name.as_str());
            let (target_us, step_us) = (target.0 / 1_000, step.0 / 1_000);
            tracing::warn!(
                tenant,
                device,
                model,
                target_us,
                step_us,
                "itl_target is less than a step of one row takes"
            );
        }
    }

    fn observe(&self) {
        if self.books.have_stopped() {
            self.status.ledger_stopped();
        }
        self.metrics.requests_live(self.groups.len());
        self.metrics.observe(&self.scheduler, self.now(), &self.models, &self.device_statuses());
    }

    fn now(&self) -> Nanos {
        Nanos(self.clock.elapsed().as_nanos() as u64)
    }

    /// When the thread must wake even if nothing is said.
    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let due = self.devices.iter().filter_map(|device| match device.state {
            DeviceState::Down { restart_at } => Some(restart_at),
            DeviceState::Ready => {
                // A canary that is due and not sent, since the device has work, does not keep the thread awake.
                let canary = (device.last_step.max(device.last_canary) + self.canary_interval).max(now + WAKE_MIN);
                let drained = device.draining.and_then(|draining| draining.deadline);
                Some(drained.map_or(canary, |drained| drained.min(canary)))
            }
            DeviceState::Loading | DeviceState::Drained => None,
        });
        let grants = self.scheduler.next_deadline().map(|at| self.clock + Duration::from_nanos(at.0));
        let late = self.books.are_late().then(|| now + RETRY_INTERVAL);
        let leases = self.leases.next_look().map(|at| self.clock + Duration::from_nanos(at.0));
        due.chain(grants).chain(leases).chain(late).chain([now + WATCH_INTERVAL]).min().unwrap_or(now)
    }

    fn take(&mut self, message: NodeMessage) {
        match message {
            NodeMessage::Submit(submit) => match self.is_coming_back() {
                true => self.put_off(*submit),
                false => self.let_in(*submit),
            },
            NodeMessage::Cancel(group) => self.cancel(group),
            NodeMessage::Link { device, epoch, event } => {
                if self.devices[device].epoch == epoch {
                    match event {
                        LinkEvent::Said(message) => self.executor_said(device, message),
                        LinkEvent::Down(reason) => self.executor_down(device, reason),
                    }
                }
            }
            NodeMessage::AddModel(add) => self.add_model(*add),
            NodeMessage::Lease(told) => self.hear_of_lease(*told),
            NodeMessage::PutTenant(put) => self.put_tenant(*put),
            NodeMessage::Devices(told) => {
                let _ = told.send(self.device_statuses());
            }
            NodeMessage::Device(order) => {
                let done = match order.what {
                    DeviceChange::Drain { time, force } => self.drain_device(&order.device, time, force),
                    DeviceChange::Resume => self.resume_device(&order.device),
                };
                let _ = order.done.send(done);
            }
            NodeMessage::Why { tenant, id, told } => {
                let _ = told.send(self.why(tenant, &id));
            }
            NodeMessage::Observe(observed) => {
                self.warn_of_targets();
                self.observe();
                let _ = observed.send(());
            }
            NodeMessage::Drain(drained) => {
                self.scheduler.drain();
                self.drained = Some(drained);
            }
            NodeMessage::Stop(ended) => self.stopping = Some(ended),
        }
        self.settle();
    }
}

#[cfg(test)]
mod tests;
