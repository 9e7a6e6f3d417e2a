//! BERT against candle-transformers, and an input's independence from everybody else.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use serde_json::json;
use weir_kernels::Pool;
use weir_models::{Bert, Model, ModelError, ModelKind, ModelSource};

use crate::support::{Random, Tensors, bits, distance, write_folder};

const HIDDEN: usize = 64;
const VOCAB: u32 = 90;

pub fn config() -> serde_json::Value {
    json!({
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    })
}

pub fn weights(seed: u64) -> Tensors {
    let mut random = Random(seed);
    let mut tensors = Tensors::new();
    let mut put = |name: &str, shape: &[usize], middle| tensors.insert(name.to_owned(), random.tensor(shape, middle));
    put("embeddings.word_embeddings.weight", &[VOCAB as usize, HIDDEN], 0.0);
    put("embeddings.position_embeddings.weight", &[64, HIDDEN], 0.0);
    put("embeddings.token_type_embeddings.weight", &[2, HIDDEN], 0.0);
    put("embeddings.LayerNorm.weight", &[HIDDEN], 1.0);
    put("embeddings.LayerNorm.bias", &[HIDDEN], 0.0);
    for layer in 0..2 {
        for (part, rows, columns) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", 128, HIDDEN),
            ("output.dense", HIDDEN, 128),
        ] {
            put(&format!("encoder.layer.{layer}.{part}.weight"), &[rows, columns], 0.0);
            put(&format!("encoder.layer.{layer}.{part}.bias"), &[rows], 0.0);
        }
        for part in ["attention.output", "output"] {
            put(&format!("encoder.layer.{layer}.{part}.LayerNorm.weight"), &[HIDDEN], 1.0);
            put(&format!("encoder.layer.{layer}.{part}.LayerNorm.bias"), &[HIDDEN], 0.0);
        }
    }
    tensors
}

/// Writes the files of a sentence-transformers folder.
pub fn write_modules(folder: &std::path::Path, pooling: &str, normalize: bool) {
    let mut modules = vec![
        json!({"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}),
        json!({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}),
    ];
    if normalize {
        modules.push(json!({"idx": 2, "name": "2", "path": "2", "type": "sentence_transformers.models.Normalize"}));
    }
    std::fs::write(folder.join("modules.json"), json!(modules).to_string()).unwrap();
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    let mut modes = json!({"pooling_mode_max_tokens": false});
    modes[pooling] = true.into();
    std::fs::write(folder.join("1_Pooling/config.json"), modes.to_string()).unwrap();
}

fn load(folder: &std::path::Path, threads: usize) -> Bert {
    let source = ModelSource::open(folder).unwrap();
    assert_eq!((source.info().kind, source.info().embedding_dim), (ModelKind::Embed, Some(HIDDEN as u32)));
    match source.load(&Pool::new(threads).into(), 300).unwrap() {
        Model::Embed(bert) => bert,
        Model::Generate(_) => panic!("an encoder was written"),
    }
}

/// The oracle's token vectors of one input: [tokens][hidden].
fn oracle(weights: &Tensors, ids: &[u32]) -> Vec<Vec<f32>> {
    let config: Config = serde_json::from_value(config()).unwrap();
    let builder = VarBuilder::from_tensors(weights.clone(), DType::F32, &Device::Cpu);
    let model = BertModel::load(builder, &config).unwrap();
    let input = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let states = model.forward(&input, &input.zeros_like().unwrap(), None).unwrap();
    states.squeeze(0).unwrap().to_vec2().unwrap()
}

fn mean(states: &[Vec<f32>]) -> Vec<f32> {
    (0..HIDDEN).map(|column| states.iter().map(|row| row[column]).sum::<f32>() / states.len() as f32).collect()
}

fn unit(vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.into_iter().map(|x| x / length).collect()
}

#[test]
fn bert_agrees_with_the_oracle_in_every_dress() {
    let plain = weights(1);
    let renamed = |from: &str, to: &str| -> Tensors {
        plain.iter().map(|(name, tensor)| (name.replace(from, to), tensor.clone())).collect()
    };
    let prefixed: Tensors = plain.iter().map(|(name, tensor)| (format!("bert.{name}"), tensor.clone())).collect();
    let old = renamed("LayerNorm.weight", "LayerNorm.gamma")
        .into_iter()
        .map(|(name, tensor)| (name.replace("LayerNorm.bias", "LayerNorm.beta"), tensor))
        .collect();
    for (stored, pooling, normalize) in [
        (plain.clone(), "pooling_mode_mean_tokens", true),
        (prefixed, "pooling_mode_cls_token", true),
        (old, "pooling_mode_mean_tokens", false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &config(), &stored, DType::F32);
        write_modules(folder.path(), pooling, normalize);
        let mut bert = load(folder.path(), 2);
        for len in [1, 2, 17, 64] {
            let ids = Random(len as u64).ids(len, VOCAB);
            let states = oracle(&plain, &ids);
            let pooled = if pooling.contains("cls") { states[0].clone() } else { mean(&states) };
            let expected = if normalize { unit(pooled) } else { pooled };
            let mut got = Vec::new();
            bert.forward(&[&ids], &mut got).unwrap();
            let off = distance(&got, &expected);
            assert!(off < 1e-4, "{pooling}, {len} tokens: off by {off}");
        }
    }
}

#[test]
fn half_precision_weights_give_the_vectors_of_their_values() {
    let wide = weights(2);
    let rounded: Tensors = wide
        .iter()
        .map(|(name, t)| (name.clone(), t.to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap()))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config(), &wide, DType::F16);
    assert_eq!(ModelSource::open(folder.path()).unwrap().info().quantization, "F16");
    let ids = Random(3).ids(20, VOCAB);
    let mut got = Vec::new();
    load(folder.path(), 1).forward(&[&ids], &mut got).unwrap();
    // No modules.json: mean of the tokens, not normalised.
    assert!(distance(&got, &mean(&oracle(&rounded, &ids))) < 1e-4);
}

#[test]
fn inputs_in_a_batch_equal_inputs_alone_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config(), &weights(4), DType::F32);
    let mut random = Random(5);
    let inputs: Vec<Vec<u32>> = [3, 1, 64, 17, 33, 2].iter().map(|len| random.ids(*len, VOCAB)).collect();
    let (mut one, mut many) = (load(folder.path(), 1), load(folder.path(), 3));
    let slices: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
    let mut together = Vec::new();
    many.forward(&slices, &mut together).unwrap();
    assert_eq!(together.len(), inputs.len() * HIDDEN);
    for (ids, got) in slices.iter().zip(together.chunks(HIDDEN)) {
        let mut alone = Vec::new();
        one.forward(&[ids], &mut alone).unwrap();
        assert_eq!(bits(got), bits(&alone), "{} tokens", ids.len());
    }
}

#[test]
fn inputs_past_a_bound_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config(), &weights(6), DType::F32);
    std::fs::write(folder.path().join("sentence_bert_config.json"), r#"{"max_seq_length": 20}"#).unwrap();
    assert_eq!(ModelSource::open(folder.path()).unwrap().info().max_input_len, 20);
    let mut bert = load(folder.path(), 1);
    let twenty = [1; 20];
    let many = vec![&twenty[..]; 16];
    for (inputs, why) in [
        (vec![&[][..]], "0 tokens"),
        (vec![&[1; 21][..]], "21 tokens"),
        (vec![&[VOCAB][..]], "vocabulary"),
        (many, "loaded for 300"),
    ] {
        let error = bert.forward(&inputs, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, ModelError::Step { .. }) && error.to_string().contains(why), "{error}");
    }
    let mut out = vec![1.0];
    bert.forward(&[], &mut out).unwrap();
    assert!(out.is_empty());
}

#[test]
fn modules_that_are_not_built_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config(), &weights(7), DType::F32);
    let dense = json!([{"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}]);
    std::fs::write(folder.path().join("modules.json"), dense.to_string()).unwrap();
    let error = ModelSource::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("Dense"), "{error}");
}
