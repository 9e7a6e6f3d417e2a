//! Facts about models: what files may do, what a forward pass computes, what text becomes.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod boundaries;
mod decoders;
mod emulated;
#[path = "../../../kernels/tests/emulation/mod.rs"]
mod emulation;
mod encoders;
mod headers;
mod real;
mod support;
mod tokenizers;

/// Models move to an executor's thread; sources and tokenizers are shared by many.
const _: fn() = || {
    fn moves<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    moves::<weir_models::Model>();
    is_shared::<weir_models::KvStore>();
    is_shared::<weir_models::ModelSource>();
    is_shared::<weir_models::Tokenizer>();
};
