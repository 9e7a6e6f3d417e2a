//! The store of a server, and everybody in it.

use std::{
    collections::BTreeSet,
    env, fs,
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use rustix::system::uname;
use weir_runtime::{
    ledger::SigningKey,
    store::{Dialect, Origin, Store, StoreOptions},
};

use crate::{
    config::{Config, LEDGER_KEY_FILE, PEPPER_FILE},
    everybody::{Everybody, FileKeys, import},
    identity::{Issuers, Pepper, SecretSource},
};

/// Connections to PostgreSQL, or readers of a file: changes are rare, and the ledger writes in one at a time.
const CONNECTIONS: u32 = 8;
/// What a server is called in a file, which no other has beside it.
const LOCAL: &str = "local";

/// Opens the store that the configuration names, puts the configuration's tenants into it, and reads everybody.
pub(super) async fn everybody(config: &Config) -> anyhow::Result<Arc<Everybody>> {
    let store = open(config).await?;
    import(&store, &config.tenants, now_us()).await?;
    let settings = config.jwt.iter().map(|table| table.checked()).collect::<Result<_, _>>();
    let issuers = settings.and_then(Issuers::new).map_err(anyhow::Error::msg).context("[[auth.jwt]]")?;
    let admin_key_file = config.admin.value.0.map(|_| config.admin_key_file.value.clone());
    let files = FileKeys::new(&config.tenants, admin_key_file);
    let pools: BTreeSet<String> = config.pools.iter().map(|pool| pool.name.clone()).collect();
    Everybody::open(store, pepper(config)?, files, issuers, config.trusted_proxies.value.clone(), pools).await
}

async fn open(config: &Config) -> anyhow::Result<Store> {
    let url = &config.database.value;
    if let Some(folder) = url.file().as_deref().and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty()) {
        // Before the store would, with everybody's rights.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| folder.display().to_string())?;
    }
    let owner = SecretSource::from_env(|name| env::var(name).ok(), "DATABASE_OWNER_URL")?;
    let owner = owner.map(|source| source.read()).transpose()?;
    let options = StoreOptions {
        owner_url: owner.map(|secret| secret.reveal().to_owned()),
        connections: CONNECTIONS,
        origin: Origin { node: replica(config), build: env!("CARGO_PKG_VERSION").to_owned(), config: digest(config) },
        ..StoreOptions::default()
    };
    let store = Store::open(url.reveal(), &options).await.with_context(|| format!("database {url}"))?;
    let kind = match store.dialect() {
        Dialect::Sqlite => "SQLite",
        Dialect::Postgres => "PostgreSQL",
    };
    tracing::info!(database = %url, kind, replica = options.origin.node, "opened the store");
    Ok(store)
}

/// What this server is called in the store.
pub(super) fn replica(config: &Config) -> String {
    match (config.replica.value.as_str(), config.database.value.file().is_some()) {
        ("", true) => LOCAL.to_owned(),
        ("", false) => format!("{}:{}", uname().nodename().to_string_lossy(), config.port.value),
        (name, _) => name.to_owned(),
    }
}

/// Tells one configuration from another in the audit log. Nothing can be read out of it.
fn digest(config: &Config) -> String {
    blake3::hash(crate::config::print(config).as_bytes()).to_hex()[..16].to_owned()
}

/// The secret of key hashes. The first start makes it; anywhere else than in its default place a missing file is an
/// error: with another pepper than yesterday's no key would be known.
fn pepper(config: &Config) -> anyhow::Result<Pepper> {
    let path = config.pepper_file.value.as_path();
    if !path.ends_with(PEPPER_FILE) && !path.exists() {
        bail!("pepper file {}: it is not there", path.display());
    }
    Ok(Pepper::open(path)?)
}

/// What months of the ledger are signed with. The first start makes it in its default place; anywhere else a missing file
/// means that months stay open.
pub(super) fn ledger_key(config: &Config) -> anyhow::Result<Option<SigningKey>> {
    let path = config.ledger_key_file.value.as_path();
    let key = match SigningKey::from_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && path.ends_with(LEDGER_KEY_FILE) => {
            SigningKey::create(path)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read,
    };
    key.map(Some).with_context(|| format!("ledger key file {}", path.display()))
}

/// Microseconds since 1970.
fn now_us() -> i64 {
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(age.as_micros()).unwrap_or(i64::MAX)
}
