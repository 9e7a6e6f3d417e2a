//! Every parser of outside bytes by name, for `fuzz/` and the replay of its corpora.

use weir_runtime::fuzzing;

use crate::{
    error::ApiError,
    openai::{chat::ChatRequest, completion::CompletionRequest, embedding::EmbeddingRequest},
};

/// What a target is: it takes any bytes, and returns.
pub type Target = fn(&[u8]);

/// The targets: the name of each is that of its file in `fuzz/fuzz_targets` and of its folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 9] = [
    ("chat", chat),
    ("completion", completion),
    ("embedding", embedding),
    ("template", fuzzing::template),
    ("gguf", fuzzing::gguf),
    ("safetensors", fuzzing::safetensors),
    ("tokenizer", fuzzing::tokenizer),
    ("to_executor", fuzzing::to_executor),
    ("from_executor", fuzzing::from_executor),
];

/// Gives the bytes to the target of that name.
pub fn run(target: &str, bytes: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of the list");
    run(bytes);
}

/// The body of a chat request.
fn chat(bytes: &[u8]) {
    accepted_or_refused(ChatRequest::parse(bytes));
}

/// The body of a completions request.
fn completion(bytes: &[u8]) {
    accepted_or_refused(CompletionRequest::parse(bytes));
}

/// The body of an embeddings request.
fn embedding(bytes: &[u8]) {
    accepted_or_refused(EmbeddingRequest::parse(bytes));
}

/// Whatever a body holds, it is the caller's fault, and said in few words.
fn accepted_or_refused<T>(parsed: Result<T, ApiError>) {
    if let Err(error) = parsed {
        assert_eq!(error.status().as_u16(), 400, "{error}");
        assert!(error.body().len() < 4096, "{error}");
    }
}
