//! What this machine can do: processor, memory, GPUs. Absence is a finding, never an error.

use std::fs;

use nvml_wrapper::Nvml;

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

/// Looks at the machine.
pub fn doctor() -> Vec<Finding> {
    let mut findings = vec![cpu(), isa(), memory()];
    gpus(&mut findings);
    findings
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

/// NVML is opened at run time, so this works, and says so, on a machine without a driver.
fn gpus(findings: &mut Vec<Finding>) {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => {
            let detail = format!("no NVIDIA driver ({error}); models run on the CPU");
            return findings.push(finding("GPUs", FindingStatus::Missing, detail));
        }
    };
    let driver = nvml.sys_driver_version().unwrap_or_else(|e| e.to_string());
    findings.push(finding("NVIDIA driver", FindingStatus::Ok, driver));
    for index in 0..nvml.device_count().unwrap_or(0) {
        let seen = nvml.device_by_index(index).and_then(|device| {
            let memory = device.memory_info()?;
            let capability = device.cuda_compute_capability()?;
            Ok(format!(
                "{}, {} GiB, compute capability {}.{}",
                device.name()?,
                memory.total >> 30,
                capability.major,
                capability.minor
            ))
        });
        let name = format!("GPU {index}");
        findings.push(match seen {
            Ok(detail) => finding(&name, FindingStatus::Ok, detail),
            Err(error) => finding(&name, FindingStatus::Missing, error.to_string()),
        });
    }
    findings.push(finding("CUDA executor", FindingStatus::Info, "this build has none yet; models run on the CPU"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_names_what_everyone_has() {
        let findings = doctor();
        for name in ["processor", "instructions", "memory"] {
            assert!(findings.iter().any(|f| f.name == name && !f.detail.is_empty()), "{name}");
        }
    }
}
