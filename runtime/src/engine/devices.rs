//! Devices as operators see them: looked at, taken out, taken back.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Engine;
use crate::{
    devices::{DeviceError, DeviceStatus},
    node::message::{DeviceChange, DeviceOrder, NodeMessage},
};

impl Engine {
    /// Every device, as it is now.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn devices(&self) -> Result<Vec<DeviceStatus>, DeviceError> {
        let (told, answer) = oneshot::channel();
        self.shared.inbox.send(NodeMessage::Devices(told)).map_err(|_| DeviceError::Ended)?;
        answer.await.map_err(|_| DeviceError::Ended)
    }

    /// Takes a device out: it takes no newcomers, and its executor is stopped once what it runs has ended. What still runs
    /// after `time` goes on elsewhere. The last device that takes requests is taken out only by `force`. Answers at once,
    /// with the device as it is then.
    ///
    /// # Errors
    /// No such device, the last one, or the engine has ended.
    pub async fn drain_device(
        &self,
        device: &str,
        time: Option<Duration>,
        force: bool,
    ) -> Result<DeviceStatus, DeviceError> {
        self.change_device(device, DeviceChange::Drain { time, force }).await
    }

    /// Takes a device back that was taken out, or is on the way; another is left as it is.
    ///
    /// # Errors
    /// No such device, or the engine has ended.
    pub async fn resume_device(&self, device: &str) -> Result<DeviceStatus, DeviceError> {
        self.change_device(device, DeviceChange::Resume).await
    }

    async fn change_device(&self, device: &str, what: DeviceChange) -> Result<DeviceStatus, DeviceError> {
        let (done, answer) = oneshot::channel();
        let order = DeviceOrder { device: device.to_owned(), what, done };
        self.shared.inbox.send(NodeMessage::Device(Box::new(order))).map_err(|_| DeviceError::Ended)?;
        answer.await.map_err(|_| DeviceError::Ended)?
    }
}
