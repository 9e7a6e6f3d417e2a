//! Telemetry by script: a test hands over each reading when it wants the sampler to have it.

use super::{Identity, Reading, Sample, Telemetry};

/// Reads what [`Script`] hands over; without anything it hangs, as a driver may.
#[derive(Debug)]
pub(crate) struct FakeTelemetry {
    readings: flume::Receiver<Result<Reading, String>>,
    put_up: flume::Sender<()>,
    has_read: bool,
}

/// The other end.
#[derive(Debug)]
pub(crate) struct Script {
    readings: flume::Sender<Result<Reading, String>>,
    put_up: flume::Receiver<()>,
}

impl FakeTelemetry {
    pub(crate) fn scripted() -> (Script, FakeTelemetry) {
        let ((sender, readings), (put_up, seen)) = (flume::bounded(1), flume::bounded(1));
        (Script { readings: sender, put_up: seen }, FakeTelemetry { readings, put_up, has_read: false })
    }
}

impl Script {
    /// Hands a reading over and returns when it has been put up; the sampler then hangs in its next read.
    pub(crate) fn say(&self, reading: Result<Reading, String>) {
        self.readings.send(reading).expect("the sampler reads");
        self.put_up.recv().expect("the sampler reads again");
    }
}

impl Telemetry for FakeTelemetry {
    fn read(&mut self) -> Result<Reading, String> {
        // Who reads again has put up what it read before. A script that has ended does not ask.
        if std::mem::replace(&mut self.has_read, true) {
            let _ = self.put_up.send(());
        }
        self.readings.recv().unwrap_or_else(|_| Err("the script has ended".into()))
    }
}

/// A GPU that supports everything.
pub(crate) fn whole_gpu() -> Sample {
    Sample {
        identity: Identity {
            name: Some("NVIDIA H200".into()),
            uuid: Some("GPU-00000000-1111".into()),
            pci: Some("00000000:1B:00.0".into()),
            compute_capability: Some((9, 0)),
            mig: Some(false),
        },
        busy: Some(0.75),
        memory_busy: Some(0.5),
        memory_used: Some(3 << 30),
        memory_total: Some(140 << 30),
        watts: Some(512.5),
        celsius: Some(61.0),
        sm_hertz: Some(1.98e9),
        memory_hertz: Some(3.2e9),
        ecc_corrected: Some(7),
        ecc_uncorrected: Some(1),
        throttles: Some(vec![]),
        xids: vec![],
    }
}

/// A reading of some GPUs.
pub(crate) fn reading(gpus: Vec<Result<Sample, String>>) -> Reading {
    Reading { driver: Some("580.95.05".into()), cuda: Some("13.0".into()), gpus }
}
