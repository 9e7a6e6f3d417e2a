//! Which devices a node runs on: what an operator writes, and what that means on this machine.

use std::{fmt, num::NonZeroUsize, str::FromStr, thread};

use serde::Deserialize;

use crate::{
    config::{DeviceConfig, DeviceKind},
    error::EngineError,
};

/// Devices of one node. Each is an executor with a copy of every model.
pub const DEVICES_LEN_MAX: usize = 16;

/// One device, or several, as an operator writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceSpec {
    /// `cpu`: an executor on this machine's cores. Several of them share the cores.
    Cpu,
    /// `auto`: every GPU, or the CPU where there is none.
    Auto,
    /// `cuda`, every GPU, or `cuda:N`, that one.
    Cuda(Option<u32>),
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => return Ok(DeviceSpec::Cpu),
            "auto" => return Ok(DeviceSpec::Auto),
            "cuda" => return Ok(DeviceSpec::Cuda(None)),
            _ => {}
        }
        // `parse` alone would take `cuda:+1`.
        let ordinal = text.strip_prefix("cuda:").filter(|n| n.len() <= 3 && n.bytes().all(|b| b.is_ascii_digit()));
        match ordinal.and_then(|n| n.parse().ok()) {
            Some(ordinal) => Ok(DeviceSpec::Cuda(Some(ordinal))),
            None => Err(format!("`{text}` is not a device: use cpu, auto, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Auto => f.write_str("auto"),
            DeviceSpec::Cuda(None) => f.write_str("cuda"),
            DeviceSpec::Cuda(Some(ordinal)) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// The devices of a node: 1 to [`DEVICES_LEN_MAX`] entries, no GPU twice, and `auto` only by itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct DeviceList(Vec<DeviceSpec>);

impl DeviceList {
    /// The entries.
    pub fn specs(&self) -> &[DeviceSpec] {
        &self.0
    }
}

impl Default for DeviceList {
    fn default() -> Self {
        DeviceList(vec![DeviceSpec::Cpu])
    }
}

impl TryFrom<Vec<String>> for DeviceList {
    type Error = String;

    fn try_from(entries: Vec<String>) -> Result<Self, String> {
        let specs = entries.iter().map(|entry| entry.parse()).collect::<Result<Vec<DeviceSpec>, _>>()?;
        if specs.is_empty() || specs.len() > DEVICES_LEN_MAX {
            return Err(format!("{} devices: 1 to {DEVICES_LEN_MAX} can be named", specs.len()));
        }
        if specs.len() > 1 && specs.contains(&DeviceSpec::Auto) {
            return Err("`auto` chooses the devices itself: it stands alone".into());
        }
        let named: Vec<&DeviceSpec> = specs.iter().filter(|spec| matches!(spec, DeviceSpec::Cuda(_))).collect();
        if named.len() > 1 && named.contains(&&DeviceSpec::Cuda(None)) {
            return Err("`cuda` is every GPU: none can be named beside it".into());
        }
        if let Some(twice) = named.iter().enumerate().find(|(at, spec)| named[..*at].contains(spec)) {
            return Err(format!("`{}` is named twice", twice.1));
        }
        Ok(DeviceList(specs))
    }
}

impl FromStr for DeviceList {
    type Err = String;

    /// Parses entries separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(|entry| entry.trim().to_owned()).collect::<Vec<_>>().try_into()
    }
}

impl fmt::Display for DeviceList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, spec) in self.0.iter().enumerate() {
            write!(f, "{}{spec}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The devices that a list means on this machine. `cpu` is the shape that each CPU executor has; its threads are divided among
/// them, at least one each, the first ones taking what is left over. Its KV memory is each one's.
///
/// # Errors
/// When a device that is named is not there.
pub fn resolve(list: &DeviceList, cpu: &DeviceConfig) -> Result<Vec<DeviceConfig>, EngineError> {
    let mut cpus = 0;
    for spec in list.specs() {
        match spec {
            DeviceSpec::Cpu | DeviceSpec::Auto => cpus += 1,
            DeviceSpec::Cuda(_) => {
                return Err(EngineError::Config(format!("`{spec}`: this build has no executor for GPUs")));
            }
        }
    }
    Ok(cpu_devices(cpus, cpu))
}

/// So many CPU executors, named `cpu:0` and so on.
fn cpu_devices(count: usize, cpu: &DeviceConfig) -> Vec<DeviceConfig> {
    let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let total = if cpu.threads == 0 { cores() } else { cpu.threads };
    let threads = |index: usize| match count {
        // Alone, it is left to the executor, which counts the cores that it may use.
        1 => cpu.threads,
        _ => (total / count + usize::from(index < total % count)).max(1),
    };
    let device = |index| DeviceConfig {
        name: DeviceKind::Cpu.device_name(index as u32),
        kind: DeviceKind::Cpu,
        threads: threads(index),
        ..cpu.clone()
    };
    (0..count).map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExecutorMode;

    fn list(text: &str) -> Result<DeviceList, String> {
        text.parse()
    }

    #[test]
    fn lists_are_read_and_written() {
        for text in ["cpu", "cpu,cpu", "auto", "cuda", "cuda:0", "cuda:0,cuda:15,cpu"] {
            assert_eq!(list(text).map(|list| list.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(list("cpu, cpu").map(|list| list.specs().len()), Ok(2));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let many = vec!["cpu"; DEVICES_LEN_MAX + 1].join(",");
        let cases = [
            ("", "``"),
            ("gpu", "`gpu`"),
            ("cpu,", "``"),
            ("cuda:", "`cuda:`"),
            ("cuda:-1", "`cuda:-1`"),
            ("cuda:+1", "`cuda:+1`"),
            ("cuda:4294967296", "`cuda:4294967296`"),
            ("cuda:1,cuda:1", "twice"),
            ("cuda,cuda:1", "every GPU"),
            ("auto,cpu", "alone"),
            (&many, "1 to 16"),
        ];
        for (text, part) in cases {
            let error = list(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn threads_are_divided_and_memory_is_not() {
        let cpu = DeviceConfig { threads: 5, kv_bytes: 7, ..DeviceConfig::cpu(0, ExecutorMode::Thread) };
        let devices = resolve(&list("cpu,cpu,cpu").expect("a list"), &cpu).expect("devices");
        let shape: Vec<_> = devices.iter().map(|d| (d.name.as_str(), d.threads, d.kv_bytes)).collect();
        assert_eq!(shape, [("cpu:0", 2, 7), ("cpu:1", 2, 7), ("cpu:2", 1, 7)]);
        let narrow = DeviceConfig { threads: 1, ..cpu };
        let devices = resolve(&list("cpu,cpu").expect("a list"), &narrow).expect("devices");
        assert!(devices.iter().all(|device| device.threads == 1));
    }

    #[test]
    fn a_gpu_that_cannot_be_used_is_named() {
        let cpu = DeviceConfig::cpu(0, ExecutorMode::Thread);
        let error = resolve(&list("cpu,cuda:1").expect("a list"), &cpu).expect_err("refused").to_string();
        assert!(error.contains("`cuda:1`"), "{error}");
    }
}
