//! HTTP, SSE, wire types, identity, configuration and the `weir` command: the composition root.
//!
//! A request comes in through [`http`] (timers and caps), gets an id and a caller ([`identity`]) in [`api`], is parsed by [`openai`]
//! into what the engine takes, and goes out again as OpenAI's clients expect it. HTTP status codes are named in
//! [`error`] and nowhere else.
//!
//! This crate never decides what runs next or who pays (that is the scheduler's), never sees a token id it does not
//! merely pass on, and never waits for a model on a thread that serves connections. What it accepts it carries out;
//! what it cannot carry out it refuses by name.
//!
//! Main types: [`config::Config`], [`identity::Identity`], [`error::ApiError`], [`openai::chat::ChatRequest`],
//! [`api::App`].
//!
//! How to test: `cargo test --release -p weir-server`. Wire formats and streams are tested as data; the routes on an
//! engine with a `fake:` model; configuration on temporary folders.

pub mod api;
pub mod cli;
#[cfg(feature = "nats")]
pub mod cloudevents;
pub mod config;
pub mod error;
pub mod everybody;
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod identity;
pub mod keys;
pub mod openai;
mod openapi;
pub mod webhooks;
