//! The load generator: it drives a running server over HTTP and says what that server did.
//!
//! [`run`] takes a [`LoadConfig`] and, for each concurrency asked for, keeps that many connections busy in a closed loop:
//! a connection sends its next request when the last one has ended. Prompts are lists of token ids drawn from a seed, none
//! ever repeated, so neither a tokenizer nor a prefix cache is part of the figure. Each level gives a [`LevelReport`]:
//! latency percentiles, throughput inside the steady window, what the machine was doing meanwhile.
//!
//! # What the figures mean
//!
//! * *Window*: from the moment every connection has ended its first request to the moment the first connection finds no
//!   more work. Ramp and drain lie outside. A level too short to have one is measured whole, and says so.
//! * *Decode tokens/s*: tokens that arrived while all connections were between their first and last token, over that time.
//! * *Prompt tokens/s*: prompt tokens over the time in which at least one connection waited for its first token; at
//!   concurrency 1 that is prompt tokens / TTFT.
//! * *Output, prompt and total throughput*: everything in the window over the window, prefill and decode mixed.
//! * Tokens are counted from the server's own running usage, never by counting chunks; a delta of several tokens is divided.
//!
//! # What it must never do
//!
//! Link the engine or reach the server in any way but HTTP; drop a failed request silently; print a figure taken on a
//! machine that was busy with something else without marking it void.
//!
//! # How to test
//!
//! `cargo test --release -p weir-bench`: parsers are fed every split of their input, the statistics are checked against
//! known values, and a whole run goes against a scripted listener. No test depends on how long anything took.

// A test that unwraps fails with the value it found.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod closed_loop;
mod config;
mod connection;
mod error;
mod http;
mod level;
mod machine;
mod procfs;
mod prompts;
mod report;
mod run;
mod sample;
mod sse;
mod stats;
mod wire;

pub use config::{EMBEDDING_BATCHES, LoadConfig, LoadKind};
pub use error::{BenchError, RequestError};
pub use level::{Failure, LevelReport};
pub use machine::MachineReport;
pub use run::run;
pub use stats::Summary;
