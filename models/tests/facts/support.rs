//! Seeded tiny checkpoints, written to temporary folders.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use weir_kernels::Pool;
use weir_models::{BLOCK_LEN, KvStore, Llama, Model, ModelInfo, ModelSource, Row};

/// Tensors by name.
pub type Tensors = HashMap<String, Tensor>;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u32) -> u32 {
        (self.next() % u64::from(bound)) as u32
    }

    /// Uniform in -1..1.
    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn ids(&mut self, len: usize, vocab: u32) -> Vec<u32> {
        (0..len).map(|_| self.below(vocab)).collect()
    }

    /// Values around `middle` of a spread that keeps activations near one through a matrix of `shape`.
    pub fn tensor(&mut self, shape: &[usize], middle: f32) -> Tensor {
        let len = shape.iter().product();
        let spread = match shape {
            [_, columns] => (3.0 / *columns as f32).sqrt(),
            _ => 0.2,
        };
        let values: Vec<f32> = (0..len).map(|_| middle + spread * self.signed()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }
}

/// A small decoder.
#[derive(Clone, Copy)]
pub struct Tiny {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: usize,
    pub bias: bool,
    pub qk_norm: bool,
    pub tied: bool,
}

impl Default for Tiny {
    fn default() -> Self {
        Self {
            hidden: 64,
            intermediate: 96,
            layers: 3,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocab: 112,
            context: 256,
            bias: false,
            qk_norm: false,
            tied: false,
        }
    }
}

impl Tiny {
    /// Its weights under Hugging Face names.
    pub fn weights(&self, seed: u64) -> Tensors {
        let mut random = Random(seed);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = Tensors::new();
        let mut put = |name: String, shape: &[usize], middle| tensors.insert(name, random.tensor(shape, middle));
        put("model.embed_tokens.weight".into(), &[self.vocab, self.hidden], 0.0);
        put("model.norm.weight".into(), &[self.hidden], 1.0);
        if !self.tied {
            put("lm_head.weight".into(), &[self.vocab, self.hidden], 0.0);
        }
        for layer in 0..self.layers {
            let mut put =
                |stem: &str, shape: &[usize], middle| put(format!("model.layers.{layer}.{stem}"), shape, middle);
            put("input_layernorm.weight", &[self.hidden], 1.0);
            put("post_attention_layernorm.weight", &[self.hidden], 1.0);
            for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
                put(&format!("self_attn.{name}_proj.weight"), &[rows, self.hidden], 0.0);
                if self.bias {
                    put(&format!("self_attn.{name}_proj.bias"), &[rows], 0.0);
                }
            }
            if self.qk_norm {
                put("self_attn.q_norm.weight", &[self.head_dim], 1.0);
                put("self_attn.k_norm.weight", &[self.head_dim], 1.0);
            }
            put("self_attn.o_proj.weight", &[self.hidden, q], 0.0);
            put("mlp.gate_proj.weight", &[self.intermediate, self.hidden], 0.0);
            put("mlp.up_proj.weight", &[self.intermediate, self.hidden], 0.0);
            put("mlp.down_proj.weight", &[self.hidden, self.intermediate], 0.0);
        }
        tensors
    }

    /// Its `config.json`, with `more` on top.
    pub fn json(&self, architecture: &str, more: serde_json::Value) -> serde_json::Value {
        let mut json = serde_json::json!({
            "architectures": [architecture],
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "eos_token_id": [1, 2],
        });
        for (key, value) in more.as_object().unwrap() {
            json[key] = value.clone();
        }
        json
    }

    /// Writes its weights as a GGUF file; matrices in `dtype`. Query and key rows are permuted for `llama`, as converters do.
    pub fn write_gguf(&self, path: &Path, architecture: &str, weights: &Tensors, dtype: GgmlDType) {
        let key = |name: &str| format!("{architecture}.{name}");
        let number = |value: usize| Value::U32(value as u32);
        let metadata = [
            ("general.architecture".to_owned(), Value::String(architecture.to_owned())),
            (key("embedding_length"), number(self.hidden)),
            (key("feed_forward_length"), number(self.intermediate)),
            (key("block_count"), number(self.layers)),
            (key("attention.head_count"), number(self.heads)),
            (key("attention.head_count_kv"), number(self.kv_heads)),
            (key("attention.key_length"), number(self.head_dim)),
            (key("attention.value_length"), number(self.head_dim)),
            (key("rope.dimension_count"), number(self.head_dim)),
            (key("context_length"), number(self.context)),
            (key("rope.freq_base"), Value::F32(10_000.0)),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
            ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
        ];
        let tensors: Vec<(String, QTensor)> = weights
            .iter()
            .map(|(name, tensor)| {
                let heads = match name.rsplit('.').nth(1) {
                    Some("q_proj") => self.heads,
                    Some("k_proj") => self.kv_heads,
                    _ => 0,
                };
                let tensor =
                    if architecture == "llama" && heads > 0 { interleave(tensor, heads) } else { tensor.clone() };
                let dtype = if tensor.rank() == 2 { dtype } else { GgmlDType::F32 };
                (gguf_name(name), QTensor::quantize(&tensor, dtype).unwrap())
            })
            .collect();
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }
}

/// Rows (head, half, pair) to (head, pair, half).
fn interleave(tensor: &Tensor, heads: usize) -> Tensor {
    let shape = tensor.dims().to_vec();
    let half = shape[0] / heads / 2;
    let columns: usize = shape[1..].iter().product();
    let split = tensor.reshape((heads, 2, half, columns)).unwrap();
    split.transpose(1, 2).unwrap().contiguous().unwrap().reshape(shape).unwrap()
}

fn gguf_name(name: &str) -> String {
    [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// Writes a folder of `config.json` and `model.safetensors` in `dtype`.
pub fn write_folder(folder: &Path, config: &serde_json::Value, weights: &Tensors, dtype: DType) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let weights: Tensors = weights.iter().map(|(name, t)| (name.clone(), t.to_dtype(dtype).unwrap())).collect();
    candle_core::safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
}

/// A decoder with a store.
pub struct Loaded {
    pub llama: Llama,
    pub kv: KvStore,
    pub info: ModelInfo,
}

/// Blocks in the store of a [`Loaded`].
pub const BLOCKS: u32 = 64;

/// Opens and loads the decoder at `path`.
pub fn load(path: &Path, threads: usize) -> Loaded {
    let source = ModelSource::open(path).unwrap();
    let info = source.info().clone();
    match source.load(&Pool::new(threads).into(), 256).unwrap() {
        Model::Generate(llama) => Loaded { llama, kv: KvStore::new(&info, BLOCKS).unwrap(), info },
        Model::Embed(_) => panic!("a decoder was written"),
    }
}

impl Loaded {
    /// Logits behind `ids`, computed alone in one step.
    pub fn alone(&mut self, ids: &[u32]) -> Vec<f32> {
        let blocks: Vec<u32> = (0..ids.len().div_ceil(BLOCK_LEN) as u32).collect();
        let mut logits = Vec::new();
        let row = Row { ids, position: 0, blocks: &blocks, logits: true };
        self.llama.forward(&[row], &self.kv, &mut logits).unwrap();
        logits
    }
}

/// The largest difference of two vectors.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The bits of a vector, for comparisons that mean it.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
