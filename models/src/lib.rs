//! Models: from files on disk to a forward pass over a ragged batch.
//!
//! [`ModelSource::open`] reads and checks headers and configuration; [`ModelSource::load`] packs the weights;
//! [`Llama::forward`] runs one step of many sequences, each with its own position and its own KV blocks, over a [`KvStore`];
//! [`Bert::forward`] embeds many texts of any lengths at once. [`Tokenizer`] and [`ChatTemplate`] are the text side.
//!
//! # What it must never do
//!
//! * Believe a file. Headers are checked by our own readers before a byte of data is used; a damaged or hostile file is a
//!   [`ModelError`], never a panic and never a read outside the file.
//! * Make threads or look at a clock: the [`Pool`](weir_kernels::Pool) comes from outside.
//! * Let a row's numbers depend on who shares the step: a row alone, in a batch, whole or in chunks gives the same bits.
//! * Turn a user's text into control tokens; see [`Tokenizer`].
//! * Expand a whole model to f32.
//!
//! # Testing
//!
//! `cargo test --release -p weir-models` needs no weights: tests write seeded tiny checkpoints and compare with
//! candle-transformers. With `WEIR_TEST_MODELS` naming a folder that holds `smollm2-135m-instruct` and `all-minilm-l6-v2`,
//! the tests on real weights run, too, and fail if the files are not there.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bert;
mod checkpoint;
mod config;
mod error;
mod file;
mod info;
mod json;
mod kv;
mod llama;
mod network;
mod source;
mod template;
mod tokenizer;

pub use bert::Bert;
pub use error::ModelError;
pub use info::{ModelInfo, ModelKind};
pub use kv::{BLOCK_LEN, KvStore};
pub use llama::{Llama, Row};
pub use source::{Model, ModelSource};
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
