//! Which devices a node runs on: what an operator writes, and what that means on this machine.

use std::{fmt, num::NonZeroUsize, str::FromStr, thread, time::Duration};

use serde::Deserialize;

use crate::{
    config::{DeviceConfig, DeviceKind},
    error::EngineError,
    gpu_program::{GpuDevice, GpuFault, GpuProgram},
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

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevicePhase {
    /// Its executor loads the models.
    Loading,
    /// It runs requests.
    Ready,
    /// It runs what it has and takes no newcomers.
    Draining,
    /// An operator took it out; it has no executor.
    Drained,
    /// Its executor was lost and is started again in a moment.
    Down,
}

impl DevicePhase {
    /// In lower case.
    pub fn word(self) -> &'static str {
        match self {
            DevicePhase::Loading => "loading",
            DevicePhase::Ready => "ready",
            DevicePhase::Draining => "draining",
            DevicePhase::Drained => "drained",
            DevicePhase::Down => "down",
        }
    }
}

/// A device at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Where it is in its life.
    pub phase: DevicePhase,
    /// Why its last executor was lost, until the next is ready.
    pub reason: Option<String>,
    /// The models it can run now.
    pub models: Vec<String>,
    /// Requests running on it.
    pub requests_running: u32,
    /// Requests waiting for it; they may yet go elsewhere.
    pub requests_waiting: u32,
    /// KV blocks of all its models.
    pub kv_blocks: u32,
    /// Of them, those that running requests hold.
    pub kv_blocks_used: u32,
    /// Lives of its executor, and their ends.
    pub epoch: u64,
    /// Executors started again after one was lost.
    pub restarts: u64,
    /// Steps it has run.
    pub steps: u64,
    /// Device time of these steps.
    pub busy: Duration,
    /// Its executor, where that is a process and there is one.
    pub pid: Option<u32>,
}

/// Why nothing was done about a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No device of that name.
    #[error("there is no device `{0}`")]
    Unknown(String),
    /// Nobody else takes requests.
    #[error("`{0}` is the last device that takes requests")]
    Last(String),
    /// The engine has ended.
    #[error("the server is shutting down")]
    Ended,
}

/// The class of a GPU, from the name that CUDA gives it: `h200` of `NVIDIA H200`, `gh200` of `NVIDIA GH200 480GB`, `a100` of
/// `NVIDIA A100-SXM4-80GB`, `rtx-4090` of `NVIDIA GeForce RTX 4090`. A part of a GPU is another class, which has the part's name behind:
/// `h200-1g.18gb` of `NVIDIA H200 MIG 1g.18gb`. How much memory a GPU has, and how it is plugged in, makes no class.
pub fn gpu_class(name: &str) -> String {
    const MAKERS: [&str; 6] = ["nvidia", "tesla", "geforce", "quadro", "graphics", "device"];
    let text: String = name.to_ascii_lowercase();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.';
    let words = text.split(|c| !plain(c)).filter(|word| !word.is_empty() && !MAKERS.contains(word));
    let mut class: Vec<&str> = Vec::new();
    let mut words = words.peekable();
    // Up to the first word with a number in it, which is what distinguishes models.
    while let Some(word) = words.next_if(|word| *word != "mig") {
        class.push(word);
        if word.contains(|c: char| c.is_ascii_digit()) {
            break;
        }
    }
    if words.any(|word| word == "mig") {
        class.extend(words.next());
    }
    if class.is_empty() { DeviceKind::Cuda(0).word().to_owned() } else { class.join("-") }
}

/// What to do when a GPU that was asked for by `cuda` or `cuda:N` cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuMissing {
    /// Do not start. Who names a GPU has planned with its speed: a node that serves at a hundredth of it looks well and is not.
    #[default]
    Exit,
    /// Serve without it: on the devices that are left, on the CPU if none is.
    Cpu,
}

impl FromStr for GpuMissing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "exit" => Ok(GpuMissing::Exit),
            "cpu" => Ok(GpuMissing::Cpu),
            _ => Err(format!("`{text}` is neither exit nor cpu")),
        }
    }
}

impl fmt::Display for GpuMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GpuMissing::Exit => "exit",
            GpuMissing::Cpu => "cpu",
        })
    }
}

/// What a list means on this machine.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The devices, at least one.
    pub devices: Vec<DeviceConfig>,
    /// A line for each GPU that was asked for and is not among them.
    pub without: Vec<String>,
}

/// The devices that a list means on this machine, where `gpu` is asked for GPUs if the list has any. `shape` is what a CPU's
/// steps are like, `gpu_shape` a GPU's. The threads of `shape` are divided among them, at least one each, the first ones
/// taking what is left over. Its KV memory is each one's.
///
/// # Errors
/// When a GPU that is named cannot be used, unless the node is to serve without it.
pub fn resolve(
    list: &DeviceList,
    shape: &DeviceConfig,
    gpu_shape: &DeviceConfig,
    gpu: &GpuProgram,
    missing: GpuMissing,
) -> Result<Resolved, EngineError> {
    let wanted = list.specs().iter().any(|spec| *spec != DeviceSpec::Cpu);
    let found = if wanted { gpu.devices() } else { Ok(Vec::new()) };
    choose(list, [shape, gpu_shape], gpu, &found, missing)
}

fn choose(
    list: &DeviceList,
    [shape, gpu_shape]: [&DeviceConfig; 2],
    gpu: &GpuProgram,
    found: &Result<Vec<GpuDevice>, GpuFault>,
    missing: GpuMissing,
) -> Result<Resolved, EngineError> {
    let (mut kinds, mut without) = (Vec::new(), Vec::new());
    for spec in list.specs() {
        match gpus_of(*spec, found) {
            Ok(gpus) if gpus.is_empty() => kinds.push(DeviceKind::Cpu),
            Ok(gpus) => kinds.extend(gpus.into_iter().map(DeviceKind::Cuda)),
            Err(why) if *spec == DeviceSpec::Auto => without.push(format!("auto: {why}; models run on the CPU")),
            Err(why) if missing == GpuMissing::Cpu => without.push(format!("{spec}: {why}; serving without it")),
            Err(why) => return Err(EngineError::Config(format!("{spec}: {why}"))),
        }
    }
    if kinds.is_empty() {
        kinds.push(DeviceKind::Cpu);
    }
    let mut cpus = cpu_devices(kinds.iter().filter(|kind| **kind == DeviceKind::Cpu).count(), shape).into_iter();
    let device = |kind| match kind {
        DeviceKind::Cpu => cpus.next(),
        DeviceKind::Cuda(ordinal) => {
            let known = found.iter().flatten().find(|gpu| gpu.ordinal == ordinal);
            let class = known.map_or_else(|| kind.word().to_owned(), |gpu| gpu_class(&gpu.name));
            let (name, executor) = (kind.device_name(0), gpu.executor(ordinal));
            Some(DeviceConfig { name, kind, class, executor, ..gpu_shape.clone() })
        }
    };
    Ok(Resolved { devices: kinds.into_iter().filter_map(device).collect(), without })
}

/// The ordinals of the GPUs that an entry means; none for `cpu`.
fn gpus_of(spec: DeviceSpec, found: &Result<Vec<GpuDevice>, GpuFault>) -> Result<Vec<u32>, String> {
    if spec == DeviceSpec::Cpu {
        return Ok(Vec::new());
    }
    let found = found.as_ref().map_err(GpuFault::to_string)?;
    if let DeviceSpec::Cuda(Some(ordinal)) = spec {
        let gpu = found.iter().find(|gpu| gpu.ordinal == ordinal);
        let gpu = gpu.ok_or_else(|| format!("it is not among the GPUs that weir-gpu finds, {} in all", found.len()))?;
        return gpu.usable().map(|()| vec![ordinal]);
    }
    let usable = found.iter().filter(|gpu| gpu.usable().is_ok()).map(|gpu| gpu.ordinal).take(DEVICES_LEN_MAX);
    match (usable.collect::<Vec<u32>>(), found.first()) {
        (none, Some(first)) if none.is_empty() => first.usable().map(|()| none),
        (usable, _) => Ok(usable),
    }
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

    /// What a list comes to where `found` is what `weir-gpu` says.
    fn chosen(
        text: &str,
        found: Result<Vec<GpuDevice>, GpuFault>,
        missing: GpuMissing,
    ) -> Result<(Vec<String>, Vec<String>), String> {
        let (shape, gpu) = (DeviceConfig::cpu(0, ExecutorMode::Thread), GpuProgram::at("/opt/weir-gpu".into()));
        let resolved = choose(&list(text).expect("a list"), [&shape, &shape], &gpu, &found, missing)
            .map_err(|error| error.to_string())?;
        Ok((resolved.devices.into_iter().map(|device| device.name).collect(), resolved.without))
    }

    fn gpus(capabilities: &[(u32, u32)]) -> Result<Vec<GpuDevice>, GpuFault> {
        let gpu = |(ordinal, &compute_capability): (u32, _)| GpuDevice {
            ordinal,
            name: "GPU".into(),
            compute_capability,
            memory_bytes: 1,
        };
        Ok((0..).zip(capabilities).map(gpu).collect())
    }

    #[test]
    fn threads_are_divided_and_memory_is_not() {
        let cpu = DeviceConfig { threads: 5, kv_bytes: 7, ..DeviceConfig::cpu(0, ExecutorMode::Thread) };
        // Nobody asks a program for GPUs where none is wanted.
        let nobody = GpuProgram::at("/nonexistent".into());
        let devices = |text: &str, shape: &DeviceConfig| {
            resolve(&list(text).expect("a list"), shape, shape, &nobody, GpuMissing::Exit).expect("devices").devices
        };
        let three = devices("cpu,cpu,cpu", &cpu);
        let shape: Vec<_> = three.iter().map(|d| (d.name.as_str(), d.threads, d.kv_bytes)).collect();
        assert_eq!(shape, [("cpu:0", 2, 7), ("cpu:1", 2, 7), ("cpu:2", 1, 7)]);
        let narrow = DeviceConfig { threads: 1, ..cpu };
        assert!(devices("cpu,cpu", &narrow).iter().all(|device| device.threads == 1));
    }

    #[test]
    fn a_gpus_class_is_its_model() {
        for (name, class) in [
            ("NVIDIA H200", "h200"),
            ("NVIDIA H200 NVL", "h200"),
            ("NVIDIA GH200 480GB", "gh200"),
            ("NVIDIA H100 80GB HBM3", "h100"),
            ("NVIDIA H100 PCIe", "h100"),
            ("NVIDIA A100-SXM4-80GB", "a100"),
            ("NVIDIA L40S", "l40s"),
            ("Tesla T4", "t4"),
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
            ("NVIDIA H200 MIG 1g.18gb", "h200-1g.18gb"),
            ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "a100-3g.20gb"),
            ("GPU", "gpu"),
            ("", "cuda"),
            ("NVIDIA", "cuda"),
        ] {
            assert_eq!(gpu_class(name), class, "{name}");
        }
        let (shape, gpu) = (DeviceConfig::cpu(0, ExecutorMode::Thread), GpuProgram::at("/opt/weir-gpu".into()));
        let resolved =
            choose(&list("cpu,cuda").expect("a list"), [&shape, &shape], &gpu, &gpus(&[(9, 0)]), GpuMissing::Exit);
        let classes: Vec<String> = resolved.expect("devices").devices.into_iter().map(|device| device.class).collect();
        assert_eq!(classes, ["cpu", "gpu"]);
    }

    #[test]
    fn gpus_that_are_there_are_used() {
        let (old, new) = ((7, 5), (9, 0));
        let cases = [
            ("cuda", &[new, new][..], &["cuda:0", "cuda:1"][..]),
            ("auto", &[new], &["cuda:0"]),
            // One that is too old is none of all.
            ("cuda", &[old, new], &["cuda:1"]),
            ("cuda:1", &[old, new], &["cuda:1"]),
            ("cpu,cuda:1,cpu", &[new, new], &["cpu:0", "cuda:1", "cpu:1"]),
        ];
        for (text, there, names) in cases {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(chosen(text, gpus(there), GpuMissing::Exit), Ok((names, Vec::new())), "{text}");
        }
    }

    #[test]
    fn a_gpus_executor_is_its_program() {
        let (shape, gpu) = (DeviceConfig::cpu(0, ExecutorMode::Thread), GpuProgram::at("/opt/weir-gpu".into()));
        let resolved =
            choose(&list("cuda:3").expect("a list"), [&shape, &shape], &gpu, &gpus(&[(9, 0); 4]), GpuMissing::Exit);
        let device = resolved.expect("devices").devices.remove(0);
        assert_eq!(device.kind, DeviceKind::Cuda(3));
        let ExecutorMode::Process { program, args } = device.executor else { panic!("a process") };
        assert_eq!((program.to_str(), args.join(" ").as_str()), (Some("/opt/weir-gpu"), "executor --device 3"));
    }

    #[test]
    fn a_gpu_that_cannot_be_used_ends_the_start_or_is_done_without() {
        let fault = || Err(GpuFault::NotStarted("libcuda.so.1 is not there".into()));
        let why = "weir-gpu does not start: libcuda.so.1 is not there";
        let cpu = |lines: &[String]| Ok((vec!["cpu:0".to_owned()], lines.to_vec()));
        let exits = [
            ("cuda", fault(), format!("cuda: {why}")),
            ("cpu,cuda:1", fault(), format!("cuda:1: {why}")),
            ("cuda:1", gpus(&[(9, 0)]), "cuda:1: it is not among the GPUs that weir-gpu finds, 1 in all".into()),
            ("cuda:0", gpus(&[(7, 5)]), "cuda:0: GPU has compute capability 7.5, 8.0 is needed".into()),
            ("cuda", gpus(&[(7, 5)]), "cuda: GPU has compute capability 7.5, 8.0 is needed".into()),
        ];
        for (text, found, line) in exits {
            assert_eq!(chosen(text, found.clone(), GpuMissing::Exit), Err(line.clone()));
            assert_eq!(chosen(text, found, GpuMissing::Cpu), cpu(&[format!("{line}; serving without it")]));
        }
        // One of two goes, the other stays.
        let one = chosen("cuda:0,cuda:1", gpus(&[(9, 0)]), GpuMissing::Cpu).expect("devices");
        assert_eq!((one.0, one.1.len()), (vec!["cuda:0".to_owned()], 1));
        // `auto` never ends the start.
        assert_eq!(chosen("auto", fault(), GpuMissing::Exit), cpu(&[format!("auto: {why}; models run on the CPU")]));
    }
}
