//! What an engine is started with. Values are already checked by the caller's configuration; `FromStr` parses the one
//! grammar that the command line and the file share: `[NAME=]MODEL`.

mod quotas;

use std::{path::PathBuf, str::FromStr, time::Duration};

pub use self::quotas::{DeviceQuota, QuotaTerms, RequestQuota};
use crate::{accounts::Accounts, error::EngineError, recorder::RecordConfig};

/// Everything `Engine::start` needs.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The models to serve, at least one; names are unique.
    pub models: Vec<ModelSpec>,
    /// Who may submit; the index in this list plus one is the tenant's id (0 is the operator).
    pub tenants: Vec<TenantSpec>,
    /// The devices, at least one, with names of their own; the index in this list is the device's id. See
    /// [`crate::devices::resolve`].
    pub devices: Vec<DeviceConfig>,
    /// Where model files are inspected before anything else opens them.
    pub inspector: ExecutorMode,
    /// Requests that may wait on the whole node, beyond which submissions are refused as busy.
    pub queue_len_max: u32,
    /// Device time for which requests whose beginning is cached may go before others. It is a term of the bound on the service gap between
    /// tenants; with none, the prefix cache decides nothing.
    pub locality_quantum: Duration,
    /// How long the node may be idle before a canary request proves that steps still complete.
    pub canary_interval: Duration,
    /// Root of every seed that a request does not bring itself.
    pub seed: u64,
    /// Where a trace of the load is written, if it is.
    pub record: Option<RecordConfig>,
    /// Where charges are written; without it nothing outlives the process, as for tests and benches.
    pub accounts: Option<Accounts>,
}

/// The default of [`EngineConfig::locality_quantum`].
pub const LOCALITY_QUANTUM: Duration = Duration::from_millis(250);

/// One device: what it is, where its executor runs, and the shape of its steps.
#[derive(Debug, Clone)]
pub struct DeviceConfig {
    /// What logs, metrics and operators call it: `cpu:0`, `cuda:1`.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// What bills and prices call devices like it: `cpu`, or of a GPU what its name says ([`crate::devices::gpu_class`]).
    pub class: String,
    /// Where its executor runs.
    pub executor: ExecutorMode,
    /// Compute threads of a CPU; 0 takes one per available core.
    pub threads: usize,
    /// Bytes of KV cache per generation model. 0, on a GPU, shares out what weights and workspaces leave.
    pub kv_bytes: u64,
    /// Tokens in one step, all rows together.
    pub step_tokens_max: u32,
    /// Rows in one step.
    pub rows_max: u32,
    /// What a step should stay under; the scheduler fits the token budget to it. Rows of texts that are being drawn are bounded by
    /// `rows_max` and by plans' targets only.
    pub step_latency_max: Duration,
    /// The pool it is reserved for; a device without one is everybody's.
    pub pool: Option<String>,
    /// What its time counts against quotas, in millionths: quotas are in the time of a device whose rate is one. Bills are not touched
    /// by it.
    pub rate_ppm: u32,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Cores of this machine.
    Cpu,
    /// The GPU of that ordinal, as CUDA counts them.
    Cuda(u32),
}

impl DeviceKind {
    /// `cpu` or `cuda`.
    pub fn word(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Cuda(_) => "cuda",
        }
    }

    /// The name of a device of this kind; `index` counts those that have no ordinal of their own.
    pub fn device_name(self, index: u32) -> String {
        let number = match self {
            DeviceKind::Cpu => index,
            DeviceKind::Cuda(ordinal) => ordinal,
        };
        format!("{}:{number}", self.word())
    }
}

impl DeviceConfig {
    /// A CPU with the default shape; `index` counts them.
    pub fn cpu(index: u32, executor: ExecutorMode) -> Self {
        DeviceConfig {
            name: DeviceKind::Cpu.device_name(index),
            kind: DeviceKind::Cpu,
            class: DeviceKind::Cpu.word().to_owned(),
            executor,
            threads: 0,
            kv_bytes: 1 << 30,
            step_tokens_max: 512,
            rows_max: 64,
            step_latency_max: Duration::from_millis(200),
            pool: None,
            rate_ppm: 1_000_000,
        }
    }

    /// A GPU with the default shape. Steps of 2,048 tokens take an H200 about 50 ms with weights of 16 GB, at 80 % of what it can
    /// multiply; nobody has measured that yet.
    pub fn cuda(ordinal: u32, executor: ExecutorMode) -> Self {
        let kind = DeviceKind::Cuda(ordinal);
        DeviceConfig {
            name: kind.device_name(0),
            kind,
            class: kind.word().to_owned(),
            kv_bytes: 0,
            step_tokens_max: 2048,
            rows_max: 256,
            step_latency_max: Duration::from_millis(100),
            ..DeviceConfig::cpu(0, executor)
        }
    }
}

/// Where the executor of a device runs.
#[derive(Debug, Clone)]
pub enum ExecutorMode {
    /// A process of its own: `program args...`, which must call [`crate::executor_main`]. Models from outside are inspected
    /// by the same program, as `program inspect --json PATH`, which must print what [`crate::inspect::answer`] says.
    Process {
        /// The executable, usually this one.
        program: PathBuf,
        /// Its arguments, usually the hidden subcommand.
        args: Vec<String>,
    },
    /// A thread of this process; for tests.
    Thread,
}

/// One model to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// The name clients use.
    pub name: String,
    /// Where its weights are.
    pub source: ModelLocation,
    /// Names of the devices that load it; none means all of them.
    pub devices: Vec<String>,
}

/// Where a model's weights are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelLocation {
    /// A folder, or a `.gguf` file.
    Path(PathBuf),
    /// A Hugging Face id.
    Hub {
        /// `org/name`.
        id: String,
        /// Branch, tag or commit; `main` when absent.
        revision: Option<String>,
        /// One file of the repository, for GGUF.
        file: Option<String>,
    },
    /// No weights: fixed costs and seeded output.
    Fake(FakeCost),
}

/// What a fake model's step costs, and what shape it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FakeCost {
    /// Time of every step.
    pub step: Duration,
    /// Time of every new token in it.
    pub token: Duration,
    /// Bytes of text that a drawn letter stands for.
    pub text: u32,
    /// Positions in its KV cache.
    pub kv: u32,
    /// What goes wrong when.
    pub faults: FakeFaults,
}

/// Faults of a fake model, for tests of what survives them. Each is set off by a token id: by a row that computes it, or,
/// for `nan_on`, by a row of a text that holds it. Ids below 256 are bytes, so a control character in a prompt will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FakeFaults {
    /// The executor ends without a word.
    pub crash_on: Option<u32>,
    /// The step never ends.
    pub hang_on: Option<u32>,
    /// The row's logits, or its vector, are not numbers.
    pub nan_on: Option<u32>,
}

/// Longest text of a fake token: more than any real one has.
const FAKE_TEXT_MAX: u32 = 1 << 10;
/// Most positions of a fake KV cache; the scheduler keeps a few bytes for each block of 32.
const FAKE_KV_MAX: u32 = 64 << 20;

/// A tenant as the engine knows it; see also [`TenantSpec::of_limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantSpec {
    /// Its name, unique: its id in the store, if there is one.
    pub name: String,
    /// The name of what it bought, which its bills show; empty where nobody said.
    pub plan: String,
    /// Its share of each device against the others'.
    pub weight: u32,
    /// Requests it may have waiting.
    pub queue_len_max: u32,
    /// Requests it may have running.
    pub running_max: u32,
    /// KV blocks that no other tenant can take from it.
    pub kv_blocks_floor: u32,
    /// KV blocks it may hold at most.
    pub kv_blocks_ceiling: Option<u32>,
    /// Cached KV blocks that no other tenant can take from it.
    pub cache_blocks_floor: u32,
    /// KV blocks that stay cached at most when nothing of it runs on them.
    pub cache_blocks_ceiling: Option<u32>,
    /// From arrival to the first token; what is not expected to keep it is refused.
    pub ttft_target: Option<Duration>,
    /// From a token to the next; steps beside its texts are cut to it.
    pub itl_target: Option<Duration>,
    /// The most urgent priority class that its requests count as.
    pub priority_ceiling: u8,
    /// The pool of devices it may use beside the common ones.
    pub pool: Option<String>,
    /// It uses its pool's devices only.
    pub pool_only: bool,
    /// Device time it may use.
    pub quota: DeviceQuota,
    /// Requests it may make.
    pub requests: RequestQuota,
    /// How both quotas are kept.
    pub terms: QuotaTerms,
}

impl TenantSpec {
    /// A tenant of weight 1 with the default bounds.
    pub fn named(name: &str) -> Self {
        TenantSpec {
            name: name.to_owned(),
            plan: String::new(),
            weight: 1,
            queue_len_max: 256,
            running_max: 64,
            kv_blocks_floor: 0,
            kv_blocks_ceiling: None,
            cache_blocks_floor: 0,
            cache_blocks_ceiling: None,
            ttft_target: None,
            itl_target: None,
            priority_ceiling: 0,
            pool: None,
            pool_only: false,
            quota: DeviceQuota::default(),
            requests: RequestQuota::default(),
            terms: QuotaTerms::default(),
        }
    }
}

impl FromStr for ModelSpec {
    type Err = EngineError;

    /// Parses `[NAME=]MODEL`. An existing path wins, then `fake:`, then a hub id `org/name[@revision][:file.gguf]`.
    fn from_str(text: &str) -> Result<Self, EngineError> {
        let bad = |message: String| EngineError::ModelSpec { spec: text.to_owned(), message };
        let (name, model) = match text.split_once('=') {
            // `fake:step=4ms` has an equals sign of its own, and so may a path that exists as it stands.
            Some((name, model)) if !name.starts_with("fake:") && !PathBuf::from(text).exists() => {
                (Some(name.to_owned()), model)
            }
            _ => (None, text),
        };
        if model.is_empty() {
            return Err(bad("the model is empty".into()));
        }
        let path = PathBuf::from(model);
        let (source, default_name) = if path.exists() {
            let stem = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            (ModelLocation::Path(path), stem)
        } else if model == "fake" || model.starts_with("fake:") {
            (ModelLocation::Fake(FakeCost::parse(model).map_err(bad)?), "fake".to_owned())
        } else {
            let (rest, file) = match model.split_once(':') {
                Some((rest, file)) => (rest, Some(file.to_owned())),
                None => (model, None),
            };
            let (id, revision) = match rest.split_once('@') {
                Some((id, revision)) => (id, Some(revision.to_owned())),
                None => (rest, None),
            };
            let part = |p: &str| {
                !p.is_empty()
                    && p != "."
                    && p != ".."
                    && p.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            };
            let mut parts = id.split('/');
            let shaped =
                matches!((parts.next(), parts.next(), parts.next()), (Some(a), Some(b), None) if part(a) && part(b));
            if !shaped {
                return Err(bad(format!("no file or folder `{model}`, and it is not a Hugging Face id (org/name)")));
            }
            let last = file.as_deref().unwrap_or(id).rsplit('/').next().unwrap_or(id).to_owned();
            (ModelLocation::Hub { id: id.to_owned(), revision, file }, last)
        };
        let name = match name {
            Some(name) => name,
            None => default_name.strip_suffix(".gguf").unwrap_or(&default_name).to_lowercase(),
        };
        if !model_name_is_plain(&name) {
            return Err(bad(format!("`{name}` cannot be a model name: use letters, digits and -_./:@")));
        }
        Ok(ModelSpec { name, source, devices: Vec::new() })
    }
}

/// Whether clients can ask for a model by this name, and logs and metrics can show it.
pub(crate) fn model_name_is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    !name.is_empty() && name.len() <= 128 && name.chars().all(plain)
}

impl FakeCost {
    /// Parses `fake:KEY=VALUE,...`. What is missing has the value shown:
    ///
    /// * `step=4ms`: the time of every step;
    /// * `token=20us`: the time of every new token in it;
    /// * `text=1B`: how many bytes of text a drawn letter stands for, at most 1 KiB, so that long outputs take few steps;
    /// * `kv=512K`: positions in the KV cache, in `K` (2^10) or `M` (2^20), at most 64M;
    /// * `crash_on=7`, `hang_on=6`, `nan_on=5`: see [`FakeFaults`]; no fault unless it is named.
    fn parse(text: &str) -> Result<Self, String> {
        let mut cost = FakeCost {
            step: Duration::from_millis(4),
            token: Duration::from_micros(20),
            text: 1,
            kv: 512 << 10,
            faults: FakeFaults::default(),
        };
        let list = text.strip_prefix("fake").unwrap_or(text).trim_start_matches(':');
        for part in list.split(',').filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
            let time = || parse_duration(value).ok_or_else(|| format!("`{value}` is not a time such as 4ms or 20us"));
            let amount = |units: &[(&str, u32)], max: u32, example: &str| {
                let known = units.iter().find_map(|(unit, scale)| Some((value.strip_suffix(unit)?, scale)));
                let amount = known.and_then(|(number, scale)| number.parse::<u32>().ok()?.checked_mul(*scale));
                let fits = amount.filter(|amount| (1..=max).contains(amount));
                fits.ok_or_else(|| format!("`{value}` is not {key} such as {example}, or too much"))
            };
            let id = || value.parse::<u32>().map(Some).map_err(|_| format!("`{value}` is not a token id such as 7"));
            match key {
                "step" => cost.step = time()?,
                "token" => cost.token = time()?,
                "text" => cost.text = amount(&[("KiB", 1 << 10), ("B", 1)], FAKE_TEXT_MAX, "16B or 1KiB")?,
                "kv" => cost.kv = amount(&[("K", 1 << 10), ("M", 1 << 20)], FAKE_KV_MAX, "512K or 8M")?,
                "crash_on" => cost.faults.crash_on = id()?,
                "hang_on" => cost.faults.hang_on = id()?,
                "nan_on" => cost.faults.nan_on = id()?,
                _ => {
                    let keys = "step, token, text, kv, crash_on, hang_on and nan_on";
                    return Err(format!("unknown key `{key}`: use {keys}"));
                }
            }
        }
        Ok(cost)
    }
}

/// Parses a time with a unit: `20us`, `4ms`, `1.5s`, `2m`. None when it is not one, or is over a day.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = text.split_at(split);
    let nanos = match unit {
        "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        _ => return None,
    } * number.parse::<f64>().ok()?;
    (0.0..=86_400e9).contains(&nanos).then(|| Duration::from_nanos(nanos as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> ModelSpec {
        text.parse().expect("parses")
    }

    #[test]
    fn the_default_quantum_is_the_schedulers_own() {
        assert_eq!(LOCALITY_QUANTUM.as_nanos(), u128::from(weir_scheduler::Config::default().locality_quantum.0));
    }

    #[test]
    fn existing_path_wins_and_names_itself() {
        let folder = tempfile::tempdir().expect("temp folder");
        let file = folder.path().join("Tiny.Q4.gguf");
        std::fs::write(&file, b"x").expect("write");
        let got = spec(file.to_str().expect("utf-8"));
        assert_eq!(got.name, "tiny.q4");
        assert_eq!(got.source, ModelLocation::Path(file));
    }

    #[test]
    fn hub_ids_take_revision_and_file() {
        let got = spec("mini=org/Model-1@v2:weights.gguf");
        assert_eq!(got.name, "mini");
        let expected = ModelLocation::Hub {
            id: "org/Model-1".into(),
            revision: Some("v2".into()),
            file: Some("weights.gguf".into()),
        };
        assert_eq!(got.source, expected);
        assert_eq!(spec("org/Model-1").name, "model-1");
    }

    #[test]
    fn fake_costs_are_read() {
        let ModelLocation::Fake(cost) = spec("f=fake:step=1.5ms,token=7us").source else { panic!("fake") };
        assert_eq!((cost.step, cost.token), (Duration::from_micros(1500), Duration::from_micros(7)));
        assert_eq!((cost.text, cost.kv), (1, 512 << 10));
        assert_eq!(spec("fake:step=1ms").name, "fake");
        let ModelLocation::Fake(cost) = spec("fake:text=1KiB,kv=8M").source else { panic!("fake") };
        assert_eq!((cost.text, cost.kv), (1024, 8 << 20));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for bad in [
            "",
            "name=",
            "fake:step=fast",
            "fake:speed=1ms",
            "fake:text=2KiB",
            "fake:text=0B",
            "fake:kv=1",
            "fake:kv=65M",
            "no/such/thing",
            "missing.gguf",
            "a b=org/m",
            "../x",
        ] {
            assert!(bad.parse::<ModelSpec>().is_err(), "{bad} was accepted");
        }
    }
}
