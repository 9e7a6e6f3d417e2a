//! The last that was read of each GPU, between the thread that reads and those who ask. The lock is held for as long as a
//! few numbers take to copy, and never while anything is read.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{GPUS_MAX, Reading, Sample};

/// What is known.
#[derive(Debug, Default)]
pub(crate) struct Board {
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// The last look found a driver.
    pub(super) up: bool,
    pub(super) driver: Option<String>,
    pub(super) cuda: Option<String>,
    /// By index. A GPU that was there once stays: that it has gone must not look as if it had never been.
    pub(super) gpus: Vec<Gpu>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Gpu {
    /// As last read.
    pub(super) sample: Sample,
    pub(super) read_at: Option<Instant>,
    /// It could not be read at the last look.
    pub(super) lost: bool,
    pub(super) xids: u64,
    pub(super) last_xid: u64,
}

impl Board {
    pub(super) fn state(&self) -> State {
        self.held().clone()
    }

    fn held(&self) -> MutexGuard<'_, State> {
        // What a thread left that panicked is whole: each field is put in place in one go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts up what was read at `now`, and logs what has changed for the worse or the better.
    pub(super) fn publish(&self, reading: Reading, now: Instant) {
        let mut state = self.held();
        (state.up, state.driver, state.cuda) = (true, reading.driver, reading.cuda);
        let seen = reading.gpus.len().min(GPUS_MAX as usize);
        if state.gpus.len() < seen {
            state.gpus.resize_with(seen, Gpu::default);
        }
        let mut read = reading.gpus.into_iter().take(seen);
        for (index, gpu) in state.gpus.iter_mut().enumerate() {
            match read.next().unwrap_or_else(|| Err("the driver does not list it any more".to_owned())) {
                Ok(sample) => gpu.put(index, sample, now),
                Err(reason) if !gpu.lost => {
                    gpu.lost = true;
                    tracing::error!(gpu = index, reason, "a GPU cannot be read");
                }
                Err(_) => {}
            }
        }
    }

    /// There was nothing to look at.
    pub(super) fn absent(&self, reason: &str) {
        let mut state = self.held();
        if state.up {
            tracing::error!(reason, "the GPUs cannot be read any more");
        } else {
            tracing::debug!(reason, "no GPU telemetry");
        }
        state.up = false;
    }
}

impl Gpu {
    fn put(&mut self, index: usize, mut sample: Sample, now: Instant) {
        if std::mem::take(&mut self.lost) {
            tracing::warn!(gpu = index, "a GPU can be read again");
        }
        let xids = std::mem::take(&mut sample.xids);
        for &xid in &xids {
            tracing::error!(gpu = index, xid, "the driver reports a critical GPU error");
        }
        self.xids += xids.len() as u64;
        self.last_xid = xids.last().copied().unwrap_or(self.last_xid);
        (self.sample, self.read_at) = (sample, Some(now));
    }
}
