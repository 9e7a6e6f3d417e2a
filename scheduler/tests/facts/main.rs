//! Facts about the scheduler as a whole, from outside.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod admission;
mod ahead;
mod bound;
mod changes;
mod claims;
mod devices;
mod given;
mod grants;
mod histories;
mod leases;
mod limits;
mod locality;
mod memory;
mod money;
mod pools;
mod priority;
mod proofs;
mod recovery;
mod rig;
mod rows;
mod shares;
mod targets;
mod why;
mod workloads;
