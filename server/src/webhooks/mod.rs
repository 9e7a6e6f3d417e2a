//! Webhooks: events that are sent to an address, signed.
//!
//! An event is put on its way in a transaction of the store and sent by [`Webhooks::deliver`], of whichever replica takes
//! it first: at least once, and again with growing pauses until the receiver answers 2xx. What was tried
//! [`ATTEMPTS_MAX`] times, or is told 410 (gone), is dead: it is kept, listed, and can be sent again.
//!
//! Receivers are where operators say, on private networks too: tenants cannot make webhooks. Redirections are not
//! followed, no proxy is asked, and nothing of an answer but its status is looked at.

mod deliver;
mod quota;
mod seal;
mod sign;

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokio::sync::Notify;
use weir_runtime::store::{Store, StoreError};

pub use self::seal::{EnvelopeKey, SealError};
pub(crate) use self::sign::{SigningSecret, signature};
use crate::keys::random_id;

/// What can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// A tenant has used so much of a window that it is to be warned.
    SoftLimit,
    /// A tenant has used all of a window.
    HardLimit,
    /// An operator tries a webhook.
    Test,
}

impl EventKind {
    /// All there are.
    pub const ALL: [EventKind; 3] = [EventKind::SoftLimit, EventKind::HardLimit, EventKind::Test];

    /// As it is written in settings and events.
    pub const fn word(self) -> &'static str {
        match self {
            EventKind::SoftLimit => "quota.soft_limit",
            EventKind::HardLimit => "quota.hard_limit",
            EventKind::Test => "webhook.test",
        }
    }

    /// The first word that is none.
    pub(crate) fn unknown(words: &BTreeSet<String>) -> Option<&str> {
        words.iter().find(|word| EventKind::ALL.iter().all(|kind| kind.word() != **word)).map(String::as_str)
    }
}

/// The sender of a server.
#[derive(Debug)]
pub struct Webhooks {
    key: EnvelopeKey,
    counts: Counts,
    /// Something new is on its way.
    wake: Notify,
}

/// How tries went.
#[derive(Debug, Default)]
struct Counts {
    delivered: AtomicU64,
    failed: AtomicU64,
    dead: AtomicU64,
}

impl Webhooks {
    /// With secrets that are sealed by this key.
    pub fn new(key: EnvelopeKey) -> Self {
        Webhooks { key, counts: Counts::default(), wake: Notify::new() }
    }

    /// What seals secrets.
    pub(crate) fn key(&self) -> &EnvelopeKey {
        &self.key
    }

    /// Puts an event of a tenant on its way to all webhooks that want it; how many do.
    pub async fn notify(
        &self,
        store: &Store,
        kind: EventKind,
        tenant: &str,
        data: Value,
        now_us: i64,
    ) -> Result<usize, StoreError> {
        let body = body(kind, Some(tenant), data, now_us);
        let sent = store.notify(Some(tenant), kind.word(), &body, now_us).await?;
        self.wake.notify_one();
        Ok(sent)
    }

    /// Puts an event on its way to one webhook.
    pub(crate) async fn test(&self, store: &Store, webhook: &str, now_us: i64) -> Result<i64, StoreError> {
        let body = body(EventKind::Test, None, json!({}), now_us);
        let mut tx = store.write().await?;
        let id = tx.deliver(webhook, None, EventKind::Test.word(), &body, now_us).await?;
        tx.commit().await?;
        self.wake.notify_one();
        Ok(id)
    }

    /// Something is to be sent again at once.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Metrics, as Prometheus text.
    pub(crate) fn metrics(&self) -> String {
        let name = "weir_webhook_deliveries_total";
        let help = "Tries to deliver events: delivered, failed and to be tried again, or dead";
        let counts =
            [("delivered", &self.counts.delivered), ("failed", &self.counts.failed), ("dead", &self.counts.dead)];
        let lines = counts.map(|(word, n)| format!("{name}{{outcome=\"{word}\"}} {}\n", n.load(Ordering::Relaxed)));
        format!("# HELP {name} {help}.\n# TYPE {name} counter\n{}", lines.concat())
    }
}

/// What is sent.
fn body(kind: EventKind, tenant: Option<&str>, data: Value, now_us: i64) -> String {
    let id = format!("evt_{}", random_id());
    json!({"id": id, "type": kind.word(), "created": now_us / 1_000_000, "tenant": tenant, "data": data}).to_string()
}

/// Seconds since 1970, for signatures.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
