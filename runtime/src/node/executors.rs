//! Executors in the engine thread: started, lost, started again; and the canary that proves an idle one still works.

use std::{sync::Arc, time::Instant};

use weir_scheduler::{Admission, DeviceId, ModelId, Nanos, RequestId, TenantId, Work};

use super::{
    Node,
    device::{Device, DeviceState, RESTART_PAUSE_MAX, Watch},
    group::Output,
    message::{GroupId, NodeMessage},
    sequence::{Sequence, SequenceSpec},
};
use crate::{
    error::EngineError,
    executor::{link::Link, wire::FromExecutor},
    submission::SamplingParams,
};

impl Node {
    pub(super) fn start_executor(&mut self, device: usize) {
        let entry = &mut self.devices[device];
        entry.epoch += 1;
        entry.state = DeviceState::Loading;
        entry.watch = Watch::new(Instant::now());
        entry.loaded.clear();
        (entry.given, entry.late) = (entry.load.models.len(), false);
        let (epoch, outlet) = (entry.epoch, self.outlet.clone());
        let tell = move |event| {
            // The engine thread is gone only when the process is going.
            let _ = outlet.send(NodeMessage::Link { device, epoch, event });
        };
        match Link::start(&entry.config.name, &entry.config.executor, entry.load.clone(), tell) {
            Ok(link) => entry.link = Some(link),
            Err(error) => self.executor_down(device, format!("cannot start: {error}")),
        }
    }

    /// Ends executors that are hung, as if they had died.
    pub(super) fn watch_executors(&mut self) {
        let now = Instant::now();
        for device in 0..self.devices.len() {
            let entry = &mut self.devices[device];
            let loading = matches!(entry.state, DeviceState::Loading);
            if !loading && !entry.is_ready() {
                continue;
            }
            if let Some(reason) = entry.watch.look(now, !entry.in_flight.is_empty(), loading) {
                self.metrics.hung();
                self.executor_down(device, reason);
            }
        }
    }

    pub(super) fn executor_said(&mut self, device: usize, message: FromExecutor) {
        match message {
            FromExecutor::Heartbeat { progress } => self.devices[device].watch.heartbeat(progress),
            FromExecutor::Loaded(loaded) => {
                if let Some(model) = self.models.get(loaded.model as usize) {
                    tracing::info!(
                        model = model.name,
                        blocks = loaded.blocks,
                        millis = loaded.nanos / 1_000_000,
                        "loaded"
                    );
                }
                self.devices[device].loaded.push(loaded);
            }
            FromExecutor::Ready => self.executor_ready(device),
            FromExecutor::Added(loaded) => self.model_added(device, loaded),
            FromExecutor::AddFailed(message) => self.model_not_added(device, message),
            FromExecutor::LoadFailed { model, message } if u32::from(model) >= self.devices[device].load.required => {
                // It was there when it was added. Whoever asks for it is told that it is not available.
                let name = self.models.get(model as usize).map(|model| model.name.as_str());
                tracing::error!(model = name, message, "not loaded again");
            }
            FromExecutor::LoadFailed { model, message } => {
                let model = self.models.get(model as usize);
                let error = EngineError::Model {
                    name: model.map(|m| m.name.clone()).unwrap_or_default(),
                    path: model.map(|m| m.path.clone()).unwrap_or_default(),
                    message,
                };
                let reason = error.to_string();
                self.started_without(error);
                self.executor_down(device, reason);
            }
            FromExecutor::Report(report) => self.report(device, report),
        }
    }

    fn executor_ready(&mut self, device: usize) {
        let now = self.now();
        let id = DeviceId(device as u16);
        self.scheduler.add_device(now, id);
        self.scheduler.set_pool(id, self.pools[device]);
        let step_latency_max = Nanos(self.devices[device].config.step_latency_max.as_nanos() as u64);
        self.scheduler.set_step_latency(id, step_latency_max);
        self.scheduler.set_device_rate(id, self.devices[device].config.rate_ppm);
        for loaded in std::mem::take(&mut self.devices[device].loaded) {
            self.enter_model(device, loaded);
        }
        let entry = &mut self.devices[device];
        entry.state = DeviceState::Ready;
        entry.reason = None;
        entry.last_step = Instant::now();
        entry.watch.worked();
        self.tell_status();
        self.send_missing(device);
        self.take_up();
        self.open_door();
    }

    pub(super) fn executor_down(&mut self, device: usize, reason: String) {
        let entry = &mut self.devices[device];
        if matches!(entry.state, DeviceState::Down { .. } | DeviceState::Drained) {
            return;
        }
        if self.stopping.is_none() {
            tracing::error!(device = entry.config.name, reason, "executor down");
        }
        if entry.is_ready() {
            self.lose_device(device);
        }
        let name = &self.devices[device].config.name;
        self.started_without(EngineError::Executor(format!("{name}: {reason}")));
        let entry = &mut self.devices[device];
        entry.failed_starts += 1;
        let restart_at = Instant::now() + entry.restart_pause;
        entry.restart_pause = (entry.restart_pause * 2).min(RESTART_PAUSE_MAX);
        entry.reason = Some(reason);
        self.stop_executor(device, DeviceState::Down { restart_at });
    }

    /// Ends what is left of an executor whose requests have been taken from it. What it has said already is not heard any more.
    pub(super) fn stop_executor(&mut self, device: usize, state: DeviceState) {
        let entry = &mut self.devices[device];
        entry.link = None;
        entry.epoch += 1;
        entry.in_flight.clear();
        entry.close.iter_mut().for_each(Vec::clear);
        entry.state = match entry.draining {
            // One that was to be stopped anyway is not started again.
            Some(_) => DeviceState::Drained,
            None => state,
        };
        self.tell_status();
        self.added_without(device);
        self.take_up();
        self.give_up_returning();
        self.open_door();
        self.settle();
    }

    /// The node's start has failed, if it has not been told how that went.
    pub(super) fn started_without(&mut self, error: EngineError) {
        if let Some(started) = self.started.take() {
            let _ = started.send(Err(error));
        }
    }

    /// Tells the other threads whether any device takes requests.
    pub(super) fn tell_status(&self) {
        let open = self.devices.iter().any(Device::is_open);
        let why = self.devices.iter().find_map(|device| device.reason.as_deref());
        let drained = self.devices.iter().all(|device| device.draining.is_some());
        let why = if drained { "every device is drained" } else { why.unwrap_or("it is loading") };
        self.status.set_down((!open).then_some(why));
        self.metrics.executor_up(self.devices.iter().any(Device::is_ready));
    }

    pub(super) fn restart_executors(&mut self) {
        for device in 0..self.devices.len() {
            let entry = &mut self.devices[device];
            if let DeviceState::Down { restart_at } = entry.state
                && restart_at <= Instant::now()
            {
                tracing::warn!(device = entry.config.name, after = entry.reason, "restarting the executor");
                entry.counts.restarts += 1;
                self.metrics.restarted();
                self.start_executor(device);
            }
        }
    }

    /// When a device has run nothing for a while, runs one token of the operator's on it: `/ready` then speaks of steps, not of
    /// threads. The first one warms the device up.
    pub(super) fn send_canaries(&mut self) {
        let now = Instant::now();
        for device in 0..self.devices.len() {
            let entry = &self.devices[device];
            let quiet = now.saturating_duration_since(entry.last_step.max(entry.last_canary));
            // What comes back from a lost device goes first; but what another device waits for may take long, and this one has to
            // prove itself meanwhile.
            let due =
                quiet >= self.canary_interval && self.returning.is_empty() || quiet >= self.canary_interval * 3 / 2;
            let first = self.started.is_some() && entry.counts.steps == 0 && self.returning.is_empty();
            let empty = self.scheduler.is_device_empty(DeviceId(device as u16));
            if entry.is_open() && empty && (due || first) {
                self.devices[device].last_canary = now;
                self.admit_canary(device);
                self.warn_of_targets();
            }
        }
    }

    /// Admits one token of the operator's for the next model that the device has.
    pub(super) fn admit_canary(&mut self, device: usize) -> Option<RequestId> {
        let (now, models) = (self.now(), self.models.len() as u64);
        for _ in 0..models {
            self.canaries += 1;
            let index = (self.canaries % models) as usize;
            let (work, sequence, inputs) = if self.models[index].embeds_only {
                (Work::Embed { lens: vec![1] }, None, vec![vec![0]])
            } else {
                let spec = SequenceSpec {
                    sampling: SamplingParams { temperature: 0.0, ..Default::default() },
                    new_tokens_max: 1,
                    min_tokens: 0,
                    stop: Vec::new(),
                    ignore_eos: true,
                    eos: Arc::from([]),
                    logprobs: None,
                };
                let work = Work::Generate { prompt_len: 1, new_tokens_max: 1, hashes: Vec::new() };
                (work, Some(Sequence::new(spec, &[0], None)), Vec::new())
            };
            let admission = Admission { tenant: TenantId::OPERATOR, model: ModelId(index as u16), priority: 0, work };
            // A model that was not loaded again after a restart has no place to run.
            if let Ok(request) = self.scheduler.admit_to(now, DeviceId(device as u16), admission) {
                let id = GroupId(u64::MAX - self.canaries);
                let output = Output::Canary { inputs };
                self.register(id, TenantId::OPERATOR, index, output, &[request], vec![sequence], 1);
                return Some(request);
            }
        }
        None
    }
}
