//! The lines of a trace. `weir_bench` reads them; the words are the format.

use serde::Serialize;
use weir_scheduler::{ModelLimits, PlanRow, RowKind};

/// The version of the format.
pub(super) const FORMAT: u32 = 2;

/// What a trace says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Header {
    /// The devices' names and the latencies that their steps should stay under, in the order of their ids.
    pub(crate) devices: Vec<DeviceLine>,
    /// The tenants in the order of their ids, without the operator.
    pub(crate) tenants: Vec<TenantLine>,
    /// Requests that may wait on the node.
    pub(crate) queue_len_max: u32,
    /// Device time for which what is cached goes first.
    pub(crate) locality_quantum: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DeviceLine {
    pub(crate) name: String,
    pub(crate) step_latency_max: u64,
    /// The pool that it is reserved for.
    pub(crate) pool: Option<String>,
}

/// A plan: what the tenant bought, as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TenantLine {
    pub(crate) name: String,
    pub(crate) weight: u32,
    pub(crate) queue_len_max: u32,
    pub(crate) running_max: u32,
    pub(crate) priority_ceiling: u8,
    pub(crate) kv_blocks_floor: u32,
    pub(crate) kv_blocks_ceiling: Option<u32>,
    pub(crate) cache_blocks_floor: u32,
    pub(crate) cache_blocks_ceiling: Option<u32>,
    pub(crate) ttft_target: Option<u64>,
    pub(crate) itl_target: Option<u64>,
    pub(crate) pool: Option<String>,
    pub(crate) pool_only: bool,
    pub(crate) device_time_per_hour: Option<u64>,
    pub(crate) device_time_per_day: Option<u64>,
    pub(crate) device_time_per_month: Option<u64>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RequestEnd {
    Finished,
    Cancelled,
    Failed,
    Refused,
}

/// What a step computed, by kind of row. A row of `n` tokens from position `p` has `p + n` positions of context and reads
/// `n * p + n * (n + 1) / 2` pairs of positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct StepLoad {
    /// Rows of one token that draw: rows, context.
    pub(crate) decode: (u32, u64),
    /// All other rows of texts: rows, tokens, context, reads.
    pub(crate) prefill: (u32, u64, u64, u64),
    /// Items embedded: rows, tokens, reads.
    pub(crate) embed: (u32, u64, u64),
}

impl StepLoad {
    pub(crate) fn of(rows: &[PlanRow]) -> StepLoad {
        let mut load = StepLoad::default();
        for row in rows {
            match row.kind {
                RowKind::Generate { from, len: 1, samples: true, .. } => {
                    load.decode.0 += 1;
                    load.decode.1 += u64::from(from) + 1;
                }
                RowKind::Generate { from, len, .. } => {
                    let (from, len) = (u64::from(from), u64::from(len));
                    load.prefill.0 += 1;
                    load.prefill.1 += len;
                    load.prefill.2 += from + len;
                    load.prefill.3 += len * from + len * (len + 1) / 2;
                }
                RowKind::Embed { len, .. } => {
                    let len = u64::from(len);
                    load.embed.0 += 1;
                    load.embed.1 += len;
                    load.embed.2 += len * (len + 1) / 2;
                }
            }
        }
        load
    }
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Line<'a> {
    Header {
        format: u32,
        weir: &'static str,
        #[serde(flatten)]
        header: &'a Header,
    },
    Model {
        at: u64,
        device: u16,
        model: u16,
        name: &'a str,
        blocks: u32,
        rows_max: u32,
        tokens_max: u32,
        context_len_max: u32,
    },
    Tenant {
        at: u64,
        tenant: u32,
        plan: &'a TenantLine,
    },
    Request {
        at: u64,
        tenant: u32,
        model: u16,
        #[serde(skip_serializing_if = "is_zero")]
        priority: u8,
        #[serde(skip_serializing_if = "is_nothing")]
        prompt_len: u32,
        #[serde(skip_serializing_if = "is_nothing")]
        new_tokens_max: u32,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        drawn: &'a [u32],
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        lens: &'a [u32],
        #[serde(skip_serializing_if = "Vec::is_empty")]
        blocks: Vec<(u64, u32)>,
        #[serde(skip_serializing_if = "is_nothing")]
        cached_tokens: u32,
        end: RequestEnd,
        #[serde(skip_serializing_if = "Option::is_none")]
        ttft: Option<u64>,
        took: u64,
        device_time: u64,
    },
    Step {
        at: u64,
        device: u16,
        model: u16,
        #[serde(flatten)]
        load: StepLoad,
        device_time: u64,
        wall: u64,
    },
    /// Lines that should stand here were dropped.
    Dropped {
        lines: u64,
    },
    /// The trace is as long as it may be.
    End {
        bytes_max: u64,
    },
}

impl<'a> Line<'a> {
    pub(super) fn model(at: u64, (device, model): (u16, u16), name: &'a str, limits: ModelLimits) -> Self {
        let ModelLimits { blocks, rows_max, tokens_max, context_len_max } = limits;
        Line::Model { at, device, model, name, blocks, rows_max, tokens_max, context_len_max }
    }
}

// serde hands references.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_zero(value: &u8) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_nothing(value: &u32) -> bool {
    *value == 0
}
