//! What is done with the store beside requests: events are sent, the ledger's heads are noted and its months closed, bills of
//! closed months are kept, and what is over is forgotten.

use std::{sync::Arc, time::Duration};

use weir_runtime::{
    Engine, billing,
    ledger::{self, LedgerError, SigningKey},
    store::{Store, StoreError},
};

use super::App;
use crate::{
    identity::Now,
    webhooks::{EnvelopeKey, Reach, SealError, Webhooks},
};

/// How often what is over is looked for.
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// How long deliveries that have arrived are kept.
const DELIVERED_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

impl App {
    /// Begins with it, where there is a store. Without a key no webhook can be made, and none signs; `reach` is how far
    /// tenants' own go. Without the ledger's key months stay open. Must be called within a tokio runtime.
    pub fn keep_books(
        self: &Arc<Self>,
        key: Result<EnvelopeKey, SealError>,
        reach: Reach,
        ledger_key: Option<SigningKey>,
    ) {
        let Some(store) = self.store().cloned() else { return };
        match key {
            Ok(key) => {
                let webhooks = self.webhooks.get_or_init(|| Arc::new(Webhooks::new(key, reach))).clone();
                tokio::spawn(webhooks.deliver(store.clone()));
            }
            Err(error) => tracing::warn!(%error, "no webhooks are sent"),
        }
        match ledger_key {
            Some(key) => {
                tracing::info!(public_key = %key.public(), "months of the ledger are closed with this key");
                let _ = self.ledger_key.set(Arc::new(key));
            }
            None => {
                tracing::warn!("there is no key to sign months of the ledger with (ledger_key_file): they stay open")
            }
        }
        let key = self.ledger_key.get().cloned();
        tokio::spawn(async move {
            loop {
                let now_us = Now::read().unix_us;
                if let Err(error) = look_after_the_ledger(&store, key.as_deref(), now_us).await {
                    tracing::error!(%error, "the ledger's heads are not noted, or its months are not closed");
                }
                if let Err(error) = tidy(&store, now_us, key.is_some()).await {
                    tracing::warn!(%error, "the books are not in order yet");
                }
                tokio::time::sleep(TIDY_EVERY).await;
            }
        });
    }
}

impl App {
    /// Has webhooks told of the quotas of an engine, where there are webhooks.
    pub(super) fn tell_of_quotas(&self, engine: &Engine) {
        if let (Some(store), Some(webhooks)) = (self.store(), self.webhooks.get()) {
            tokio::spawn(webhooks.clone().tell_of_quotas(store.clone(), engine.quota_notices()));
        }
    }
}

/// Notes the heads of chains once a day, closes months that are over, and removes what was left of archived ones. The rows of a
/// month are read here and checked on a thread of their own: none of it is the engine's.
async fn look_after_the_ledger(store: &Store, key: Option<&SigningKey>, now_us: i64) -> Result<(), LedgerError> {
    let noted = ledger::note_heads(store, now_us).await;
    ledger::remove_archived(store).await?;
    if let Some(key) = key {
        ledger::close_months(store, key, now_us).await?;
    }
    noted.map(|_| ())
}

/// Forgets keys that nobody may repeat any more and deliveries of long ago, and keeps the bills of months that are over.
async fn tidy(store: &Store, now_us: i64, signs: bool) -> Result<(), StoreError> {
    while store.idempotency_forget(now_us).await? > 0 {}
    let kept = i64::try_from(DELIVERED_KEPT.as_micros()).unwrap_or(i64::MAX);
    while store.deliveries_forget(now_us.saturating_sub(kept)).await? > 0 {}
    while billing::keep_invoices(store, now_us, signs).await? > 0 {}
    Ok(())
}
