//! The thread that reads. Whoever holds the [`Sampler`] never waits for it: dropping it lets the thread end when it is next
//! its turn, and one that hangs in the driver is left behind.

use std::{
    convert::Infallible,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use flume::RecvTimeoutError;

use super::{Board, Telemetry};

/// Time between two looks.
pub(crate) const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time between two looks where there is nothing to look at; a driver may be installed meanwhile.
const ABSENT_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Reads for as long as it lives.
#[derive(Debug)]
pub(crate) struct Sampler {
    _alive: flume::Sender<Infallible>,
}

impl Sampler {
    /// Starts to read `telemetry` onto `board` every `interval`. The first look is taken on the thread, too: opening a driver
    /// takes seconds where nothing else holds it open.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(
        board: Arc<Board>,
        mut telemetry: impl Telemetry + 'static,
        interval: Duration,
    ) -> io::Result<Self> {
        let (alive, ended) = flume::bounded::<Infallible>(0);
        thread::Builder::new().name("weir-telemetry".into()).spawn(move || {
            let mut pause = interval;
            loop {
                match telemetry.read() {
                    Ok(reading) => {
                        board.publish(reading, Instant::now());
                        pause = interval;
                    }
                    Err(reason) => {
                        board.absent(&reason);
                        pause = (pause * 2).min(ABSENT_INTERVAL_MAX);
                    }
                }
                if ended.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        })?;
        Ok(Sampler { _alive: alive })
    }
}
