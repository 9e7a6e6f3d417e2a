//! The models that are served: a list that grows while requests read it.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::oneshot;

use super::Engine;
use crate::{
    card::ModelCard,
    codec::Codec,
    config::{ModelLocation, ModelSpec, model_name_is_plain},
    error::AddModelError,
    inspect::InspectError,
    memory::memory_available,
    node::message::{AddModel, NodeMessage},
};

/// Models that one engine serves. Each has a KV cache of its own, so memory ends long before.
pub const MODELS_LEN_MAX: usize = 64;

/// A model on the callers' side.
pub(super) struct Served {
    pub(super) card: Arc<ModelCard>,
    pub(super) codec: Arc<Codec>,
    pub(super) eos: Arc<[u32]>,
    pub(super) embed_len_max: u32,
}

/// All of them, in the order of their ids. Readers take the list as it is and keep it as long as they like; whoever adds puts a
/// longer one in its place.
pub(super) struct ServedModels(RwLock<Arc<[Arc<Served>]>>);

impl ServedModels {
    pub(super) fn new(models: impl Iterator<Item = Served>) -> Self {
        ServedModels(RwLock::new(models.map(Arc::new).collect()))
    }

    pub(super) fn all(&self) -> Arc<[Arc<Served>]> {
        // A list is put in place whole, so whoever panicked left a good one.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The model of that name and its id.
    pub(super) fn find(&self, name: &str) -> Option<(usize, Arc<Served>)> {
        self.all().iter().enumerate().find(|(_, model)| model.card.name == name).map(|(id, model)| (id, model.clone()))
    }

    fn push(&self, model: Arc<Served>) {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *list = list.iter().cloned().chain([model]).collect();
    }
}

impl Engine {
    /// Loads the model at `path` beside those that are served, under a name of its own. They go on meanwhile; nobody sees the
    /// new one before it is ready, and if it does not become ready nothing of it stays. One model is added at a time.
    ///
    /// # Errors
    /// Why it is not served.
    pub async fn add_model(&self, name: String, path: PathBuf) -> Result<Arc<ModelCard>, AddModelError> {
        let engine = self.clone();
        // A caller that goes away must not leave half a model behind: this runs to its end.
        let added = tokio::spawn(async move { engine.add_model_now(name, path).await }).await;
        added.unwrap_or_else(|error| Err(AddModelError::Failed(error.to_string())))
    }

    async fn add_model_now(&self, name: String, path: PathBuf) -> Result<Arc<ModelCard>, AddModelError> {
        let shared = &self.shared;
        let _turn = shared.adding.try_lock().map_err(|_| AddModelError::Busy)?;
        if shared.status.is_draining() {
            return Err(AddModelError::Draining);
        }
        if !model_name_is_plain(&name) {
            return Err(AddModelError::Name(name));
        }
        let served = shared.models.all();
        if served.iter().any(|model| model.card.name == name) {
            return Err(AddModelError::Taken(name));
        }
        if served.len() >= MODELS_LEN_MAX {
            return Err(AddModelError::Full);
        }
        let (opener, spec) =
            (shared.opener.clone(), ModelSpec { name, source: ModelLocation::Path(path.clone()), devices: Vec::new() });
        let opened = tokio::task::spawn_blocking(move || opener.path(&spec, &path))
            .await
            .map_err(|error| AddModelError::Failed(error.to_string()))?
            .map_err(|error| match error {
                InspectError::Refused(refusal) => AddModelError::Refused(refusal),
                InspectError::NotStarted(message) => AddModelError::Failed(message),
            })?;
        // Each CPU device has a copy of its own.
        let needed = opened.load_bytes.saturating_mul(shared.cpu_devices.max(1));
        if let Some(available) = memory_available().filter(|available| *available < needed) {
            return Err(AddModelError::NoMemory { needed, available });
        }
        let (done, loaded) = oneshot::channel();
        let add = AddModel { model: opened.node_model(), load: opened.load.clone(), done };
        let gone = |_| AddModelError::Failed("the engine has ended".into());
        shared.inbox.send(NodeMessage::AddModel(Box::new(add))).map_err(|_| AddModelError::Draining)?;
        let id = loaded.await.map_err(gone)??;
        // Ids are places in this list, and only one is added at a time.
        assert_eq!(id.0 as usize, served.len(), "the engine thread and its callers count models alike");
        let model = Arc::new(opened.served());
        shared.models.push(model.clone());
        Ok(model.card.clone())
    }
}
