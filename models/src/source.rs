//! Opening a model: from a path to everything but the weights in memory.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use weir_kernels::launch::Element;
use weir_kernels::{Device, WeightType};

use crate::bert::Bert;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::gguf::Header;
use crate::config::{ConfigJson, DecoderConfig, EncoderConfig, GenerationJson};
use crate::llama::Llama;
use crate::network::Place;
use crate::template::{self, TokenizerConfig};
use crate::tokenizer;
use crate::{ChatTemplate, KvStore, ModelError, ModelInfo, ModelKind, Tokenizer, json};

/// A model on disk whose headers and configuration were read and checked. Weights stay in their files until
/// [`load`](Self::load).
pub struct ModelSource {
    info: ModelInfo,
    checkpoint: Checkpoint,
    network: Network,
    origin: Origin,
    template: Option<ChatTemplate>,
}

enum Network {
    Decoder(DecoderConfig),
    Encoder(EncoderConfig),
}

enum Origin {
    /// The header is boxed because it is large beside a path.
    Gguf(PathBuf, Box<Header>),
    Folder(PathBuf),
}

/// A model whose weights are in memory.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there are a handful in a process, and each is moved once")]
pub enum Model {
    /// It continues text.
    Generate(Llama),
    /// It embeds text.
    Embed(Bert),
}

impl fmt::Debug for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match &self.origin {
            Origin::Gguf(path, _) | Origin::Folder(path) => path,
        };
        f.debug_struct("ModelSource").field("path", path).field("info", &self.info).finish_non_exhaustive()
    }
}

/// Control tokens that end an answer whatever the file's `eos_token_id` says: chat models of many makers end a turn with one
/// token and a text with another, and files name only one of them.
const END_TOKENS: &[&str] =
    &["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>"];

impl ModelSource {
    /// Opens a `.gguf` file, a folder that holds one, or a folder with `config.json` and safetensors files.
    ///
    /// # Errors
    /// When there is no model, when a header breaks its format, or when the model asks for something that is not built; a
    /// tensor type that cannot be read is found here, not at load.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let no_model = |reason: &str| ModelError::NoModel { path: path.to_owned(), reason: reason.to_owned() };
        let metadata =
            std::fs::metadata(path).map_err(|source| ModelError::Unreadable { path: path.to_owned(), source })?;
        let source = if metadata.is_file() {
            if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("gguf")) {
                return Err(no_model("a single file must be a .gguf"));
            }
            Self::open_gguf(path)
        } else if path.join("config.json").is_file() {
            Self::open_folder(path)
        } else {
            match &json::files_ending(path, ".gguf")?[..] {
                [file] => Self::open_gguf(file),
                [] => Err(no_model("the folder holds neither a config.json nor a .gguf file")),
                several => {
                    let names: Vec<_> = several.iter().filter_map(|file| file.file_name()?.to_str()).collect();
                    Err(no_model(&format!("the folder holds several .gguf files, name one: {}", names.join(", "))))
                }
            }
        }?;
        match &source.network {
            Network::Decoder(config) => Llama::check(config, &source.checkpoint)?,
            Network::Encoder(config) => Bert::check(config, &source.checkpoint)?,
        }
        Ok(source)
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Its chat template, if it has one.
    pub fn chat_template(&self) -> Option<ChatTemplate> {
        self.template.clone()
    }

    /// Builds its tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let tokenizer = match &self.origin {
            Origin::Gguf(path, header) => tokenizer::from_gguf(path, header, self.checkpoint.first_file()),
            Origin::Folder(folder) => Tokenizer::from_json_file(&folder.join("tokenizer.json")),
        }?;
        // An id that the weights have no row for would end the step of everybody in it.
        let (ids, rows) = (tokenizer.vocab_size(), self.info.vocab_size);
        if ids > rows {
            let reason = format!("its ids go up to {}, the weights have rows for {rows}", ids - 1);
            return Err(ModelError::tokenizer(reason));
        }
        Ok(tokenizer)
    }

    /// Bytes that [`load`](Self::load) takes beside the mapped files, from above: the weights, and what a step of `max_tokens`
    /// (or, for an encoder, of one longest input) works in. A header may ask for any amount of the latter.
    pub fn load_bytes(&self, max_tokens: u64) -> u64 {
        const F32: u64 = 4;
        // Numbers for each token, and numbers beside them.
        let (tokens, per_token, table) = match &self.network {
            Network::Decoder(c) => {
                let attention = (2 * c.heads + 2 * c.kv_heads) * c.head_dim;
                (max_tokens, 3 * c.hidden + attention + 3 * c.intermediate, c.context * c.head_dim)
            }
            Network::Encoder(c) => (max_tokens.max(c.max_input_len as u64), 8 * c.hidden + c.intermediate, 0),
        };
        let work = tokens.saturating_mul(per_token as u64).saturating_add(table as u64);
        self.info.weight_bytes.saturating_add(work.saturating_mul(F32))
    }

    /// Bytes that [`load`](Self::load) takes of a GPU, from above: weights in the activations' type or in their blocks, with the
    /// embedding never in blocks, and what a step of `max_tokens` works in.
    pub fn device_bytes(&self, max_tokens: u64, device: &Device) -> u64 {
        let of_element = self.element(device).bytes() as u64;
        let weights: u64 = self
            .checkpoint
            .entries()
            .map(|(_, entry)| match entry.storage.weight {
                Some(WeightType::F32 | WeightType::F16 | WeightType::BF16) => {
                    (entry.shape.iter().product::<usize>() as u64).saturating_mul(of_element)
                }
                _ => entry.range.len() as u64,
            })
            .fold(0, u64::saturating_add);
        let (vocab, hidden) = (u64::from(self.info.vocab_size), u64::from(self.info.hidden));
        // `load_bytes` counts the file's weights once and the workspaces in f32, which is at least what they take here.
        let work = self.load_bytes(max_tokens).saturating_sub(self.info.weight_bytes);
        let logits = 256 * vocab * 4;
        weights.saturating_add(vocab * hidden * of_element).saturating_add(work).saturating_add(logits)
    }

    /// Puts its weights on `device`, which the model keeps for its steps. `max_tokens` is the largest number of tokens of one step;
    /// memory for the activations of such a step is taken here.
    ///
    /// # Errors
    /// When a tensor cannot be read, or the device has no room.
    pub fn load(&self, device: &Device, max_tokens: usize) -> Result<Model, ModelError> {
        if max_tokens == 0 {
            return Err(ModelError::step("a step of no tokens"));
        }
        let heads_too_wide = self.info.head_dim > HEAD_DIM_MAX_CUDA;
        if device.is_cuda() && heads_too_wide {
            let reason = format!("heads of {} features; on a GPU at most {HEAD_DIM_MAX_CUDA}", self.info.head_dim);
            return Err(ModelError::step(reason));
        }
        let place = Place { device: device.clone(), element: self.element(device) };
        match &self.network {
            Network::Decoder(config) => {
                Llama::load(config.clone(), &self.checkpoint, place, max_tokens).map(Model::Generate)
            }
            Network::Encoder(config) => {
                Bert::load(config.clone(), &self.checkpoint, place, max_tokens).map(Model::Embed)
            }
        }
    }

    /// The type of its activations on `device`.
    pub fn element(&self, device: &Device) -> Element {
        device.element(main_type(&self.checkpoint).and_then(|(_, dtype)| dtype).unwrap_or(WeightType::F32))
    }

    /// A KV store for it on `device`.
    ///
    /// # Errors
    /// When there is no such memory.
    pub fn kv_store(&self, blocks: u32, device: &Device) -> Result<KvStore, ModelError> {
        KvStore::on(&self.info, blocks, device.kv_type(self.element(device)), device)
    }

    /// Bytes that one block of that store takes.
    pub fn kv_block_bytes(&self, device: &Device) -> u64 {
        KvStore::bytes_per_block(&self.info, device.kv_type(self.element(device)))
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let (checkpoint, header) = Checkpoint::open_gguf(path)?;
        let unsupported = |reason: String| ModelError::Unsupported { path: path.to_owned(), reason };
        let architecture = match header.text("general.architecture") {
            Some(architecture @ ("llama" | "qwen2" | "qwen3")) => architecture.to_owned(),
            Some(other) => {
                return Err(unsupported(format!("the architecture `{other}` is not built")));
            }
            None => return Err(unsupported("`general.architecture` is missing".into())),
        };
        let vocab = checkpoint.tensor("token_embd.weight")?.shape.first().copied().unwrap_or(0);
        let divisors = match checkpoint.entries().find(|(name, _)| *name == "rope_freqs.weight") {
            Some((name, entry)) => Some(checkpoint.vector(name, entry.shape.iter().product())?),
            None => None,
        };
        let config = DecoderConfig::from_gguf(path, &header, &architecture, vocab, divisors)?;

        let tokens = header.texts(checkpoint.first_file(), "tokenizer.ggml.tokens").unwrap_or_default();
        let types = header.numbers(checkpoint.first_file(), "tokenizer.ggml.token_type").unwrap_or_default();
        let mut eos: Vec<u32> = ["eos_token_id", "eot_token_id", "eom_token_id"]
            .iter()
            .filter_map(|key| header.u32(&format!("tokenizer.ggml.{key}")))
            .collect();
        const CONTROL: f64 = 3.0;
        eos.extend(
            tokens
                .iter()
                .zip(&types)
                .zip(0..)
                .filter(|((token, kind), _)| **kind == CONTROL && END_TOKENS.contains(token))
                .map(|(_, id)| id),
        );
        let bos = header.u32("tokenizer.ggml.bos_token_id");
        let mut info = decoder_info(&architecture, &config, &checkpoint);
        set_ends(&mut info, eos, bos, tokenizer::adds_bos(&header));
        let token = |key: &str| {
            let id = header.u32(&format!("tokenizer.ggml.{key}"));
            id.and_then(|id| tokens.get(id as usize)).map_or(String::new(), |token| (*token).to_owned())
        };
        let template = header.text("tokenizer.chat_template").map(|source| ChatTemplate {
            source: source.to_owned(),
            bos_token: token("bos_token_id"),
            eos_token: token("eos_token_id"),
        });
        if let Some(template) = &template {
            template::check_len(path, &template.source)?;
        }
        drop(tokens);
        Ok(Self {
            info,
            checkpoint,
            network: Network::Decoder(config),
            origin: Origin::Gguf(path.to_owned(), Box::new(header)),
            template,
        })
    }

    fn open_folder(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let config: ConfigJson = json::read(&path)?;
        let name = config.architectures.first().map_or("", String::as_str);
        let architecture = match (name, config.model_type.as_deref()) {
            ("LlamaForCausalLM", _) => "llama",
            ("MistralForCausalLM", _) => "mistral",
            ("Qwen2ForCausalLM", _) => "qwen2",
            ("Qwen3ForCausalLM", _) => "qwen3",
            (_, Some("bert")) if name.starts_with("Bert") || name.is_empty() => "bert",
            (name, kind) => {
                let name = if name.is_empty() { kind.unwrap_or("(none named)") } else { name };
                return Err(ModelError::Unsupported {
                    path,
                    reason: format!("the architecture `{name}` is not built"),
                });
            }
        };
        let checkpoint = Checkpoint::open_safetensors(folder)?;
        let tokenizer_config: TokenizerConfig =
            json::read_if_there(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let template = template::from_folder(folder, &tokenizer_config)?;
        let origin = Origin::Folder(folder.to_owned());

        if architecture == "bert" {
            let encoder = EncoderConfig::from_json(folder, &path, &config)?;
            let info = encoder_info(&encoder, &checkpoint);
            return Ok(Self { info, checkpoint, network: Network::Encoder(encoder), origin, template });
        }
        let decoder = DecoderConfig::from_json(&path, &config)?;
        let generation: GenerationJson =
            json::read_if_there(&folder.join("generation_config.json"))?.unwrap_or_default();
        let head = TokenizerHead::read(&folder.join("tokenizer.json"))?;
        let mut eos = generation.eos_token_id.map(|ids| ids.into_vec()).unwrap_or_default();
        eos.extend(config.eos_token_id.map(|ids| ids.into_vec()).unwrap_or_default());
        eos.extend(
            head.added_tokens
                .iter()
                .filter(|token| token.special && END_TOKENS.contains(&token.content.as_str()))
                .map(|token| token.id),
        );
        let named = tokenizer_config.bos_token().and_then(|bos| head.added_tokens.iter().find(|t| t.content == bos));
        let bos = named.map(|token| token.id).or(config.bos_token_id);
        let adds_bos = tokenizer_config.add_bos_token.unwrap_or_else(|| head.begins_with(bos));
        let mut info = decoder_info(architecture, &decoder, &checkpoint);
        set_ends(&mut info, eos, bos, adds_bos);
        Ok(Self { info, checkpoint, network: Network::Decoder(decoder), origin, template })
    }
}

/// What the attention kernels' registers hold.
const HEAD_DIM_MAX_CUDA: u32 = 256;

/// The parts of a `tokenizer.json` that describe the model; the vocabulary is skipped.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerHead {
    added_tokens: Vec<AddedTokenJson>,
    post_processor: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct AddedTokenJson {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

impl TokenizerHead {
    fn read(path: &Path) -> Result<Self, ModelError> {
        if !path.is_file() {
            return Ok(Self::default());
        }
        let bytes = json::read_bytes(path, json::TOKENIZER_MAX)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| ModelError::Damaged { path: path.to_owned(), reason: error.to_string() })
    }

    /// Whether the post-processor puts `bos` before a text.
    fn begins_with(&self, bos: Option<u32>) -> bool {
        fn mentions(value: &Value, token: &str) -> bool {
            match value {
                Value::Object(map) => {
                    map.get("SpecialToken").and_then(|special| special.get("id")).and_then(Value::as_str) == Some(token)
                        || map.values().any(|value| mentions(value, token))
                }
                Value::Array(values) => values.iter().any(|value| mentions(value, token)),
                _ => false,
            }
        }
        let token = self.added_tokens.iter().find(|token| Some(token.id) == bos);
        match (token, &self.post_processor) {
            (Some(token), Some(post_processor)) => mentions(post_processor, &token.content),
            _ => false,
        }
    }
}

fn set_ends(info: &mut ModelInfo, mut eos: Vec<u32>, bos: Option<u32>, adds_bos: bool) {
    eos.retain(|id| *id < info.vocab_size);
    eos.sort_unstable();
    eos.dedup();
    info.eos = eos;
    info.bos = bos.filter(|id| *id < info.vocab_size);
    info.add_bos = adds_bos && info.bos.is_some();
}

fn decoder_info(architecture: &str, config: &DecoderConfig, checkpoint: &Checkpoint) -> ModelInfo {
    // Every number was bounded far below u32 when the configuration was read.
    ModelInfo {
        architecture: architecture.to_owned(),
        kind: ModelKind::Generate,
        vocab_size: config.vocab as u32,
        context_len: config.context as u32,
        layers: config.layers as u32,
        hidden: config.hidden as u32,
        heads: config.heads as u32,
        kv_heads: config.kv_heads as u32,
        head_dim: config.head_dim as u32,
        eos: Vec::new(),
        bos: None,
        add_bos: false,
        parameters: parameters(checkpoint),
        weight_bytes: weight_bytes(checkpoint),
        quantization: main_type(checkpoint).map_or(String::new(), |(name, _)| name.to_owned()),
        embedding_dim: None,
        max_input_len: config.context as u32,
    }
}

fn encoder_info(config: &EncoderConfig, checkpoint: &Checkpoint) -> ModelInfo {
    ModelInfo {
        architecture: "bert".to_owned(),
        kind: ModelKind::Embed,
        vocab_size: config.vocab as u32,
        context_len: config.positions as u32,
        layers: config.layers as u32,
        hidden: config.hidden as u32,
        heads: config.heads as u32,
        kv_heads: config.heads as u32,
        head_dim: (config.hidden / config.heads) as u32,
        eos: Vec::new(),
        bos: None,
        add_bos: false,
        parameters: parameters(checkpoint),
        weight_bytes: weight_bytes(checkpoint),
        quantization: main_type(checkpoint).map_or(String::new(), |(name, _)| name.to_owned()),
        embedding_dim: Some(config.hidden as u32),
        max_input_len: config.max_input_len as u32,
    }
}

/// Weights, that is elements of float tensors; position numbers that some files store are none.
fn parameters(checkpoint: &Checkpoint) -> u64 {
    let weights = checkpoint.entries().filter(|(_, entry)| entry.storage.weight.is_some());
    weights.map(|(_, entry)| entry.shape.iter().product::<usize>() as u64).sum()
}

fn weight_bytes(checkpoint: &Checkpoint) -> u64 {
    checkpoint.entries().map(|(_, entry)| entry.range.len() as u64).sum()
}

/// The storage type with the most elements, and what it is to kernels; embeddings are often kept finer than the layers.
fn main_type(checkpoint: &Checkpoint) -> Option<(&'static str, Option<WeightType>)> {
    let mut elements: HashMap<&str, (usize, Option<WeightType>)> = HashMap::new();
    for (_, entry) in checkpoint.entries() {
        let entry_elements = elements.entry(entry.storage.name).or_insert((0, entry.storage.weight));
        entry_elements.0 += entry.shape.iter().product::<usize>();
    }
    let most = elements.into_iter().max_by_key(|(name, (count, _))| (*count, *name));
    most.map(|(name, (_, weight))| (name, weight))
}
