//! Capacity questions: a load, drawn by name or recorded from a running server, played through the real scheduler on simulated
//! devices, and what every tenant would have seen of it.
//!
//! A [`Load`] comes from a workload's name or from a [`Trace`]; [`Costs`] say what a step takes, worked out for a named machine or fitted
//! from the steps of a trace by [`fit()`]; [`Load::play`] gives an [`Answer`], and [`find_devices`] the least number of devices whose answer
//! keeps the [`Targets`]. All but the fit is the scheduler's own integers and a seed, so a question has one answer, byte for byte.
//!
//! The simulation knows what the cost model knows. What it leaves out is said in `docs/simulate.md`, beside a comparison of what it
//! predicts with what a server measured.

mod answer;
mod charts;
mod costs;
mod find;
mod fit;
mod least_squares;
mod load;
mod recorded;
mod replay;
mod table;
mod trace;

pub use answer::{Answer, Course, Delays, DeviceAnswer, Measured, Miss, Targets, TenantAnswer, Total};
pub use charts::charts;
pub use costs::{Costs, PRESETS};
pub use find::{DEVICES_MAX, Try, find_devices};
pub use fit::{Fit, fit};
pub use load::{Load, LoadOptions};
pub use table::{answer_table, fit_lines, tries_table};
pub use trace::Trace;
pub use weir_scheduler::Order;
