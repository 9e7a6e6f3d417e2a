//! Models that join while others are served: told to the executors, and entered in the tables when all have them.

use weir_scheduler::{DeviceId, ModelId, ModelLimits};

use super::{Node, device::Device, message::AddModel};
use crate::{
    error::AddModelError,
    executor::wire::{LoadedModel, ToExecutor},
    inspect::{ModelFault, ModelRefusal},
};

/// A model that the executors are loading, and what those that are done said.
pub(super) struct Adding {
    add: AddModel,
    loaded: Vec<(usize, LoadedModel)>,
}

impl Node {
    /// Tells every executor to load a model. Nothing is entered anywhere before all have.
    pub(super) fn add_model(&mut self, add: AddModel) {
        if self.adding.is_some() {
            let _ = add.done.send(Err(AddModelError::Busy));
            return;
        }
        if !self.devices.iter().all(Device::is_ready) {
            let _ = add.done.send(Err(AddModelError::ExecutorDown));
            return;
        }
        let message = ToExecutor::AddModel { model: self.models.len() as u16, load: add.load.clone() };
        self.adding = Some(Adding { add, loaded: Vec::new() });
        for device in 0..self.devices.len() {
            let entry = &self.devices[device];
            if entry.link.as_ref().is_none_or(|link| link.send(message.clone()).is_err()) {
                self.executor_down(device, "the executor takes no more models".into());
            }
        }
    }

    /// An executor has loaded the model.
    pub(super) fn model_added(&mut self, device: usize, loaded: LoadedModel) {
        let id = ModelId(self.models.len() as u16);
        let Some(mut adding) = self.adding.take_if(|_| loaded.model == id.0) else {
            return self.executor_down(device, "the executor loaded a model it was not given".into());
        };
        adding.loaded.push((device, loaded));
        if adding.loaded.len() < self.devices.len() {
            self.adding = Some(adding);
            return;
        }
        let Adding { add, loaded } = adding;
        for (device, loaded) in loaded {
            let limits = ModelLimits {
                blocks: loaded.blocks,
                rows_max: self.devices[device].config.rows_max,
                tokens_max: loaded.tokens_max,
                context_len_max: add.model.context_len,
            };
            self.scheduler.add_model(DeviceId(device as u16), id, limits);
            let entry = &mut self.devices[device];
            entry.loaded.push(loaded);
            entry.close.push(Vec::new());
            // An executor that is started again loads it, too.
            entry.load.models.push(add.load.clone());
        }
        tracing::info!(model = add.model.name, "added");
        self.metrics.add_model(&add.model.name);
        self.models.push(add.model);
        // A caller that went away leaves the model: it was loaded, and its name is in the tables.
        let _ = add.done.send(Ok(id));
    }

    /// An executor could not load the model; it goes on without.
    pub(super) fn model_not_added(&mut self, message: String) {
        if let Some(adding) = self.adding.take() {
            let refusal = ModelRefusal { fault: ModelFault::Invalid, message };
            let _ = adding.add.done.send(Err(AddModelError::Refused(refusal)));
        }
    }

    /// An executor is gone, and with it what it was loading.
    pub(super) fn forget_added_model(&mut self) {
        if let Some(adding) = self.adding.take() {
            let _ = adding.add.done.send(Err(AddModelError::ExecutorDown));
        }
    }
}
