//! Threads and time: the engine that joins the scheduler's decisions with the executors' work.
//!
//! **Owns** every thread, every clock and every pool; the engine thread ([`Engine`]), the executors and their process
//! boundary ([`executor`]), templates, tokenising and detokenising, sampling, charges and the metrics registry.
//!
//! **Never** speaks HTTP, knows a wire type of the API, or decides what runs next: that is `weir-scheduler`'s.
//!
//! A request's path: [`Engine::submit`] renders, tokenises and checks on the caller's side, sends the engine thread a
//! message, and returns a [`TokenStream`]. The engine thread admits it, plans steps, sends batches to executors, judges
//! their reports, and writes text into the stream's bounded outbox. Dropping the stream cancels.
//!
//! **Test** with `cargo test --release -p weir-runtime`; everything but real weights runs on the `fake:` executor.

mod accounts;
pub mod billing;
mod card;
mod child;
mod codec;
mod complaint;
mod config;
mod cost_metrics;
mod device_metrics;
pub mod devices;
mod doctor;
mod engine;
mod error;
pub mod executor;
#[doc(hidden)]
pub mod fuzzing;
mod gpu;
mod gpu_program;
#[cfg(feature = "hub")]
pub mod hub;
pub mod inspect;
pub mod ledger;
pub mod make_model;
mod memory;
mod metrics;
mod node;
mod numbers;
mod outbox;
mod outlet;
pub mod probe;
pub mod quota;
mod recorder;
mod sampler;
mod status;
pub mod store;
mod stream;
mod submission;
mod telemetry;
mod why;

pub use accounts::Accounts;
pub use card::ModelCard;
pub use config::{
    DeviceConfig, DeviceKind, DeviceQuota, EngineConfig, ExecutorMode, FakeCost, FakeFaults, LOCALITY_QUANTUM,
    ModelLocation, ModelSpec, QuotaTerms, RequestQuota, TenantSpec, parse_duration,
};
pub use doctor::{Finding, FindingStatus, doctor};
pub use engine::{EMBED_INPUTS_MAX, EMBED_TOKENS_MAX, Engine, MODELS_LEN_MAX};
pub use error::{AddModelError, EngineError, FailureKind, NotReady, RequestFailure, SubmitError};
pub use executor::{DeviceChoice, executor_main};
pub use gpu::gpu_main;
pub use gpu_program::{GpuDevice, GpuFault, GpuProgram};
pub use inspect::{ModelFault, ModelRefusal};
pub use outbox::OUTBOX_BYTES_MAX;
pub use recorder::RecordConfig;
pub use stream::{FinishReason, StreamEvent, TokenLogprob, TokenStream, TopLogprob};
pub use submission::{
    ChatMessage, EmbedInput, EmbedSubmission, Embeddings, Prompt, SamplingParams, StopReason, Submission, Usage,
};
pub use weir_scheduler::{Cause, TenantId, Times};
pub use why::{Explanation, Place, RequestState};
