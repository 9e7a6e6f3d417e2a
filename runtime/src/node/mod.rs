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

mod device;
mod executors;
mod group;
pub(crate) mod message;
mod models;
mod quarantine;
mod recovery;
mod requests;
pub(crate) mod sequence;
mod steps;

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use weir_scheduler::{DeviceId, Event, Nanos, RequestId, RowOutcome, Scheduler, StepPlan};

use self::{
    device::{Device, DeviceState, WATCH_INTERVAL},
    group::Group,
    message::{GroupId, NodeMessage, Submit},
    models::Adding,
    quarantine::Quarantine,
    sequence::Sequence,
};
use crate::{
    codec::Codec,
    config::ExecutorMode,
    error::{EngineError, FailureKind},
    executor::{link::LinkEvent, wire::Load},
    metrics::Metrics,
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
    pub(crate) loads: Vec<Load>,
    pub(crate) executor: ExecutorMode,
    pub(crate) rows_max: u32,
    /// Key of what the node keeps as digests.
    pub(crate) secret: [u8; 32],
    pub(crate) canary_interval: Duration,
    pub(crate) inbox: flume::Receiver<NodeMessage>,
    pub(crate) outlet: flume::Sender<NodeMessage>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: Arc<Status>,
    /// Told once, when every device has loaded or one cannot.
    pub(crate) started: oneshot::Sender<Result<(), EngineError>>,
}

/// The state of the engine thread.
pub(crate) struct Node {
    scheduler: Scheduler,
    models: Vec<NodeModel>,
    devices: Vec<Device>,
    executor: ExecutorMode,
    rows_max: u32,
    canary_interval: Duration,
    inbox: flume::Receiver<NodeMessage>,
    outlet: flume::Sender<NodeMessage>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    started: Option<oneshot::Sender<Result<(), EngineError>>>,
    sequences: HashMap<RequestId, Live>,
    groups: HashMap<GroupId, Group>,
    /// Came while the executor was being restarted; they still count as the inbox's, and so are bounded.
    door: VecDeque<Submit>,
    /// What a lost device was running and is to go on.
    returning: Vec<Live>,
    quarantine: Quarantine,
    canaries: u64,
    adding: Option<Adding>,
    last_step: Instant,
    drained: Option<oneshot::Sender<()>>,
    stopping: bool,
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
    /// Of a list to embed that was taken up again: the inputs that its items are.
    items: Option<Vec<u32>>,
    /// Tokens that were computed for it, so that computing them again is known as that.
    computed: u32,
    /// Steps of it that an executor died in.
    deaths: u32,
    /// The last of them is not explained yet.
    suspect: bool,
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
        Node {
            scheduler: parts.scheduler,
            models: parts.models,
            devices: parts.loads.into_iter().map(Device::new).collect(),
            executor: parts.executor,
            rows_max: parts.rows_max,
            canary_interval: parts.canary_interval,
            inbox: parts.inbox,
            outlet: parts.outlet,
            metrics: parts.metrics,
            status: parts.status,
            started: Some(parts.started),
            sequences: HashMap::new(),
            groups: HashMap::new(),
            door: VecDeque::new(),
            returning: Vec::new(),
            quarantine: Quarantine::new(parts.secret),
            canaries: 0,
            adding: None,
            last_step: now,
            drained: None,
            stopping: false,
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
        while !self.stopping {
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
            self.send_canary();
            for device in 0..self.devices.len() {
                self.plan_steps(device);
            }
            if self.door.is_empty()
                && self.groups.values().all(Group::is_canary)
                && let Some(drained) = self.drained.take()
            {
                let _ = drained.send(());
            }
        }
        self.end_all();
    }

    /// Ends what still runs. The steps it is in are lost, and what they took is the operator's.
    fn end_all(&mut self) {
        let left: Vec<GroupId> = self.groups.keys().copied().collect();
        for group in left {
            self.fail(group, FailureKind::Draining, "The server is shutting down");
        }
        let now = self.now();
        for device in (0..self.devices.len()).filter(|&device| self.devices[device].is_ready()) {
            self.scheduler.device_lost(now, DeviceId(device as u16));
        }
        self.settle();
        // For whoever still looks: nothing is left, and every account is up to date.
        self.observe();
    }

    fn observe(&self) {
        self.metrics.requests_live(self.groups.len());
        self.metrics.observe(&self.scheduler, self.now(), &self.models, self.devices.len());
    }

    fn now(&self) -> Nanos {
        Nanos(self.clock.elapsed().as_nanos() as u64)
    }

    /// When the thread must wake even if nothing is said.
    fn next_deadline(&self) -> Instant {
        let restarts = self.devices.iter().filter_map(|d| match d.state {
            DeviceState::Down { restart_at, .. } => Some(restart_at),
            _ => None,
        });
        let canary = self.last_step.max(self.status.last_canary()) + self.canary_interval;
        let now = Instant::now();
        restarts.chain([canary.max(now + WAKE_MIN), now + WATCH_INTERVAL]).min().unwrap_or(canary)
    }

    fn take(&mut self, message: NodeMessage) {
        match message {
            NodeMessage::Submit(submit) => match self.is_coming_back() {
                true => self.door.push_back(*submit),
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
            NodeMessage::Observe(observed) => {
                self.observe();
                let _ = observed.send(());
            }
            NodeMessage::Drain(drained) => {
                self.scheduler.drain();
                self.drained = Some(drained);
            }
            NodeMessage::Stop => self.stopping = true,
        }
        self.settle();
    }
}
