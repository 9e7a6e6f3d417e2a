//! Shapes of published models: their configuration, and the tensors it implies.

use std::str::FromStr;

use serde_json::{Value, json};

use super::{MakeModelError, WeightDtype};

/// Whose shape a made model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Llama 3.1 8B Instruct: 32 layers of 4096, 8 heads for keys, an output matrix of its own.
    Llama31_8B,
    /// Qwen2.5 0.5B Instruct: 24 layers of 896, 2 heads for keys, biases on q, k and v, the output matrix is the embedding.
    Qwen25_05B,
    /// BERT base, uncased: 12 layers of 768.
    BertBase,
    /// Llama's parts in two layers of 256.
    TinyLlama,
    /// Qwen2's parts in two layers of 256.
    TinyQwen2,
    /// BERT's parts in two layers of 256.
    TinyBert,
}

/// Which network a shape is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Qwen2,
    Bert,
}

/// The numbers of a shape.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    vocab: u64,
    hidden: u64,
    intermediate: u64,
    layers: u32,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    positions: u64,
}

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorPlan {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
    /// What its values are around.
    pub(super) mean: f32,
    /// Their standard deviation.
    pub(super) std: f32,
    /// Values from here on are zero.
    pub(super) drawn: u64,
}

impl TensorPlan {
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl Shape {
    /// All of them.
    pub const ALL: [Shape; 6] =
        [Shape::Llama31_8B, Shape::Qwen25_05B, Shape::BertBase, Shape::TinyLlama, Shape::TinyQwen2, Shape::TinyBert];

    /// What the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Llama31_8B => "llama-3.1-8b",
            Shape::Qwen25_05B => "qwen2.5-0.5b",
            Shape::BertBase => "bert-base",
            Shape::TinyLlama => "tiny-llama",
            Shape::TinyQwen2 => "tiny-qwen2",
            Shape::TinyBert => "tiny-bert",
        }
    }

    pub(super) fn family(self) -> Family {
        match self {
            Shape::Llama31_8B | Shape::TinyLlama => Family::Llama,
            Shape::Qwen25_05B | Shape::TinyQwen2 => Family::Qwen2,
            Shape::BertBase | Shape::TinyBert => Family::Bert,
        }
    }

    /// What the real one is published in; the tiny ones are for exact comparisons.
    pub(super) fn dtype(self) -> WeightDtype {
        match self {
            Shape::Llama31_8B | Shape::Qwen25_05B => WeightDtype::BF16,
            Shape::BertBase | Shape::TinyLlama | Shape::TinyQwen2 | Shape::TinyBert => WeightDtype::F32,
        }
    }

    /// Ids that the output has room for.
    pub(super) fn vocab(self) -> u64 {
        self.sizes().vocab
    }

    fn sizes(self) -> Sizes {
        let tiny = Sizes {
            vocab: 512,
            hidden: 256,
            intermediate: 512,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            positions: 4096,
        };
        match self {
            Shape::Llama31_8B => Sizes {
                vocab: 128_256,
                hidden: 4096,
                intermediate: 14_336,
                layers: 32,
                heads: 32,
                kv_heads: 8,
                head_dim: 128,
                positions: 131_072,
            },
            Shape::Qwen25_05B => Sizes {
                vocab: 151_936,
                hidden: 896,
                intermediate: 4864,
                layers: 24,
                heads: 14,
                kv_heads: 2,
                head_dim: 64,
                positions: 32_768,
            },
            Shape::BertBase => Sizes {
                vocab: 30_522,
                hidden: 768,
                intermediate: 3072,
                layers: 12,
                heads: 12,
                kv_heads: 12,
                head_dim: 64,
                positions: 512,
            },
            Shape::TinyLlama => tiny,
            // As the real one, its output is wider than its vocabulary.
            Shape::TinyQwen2 => Sizes { vocab: 544, ..tiny },
            Shape::TinyBert => Sizes { positions: 512, kv_heads: 4, ..tiny },
        }
    }

    fn layers(self, layers: Option<u32>) -> u32 {
        layers.unwrap_or(self.sizes().layers)
    }

    /// `config.json`, with the fields and values of the published file.
    pub(super) fn config_json(self, layers: Option<u32>, dtype: WeightDtype) -> Value {
        let s = self.sizes();
        let own = match self.family() {
            Family::Llama => json!({
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "attention_bias": false,
                "attention_dropout": 0.0,
                "bos_token_id": self.id("<|begin_of_text|>"),
                "eos_token_id": [self.id("<|end_of_text|>"), self.id("<|eom_id|>"), self.id("<|eot_id|>")],
                "hidden_act": "silu",
                "mlp_bias": false,
                "num_key_value_heads": s.kv_heads,
                "head_dim": s.head_dim,
                "pretraining_tp": 1,
                "rms_norm_eps": 1e-5,
                "rope_scaling": {
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": s.positions / 16,
                    "rope_type": "llama3",
                },
                "rope_theta": 500_000.0,
                "tie_word_embeddings": false,
            }),
            Family::Qwen2 => json!({
                "architectures": ["Qwen2ForCausalLM"],
                "model_type": "qwen2",
                "attention_dropout": 0.0,
                "bos_token_id": self.id("<|endoftext|>"),
                "eos_token_id": self.id("<|im_end|>"),
                "hidden_act": "silu",
                "max_window_layers": s.layers,
                "num_key_value_heads": s.kv_heads,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1_000_000.0,
                "sliding_window": s.positions,
                "tie_word_embeddings": true,
                "use_sliding_window": false,
            }),
            Family::Bert => json!({
                "architectures": ["BertModel"],
                "model_type": "bert",
                "attention_probs_dropout_prob": 0.1,
                "hidden_act": "gelu",
                "hidden_dropout_prob": 0.1,
                "layer_norm_eps": 1e-12,
                "pad_token_id": 0,
                "position_embedding_type": "absolute",
                "type_vocab_size": TOKEN_TYPES,
            }),
        };
        let mut config = json!({
            "hidden_size": s.hidden,
            "initializer_range": 0.02,
            "intermediate_size": s.intermediate,
            "max_position_embeddings": s.positions,
            "num_attention_heads": s.heads,
            "num_hidden_layers": self.layers(layers),
            "torch_dtype": dtype.torch_name(),
            "use_cache": true,
            "vocab_size": s.vocab,
        });
        for (key, value) in own.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    /// `generation_config.json`. It says `do_sample: false`: a comparison with another library is of its likeliest ids.
    pub(super) fn generation_json(self) -> Option<Value> {
        let ends = match self.family() {
            Family::Llama => json!([self.id("<|end_of_text|>"), self.id("<|eom_id|>"), self.id("<|eot_id|>")]),
            Family::Qwen2 => json!([self.id("<|im_end|>"), self.id("<|endoftext|>")]),
            Family::Bert => return None,
        };
        let begin = if self.family() == Family::Llama { "<|begin_of_text|>" } else { "<|endoftext|>" };
        Some(json!({"bos_token_id": self.id(begin), "do_sample": false, "eos_token_id": ends}))
    }

    /// The tensors, in the order of the files.
    ///
    /// A matrix's values have the deviation `1 / sqrt(columns)`, which keeps what goes through it near one however wide it is. In
    /// a decoder, what layers add to the residual is scaled so that all of them together add about as much as the embedding is, as
    /// in GPT-2: without, rounding to bf16 is amplified from layer to layer until two correct implementations differ by percents.
    /// Norms are around one and biases around zero, both spread enough that leaving one out would show. In the output matrix the
    /// rows of control tokens and of ids without a token are zero: others are likelier, so answers are as long as they may be, and
    /// have a text.
    pub(super) fn tensors(self, layers: Option<u32>) -> Vec<TensorPlan> {
        let mut list = List::default();
        match self.family() {
            Family::Llama | Family::Qwen2 => self.decoder(self.layers(layers), &mut list),
            Family::Bert => self.encoder(self.layers(layers), &mut list),
        }
        list.0
    }

    fn decoder(self, layers: u32, list: &mut List) {
        let s = self.sizes();
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        // Qwen2's two marks at these sizes: a tied output, and biases.
        let tied = self.family() == Family::Qwen2;
        // Where it is the output, too, it must leave logits near one.
        let embedding = if tied { 1.0 } else { (s.hidden as f32).sqrt() };
        let added = embedding / (s.hidden as f32 * 2.0 * layers as f32).sqrt();
        list.scaled("model.embed_tokens", s.vocab, s.hidden, embedding);
        if tied {
            list.draw_rows(self.words());
        }
        for layer in 0..layers {
            let at = |part: &str| format!("model.layers.{layer}.{part}");
            list.norm(&at("input_layernorm"), s.hidden);
            for (part, rows) in [("q", q), ("k", kv), ("v", kv)] {
                let name = at(&format!("self_attn.{part}_proj"));
                list.matrix(&name, rows, s.hidden);
                if tied {
                    list.bias(&name, rows);
                }
            }
            list.scaled(&at("self_attn.o_proj"), s.hidden, q, added);
            list.norm(&at("post_attention_layernorm"), s.hidden);
            list.matrix(&at("mlp.gate_proj"), s.intermediate, s.hidden);
            list.matrix(&at("mlp.up_proj"), s.intermediate, s.hidden);
            list.scaled(&at("mlp.down_proj"), s.hidden, s.intermediate, added);
        }
        if tied {
            // Signs at random: the residual is much like the embedding of the id it came from, which would else be the likeliest
            // to follow itself, by far and for ever.
            list.push("model.norm.weight".to_owned(), vec![s.hidden], 0.0, 1.0);
        } else {
            list.norm("model.norm", s.hidden);
            list.matrix("lm_head", s.vocab, s.hidden);
            list.draw_rows(self.words());
        }
    }

    fn encoder(self, layers: u32, list: &mut List) {
        let s = self.sizes();
        list.matrix("embeddings.word_embeddings", s.vocab, s.hidden);
        list.matrix("embeddings.position_embeddings", s.positions, s.hidden);
        list.matrix("embeddings.token_type_embeddings", TOKEN_TYPES, s.hidden);
        list.norm_and_bias("embeddings.LayerNorm", s.hidden);
        for layer in 0..layers {
            let mut linear = |part: &str, rows, columns| {
                let name = format!("encoder.layer.{layer}.{part}");
                list.matrix(&name, rows, columns);
                list.bias(&name, rows);
            };
            for part in ["query", "key", "value"] {
                linear(&format!("attention.self.{part}"), s.hidden, s.hidden);
            }
            linear("attention.output.dense", s.hidden, s.hidden);
            linear("intermediate.dense", s.intermediate, s.hidden);
            linear("output.dense", s.hidden, s.intermediate);
            list.norm_and_bias(&format!("encoder.layer.{layer}.attention.output.LayerNorm"), s.hidden);
            list.norm_and_bias(&format!("encoder.layer.{layer}.output.LayerNorm"), s.hidden);
        }
        list.matrix("pooler.dense", s.hidden, s.hidden);
        list.bias("pooler.dense", s.hidden);
    }
}

/// Kinds of text that BERT tells apart.
const TOKEN_TYPES: u64 = 2;

#[derive(Default)]
struct List(Vec<TensorPlan>);

impl List {
    fn push(&mut self, name: String, shape: Vec<u64>, mean: f32, std: f32) {
        let drawn = shape.iter().product();
        self.0.push(TensorPlan { name, shape, mean, std, drawn });
    }

    /// Leaves only the first `rows` of the last tensor; the others are zero.
    fn draw_rows(&mut self, rows: u64) {
        if let Some(tensor) = self.0.last_mut() {
            tensor.drawn = rows * tensor.shape.iter().skip(1).product::<u64>();
        }
    }

    fn matrix(&mut self, name: &str, rows: u64, columns: u64) {
        self.scaled(name, rows, columns, 1.0);
    }

    /// A matrix whose output is `gain` times its input.
    fn scaled(&mut self, name: &str, rows: u64, columns: u64, gain: f32) {
        self.push(format!("{name}.weight"), vec![rows, columns], 0.0, gain / (columns as f32).sqrt());
    }

    fn bias(&mut self, name: &str, len: u64) {
        self.push(format!("{name}.bias"), vec![len], 0.0, 0.02);
    }

    fn norm(&mut self, name: &str, len: u64) {
        self.push(format!("{name}.weight"), vec![len], 1.0, 0.1);
    }

    fn norm_and_bias(&mut self, name: &str, len: u64) {
        self.norm(name, len);
        self.bias(name, len);
    }
}

impl FromStr for Shape {
    type Err = MakeModelError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Shape::ALL.into_iter().find(|shape| shape.name() == name);
        known.ok_or_else(|| MakeModelError::UnknownShape(name.to_owned()))
    }
}
