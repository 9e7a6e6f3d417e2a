//! Hyperparameters, read from a GGUF header or a `config.json` into checked structs.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::ModelError;
use crate::checkpoint::gguf::Header;

/// Bounds that keep later arithmetic inside `usize` and allocations sane; far above any model.
const LAYERS_MAX: u32 = 1 << 10;
const WIDTH_MAX: u32 = 1 << 20;
const VOCAB_MAX: u32 = 1 << 22;
const CONTEXT_MAX: u32 = 1 << 24;
/// Numbers in the table of rotations, which has a row of `head_dim` for each position: 512 MiB. A million positions of heads of
/// 128 fit; a header that says more would take the memory of the whole machine with one word.
const ROTATIONS_MAX: usize = 1 << 27;
/// Modules of a sentence-transformers model; real ones have up to four.
const MODULES_MAX: usize = 16;
/// Attention works on this many features at a time.
const HEAD_STEP: usize = 16;

/// Which elements of a head a rotation pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// Neighbours: GGUF files of architecture `llama`, whose converter permutes the query and key rows.
    Interleaved,
    /// Element i with element i + head_dim / 2: everybody else.
    Half,
}

/// How tensors are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    Gguf,
    HuggingFace,
}

/// A decoder of the Llama family.
#[derive(Clone, Debug)]
pub(crate) struct DecoderConfig {
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) context: usize,
    pub(crate) rms_eps: f32,
    /// Angle per position of each pair, [head_dim / 2].
    pub(crate) inv_freq: Vec<f64>,
    pub(crate) pairing: Pairing,
    /// A query sees this many positions, itself included.
    pub(crate) window: Option<u32>,
    pub(crate) naming: Naming,
}

/// An encoder of the BERT family.
#[derive(Clone, Debug)]
pub(crate) struct EncoderConfig {
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) positions: usize,
    pub(crate) token_types: usize,
    pub(crate) norm_eps: f32,
    pub(crate) tanh_gelu: bool,
    pub(crate) pooling: Pooling,
    pub(crate) normalize: bool,
    pub(crate) max_input_len: usize,
}

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean,
    /// The first token's.
    Cls,
}

/// Rotation angles: base^(-2i/dim), stretched as the model asks.
#[derive(Clone, Debug, PartialEq)]
enum Stretch {
    None,
    /// All angles divided by the factor.
    Linear(f64),
    /// Llama 3.1: long waves divided by the factor, short ones kept, a ramp between (the paper's appendix states none of
    /// it; the model's `config.json` and reference code do).
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    /// The divisor of each angle, as a GGUF tensor gives it.
    Divisors(Vec<f32>),
}

fn inv_freq(head_dim: usize, base: f64, stretch: &Stretch) -> Vec<f64> {
    (0..head_dim / 2)
        .map(|pair| {
            let plain = base.powf(-2.0 * pair as f64 / head_dim as f64);
            match stretch {
                Stretch::None => plain,
                Stretch::Linear(factor) => plain / factor,
                Stretch::Divisors(divisors) => plain / f64::from(divisors[pair]),
                Stretch::Llama3 { factor, low, high, original } => {
                    let waves = original * plain / std::f64::consts::TAU;
                    let keep = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                    keep * plain + (1.0 - keep) * plain / factor
                }
            }
        })
        .collect()
}

/// Collects the checks of one file, so that each reads as one line.
struct Fields<'a> {
    path: &'a Path,
}

impl Fields<'_> {
    fn refuse(&self, reason: impl Into<String>) -> ModelError {
        ModelError::Unsupported { path: self.path.to_owned(), reason: reason.into() }
    }

    fn count(&self, name: &str, value: Option<u64>, max: u32) -> Result<usize, ModelError> {
        match value {
            Some(value) if (1..=u64::from(max)).contains(&value) => Ok(value as usize),
            Some(value) => Err(self.refuse(format!("`{name}` is {value}, outside 1..={max}"))),
            None => Err(self.refuse(format!("`{name}` is missing or no count"))),
        }
    }

    /// Width of a head where the file states none.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, ModelError> {
        if hidden.is_multiple_of(heads) {
            Ok(hidden / heads)
        } else {
            Err(self.refuse(format!("{hidden} features cannot be shared by {heads} heads")))
        }
    }

    fn positive(&self, name: &str, value: f64) -> Result<f64, ModelError> {
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            Err(self.refuse(format!("`{name}` is {value}, not a positive number")))
        }
    }
}

impl DecoderConfig {
    fn check(self, fields: &Fields<'_>) -> Result<Self, ModelError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            let reason = format!("{} query heads cannot share {} key heads", self.heads, self.kv_heads);
            return Err(fields.refuse(reason));
        }
        if !self.head_dim.is_multiple_of(HEAD_STEP) {
            return Err(fields.refuse(format!("a head of {} is no multiple of {HEAD_STEP}", self.head_dim)));
        }
        if self.heads * self.head_dim > WIDTH_MAX as usize {
            return Err(fields.refuse(format!("{} heads of {} are too wide", self.heads, self.head_dim)));
        }
        if self.context * self.head_dim > ROTATIONS_MAX {
            let reason =
                format!("a context of {} with heads of {} is too large to be run", self.context, self.head_dim);
            return Err(fields.refuse(reason));
        }
        if self.inv_freq.iter().any(|angle| !angle.is_finite()) {
            return Err(fields.refuse("its rotations are no numbers"));
        }
        Ok(self)
    }

    /// From a GGUF header; `divisors` is the tensor `rope_freqs.weight`, `vocab` the rows of the embedding.
    pub(crate) fn from_gguf(
        path: &Path,
        header: &Header,
        architecture: &str,
        vocab: usize,
        divisors: Option<Vec<f32>>,
    ) -> Result<Self, ModelError> {
        let fields = Fields { path };
        let key = |name: &str| format!("{architecture}.{name}");
        let count = |name: &str, max| fields.count(&key(name), header.unsigned(&key(name)), max);
        let hidden = count("embedding_length", WIDTH_MAX)?;
        let heads = count("attention.head_count", WIDTH_MAX)?;
        let kv_heads = match header.get(&key("attention.head_count_kv")) {
            Some(_) => count("attention.head_count_kv", WIDTH_MAX)?,
            None => heads,
        };
        let head_dim = match header.get(&key("attention.key_length")) {
            Some(_) => count("attention.key_length", WIDTH_MAX)?,
            None => fields.head_dim(hidden, heads)?,
        };
        if header.unsigned(&key("attention.value_length")).is_some_and(|len| len != head_dim as u64) {
            return Err(fields.refuse("its key and value heads differ in width"));
        }
        if header.unsigned(&key("rope.dimension_count")).is_some_and(|dim| dim != head_dim as u64) {
            return Err(fields.refuse("it rotates only a part of each head"));
        }
        if header.unsigned(&key("expert_count")).is_some_and(|experts| experts > 0) {
            return Err(fields.refuse("it is a mixture of experts"));
        }
        let base = header.float(&key("rope.freq_base")).unwrap_or(10_000.0);
        let stretch = match (header.text(&key("rope.scaling.type")), divisors) {
            (None | Some("none"), None) => Stretch::None,
            (None | Some("none"), Some(divisors)) => {
                if divisors.len() != head_dim / 2 || divisors.iter().any(|d| !d.is_finite() || *d <= 0.0) {
                    return Err(fields.refuse("its tensor `rope_freqs.weight` does not fit its heads"));
                }
                Stretch::Divisors(divisors)
            }
            (Some("linear"), None) => {
                let factor = header.float(&key("rope.scaling.factor")).unwrap_or(1.0);
                Stretch::Linear(fields.positive("rope.scaling.factor", factor)?)
            }
            (Some(other), _) => {
                return Err(fields.refuse(format!("its rope scaling `{other}` is not built")));
            }
        };
        let base = fields.positive("rope.freq_base", base)?;
        let eps = header
            .float(&key("attention.layer_norm_rms_epsilon"))
            .ok_or_else(|| fields.refuse("`attention.layer_norm_rms_epsilon` is missing"))?;
        Self {
            vocab,
            hidden,
            intermediate: count("feed_forward_length", WIDTH_MAX)?,
            layers: count("block_count", LAYERS_MAX)?,
            heads,
            kv_heads,
            head_dim,
            context: count("context_length", CONTEXT_MAX)?,
            rms_eps: fields.positive("attention.layer_norm_rms_epsilon", eps)? as f32,
            inv_freq: inv_freq(head_dim, base, &stretch),
            pairing: if architecture == "llama" { Pairing::Interleaved } else { Pairing::Half },
            window: header.u32(&key("attention.sliding_window")).filter(|window| *window > 0),
            naming: Naming::Gguf,
        }
        .check(&fields)
    }

    /// From the parsed `config.json` at `path`.
    pub(crate) fn from_json(path: &Path, json: &ConfigJson) -> Result<Self, ModelError> {
        let fields = Fields { path };
        let hidden = fields.count("hidden_size", json.hidden_size, WIDTH_MAX)?;
        let heads = fields.count("num_attention_heads", json.num_attention_heads, WIDTH_MAX)?;
        let kv_heads = match json.num_key_value_heads {
            None => heads,
            kv_heads => fields.count("num_key_value_heads", kv_heads, WIDTH_MAX)?,
        };
        let head_dim = match json.head_dim {
            None => fields.head_dim(hidden, heads)?,
            head_dim => fields.count("head_dim", head_dim, WIDTH_MAX)?,
        };
        if let Some(act) = json.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(fields.refuse(format!("its activation `{act}` is not built for this family")));
        }
        if json.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
            return Err(fields.refuse("it rotates only a part of each head"));
        }
        let context = fields.count("max_position_embeddings", json.max_position_embeddings, CONTEXT_MAX)?;
        // Qwen2 states a window and a switch, Mistral the window alone.
        let window = match (json.sliding_window, json.use_sliding_window) {
            (None, _) | (_, Some(false)) => None,
            (Some(window), _) if window as usize >= context => None,
            (Some(_), Some(true)) => {
                return Err(fields.refuse("it narrows attention in some of its layers (use_sliding_window)"));
            }
            (Some(0), None) => return Err(fields.refuse("`sliding_window` is 0")),
            (Some(window), None) => Some(window),
        };
        let rope = json.rope_parameters.as_ref().or(json.rope_scaling.as_ref());
        let number = |name: &str| rope.and_then(|rope| rope.get(name)).and_then(Value::as_f64);
        let base = number("rope_theta").or(json.rope_theta).unwrap_or(10_000.0);
        let kind = rope.and_then(|rope| rope.get("rope_type").or(rope.get("type"))).and_then(Value::as_str);
        let wanted = |name: &str| {
            let value = number(name).ok_or_else(|| fields.refuse(format!("its rope scaling lacks `{name}`")))?;
            fields.positive(name, value)
        };
        let stretch = match kind {
            None | Some("default") => Stretch::None,
            Some("linear") => Stretch::Linear(wanted("factor")?),
            Some("llama3") => {
                let (low, high) = (wanted("low_freq_factor")?, wanted("high_freq_factor")?);
                if high <= low {
                    return Err(fields.refuse("`high_freq_factor` is not above `low_freq_factor`"));
                }
                let original = wanted("original_max_position_embeddings")?;
                Stretch::Llama3 { factor: wanted("factor")?, low, high, original }
            }
            Some(other) => {
                return Err(fields.refuse(format!("its rope scaling `{other}` is not built")));
            }
        };
        let base = fields.positive("rope_theta", base)?;
        Self {
            vocab: fields.count("vocab_size", json.vocab_size, VOCAB_MAX)?,
            hidden,
            intermediate: fields.count("intermediate_size", json.intermediate_size, WIDTH_MAX)?,
            layers: fields.count("num_hidden_layers", json.num_hidden_layers, LAYERS_MAX)?,
            heads,
            kv_heads,
            head_dim,
            context,
            rms_eps: fields.positive("rms_norm_eps", json.rms_norm_eps.unwrap_or(1e-6))? as f32,
            inv_freq: inv_freq(head_dim, base, &stretch),
            pairing: Pairing::Half,
            window,
            naming: Naming::HuggingFace,
        }
        .check(&fields)
    }
}

impl EncoderConfig {
    /// From the parsed `config.json` of `folder` and the sentence-transformers files beside it.
    pub(crate) fn from_json(folder: &Path, path: &Path, json: &ConfigJson) -> Result<Self, ModelError> {
        let fields = Fields { path };
        if let Some(kind) = json.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(fields.refuse(format!("its position embedding `{kind}` is not built")));
        }
        let tanh_gelu = match json.hidden_act.as_deref() {
            None | Some("gelu") => false,
            Some("gelu_new" | "gelu_pytorch_tanh") => true,
            Some(other) => {
                return Err(fields.refuse(format!("its activation `{other}` is not built for this family")));
            }
        };
        let hidden = fields.count("hidden_size", json.hidden_size, WIDTH_MAX)?;
        let heads = fields.count("num_attention_heads", json.num_attention_heads, WIDTH_MAX)?;
        if !hidden.is_multiple_of(heads) || !(hidden / heads).is_multiple_of(HEAD_STEP) {
            return Err(
                fields.refuse(format!("{hidden} features over {heads} heads are no multiple of {HEAD_STEP} each"))
            );
        }
        let positions = fields.count("max_position_embeddings", json.max_position_embeddings, CONTEXT_MAX)?;
        let sentence: SentenceConfig =
            crate::json::read_if_there(&folder.join("sentence_bert_config.json"))?.unwrap_or_default();
        let max_input_len = sentence.max_seq_length.map_or(positions, |len| positions.min(len as usize));
        if max_input_len < 2 {
            return Err(fields.refuse("its longest input leaves no room for a token"));
        }
        let (pooling, normalize) = sentence_modules(folder)?;
        Ok(Self {
            vocab: fields.count("vocab_size", json.vocab_size, VOCAB_MAX)?,
            hidden,
            intermediate: fields.count("intermediate_size", json.intermediate_size, WIDTH_MAX)?,
            layers: fields.count("num_hidden_layers", json.num_hidden_layers, LAYERS_MAX)?,
            heads,
            positions,
            token_types: fields.count("type_vocab_size", json.type_vocab_size.or(Some(2)), WIDTH_MAX)?,
            norm_eps: fields.positive("layer_norm_eps", json.layer_norm_eps.unwrap_or(1e-12))? as f32,
            tanh_gelu,
            pooling,
            normalize,
            max_input_len,
        })
    }
}

/// A `config.json`, as far as it is used. Counts stay optional here, so that the message can say which one is missing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigJson {
    pub(crate) architectures: Vec<String>,
    pub(crate) model_type: Option<String>,
    vocab_size: Option<u64>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: Option<u64>,
    type_vocab_size: Option<u64>,
    rms_norm_eps: Option<f64>,
    layer_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<HashMap<String, Value>>,
    rope_parameters: Option<HashMap<String, Value>>,
    partial_rotary_factor: Option<f64>,
    sliding_window: Option<u32>,
    use_sliding_window: Option<bool>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    pub(crate) bos_token_id: Option<u32>,
    pub(crate) eos_token_id: Option<OneOrMore>,
}

/// `eos_token_id` is a number or a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

impl OneOrMore {
    pub(crate) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::More(ids) => ids,
        }
    }
}

/// A `generation_config.json`, as far as it is used.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct GenerationJson {
    pub(crate) eos_token_id: Option<OneOrMore>,
}

#[derive(Debug, Default, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct SentenceModule {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Pooling and normalisation that `modules.json` declares. Without one: mean, not normalised, the library's own default.
fn sentence_modules(folder: &Path) -> Result<(Pooling, bool), ModelError> {
    let path = folder.join("modules.json");
    let modules: Vec<SentenceModule> = crate::json::read_if_there(&path)?.unwrap_or_default();
    let fields = Fields { path: &path };
    let (mut pooling, mut normalize) = (Pooling::Mean, false);
    if modules.len() > MODULES_MAX {
        return Err(fields.refuse(format!("it has {} modules, at most {MODULES_MAX} are read", modules.len())));
    }
    for module in modules {
        // A name that leaves the folder is not a part of this model.
        if !module.path.is_empty() && Path::new(&module.path).file_name() != Some(module.path.as_ref()) {
            return Err(fields.refuse(format!("its module at `{}` is outside the folder", module.path)));
        }
        match module.kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" if module.path.is_empty() => {}
            "Pooling" => pooling = pooling_of(&folder.join(&module.path).join("config.json"))?,
            "Normalize" => normalize = true,
            other => {
                return Err(fields.refuse(format!("its module `{other}` at `{}` is not built", module.path)));
            }
        }
    }
    Ok((pooling, normalize))
}

fn pooling_of(path: &Path) -> Result<Pooling, ModelError> {
    let modes: HashMap<String, Value> = crate::json::read(path)?;
    let mut on: Vec<&str> = modes
        .iter()
        .filter(|(name, value)| name.starts_with("pooling_mode_") && **value == Value::Bool(true))
        .map(|(name, _)| name.as_str())
        .collect();
    on.sort_unstable();
    match on[..] {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        _ => Err(Fields { path }.refuse(format!("its pooling {on:?} is not built (mean_tokens and cls_token are)"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let plain = inv_freq(128, 500_000.0, &Stretch::None);
        let stretch = Stretch::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let stretched = inv_freq(128, 500_000.0, &stretch);
        assert_eq!(plain[..20], stretched[..20]);
        assert_eq!(stretched[63], plain[63] / 8.0);
        assert!(stretched.iter().zip(&plain).all(|(s, p)| s <= p && *s >= p / 8.0));
        assert!(stretched.iter().zip(&plain).any(|(s, p)| *s < *p && *s > p / 8.0), "the ramp between");
    }

    #[test]
    fn pooling_modes_other_than_mean_and_first_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let with = |text: &str| {
            std::fs::write(&path, text).unwrap();
            pooling_of(&path)
        };
        assert_eq!(
            with(r#"{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false}"#).unwrap(),
            Pooling::Mean
        );
        assert_eq!(with(r#"{"pooling_mode_cls_token": true}"#).unwrap(), Pooling::Cls);
        assert!(with(r#"{"pooling_mode_max_tokens": true}"#).is_err());
        assert!(with(r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#).is_err());
    }
}
