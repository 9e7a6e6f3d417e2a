//! What happens to tenants, as CloudEvents 1.0 on a NATS server: requests that were billed, quotas that were passed, settings that
//! were changed. Behind the cargo feature `nats`; see `docs/events.md`.
//!
//! [`Feed`] reads what is in the store: the ledger's rows of this replica, and the log of changes. How far it has come
//! is kept in the store, so that a restart goes on there, and moves only when the NATS server has said that it has
//! everything before it. So each of these events is sent at least once, and again with the same id where the answer was lost. Quotas' events are
//! this process's, and those that wait while NATS is out of reach are bounded.

mod event;
mod feed;
mod nats;

use std::{env, time::Duration};

use tokio::sync::broadcast::{Receiver, error::TryRecvError};
use weir_runtime::{quota::QuotaNotice, store::Store};

pub use self::nats::{Address, NatsError};
use self::{event::Event, feed::Feed, nats::Nats};
use crate::identity::SecretSource;

/// Events are looked for this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pauses before a lost connection is made again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Events of quotas that wait; the oldest go first.
const QUOTAS_WAITING_MAX: usize = 1024;
/// Where the address of the NATS server is, or in a file that `NATS_URL_FILE` names: it may hold a password.
const VARIABLE: &str = "NATS_URL";

/// The address that the environment names, if it names one.
pub fn address() -> anyhow::Result<Option<Address>> {
    let Some(source) = SecretSource::from_env(|name| env::var(name).ok(), VARIABLE)? else { return Ok(None) };
    Ok(Some(source.read()?.reveal().parse()?))
}

/// Sends what happens, for as long as the server runs.
pub async fn tell(address: Address, store: Store, replica: String, epoch: i64, mut notices: Receiver<QuotaNotice>) {
    let mut quotas: Vec<Event> = Vec::new();
    let mut pause = PAUSE.0;
    loop {
        match told(&address, &store, &replica, epoch, &mut notices, &mut quotas, &mut pause).await {
            Ok(never) => match never {},
            Err(error) => tracing::warn!(%error, to = %address, "events wait for NATS"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// What never comes about.
enum Never {}

/// The same over one connection, until it is lost.
async fn told(
    address: &Address,
    store: &Store,
    replica: &str,
    epoch: i64,
    notices: &mut Receiver<QuotaNotice>,
    quotas: &mut Vec<Event>,
    pause: &mut Duration,
) -> Result<Never, anyhow::Error> {
    let mut nats = Nats::connect(address).await?;
    let mut feed = Feed::open(store.clone(), replica, epoch).await?;
    tracing::info!(to = %address, "events are sent");
    loop {
        gather(replica, notices, quotas);
        let batch = feed.next().await?;
        for event in quotas.iter().chain(&batch.events) {
            nats.publish(&event.subject(), event.json().as_bytes()).await?;
        }
        // What the server answers to a ping it has come to after everything before it. With nothing to send, this is how its own
        // pings are answered.
        nats.flush().await?;
        *pause = PAUSE.0;
        quotas.clear();
        feed.sent(&batch).await?;
        if !batch.more {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Takes what was told of quotas.
fn gather(replica: &str, notices: &mut Receiver<QuotaNotice>, quotas: &mut Vec<Event>) {
    loop {
        match notices.try_recv() {
            Ok(notice) => quotas.push(Event::quota(replica, &notice)),
            Err(TryRecvError::Lagged(missed)) => tracing::warn!(missed, "events of quotas were not sent"),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    let over = quotas.len().saturating_sub(QUOTAS_WAITING_MAX);
    if over > 0 {
        tracing::warn!(over, "events of quotas were not sent");
        quotas.drain(..over);
    }
}

#[cfg(test)]
mod tests;
