//! Whom a server knows, out of its configuration: read at the start, and again whenever a file with a key changes.

use std::{collections::HashMap, io::ErrorKind, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use weir_runtime::TenantId;

use crate::{
    config::{Config, KeySource, PEPPER_FILE, TenantTable},
    identity::{
        Cover, EVERY, Identity, Issuers, Peers, Pepper, PepperError, PlainKey, Role, Snapshot, Standing, TenantRow,
        Tls, Watched,
    },
    keys::read_key_file,
};

/// Where everybody comes from.
pub(super) struct Everybody {
    pepper: Pepper,
    tenants: Vec<TenantTable>,
    /// The operators' key, unless there are none.
    admin_key_file: Option<PathBuf>,
}

impl Everybody {
    /// Out of a configuration whose key files are there.
    pub(super) fn of(config: &Config) -> anyhow::Result<Self> {
        let admin_key_file = config.admin.value.0.map(|_| config.admin_key_file.value.clone());
        Ok(Everybody { pepper: pepper(config)?, tenants: config.tenants.clone(), admin_key_file })
    }

    /// Everybody as they are now, and the issuers of tokens.
    pub(super) fn identity(&self, config: &Config) -> anyhow::Result<Arc<Identity>> {
        let settings = config.jwt.iter().map(|table| table.checked()).collect::<Result<_, _>>();
        let issuers = settings.and_then(Issuers::new).map_err(anyhow::Error::msg).context("[[auth.jwt]]")?;
        // At the start, somebody is there to put it right.
        let (snapshot, faults) = self.read(None)?;
        if let Some(fault) = faults.into_iter().next() {
            bail!(fault);
        }
        Ok(Arc::new(Identity::new(snapshot, issuers, config.trusted_proxies.value.clone())))
    }

    /// Everybody as the files have it now. A key that cannot be had is nobody's, and one that two have is neither's;
    /// what is wrong is said beside. All others are there whatever is wrong with those.
    fn read(&self, previous: Option<&Snapshot>) -> anyhow::Result<(Snapshot, Vec<String>)> {
        let mut rows = Vec::new();
        let mut keys = Vec::new();
        let mut faults = Vec::new();
        for (number, tenant) in (1u32..).map(TenantId).zip(&self.tenants) {
            rows.push(TenantRow {
                id: tenant.name.clone(),
                number,
                standing: Standing::Active,
                models: tenant.models.clone(),
                ip_allow: tenant.ip_allow.clone().unwrap_or_default().0,
                domain: tenant.domain.clone(),
            });
            for key in &tenant.keys {
                let hash = match key.source().map_err(anyhow::Error::msg)? {
                    KeySource::Hash(hash) => hash,
                    KeySource::File(path) => match read_key_file(&path) {
                        Ok(key) => key.hash(),
                        Err(error) => {
                            faults.push(format!("tenant `{}`: {error}", tenant.name));
                            continue;
                        }
                    },
                };
                let name = format!("{}/{}", tenant.name, key.name.as_deref().unwrap_or("without a name"));
                let role = key.role().map_err(anyhow::Error::msg)?;
                keys.push(PlainKey { hash, tenant: number, name, role });
            }
        }
        match self.admin_key_file.as_deref().map(read_key_file) {
            None => {}
            Some(Err(error)) => faults.push(error.to_string()),
            Some(Ok(key)) => keys.push(PlainKey {
                hash: key.hash(),
                tenant: TenantId::OPERATOR,
                name: "operator".into(),
                role: Role::Operator,
            }),
        }
        let mut owners: HashMap<String, usize> = HashMap::new();
        for key in &keys {
            *owners.entry(key.hash.hex()).or_default() += 1;
        }
        keys.retain(|key| {
            let alone = owners.get(&key.hash.hex()) == Some(&1);
            if !alone {
                faults.push(format!("key `{}` is another one, too: make another with `weir key new`", key.name));
            }
            alone
        });
        Ok((Snapshot::build(self.pepper.clone(), rows, Vec::new(), keys, previous)?, faults))
    }

    fn files(&self) -> Vec<PathBuf> {
        let keys = self.tenants.iter().flat_map(|tenant| &tenant.keys).filter_map(|key| key.key_file.clone());
        keys.chain(self.admin_key_file.clone()).collect()
    }

    /// Reads the files with keys again when they change, until the server ends: who holds the old key of a file is
    /// nobody from then on. A file that cannot be used, or is gone, is nobody's key until it can, and holds up no other.
    pub(super) async fn keep_fresh(self, identity: Arc<Identity>) {
        let mut reading = Reading::of(self);
        loop {
            tokio::time::sleep(EVERY).await;
            reading.again(&identity);
        }
    }
}

/// The files with keys, looked at again and again.
struct Reading {
    everybody: Everybody,
    watched: Watched,
    /// Whether to read even if no content changes: whatever was wrong may have passed without one.
    due: bool,
    /// What was wrong the last time, which is said once.
    faults: Vec<String>,
}

impl Reading {
    fn of(everybody: Everybody) -> Self {
        // Files may have changed between the start's reading and this.
        Reading { watched: Watched::new(everybody.files()), everybody, due: true, faults: Vec::new() }
    }

    fn again(&mut self, identity: &Identity) {
        let changed = self.watched.changed();
        if !changed && !self.due {
            return;
        }
        let faults = match self.everybody.read(Some(&identity.snapshot())) {
            Ok((snapshot, faults)) => {
                identity.replace(snapshot);
                faults
            }
            Err(error) => vec![format!("the keys stay as they were: {error:#}")],
        };
        if changed {
            tracing::info!("read the files with keys again");
        }
        for fault in faults.iter().filter(|fault| !self.faults.contains(fault)) {
            tracing::warn!("{fault}; trying again");
        }
        if faults.is_empty() && !self.faults.is_empty() {
            tracing::info!("all keys are there again");
        }
        self.due = !faults.is_empty();
        self.faults = faults;
    }
}

/// The secret of key hashes. The first start makes it; anywhere else than in its default place a missing file is an
/// error: with another pepper than yesterday's no key would be known.
fn pepper(config: &Config) -> anyhow::Result<Pepper> {
    let path = config.pepper_file.value.as_path();
    if !path.ends_with(PEPPER_FILE) && !path.exists() {
        bail!("pepper file {}: it is not there", path.display());
    }
    match Pepper::open(path) {
        // Nothing but the places of keys in memory hangs on it while all keys are in the configuration.
        Err(PepperError::File { cause, .. })
            if matches!(cause.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)
                && !path.exists() =>
        {
            tracing::warn!(path = %path.display(), %cause, "cannot write a new pepper: this start has one of its own");
            Ok(Pepper::random()?)
        }
        opened => Ok(opened?),
    }
}

/// The listeners' certificate, if there is one.
pub(super) fn tls(config: &Config) -> anyhow::Result<Option<Arc<Tls>>> {
    match (&config.tls_certificate.value.0, &config.tls_key.value.0) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(Arc::new(Tls::open(certificate.clone(), key.clone())?))),
        _ => bail!("TLS needs both a certificate and its key: --tls-certificate and --tls-key, or [server.tls]"),
    }
}

/// Refuses a listener that others can reach while nothing keeps its keys to itself, and says whose connections it takes.
pub(super) fn covered(config: &Config, what: &'static str, address: SocketAddr, tls: bool) -> anyhow::Result<Peers> {
    let proxies = &config.trusted_proxies.value;
    let insecure = config.insecure_public.value;
    let cover = Cover { tls, proxied: !proxies.0.is_empty(), insecure };
    cover.check(what, address)?;
    if Cover::default().check(what, address).is_ok() || tls {
        return Ok(Peers::All);
    }
    if insecure {
        tracing::warn!(%address, "{what} is open to others without TLS: its keys cross the network in the clear");
        return Ok(Peers::All);
    }
    tracing::info!(%address, "{what} takes connections from trusted proxies and from this machine only");
    Ok(Peers::Proxies(proxies.clone()))
}

/// Shows new connections the certificate that the files hold, until the server ends.
pub(super) async fn keep_certificate_fresh(tls: Arc<Tls>) {
    loop {
        tokio::time::sleep(EVERY).await;
        match tls.reload() {
            Ok(true) => tracing::info!("read the certificate again"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the certificate stays as it was"),
        }
    }
}

/// Asks issuers for their keys now and then, until the server ends.
pub(super) async fn keep_tokens_fresh(identity: Arc<Identity>) {
    loop {
        identity.issuers().refresh().await;
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests;
