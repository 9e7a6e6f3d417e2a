//! What the engine thread tells the trace: see [`crate::recorder`].

use std::time::{Duration, Instant};

use weir_scheduler::{BlockHash, ModelLimits, TenantId};

use super::{
    Node,
    device::InFlight,
    group::{Group, Output},
    sequence::Sequence,
};
use crate::recorder::{Note, RequestEnd, RequestNote, StepLoad, block_key};

/// What a request leaves for the trace while its choices end.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    new_tokens_max: u32,
    drawn: Vec<u32>,
    blocks: Vec<u64>,
}

impl Recorded {
    /// A choice has ended, or was never begun.
    pub(super) fn choice(&mut self, sequence: &Sequence) {
        self.new_tokens_max = sequence.new_tokens_max();
        self.drawn.push(sequence.drawn());
        let names: &[BlockHash] = sequence.names();
        if names.len() > self.blocks.len() {
            self.blocks = names.iter().map(block_key).collect();
        }
    }
}

impl Node {
    fn nanos(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.clock))
    }

    pub(super) fn record_model(&mut self, device: usize, model: u16, limits: ModelLimits) {
        if self.recorder.is_on() {
            let name = self.models[model as usize].name.clone();
            self.recorder.note(Note::Model {
                at: self.nanos(Instant::now()),
                device: device as u16,
                model,
                name,
                limits,
            });
        }
    }

    /// A step was reported. It had the device since it was sent, or since the step before it was reported.
    pub(super) fn record_step(&mut self, device: usize, step: &InFlight, device_nanos: u64, reported: Instant) {
        if self.recorder.is_on() {
            let begun = step.sent.max(self.devices[device].last_step);
            self.recorder.note(Note::Step {
                at: self.nanos(reported),
                device: device as u16,
                model: step.model as u16,
                load: StepLoad::of(&step.rows),
                device_nanos,
                wall_nanos: nanos(reported.saturating_duration_since(begun)),
            });
        }
    }

    /// A request has ended.
    pub(super) fn record_end(&mut self, group: Group) {
        if !self.recorder.is_on() || group.is_canary() {
            return;
        }
        let end = match (group.failed, group.cancelled) {
            (true, _) => RequestEnd::Failed,
            (_, true) => RequestEnd::Cancelled,
            _ => RequestEnd::Finished,
        };
        let at = self.nanos(group.submitted);
        self.recorder.note(Note::Request(RequestNote {
            cached_tokens: group.usage.cached_tokens,
            end,
            ttft: group.first_token.map(|first| nanos(first - group.submitted)),
            took: nanos(group.submitted.elapsed()),
            device_nanos: group.usage.device_nanos,
            priority: group.priority,
            ..note(at, (group.tenant, group.model), group.usage.prompt_tokens, &group.output, group.recorded)
        }));
    }

    /// A request was refused: it is load all the same.
    pub(super) fn record_refusal(
        &mut self,
        (tenant, model, priority): (TenantId, usize, u8),
        prompt_tokens: u32,
        output: &Output,
        sequences: &[Option<Sequence>],
    ) {
        if self.recorder.is_on() {
            let mut recorded = Recorded::default();
            sequences.iter().flatten().for_each(|sequence| recorded.choice(sequence));
            let at = self.nanos(Instant::now());
            let note = note(at, (tenant, model), prompt_tokens, output, recorded);
            self.recorder.note(Note::Request(RequestNote { priority, ..note }));
        }
    }
}

/// A refused request; what an accepted one became is put in.
fn note(at: u64, (tenant, model): (TenantId, usize), prompt: u32, output: &Output, recorded: Recorded) -> RequestNote {
    let lens: Vec<u32> = match output {
        Output::Vectors { inputs, .. } => inputs.iter().map(|input| input.len() as u32).collect(),
        Output::Text(_) | Output::Canary { .. } => Vec::new(),
    };
    RequestNote {
        at,
        // The header lists the tenants without the operator, who is the first.
        tenant: tenant.0.saturating_sub(1),
        model: model as u16,
        priority: 0,
        prompt_len: if lens.is_empty() { prompt } else { 0 },
        new_tokens_max: recorded.new_tokens_max,
        drawn: recorded.drawn,
        lens,
        blocks: recorded.blocks,
        cached_tokens: 0,
        end: RequestEnd::Refused,
        ttft: None,
        took: 0,
        device_nanos: 0,
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
