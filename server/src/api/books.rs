//! What is done with the store beside requests: events are sent, bills of closed months are kept, and what is over is
//! forgotten.

use std::{sync::Arc, time::Duration};

use weir_runtime::{
    Engine, billing,
    store::{Store, StoreError},
};

use super::App;
use crate::{
    identity::Now,
    webhooks::{EnvelopeKey, SealError, Webhooks},
};

/// How often what is over is looked for.
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// How long deliveries that have arrived are kept.
const DELIVERED_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

impl App {
    /// Begins with it, where there is a store. Without a key no webhook can be made, and none signs. Must be called within a tokio
    /// runtime.
    pub fn keep_books(self: &Arc<Self>, key: Result<EnvelopeKey, SealError>) {
        let Some(store) = self.store().cloned() else { return };
        match key {
            Ok(key) => {
                let webhooks = self.webhooks.get_or_init(|| Arc::new(Webhooks::new(key))).clone();
                tokio::spawn(webhooks.deliver(store.clone()));
            }
            Err(error) => tracing::warn!(%error, "no webhooks are sent"),
        }
        tokio::spawn(async move {
            loop {
                if let Err(error) = tidy(&store, Now::read().unix_us).await {
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

/// Forgets keys that nobody may repeat any more and deliveries of long ago, and keeps the bills of months that are over.
async fn tidy(store: &Store, now_us: i64) -> Result<(), StoreError> {
    while store.idempotency_forget(now_us).await? > 0 {}
    let kept = i64::try_from(DELIVERED_KEPT.as_micros()).unwrap_or(i64::MAX);
    while store.deliveries_forget(now_us.saturating_sub(kept)).await? > 0 {}
    while billing::keep_invoices(store, now_us).await? > 0 {}
    Ok(())
}
