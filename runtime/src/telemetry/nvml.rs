//! The driver's own library, NVML. It is opened at run time, so a machine without it is a line of text, not an error.

use std::{collections::BTreeMap, sync::OnceLock};

use nvml_wrapper::{
    Device, Nvml,
    bitmasks::{device::ThrottleReasons, event::EventTypes},
    cuda_driver_version_major, cuda_driver_version_minor,
    enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor},
    enums::event::XidError,
    error::NvmlError,
    event::EventSet,
};

use super::{GPUS_MAX, Identity, Reading, Sample, Telemetry, Throttle};

/// Critical errors of one GPU that one look takes; more wait for the next.
const XIDS_MAX: usize = 64;
/// What NVML says where it does not know the number of an error.
const XID_UNKNOWN: u64 = 999;

/// Opened once in the life of the process and never closed, as the event sets borrow from it.
static NVML: OnceLock<Nvml> = OnceLock::new();

/// Reads by NVML.
#[derive(Debug, Default)]
pub(crate) struct NvmlTelemetry {
    /// Where critical errors of each GPU wait, by its uuid; nothing where the driver has no events.
    events: BTreeMap<String, Option<EventSet<'static>>>,
}

impl Telemetry for NvmlTelemetry {
    fn read(&mut self) -> Result<Reading, String> {
        let nvml = open().map_err(|error| absence(&error))?;
        let count = nvml.device_count().map_err(|error| absence(&error))?;
        let gpu = |index| {
            let device = nvml.device_by_index(index).map_err(|error| error.to_string())?;
            let mut sample = sample(&device).map_err(|error| error.to_string())?;
            sample.xids = self.xids(nvml, &device, &sample.identity);
            Ok(sample)
        };
        Ok(Reading {
            gpus: (0..count.min(GPUS_MAX)).map(gpu).collect(),
            driver: nvml.sys_driver_version().ok(),
            cuda: nvml.sys_cuda_driver_version().ok().map(cuda_version),
        })
    }
}

impl NvmlTelemetry {
    /// The critical errors since the last look. It never waits for one.
    fn xids(&mut self, nvml: &'static Nvml, device: &Device<'static>, identity: &Identity) -> Vec<u64> {
        let Some(uuid) = &identity.uuid else { return Vec::new() };
        if !self.events.contains_key(uuid) && self.events.len() < GPUS_MAX as usize {
            let set = nvml.create_event_set().ok();
            let set = set.and_then(|set| device.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok());
            self.events.insert(uuid.clone(), set);
        }
        let Some(Some(set)) = self.events.get(uuid) else { return Vec::new() };
        // An error is nearly always that nothing has happened.
        let events = std::iter::from_fn(|| set.wait(0).ok()).take(XIDS_MAX);
        let number = |xid| match xid {
            XidError::Value(number) => number,
            XidError::Unknown => XID_UNKNOWN,
        };
        events.filter_map(|event| event.event_data).map(number).collect()
    }
}

fn open() -> Result<&'static Nvml, NvmlError> {
    if let Some(nvml) = NVML.get() {
        return Ok(nvml);
    }
    let opened = Nvml::init()?;
    // NVML counts who opened it, so a second one that another thread was faster than is closed without harm.
    Ok(NVML.get_or_init(|| opened))
}

/// Why there is nothing to read, in the words of someone who looks for a driver.
fn absence(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => "libnvidia-ml.so.1 is not there".into(),
        NvmlError::DriverNotLoaded => "NVML is there, but the NVIDIA driver is not loaded".into(),
        NvmlError::LibRmVersionMismatch => {
            "the NVIDIA driver's library and its kernel module are of different versions: a restart is due".into()
        }
        error => format!("NVML: {error}"),
    }
}

/// What CUDA says as 13000.
fn cuda_version(version: i32) -> String {
    format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version))
}

fn sample(device: &Device<'_>) -> Result<Sample, NvmlError> {
    let identity = identity(device)?;
    let utilization = asked(device.utilization_rates())?;
    let memory = asked(device.memory_info())?;
    let share = |percent: u32| f64::from(percent) / 100.0;
    let hertz = |clock| asked(device.clock_info(clock)).map(|mhz| mhz.map(|mhz| f64::from(mhz) * 1e6));
    let errors = |kind| asked(device.total_ecc_errors(kind, EccCounter::Volatile));
    Ok(Sample {
        busy: utilization.as_ref().map(|u| share(u.gpu)),
        memory_busy: utilization.as_ref().map(|u| share(u.memory)),
        memory_used: memory.as_ref().map(|memory| memory.used),
        memory_total: memory.as_ref().map(|memory| memory.total),
        watts: asked(device.power_usage())?.map(|milliwatts| f64::from(milliwatts) / 1e3),
        celsius: asked(device.temperature(TemperatureSensor::Gpu))?.map(f64::from),
        sm_hertz: hertz(Clock::SM)?,
        memory_hertz: hertz(Clock::Memory)?,
        ecc_corrected: errors(MemoryError::Corrected)?,
        ecc_uncorrected: errors(MemoryError::Uncorrected)?,
        throttles: asked(device.current_throttle_reasons())?.map(throttles),
        xids: Vec::new(),
        identity,
    })
}

fn identity(device: &Device<'_>) -> Result<Identity, NvmlError> {
    Ok(Identity {
        name: asked(device.name())?,
        uuid: asked(device.uuid())?,
        pci: asked(device.pci_info())?.map(|pci| pci.bus_id),
        compute_capability: asked(device.cuda_compute_capability())?
            .and_then(|it| Some((u32::try_from(it.major).ok()?, u32::try_from(it.minor).ok()?))),
        mig: asked(device.mig_mode())?.map(|mode| mode.current != 0),
    })
}

/// A field; `None` where this GPU, this driver or this user cannot have it.
///
/// # Errors
/// When the GPU is lost, and with it every field.
fn asked<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(lost @ (NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::Uninitialized)) => Err(lost),
        Err(_) => Ok(None),
    }
}

fn throttles(reasons: ThrottleReasons) -> Vec<Throttle> {
    let power = ThrottleReasons::SW_POWER_CAP;
    let thermal = ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
    let hardware = ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
    let named = [(power, Throttle::Power), (thermal, Throttle::Thermal), (hardware, Throttle::Hardware)];
    named.into_iter().filter(|(bits, _)| reasons.intersects(*bits)).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_supported_is_absent_and_what_is_lost_is_an_error() {
        assert_eq!(asked(Ok(1)).expect("a field"), Some(1));
        for absent in [NvmlError::NotSupported, NvmlError::NoPermission, NvmlError::FunctionNotFound] {
            assert_eq!(asked(Err::<(), _>(absent)).expect("a field"), None);
        }
        for lost in [NvmlError::GpuLost, NvmlError::ResetRequired] {
            assert!(asked(Err::<(), _>(lost)).is_err());
        }
    }

    #[test]
    fn reasons_for_low_clocks_have_three_names() {
        assert_eq!(throttles(ThrottleReasons::GPU_IDLE | ThrottleReasons::APPLICATIONS_CLOCKS_SETTING), []);
        assert_eq!(throttles(ThrottleReasons::SW_POWER_CAP), [Throttle::Power]);
        let all = ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_THERMAL_SLOWDOWN | ThrottleReasons::HW_SLOWDOWN;
        assert_eq!(throttles(all), Throttle::ALL);
    }

    #[test]
    fn versions_are_read_as_cuda_writes_them() {
        assert_eq!((cuda_version(13000), cuda_version(12080)), ("13.0".into(), "12.8".into()));
    }

    /// Holds with a driver and without: what is there is read, what is not is one line.
    #[test]
    fn this_machine_is_read_or_says_why_not() {
        match NvmlTelemetry::default().read() {
            Ok(reading) => assert!(reading.driver.is_some() && reading.gpus.len() <= GPUS_MAX as usize, "{reading:?}"),
            Err(reason) => assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}"),
        }
    }
}
