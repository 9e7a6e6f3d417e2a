//! The Llama family against candle-transformers, and a row's independence from everybody else.

use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models;
use serde_json::json;
use weir_models::{KvStore, ModelError, ModelSource, Row};

use crate::support::{BLOCKS, Random, Tensors, Tiny, bits, distance, load, write_folder};

/// Our keys and values are kept in f16, the oracle's in f32; logits here are of size one. A wrong rotation, mask, head order
/// or scale moves them by far more.
const TOLERANCE: f32 = 2e-2;

/// A function from ids to the logits behind the last.
type Oracle = Box<dyn FnMut(&[u32]) -> Tensor>;

fn input(ids: &[u32]) -> Tensor {
    Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

fn builder(weights: &Tensors) -> VarBuilder<'static> {
    VarBuilder::from_tensors(weights.clone(), DType::F32, &Device::Cpu)
}

fn assert_agrees(path: &Path, mut oracle: Oracle) {
    let mut ours = load(path, 2);
    let vocab = ours.info.vocab_size;
    for (seed, len) in [(1, 1), (2, 2), (3, 31), (4, 32), (5, 33), (6, 100)] {
        let ids = Random(seed).ids(len, vocab);
        let expected = oracle(&ids).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let got = ours.alone(&ids);
        let size = expected.iter().map(|x| x.abs()).fold(0.0, f32::max);
        assert!(size > 0.5, "the oracle's logits are alive: {size}");
        let off = distance(&got, &expected);
        assert!(off < TOLERANCE, "{len} tokens: off by {off}");
    }
}

fn folder_with(tiny: &Tiny, config: &serde_json::Value, weights: &Tensors) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(config["hidden_size"], tiny.hidden);
    write_folder(folder.path(), config, weights, DType::F32);
    folder
}

fn llama_oracle(config: &serde_json::Value, weights: &Tensors) -> Oracle {
    let config: models::llama::LlamaConfig = serde_json::from_value(config.clone()).unwrap();
    let config = config.into_config(false);
    let llama = models::llama::Llama::load(builder(weights), &config).unwrap();
    Box::new(move |ids| {
        let mut cache = models::llama::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
        llama.forward(&input(ids), 0, &mut cache).unwrap()
    })
}

#[test]
fn llama_agrees_with_the_oracle() {
    for (tied, kv_heads) in [(false, 2), (true, 1), (true, 4)] {
        let tiny = Tiny { tied, kv_heads, ..Tiny::default() };
        let config = tiny.json("LlamaForCausalLM", json!({}));
        let weights = tiny.weights(7);
        let folder = folder_with(&tiny, &config, &weights);
        assert_agrees(folder.path(), llama_oracle(&config, &weights));
    }
}

#[test]
fn llama3_rope_scaling_agrees_with_the_oracle() {
    let tiny = Tiny::default();
    let scaling = json!({"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }});
    let config = tiny.json("LlamaForCausalLM", scaling);
    let weights = tiny.weights(8);
    let folder = folder_with(&tiny, &config, &weights);
    assert_agrees(folder.path(), llama_oracle(&config, &weights));
    let plain = folder_with(&tiny, &tiny.json("LlamaForCausalLM", json!({})), &weights);
    let ids = Random(9).ids(100, 100);
    let apart = distance(&load(folder.path(), 1).alone(&ids), &load(plain.path(), 1).alone(&ids));
    assert!(apart > 5.0 * TOLERANCE, "the scaling does something: {apart}");
}

#[test]
fn mistral_agrees_with_the_oracle() {
    let tiny = Tiny::default();
    let config = tiny.json("MistralForCausalLM", json!({"sliding_window": null}));
    let weights = tiny.weights(10);
    let folder = folder_with(&tiny, &config, &weights);
    let oracle_config: models::mistral::Config = serde_json::from_value(config).unwrap();
    let mut mistral = models::mistral::Model::new(&oracle_config, builder(&weights)).unwrap();
    assert_agrees(
        folder.path(),
        Box::new(move |ids| {
            mistral.clear_kv_cache();
            mistral.forward(&input(ids), 0).unwrap()
        }),
    );
}

#[test]
fn a_window_hides_what_lies_before_it() {
    let tiny = Tiny { layers: 1, ..Tiny::default() };
    let weights = tiny.weights(11);
    let folder = folder_with(&tiny, &tiny.json("MistralForCausalLM", json!({"sliding_window": 8})), &weights);
    let mut ours = load(folder.path(), 1);
    let mut random = Random(12);
    let last = random.ids(8, 100);
    let behind = |mut before: Vec<u32>| {
        before.extend(&last);
        before
    };
    // One layer: the last token sees itself and seven before it, at whatever position they are.
    let one = ours.alone(&behind(random.ids(40, 100)));
    let other = ours.alone(&behind(random.ids(40, 100)));
    assert_eq!(bits(&one), bits(&other));
    let mut nearer = behind(random.ids(40, 100));
    nearer[40] = (nearer[40] + 1) % 100;
    assert_ne!(bits(&one), bits(&ours.alone(&nearer)));
}

#[test]
fn qwen2_agrees_with_the_oracle() {
    let tiny = Tiny { bias: true, ..Tiny::default() };
    let more = json!({"sliding_window": 64, "use_sliding_window": false, "max_window_layers": 3});
    let config = tiny.json("Qwen2ForCausalLM", more);
    let weights = tiny.weights(13);
    let folder = folder_with(&tiny, &config, &weights);
    let mut oracle_config: models::qwen2::Config = serde_json::from_value(config).unwrap();
    // The oracle narrows attention although the switch is off.
    oracle_config.sliding_window = tiny.context;
    let mut qwen = models::qwen2::ModelForCausalLM::new(&oracle_config, builder(&weights)).unwrap();
    assert_agrees(
        folder.path(),
        Box::new(move |ids| {
            qwen.clear_kv_cache();
            qwen.forward(&input(ids), 0).unwrap()
        }),
    );
}

#[test]
fn qwen3_agrees_with_the_oracle() {
    // Heads wider than hidden / heads, as Qwen3 has them.
    let tiny = Tiny { qk_norm: true, head_dim: 32, tied: true, ..Tiny::default() };
    let more = json!({
        "attention_bias": false, "sliding_window": null, "use_sliding_window": false, "max_window_layers": 3,
    });
    let config = tiny.json("Qwen3ForCausalLM", more);
    let weights = tiny.weights(14);
    let folder = folder_with(&tiny, &config, &weights);
    let oracle_config: models::qwen3::Config = serde_json::from_value(config).unwrap();
    let mut qwen = models::qwen3::ModelForCausalLM::new(&oracle_config, builder(&weights)).unwrap();
    assert_agrees(
        folder.path(),
        Box::new(move |ids| {
            qwen.clear_kv_cache();
            qwen.forward(&input(ids), 0).unwrap()
        }),
    );
}

#[test]
fn gguf_files_agree_with_the_oracle() {
    let open = |path: &Path| {
        let mut file = std::fs::File::open(path).unwrap();
        (gguf_file::Content::read(&mut file).unwrap(), file)
    };
    for (architecture, tiny) in [
        ("llama", Tiny::default()),
        ("llama", Tiny { tied: true, ..Tiny::default() }),
        ("qwen2", Tiny { bias: true, ..Tiny::default() }),
        ("qwen3", Tiny { qk_norm: true, head_dim: 32, ..Tiny::default() }),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        tiny.write_gguf(&path, architecture, &tiny.weights(15), GgmlDType::F32);
        let (content, mut file) = open(&path);
        let oracle: Oracle = match architecture {
            "llama" => {
                let mut model =
                    models::quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
                Box::new(move |ids| {
                    model.clear_kv_cache();
                    model.forward(&input(ids), 0).unwrap()
                })
            }
            "qwen2" => {
                let mut model =
                    models::quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
                Box::new(move |ids| {
                    model.clear_kv_cache();
                    model.forward(&input(ids), 0).unwrap()
                })
            }
            _ => {
                let mut model =
                    models::quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
                Box::new(move |ids| {
                    model.clear_kv_cache();
                    model.forward(&input(ids), 0).unwrap()
                })
            }
        };
        assert_agrees(&path, oracle);
        let info = ModelSource::open(&path).unwrap().info().clone();
        assert_eq!((info.architecture.as_str(), info.quantization.as_str(), info.eos), (architecture, "F32", vec![2]));
    }
}

#[test]
fn gguf_and_safetensors_give_the_same_model() {
    let tiny = Tiny::default();
    let weights = tiny.weights(16);
    let folder = folder_with(&tiny, &tiny.json("LlamaForCausalLM", json!({})), &weights);
    let gguf = tempfile::tempdir().unwrap();
    tiny.write_gguf(&gguf.path().join("tiny.gguf"), "llama", &weights, GgmlDType::F32);
    let ids = Random(17).ids(50, 100);
    let off = distance(&load(folder.path(), 1).alone(&ids), &load(gguf.path(), 1).alone(&ids));
    // The order of sums inside a head differs: neighbours here, halves there.
    assert!(off < 1e-3, "off by {off}");
}

#[test]
fn every_stored_type_computes_what_it_means() {
    let tiny = Tiny { hidden: 256, intermediate: 256, head_dim: 64, layers: 2, ..Tiny::default() };
    let weights = tiny.weights(18);
    let ids = Random(19).ids(40, 100);
    for dtype in [
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (stored, widened) = (folder.path().join("stored.gguf"), folder.path().join("widened.gguf"));
        tiny.write_gguf(&stored, "qwen2", &weights, dtype);
        let meant = weights
            .iter()
            .map(|(name, tensor)| {
                let dtype = if tensor.rank() == 2 { dtype } else { GgmlDType::F32 };
                (name.clone(), QTensor::quantize(tensor, dtype).unwrap().dequantize(&Device::Cpu).unwrap())
            })
            .collect();
        tiny.write_gguf(&widened, "qwen2", &meant, GgmlDType::F32);
        let off = distance(&load(&stored, 1).alone(&ids), &load(&widened, 1).alone(&ids));
        // Codes are multiplied with activations in eight bits.
        let bound = if matches!(dtype, GgmlDType::F16 | GgmlDType::BF16) { 2e-3 } else { 1e-1 };
        println!("figure=off/{dtype:?} value={off}");
        assert!(off < bound, "{dtype:?}: off by {off}");
    }
}

#[test]
fn half_precision_folders_load() {
    let tiny = Tiny::default();
    let weights = tiny.weights(20);
    let config = tiny.json("LlamaForCausalLM", json!({}));
    let ids = Random(21).ids(40, 100);
    for dtype in [DType::F16, DType::BF16] {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &config, &weights, dtype);
        let rounded: Tensors = weights
            .iter()
            .map(|(name, t)| (name.clone(), t.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()))
            .collect();
        let wide = folder_with(&tiny, &config, &rounded);
        assert_eq!(bits(&load(folder.path(), 1).alone(&ids)), bits(&load(wide.path(), 1).alone(&ids)), "{dtype:?}");
    }
}

/// Sequences at all stages of life: (context before the step, tokens of the step).
const STAGES: [(usize, usize); 7] = [(0, 40), (37, 1), (64, 1), (5, 60), (31, 1), (0, 1), (90, 33)];

/// A model of each sort, in folders that go with them.
pub fn models_to_batch() -> Vec<(tempfile::TempDir, &'static str)> {
    let quantised = Tiny { hidden: 256, intermediate: 256, head_dim: 64, tied: true, ..Tiny::default() };
    let written = |architecture: &'static str, tiny: Tiny, dtype| {
        let folder = tempfile::tempdir().unwrap();
        tiny.write_gguf(&folder.path().join("tiny.gguf"), architecture, &tiny.weights(22), dtype);
        (folder, architecture)
    };
    vec![
        written("llama", quantised, GgmlDType::Q4_1),
        written("qwen3", Tiny { qk_norm: true, head_dim: 32, ..Tiny::default() }, GgmlDType::F32),
        written("qwen2", Tiny { bias: true, ..quantised }, GgmlDType::Q6K),
    ]
}

#[test]
fn rows_in_a_batch_equal_rows_alone_to_the_bit() {
    for (folder, architecture) in models_to_batch() {
        let mut random = Random(23);
        let sequences: Vec<Vec<u32>> = STAGES.iter().map(|(before, now)| random.ids(before + now, 100)).collect();
        let mut alone = load(folder.path(), 1);
        let expected: Vec<Vec<f32>> = sequences.iter().map(|ids| alone.alone(ids)).collect();

        // Scattered blocks, taken in turns, on another number of threads.
        let mut batch = load(folder.path(), 3);
        let mut free: Vec<u32> = (0..BLOCKS).collect();
        let tables: Vec<Vec<u32>> = sequences
            .iter()
            .map(|ids| {
                let count = ids.len().div_ceil(32);
                (0..count).map(|_| free.swap_remove(random.below(free.len() as u32) as usize)).collect()
            })
            .collect();
        let mut logits = Vec::new();
        let rows: Vec<Row<'_>> = STAGES
            .iter()
            .zip(&sequences)
            .zip(&tables)
            .filter(|(((before, _), _), _)| *before > 0)
            .map(|(((before, _), ids), blocks)| Row { ids: &ids[..*before], position: 0, blocks, logits: false })
            .collect();
        for row in rows {
            batch.llama.forward(&[row], &batch.kv, &mut logits).unwrap();
            assert!(logits.is_empty(), "nobody asked");
        }
        let rows: Vec<Row<'_>> = STAGES
            .iter()
            .zip(&sequences)
            .zip(&tables)
            .map(|(((before, _), ids), blocks)| Row {
                ids: &ids[*before..],
                position: *before as u32,
                blocks,
                logits: true,
            })
            .collect();
        batch.llama.forward(&rows, &batch.kv, &mut logits).unwrap();
        let vocab = batch.info.vocab_size as usize;
        for (index, (got, expected)) in logits.chunks(vocab).zip(&expected).enumerate() {
            assert_eq!(bits(got), bits(expected), "{architecture}, row {index}");
        }
    }
}

#[test]
fn chunks_equal_the_whole_to_the_bit() {
    for (folder, architecture) in models_to_batch() {
        let ids = Random(24).ids(130, 100);
        let mut ours = load(folder.path(), 2);
        let whole = ours.alone(&ids);
        for chunk in [1, 7, 32, 33, 100] {
            let blocks: Vec<u32> = (0..5).map(|block| 9 + 3 * block).collect();
            let (mut logits, mut position) = (Vec::new(), 0);
            for part in ids.chunks(chunk) {
                let row = Row { ids: part, position, blocks: &blocks, logits: true };
                ours.llama.forward(&[row], &ours.kv, &mut logits).unwrap();
                position += part.len() as u32;
            }
            assert_eq!(bits(&logits), bits(&whole), "{architecture}, chunks of {chunk}");
        }
    }
}

#[test]
fn more_rows_than_a_chunk_of_logits() {
    let (folder, _) = models_to_batch().swap_remove(1);
    let mut ours = load(folder.path(), 2);
    let expected: Vec<Vec<f32>> = (0..50).map(|id| ours.alone(&[id])).collect();
    let ids: Vec<[u32; 1]> = (0..50).map(|id| [id]).collect();
    let blocks: Vec<[u32; 1]> = (0..50).map(|block| [block]).collect();
    let rows: Vec<Row<'_>> = ids
        .iter()
        .zip(&blocks)
        .enumerate()
        .map(|(index, (ids, blocks))| Row { ids, position: 0, blocks, logits: index % 7 != 3 })
        .collect();
    let mut logits = Vec::new();
    ours.llama.forward(&rows, &ours.kv, &mut logits).unwrap();
    let wanted = expected.iter().enumerate().filter(|(index, _)| index % 7 != 3).map(|(_, logits)| logits);
    let vocab = ours.info.vocab_size as usize;
    assert_eq!(logits.len(), rows.iter().filter(|row| row.logits).count() * vocab);
    for (got, expected) in logits.chunks(vocab).zip(wanted) {
        assert_eq!(bits(got), bits(expected));
    }
}

#[test]
fn steps_past_a_bound_are_refused() {
    let (folder, _) = models_to_batch().swap_remove(1);
    let mut ours = load(folder.path(), 1);
    let many = vec![1; 300];
    let blocks: Vec<u32> = (0..10).collect();
    let fine = Row { ids: &[1, 2], position: 0, blocks: &blocks, logits: true };
    for (row, why) in [
        (Row { ids: &[], ..fine }, "no tokens"),
        (Row { ids: &many, ..fine }, "loaded for 256"),
        (Row { ids: &[112], ..fine }, "outside the vocabulary"),
        (Row { position: 255, ..fine }, "past the context"),
        (Row { position: u32::MAX, ..fine }, "past the context"),
        (Row { position: 31, blocks: &[0], ..fine }, "1 blocks do not hold 33 positions"),
        (Row { blocks: &[BLOCKS], ..fine }, "outside the store"),
    ] {
        let error = ours.llama.forward(&[fine, row], &ours.kv, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, ModelError::Step { .. }) && error.to_string().contains(why), "{error}");
    }
    let mut logits = Vec::new();
    ours.llama.forward(&[], &ours.kv, &mut logits).unwrap();
    assert!(logits.is_empty());
}

#[test]
fn a_store_larger_than_memory_is_refused() {
    let (folder, _) = models_to_batch().swap_remove(1);
    let mut info = ModelSource::open(folder.path()).unwrap().info().clone();
    // [layers 3, 2, heads 2, 32 positions, 32 features] of two bytes.
    assert_eq!(KvStore::bytes_per_block(&info, candle_core::DType::F16), 3 * 2 * 2 * 32 * 32 * 2);
    for layers in [1 << 30, u32::MAX] {
        info.layers = layers;
        let error = KvStore::new(&info, u32::MAX).unwrap_err();
        assert!(error.to_string().contains("no memory"), "{error}");
    }
}

#[test]
fn a_tensor_that_nobody_reads_is_refused() {
    let tiny = Tiny::default();
    let config = tiny.json("LlamaForCausalLM", json!({}));
    let mut weights = tiny.weights(25);
    weights.insert("model.layers.0.mlp.up_proj.bias".into(), Random(1).tensor(&[96], 0.0));
    let folder = folder_with(&tiny, &config, &weights);
    let error = ModelSource::open(folder.path()).unwrap_err();
    assert!(matches!(&error, ModelError::TensorUnused { tensor } if tensor.ends_with("up_proj.bias")), "{error}");

    weights.remove("model.layers.0.mlp.up_proj.bias");
    weights.remove("model.layers.2.mlp.up_proj.weight");
    let folder = folder_with(&tiny, &config, &weights);
    let error = ModelSource::open(folder.path()).unwrap_err();
    assert!(matches!(&error, ModelError::TensorMissing { tensor } if tensor.contains("layers.2")), "{error}");

    weights.insert("model.layers.2.mlp.up_proj.weight".into(), Random(1).tensor(&[95, 64], 0.0));
    let folder = folder_with(&tiny, &config, &weights);
    let error = ModelSource::open(folder.path()).unwrap_err();
    assert!(matches!(&error, ModelError::TensorShape { found, .. } if found == &[95, 64]), "{error}");
}

#[test]
fn configurations_that_are_not_built_are_refused_by_name() {
    let tiny = Tiny::default();
    let weights = tiny.weights(26);
    for (more, why) in [
        (json!({"architectures": ["GemmaForCausalLM"]}), "GemmaForCausalLM"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "yarn"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
        (json!({"num_attention_heads": 5}), "share"),
        (json!({"head_dim": 20}), "multiple of 16"),
        (json!({"vocab_size": 1u64 << 40}), "vocab_size"),
        (json!({"num_hidden_layers": null}), "num_hidden_layers"),
        (json!({"rope_theta": -1.0}), "rope_theta"),
        (json!({"partial_rotary_factor": 0.5}), "part of each head"),
        (json!({"sliding_window": 64, "use_sliding_window": true}), "use_sliding_window"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &tiny.json("LlamaForCausalLM", more), &weights, DType::F32);
        let error = ModelSource::open(folder.path()).unwrap_err();
        assert!(matches!(error, ModelError::Unsupported { .. }) && error.to_string().contains(why), "{why}: {error}");
    }
}
