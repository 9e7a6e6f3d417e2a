//! Who runs next, where, and who pays.
//!
//! [`Scheduler`] is one pure state machine for a whole node: tenants and their accounts once, a list of devices, each with its
//! models, KV blocks and running requests. Inputs are `(now, event)`, outputs are values. The caller (the runtime) admits
//! requests, asks each device for its next step, runs it elsewhere, and reports what came of it with the time the device
//! measured; the scheduler advances the requests and splits the measured time into charges that add up exactly.
//!
//! It must never read a clock, do IO, start threads, see token ids, use floats where money or fairness is decided, or depend on the
//! iteration order of a hash map: the same inputs give the same decisions, byte for byte.
//!
//! Main types: [`Scheduler`]; [`Admission`] and [`Reject`]; [`StepPlan`] and [`StepReport`]; [`Event`]; [`DeviceAccounts`]; [`Why`].
//!
//! ```
//! use weir_scheduler::*;
//!
//! let mut scheduler = Scheduler::new(Config::default());
//! let (tenant, device, model) = (TenantId(1), DeviceId(0), ModelId(0));
//! scheduler.add_tenant(tenant, Tenant::default());
//! scheduler.add_device(Nanos(0), device);
//! let limits = ModelLimits { blocks: 64, rows_max: 8, tokens_max: 256, context_len_max: 1024 };
//! scheduler.add_model(device, model, limits);
//!
//! let work = Work::Generate { prompt_len: 20, new_tokens_max: 1, hashes: vec![] };
//! let admission = Admission { tenant, model, priority: 0, work };
//! let request = scheduler.admit(Nanos(0), admission).unwrap();
//!
//! let (mut plan, mut events) = (StepPlan::new(), Vec::new());
//! assert!(scheduler.next_step(Nanos(100), device, &mut plan));
//! assert_eq!(plan.rows[0].request, request);
//! let report = StepReport { step: plan.step, device_time: Nanos(900), rows: &[RowOutcome::Finished] };
//! assert!(scheduler.finish_step(Nanos(1_100), device, &report, &mut events));
//!
//! assert_eq!(scheduler.tenant_charge(tenant), Nanos(900));
//! let books = scheduler.accounts(Nanos(1_100), device);
//! assert_eq!((books.idle, books.operator, books.wall), (Nanos(100), Nanos(100), Nanos(1_100)));
//! ```
//!
//! How to test: `cargo test --release -p weir-scheduler --features sim`. Unit tests sit beside the code, facts about the whole in
//! `tests/`; the simulator (feature `sim`) drives the real scheduler through long seeded histories and recounts everything
//! with [`Scheduler::check_invariants`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod admit;
mod ahead;
mod block;
mod blocks;
mod blocktime;
mod bound;
mod budget;
mod charge;
mod claim;
mod config;
mod cost;
mod device;
mod event;
mod fill;
mod fit;
mod grant;
mod ids;
mod invariants;
mod kin;
mod lane;
mod model;
mod passage;
mod pick;
mod place;
mod plan;
mod prefix;
mod purse;
mod queue;
mod request;
mod reserve;
mod rival;
mod room;
mod row;
mod scheduler;
mod share;
#[cfg(feature = "sim")]
pub mod sim;
mod standing;
mod stats;
mod step;
mod targets;
mod tenant;
mod tournament;
mod turn;
mod wanted;
mod warm;
mod why;

pub use admit::{Admission, Reject, RejectReason, Resumption, Work};
pub use blocktime::{BlockTime, TenantBlocks};
pub use budget::TargetProblem;
#[cfg(feature = "sim")]
pub use config::Order;
pub use config::{Config, ModelLimits};
pub use device::DeviceAccounts;
pub use event::{End, Event};
pub use ids::{BlockHash, BlockId, DeviceId, ModelId, Nanos, PoolId, RequestId, StepId, TenantId};
pub use plan::{BlockRange, PlanRow, RowKind, RowOutcome, StepPlan, StepReport};
pub use purse::{Grant, GrantBooks};
pub use scheduler::Scheduler;
pub use stats::{ModelStats, Stats, TenantStats};
pub use tenant::Tenant;
pub use why::{Cause, Queued, Times, Why};

/// KV positions in a block, in every pool.
pub const BLOCK_LEN: u32 = 32;
