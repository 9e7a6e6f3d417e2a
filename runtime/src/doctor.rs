//! What this machine can do: processor, memory, GPUs. Absence is a finding, never an error.

use std::{fs, thread, time::Duration};

use crate::{
    gpu_program::{COMPUTE_CAPABILITY_MIN, GpuDevice, GpuFault, GpuProgram, compute_capability},
    telemetry::{Reading, Sample, Telemetry, nvml::NvmlTelemetry},
};

/// Time for the GPU driver's library to answer.
const DRIVER_TIME_MAX: Duration = Duration::from_secs(20);

/// One line of the doctor's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// How it stands.
    pub status: FindingStatus,
    /// What was seen, or what to do about it.
    pub detail: String,
}

/// How a finding stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingStatus {
    /// There and usable.
    Ok,
    /// Not there; Weir works without it.
    Missing,
    /// Worth knowing.
    Info,
}

/// Looks at the machine, and whether `gpu` can use its GPUs.
pub fn doctor(gpu: &GpuProgram) -> Vec<Finding> {
    let mut findings = vec![cpu(), isa(), memory()];
    let version = gpu.version();
    // A program that does not even say what it is has no GPUs either, for the same reason.
    let devices = version.clone().and_then(|_| gpu.devices());
    findings.extend(gpus(look(NvmlTelemetry::default(), DRIVER_TIME_MAX), version.ok(), devices, gpu));
    findings
}

/// What telemetry reads, if it does so in time: a driver may hang.
fn look(mut telemetry: impl Telemetry + 'static, time_max: Duration) -> Result<Reading, String> {
    let (sender, looked) = flume::bounded(1);
    thread::spawn(move || {
        // Nobody is there to hear it when it took too long.
        let _ = sender.send(telemetry.read());
    });
    let silent = || format!("NVML does not answer within {} s", time_max.as_secs());
    looked.recv_timeout(time_max).unwrap_or_else(|_| Err(silent()))
}

fn finding(name: &str, status: FindingStatus, detail: impl Into<String>) -> Finding {
    Finding { name: name.into(), status, detail: detail.into() }
}

fn cpu() -> Finding {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name").and_then(|l| l.split_once(": ")));
    let model = model.map_or(std::env::consts::ARCH, |(_, name)| name);
    finding("processor", FindingStatus::Ok, format!("{model}, {threads} threads"))
}

fn isa() -> Finding {
    let isa = weir_kernels::Isa::current();
    finding("instructions", FindingStatus::Ok, format!("kernels use {}", isa.name()))
}

fn memory() -> Finding {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = info.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    match (field("MemTotal:"), field("MemAvailable:")) {
        (Some(total), Some(available)) => {
            let gib = |kib: u64| kib as f64 / f64::from(1 << 20);
            let detail = format!("{:.1} GiB, {:.1} GiB available", gib(total), gib(available));
            finding("memory", FindingStatus::Ok, detail)
        }
        _ => finding("memory", FindingStatus::Info, "unknown: /proc/meminfo cannot be read"),
    }
}

/// What there is to say of GPUs, from what their driver says and what the program can use. Where there is neither, one line.
fn gpus(
    read: Result<Reading, String>,
    version: Option<String>,
    devices: Result<Vec<GpuDevice>, GpuFault>,
    program: &GpuProgram,
) -> Vec<Finding> {
    const NAME: &str = "GPUs";
    let reading = match (read, &devices) {
        (Ok(reading), _) => reading,
        // What is installed matters only where there is something to run it on.
        (Err(reason), Err(GpuFault::NotThere(_))) => {
            let detail = format!("no NVIDIA driver on this machine ({reason}); models run on the CPU");
            return vec![finding(NAME, FindingStatus::Missing, detail)];
        }
        (Err(reason), Err(fault)) => {
            let detail = format!("none can be used: {fault}; {reason}; models run on the CPU");
            return vec![finding(NAME, FindingStatus::Missing, detail)];
        }
        (Err(reason), Ok(devices)) => {
            let mut findings = vec![finding("NVML", FindingStatus::Missing, format!("{reason}; GPU metrics stay 0"))];
            findings.extend(devices.iter().map(|gpu| {
                let (name, capability) = (gpu.name.clone(), Some(gpu.compute_capability));
                described(gpu.ordinal, name, Some(gpu.memory_bytes), capability, version.as_deref())
            }));
            findings.push(executor(version, devices.len(), program));
            return findings;
        }
    };
    let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
    let driver = format!("{}, runs CUDA up to {}", said(&reading.driver), said(&reading.cuda));
    let mut findings = vec![finding("NVIDIA driver", FindingStatus::Ok, driver)];
    findings.extend((0..).zip(&reading.gpus).map(|(index, gpu)| match gpu {
        Ok(sample) => seen(index, sample, version.as_deref()),
        Err(reason) => finding(&format!("GPU {index}"), FindingStatus::Missing, reason),
    }));
    if reading.gpus.is_empty() {
        findings.push(finding(NAME, FindingStatus::Missing, "the driver lists none; models run on the CPU"));
    }
    findings.push(match devices {
        Ok(devices) => executor(version, devices.len(), program),
        Err(fault) => finding("weir-gpu", FindingStatus::Missing, format!("{fault}; models run on the CPU")),
    });
    findings
}

fn executor(version: Option<String>, gpus: usize, program: &GpuProgram) -> Finding {
    let detail = format!("{}, {}; GPUs it can use: {gpus}", version.unwrap_or_default(), program.path().display());
    finding("weir-gpu", FindingStatus::Ok, detail)
}

/// A GPU as its driver describes it.
fn seen(index: u32, sample: &Sample, version: Option<&str>) -> Finding {
    let identity = &sample.identity;
    let mut name = identity.name.clone().unwrap_or_else(|| "of unknown name".into());
    if identity.mig == Some(true) {
        name.push_str(" divided by MIG (no utilisation; memory is the whole GPU's)");
    }
    described(index, name, sample.memory_total, identity.compute_capability, version)
}

/// A GPU, and whether what `weir-gpu` was built for runs on it.
fn described(
    index: u32,
    name: String,
    memory: Option<u64>,
    capability: Option<(u32, u32)>,
    version: Option<&str>,
) -> Finding {
    let memory = memory.map(|bytes| format!(", {} GiB", bytes >> 30)).unwrap_or_default();
    let Some((major, minor)) = capability else {
        return finding(
            &format!("GPU {index}"),
            FindingStatus::Info,
            format!("{name}{memory}, compute capability unknown"),
        );
    };
    let built = version.and_then(|line| {
        let word = line.split_once("compute capability ")?.1.split([',', ' ', ')']).next()?;
        compute_capability(word)
    });
    // Machine code runs on its own major version, from its own minor one on.
    let trouble = match built {
        _ if (major, minor) < COMPUTE_CAPABILITY_MIN => {
            format!(": too old, {}.{} is needed", COMPUTE_CAPABILITY_MIN.0, COMPUTE_CAPABILITY_MIN.1)
        }
        Some((of, from)) if of != major || from > minor => format!(": weir-gpu was built for {of}.{from}"),
        _ => String::new(),
    };
    let status = if trouble.is_empty() { FindingStatus::Ok } else { FindingStatus::Missing };
    finding(&format!("GPU {index}"), status, format!("{name}{memory}, compute capability {major}.{minor}{trouble}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gpu_program::tests::{H200, stand_in},
        telemetry::fake::{FakeTelemetry, reading, whole_gpu},
    };

    /// The lines about GPUs, with their status.
    fn lines(read: Result<Reading, String>, script: &str) -> Vec<(String, FindingStatus, String)> {
        let (_folder, program) = stand_in(script);
        let found = gpus(read, program.version().ok(), program.devices(), &program);
        found.into_iter().map(|finding| (finding.name, finding.status, finding.detail)).collect()
    }

    fn works(capability: &str) -> String {
        format!(
            "case $1 in version) echo 'weir-gpu 0.1.0, compute capability {capability}';; devices) echo '{H200}';; esac"
        )
    }

    #[test]
    fn report_names_what_everyone_has() {
        let findings = doctor(&GpuProgram::at("/nonexistent/weir-gpu".into()));
        for name in ["processor", "instructions", "memory"] {
            assert!(findings.iter().any(|f| f.name == name && !f.detail.is_empty()), "{name}");
        }
    }

    #[test]
    fn without_a_driver_there_is_one_line() {
        let no_driver = || Err("libnvidia-ml.so.1 is not there".to_owned());
        let program = GpuProgram::at("/nonexistent/weir-gpu".into());
        let bare = gpus(no_driver(), None, program.devices(), &program);
        let line = "no NVIDIA driver on this machine (libnvidia-ml.so.1 is not there); models run on the CPU";
        assert_eq!(bare, [finding("GPUs", FindingStatus::Missing, line)]);
        let loader = "echo 'x: error while loading shared libraries: libcuda.so.1: cannot open shared object file: No such file or directory' >&2; exit 127";
        let one = lines(no_driver(), loader);
        let line = "none can be used: weir-gpu does not start: libcuda.so.1 is not there (no NVIDIA driver on this machine); \
                    libnvidia-ml.so.1 is not there; models run on the CPU";
        assert_eq!(one, [("GPUs".to_owned(), FindingStatus::Missing, line.to_owned())]);
    }

    #[test]
    fn a_gpu_is_described_with_what_can_use_it() {
        let found = lines(Ok(reading(vec![Ok(whole_gpu()), Err("it fell off the bus".into())])), &works("9.0"));
        let described: Vec<_> =
            found.iter().map(|(name, status, detail)| (name.as_str(), *status, detail.as_str())).collect();
        assert_eq!(described[0], ("NVIDIA driver", FindingStatus::Ok, "580.95.05, runs CUDA up to 13.0"));
        assert_eq!(described[1], ("GPU 0", FindingStatus::Ok, "NVIDIA H200, 140 GiB, compute capability 9.0"));
        assert_eq!(described[2], ("GPU 1", FindingStatus::Missing, "it fell off the bus"));
        assert_eq!((described[3].0, described[3].1), ("weir-gpu", FindingStatus::Ok));
        assert!(described[3].2.starts_with("weir-gpu 0.1.0, compute capability 9.0, /"), "{found:?}");
        assert!(described[3].2.ends_with("/weir-gpu; GPUs it can use: 1") && described.len() == 4, "{found:?}");
    }

    #[test]
    fn a_gpu_that_weir_gpu_was_not_built_for_is_marked() {
        let gpu = |capability, built: &str| {
            let mut sample = whole_gpu();
            sample.identity.compute_capability = Some(capability);
            lines(Ok(reading(vec![Ok(sample)])), &works(built)).remove(1)
        };
        assert_eq!(gpu((8, 9), "8.0").1, FindingStatus::Ok);
        for (capability, built, words) in [
            ((7, 5), "8.0", "too old, 8.0 is needed"),
            ((9, 0), "8.0", "weir-gpu was built for 8.0"),
            ((9, 0), "80", "weir-gpu was built for 8.0"),
            ((8, 0), "8.6", "weir-gpu was built for 8.6"),
        ] {
            let (_, status, detail) = gpu(capability, built);
            assert!(status == FindingStatus::Missing && detail.ends_with(words), "{detail}");
        }
    }

    #[test]
    fn gpus_are_found_without_nvml_and_a_driver_without_weir_gpu() {
        let found = lines(Err("libnvidia-ml.so.1 is not there".into()), &works("9.0"));
        let names: Vec<_> = found.iter().map(|(name, status, _)| (name.as_str(), *status)).collect();
        let (ok, missing) = (FindingStatus::Ok, FindingStatus::Missing);
        assert_eq!(names, [("NVML", missing), ("GPU 0", ok), ("weir-gpu", ok)]);
        let found = lines(Ok(reading(vec![Ok(whole_gpu())])), "echo broken >&2; exit 1");
        assert_eq!(found[2].2, "weir-gpu fails: broken; models run on the CPU");
        let found = lines(Ok(reading(vec![])), "echo broken >&2; exit 1");
        assert_eq!((found[1].0.as_str(), found[1].1), ("GPUs", missing));
    }

    #[test]
    fn a_driver_that_hangs_is_given_up() {
        let (_script, hangs) = FakeTelemetry::scripted();
        assert_eq!(look(hangs, Duration::ZERO), Err("NVML does not answer within 0 s".into()));
    }
}
