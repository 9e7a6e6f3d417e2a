//! Executors in the engine thread: started, lost, started again; and the canary that proves an idle one still works.

use std::{sync::Arc, time::Instant};

use weir_scheduler::{Admission, DeviceId, ModelId, ModelLimits, Nanos, RequestId, TenantId, Work};

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
        let (epoch, outlet) = (entry.epoch, self.outlet.clone());
        let tell = move |event| {
            // The engine thread is gone only when the process is going.
            let _ = outlet.send(NodeMessage::Link { device, epoch, event });
        };
        match Link::start(&entry.config.name, &entry.config.executor, entry.load.clone(), tell) {
            Ok(link) => {
                self.status.executor_started(link.pid());
                entry.link = Some(link);
            }
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
            FromExecutor::AddFailed(message) => self.model_not_added(message),
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
                if let Some(started) = self.started.take() {
                    let _ = started.send(Err(error));
                }
                self.executor_down(device, reason);
            }
            FromExecutor::Report(report) => self.report(device, report),
        }
    }

    fn executor_ready(&mut self, device: usize) {
        let now = self.now();
        let id = DeviceId(device as u16);
        self.scheduler.add_device(now, id);
        let step_latency_max = Nanos(self.devices[device].config.step_latency_max.as_nanos() as u64);
        self.scheduler.set_step_latency(id, step_latency_max);
        let entry = &mut self.devices[device];
        for loaded in &entry.loaded {
            let Some(model) = self.models.get(loaded.model as usize) else { continue };
            let limits = ModelLimits {
                blocks: loaded.blocks,
                rows_max: entry.config.rows_max,
                tokens_max: loaded.tokens_max,
                context_len_max: model.context_len,
            };
            self.scheduler.add_model(id, ModelId(loaded.model), limits);
        }
        entry.state = DeviceState::Ready;
        entry.watch.worked();
        self.status.executor_ready();
        self.metrics.executor_up(true);
        self.take_up(device);
        self.open_door();
    }

    pub(super) fn executor_down(&mut self, device: usize, reason: String) {
        let was_ready = self.devices[device].is_ready();
        if matches!(self.devices[device].state, DeviceState::Down { .. }) {
            return;
        }
        if !self.stopping {
            tracing::error!(device, reason, "executor down");
        }
        self.forget_added_model();
        if was_ready {
            self.lose_device(device);
        }
        let entry = &mut self.devices[device];
        // Kills what is left of it; what it has said already is not heard any more.
        entry.link = None;
        entry.epoch += 1;
        entry.failed_starts += 1;
        entry.in_flight.clear();
        entry.close.iter_mut().for_each(Vec::clear);
        let restart_at = Instant::now() + entry.restart_pause;
        entry.restart_pause = (entry.restart_pause * 2).min(RESTART_PAUSE_MAX);
        entry.state = DeviceState::Down { reason: reason.clone(), restart_at };
        self.status.executor_down(&reason);
        self.metrics.executor_up(false);
        if let Some(started) = self.started.take() {
            let _ = started.send(Err(EngineError::Executor(reason)));
        }
        self.give_up_returning();
        self.open_door();
        self.settle();
    }

    pub(super) fn restart_executors(&mut self) {
        for device in 0..self.devices.len() {
            if let DeviceState::Down { restart_at, reason } = &self.devices[device].state
                && *restart_at <= Instant::now()
            {
                tracing::warn!(device, after = reason, "restarting the executor");
                self.metrics.restarted();
                self.start_executor(device);
            }
        }
    }

    /// When nothing has run for a while, runs one token of the operator's: `/ready` then speaks of steps, not of threads.
    pub(super) fn send_canary(&mut self) {
        let due = self.last_step.max(self.status.last_canary()).elapsed() >= self.canary_interval;
        let first = self.started.is_some() && self.canaries == 0;
        let ready = self.devices.iter().any(Device::is_ready);
        if ready && self.groups.is_empty() && (due || first) {
            self.status.canary_sent();
            self.admit_canary();
        }
    }

    /// Admits one token of the operator's for the next model that is there.
    pub(super) fn admit_canary(&mut self) -> Option<RequestId> {
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
            if let Ok(request) = self.scheduler.admit(now, admission) {
                let id = GroupId(u64::MAX - self.canaries);
                let output = Output::Canary { inputs };
                self.register(id, TenantId::OPERATOR, index, output, &[request], vec![sequence], 1);
                return Some(request);
            }
        }
        None
    }
}
