//! One device as the engine thread sees it: its executor, what it has loaded, and the steps it is running.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use weir_scheduler::{PlanRow, RequestId, StepId};

use crate::{
    config::DeviceConfig,
    executor::{
        link::Link,
        wire::{Load, LoadModel, LoadedModel},
    },
};

/// Pause before the first restart of an executor; doubles up to [`RESTART_PAUSE_MAX`].
pub(crate) const RESTART_PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause between restarts.
pub(crate) const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// An executor that is not heard for this long, or gets nowhere with a step for this long, is hung. A step on a busy
/// machine may take longer: it gets somewhere.
pub(crate) const HUNG_AFTER: Duration = Duration::from_secs(6);
/// One that has just been started may take this long to say its first word: a GPU's reads its libraries, half a gigabyte of them, from
/// disk first.
pub(crate) const FIRST_WORD_AFTER: Duration = Duration::from_secs(60);
/// Longest a load may take, however alive its executor is.
pub(crate) const LOAD_TIME_MAX: Duration = Duration::from_secs(30 * 60);
/// The watch is looked at this often. What passes between two looks counts once at most, so that a node that was itself
/// stopped does not take its executors for hung.
pub(crate) const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Executors that may be lost one after another, none having completed a step, before the requests that wait for one are
/// given up.
pub(crate) const FAILED_STARTS_MAX: u32 = 3;

/// One device.
pub(crate) struct Device {
    pub(crate) config: DeviceConfig,
    pub(crate) load: Load,
    /// Counts starts of the executor; what an earlier one still says is ignored.
    pub(crate) epoch: u64,
    pub(crate) link: Option<Link>,
    pub(crate) state: DeviceState,
    /// It takes no newcomers; when what it runs has ended, or at the deadline, its executor is stopped.
    pub(crate) draining: Option<Draining>,
    /// Why the last executor was lost; nothing once one is ready.
    pub(crate) reason: Option<String>,
    pub(crate) loaded: Vec<LoadedModel>,
    pub(crate) in_flight: VecDeque<InFlight>,
    /// Sequences that the executor may forget, by model.
    pub(crate) close: Vec<Vec<u64>>,
    pub(crate) restart_pause: Duration,
    /// Executors lost since one last completed a step.
    pub(crate) failed_starts: u32,
    pub(crate) watch: Watch,
    /// Models that the executor was told of, and whether it is loading one that the others have already.
    pub(crate) given: usize,
    pub(crate) late: bool,
    /// When a step last completed or a canary was sent.
    pub(crate) last_step: Instant,
    pub(crate) last_canary: Instant,
    pub(crate) counts: Counts,
    /// Requests that had rows in the steps that an executor died in: they run one at a time until each has been seen to
    /// survive. The first is the one that runs.
    pub(crate) lane: VecDeque<RequestId>,
}

/// What a device has done since the node started.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) restarts: u64,
    pub(crate) steps: u64,
    /// Device time of its steps.
    pub(crate) busy: Duration,
}

/// How a device is drained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draining {
    /// When what still runs goes on elsewhere.
    pub(crate) deadline: Option<Instant>,
}

/// What an executor has last been seen to do.
#[derive(Debug)]
pub(crate) struct Watch {
    looked: Instant,
    /// Times in which it said nothing, and in which it said nothing new of its step.
    silent: Duration,
    stuck: Duration,
    progress: u64,
    started: Instant,
    /// It has said something.
    heard: bool,
}

impl Watch {
    pub(crate) fn new(now: Instant) -> Self {
        Watch { looked: now, silent: Duration::ZERO, stuck: Duration::ZERO, progress: 0, started: now, heard: false }
    }

    /// It said how far it has come.
    pub(crate) fn heartbeat(&mut self, progress: u64) {
        (self.silent, self.heard) = (Duration::ZERO, true);
        if self.progress != progress {
            self.progress = progress;
            self.stuck = Duration::ZERO;
        }
    }

    /// It did something of use.
    pub(crate) fn worked(&mut self) {
        (self.silent, self.stuck) = (Duration::ZERO, Duration::ZERO);
    }

    /// It was given something to do, of which it knows nothing yet.
    pub(crate) fn given(&mut self) {
        self.stuck = Duration::ZERO;
    }

    /// Why the executor is to be taken for hung, if it is; `running` while it has a step, `loading` while it loads.
    pub(crate) fn look(&mut self, now: Instant, running: bool, loading: bool) -> Option<String> {
        let passed = (now - self.looked).min(WATCH_INTERVAL);
        self.looked = now;
        self.silent += passed;
        self.stuck = if running { self.stuck + passed } else { Duration::ZERO };
        let silence_max = if self.heard { HUNG_AFTER } else { FIRST_WORD_AFTER };
        if self.silent > silence_max {
            return Some(format!("the executor has not been heard for {} s", silence_max.as_secs()));
        }
        let seconds = HUNG_AFTER.as_secs();
        if self.stuck > HUNG_AFTER {
            return Some(format!("the executor has got nowhere with a step for {seconds} s"));
        }
        let overdue = loading && now - self.started > LOAD_TIME_MAX;
        overdue.then(|| format!("the executor has been loading for {} s", LOAD_TIME_MAX.as_secs()))
    }
}

/// Where an executor is in its life.
#[derive(Debug)]
pub(crate) enum DeviceState {
    /// Loading its models.
    Loading,
    /// Running steps.
    Ready,
    /// Gone; to be restarted.
    Down { restart_at: Instant },
    /// Stopped by an operator, until another word.
    Drained,
}

/// A step the executor has and has not reported.
pub(crate) struct InFlight {
    pub(crate) step: StepId,
    pub(crate) model: usize,
    pub(crate) rows: Vec<PlanRow>,
    pub(crate) tokens: u64,
    pub(crate) sent: Instant,
}

impl Device {
    /// A device with those of the models that are to be on it; each comes with the names of its devices, none meaning all.
    pub(crate) fn new(config: DeviceConfig, models: &[(LoadModel, Vec<String>)]) -> Self {
        let now = Instant::now();
        let here = |names: &[String]| names.is_empty() || names.contains(&config.name);
        let models: Vec<LoadModel> =
            models.iter().map(|(load, names)| if here(names) { load.clone() } else { LoadModel::Elsewhere }).collect();
        let close = vec![Vec::new(); models.len()];
        let load = Load {
            required: models.len() as u32,
            models,
            threads: config.threads as u32,
            kv_bytes: config.kv_bytes,
            step_tokens_max: config.step_tokens_max,
        };
        Device {
            config,
            load,
            epoch: 0,
            link: None,
            state: DeviceState::Loading,
            draining: None,
            reason: None,
            loaded: Vec::new(),
            in_flight: VecDeque::new(),
            close,
            restart_pause: RESTART_PAUSE_MIN,
            failed_starts: 0,
            watch: Watch::new(now),
            given: 0,
            late: false,
            last_step: now,
            last_canary: now,
            counts: Counts::default(),
            lane: VecDeque::new(),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.state, DeviceState::Ready)
    }

    /// Whether newcomers may be sent here.
    pub(crate) fn is_open(&self) -> bool {
        self.is_ready() && self.draining.is_none()
    }

    /// Whether it is not there and likely to be soon.
    pub(crate) fn is_coming_back(&self) -> bool {
        let coming = matches!(self.state, DeviceState::Loading | DeviceState::Down { .. });
        coming && self.draining.is_none() && self.failed_starts < FAILED_STARTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once a second, `seconds` times, and says at which second the executor was found hung.
    fn watched(seconds: u64, running: bool, mut seen: impl FnMut(u64, &mut Watch)) -> Option<u64> {
        let begin = Instant::now();
        let mut watch = Watch::new(begin);
        (1..=seconds).find(|&second| {
            seen(second, &mut watch);
            watch.look(begin + Duration::from_secs(second), running, false).is_some()
        })
    }

    #[test]
    fn silence_and_standstill_are_noticed_and_slowness_is_not() {
        let once = |second: u64, watch: &mut Watch| {
            if second == 1 {
                watch.heartbeat(7);
            }
        };
        assert_eq!(watched(60, false, once), Some(7), "silent while idle");
        assert_eq!(watched(100, false, |_, _| {}), Some(61), "silent from the start");
        assert_eq!(watched(60, false, |_, watch| watch.heartbeat(7)), None, "idle");
        assert_eq!(watched(60, true, |_, watch| watch.heartbeat(7)), Some(7), "in a step that stands still");
        let given = |second, watch: &mut Watch| {
            once(second, watch);
            watch.given();
        };
        assert_eq!(watched(60, true, given), Some(7), "silent, whatever it is given");
        assert_eq!(watched(600, true, |second, watch| watch.heartbeat(second / 5)), None, "in a step that is slow");
    }

    #[test]
    fn a_node_that_was_stopped_itself_does_not_blame_its_executor() {
        let begin = Instant::now();
        let mut watch = Watch::new(begin);
        assert_eq!(watch.look(begin + Duration::from_secs(3600), true, false), None);
    }
}
