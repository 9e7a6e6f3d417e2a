//! Webhooks: events that are sent to an address, signed.
//!
//! An event is put on its way in a transaction of the store and sent by [`Webhooks::deliver`], of whichever replica takes
//! it first: at least once, and again with growing pauses until the receiver answers 2xx. What was tried
//! [`ATTEMPTS_MAX`] times, or is told 410 (gone), is dead: it is kept, listed, and can be sent again.
//!
//! Receivers are where operators say, on private networks too. Tenants make webhooks of their own, which reach public
//! addresses only ([`Reach`]). Redirections are not followed, no proxy is asked, and nothing of an answer but its status is
//! looked at.

mod deliver;
mod quota;
mod reach;
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

#[cfg(feature = "nats")]
pub(crate) use self::quota::event as quota_event;
pub(crate) use self::sign::{SigningSecret, signature};
pub use self::{
    reach::Reach,
    seal::{EnvelopeKey, SealError},
};
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

/// What ids of webhooks begin with that operators have made, and those that tenants have made for themselves. A tenant sees its own,
/// and none that operators have made to hear of it.
const OPERATORS: &str = "wh_";
const TENANTS: &str = "tw_";

/// Who looks after a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker<'a> {
    /// Operators, of everybody's.
    Operator,
    /// A tenant, of its own.
    Tenant(&'a str),
}

impl<'a> Maker<'a> {
    /// A new id.
    pub(crate) fn id(self) -> String {
        let prefix = match self {
            Maker::Operator => OPERATORS,
            Maker::Tenant(_) => TENANTS,
        };
        format!("{prefix}{}", random_id())
    }

    /// Whose webhooks are meant; nothing for everybody's.
    pub(crate) fn tenant(self) -> Option<&'a str> {
        match self {
            Maker::Operator => None,
            Maker::Tenant(name) => Some(name),
        }
    }

    /// Whether it may know of a webhook of this id. That it is its tenant's is the store's to say.
    pub(crate) fn knows(self, id: &str) -> bool {
        self == Maker::Operator || is_tenants(id)
    }
}

/// Whether a tenant has made it.
pub(crate) fn is_tenants(id: &str) -> bool {
    id.starts_with(TENANTS)
}

/// The sender of a server.
#[derive(Debug)]
pub struct Webhooks {
    key: EnvelopeKey,
    /// How far those of tenants reach.
    reach: Reach,
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
    /// In the store, when it was last asked.
    letters_waiting: AtomicU64,
    letters_dead: AtomicU64,
}

impl Webhooks {
    /// With secrets that are sealed by this key.
    pub fn new(key: EnvelopeKey, reach: Reach) -> Self {
        Webhooks { key, reach, counts: Counts::default(), wake: Notify::new() }
    }

    /// How far tenants' webhooks reach.
    pub(crate) fn reach(&self) -> Reach {
        self.reach
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
    pub(crate) async fn test(
        &self,
        store: &Store,
        tenant: Option<&str>,
        webhook: &str,
        now_us: i64,
    ) -> Result<i64, StoreError> {
        let body = body(EventKind::Test, tenant, json!({}), now_us);
        let mut tx = store.write().await?;
        tx.webhook(tenant, webhook).await?;
        let id = tx.deliver(webhook, tenant, EventKind::Test.word(), &body, now_us).await?;
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
        let letters = "weir_webhook_letters";
        let kept = [("waiting", &self.counts.letters_waiting), ("dead", &self.counts.letters_dead)];
        let kept = kept.map(|(word, n)| format!("{letters}{{state=\"{word}\"}} {}\n", n.load(Ordering::Relaxed)));
        format!(
            "# HELP {name} {help}.\n# TYPE {name} counter\n{}\
             # HELP {letters} Deliveries in the store that wait, or were given up, as of half a minute ago at most.\n\
             # TYPE {letters} gauge\n{}",
            lines.concat(),
            kept.concat()
        )
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
