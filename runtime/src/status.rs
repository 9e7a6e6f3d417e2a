//! What other threads may know of the engine thread without asking it: a few atomics and one line of text.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::error::NotReady;

/// A step must have completed within this time for the node to be ready.
pub(crate) const STEP_AGE_MAX: Duration = Duration::from_secs(10);

/// The engine thread's public state.
#[derive(Debug)]
pub(crate) struct Status {
    clock: Instant,
    /// Nanoseconds of `clock` at the last completed step, plus one; 0 is never.
    last_step: AtomicU64,
    inbox_len: AtomicU32,
    draining: AtomicBool,
    /// Nothing can be charged for any more.
    ledger_stopped: AtomicBool,
    down: Mutex<Option<String>>,
}

impl Status {
    pub(crate) fn new() -> Self {
        Status {
            clock: Instant::now(),
            last_step: AtomicU64::new(0),
            inbox_len: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            ledger_stopped: AtomicBool::new(false),
            down: Mutex::new(Some("it is loading".into())),
        }
    }

    fn elapsed(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    pub(crate) fn step_completed(&self) {
        self.last_step.store(self.elapsed() + 1, Ordering::Relaxed);
    }

    pub(crate) fn last_step_age(&self) -> Option<Duration> {
        match self.last_step.load(Ordering::Relaxed) {
            0 => None,
            at => Some(Duration::from_nanos(self.elapsed().saturating_sub(at - 1))),
        }
    }

    /// Why no device takes requests, if none does.
    pub(crate) fn set_down(&self, reason: Option<&str>) {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = reason.map(str::to_owned);
    }

    pub(crate) fn ledger_stopped(&self) {
        self.ledger_stopped.store(true, Ordering::Relaxed);
    }

    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Takes a place in the inbox, if there is one.
    pub(crate) fn enter_inbox(&self, len_max: u32) -> bool {
        let entered = self.inbox_len.fetch_add(1, Ordering::Relaxed) < len_max;
        if !entered {
            self.left_inbox();
        }
        entered
    }

    /// Requests in the inbox.
    pub(crate) fn inbox_len(&self) -> u32 {
        self.inbox_len.load(Ordering::Relaxed)
    }

    pub(crate) fn left_inbox(&self) {
        self.inbox_len.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn ready(&self) -> Result<(), NotReady> {
        if self.is_draining() {
            return Err(NotReady::Draining);
        }
        if self.ledger_stopped.load(Ordering::Relaxed) {
            return Err(NotReady::LedgerUnavailable);
        }
        if let Some(reason) = &*self.down.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(NotReady::ExecutorDown(reason.clone()));
        }
        match self.last_step_age() {
            None => Err(NotReady::NoStep),
            Some(age) if age > STEP_AGE_MAX => Err(NotReady::Stale(age.as_secs())),
            Some(_) => Ok(()),
        }
    }
}
