//! Models that join while others are served: told to the executors that are there, and entered in the tables when all of
//! them have it. An executor that is lost meanwhile is not waited for, and one that loads meanwhile is told afterwards:
//! the list it was started with is the one from before.

use weir_scheduler::{DeviceId, ModelId, ModelLimits};

use super::{Node, device::Device, message::AddModel};
use crate::{
    error::AddModelError,
    executor::wire::{LoadedModel, ToExecutor},
    inspect::{ModelFault, ModelRefusal},
};

/// A model that executors are loading, and what those that are done said.
pub(super) struct Adding {
    add: AddModel,
    /// Devices that have not answered.
    waiting: Vec<usize>,
    loaded: Vec<(usize, LoadedModel)>,
    /// Why one could not load it.
    refused: Option<String>,
}

impl Adding {
    /// Takes a device's answer; false if none was due.
    fn answers(&mut self, device: usize) -> bool {
        let at = self.waiting.iter().position(|waiting| *waiting == device);
        at.map(|at| self.waiting.remove(at)).is_some()
    }
}

impl Node {
    /// Tells every executor that is there to load a model. Nothing is entered anywhere before all have answered.
    pub(super) fn add_model(&mut self, add: AddModel) {
        // One at a time for each executor: it files what it has loaded by its place in the list.
        if self.adding.is_some() || self.devices.iter().any(|device| device.late) {
            let _ = add.done.send(Err(AddModelError::Busy));
            return;
        }
        let waiting: Vec<usize> = (0..self.devices.len()).filter(|&device| self.devices[device].is_ready()).collect();
        if waiting.is_empty() {
            let _ = add.done.send(Err(AddModelError::ExecutorDown));
            return;
        }
        let message = ToExecutor::AddModel { model: self.models.len() as u16, load: add.load.clone() };
        self.adding = Some(Adding { add, waiting: waiting.clone(), loaded: Vec::new(), refused: None });
        for device in waiting {
            let entry = &self.devices[device];
            if entry.link.as_ref().is_none_or(|link| link.send(message.clone()).is_err()) {
                self.executor_down(device, "the executor takes no more models".into());
            }
        }
    }

    /// An executor has loaded a model.
    pub(super) fn model_added(&mut self, device: usize, loaded: LoadedModel) {
        let new = loaded.model as usize == self.models.len();
        if let Some(adding) = self.adding.as_mut().filter(|adding| new && adding.waiting.contains(&device)) {
            adding.answers(device);
            adding.loaded.push((device, loaded));
            return self.finish_adding();
        }
        let entry = &mut self.devices[device];
        if !entry.late || loaded.model as usize != entry.given {
            return self.executor_down(device, "the executor loaded a model it was not given".into());
        }
        (entry.late, entry.given) = (false, entry.given + 1);
        self.enter_model(device, loaded);
        self.send_missing(device);
        // Something may have waited for a device that has this model.
        self.take_up();
    }

    /// An executor could not load a model; it goes on without.
    pub(super) fn model_not_added(&mut self, device: usize, message: String) {
        if let Some(adding) = &mut self.adding
            && adding.answers(device)
        {
            adding.refused = Some(message);
            return self.finish_adding();
        }
        let entry = &mut self.devices[device];
        if !entry.late {
            return self.executor_down(device, "the executor failed to load a model it was not given".into());
        }
        tracing::error!(device = entry.config.name, message, "not loaded: the others have this model");
        (entry.late, entry.given) = (false, entry.given + 1);
        self.send_missing(device);
        // What waited for it has nothing to wait for.
        self.take_up();
    }

    /// An executor is gone, and with it what it was loading.
    pub(super) fn added_without(&mut self, device: usize) {
        if let Some(adding) = &mut self.adding {
            adding.loaded.retain(|(other, _)| *other != device);
            adding.answers(device);
            self.finish_adding();
        }
    }

    /// Enters the model if every executor that is left has it.
    fn finish_adding(&mut self) {
        let Some(adding) = self.adding.take_if(|adding| adding.waiting.is_empty()) else { return };
        let Adding { add, loaded, refused, .. } = adding;
        if let Some(message) = refused {
            let refusal = ModelRefusal { fault: ModelFault::Invalid, message };
            let _ = add.done.send(Err(AddModelError::Refused(refusal)));
            return;
        }
        if loaded.is_empty() {
            let _ = add.done.send(Err(AddModelError::ExecutorDown));
            return;
        }
        let id = ModelId(self.models.len() as u16);
        tracing::info!(model = add.model.name, devices = loaded.len(), "added");
        self.metrics.add_model(&add.model.name);
        self.models.push(add.model);
        for entry in &mut self.devices {
            entry.close.push(Vec::new());
            // An executor that is started again loads it, too.
            entry.load.models.push(add.load.clone());
        }
        for (device, loaded) in loaded {
            self.devices[device].given = self.models.len();
            self.enter_model(device, loaded);
        }
        // A caller that went away leaves the model: it was loaded, and its name is in the tables.
        let _ = add.done.send(Ok(id));
        for device in 0..self.devices.len() {
            self.send_missing(device);
        }
    }

    /// The device can run steps of a model.
    pub(super) fn enter_model(&mut self, device: usize, loaded: LoadedModel) {
        let Some(model) = self.models.get(loaded.model as usize) else { return };
        let limits = ModelLimits {
            blocks: loaded.blocks,
            rows_max: self.devices[device].config.rows_max,
            tokens_max: loaded.tokens_max,
            context_len_max: model.context_len,
        };
        self.scheduler.add_model(DeviceId(device as u16), ModelId(loaded.model), limits);
        self.record_model(device, loaded.model, limits);
        self.devices[device].loaded.push(loaded);
    }

    /// Tells a device of the next model that was added while it was not there.
    pub(super) fn send_missing(&mut self, device: usize) {
        let entry = &mut self.devices[device];
        if !Device::is_ready(entry) || entry.late || entry.given >= self.models.len() {
            return;
        }
        let message = ToExecutor::AddModel { model: entry.given as u16, load: entry.load.models[entry.given].clone() };
        entry.late = true;
        if entry.link.as_ref().is_none_or(|link| link.send(message).is_err()) {
            self.executor_down(device, "the executor takes no more models".into());
        }
    }
}
