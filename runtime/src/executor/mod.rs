//! Executors: forward passes and sampling for one device, behind a process boundary.
//!
//! [`wire`] is what crosses the boundary, [`worker`] is the far side (a process, or a thread in tests), [`link`] the near
//! side; [`pulse`] is its heartbeat. [`model`] runs real models, [`fake`] fixed costs.

pub(crate) mod fake;
pub(crate) mod link;
pub(crate) mod model;
pub(crate) mod pulse;
pub(crate) mod sequence;
mod stderr;
pub mod wire;
pub(crate) mod worker;

pub use worker::{DeviceChoice, executor_main};
