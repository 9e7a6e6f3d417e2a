//! `weir.toml`: its tables, and one line for whatever is wrong with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use weir_runtime::{
    DeviceQuota, TenantSpec,
    store::{OPERATOR_NAME, is_host_name},
};

use super::{EngineSettings, ModelEntry, ServerSettings, Settings, Span};
use crate::{
    identity::{
        CidrList, Door, Role,
        jwt::{ISSUERS_LEN_MAX, JwtTable},
    },
    keys::KeyHash,
};

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Largest weight; shares stay exact in 64-bit integers.
const WEIGHT_MAX: u32 = 10_000;
/// Least and most device time in a window, in seconds: what a few steps need, and what 300 devices do in a month.
const QUOTA_SECONDS_MIN: f64 = 0.1;
const QUOTA_SECONDS_MAX: f64 = 1e9;
/// Least and most that a device's time can count for: a millionth, and a thousand times that of a device of rate one.
const CLASS_RATE: RangeInclusive<f64> = 1e-6..=1e3;
/// The least urgent class.
const PRIORITY_MAX: u8 = 9;
/// Longest tenant or key name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{path}: {cause}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// It is too large to be a configuration.
    #[error("{path}: larger than {FILE_BYTES_MAX} bytes")]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// A key or a value is wrong.
    #[error("{path}{place}: {message}")]
    Content {
        /// Which.
        path: PathBuf,
        /// `:LINE`, where it is known.
        place: String,
        /// What is wrong.
        message: String,
    },
}

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FileSettings {
    /// `[server]` and `[engine]`.
    pub settings: Settings,
    /// `[[models]]`.
    pub models: Vec<ModelEntry>,
    /// `[[pools]]`.
    pub pools: Vec<PoolTable>,
    /// `[device_classes]`.
    pub device_classes: DeviceClasses,
    /// `[[auth.jwt]]`.
    pub jwt: Vec<JwtTable>,
    /// `[[tenants]]`.
    pub tenants: Vec<TenantTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    server: ServerSettings,
    #[serde(default)]
    engine: EngineSettings,
    #[serde(default)]
    models: Vec<ModelTable>,
    #[serde(default)]
    pools: Vec<PoolTable>,
    #[serde(default)]
    device_classes: DeviceClasses,
    #[serde(default)]
    auth: AuthTable,
    #[serde(default)]
    tenants: Vec<TenantTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthTable {
    #[serde(default)]
    jwt: Vec<JwtTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelTable {
    name: Option<String>,
    source: String,
    #[serde(default)]
    devices: Vec<String>,
}

/// `[device_classes]`: what the time of devices of a class counts against quotas; 1 where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct DeviceClasses(pub BTreeMap<String, f64>);

impl DeviceClasses {
    /// The rate of a class, in millionths.
    pub fn rate_ppm(&self, class: &str) -> u32 {
        self.0.get(class).map_or(1_000_000, |rate| (rate * 1e6).round() as u32)
    }

    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        for (class, rate) in &self.0 {
            let name = class.escape_debug();
            if class.is_empty() || class.len() > NAME_BYTES_MAX || !class.chars().all(plain) {
                return Err(format!(
                    "device_classes: `{name}` is no class: it is 1 to {NAME_BYTES_MAX} of a-z, 0-9, - and ."
                ));
            }
            if !CLASS_RATE.contains(rate) {
                let (least, most) = (CLASS_RATE.start(), CLASS_RATE.end());
                return Err(format!("device_classes: the rate of `{name}` must be {least} to {most}"));
            }
        }
        Ok(())
    }
}

/// One `[[pools]]`: devices reserved for the tenants that name it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolTable {
    /// Unique.
    pub name: String,
    /// Names of devices, such as `cuda:1`.
    pub devices: Vec<String>,
}

/// One `[[tenants]]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantTable {
    /// Unique.
    pub name: String,
    /// Share against the others'.
    pub weight: Option<u32>,
    /// Requests waiting.
    pub queue_len_max: Option<u32>,
    /// Requests running.
    pub running_max: Option<u32>,
    /// KV blocks nobody can take away.
    pub kv_blocks_floor: Option<u32>,
    /// KV blocks at most.
    pub kv_blocks_ceiling: Option<u32>,
    /// Device time it may use in each hour in UTC, in seconds; absent is no limit.
    pub device_seconds_per_hour: Option<f64>,
    /// In each day.
    pub device_seconds_per_day: Option<f64>,
    /// In each month of the calendar.
    pub device_seconds_per_month: Option<f64>,
    /// Cached KV blocks nobody can take away.
    pub cache_blocks_floor: Option<u32>,
    /// Cached KV blocks at most.
    pub cache_blocks_ceiling: Option<u32>,
    /// From arrival to the first token.
    pub ttft_target: Option<Span>,
    /// From a token to the next.
    pub itl_target: Option<Span>,
    /// Most urgent priority class.
    pub priority_ceiling: Option<u8>,
    /// Devices reserved for it.
    pub pool: Option<String>,
    /// And no others.
    pub pool_only: Option<bool>,
    /// Served names it may use; absent is all.
    pub models: Option<BTreeSet<String>>,
    /// Where its clients come from; absent is everywhere.
    pub ip_allow: Option<CidrList>,
    /// A host name of its own.
    pub domain: Option<String>,
    /// Its keys.
    #[serde(default)]
    pub keys: Vec<KeyTable>,
}

/// One `[[tenants.keys]]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyTable {
    /// For people.
    pub name: Option<String>,
    /// Hash of the key in hexadecimal.
    pub sha256: Option<String>,
    /// File with the key in the clear.
    pub key_file: Option<PathBuf>,
    /// `member`, which it is when nothing is said, or `tenant_admin`.
    pub role: Option<String>,
}

/// Where a key's hash comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// Written down.
    Hash(KeyHash),
    /// Hashed when read.
    File(PathBuf),
}

impl KeyTable {
    /// Exactly one of `sha256` and `key_file`.
    pub fn source(&self) -> Result<KeySource, String> {
        match (&self.sha256, &self.key_file) {
            (Some(hash), None) => {
                KeyHash::parse(hash).map(KeySource::Hash).ok_or_else(|| "sha256 must be 64 hexadecimal digits".into())
            }
            (None, Some(path)) => Ok(KeySource::File(path.clone())),
            _ => Err("a key has either sha256 or key_file".into()),
        }
    }
}

impl KeyTable {
    /// What the key is.
    pub fn role(&self) -> Result<Role, String> {
        let role = self.role.as_deref().map_or(Some(Role::Member), Role::parse);
        role.filter(|role| role.door() == Door::Api).ok_or_else(|| "a key's role is member or tenant_admin".into())
    }
}

impl TenantTable {
    /// As the engine wants it.
    pub fn spec(&self) -> TenantSpec {
        let default = TenantSpec::named(&self.name);
        TenantSpec {
            weight: self.weight.unwrap_or(default.weight),
            queue_len_max: self.queue_len_max.unwrap_or(default.queue_len_max),
            running_max: self.running_max.unwrap_or(default.running_max),
            kv_blocks_floor: self.kv_blocks_floor.unwrap_or(default.kv_blocks_floor),
            kv_blocks_ceiling: self.kv_blocks_ceiling.or(default.kv_blocks_ceiling),
            quota: self.quota(),
            cache_blocks_floor: self.cache_blocks_floor.unwrap_or(default.cache_blocks_floor),
            cache_blocks_ceiling: self.cache_blocks_ceiling.or(default.cache_blocks_ceiling),
            ttft_target: self.ttft_target.map(|span| span.0).or(default.ttft_target),
            itl_target: self.itl_target.map(|span| span.0).or(default.itl_target),
            priority_ceiling: self.priority_ceiling.unwrap_or(default.priority_ceiling),
            pool: self.pool.clone(),
            pool_only: self.pool_only.unwrap_or(default.pool_only),
            ..default
        }
    }

    fn quota(&self) -> DeviceQuota {
        let time = |seconds: Option<f64>| seconds.map(Duration::from_secs_f64);
        DeviceQuota {
            hour: time(self.device_seconds_per_hour),
            day: time(self.device_seconds_per_day),
            month: time(self.device_seconds_per_month),
        }
    }

    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || !self.name.chars().all(plain) {
            return Err(format!("a tenant's name is 1 to {NAME_BYTES_MAX} letters, digits and -_."));
        }
        if self.name.starts_with('.') {
            return Err("a tenant's name does not begin with a dot".into());
        }
        if self.name.eq_ignore_ascii_case(OPERATOR_NAME) {
            return Err(format!("no tenant is called {OPERATOR_NAME}: those who run the server are"));
        }
        if self.domain.as_ref().is_some_and(|domain| !is_host_name(&domain.to_ascii_lowercase())) {
            return Err("domain must be a host name, without a port".into());
        }
        if self.weight.is_some_and(|w| !(1..=WEIGHT_MAX).contains(&w)) {
            return Err(format!("weight must be 1 to {WEIGHT_MAX}"));
        }
        for (key, value) in [("queue_len_max", self.queue_len_max), ("running_max", self.running_max)] {
            if value == Some(0) {
                return Err(format!("{key} must be at least 1"));
            }
        }
        let quotas = [
            ("device_seconds_per_hour", self.device_seconds_per_hour),
            ("device_seconds_per_day", self.device_seconds_per_day),
            ("device_seconds_per_month", self.device_seconds_per_month),
        ];
        for (key, seconds) in quotas {
            if seconds.is_some_and(|seconds| !(QUOTA_SECONDS_MIN..=QUOTA_SECONDS_MAX).contains(&seconds)) {
                return Err(format!("{key} must be {QUOTA_SECONDS_MIN} to {QUOTA_SECONDS_MAX}"));
            }
        }
        if let (Some(floor), Some(ceiling)) = (self.kv_blocks_floor, self.kv_blocks_ceiling)
            && floor > ceiling
        {
            return Err("kv_blocks_floor is above kv_blocks_ceiling".into());
        }
        if let (Some(floor), Some(ceiling)) = (self.cache_blocks_floor, self.cache_blocks_ceiling)
            && floor > ceiling
        {
            return Err("cache_blocks_floor is above cache_blocks_ceiling".into());
        }
        for (key, value) in [("ttft_target", self.ttft_target), ("itl_target", self.itl_target)] {
            if value.is_some_and(|span| span.0.is_zero()) {
                return Err(format!("{key} must be more than 0"));
            }
        }
        if self.priority_ceiling.is_some_and(|class| class > PRIORITY_MAX) {
            return Err(format!("priority_ceiling must be 0 to {PRIORITY_MAX}"));
        }
        if self.pool_only == Some(true) && self.pool.is_none() {
            return Err("pool_only needs a pool".into());
        }
        if self.ip_allow.as_ref().is_some_and(|ranges| ranges.0.is_empty()) {
            return Err("ip_allow is empty: leave it out to allow every address".into());
        }
        self.keys.iter().try_for_each(|key| key.source().and(key.role().map(|_| ())))
    }
}

/// Names and devices come once.
fn check_pools(pools: &[PoolTable]) -> Result<(), String> {
    let mut devices = BTreeSet::new();
    for (at, pool) in pools.iter().enumerate() {
        let name = pool.name.escape_debug();
        if pool.name.is_empty() || pools[..at].iter().any(|other| other.name == pool.name) {
            return Err(format!("pool `{name}`: a name of its own is needed"));
        }
        if pool.devices.is_empty() {
            return Err(format!("pool `{name}` has no devices"));
        }
        if let Some(device) = pool.devices.iter().find(|device| !devices.insert(device.as_str())) {
            return Err(format!("device `{}` is in a pool twice", device.escape_debug()));
        }
    }
    Ok(())
}

/// Reads a file. Paths in it are relative to its folder.
pub fn read_file(path: &Path) -> Result<FileSettings, FileError> {
    let fail = |cause| FileError::Read { path: path.to_owned(), cause };
    if fs::metadata(path).map_err(fail)?.len() > FILE_BYTES_MAX {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    let text = fs::read_to_string(path).map_err(fail)?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<FileSettings, FileError> {
    let wrong = |place: String, message: String| FileError::Content { path: path.to_owned(), place, message };
    let document: Document = toml::from_str(text).map_err(|error| {
        let line = error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
        let place = line.map(|line| format!(":{line}")).unwrap_or_default();
        wrong(place, error.message().lines().next().unwrap_or("not TOML").to_owned())
    })?;
    document.server.check().and_then(|()| document.engine.check()).map_err(|m| wrong(String::new(), m))?;
    let mut names = BTreeMap::new();
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut server = document.server;
    if let Some(file) = server.admin_key_file.as_mut() {
        *file = folder.join(&*file);
    }
    if let Some(root) = server.models_root.as_mut().and_then(|root| root.0.as_mut()) {
        *root = folder.join(&*root);
    }
    if let Some(file) = server.record.as_mut().and_then(|file| file.0.as_mut()) {
        *file = folder.join(&*file);
    }
    for file in [&mut server.pepper_file, &mut server.ledger_key_file].into_iter().flatten() {
        *file = folder.join(&*file);
    }
    server.database = server.database.map(|url| url.beneath(folder));
    for file in [&mut server.tls.certificate, &mut server.tls.key] {
        if let Some(file) = file.as_mut().and_then(|file| file.0.as_mut()) {
            *file = folder.join(&*file);
        }
    }
    let mut jwt = document.auth.jwt;
    if jwt.len() > ISSUERS_LEN_MAX {
        return Err(wrong(String::new(), format!("more than {ISSUERS_LEN_MAX} issuers in [[auth.jwt]]")));
    }
    for table in &mut jwt {
        if let Some(file) = table.jwks_file.as_mut() {
            *file = folder.join(&*file);
        }
        let issuer = table.issuer.escape_debug();
        table.checked().map_err(|m| wrong(String::new(), format!("issuer `{issuer}`: {m}")))?;
    }
    let mut engine = document.engine;
    if let Some(file) = engine.gpu_executor.as_mut().and_then(|file| file.0.as_mut()) {
        *file = folder.join(&*file);
    }
    let pools = document.pools;
    check_pools(&pools).map_err(|m| wrong(String::new(), m))?;
    let device_classes = document.device_classes;
    device_classes.check().map_err(|m| wrong(String::new(), m))?;
    let mut tenants = document.tenants;
    for (index, tenant) in tenants.iter_mut().enumerate() {
        tenant.check().map_err(|m| wrong(String::new(), format!("tenant `{}`: {m}", tenant.name.escape_debug())))?;
        if names.insert(tenant.name.clone(), index).is_some() {
            return Err(wrong(String::new(), format!("two tenants are named `{}`", tenant.name)));
        }
        if let Some(name) = tenant.pool.as_ref().filter(|name| !pools.iter().any(|pool| pool.name == **name)) {
            let message = format!("tenant `{}`: there is no pool `{}`", tenant.name, name.escape_debug());
            return Err(wrong(String::new(), message));
        }
        for file in tenant.keys.iter_mut().filter_map(|key| key.key_file.as_mut()) {
            *file = folder.join(&*file);
        }
    }
    let models = document.models.into_iter().map(|model| {
        // A path wins over a hub id, and is meant from the file's folder.
        let beside = folder.join(&model.source);
        let source = if beside.exists() { beside.to_string_lossy().into_owned() } else { model.source };
        ModelEntry { name: model.name, source, devices: model.devices }
    });
    let (models, settings) = (models.collect(), Settings { server, engine });
    Ok(FileSettings { models, settings, pools, device_classes, jwt, tenants })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse(Path::new("x/weir.toml"), text).expect_err("refused").to_string()
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        let cases = [
            ("\n[server]\nprot = 1\n", ["x/weir.toml:3", "prot"]),
            ("[serve]\n", ["x/weir.toml:1", "serve"]),
            ("[engine]\nkv_memory = 5\n", ["x/weir.toml:2", "string"]),
            ("[engine]\nkv_memory = \"5 potatoes\"\n", ["x/weir.toml:2", "5 potatoes"]),
            ("[server]\nport = 70000\n", ["x/weir.toml:2", "70000"]),
            ("[server\n", ["x/weir.toml:1", ""]),
            ("[engine]\nrows_max = 0\n", ["x/weir.toml", "engine.rows_max"]),
            ("[engine]\ndevices = [\"gpu\"]\n", ["x/weir.toml:2", "`gpu`"]),
            ("[engine]\ndevices = []\n", ["x/weir.toml:2", "1 to 16"]),
            ("[engine]\ngpu_missing = \"wait\"\n", ["x/weir.toml:2", "wait"]),
            ("[[tenants]]\nname = \"a\"\nquota = 1\n", ["x/weir.toml:3", "quota"]),
            ("[[tenants]]\nname = \"a b\"\n", ["x/weir.toml", "a b"]),
            ("[[tenants]]\nname = \"a\"\n[[tenants]]\nname = \"a\"\n", ["x/weir.toml", "two tenants"]),
            ("[[tenants]]\nname = \"operator\"\n", ["tenant `operator`", "no tenant"]),
            ("[[tenants]]\nname = \"Operator\"\n", ["tenant `Operator`", "no tenant"]),
            ("[[tenants]]\nname = \"a\"\ndomain = \"a.example:443\"\n", ["tenant `a`", "host name"]),
            ("[[tenants]]\nname = \"a\"\ndomain = \"\"\n", ["tenant `a`", "host name"]),
            ("[[tenants]]\nname = \"a\"\nweight = 0\n", ["tenant `a`", "weight"]),
            ("[[tenants]]\nname = \"a\"\ndevice_seconds_per_day = 0\n", ["tenant `a`", "device_seconds_per_day"]),
            ("[[tenants]]\nname = \"a\"\ndevice_seconds_per_hour = nan\n", ["tenant `a`", "device_seconds_per_hour"]),
            ("[[tenants]]\nname = \"a\"\n[[tenants.keys]]\nsha256 = \"abc\"\n", ["tenant `a`", "64"]),
            ("[[tenants]]\nname = \"a\"\n[[tenants.keys]]\nname = \"k\"\n", ["tenant `a`", "either"]),
            ("[[models]]\nname = \"m\"\n", ["x/weir.toml:1", "source"]),
            ("[server]\ntrusted_proxies = [\"10.0.0.1/8\"]\n", ["x/weir.toml:2", "10.0.0.1/8"]),
            ("[server.tls]\ncert = \"c\"\n", ["x/weir.toml:2", "cert"]),
            ("[[tenants]]\nname = \"a\"\nip_allow = []\n", ["tenant `a`", "ip_allow"]),
            (
                "[[tenants]]\nname = \"a\"\n[[tenants.keys]]\nkey_file = \"k\"\nrole = \"operator\"\n",
                ["tenant `a`", "role"],
            ),
            ("[[auth.jwt]]\nissuer = \"i\"\naudiences = []\njwks_file = \"k\"\n", ["issuer `i`", "audiences"]),
            ("[[auth.jwt]]\nissuer = \"i\"\n", ["x/weir.toml:1", "audiences"]),
            ("[auth]\ntokens = 1\n", ["x/weir.toml:2", "tokens"]),
            ("[[tenants]]\nname = \"a\"\npool = \"gold\"\n", ["tenant `a`", "no pool `gold`"]),
            ("[[tenants]]\nname = \"a\"\npool_only = true\n", ["tenant `a`", "pool_only"]),
            ("[[tenants]]\nname = \"a\"\nitl_target = \"0s\"\n", ["tenant `a`", "itl_target"]),
            ("[[tenants]]\nname = \"a\"\npriority_ceiling = 10\n", ["tenant `a`", "0 to 9"]),
            ("[[pools]]\nname = \"p\"\ndevices = []\n", ["pool `p`", "no devices"]),
            ("[device_classes]\nh200 = \"fast\"\n", ["x/weir.toml:2", "fast"]),
            ("[device_classes]\ncpu = 0\n", ["`cpu`", "0.000001 to 1000"]),
            ("[device_classes]\ncpu = nan\n", ["`cpu`", "0.000001 to 1000"]),
            ("[device_classes]\nH200 = 1.0\n", ["`H200`", "no class"]),
            ("[[pools]]\nname = \"p\"\ndevices = [\"cpu:0\", \"cpu:0\"]\n", ["`cpu:0`", "twice"]),
        ];
        for (text, parts) in cases {
            let error = refusal(text);
            assert!(!error.contains('\n'), "{error}");
            for part in parts {
                assert!(error.contains(part), "`{part}` is not in: {error}");
            }
        }
    }

    #[test]
    fn a_class_that_is_not_named_has_the_rate_one() {
        let text = "[device_classes]\nh200 = 1.0\ncpu = 0.02\n\"h200-1g.18gb\" = 0.125\nb200 = 2\n";
        let classes = parse(Path::new("weir.toml"), text).expect("valid").device_classes;
        let rates = ["h200", "cpu", "h200-1g.18gb", "b200", "a100"].map(|class| classes.rate_ppm(class));
        assert_eq!(rates, [1_000_000, 20_000, 125_000, 2_000_000, 1_000_000]);
    }

    #[test]
    fn paths_start_at_the_files_folder() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("m.gguf"), b"x").expect("write");
        let text = "[[models]]\nsource = \"m.gguf\"\n[[models]]\nsource = \"org/m\"\n\
                    [[tenants]]\nname = \"a\"\n[[tenants.keys]]\nkey_file = \"k\"\n[[tenants.keys]]\nkey_file = \"/k\"\n";
        let read = parse(&folder.path().join("weir.toml"), text).expect("valid");
        assert_eq!(Path::new(&read.models[0].source), folder.path().join("m.gguf"));
        assert_eq!(read.models[1].source, "org/m");
        let files: Vec<_> = read.tenants[0].keys.iter().map(|k| k.key_file.clone().expect("file")).collect();
        assert_eq!(files, [folder.path().join("k"), PathBuf::from("/k")]);
    }

    #[test]
    fn missing_file_is_one_line() {
        let error = read_file(Path::new("/nonexistent/weir.toml")).expect_err("missing").to_string();
        assert!(error.starts_with("/nonexistent/weir.toml: ") && !error.contains('\n'), "{error}");
    }
}
