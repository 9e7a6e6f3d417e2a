//! BERT: bidirectional encoders that turn a text into one vector.
//!
//! Word, position and type embeddings, then layers of attention over the whole text and a plain MLP with gelu, each followed by
//! add-and-norm. The vectors of a text's tokens are pooled as the model's folder declares. Texts of different lengths lie one
//! after the other in a step; attention stays inside each.

use candle_core::Tensor;
use weir_kernels::ops::{self, GeluKind, Indices, Segments};
use weir_kernels::{Matrix, PackedSource, WeightType, spec};

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::config::{EncoderConfig, Pooling};
use crate::network::{self, Need, Place};

/// An encoder with its weights packed and its workspaces in place.
#[derive(Debug)]
pub struct Bert {
    config: EncoderConfig,
    place: Place,
    words: Matrix,
    /// Position embedding plus the embedding of type 0: every input is one text.
    positions: Matrix,
    norm: Norm,
    layers: Vec<Layer>,
    space: Space,
    max_tokens: usize,
}

/// Weight and bias of a layer norm.
#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

/// A matrix with its bias.
#[derive(Debug)]
struct Linear {
    weight: Matrix,
    bias: Tensor,
}

#[derive(Debug)]
struct Layer {
    /// q, k and v by rows.
    qkv: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    mlp_norm: Norm,
}

/// Activations, f32, of the largest step.
#[derive(Debug)]
struct Space {
    state: Tensor,    // [tokens, hidden]
    middle: Tensor,   // [tokens, hidden]
    delta: Tensor,    // [tokens, hidden]
    qkv: Tensor,      // [tokens, 3 hidden]
    attended: Tensor, // [tokens, hidden]
    wide: Tensor,     // [tokens, intermediate]
    pooled: Tensor,   // [inputs, hidden]; an input has at least one token
}

/// Names of the tensors of one checkpoint: with or without `bert.` before them, norms in today's words or in those of the
/// first TensorFlow checkpoints.
struct Plan<'a> {
    config: &'a EncoderConfig,
    prefix: &'static str,
    norm_words: [&'static str; 2],
}

const EMBEDDINGS: &str = "embeddings";

impl<'a> Plan<'a> {
    fn new(config: &'a EncoderConfig, checkpoint: &Checkpoint) -> Self {
        let prefix = if checkpoint.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        let old = checkpoint.has(&format!("{prefix}embeddings.LayerNorm.gamma"));
        Self { config, prefix, norm_words: if old { ["gamma", "beta"] } else { ["weight", "bias"] } }
    }

    fn embedding(&self, kind: &str) -> String {
        format!("{}{EMBEDDINGS}.{kind}_embeddings.weight", self.prefix)
    }

    fn layer(&self, layer: usize, part: &str) -> String {
        format!("{}encoder.layer.{layer}.{part}", self.prefix)
    }

    fn norm(&self, stem: &str) -> [(String, usize); 2] {
        self.norm_words.map(|word| (format!("{stem}.LayerNorm.{word}"), self.config.hidden))
    }

    /// The matrices of a layer: name, rows, columns.
    fn matrices(&self, layer: usize) -> [(String, usize, usize); 6] {
        let EncoderConfig { hidden, intermediate, .. } = *self.config;
        [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", intermediate, hidden),
            ("output.dense", hidden, intermediate),
        ]
        .map(|(part, rows, columns)| (self.layer(layer, part), rows, columns))
    }

    fn norms(&self, layer: usize) -> [[(String, usize); 2]; 2] {
        ["attention.output", "output"].map(|part| self.norm(&self.layer(layer, part)))
    }

    fn needs(&self) -> Vec<Need> {
        let EncoderConfig { vocab, hidden, layers, positions, token_types, .. } = *self.config;
        let mut needs = vec![
            (self.embedding("word"), vec![vocab, hidden]),
            (self.embedding("position"), vec![positions, hidden]),
            (self.embedding("token_type"), vec![token_types, hidden]),
        ];
        let vector = |(name, len)| (name, vec![len]);
        needs.extend(self.norm(&format!("{}{EMBEDDINGS}", self.prefix)).map(vector));
        for layer in 0..layers {
            for (name, rows, columns) in self.matrices(layer) {
                needs.push((format!("{name}.bias"), vec![rows]));
                needs.push((format!("{name}.weight"), vec![rows, columns]));
            }
            needs.extend(self.norms(layer).into_iter().flatten().map(vector));
        }
        needs
    }

    fn load_norm(
        &self,
        checkpoint: &Checkpoint,
        [weight, bias]: [(String, usize); 2],
        place: &Place,
    ) -> Result<Norm, ModelError> {
        Ok(Norm { weight: place.vectors(checkpoint, &[weight])?, bias: place.vectors(checkpoint, &[bias])? })
    }

    fn load_layer(&self, layer: usize, checkpoint: &Checkpoint, place: &Place) -> Result<Layer, ModelError> {
        let matrices = self.matrices(layer);
        let linear = |parts: &[(String, usize, usize)]| {
            let columns = parts.first().map_or(0, |(_, _, columns)| *columns);
            let named = |suffix: &str| -> Vec<(String, usize)> {
                parts.iter().map(|(name, rows, _)| (format!("{name}.{suffix}"), *rows)).collect()
            };
            Ok::<_, ModelError>(Linear {
                weight: place.matrix(checkpoint, &named("weight"), columns)?,
                bias: place.vectors(checkpoint, &named("bias"))?,
            })
        };
        let [attention_norm, mlp_norm] = self.norms(layer);
        Ok(Layer {
            qkv: linear(&matrices[..3])?,
            output: linear(&matrices[3..4])?,
            attention_norm: self.load_norm(checkpoint, attention_norm, place)?,
            up: linear(&matrices[4..5])?,
            down: linear(&matrices[5..])?,
            mlp_norm: self.load_norm(checkpoint, mlp_norm, place)?,
        })
    }
}

impl Bert {
    /// Checks that `checkpoint` holds this network.
    pub(crate) fn check(config: &EncoderConfig, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let plan = Plan::new(config, checkpoint);
        network::check(checkpoint, &plan.needs(), |name| {
            // Heads of the pre-training tasks, and numbers 0, 1, 2 ... that old versions of the library stored.
            let name = name.strip_prefix(plan.prefix).unwrap_or(name);
            ["pooler.", "cls."].iter().any(|head| name.starts_with(head)) || name == "embeddings.position_ids"
        })
    }

    /// Puts the weights where they are used.
    pub(crate) fn load(
        config: EncoderConfig,
        checkpoint: &Checkpoint,
        place: Place,
        max_tokens: usize,
    ) -> Result<Self, ModelError> {
        let EncoderConfig { vocab, hidden, intermediate, layers, positions, token_types, .. } = config;
        let plan = Plan::new(&config, checkpoint);
        let types = checkpoint.floats(&plan.embedding("token_type"), &[token_types, hidden])?;
        let mut position_rows = checkpoint.floats(&plan.embedding("position"), &[positions, hidden])?;
        for row in position_rows.chunks_exact_mut(hidden) {
            for (value, of_type) in row.iter_mut().zip(&types) {
                *value += of_type;
            }
        }
        let position_bytes: Vec<u8> = position_rows.iter().flat_map(|value| value.to_le_bytes()).collect();
        let position_source = PackedSource { dtype: WeightType::F32, n: positions, k: hidden, bytes: &position_bytes };
        let space = Space {
            state: place.workspace(max_tokens, hidden)?,
            middle: place.workspace(max_tokens, hidden)?,
            delta: place.workspace(max_tokens, hidden)?,
            qkv: place.workspace(max_tokens, 3 * hidden)?,
            attended: place.workspace(max_tokens, hidden)?,
            wide: place.workspace(max_tokens, intermediate)?,
            pooled: place.workspace(max_tokens, hidden)?,
        };
        Ok(Self {
            words: place.table(checkpoint, &plan.embedding("word"), vocab, hidden)?,
            positions: Matrix::table(&[position_source], place.element, &place.device)?,
            norm: plan.load_norm(checkpoint, plan.norm(&format!("{}{EMBEDDINGS}", plan.prefix)), &place)?,
            layers: (0..layers).map(|layer| plan.load_layer(layer, checkpoint, &place)).collect::<Result<_, _>>()?,
            place,
            space,
            max_tokens,
            config,
        })
    }

    /// The largest step, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Embeds `inputs`, token ids with the control tokens the model wants around them, into `out`, `[inputs, dim]` in order.
    /// An input's vector depends on that input only, to the bit.
    ///
    /// # Errors
    /// When the inputs together are more than the model was loaded for, one is empty or too long, or an id does not exist.
    pub fn forward(&mut self, inputs: &[&[u32]], out: &mut Vec<f32>) -> Result<(), ModelError> {
        out.clear();
        let total: usize = inputs.iter().map(|input| input.len()).sum();
        if total > self.max_tokens {
            return Err(ModelError::step(format!("{total} tokens, the model was loaded for {}", self.max_tokens)));
        }
        for (index, input) in inputs.iter().enumerate() {
            if input.is_empty() || input.len() > self.config.max_input_len {
                let bound = self.config.max_input_len;
                return Err(ModelError::step(format!("input {index} has {} tokens, outside 1..={bound}", input.len())));
            }
            if let Some(id) = input.iter().find(|id| **id as usize >= self.config.vocab) {
                let vocab = self.config.vocab;
                return Err(ModelError::step(format!("input {index}: id {id} is outside the vocabulary of {vocab}")));
            }
        }
        if inputs.is_empty() {
            return Ok(());
        }
        let ids: Vec<u32> = inputs.iter().flat_map(|input| input.iter().copied()).collect();
        let positions: Vec<u32> = inputs.iter().flat_map(|input| 0..input.len() as u32).collect();
        let lens: Vec<u32> = inputs.iter().map(|input| input.len() as u32).collect();
        let segments = Segments::from(&lens[..]);
        self.run_layers(&ids.into(), &positions.into(), &segments)?;

        let state = network::rows(&self.space.state, total)?;
        let pooled = network::rows(&self.space.pooled, inputs.len())?;
        match self.config.pooling {
            Pooling::Mean => ops::mean_pool(&pooled, &state, &segments, &self.place.device)?,
            Pooling::Cls => ops::cls_pool(&pooled, &state, &segments, &self.place.device)?,
        }
        let in_floats = pooled.dtype() == candle_core::DType::F32;
        if self.config.normalize && in_floats {
            ops::l2_normalize(&pooled, &self.place.device)?;
        }
        self.place.append_rows(out, &pooled)?;
        // Of a narrower type the length would be 1 to three digits only.
        if self.config.normalize && !in_floats {
            out.chunks_exact_mut(self.config.hidden).for_each(spec::l2_normalize);
        }
        Ok(())
    }

    fn run_layers(&self, ids: &Indices, positions: &Indices, segments: &Segments) -> Result<(), ModelError> {
        let EncoderConfig { hidden, heads, norm_eps, .. } = self.config;
        let (device, tokens) = (&self.place.device, ids.len());
        let head_dim = hidden / heads;
        let scale = (1.0 / (head_dim as f64).sqrt()) as f32;
        let gelu = if self.config.tanh_gelu { GeluKind::Tanh } else { GeluKind::Erf };
        let state = network::rows(&self.space.state, tokens)?;
        let middle = network::rows(&self.space.middle, tokens)?;
        let delta = network::rows(&self.space.delta, tokens)?;
        let qkv = network::rows(&self.space.qkv, tokens)?;
        let attended = network::rows(&self.space.attended, tokens)?;
        let wide = network::rows(&self.space.wide, tokens)?;

        ops::embed(&delta, ids, &self.words, device)?;
        ops::embed(&middle, positions, &self.positions, device)?;
        ops::add_layer_norm(&state, &delta, &middle, &self.norm.weight, &self.norm.bias, norm_eps, device)?;
        for layer in &self.layers {
            ops::matmul(&qkv, &state, &layer.qkv.weight, Some(&layer.qkv.bias), device)?;
            ops::segment_attention(&attended, &qkv, segments, heads, head_dim, scale, device)?;
            ops::matmul(&delta, &attended, &layer.output.weight, Some(&layer.output.bias), device)?;
            let norm = &layer.attention_norm;
            ops::add_layer_norm(&middle, &delta, &state, &norm.weight, &norm.bias, norm_eps, device)?;
            ops::matmul(&wide, &middle, &layer.up.weight, Some(&layer.up.bias), device)?;
            ops::gelu(&wide, gelu, device)?;
            ops::matmul(&delta, &wide, &layer.down.weight, Some(&layer.down.bias), device)?;
            let norm = &layer.mlp_norm;
            ops::add_layer_norm(&state, &delta, &middle, &norm.weight, &norm.bias, norm_eps, device)?;
        }
        Ok(())
    }
}
