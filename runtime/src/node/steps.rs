//! Steps in the engine thread: planned, sent, and judged when they come back.

use std::time::{Duration, Instant};

use weir_scheduler::{DeviceId, Nanos, RequestId, RowKind, RowOutcome, StepPlan, StepReport};

use super::{
    Node,
    device::{InFlight, RESTART_PAUSE_MIN},
    group::Output,
};
use crate::{
    cost_metrics::Decision,
    error::FailureKind,
    executor::wire::{Batch, BatchRow, OpenSequence, Report, RowResult, ToExecutor},
};

impl Node {
    pub(super) fn plan_steps(&mut self, device: usize) {
        let mut plan = std::mem::take(&mut self.plan);
        while self.devices[device].is_ready() {
            let is_dry = self.turn_lane(device);
            let first = self.devices[device].lane.front().copied();
            if !self.planned(device, &mut plan) {
                let given = self.has_given();
                // The lane's first may have ended for want of a grant, and then others have their turn.
                let ended = self.devices[device].lane.front().copied() != first;
                if given || ended || self.pass_over(device, is_dry) {
                    continue;
                }
                break;
            }
            self.settle();
            let batch = self.batch(device, &plan);
            let entry = &mut self.devices[device];
            if entry.link.as_ref().is_none_or(|link| link.send(ToExecutor::Step(batch)).is_err()) {
                self.executor_down(device, "the executor takes no more steps".into());
                break;
            }
            if entry.in_flight.is_empty() {
                entry.watch.given();
            }
            entry.in_flight.push_back(InFlight {
                step: plan.step,
                model: plan.model.0 as usize,
                rows: plan.rows.clone(),
                tokens: plan.tokens(),
                sent: Instant::now(),
            });
        }
        self.plan = plan;
    }

    /// Asks the scheduler for a step, and notes how long it took to say which.
    fn planned(&mut self, device: usize, plan: &mut StepPlan) -> bool {
        let asked = Instant::now();
        let planned = self.scheduler.next_step(self.now(), DeviceId(device as u16), plan);
        if planned {
            self.metrics.decided(Decision::Plan, asked.elapsed());
        }
        planned
    }

    /// Adds to a plan what the scheduler never sees: the ids.
    fn batch(&mut self, device: usize, plan: &StepPlan) -> Batch {
        let model = plan.model.0 as usize;
        let mut open = Vec::new();
        let mut rows = Vec::with_capacity(plan.rows.len());
        for row in &plan.rows {
            rows.push(match row.kind {
                RowKind::Generate { from, len, samples, blocks } => {
                    open.extend(self.open_sequence(device, model, row.request));
                    let blocks = plan.blocks_of(blocks).iter().map(|b| b.0).collect();
                    BatchRow::Generate { sequence: row.request.0, from, len, samples, blocks }
                }
                RowKind::Embed { item, .. } => {
                    let live = self.sequences.get(&row.request);
                    let input = live.and_then(|l| self.groups.get(&l.group)?.input(l.item(item)));
                    BatchRow::Embed { tokens: input.cloned().unwrap_or_default() }
                }
            });
        }
        let close = std::mem::take(&mut self.devices[device].close[model]);
        Batch { step: plan.step.0, model: plan.model.0, open, close, rows }
    }

    /// What this executor must know of a sequence before it has a row there. One that was preempted may have been open elsewhere.
    fn open_sequence(&mut self, device: usize, model: usize, request: RequestId) -> Option<OpenSequence> {
        let here = Some((device, self.devices[device].epoch));
        let live = self.sequences.get_mut(&request)?;
        if live.open_on == here {
            return None;
        }
        let before = std::mem::replace(&mut live.open_on, here);
        let open = live.sequence.as_ref().map(|sequence| sequence.open(request.0));
        self.forget_sequence(before, model, request);
        open
    }

    pub(super) fn report(&mut self, device: usize, report: Report) {
        let Some(step) = self.devices[device].in_flight.pop_front() else {
            return self.executor_down(device, "the executor reported a step it was not given".into());
        };
        if step.step.0 != report.step || step.rows.len() != report.rows.len() {
            return self.executor_down(device, "the executor reported another step than it was given".into());
        }
        let device_time = Duration::from_nanos(report.device_nanos);
        let arrived = Instant::now();
        let mut outcomes = std::mem::take(&mut self.outcomes);
        outcomes.clear();
        for (row, result) in step.rows.iter().zip(report.rows) {
            outcomes.push(self.judge(row.request, row.kind, result, arrived));
        }
        self.metrics.step(step.model, device_time, step.rows.len(), step.tokens);
        let summary = StepReport { step: step.step, device_time: Nanos(report.device_nanos), rows: &outcomes };
        let now = self.now();
        let told = Instant::now();
        let known = self.scheduler.finish_step(now, DeviceId(device as u16), &summary, &mut self.events);
        self.metrics.decided(Decision::Settle, told.elapsed());
        self.outcomes = outcomes;
        if !known {
            return self.executor_down(device, "the executor reported a step that was not planned".into());
        }
        // Only now does the scheduler know of the drawn ids, and a block's name counts for the last that they fill.
        for row in &step.rows {
            if let Some(sequence) = self.sequences.get_mut(&row.request).and_then(|live| live.sequence.as_mut()) {
                sequence.named_blocks(|name| self.scheduler.block_hashed(row.request, name));
            }
        }
        self.record_step(device, &step, report.device_nanos, arrived);
        self.status.step_completed();
        let entry = &mut self.devices[device];
        entry.last_step = arrived;
        entry.counts.steps += 1;
        entry.counts.busy += device_time;
        entry.watch.worked();
        // Only now has it shown that it does more than come up and go down again.
        (entry.restart_pause, entry.failed_starts) = (RESTART_PAUSE_MIN, 0);
        // The first canary of each has warmed it up: now the node has started.
        if self.devices.iter().all(|device| device.is_ready() && device.counts.steps > 0)
            && let Some(started) = self.started.take()
        {
            let seconds = self.scheduler.gap_bound().0 as f64 / 1e9;
            let seconds = (seconds * 1e3).round() / 1e3;
            tracing::info!(
                seconds,
                "service gap between tenants with work waiting: at most this much device time by weight"
            );
            let _ = started.send(Ok(()));
        }
    }

    /// Decides what a row's result means for its request.
    fn judge(&mut self, request: RequestId, kind: RowKind, result: RowResult, arrived: Instant) -> RowOutcome {
        // Ended or cancelled while this step was queued: the scheduler knows whose time it is.
        let Some(live) = self.sequences.get_mut(&request) else { return RowOutcome::Advanced };
        let id = live.group;
        let Some(group) = self.groups.get_mut(&id) else { return RowOutcome::Advanced };
        if let RowKind::Generate { from, len, .. } = kind {
            live.computed = live.computed.max(from + len);
        }
        match (result, kind) {
            (RowResult::Computed, RowKind::Generate { samples: false, .. }) => RowOutcome::Advanced,
            (RowResult::Sampled(sampled), RowKind::Generate { samples: true, .. }) => {
                let Some(sequence) = live.sequence.as_mut() else { return RowOutcome::Failed };
                let codec = &self.models[group.model].codec;
                let progress = sequence.advance(&sampled, codec);
                if !group.is_canary() {
                    self.metrics.token(live.last_token.replace(arrived).map(|last| arrived - last));
                    if group.first_token.is_none() {
                        group.first_token = Some(arrived);
                        self.metrics.first_token(arrived - group.submitted);
                    }
                }
                let mut full = false;
                if let Output::Text(outbox) = &group.output
                    && !group.cancelled
                {
                    let released = progress.released;
                    if !released.text.is_empty() || !released.logprobs.is_empty() {
                        let drawn = sequence.drawn();
                        full = outbox.delta(live.choice, &released.text, drawn, released.logprobs).is_err();
                    }
                    if let Some(reason) = progress.finished {
                        outbox.finished(live.choice, reason);
                    }
                    self.due.extend(outbox.due());
                }
                self.survived(request);
                if full {
                    self.fail(id, FailureKind::SlowReader, "The reader left too much of the stream unread");
                }
                if progress.finished.is_some() { RowOutcome::Finished } else { RowOutcome::Advanced }
            }
            (RowResult::Vector(vector), RowKind::Embed { item, .. }) => {
                if let Output::Vectors { vectors, .. } = &mut group.output
                    && let Some(slot) = vectors.get_mut(live.item(item) as usize)
                {
                    *slot = vector;
                }
                RowOutcome::Advanced
            }
            (RowResult::Failed(message), _) => {
                tracing::error!(model = self.models[group.model].name, message, "a row failed");
                self.fail(id, FailureKind::BadOutput, "The model could not compute this request");
                RowOutcome::Failed
            }
            _ => {
                tracing::error!("the executor answered a row with something else than it was asked for");
                self.fail(id, FailureKind::BadOutput, "The model could not compute this request");
                RowOutcome::Failed
            }
        }
    }
}
