//! The simulator: the real [`crate::Scheduler`] in virtual time, with everything around it imitated.
//!
//! An event heap holds arrivals, ends of steps, cancellations and losses of devices. Each device runs its steps one after the other, at
//! most as many in flight as the scheduler allows, and reports a time from a cost model. All is integers and seeded, so a
//! scenario has one history, and [`Outcome::digest`] tells whether two runs had the same.
//!
//! On the way it checks what must always be true, independently of the scheduler's own books: each accepted request ends exactly once
//! and gets no row afterwards; rows of a sequence follow on each other and draw when they should; no row reads a
//! block that does not hold its tenant's text; wall time is accounted for to the nanosecond at every event; and nothing
//! stands still while work waits.

mod arrivals;
mod checks;
mod client;
mod diary;
mod given;
mod lag;
mod leases;
mod loss;
mod machine;
mod memory;
mod outcome;
mod policy;
mod presets;
mod rng;
mod scenario;
mod turns;
mod waits;
mod watch;
mod workloads;
mod world;

pub use arrivals::Phases;
pub use diary::{DeviceDiary, Diary, Entry, Gaps};
pub use given::{Given, GivenWork};
pub use leases::Leases;
pub use outcome::{Incidents, Outcome, TenantOutcome};
pub(crate) use policy::Policy;
pub use rng::Rng;
pub use scenario::{Arrivals, Ask, Faults, Range, Scenario, SimModel, Source, StepCost, Uneven};
pub use watch::{Part, Watch, Window};
pub use workloads::{STEP_CAP, WORKLOADS, Workload, workload};
pub use world::{replay, run, run_watched};
