//! The Llama family: Llama, SmolLM2, Mistral, Qwen2 and Qwen3 are one network with options.
//!
//! RMS norm, grouped-query attention with rotary positions, a gated MLP, residuals around both. Qwen2 adds a bias to q, k and v,
//! Qwen3 a norm to each head of q and k, Mistral may narrow attention to a window; the output matrix may be the embedding.
//! Bias and norm are switched on by the tensors being there.
//!
//! A step is a *ragged batch*: the tokens of all rows one after the other, `[tokens]`, each with its own position. Everything but
//! attention works on tokens and does not know rows; attention finds a row's earlier keys through its block table. Nothing is
//! padded and no row waits for another's length.

use candle_core::Tensor;
use weir_kernels::Matrix;
use weir_kernels::ops::{self, AttentionBatch, AttentionRow, Indices, RopeStyle, RopeTable};

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::config::{DecoderConfig, Naming, Pairing};
use crate::kv::{BLOCK_LEN, KvStore};
use crate::network::{self, Need, Place};

/// Rows whose logits are computed at once; bounds the workspace for steps of many rows and wide vocabularies.
const LOGIT_ROWS: usize = 32;
/// On a GPU, which reads the output matrix once for all of them: 155 MB of logits for 152,000 ids.
const LOGIT_ROWS_CUDA: usize = 256;

fn logit_rows(place: &Place) -> usize {
    if place.device.is_cuda() { LOGIT_ROWS_CUDA } else { LOGIT_ROWS }
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The tokens to compute, at least one.
    pub ids: &'a [u32],
    /// Position of `ids[0]`, that is the number of positions before it, whose keys and values are in the store.
    pub position: u32,
    /// The row's block table: block i holds positions 32 i .. 32 i + 31. At least `(position + ids.len())` positions; longer
    /// is fine.
    pub blocks: &'a [u32],
    /// Whether the logits behind the last token are wanted.
    pub logits: bool,
}

/// A decoder with its weights packed and its workspaces in place.
#[derive(Debug)]
pub struct Llama {
    config: DecoderConfig,
    place: Place,
    rope: RopeTable,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Tensor,
    /// `None`: the output matrix is the embedding.
    head: Option<Matrix>,
    space: Space,
    max_tokens: usize,
    ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    last_tokens: Vec<u32>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Tensor,
    /// q, k and v by rows: `[(heads + 2 kv_heads) * head_dim, hidden]`.
    qkv: Matrix,
    qkv_bias: Option<Tensor>,
    /// `[head_dim]` each.
    qk_norm: Option<(Tensor, Tensor)>,
    output: Matrix,
    mlp_norm: Tensor,
    /// Gate, then up: `[2 intermediate, hidden]`.
    gate_up: Matrix,
    down: Matrix,
}

/// Activations, f32, of the largest step (`tokens` rows) or of the largest chunk of logits.
#[derive(Debug)]
struct Space {
    residual: Tensor,    // [tokens, hidden]
    normed: Tensor,      // [tokens, hidden]
    delta: Tensor,       // [tokens, hidden]
    qkv: Tensor,         // [tokens, (heads + 2 kv_heads) * head_dim]
    attended: Tensor,    // [tokens, heads * head_dim]
    gate_up: Tensor,     // [tokens, 2 intermediate]
    activated: Tensor,   // [tokens, intermediate]
    last: Tensor,        // [LOGIT_ROWS, hidden]
    last_normed: Tensor, // [LOGIT_ROWS, hidden]
    logits: Tensor,      // [LOGIT_ROWS, vocab]
}

/// Parts of a layer; the strings are their names in GGUF and in Hugging Face files.
#[derive(Clone, Copy)]
enum Part {
    AttentionNorm,
    Query,
    Key,
    Value,
    Output,
    QueryNorm,
    KeyNorm,
    MlpNorm,
    Gate,
    Up,
    Down,
}

impl Part {
    fn stem(self, naming: Naming) -> &'static str {
        let (gguf, hugging_face) = match self {
            Self::AttentionNorm => ("attn_norm", "input_layernorm"),
            Self::Query => ("attn_q", "self_attn.q_proj"),
            Self::Key => ("attn_k", "self_attn.k_proj"),
            Self::Value => ("attn_v", "self_attn.v_proj"),
            Self::Output => ("attn_output", "self_attn.o_proj"),
            Self::QueryNorm => ("attn_q_norm", "self_attn.q_norm"),
            Self::KeyNorm => ("attn_k_norm", "self_attn.k_norm"),
            Self::MlpNorm => ("ffn_norm", "post_attention_layernorm"),
            Self::Gate => ("ffn_gate", "mlp.gate_proj"),
            Self::Up => ("ffn_up", "mlp.up_proj"),
            Self::Down => ("ffn_down", "mlp.down_proj"),
        };
        match naming {
            Naming::Gguf => gguf,
            Naming::HuggingFace => hugging_face,
        }
    }
}

/// Names and options of the tensors of one checkpoint.
struct Plan<'a> {
    config: &'a DecoderConfig,
    bias: bool,
    qk_norm: bool,
    head: bool,
}

impl<'a> Plan<'a> {
    fn new(config: &'a DecoderConfig, checkpoint: &Checkpoint) -> Self {
        let mut plan = Self { config, bias: false, qk_norm: false, head: false };
        plan.bias = checkpoint.has(&plan.bias_name(0, Part::Query));
        plan.qk_norm = checkpoint.has(&plan.name(0, Part::QueryNorm));
        plan.head = checkpoint.has(plan.head_name());
        plan
    }

    fn layer(&self, layer: usize, part: Part) -> String {
        let prefix = match self.config.naming {
            Naming::Gguf => "blk",
            Naming::HuggingFace => "model.layers",
        };
        format!("{prefix}.{layer}.{}", part.stem(self.config.naming))
    }

    fn name(&self, layer: usize, part: Part) -> String {
        self.layer(layer, part) + ".weight"
    }

    fn bias_name(&self, layer: usize, part: Part) -> String {
        self.layer(layer, part) + ".bias"
    }

    fn embedding_name(&self) -> &'static str {
        match self.config.naming {
            Naming::Gguf => "token_embd.weight",
            Naming::HuggingFace => "model.embed_tokens.weight",
        }
    }

    fn norm_name(&self) -> &'static str {
        match self.config.naming {
            Naming::Gguf => "output_norm.weight",
            Naming::HuggingFace => "model.norm.weight",
        }
    }

    fn head_name(&self) -> &'static str {
        match self.config.naming {
            Naming::Gguf => "output.weight",
            Naming::HuggingFace => "lm_head.weight",
        }
    }

    /// q, k and v with their rows.
    fn qkv(&self) -> [(Part, usize); 3] {
        let DecoderConfig { heads, kv_heads, head_dim, .. } = *self.config;
        [(Part::Query, heads * head_dim), (Part::Key, kv_heads * head_dim), (Part::Value, kv_heads * head_dim)]
    }

    fn needs(&self) -> Vec<Need> {
        let DecoderConfig { vocab, hidden, intermediate, layers, heads, head_dim, .. } = *self.config;
        let mut needs: Vec<Need> =
            vec![(self.embedding_name().to_owned(), vec![vocab, hidden]), (self.norm_name().to_owned(), vec![hidden])];
        if self.head {
            needs.push((self.head_name().to_owned(), vec![vocab, hidden]));
        }
        for layer in 0..layers {
            let mut need = |part, shape: &[usize]| needs.push((self.name(layer, part), shape.to_vec()));
            need(Part::AttentionNorm, &[hidden]);
            need(Part::MlpNorm, &[hidden]);
            need(Part::Output, &[hidden, heads * head_dim]);
            need(Part::Gate, &[intermediate, hidden]);
            need(Part::Up, &[intermediate, hidden]);
            need(Part::Down, &[hidden, intermediate]);
            for (part, rows) in self.qkv() {
                need(part, &[rows, hidden]);
            }
            if self.qk_norm {
                need(Part::QueryNorm, &[head_dim]);
                need(Part::KeyNorm, &[head_dim]);
            }
            if self.bias {
                needs.extend(self.qkv().map(|(part, rows)| (self.bias_name(layer, part), vec![rows])));
            }
        }
        needs
    }

    fn load_layer(&self, layer: usize, checkpoint: &Checkpoint, place: &Place) -> Result<Layer, ModelError> {
        let DecoderConfig { hidden, intermediate, heads, head_dim, .. } = *self.config;
        let vector = |part, len| place.vectors(checkpoint, &[(self.name(layer, part), len)]);
        let matrix = |parts: &[(Part, usize)], columns| {
            let parts: Vec<_> = parts.iter().map(|(part, rows)| (self.name(layer, *part), *rows)).collect();
            place.matrix(checkpoint, &parts, columns)
        };
        let biases = self.qkv().map(|(part, rows)| (self.bias_name(layer, part), rows));
        Ok(Layer {
            attention_norm: vector(Part::AttentionNorm, hidden)?,
            qkv: matrix(&self.qkv(), hidden)?,
            qkv_bias: if self.bias { Some(place.vectors(checkpoint, &biases)?) } else { None },
            qk_norm: if self.qk_norm {
                Some((vector(Part::QueryNorm, head_dim)?, vector(Part::KeyNorm, head_dim)?))
            } else {
                None
            },
            output: matrix(&[(Part::Output, hidden)], heads * head_dim)?,
            mlp_norm: vector(Part::MlpNorm, hidden)?,
            gate_up: matrix(&[(Part::Gate, intermediate), (Part::Up, intermediate)], hidden)?,
            down: matrix(&[(Part::Down, hidden)], intermediate)?,
        })
    }
}

impl Llama {
    /// Checks that `checkpoint` holds this network and nothing else.
    pub(crate) fn check(config: &DecoderConfig, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        network::check(checkpoint, &Plan::new(config, checkpoint).needs(), |name| {
            // Angles that the configuration states, too.
            name == "rope_freqs.weight" || name.ends_with("rotary_emb.inv_freq")
        })
    }

    /// Puts the weights where they are used.
    pub(crate) fn load(
        config: DecoderConfig,
        checkpoint: &Checkpoint,
        place: Place,
        max_tokens: usize,
    ) -> Result<Self, ModelError> {
        let DecoderConfig { vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, .. } = config;
        let plan = Plan::new(&config, checkpoint);
        let embedding = place.table(checkpoint, plan.embedding_name(), vocab, hidden)?;
        let head = if plan.head {
            Some(place.matrix(checkpoint, &[(plan.head_name().to_owned(), vocab)], hidden)?)
        } else {
            None
        };
        let norm = place.vectors(checkpoint, &[(plan.norm_name().to_owned(), hidden)])?;
        let layers =
            (0..layers).map(|layer| plan.load_layer(layer, checkpoint, &place)).collect::<Result<Vec<_>, _>>()?;
        let logit_rows = logit_rows(&place).min(max_tokens);
        let space = Space {
            residual: place.workspace(max_tokens, hidden)?,
            normed: place.workspace(max_tokens, hidden)?,
            delta: place.workspace(max_tokens, hidden)?,
            qkv: place.workspace(max_tokens, (heads + 2 * kv_heads) * head_dim)?,
            attended: place.workspace(max_tokens, heads * head_dim)?,
            gate_up: place.workspace(max_tokens, 2 * intermediate)?,
            activated: place.workspace(max_tokens, intermediate)?,
            last: place.workspace(logit_rows, hidden)?,
            last_normed: place.workspace(logit_rows, hidden)?,
            logits: place.floats(logit_rows, vocab)?,
        };
        Ok(Self {
            place,
            rope: RopeTable::new(&config.inv_freq, config.context),
            embedding,
            layers,
            norm,
            head,
            space,
            max_tokens,
            ids: Vec::with_capacity(max_tokens),
            positions: Vec::with_capacity(max_tokens),
            slots: Vec::with_capacity(max_tokens),
            last_tokens: Vec::with_capacity(max_tokens),
            config,
        })
    }

    /// The largest step, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Runs one step: computes the tokens of all `rows`, writes their keys and values into `kv`, and puts the logits behind
    /// the last token of each row that wants them into `logits`, `[rows that want them, vocab]` in row order.
    ///
    /// The numbers of a row depend on its own tokens and positions only, to the bit: not on the other rows, and not on how
    /// its tokens are spread over steps.
    ///
    /// # Errors
    /// When the step is larger than the model was loaded for, a row is empty, passes the context or its block table, or
    /// names an id or a block that does not exist. Nothing was written then.
    pub fn forward(&mut self, rows: &[Row<'_>], kv: &KvStore, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        logits.clear();
        let place = self.place.clone();
        self.forward_with(rows, kv, |_, scores| place.append_rows(logits, scores))
    }

    /// As [`Llama::forward`], but gives the logits away where they lie: calls `take` with the number of wanting rows before and a
    /// tensor `[rows of this part, vocab]` f32 on the model's device, which is written anew for the next part.
    ///
    /// # Errors
    /// As [`Llama::forward`], and what `take` says.
    pub fn forward_with(
        &mut self,
        rows: &[Row<'_>],
        kv: &KvStore,
        take: impl FnMut(usize, &Tensor) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        self.lay_out(rows, kv)?;
        if self.ids.is_empty() {
            return Ok(());
        }
        let spans = attention_rows(rows);
        self.run_layers(&spans, kv.tensor())?;
        self.run_head(take)
    }

    /// Lays the rows out as tokens and checks them.
    fn lay_out(&mut self, rows: &[Row<'_>], kv: &KvStore) -> Result<(), ModelError> {
        self.ids.clear();
        self.positions.clear();
        self.slots.clear();
        self.last_tokens.clear();
        let total: usize = rows.iter().map(|row| row.ids.len()).sum();
        if total > self.max_tokens {
            return Err(ModelError::step(format!("{total} tokens, the model was loaded for {}", self.max_tokens)));
        }
        for (index, row) in rows.iter().enumerate() {
            let end = row.position as usize + row.ids.len();
            let refuse = |reason: String| Err(ModelError::step(format!("row {index}: {reason}")));
            if row.ids.is_empty() {
                return refuse("no tokens".into());
            }
            if end > self.config.context {
                return refuse(format!("position {} is past the context of {}", end - 1, self.config.context));
            }
            if end > row.blocks.len() * BLOCK_LEN {
                return refuse(format!("{} blocks do not hold {end} positions", row.blocks.len()));
            }
            if let Some(block) = row.blocks.iter().find(|block| **block >= kv.blocks()) {
                return refuse(format!("block {block} is outside the store of {}", kv.blocks()));
            }
            if let Some(id) = row.ids.iter().find(|id| **id as usize >= self.config.vocab) {
                return refuse(format!("token id {id} is outside the vocabulary of {}", self.config.vocab));
            }
            self.ids.extend_from_slice(row.ids);
            for position in row.position as usize..end {
                let block = row.blocks[position / BLOCK_LEN];
                self.positions.push(position as u32);
                self.slots.push(block * BLOCK_LEN as u32 + (position % BLOCK_LEN) as u32);
            }
            if row.logits {
                self.last_tokens.push(self.ids.len() as u32 - 1);
            }
        }
        Ok(())
    }

    fn run_layers(&self, spans: &[AttentionRow<'_>], kv: &Tensor) -> Result<(), ModelError> {
        let DecoderConfig { heads, kv_heads, head_dim, rms_eps, window, .. } = self.config;
        let (device, tokens) = (&self.place.device, self.ids.len());
        // Told to a GPU once for all layers.
        let [ids, positions, slots] = [&self.ids, &self.positions, &self.slots].map(|list| Indices::from(&list[..]));
        let batch = AttentionBatch::from(spans);
        let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let scale = (1.0 / (head_dim as f64).sqrt()) as f32;
        let style = match self.config.pairing {
            Pairing::Interleaved => RopeStyle::Interleaved,
            Pairing::Half => RopeStyle::Half,
        };
        let residual = network::rows(&self.space.residual, tokens)?;
        let normed = network::rows(&self.space.normed, tokens)?;
        let delta = network::rows(&self.space.delta, tokens)?;
        let attended = network::rows(&self.space.attended, tokens)?;
        let gate_up = network::rows(&self.space.gate_up, tokens)?;
        let activated = network::rows(&self.space.activated, tokens)?;
        let qkv = network::rows(&self.space.qkv, tokens)?;
        let q = qkv.narrow(1, 0, q_width)?;
        let k = qkv.narrow(1, q_width, kv_width)?;
        let v = qkv.narrow(1, q_width + kv_width, kv_width)?;
        let qk = qkv.narrow(1, 0, q_width + kv_width)?;

        ops::embed(&residual, &ids, &self.embedding, device)?;
        for (index, layer) in self.layers.iter().enumerate() {
            if index == 0 {
                ops::rms_norm(&normed, &residual, &layer.attention_norm, rms_eps, device)?;
            } else {
                ops::add_rms_norm(&normed, &residual, &delta, &layer.attention_norm, rms_eps, device)?;
            }
            ops::matmul(&qkv, &normed, &layer.qkv, layer.qkv_bias.as_ref(), device)?;
            if let Some((q_norm, k_norm)) = &layer.qk_norm {
                ops::head_rms_norm(&q, q_norm, rms_eps, device)?;
                ops::head_rms_norm(&k, k_norm, rms_eps, device)?;
            }
            ops::rope(&qk, head_dim, &positions, &self.rope, style, device)?;
            ops::kv_write(kv, &k, &v, index, &slots, device)?;
            ops::paged_attention(&attended, &q, kv, index, &batch, heads, scale, window, device)?;
            ops::matmul(&delta, &attended, &layer.output, None, device)?;
            ops::add_rms_norm(&normed, &residual, &delta, &layer.mlp_norm, rms_eps, device)?;
            ops::matmul(&gate_up, &normed, &layer.gate_up, None, device)?;
            ops::silu_mul(&activated, &gate_up, device)?;
            ops::matmul(&delta, &activated, &layer.down, None, device)?;
        }
        ops::add(&residual, &delta, device)?;
        Ok(())
    }

    fn run_head(&self, mut take: impl FnMut(usize, &Tensor) -> Result<(), ModelError>) -> Result<(), ModelError> {
        let device = &self.place.device;
        let part_len = logit_rows(&self.place);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let residual = network::rows(&self.space.residual, self.ids.len())?;
        for (part, chunk) in self.last_tokens.chunks(part_len).enumerate() {
            let last = network::rows(&self.space.last, chunk.len())?;
            let normed = network::rows(&self.space.last_normed, chunk.len())?;
            let scores = network::rows(&self.space.logits, chunk.len())?;
            ops::gather_rows(&last, &residual, &Indices::from(chunk), device)?;
            ops::rms_norm(&normed, &last, &self.norm, self.config.rms_eps, device)?;
            ops::matmul(&scores, &normed, head, None, device)?;
            take(part * part_len, &scores)?;
        }
        Ok(())
    }
}

fn attention_rows<'a>(rows: &[Row<'a>]) -> Vec<AttentionRow<'a>> {
    let mut first_token = 0;
    rows.iter()
        .map(|row| {
            let tokens = row.ids.len() as u32;
            let span = AttentionRow { first_token, tokens, context: row.position, blocks: row.blocks };
            first_token += tokens;
            span
        })
        .collect()
}
