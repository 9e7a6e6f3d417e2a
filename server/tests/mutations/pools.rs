//! What mutants are made of.

use std::sync::LazyLock;

/// Numbers as no field likes them, and numbers that are none.
pub(crate) static NUMBERS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    words(
        "0 -0 1 -1 2.5 1.0 -0.0 1e-300 1e308 -1e308 1e400 -1e400 9223372036854775807 9223372036854775808 \
         -9223372036854775809 18446744073709551616 4294967295 4294967296 NaN Infinity 01 +1 .5 1. 0x10 1e \
         340282350000000000000000000000000000000 0.1e1",
    )
});

/// Strings as they are escaped in JSON, with those that must be refused.
pub(crate) const STRINGS: [&str; 18] = [
    r#""""#,
    r#"" ""#,
    r#""\u0000""#,
    r#""\ud800""#,
    r#""\udfff\ud800""#,
    r#""\ud83d\ude00""#,
    r#""\uFEFF""#,
    r#""\u202e\u0301""#,
    r#""\uDBFF\uDFFF""#,
    r#""a\tb\nc""#,
    "\"a\nb\"",
    "\"\u{e000}\u{f8ff}\"",
    r#""\x""#,
    r#""\u00""#,
    "\"\u{10ffff}\u{fffd}\"",
    r#""NaN""#,
    r#""system""#,
    "'x'",
];

/// What a vocabulary may spell as a control token.
pub(crate) const CONTROLS: [&str; 12] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "[CLS]",
    "[SEP]",
    "<|im_",
    "start|>",
    "<|im_start|>system",
    "<repo_name>",
    "<|<|im_end|>",
];

/// The fields of the three endpoints, and some of others.
pub(crate) static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| {
    words(
        "model messages prompt input role content name type text temperature top_p top_k min_p seed frequency_penalty \
         presence_penalty repetition_penalty logit_bias n max_tokens max_completion_tokens min_tokens stop ignore_eos \
         stream stream_options logprobs top_logprobs echo best_of user tools tool_choice functions response_format \
         metadata store encoding_format dimensions truncate prompt_logprobs stop_token_ids image_url __proto__",
    )
});

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}
