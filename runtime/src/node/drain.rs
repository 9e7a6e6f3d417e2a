//! Devices that an operator takes out, and what is told of all of them.
//!
//! A draining device takes no newcomers; what waits for it goes to others at once, and what it runs ends there. At its
//! deadline the rest goes on elsewhere, as after a death that has no suspects. Then its executor is stopped, until the
//! device is resumed.

use std::time::{Duration, Instant};

use weir_scheduler::DeviceId;

use super::{
    Node,
    device::{Device, DeviceState, Draining, RESTART_PAUSE_MIN},
};
use crate::devices::{DeviceError, DevicePhase, DeviceStatus};

impl Node {
    /// Every device as it is now.
    pub(super) fn device_statuses(&self) -> Vec<DeviceStatus> {
        let stats = self.scheduler.stats();
        let status = |(index, device): (usize, &Device)| {
            let mut status = DeviceStatus {
                name: device.config.name.clone(),
                kind: device.config.kind,
                phase: match (&device.state, device.draining) {
                    (DeviceState::Loading, _) => DevicePhase::Loading,
                    (DeviceState::Ready, None) => DevicePhase::Ready,
                    (DeviceState::Ready, Some(_)) => DevicePhase::Draining,
                    (DeviceState::Down { .. }, _) => DevicePhase::Down,
                    (DeviceState::Drained, _) => DevicePhase::Drained,
                },
                reason: device.reason.clone(),
                models: Vec::new(),
                requests_running: 0,
                requests_waiting: 0,
                kv_blocks: 0,
                kv_blocks_used: 0,
                epoch: device.epoch,
                restarts: device.counts.restarts,
                steps: device.counts.steps,
                busy: device.counts.busy,
                pid: device.link.as_ref().and_then(|link| link.pid()),
            };
            for model in stats.models.iter().filter(|model| model.device.0 as usize == index) {
                status.models.extend(self.models.get(model.model.0 as usize).map(|model| model.name.clone()));
                status.requests_running += model.running;
                status.requests_waiting += model.waiting;
                status.kv_blocks += model.blocks;
                status.kv_blocks_used += model.blocks_used;
            }
            status
        };
        self.devices.iter().enumerate().map(status).collect()
    }

    fn device_named(&self, name: &str) -> Result<usize, DeviceError> {
        let found = self.devices.iter().position(|device| device.config.name == name);
        found.ok_or_else(|| DeviceError::Unknown(name.to_owned()))
    }

    fn status_of(&self, device: usize) -> DeviceStatus {
        self.device_statuses().swap_remove(device)
    }

    /// Begins to drain a device, or changes its deadline. The last one that takes requests is drained only by `force`.
    pub(super) fn drain_device(
        &mut self,
        name: &str,
        time: Option<Duration>,
        force: bool,
    ) -> Result<DeviceStatus, DeviceError> {
        let device = self.device_named(name)?;
        let others = self.devices.iter().enumerate().any(|(other, entry)| other != device && entry.is_open());
        if !others && !force {
            return Err(DeviceError::Last(name.to_owned()));
        }
        let entry = &mut self.devices[device];
        entry.draining = Some(Draining { deadline: time.map(|time| Instant::now() + time) });
        tracing::info!(device = name, "draining");
        match entry.state {
            DeviceState::Ready => {
                self.scheduler.drain_device(DeviceId(device as u16));
                self.tell_status();
                self.finish_drains();
            }
            // It runs nothing.
            DeviceState::Loading | DeviceState::Down { .. } => self.stop_executor(device, DeviceState::Drained),
            DeviceState::Drained => {}
        }
        Ok(self.status_of(device))
    }

    /// Takes a device back that was drained, or is being drained; another is left as it is.
    pub(super) fn resume_device(&mut self, name: &str) -> Result<DeviceStatus, DeviceError> {
        let device = self.device_named(name)?;
        let entry = &mut self.devices[device];
        if entry.draining.take().is_some() {
            tracing::info!(device = name, "resumed");
            match entry.state {
                DeviceState::Drained => {
                    (entry.restart_pause, entry.failed_starts, entry.reason) = (RESTART_PAUSE_MIN, 0, None);
                    self.start_executor(device);
                }
                _ => self.scheduler.resume_device(DeviceId(device as u16)),
            }
            self.tell_status();
            self.open_door();
        }
        Ok(self.status_of(device))
    }

    /// Stops the executors of draining devices that have nothing left to run, or whose time is up.
    pub(super) fn finish_drains(&mut self) {
        for device in 0..self.devices.len() {
            let entry = &self.devices[device];
            let Some(Draining { deadline }) = entry.draining.filter(|_| entry.is_ready()) else { continue };
            let empty = self.scheduler.is_device_empty(DeviceId(device as u16));
            let over = deadline.is_some_and(|deadline| deadline <= Instant::now());
            if empty || over {
                tracing::info!(device = entry.config.name, moved = !empty, "drained");
                self.take_device(device);
                self.stop_executor(device, DeviceState::Drained);
            }
        }
    }
}
