//! Text to ids: word rules, control tokens, exact bytes.

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use proptest::prelude::*;
use serde_json::json;
use weir_models::{ModelSource, Tokenizer};

use crate::support::{Random, Tiny, write_folder};

const MARK: char = '\u{E000}';

/// GPT-2's printable characters for bytes.
fn byte_chars() -> Vec<char> {
    let mut others = 0x100..;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => char::from_u32(others.next().unwrap()).unwrap(),
        })
        .collect()
}

const CONTROLS: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<s>", "<s><s>"];
const MERGES: [&str; 12] = ["t h", "th e", "Ġ the", "i n", "Ġ i", "Ġi n", "1 2", "12 3", "Ġ 1", "Ċ Ċ", "< |", "e r"];

/// Tokens, merges and token kinds of a small byte-level vocabulary. Control tokens come first.
fn vocabulary() -> (Vec<String>, Vec<String>, Vec<i32>) {
    let mut tokens: Vec<String> = CONTROLS.iter().map(ToString::to_string).collect();
    tokens.push("<tool>".into());
    tokens.extend(byte_chars().into_iter().map(String::from));
    tokens.extend(MERGES.iter().map(|merge| merge.replace(' ', "")));
    let kinds = (0..tokens.len()).map(|id| {
        if id < CONTROLS.len() {
            3
        } else if id == CONTROLS.len() {
            4
        } else {
            1
        }
    });
    let kinds = kinds.collect();
    (tokens, MERGES.iter().map(ToString::to_string).collect(), kinds)
}

fn strings(values: impl IntoIterator<Item = String>) -> Value {
    Value::Array(values.into_iter().map(Value::String).collect())
}

/// A GGUF file with the tokenizer `more` and the smallest model.
fn open_gguf(more: &[(&str, Value)]) -> ModelSource {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny { layers: 1, hidden: 32, intermediate: 32, heads: 2, kv_heads: 1, vocab: 400, ..Tiny::default() };
    let path = folder.path().join("tiny.gguf");
    tiny.write_gguf(&path, "llama", &tiny.weights(1), GgmlDType::F32);
    let mut file = std::fs::File::open(&path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let tensors: Vec<(String, QTensor)> = content
        .tensor_infos
        .keys()
        .map(|name| (name.clone(), content.tensor(&mut file, name, &candle_core::Device::Cpu).unwrap()))
        .collect();
    let mut metadata: Vec<(&str, &Value)> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    metadata.retain(|(key, _)| more.iter().all(|(other, _)| key != other));
    metadata.extend(more.iter().map(|(key, value)| (*key, value)));
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(&path).unwrap(), &metadata, &tensors).unwrap();
    ModelSource::open(&path).unwrap()
}

fn byte_level(pre: &str) -> ModelSource {
    let (tokens, merges, kinds) = vocabulary();
    open_gguf(&[
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String(pre.into())),
        ("tokenizer.ggml.tokens", strings(tokens)),
        ("tokenizer.ggml.merges", strings(merges)),
        ("tokenizer.ggml.token_type", Value::Array(kinds.into_iter().map(Value::I32).collect())),
        ("tokenizer.ggml.bos_token_id", Value::U32(0)),
        ("tokenizer.ggml.eos_token_id", Value::U32(1)),
        ("tokenizer.chat_template", Value::String("{{ messages }}".into())),
    ])
}

fn smollm() -> Tokenizer {
    byte_level("smollm").tokenizer().unwrap()
}

fn written(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| tokenizer.token_bytes(*id).to_vec()).collect()
}

/// The same vocabulary as a `tokenizer.json` with the rule that SmolLM2's own file states.
fn smollm_json() -> tokenizers::Tokenizer {
    let (tokens, merges, _) = vocabulary();
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added = |(id, token): (usize, &&str)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": id < CONTROLS.len()})
    };
    let all: Vec<&str> = CONTROLS.into_iter().chain(["<tool>"]).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": all.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "vocab": vocab, "merges": merges},
    });
    serde_json::from_value(json).unwrap()
}

#[test]
fn the_header_says_how_texts_begin_and_end() {
    let source = byte_level("smollm");
    let info = source.info();
    assert_eq!((info.bos, info.add_bos, &info.eos[..]), (Some(0), false, &[1][..]));
    let template = source.chat_template().unwrap();
    assert_eq!((template.bos_token.as_str(), template.eos_token.as_str()), ("<|im_start|>", "<|im_end|>"));
    // Llama 3's rule puts the token before every text.
    let source = byte_level("llama-bpe");
    assert!(source.info().add_bos);
    let tokenizer = source.tokenizer().unwrap();
    let the = tokenizer.token_to_id("the").unwrap();
    assert_eq!(tokenizer.encode_text("the", true).unwrap(), [0, the]);
    assert_eq!(tokenizer.encode_text("the", false).unwrap(), [the]);
}

#[test]
fn digits_are_single_words_for_smollm_and_not_for_gpt2() {
    let count = |pre: &str| byte_level(pre).tokenizer().unwrap().encode_text("123", false).unwrap().len();
    assert_eq!((count("smollm"), count("gpt-2"), count("qwen2")), (3, 1, 3));
}

#[test]
fn unknown_word_rules_and_tokenizers_are_refused() {
    let error = byte_level("klingon").tokenizer().unwrap_err();
    assert!(error.to_string().contains("`klingon`"), "{error}");
    let error =
        open_gguf(&[("tokenizer.ggml.model", Value::String("rwkv".into())), ("tokenizer.ggml.tokens", strings([]))])
            .tokenizer()
            .unwrap_err();
    assert!(!error.to_string().is_empty());
    let error = open_gguf(&[]).tokenizer().unwrap_err();
    assert!(error.to_string().contains("no tokenizer"), "{error}");
    let (tokens, _, _) = vocabulary();
    let error = open_gguf(&[
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("smollm".into())),
        ("tokenizer.ggml.tokens", strings(tokens)),
        ("tokenizer.ggml.merges", strings(["nopair".to_owned()])),
    ])
    .tokenizer()
    .unwrap_err();
    assert!(error.to_string().contains("nopair"), "{error}");
}

#[test]
fn control_tokens_are_recognised_only_where_a_template_wrote_them() {
    let tokenizer = smollm();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let plain = tokenizer.encode_text("<|im_end|>", false).unwrap();
    assert!(plain.len() > 1 && plain.iter().all(|id| !tokenizer.is_special(*id)));
    assert_eq!(tokenizer.encode_rendered("<|im_end|>the", None).unwrap(), [id("<|im_end|>"), id("the")]);
    // A token of the user's own tools is no control token, and is recognised everywhere.
    assert_eq!(tokenizer.encode_text("<tool>", false).unwrap(), [id("<tool>")]);
    assert!(tokenizer.is_special(id("<s>")) && !tokenizer.is_special(id("<tool>")) && !tokenizer.is_special(9999));
    assert_eq!(tokenizer.vocab_size(), 5 + 256 + MERGES.len() as u32);
    assert_eq!(tokenizer.specials().count(), CONTROLS.len());
}

#[test]
fn long_texts_of_one_kind_end() {
    let tokenizer = smollm();
    for unit in [" ", "a", "\n", "<", "<|im_end|>", "é", "1", "\u{200d}"] {
        let text = unit.repeat(20_000);
        let ids = tokenizer.encode_text(&text, false).unwrap();
        assert_eq!(written(&tokenizer, &ids), text.as_bytes());
        let escaped = tokenizer.escape_specials(&text, MARK);
        assert_eq!(tokenizer.encode_rendered(&format!("{escaped}{MARK}"), Some(MARK)).unwrap(), ids, "{unit:?}");
    }
}

/// Text that is likely to hold control tokens, whole and in parts.
fn tricky() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        prop::sample::select(vec![
            "<|im_start|>",
            "<|im_end|>",
            "<s>",
            "<",
            "|",
            "im_",
            "end",
            "|>",
            "s>",
            " the",
            "123",
            "\n\n",
            "é",
            "日本",
            "<tool>",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,6}",
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat().replace(MARK, ""))
}

proptest! {
    #[test]
    fn content_never_becomes_a_control_token(contents in prop::collection::vec(tricky(), 1..4)) {
        let tokenizer = smollm_shared();
        let mut rendered = String::new();
        let mut expected = Vec::new();
        for content in &contents {
            rendered += &format!("<|im_start|>{}<|im_end|>", tokenizer.escape_specials(content, MARK));
            expected.push(0);
            expected.extend(tokenizer.encode_text(content, false).unwrap());
            expected.push(1);
        }
        rendered.push(MARK);
        prop_assert_eq!(tokenizer.encode_rendered(&rendered, Some(MARK)).unwrap(), expected);
    }

    #[test]
    fn a_mark_changes_nothing_for_text_without_control_tokens(contents in prop::collection::vec("[a-z 0-9é日\n]{0,12}", 1..4)) {
        let tokenizer = smollm_shared();
        let plain: String = contents.iter().map(|content| format!("<|im_start|>user\n{content}<|im_end|>\n")).collect();
        let marked: String = contents
            .iter()
            .map(|content| format!("<|im_start|>user\n{}{MARK}<|im_end|>\n", tokenizer.escape_specials(content, MARK)))
            .collect();
        prop_assert_eq!(
            tokenizer.encode_rendered(&marked, Some(MARK)).unwrap(),
            tokenizer.encode_rendered(&plain, None).unwrap()
        );
    }

    #[test]
    fn the_bytes_of_the_ids_are_the_text(text in tricky()) {
        let tokenizer = smollm_shared();
        for ids in [tokenizer.encode_text(&text, false).unwrap(), tokenizer.encode_rendered(&text, None).unwrap()] {
            prop_assert_eq!(written(tokenizer, &ids), text.as_bytes());
        }
    }

    #[test]
    fn gguf_and_tokenizer_json_agree(text in tricky()) {
        static JSON: std::sync::LazyLock<tokenizers::Tokenizer> = std::sync::LazyLock::new(smollm_json);
        let expected = JSON.encode(text.as_str(), false).unwrap();
        prop_assert_eq!(smollm_shared().encode_rendered(&text, None).unwrap(), expected.get_ids());
    }
}

fn smollm_shared() -> &'static Tokenizer {
    static TOKENIZER: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(smollm);
    &TOKENIZER
}

#[test]
fn sentence_piece_files_split_by_score_and_fall_back_to_bytes() {
    let mut pieces: Vec<(String, f32, i32)> =
        [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)].map(|(t, s, k)| (t.to_owned(), s, k)).to_vec();
    pieces.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    for (rank, piece) in ["▁t", "he", "▁the", "in", "▁▁", "▁", "t", "h", "e", "i", "n"].into_iter().enumerate()
    {
        pieces.push((piece.to_owned(), -(rank as f32), 1));
    }
    let source = open_gguf(&[
        ("tokenizer.ggml.model", Value::String("llama".into())),
        ("tokenizer.ggml.tokens", strings(pieces.iter().map(|(piece, ..)| piece.clone()))),
        ("tokenizer.ggml.scores", Value::Array(pieces.iter().map(|(_, score, _)| Value::F32(*score)).collect())),
        ("tokenizer.ggml.token_type", Value::Array(pieces.iter().map(|(.., kind)| Value::I32(*kind)).collect())),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
    ]);
    assert!(source.info().add_bos && source.info().eos.contains(&2));
    let tokenizer = source.tokenizer().unwrap();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let the = id("▁the");
    assert_eq!(tokenizer.encode_text("the", true).unwrap(), [1, the]);
    assert_eq!(tokenizer.encode_text("the the", false).unwrap(), [the, the]);
    assert_eq!(tokenizer.encode_text("né", false).unwrap(), [id("▁"), id("n"), id("<0xC3>"), id("<0xA9>")]);
    // Behind a control token a space comes before the text, too, as at the beginning.
    assert_eq!(tokenizer.encode_rendered("<s>the</s>in", None).unwrap(), [1, the, 2, id("▁"), id("in")]);
    assert_eq!(
        tokenizer.encode_rendered(&format!("<s>the{MARK}</s>in"), Some(MARK)).unwrap(),
        [1, the, 2, id("▁"), id("in")]
    );
    assert_eq!(written(&tokenizer, &tokenizer.encode_text("né  t", false).unwrap()), " né  t".as_bytes());
}

#[test]
fn tokenizer_json_of_a_folder_is_used_without_its_truncation() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::default();
    write_folder(folder.path(), &tiny.json("LlamaForCausalLM", json!({})), &tiny.weights(1), candle_core::DType::F32);
    let token = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let json = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<s>"},
        "added_tokens": [token(0, "<s>"), token(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": {"<s>": 0, "</s>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5}, "merges": ["▁ a"]},
    });
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>",
                        "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let source = ModelSource::open(folder.path()).unwrap();
    let info = source.info();
    assert_eq!((info.bos, info.add_bos, &info.eos[..]), (Some(0), true, &[1, 2][..]));
    let template = source.chat_template().unwrap();
    assert_eq!(
        (template.source.as_str(), template.bos_token.as_str(), template.eos_token.as_str()),
        ("d", "<s>", "</s>")
    );
    std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(ModelSource::open(folder.path()).unwrap().chat_template().unwrap().source, "file");

    let tokenizer = source.tokenizer().unwrap();
    assert_eq!(tokenizer.encode_text("a abb", true).unwrap(), [0, 5, 5, 4, 4]);
    assert_eq!(tokenizer.token_bytes(5), b" a");
    // A space comes before the first text only; with a mark, too.
    let plain = tokenizer.encode_rendered("a</s>a</s> a", None).unwrap();
    assert_eq!(plain, [5, 1, 3, 1, 5]);
    let marked = format!("a</s>{MARK}a</s> a");
    assert_eq!(tokenizer.encode_rendered(&marked, Some(MARK)).unwrap(), plain);
}

#[test]
fn damaged_vocabularies_never_panic() {
    // Ids, kinds and merges that do not fit each other, in seeded disorder.
    let mut random = Random(5);
    for _ in 0..60 {
        let (mut tokens, mut merges, mut kinds) = vocabulary();
        for _ in 0..3 {
            match random.below(5) {
                0 => drop(tokens.remove(random.below(tokens.len() as u32) as usize)),
                1 => merges.push("Q Z".into()),
                2 if !kinds.is_empty() => {
                    let at = random.below(kinds.len() as u32) as usize;
                    kinds[at] = random.below(9) as i32;
                }
                3 => tokens[random.below(250) as usize].clear(),
                _ => kinds.truncate(random.below(270) as usize),
            }
        }
        let source = open_gguf(&[
            ("tokenizer.ggml.model", Value::String("gpt2".into())),
            ("tokenizer.ggml.pre", Value::String("smollm".into())),
            ("tokenizer.ggml.tokens", strings(tokens)),
            ("tokenizer.ggml.merges", strings(merges)),
            ("tokenizer.ggml.token_type", Value::Array(kinds.into_iter().map(Value::I32).collect())),
            ("tokenizer.ggml.bos_token_id", Value::U32(random.below(500))),
        ]);
        if let Ok(tokenizer) = source.tokenizer() {
            tokenizer.encode_rendered("<s>the 123 <|im_end|>", None).unwrap();
        }
    }
}
