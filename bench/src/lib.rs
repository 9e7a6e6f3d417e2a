//! The load generator: it drives a running server over HTTP and says what that server did.
//!
//! [`run`] takes a [`LoadConfig`] and measures its levels one after the other. In a *closed loop* a level keeps so many
//! connections busy: each sends its next request when the last one has ended, which finds what a server can do. In an
//! *open loop* requests leave on a schedule (Poisson, Gamma, or a trace) whatever became of those before, which finds what
//! users would see; latencies then count from the moment a request was due. Prompts are lists of token ids drawn from a
//! seed, none ever repeated, so neither a tokenizer nor a prefix cache is part of the figure. Each level gives a
//! [`LevelReport`]: latency percentiles, rates inside the steady window, goodput, what the machine was doing meanwhile.
//!
//! # What the figures mean
//!
//! * *Window*, closed loop: from the moment every connection has ended its first request to the moment the first connection
//!   finds no more work. Open loop: from a tenth of the arrivals' time, or the first answer if that is later, to the last
//!   arrival. Warm-up and cool-down lie outside. A level too short to have one is measured whole, and says so.
//! * *Low* and *high* of a rate: its lowest and highest over five equal parts of the window.
//! * *Latencies*: closed loop, of requests that spent half of their life in the window. Open loop, of those that were due in
//!   it, however long they took.
//! * *Goodput*: good requests per second; one is good when it succeeded within every limit of [`Slo`].
//! * *Decode tokens/s*: tokens that arrived while all connections were between their first and last token, over that time.
//! * *Prompt tokens/s*: prompt tokens over the time in which at least one connection waited for its first token; at
//!   concurrency 1 that is prompt tokens / TTFT.
//! * *Output, prompt and total throughput*: everything in the window over the window, prefill and decode mixed.
//! * *Processor time per request*: of the server, its executors and this client, user and system, from `/proc`, over all
//!   requests of the level.
//! * Tokens are counted from the server's own running usage, never by counting chunks; a delta of several tokens is divided.
//!
//! # What it must never do
//!
//! Link the engine or reach the server in any way but HTTP; drop a failed request silently; print a figure taken on a
//! machine that was busy with something else, or by a client that missed its own schedule, without marking it void.
//!
//! # How to test
//!
//! `cargo test --release -p weir-bench`: parsers are fed every split of their input, the statistics are checked against
//! known values, and a whole run goes against a scripted listener. No test depends on how long anything took.

// A test that unwraps fails with the value it found.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod closed_loop;
pub mod compare;
mod compare_plot;
mod config;
mod connection;
mod date;
mod error;
mod form;
mod http;
mod json;
mod lengths;
mod level;
mod load;
mod machine;
mod notes;
mod open_loop;
mod pace;
mod plot;
mod procfs;
mod prompts;
mod punctuality;
mod random;
mod report;
mod run;
mod sample;
mod schedule;
pub mod simulate;
mod slo;
mod sse;
mod stats;
mod svg;
mod target;
mod trace;
mod window;
mod wire;

pub use config::{Arrivals, LoadConfig, LoadKind, Tenant};
pub use error::{BenchError, RequestError};
pub use lengths::Lengths;
pub use level::{Latencies, LevelReport, TenantReport};
pub use machine::MachineReport;
pub use notes::Failure;
pub use pace::Pace;
pub use punctuality::Punctuality;
pub use run::run;
pub use slo::Slo;
pub use stats::Summary;
pub use window::Rates;
