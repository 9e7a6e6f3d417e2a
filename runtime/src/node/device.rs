//! One device as the engine thread sees it: its executor, what it has loaded, and the steps it is running.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use weir_scheduler::{PlanRow, StepId};

use crate::executor::{
    link::Link,
    wire::{Load, LoadedModel},
};

/// Pause before the first restart of an executor; doubles up to [`RESTART_PAUSE_MAX`].
pub(crate) const RESTART_PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause between restarts.
pub(crate) const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// One device.
pub(crate) struct Device {
    pub(crate) load: Load,
    /// Counts starts of the executor; what an earlier one still says is ignored.
    pub(crate) epoch: u64,
    pub(crate) link: Option<Link>,
    pub(crate) state: DeviceState,
    pub(crate) loaded: Vec<LoadedModel>,
    pub(crate) in_flight: VecDeque<InFlight>,
    /// Sequences that the executor may forget, by model.
    pub(crate) close: Vec<Vec<u64>>,
    pub(crate) restart_pause: Duration,
}

/// Where an executor is in its life.
#[derive(Debug)]
pub(crate) enum DeviceState {
    /// Loading its models.
    Loading,
    /// Running steps.
    Ready,
    /// Gone; to be restarted.
    Down { reason: String, restart_at: Instant },
}

/// A step the executor has and has not reported.
pub(crate) struct InFlight {
    pub(crate) step: StepId,
    pub(crate) model: usize,
    pub(crate) rows: Vec<PlanRow>,
    pub(crate) tokens: u64,
}

impl Device {
    pub(crate) fn new(load: Load) -> Self {
        let models = load.models.len();
        Device {
            load,
            epoch: 0,
            link: None,
            state: DeviceState::Loading,
            loaded: Vec::new(),
            in_flight: VecDeque::new(),
            close: vec![Vec::new(); models],
            restart_pause: RESTART_PAUSE_MIN,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.state, DeviceState::Ready)
    }
}
