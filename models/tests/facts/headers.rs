//! Files from outside: damaged and hostile headers end in an error that names the damage, never in a panic.

use std::path::Path;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use proptest::prelude::*;
use serde_json::json;
use weir_models::{ModelError, ModelSource};

use crate::support::{Tiny, write_folder};

/// A GGUF file put together by hand, right or wrong.
#[derive(Clone)]
struct Raw {
    version: u32,
    /// Key, type number, bytes of the value.
    pairs: Vec<(&'static str, u32, Vec<u8>)>,
    /// Name, dimensions in file order, type number, offset.
    tensors: Vec<(&'static str, Vec<u64>, u32, u64)>,
    /// What the header says about their number, when that is a lie.
    counts: Option<(u64, u64)>,
    data: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Raw {
    fn new() -> Self {
        Self {
            version: 3,
            pairs: vec![("general.architecture", 8, text("llama"))],
            tensors: vec![("token_embd.weight", vec![32, 4], 0, 0), ("b", vec![8], 0, 512)],
            counts: None,
            data: 544,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        let (tensors, pairs) = self.counts.unwrap_or((self.tensors.len() as u64, self.pairs.len() as u64));
        out.extend(tensors.to_le_bytes());
        out.extend(pairs.to_le_bytes());
        for (key, kind, value) in &self.pairs {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for (name, dims, kind, offset) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32) + self.data, 0);
        out
    }

    fn open(&self) -> ModelError {
        open_bytes("model.gguf", &self.bytes())
    }
}

fn open_bytes(name: &str, bytes: &[u8]) -> ModelError {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    if name.ends_with(".safetensors") {
        let config = Tiny::default().json("LlamaForCausalLM", json!({}));
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        ModelSource::open(folder.path()).unwrap_err()
    } else {
        ModelSource::open(&path).unwrap_err()
    }
}

#[test]
fn the_file_by_hand_passes_the_header() {
    // It ends where the configuration begins, so the cases below fail for the reason they state.
    let error = Raw::new().open();
    assert!(
        matches!(error, ModelError::Unsupported { .. }) && error.to_string().contains("llama.embedding"),
        "{error}"
    );
}

#[test]
fn damaged_gguf_headers_are_refused() {
    type Change = fn(&mut Raw);
    let cases: [(&str, Change); 22] = [
        ("tensors and", |raw| raw.counts = Some((u64::MAX, 1))),
        ("values", |raw| raw.counts = Some((2, 1 << 40))),
        ("past the end", |raw| raw.data = 32),
        ("overlap", |raw| raw.tensors[1].3 = 480),
        ("appears twice", |raw| raw.tensors[1].0 = "token_embd.weight"),
        ("off the alignment", |raw| raw.tensors[1].3 = 513),
        ("past the end", |raw| raw.tensors[1].3 = u64::MAX - 31),
        ("5 dimensions", |raw| raw.tensors[0].1 = vec![1; 5]),
        ("0 dimensions", |raw| raw.tensors[0].1 = vec![]),
        ("empty dimension", |raw| raw.tensors[0].1 = vec![32, 0]),
        ("does not fit", |raw| raw.tensors[0].1 = vec![1 << 40, 1 << 40]),
        ("does not fit", |raw| raw.tensors[0] = ("token_embd.weight", vec![33, 4], 2, 0)),
        ("appears twice", |raw| raw.pairs.push(("general.architecture", 8, text("qwen2")))),
        ("no power of two", |raw| raw.pairs.push(("general.alignment", 4, 48u32.to_le_bytes().to_vec()))),
        ("no power of two", |raw| raw.pairs.push(("general.alignment", 4, 0u32.to_le_bytes().to_vec()))),
        ("no power of two", |raw| raw.pairs.push(("general.alignment", 4, (1u32 << 31).to_le_bytes().to_vec()))),
        ("no power of two", |raw| raw.pairs.push(("general.alignment", 8, text("32")))),
        ("not UTF-8", |raw| raw.pairs.push(("odd", 8, [&1u64.to_le_bytes()[..], &[0xff]].concat()))),
        ("a boolean of value 2", |raw| raw.pairs.push(("flag", 7, vec![2]))),
        ("value type 13", |raw| raw.pairs.push(("odd", 13, vec![]))),
        ("elements", |raw| {
            raw.pairs.push(("list", 9, [&4u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()[..]].concat()));
        }),
        ("a string of", |raw| raw.pairs.push(("long", 8, u64::MAX.to_le_bytes().to_vec()))),
    ];
    for (why, change) in cases {
        let mut raw = Raw::new();
        change(&mut raw);
        let error = raw.open();
        assert!(matches!(error, ModelError::Damaged { .. }) && error.to_string().contains(why), "{why}: {error}");
    }
}

#[test]
fn a_file_cut_off_anywhere_in_its_header_is_damaged() {
    let bytes = Raw::new().bytes();
    for end in 1..bytes.len() - 544 {
        let error = open_bytes("model.gguf", &bytes[..end]);
        assert!(matches!(error, ModelError::Damaged { .. }), "cut at {end}: {error}");
    }
}

#[test]
fn gguf_files_that_are_not_read_say_why() {
    type Change = fn(&mut Raw);
    let cases: [(&str, Change); 5] = [
        ("version 1", |raw| raw.version = 1),
        ("big-endian", |raw| raw.version = 3u32.swap_bytes()),
        ("unknown type number 99", |raw| raw.tensors[0].2 = 99),
        ("split model", |raw| raw.pairs.push(("split.count", 2, 2u16.to_le_bytes().to_vec()))),
        ("`gemma3`", |raw| raw.pairs[0].2 = text("gemma3")),
    ];
    for (why, change) in cases {
        let mut raw = Raw::new();
        change(&mut raw);
        let error = raw.open();
        assert!(matches!(error, ModelError::Unsupported { .. }) && error.to_string().contains(why), "{why}: {error}");
    }
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()[..]].concat();
    let mut raw = Raw::new();
    raw.pairs.push(("nested", 9, nested));
    assert!(raw.open().to_string().contains("elements of type 9"));
}

#[test]
fn a_type_that_cannot_be_read_is_named_with_its_tensor() {
    let mut raw = Raw::new();
    raw.tensors = vec![("token_embd.weight", vec![256, 2], 16, 0)];
    let error = raw.open();
    assert!(matches!(error, ModelError::TensorType { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("token_embd.weight") && message.contains("IQ2_XXS"), "{message}");
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut out = text(header);
    out.resize(out.len() + data, 0);
    out
}

#[test]
fn damaged_safetensors_headers_are_refused() {
    let entry = r#"{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#;
    for (why, bytes) in [
        ("shorter than a header", vec![1, 2, 3]),
        ("does not fit the file", u64::MAX.to_le_bytes().to_vec()),
        ("no tensor directory", safetensors("{", 0)),
        ("no tensor directory", safetensors("[]", 0)),
        ("past the end", safetensors(&format!(r#"{{"a":{entry}}}"#), 15)),
        ("twice", safetensors(&format!(r#"{{"a":{entry},"a":{entry}}}"#), 16)),
        ("overlap", safetensors(&format!(r#"{{"a":{entry},"b":{entry}}}"#), 16)),
        ("cannot lie", safetensors(r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,12]}}"#, 16)),
        ("cannot lie", safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[16,8]}}"#, 16)),
        ("overflows", safetensors(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0)),
        ("dimensions", safetensors(r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1],"data_offsets":[0,4]}}"#, 4)),
        ("unknown type Q9", safetensors(r#"{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}"#, 4)),
        ("no tensor directory", safetensors(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4)),
    ] {
        let error = open_bytes("model.safetensors", &bytes);
        assert!(matches!(error, ModelError::Damaged { .. }) && error.to_string().contains(why), "{why}: {error}");
    }
}

#[test]
fn an_index_joins_files_and_stays_in_its_folder() {
    let tiny = Tiny::default();
    let weights = tiny.weights(1);
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &tiny.json("LlamaForCausalLM", json!({})), &weights, DType::F32);
    let whole = ModelSource::open(folder.path()).unwrap().info().clone();
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let (first, second): (Vec<_>, Vec<_>) =
        weights.iter().partition(|(name, _)| name.contains("layers.1") || name.contains("lm_head"));
    let mut map = serde_json::Map::new();
    for (file, part) in [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)] {
        let part: crate::support::Tensors = part.into_iter().map(|(name, t)| (name.clone(), t.clone())).collect();
        part.keys().for_each(|name| drop(map.insert(name.clone(), file.into())));
        candle_core::safetensors::save(&part, folder.path().join(file)).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    assert!(ModelSource::open(folder.path()).unwrap_err().to_string().contains("several"), "without the index");
    std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert_eq!(*ModelSource::open(folder.path()).unwrap().info(), whole);
    std::fs::write(&index, r#"{"weight_map": {"a": "../../etc/passwd"}}"#).unwrap();
    assert!(ModelSource::open(folder.path()).unwrap_err().to_string().contains("outside the folder"));
}

#[test]
fn paths_that_hold_no_model_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| ModelSource::open(path).unwrap_err();
    assert!(matches!(open(&folder.path().join("nowhere")), ModelError::Unreadable { .. }));
    assert!(open(folder.path()).to_string().contains("neither a config.json nor a .gguf"));
    std::fs::write(folder.path().join("a.txt"), "x").unwrap();
    assert!(open(&folder.path().join("a.txt")).to_string().contains("must be a .gguf"));
    for name in ["a.gguf", "b.gguf"] {
        std::fs::write(folder.path().join(name), "GGUF").unwrap();
    }
    assert!(open(folder.path()).to_string().contains("a.gguf, b.gguf"));
    std::fs::write(folder.path().join("empty.gguf"), "").unwrap();
    assert!(matches!(
        open(&folder.path().join("empty.gguf")),
        ModelError::Damaged { .. } | ModelError::Unreadable { .. }
    ));
}

#[test]
fn what_is_no_regular_file_is_never_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::default();
    let config = tiny.json("LlamaForCausalLM", json!({}));
    write_folder(folder.path(), &config, &tiny.weights(1), DType::F32);
    let path = |name: &str| folder.path().join(name);
    let pipe = |name: &str| assert!(std::process::Command::new("mkfifo").arg(path(name)).status().unwrap().success());
    // Opening a pipe waits for a writer, and there is none.
    std::fs::write(path("model.safetensors.index.json"), json!({"weight_map": {"a": "pipe"}}).to_string()).unwrap();
    pipe("pipe");
    let error = ModelSource::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
    std::fs::remove_file(path("pipe")).unwrap();
    std::fs::create_dir(path("pipe")).unwrap();
    let error = ModelSource::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
    std::fs::remove_file(path("model.safetensors.index.json")).unwrap();
    pipe("tokenizer.json");
    let error = ModelSource::open(folder.path()).unwrap().tokenizer().unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
    pipe("model.gguf");
    assert!(ModelSource::open(&path("model.gguf")).is_err());
}

#[test]
fn numbers_that_make_no_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::default();
    let weights = tiny.weights(1);
    let open = |config: &str| {
        write_folder(folder.path(), &tiny.json("LlamaForCausalLM", json!({})), &weights, DType::F32);
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        ModelSource::open(folder.path()).unwrap_err().to_string()
    };
    for (why, change) in [
        ("`num_attention_heads` is 0", json!({"num_attention_heads": 0})),
        ("cannot share", json!({"num_key_value_heads": 3})),
        ("cannot be shared by 5 heads", json!({"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": null})),
        ("`num_hidden_layers` is 1000000000", json!({"num_hidden_layers": 1_000_000_000})),
        ("`vocab_size` is 2147483648", json!({"vocab_size": 1u64 << 31})),
        ("`max_position_embeddings` is 0", json!({"max_position_embeddings": 0})),
        ("too large to be run", json!({"max_position_embeddings": 1 << 24})),
        ("`rope_theta` is 0", json!({"rope_theta": 0.0})),
        ("`rope_theta` is -1", json!({"rope_theta": -1.0})),
        ("`rms_norm_eps` is -1", json!({"rms_norm_eps": -1.0})),
        ("invalid value", json!({"hidden_size": -64})),
    ] {
        let error = open(&tiny.json("LlamaForCausalLM", change).to_string());
        assert!(error.contains(why), "{why}: {error}");
    }
    let config = tiny.json("LlamaForCausalLM", json!({})).to_string();
    for (why, text) in [
        ("number out of range", config.replacen('{', r#"{"rope_theta": 1e999,"#, 1)),
        ("expected value", config.replacen('{', r#"{"rope_theta": NaN,"#, 1)),
        ("appears twice", config.replacen('{', r#"{"odd": {"a": 1, "a": 2},"#, 1)),
        ("recursion limit", format!("{{\"odd\": {}", "[".repeat(200_000))),
        ("larger than", format!("{{\"odd\": \"{}\"}}", "x".repeat(17 << 20))),
        ("is empty", String::new()),
    ] {
        let error = open(&text);
        assert!(error.contains(why), "{why}: {error}");
    }
}

fn small_gguf() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let tiny = Tiny { layers: 1, hidden: 32, intermediate: 32, heads: 2, kv_heads: 1, vocab: 8, ..Tiny::default() };
    tiny.write_gguf(&path, "llama", &tiny.weights(2), GgmlDType::Q8_0);
    std::fs::read(&path).unwrap()
}

fn small_safetensors() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::default();
    write_folder(folder.path(), &tiny.json("LlamaForCausalLM", json!({})), &tiny.weights(3), DType::F16);
    std::fs::read(folder.path().join("model.safetensors")).unwrap()
}

/// Opening must come back, with whatever answer; a file that still opens must also give its tokenizer's refusal.
fn open_any(name: &str, bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), bytes).unwrap();
    if name.ends_with(".safetensors") {
        let config = Tiny::default().json("LlamaForCausalLM", json!({}));
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    }
    if let Ok(source) = ModelSource::open(folder.path()) {
        assert!(source.tokenizer().is_err(), "there is none");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn flipped_bytes_never_panic(
        flips in prop::collection::vec((0usize..3000, any::<u8>()), 1..6),
        end in prop::option::of(0usize..3000),
        gguf in any::<bool>(),
    ) {
        let (name, mut bytes) =
            if gguf { ("model.gguf", small_gguf()) } else { ("model.safetensors", small_safetensors()) };
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Some(end) = end {
            bytes.truncate(end);
        }
        open_any(name, &bytes);
    }
}
