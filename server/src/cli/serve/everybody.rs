//! Whom a server knows, out of its configuration: read at the start, and again whenever a file with a key changes.

use std::{io::ErrorKind, net::SocketAddr, path::PathBuf, sync::Arc};

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
        Ok(Arc::new(Identity::new(self.snapshot(None)?, issuers, config.trusted_proxies.value.clone())))
    }

    fn snapshot(&self, previous: Option<&Snapshot>) -> anyhow::Result<Snapshot> {
        let mut rows = Vec::new();
        let mut keys = Vec::new();
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
                    KeySource::File(path) => {
                        read_key_file(&path).with_context(|| format!("tenant `{}`", tenant.name))?.hash()
                    }
                };
                let name = format!("{}/{}", tenant.name, key.name.as_deref().unwrap_or("without a name"));
                let role = key.role().map_err(anyhow::Error::msg)?;
                keys.push(PlainKey { hash, tenant: number, name, role });
            }
        }
        if let Some(path) = &self.admin_key_file {
            let hash = read_key_file(path)?.hash();
            if keys.iter().any(|key| key.hash == hash) {
                bail!("the operators' key is a tenant's, too: make another one with `weir key new`");
            }
            keys.push(PlainKey { hash, tenant: TenantId::OPERATOR, name: "operator".into(), role: Role::Operator });
        }
        Ok(Snapshot::build(self.pepper.clone(), rows, Vec::new(), keys, previous)?)
    }

    fn files(&self) -> Vec<PathBuf> {
        let keys = self.tenants.iter().flat_map(|tenant| &tenant.keys).filter_map(|key| key.key_file.clone());
        keys.chain(self.admin_key_file.clone()).collect()
    }

    /// Reads the files with keys again when they change, until the server ends: who holds the old key of a file is
    /// nobody from then on. A file that cannot be used changes nothing.
    pub(super) async fn keep_fresh(self, identity: Arc<Identity>) {
        let mut watched = Watched::new(self.files());
        loop {
            tokio::time::sleep(EVERY).await;
            if watched.changed() {
                match self.snapshot(Some(&identity.snapshot())) {
                    Ok(snapshot) => {
                        identity.replace(snapshot);
                        tracing::info!("read the files with keys again");
                    }
                    Err(error) => tracing::warn!("the keys stay as they were: {error:#}"),
                }
            }
        }
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
