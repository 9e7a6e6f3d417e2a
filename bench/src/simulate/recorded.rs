//! The lines of a trace, one type each, and what is kept of them. Their words are those of `docs/simulate.md`.

use serde::Deserialize;
use weir_scheduler::ModelLimits;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordedDevice {
    #[allow(dead_code)]
    name: String,
    pub(crate) step_latency_max: u64,
    #[serde(default)]
    pub(crate) pool: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordedTenant {
    pub(crate) name: String,
    pub(crate) weight: u32,
    pub(crate) queue_len_max: u32,
    pub(crate) running_max: u32,
    pub(crate) kv_blocks_floor: u32,
    pub(crate) kv_blocks_ceiling: Option<u32>,
    #[serde(default)]
    pub(crate) priority_ceiling: u8,
    #[serde(default)]
    pub(crate) cache_blocks_floor: u32,
    #[serde(default)]
    pub(crate) cache_blocks_ceiling: Option<u32>,
    #[serde(default)]
    pub(crate) ttft_target: Option<u64>,
    #[serde(default)]
    pub(crate) itl_target: Option<u64>,
    #[serde(default)]
    pub(crate) pool: Option<String>,
    #[serde(default)]
    pub(crate) pool_only: bool,
    #[serde(default)]
    pub(crate) device_time_per_hour: Option<u64>,
    #[serde(default)]
    pub(crate) device_time_per_day: Option<u64>,
    #[serde(default)]
    pub(crate) device_time_per_month: Option<u64>,
}

impl RecordedTenant {
    /// Whether it could use so much device time and no more.
    pub(super) fn has_quota(&self) -> bool {
        let windows = [self.device_time_per_hour, self.device_time_per_day, self.device_time_per_month];
        windows.iter().any(Option::is_some)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct RecordedModel {
    pub(crate) name: String,
    /// On the first device that had it.
    pub(crate) limits: ModelLimits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RecordedEnd {
    Finished,
    Cancelled,
    Failed,
    Refused,
}

#[derive(Clone, Debug)]
pub(crate) struct RecordedRequest {
    pub(crate) at: u64,
    pub(crate) tenant: usize,
    pub(crate) model: u16,
    pub(crate) priority: u8,
    pub(crate) prompt_len: u32,
    pub(crate) new_tokens_max: u32,
    pub(crate) drawn: Vec<u32>,
    pub(crate) lens: Vec<u32>,
    pub(crate) blocks: Vec<(u64, u32)>,
    pub(crate) cached_tokens: u32,
    pub(crate) end: RecordedEnd,
    pub(crate) ttft: Option<u64>,
    pub(crate) took: u64,
    pub(crate) device_time: u64,
}

/// A step in the terms of its cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecordedStep {
    pub(crate) model: u16,
    pub(crate) device: u16,
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
    pub(crate) context: u64,
    pub(crate) reads: u64,
    pub(crate) device_time: u64,
    pub(crate) wall: u64,
}

/// One line.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Line {
    Header {
        format: u32,
        #[allow(dead_code)]
        weir: String,
        devices: Vec<RecordedDevice>,
        tenants: Vec<RecordedTenant>,
        queue_len_max: u32,
        #[serde(default)]
        locality_quantum: Option<u64>,
    },
    Model {
        #[allow(dead_code)]
        at: u64,
        #[allow(dead_code)]
        device: u16,
        model: u16,
        name: String,
        blocks: u32,
        rows_max: u32,
        tokens_max: u32,
        context_len_max: u32,
    },
    Tenant {
        #[allow(dead_code)]
        at: u64,
        tenant: usize,
        plan: RecordedTenant,
    },
    Request {
        at: u64,
        tenant: usize,
        model: u16,
        #[serde(default)]
        priority: u8,
        #[serde(default)]
        prompt_len: u32,
        #[serde(default)]
        new_tokens_max: u32,
        #[serde(default)]
        drawn: Vec<u32>,
        #[serde(default)]
        lens: Vec<u32>,
        #[serde(default)]
        blocks: Vec<(u64, u32)>,
        #[serde(default)]
        cached_tokens: u32,
        end: RecordedEnd,
        #[serde(default)]
        ttft: Option<u64>,
        took: u64,
        device_time: u64,
    },
    Step {
        #[allow(dead_code)]
        at: u64,
        device: u16,
        model: u16,
        decode: (u32, u64),
        prefill: (u32, u64, u64, u64),
        embed: (u32, u64, u64),
        device_time: u64,
        wall: u64,
    },
    Dropped {
        lines: u64,
    },
    End {
        bytes_max: u64,
    },
}
