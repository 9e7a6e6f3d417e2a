//! What keeps keys to themselves on their way here: certificates, and who may connect without one.

use std::{net::SocketAddr, sync::Arc};

use anyhow::bail;

use crate::{
    config::Config,
    identity::{Cover, EVERY, Identity, Peers, Tls},
};

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
