//! What the GPUs say of themselves: how busy, how hot, how full, which errors. For operators only.
//!
//! A thread of its own ([`sampler`]) reads every second through [`Telemetry`] and leaves what it read on a [`board`], from
//! which a scrape ([`gauges`]) copies. Drivers do hang: then that thread hangs, and nothing else does. Scrapes go on, and
//! `weir_gpu_sample_age_seconds` grows.
//!
//! *Nothing is decided by these figures.* Charges come from the executor's own clock, and pools are sized by our own
//! accounting. Utilisation only says that some kernel ran, and MIG has none. The memory figures of a GPU that is a NUMA node
//! (GH200) follow the operating system's accounting, where pages that were freed may still show as used; under MIG they
//! are the whole GPU's, not the instance's. So neither may ever size a KV pool or a quota.
//!
//! Sources: [`nvml`], the driver's library, which is opened at run time and may be missing; and in tests a script, `fake`.

mod board;
#[cfg(test)]
pub(crate) mod fake;
mod gauges;
pub(crate) mod nvml;
mod sampler;

pub(crate) use board::Board;
pub(crate) use sampler::{SAMPLE_INTERVAL, Sampler};

/// GPUs that are looked at. No machine has more, and each has a few dozen lines in a scrape.
pub(crate) const GPUS_MAX: u32 = 16;

/// A source of readings.
pub(crate) trait Telemetry: Send {
    /// Looks at every GPU. May take as long as the driver takes.
    ///
    /// # Errors
    /// One line about why there is nothing to look at.
    fn read(&mut self) -> Result<Reading, String>;
}

/// What one look found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reading {
    /// The driver's version.
    pub(crate) driver: Option<String>,
    /// The newest CUDA that the driver runs, such as `13.0`.
    pub(crate) cuda: Option<String>,
    /// Each GPU, or a line about why it could not be read; by NVML's index, which is not always CUDA's ordinal.
    pub(crate) gpus: Vec<Result<Sample, String>>,
}

/// One GPU at one time. What is absent is not supported by that GPU, which is no error.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sample {
    pub(crate) identity: Identity,
    /// Share of the driver's last period, up to a second, in which some kernel ran. MIG has none.
    pub(crate) busy: Option<f64>,
    /// Share of it in which device memory was read or written.
    pub(crate) memory_busy: Option<f64>,
    /// Bytes of device memory in use. Not for sizing anything: see the module.
    pub(crate) memory_used: Option<u64>,
    pub(crate) memory_total: Option<u64>,
    pub(crate) watts: Option<f64>,
    pub(crate) celsius: Option<f64>,
    pub(crate) sm_hertz: Option<f64>,
    pub(crate) memory_hertz: Option<f64>,
    /// Errors since the driver was loaded.
    pub(crate) ecc_corrected: Option<u64>,
    pub(crate) ecc_uncorrected: Option<u64>,
    /// What holds the clocks down.
    pub(crate) throttles: Option<Vec<Throttle>>,
    /// Critical errors since the last look, oldest first.
    pub(crate) xids: Vec<u64>,
}

/// Which GPU it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: Option<String>,
    pub(crate) uuid: Option<String>,
    /// Such as `00000000:1B:00.0`.
    pub(crate) pci: Option<String>,
    pub(crate) compute_capability: Option<(u32, u32)>,
    /// It is divided into instances.
    pub(crate) mig: Option<bool>,
}

/// A reason for low clocks. Being idle and what the operator set are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Throttle {
    /// The power limit.
    Power,
    /// Heat.
    Thermal,
    /// The hardware's own protection: heat, a power brake, too fast a rise.
    Hardware,
}

impl Throttle {
    pub(crate) const ALL: [Throttle; 3] = [Throttle::Power, Throttle::Thermal, Throttle::Hardware];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Throttle::Power => "power",
            Throttle::Thermal => "thermal",
            Throttle::Hardware => "hardware",
        }
    }
}
