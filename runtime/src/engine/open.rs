//! Models before they are loaded: where their files are, what they say of themselves, their codec.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use weir_models::{ModelInfo, ModelKind, ModelSource};

use super::models::Served;
use crate::{
    card::ModelCard,
    codec::{BYTES_VOCABULARY, Codec},
    config::{ExecutorMode, ModelLocation, ModelSpec},
    error::EngineError,
    executor::{
        fake::{FAKE_CONTEXT_LEN, FAKE_EMBEDDING_DIM},
        wire::LoadModel,
    },
    inspect::{InspectError, ModelRefusal, inspect_apart},
    node::NodeModel,
};

/// A model whose files were read, but not its weights.
pub(super) struct OpenedModel {
    card: ModelCard,
    codec: Arc<Codec>,
    eos: Vec<u32>,
    path: PathBuf,
    pub(super) load: LoadModel,
    /// Bytes that loading it takes.
    pub(super) load_bytes: u64,
}

impl OpenedModel {
    pub(super) fn node_model(&self) -> NodeModel {
        NodeModel {
            name: self.card.name.clone(),
            codec: self.codec.clone(),
            context_len: self.card.context_len,
            embeds_only: !self.card.generates,
            path: self.path.clone(),
        }
    }

    pub(super) fn served(self) -> Served {
        let embed_len_max = match self.load {
            // A fake model has no limit of its own; this is what encoders usually take.
            LoadModel::Fake { .. } => 512,
            LoadModel::Path(_) | LoadModel::Elsewhere => self.card.context_len,
        };
        Served { card: Arc::new(self.card), codec: self.codec, eos: self.eos.into(), embed_len_max }
    }
}

/// Opens models for one engine.
#[derive(Clone)]
pub(super) struct Opener {
    /// Where models are inspected first.
    pub(super) mode: ExecutorMode,
    /// Tokens of a step, which they will be loaded for.
    pub(super) step_tokens_max: u32,
}

impl Opener {
    /// Finds a model and opens it.
    pub(super) fn model(&self, spec: &ModelSpec) -> Result<OpenedModel, EngineError> {
        match &spec.source {
            ModelLocation::Fake(cost) => {
                let codec = Codec::bytes(cost.text).map_err(|e| model_error(spec, Path::new("fake"), e))?;
                let card = ModelCard {
                    name: spec.name.clone(),
                    generates: true,
                    embeds: true,
                    context_len: FAKE_CONTEXT_LEN,
                    vocab_size: BYTES_VOCABULARY.size,
                    embedding_dim: Some(FAKE_EMBEDDING_DIM),
                    has_chat_template: true,
                    created: unix_seconds(),
                    parameters: 0,
                    quantization: "none".into(),
                    architecture: "fake".into(),
                };
                let load = LoadModel::Fake { cost: *cost, seed: 0 };
                let eos = vec![BYTES_VOCABULARY.end];
                Ok(OpenedModel { card, codec: Arc::new(codec), eos, path: PathBuf::from("fake"), load, load_bytes: 0 })
            }
            ModelLocation::Path(path) => self.path(spec, path).map_err(|e| model_error(spec, path, e)),
            #[cfg(feature = "hub")]
            ModelLocation::Hub { id, revision, file } => {
                let folder = crate::hub::fetch(id, revision.as_deref(), file.as_deref())
                    .map_err(|e| EngineError::Hub { name: spec.name.clone(), message: e.to_string() })?;
                self.path(spec, &folder).map_err(|e| model_error(spec, &folder, e))
            }
            #[cfg(not(feature = "hub"))]
            ModelLocation::Hub { .. } => Err(EngineError::Hub {
                name: spec.name.clone(),
                message: "this build cannot download: the `hub` feature is off".into(),
            }),
        }
    }

    /// Opens the files of a model, after a process of its own has found them sound.
    pub(super) fn path(&self, spec: &ModelSpec, path: &Path) -> Result<OpenedModel, InspectError> {
        inspect_apart(&self.mode, path)?;
        let source = ModelSource::open(path).map_err(ModelRefusal::from)?;
        let tokenizer = source.tokenizer().map_err(ModelRefusal::from)?;
        let template = source.chat_template();
        let codec = Codec::new(tokenizer, template.as_ref()).map_err(ModelRefusal::from)?;
        let info: &ModelInfo = source.info();
        let embeds = info.kind == ModelKind::Embed;
        let card = ModelCard {
            name: spec.name.clone(),
            generates: !embeds,
            embeds,
            context_len: if embeds { info.max_input_len } else { info.context_len },
            vocab_size: info.vocab_size,
            embedding_dim: info.embedding_dim,
            has_chat_template: codec.has_template(),
            created: unix_seconds(),
            parameters: info.parameters,
            quantization: info.quantization.clone(),
            architecture: info.architecture.clone(),
        };
        let absolute = std::path::absolute(path).map_err(|e| InspectError::NotStarted(e.to_string()))?;
        let load = LoadModel::Path(absolute.to_string_lossy().into_owned());
        Ok(OpenedModel {
            card,
            codec: Arc::new(codec),
            eos: info.eos.clone(),
            path: path.to_owned(),
            load,
            load_bytes: source.load_bytes(u64::from(self.step_tokens_max)),
        })
    }
}

fn model_error(spec: &ModelSpec, path: &Path, error: impl std::fmt::Display) -> EngineError {
    EngineError::Model { name: spec.name.clone(), path: path.to_owned(), message: error.to_string() }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
