//! Sending, with patience.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;
use ureq::unversioned::transport::DefaultConnector;
use weir_runtime::store::{Delivery, DeliveryState, Store, StoreError, Webhook};

use super::{Reach, Webhooks, is_tenants, reach::PublicOnly, sign, signature, unix_seconds};
use crate::identity::Now;

/// Tries of one delivery: a day and a third, about.
pub(crate) const ATTEMPTS_MAX: u32 = 20;
/// The first pause; each is twice the one before, up to the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(6 * 3600));
/// Deliveries that are under way at once.
const AT_ONCE: usize = 8;
/// A receiver that has not answered by then has failed.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Whoever takes a delivery has it for so long: longer than a try, so that no two replicas send it at once.
const TAKEN: Duration = Duration::from_secs(60);
/// How often the store is asked for what is due, if nothing says so before.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// How often it is looked how many there are that wait or were given up.
const COUNT_EVERY: Duration = Duration::from_secs(30);

/// How requests are made: to operators' receivers, and to tenants'.
#[derive(Clone)]
struct Agents {
    operators: ureq::Agent,
    tenants: ureq::Agent,
}

impl Agents {
    fn new(reach: Reach) -> Self {
        // No redirections: the address is the one that was looked at. No proxy of the environment.
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(ANSWER_TIME))
            .proxy(None)
            .build();
        let operators: ureq::Agent = config.clone().into();
        let tenants = match reach {
            Reach::Any => operators.clone(),
            // What was made when tenants still could is not sent further than what is made now.
            Reach::Public | Reach::Off => {
                ureq::Agent::with_parts(config, DefaultConnector::default(), PublicOnly::default())
            }
        };
        Agents { operators, tenants }
    }
}

impl Webhooks {
    /// Sends what is due, for as long as the server runs.
    pub async fn deliver(self: Arc<Self>, store: Store) {
        let agents = Agents::new(self.reach);
        let mut counted: Option<Instant> = None;
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            if counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
                counted = Some(Instant::now());
                match store.deliveries_count().await {
                    Ok((waiting, dead)) => {
                        self.counts.letters_waiting.store(waiting, Ordering::Relaxed);
                        self.counts.letters_dead.store(dead, Ordering::Relaxed);
                    }
                    Err(error) => tracing::debug!(%error, "deliveries were not counted"),
                }
            }
            match self.take(&store, &agents, &places).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "webhooks wait for the store"),
            }
            let wait = match store.deliveries_next().await {
                Ok(Some(next_us)) => until(next_us).min(ASK_EVERY),
                _ => ASK_EVERY,
            };
            // Several that end at once are one reason to look.
            let _ = tokio::time::timeout(wait, self.wake.notified()).await;
        }
    }

    /// Takes what is due, as far as there are places, and sends it; whether there may be more.
    async fn take(
        self: &Arc<Self>,
        store: &Store,
        agents: &Agents,
        places: &Arc<Semaphore>,
    ) -> Result<bool, StoreError> {
        let now_us = Now::read().unix_us;
        if store.deliveries_next().await?.is_none_or(|next_us| next_us > now_us) {
            return Ok(false);
        }
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(false) };
        let again_us = after(now_us, TAKEN);
        let due = store.deliveries_due(now_us, again_us, 1).await?;
        let Some(delivery) = due.into_iter().next() else { return Ok(false) };
        let (webhooks, store, agents) = (self.clone(), store.clone(), agents.clone());
        tokio::spawn(async move {
            webhooks.one(&store, agents, delivery).await;
            drop(place);
            webhooks.wake();
        });
        Ok(true)
    }

    /// One try, and how it went.
    async fn one(&self, store: &Store, agents: Agents, delivery: Delivery) {
        let outcome = match store.webhook(None, &delivery.webhook).await {
            Ok(webhook) if !webhook.settings.enabled => Err(Failure::last(None, "the webhook is turned off")),
            Ok(webhook) if is_tenants(&webhook.id) => self.send(agents.tenants, webhook, &delivery).await,
            Ok(webhook) => self.send(agents.operators, webhook, &delivery).await,
            // It is tried again when it is due again, and this try does not count.
            Err(StoreError::Unavailable(_) | StoreError::Retry(_)) => return,
            Err(error) => Err(Failure::last(None, &error.to_string())),
        };
        let now_us = Now::read().unix_us;
        let tried = judged(&delivery, outcome, now_us);
        let count = match tried.state {
            DeliveryState::Delivered => &self.counts.delivered,
            DeliveryState::Waiting => &self.counts.failed,
            DeliveryState::Dead => &self.counts.dead,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if tried.state != DeliveryState::Delivered {
            let (webhook, error) = (&tried.webhook, tried.error.as_deref());
            tracing::warn!(
                delivery = tried.id,
                webhook,
                error,
                attempts = tried.attempts,
                "an event was not delivered"
            );
        }
        if let Err(error) = store.delivery_tried(&tried, now_us).await {
            tracing::warn!(%error, delivery = tried.id, "how a delivery went is not written down: it is sent again");
        }
    }

    async fn send(&self, agent: ureq::Agent, webhook: Webhook, delivery: &Delivery) -> Result<u16, Failure> {
        let secret = self.key.unseal(&webhook.id, &webhook.secret).map_err(|e| Failure::new(None, &e.to_string()))?;
        let signed = signature(&secret, unix_seconds(), &delivery.body);
        let (id, event, body) = (delivery.id.to_string(), delivery.event.clone(), delivery.body.clone());
        let sent = tokio::task::spawn_blocking(move || {
            let request = agent.post(&webhook.settings.url).header("content-type", "application/json");
            let request =
                request.header(sign::HEADER, &signed).header("weir-delivery", &id).header("weir-event", &event);
            // Of the answer nothing is read: closing the connection costs less than a long body.
            request
                .header("user-agent", concat!("weir/", env!("CARGO_PKG_VERSION")))
                .send(body)
                .map(|r| r.status().as_u16())
        });
        match sent.await {
            Ok(Ok(status @ 200..=299)) => Ok(status),
            Ok(Ok(410)) => Err(Failure::last(Some(410), "the receiver is gone")),
            Ok(Ok(status)) => Err(Failure::new(Some(status), &format!("answered {status}"))),
            Ok(Err(error)) => Err(Failure::new(None, &error.to_string())),
            Err(error) => Err(Failure::new(None, &error.to_string())),
        }
    }
}

/// A try that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    status: Option<u16>,
    why: String,
    /// There is no use in another.
    last: bool,
}

impl Failure {
    fn new(status: Option<u16>, why: &str) -> Self {
        Failure { status, why: why.chars().take(200).collect(), last: false }
    }

    fn last(status: Option<u16>, why: &str) -> Self {
        Failure { last: true, ..Failure::new(status, why) }
    }
}

/// A delivery after a try.
fn judged(delivery: &Delivery, outcome: Result<u16, Failure>, now_us: i64) -> Delivery {
    let (state, status, error) = match outcome {
        Ok(status) => (DeliveryState::Delivered, Some(status), None),
        Err(failure) if failure.last || delivery.attempts >= ATTEMPTS_MAX => {
            (DeliveryState::Dead, failure.status, Some(failure.why))
        }
        Err(failure) => (DeliveryState::Waiting, failure.status, Some(failure.why)),
    };
    let next_us = after(now_us, pause(delivery.attempts));
    Delivery { state, next_us, status: status.map(i64::from), error, ..delivery.clone() }
}

/// How long to wait after so many tries.
fn pause(attempts: u32) -> Duration {
    let factor = 1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    PAUSE.0.saturating_mul(factor).min(PAUSE.1)
}

fn after(now_us: i64, time: Duration) -> i64 {
    now_us.saturating_add(i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
}

fn until(at_us: i64) -> Duration {
    Duration::from_micros(at_us.saturating_sub(Now::read().unix_us).max(0).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(attempts: u32) -> Delivery {
        Delivery {
            id: 1,
            webhook: "w".into(),
            tenant: None,
            event: "e".into(),
            body: "{}".into(),
            state: DeliveryState::Waiting,
            attempts,
            next_us: 0,
            status: None,
            error: None,
            created_us: 0,
        }
    }

    #[test]
    fn pauses_grow_and_end_after_a_day() {
        assert_eq!([1, 2, 3, 12].map(|n| pause(n).as_secs()), [1, 2, 4, 2048]);
        assert_eq!([16, 18, 32, 33, 1000].map(|n| pause(n).as_secs()), [6 * 3600; 5]);
        let whole: u64 = (1..ATTEMPTS_MAX).map(|n| pause(n).as_secs()).sum();
        assert!((24 * 3600..48 * 3600).contains(&whole), "{whole} s");
    }

    #[test]
    fn a_failure_is_tried_again_until_there_have_been_enough() {
        let failed = |attempts| judged(&delivery(attempts), Err(Failure::new(Some(500), "answered 500")), 7);
        let first = failed(1);
        assert_eq!((first.state, first.next_us, first.status), (DeliveryState::Waiting, 1_000_007, Some(500)));
        assert_eq!(failed(ATTEMPTS_MAX - 1).state, DeliveryState::Waiting);
        assert_eq!(failed(ATTEMPTS_MAX).state, DeliveryState::Dead);
        assert_eq!(judged(&delivery(1), Err(Failure::last(Some(410), "gone")), 7).state, DeliveryState::Dead);
        let done = judged(&Delivery { error: Some("x".into()), ..delivery(3) }, Ok(204), 7);
        assert_eq!((done.state, done.status, done.error), (DeliveryState::Delivered, Some(204), None));
    }
}
