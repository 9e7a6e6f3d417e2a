//! The executor's heartbeat: frames that say that the process lives and how far its work has come, beside those that say
//! what came of it. Without them a step that takes long looks like one that never ends.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Time between two heartbeats.
pub(crate) const BEAT_INTERVAL: Duration = Duration::from_millis(500);

/// Counts progress, and tells the beating thread when to stop.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    beats: AtomicU64,
    /// A heartbeat could not be said: the other side has gone.
    unheard: AtomicBool,
    stopped: Mutex<bool>,
    stop: Condvar,
}

impl Pulse {
    /// Work that the compute pool does not see has come further.
    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn is_unheard(&self) -> bool {
        self.unheard.load(Ordering::Relaxed)
    }

    /// Says how far the work has come (`runs` of the pool, and beats) until stopped, or until nobody listens.
    pub(crate) fn run(&self, runs: impl Fn() -> u64, mut say: impl FnMut(u64) -> bool) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        while !*stopped {
            drop(stopped);
            if !say(runs().wrapping_add(self.beats.load(Ordering::Relaxed))) {
                self.unheard.store(true, Ordering::Relaxed);
                return;
            }
            stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
            if !*stopped {
                let waited = self.stop.wait_timeout(stopped, BEAT_INTERVAL);
                stopped = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    pub(crate) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.notify_all();
    }
}
