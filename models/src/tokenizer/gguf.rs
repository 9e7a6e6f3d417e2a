//! Tokenizers out of GGUF headers.
//!
//! A GGUF file carries the vocabulary, the merges or scores, and the *name* of the rule that cuts a text into words
//! (`tokenizer.ggml.pre`), not the rule itself. The rules below are the ones the models' own `tokenizer.json` files state. A
//! name that is not listed is refused: a wrong rule gives plausible text and wrong ids.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, PostProcessorWrapper};

use super::pipeline::{Pipeline, SharedModel};
use super::spelling::Spelling;
use super::spm::Spm;
use super::words::{Cutter, DIGIT, GPT2, LLAMA3, QWEN2, TEKKEN};
use super::{Tokenizer, VOCABULARY_MAX, checked};
use crate::ModelError;
use crate::checkpoint::gguf::Header;

/// How a byte-level vocabulary cuts text into words.
struct WordRule {
    /// Applied one after the other; each match is a word of its own.
    splits: &'static [&'static str],
    /// Compose accents first.
    nfc: bool,
    /// A word that is a token is that token, whatever the merges say.
    ignore_merges: bool,
    /// A text begins with the beginning-of-text token unless the file says otherwise.
    adds_bos: bool,
}

fn word_rule(pre: &str) -> Option<WordRule> {
    let rule = |splits| WordRule { splits, nfc: false, ignore_merges: false, adds_bos: false };
    Some(match pre {
        "gpt-2" | "gpt2" | "default" | "mpt" | "olmo" | "jais" | "phi-2" => rule(&[GPT2]),
        // Digits one by one, then as GPT-2.
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => rule(&[DIGIT, GPT2]),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" => {
            WordRule { ignore_merges: true, adds_bos: true, ..rule(&[LLAMA3]) }
        }
        "smaug-bpe" | "dbrx" => rule(&[LLAMA3]),
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" => WordRule { nfc: true, ..rule(&[QWEN2]) },
        "tekken" => WordRule { ignore_merges: true, adds_bos: true, ..rule(&[TEKKEN]) },
        _ => return None,
    })
}

/// Kinds of tokens, as the format numbers them.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// Builds the tokenizer that the header of a GGUF file describes; `bytes` is the file.
pub(crate) fn from_gguf(path: &Path, header: &Header, bytes: &[u8]) -> Result<Tokenizer, ModelError> {
    let unsupported = |reason: String| ModelError::Unsupported { path: path.to_owned(), reason };
    let damaged = |reason: &str| ModelError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    let kind = header.text("tokenizer.ggml.model").ok_or_else(|| unsupported("it holds no tokenizer".into()))?;
    let tokens = header
        .texts(bytes, "tokenizer.ggml.tokens")
        .ok_or_else(|| damaged("tokenizer.ggml.tokens is missing or no list of strings"))?;
    if tokens.is_empty() || tokens.len() > VOCABULARY_MAX {
        return Err(damaged("its vocabulary is empty or too large"));
    }
    let types = header.numbers(bytes, "tokenizer.ggml.token_type").unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(damaged("tokenizer.ggml.token_type and tokenizer.ggml.tokens differ in length"));
    }

    let (mut pipeline, spelling, adds_bos) = match kind {
        "gpt2" => {
            let pre = header.text("tokenizer.ggml.pre").unwrap_or("default");
            let rule = word_rule(pre)
                .ok_or_else(|| unsupported(format!("its word rule `{pre}` (tokenizer.ggml.pre) is not known")))?;
            let merges = header
                .texts(bytes, "tokenizer.ggml.merges")
                .ok_or_else(|| damaged("tokenizer.ggml.merges is missing or no list of strings"))?;
            (byte_level(&tokens, &merges, &rule)?, Spelling::ByteLevel, rule.adds_bos)
        }
        "llama" => {
            let scores = header
                .numbers(bytes, "tokenizer.ggml.scores")
                .filter(|scores| scores.len() == tokens.len())
                .ok_or_else(|| damaged("tokenizer.ggml.scores does not match tokenizer.ggml.tokens"))?;
            let prefix = header.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
            let unknown = header.u32("tokenizer.ggml.unknown_token_id").filter(|id| (*id as usize) < tokens.len());
            (sentence_piece(&tokens, &scores, prefix, unknown)?, Spelling::SentencePiece, true)
        }
        other => {
            return Err(unsupported(format!("its tokenizer model `{other}` is not read (gpt2 and llama are)")));
        }
    };

    let added = tokens.iter().zip(&types).filter_map(|(token, kind)| {
        let special = match *kind {
            UNKNOWN | CONTROL => true,
            USER_DEFINED => false,
            _ => return None,
        };
        Some(AddedToken::from(*token, special).normalized(false))
    });
    pipeline.add_tokens(added).map_err(ModelError::tokenizer)?;

    let token = |key: &str, on: bool| {
        let id = header.u32(key).filter(|_| on)?;
        tokens.get(id as usize).map(|token| (*token, id))
    };
    let adds_bos = header.bool("tokenizer.ggml.add_bos_token").unwrap_or(adds_bos);
    let adds_eos = header.bool("tokenizer.ggml.add_eos_token").unwrap_or(false);
    let bos = token("tokenizer.ggml.bos_token_id", adds_bos);
    let eos = token("tokenizer.ggml.eos_token_id", adds_eos);
    pipeline.with_post_processor(around(bos, eos)?);

    Tokenizer::assemble(pipeline, spelling, tokens.iter().zip(0..).map(|(token, id)| (*token, id)))
}

/// Whether texts begin with the beginning-of-text token.
pub(crate) fn adds_bos(header: &Header) -> bool {
    header.bool("tokenizer.ggml.add_bos_token").unwrap_or_else(|| match header.text("tokenizer.ggml.model") {
        Some("llama") => true,
        Some("gpt2") => header.text("tokenizer.ggml.pre").and_then(word_rule).is_some_and(|rule| rule.adds_bos),
        _ => false,
    })
}

fn byte_level(tokens: &[&str], merges: &[&str], rule: &WordRule) -> Result<Pipeline, ModelError> {
    let vocabulary: Vocab = tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id)).collect();
    let merges = merges
        .iter()
        .map(|merge| {
            // A token may itself begin with the separator, so it is looked for behind the first character.
            let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
            at.map(|at| (merge[..at].to_owned(), merge[at + 1..].to_owned()))
                .ok_or_else(|| ModelError::tokenizer(format!("the merge `{merge}` is no pair")))
        })
        .collect::<Result<Vec<(String, String)>, _>>()?;
    let pairs = merges.iter().map(|(left, right)| (left.as_str(), right.as_str()));
    checked::check_merges(pairs, "", |token| vocabulary.contains_key(token)).map_err(ModelError::tokenizer)?;
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(rule.ignore_merges)
        .cache_capacity(0)
        .build()
        .map_err(ModelError::tokenizer)?;
    let mut pipeline = Pipeline::new(SharedModel::from(ModelWrapper::BPE(bpe)));
    let mut steps: Vec<Value> = rule
        .splits
        .iter()
        .map(|regex| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}))
        .collect();
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}));
    let pre_tokenizer: tokenizers::PreTokenizerWrapper =
        serde_json::from_value(json!({"type": "Sequence", "pretokenizers": steps})).map_err(ModelError::tokenizer)?;
    pipeline.with_pre_tokenizer(Some(Cutter::new(pre_tokenizer)?));
    if rule.nfc {
        pipeline.with_normalizer(Some(tokenizers::normalizers::unicode::NFC)).map_err(ModelError::tokenizer)?;
    }
    Ok(pipeline)
}

fn sentence_piece(
    tokens: &[&str],
    scores: &[f64],
    space_prefix: bool,
    unknown: Option<u32>,
) -> Result<Pipeline, ModelError> {
    let pieces = tokens.iter().map(|token| (*token).to_owned()).collect();
    let scores = scores.iter().map(|score| *score as f32).collect();
    let mut pipeline = Pipeline::new(SharedModel::from(Spm::new(pieces, scores, unknown)));
    let mut steps = Vec::new();
    if space_prefix {
        steps.push(json!({"type": "Prepend", "prepend": "▁"}));
    }
    steps.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
    let normalizer: tokenizers::NormalizerWrapper =
        serde_json::from_value(json!({"type": "Sequence", "normalizers": steps})).map_err(ModelError::tokenizer)?;
    pipeline.with_normalizer(Some(normalizer)).map_err(ModelError::tokenizer)?;
    Ok(pipeline)
}

/// What is put around a text: `bos` before, `eos` behind.
fn around(bos: Option<(&str, u32)>, eos: Option<(&str, u32)>) -> Result<Option<PostProcessorWrapper>, ModelError> {
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let special = |(token, _): (&str, u32)| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let mut single: Vec<Value> = bos.map(special).into_iter().collect();
    single.push(text("A"));
    single.extend(eos.map(special));
    let mut pair = single.clone();
    pair.push(text("B"));
    let specials: serde_json::Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(token, id)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    serde_json::from_value(
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials}),
    )
    .map(Some)
    .map_err(ModelError::tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Mapping;

    /// llama.cpp publishes vocabularies without weights, texts, and the ids that the models' own tokenizers give them
    /// (`models/ggml-vocab-*.gguf`, `.inp`, `.out` of its sources; 75 MB, so not kept here). Runs where
    /// `WEIR_TEST_VOCABULARIES` names a folder with them.
    #[test]
    fn published_vocabularies_give_published_ids() {
        let Some(folder) = std::env::var_os("WEIR_TEST_VOCABULARIES") else { return };
        let mut failed = Vec::new();
        for name in ["llama-bpe", "llama-spm", "qwen2", "gpt-2", "starcoder", "refact", "command-r", "phi-3", "mpt"] {
            let path = Path::new(&folder).join(format!("ggml-vocab-{name}.gguf"));
            let text = |ending: &str| {
                let path = Path::new(&folder).join(format!("ggml-vocab-{name}.gguf.{ending}"));
                std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            };
            let file = Mapping::open(&path).unwrap();
            let header = Header::parse(&path, file.bytes()).unwrap();
            let tokenizer = from_gguf(&path, &header, file.bytes()).unwrap();
            let (inputs, outputs) = (text("inp"), text("out"));
            let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
            let outputs: Vec<&str> = outputs.lines().collect();
            assert_eq!(inputs.len(), outputs.len() + 1, "a separator ends the file");
            for (input, output) in inputs.iter().zip(outputs) {
                let expected: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
                let got = tokenizer.encode_text(input, false).unwrap();
                if got != expected {
                    failed.push(format!("{name}: {input:?}\n  got      {got:?}\n  expected {expected:?}"));
                }
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }
}
