//! Where events are sent, and what is still to be sent. Secrets come sealed and stay so; how is the sealer's business.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    Store, Tx,
    audit::Event,
    change::Change,
    error::StoreError,
    page,
    settings::{check_id, from_json, json},
    value::{Row, args},
};

/// Characters of an address at most.
const URL_LEN_MAX: usize = 2000;

/// What is set of a webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// Where to.
    pub url: String,
    /// The kinds of events that it wants.
    pub events: BTreeSet<String>,
    /// Whether anything is sent.
    pub enabled: bool,
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its id.
    pub id: String,
    /// Whose events; none of the operator's, who hears of every tenant.
    pub tenant: Option<String>,
    /// The secret that signs, sealed.
    pub secret: Vec<u8>,
    /// Everything else.
    pub settings: WebhookSettings,
    /// Grows by one with each edit.
    pub version: i64,
    /// When it was made.
    pub created_us: i64,
    /// When it was last edited.
    pub updated_us: i64,
}

/// How far a delivery has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is to be sent, for the first time or again.
    Waiting,
    /// It has arrived.
    Delivered,
    /// It was given up.
    Dead,
}

impl DeliveryState {
    /// As it is stored.
    pub fn word(self) -> &'static str {
        match self {
            DeliveryState::Waiting => "waiting",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Dead => "dead",
        }
    }

    /// Reads a word.
    pub fn parse(word: &str) -> Option<Self> {
        [DeliveryState::Waiting, DeliveryState::Delivered, DeliveryState::Dead]
            .into_iter()
            .find(|state| state.word() == word)
    }
}

/// One event for one webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its number.
    pub id: i64,
    /// The webhook's id.
    pub webhook: String,
    /// The tenant that it tells of.
    pub tenant: Option<String>,
    /// The kind of event.
    pub event: String,
    /// What is sent.
    pub body: String,
    /// How far it has come.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next.
    pub next_us: i64,
    /// The last answer's HTTP status.
    pub status: Option<i64>,
    /// Why the last try failed.
    pub error: Option<String>,
    /// When the event took place.
    pub created_us: i64,
}

fn webhook(row: &Row) -> Result<Webhook, StoreError> {
    let mut at = row.fields();
    let (id, tenant, url, secret) = (at.text()?, at.text_or_none()?, at.text()?, at.bytes()?);
    let events = from_json("webhooks", &id, &at.text()?)?;
    let settings = WebhookSettings { url, events, enabled: at.flag()? };
    Ok(Webhook { id, tenant, secret, settings, version: at.int()?, created_us: at.int()?, updated_us: at.int()? })
}

fn delivery(row: &Row) -> Result<Delivery, StoreError> {
    let mut at = row.fields();
    let (id, webhook, tenant, event, body) = (at.int()?, at.text()?, at.text_or_none()?, at.text()?, at.text()?);
    let state = DeliveryState::parse(&at.text()?).unwrap_or(DeliveryState::Waiting);
    let attempts = u32::try_from(at.int()?).map_err(|e| StoreError::corrupt("deliveries", &id.to_string(), e))?;
    let (next_us, status, error, created_us) = (at.int()?, at.int_or_none()?, at.text_or_none()?, at.int()?);
    Ok(Delivery { id, webhook, tenant, event, body, state, attempts, next_us, status, error, created_us })
}

fn check(settings: &WebhookSettings) -> Result<(), StoreError> {
    let known = settings.url.starts_with("https://") || settings.url.starts_with("http://");
    if !known || settings.url.len() > URL_LEN_MAX || settings.url.chars().any(|c| c.is_control() || c == ' ') {
        return Err(StoreError::invalid("url", "must be an address that begins with https:// or http://"));
    }
    Ok(())
}

impl Tx {
    /// A webhook by its id. With a tenant, another's is as one that does not exist.
    pub async fn webhook(&mut self, tenant: Option<&str>, id: &str) -> Result<Webhook, StoreError> {
        let sql = "SELECT id, tenant, url, secret, events, enabled, version, created_us, updated_us FROM webhooks WHERE id = $1";
        let found = self.row(sql, args![id]).await?.as_ref().map(webhook).transpose()?;
        let own = found.filter(|webhook| tenant.is_none() || webhook.tenant.as_deref() == tenant);
        own.ok_or_else(|| StoreError::missing("webhook", id))
    }

    /// Webhooks in the order of their ids, those after `after`: a tenant's, or everybody's.
    pub async fn webhooks(
        &mut self,
        tenant: Option<&str>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Webhook>, StoreError> {
        let all = "SELECT id, tenant, url, secret, events, enabled, version, created_us, updated_us FROM webhooks \
                   WHERE id > $1 ORDER BY id LIMIT $2";
        let own = "SELECT id, tenant, url, secret, events, enabled, version, created_us, updated_us FROM webhooks \
                   WHERE id > $1 AND tenant = $3 ORDER BY id LIMIT $2";
        let rows = match tenant {
            None => self.rows(all, args![after, page(limit)]).await?,
            Some(tenant) => self.rows(own, args![after, page(limit), tenant]).await?,
        };
        rows.iter().map(webhook).collect()
    }

    /// Puts an event on its way to a webhook, in the transaction of what it tells of; the delivery's number.
    pub async fn deliver(
        &mut self,
        webhook: &str,
        tenant: Option<&str>,
        event: &str,
        body: &str,
        at_us: i64,
    ) -> Result<i64, StoreError> {
        let id = self.next("delivery").await?;
        let sql = "INSERT INTO deliveries (id, webhook, tenant, event, body, state, attempts, next_us, status, error, \
                   created_us, updated_us) VALUES ($1, $2, $3, $4, $5, 'waiting', 0, $6, NULL, NULL, $6, $6)";
        let values = args![id, webhook, tenant, event, body, at_us];
        self.execute(sql, values).await.map_err(|e| e.or_missing("webhook", webhook))?;
        Ok(id)
    }
}

impl Store {
    /// See [`Tx::webhook`].
    pub async fn webhook(&self, tenant: Option<&str>, id: &str) -> Result<Webhook, StoreError> {
        self.read().await?.webhook(tenant, id).await
    }

    /// See [`Tx::webhooks`].
    pub async fn webhooks(&self, tenant: Option<&str>, after: &str, limit: u32) -> Result<Vec<Webhook>, StoreError> {
        self.read().await?.webhooks(tenant, after, limit).await
    }

    /// Puts an event on its way to every webhook that wants it: the operator's, and those of the tenant that it tells of; to how
    /// many.
    pub async fn notify(&self, tenant: Option<&str>, event: &str, body: &str, at_us: i64) -> Result<usize, StoreError> {
        let sql = "SELECT id, tenant, url, secret, events, enabled, version, created_us, updated_us FROM webhooks \
                   WHERE enabled = 1 AND (tenant IS NULL OR tenant = $1) ORDER BY id LIMIT 1000";
        let mut tx = self.write().await?;
        let mut sent = 0;
        for row in tx.rows(sql, args![tenant]).await? {
            let webhook = webhook(&row)?;
            if webhook.settings.events.contains(event) {
                tx.deliver(&webhook.id, tenant, event, body, at_us).await?;
                sent += 1;
            }
        }
        tx.commit().await?;
        Ok(sent)
    }

    /// When the next delivery is due, if there is one.
    pub async fn deliveries_next(&self) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT next_us FROM deliveries WHERE state = 'waiting' ORDER BY next_us LIMIT 1";
        self.read().await?.row(sql, args![]).await?.map(|row| row.fields().int()).transpose()
    }

    /// How many deliveries wait, and how many were given up.
    pub async fn deliveries_count(&self) -> Result<(u64, u64), StoreError> {
        let sql = "SELECT count(CASE WHEN state = 'waiting' THEN 1 END), count(CASE WHEN state = 'dead' THEN 1 END) \
                   FROM deliveries";
        let Some(row) = self.read().await?.row(sql, args![]).await? else { return Ok((0, 0)) };
        let mut at = row.fields();
        Ok((at.int()?.unsigned_abs(), at.int()?.unsigned_abs()))
    }

    /// Begins anew with a delivery that was given up, of a webhook or of any. False where there is no such.
    pub async fn delivery_again(&self, webhook: Option<&str>, id: i64, now_us: i64) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let any = "UPDATE deliveries SET state = 'waiting', attempts = 0, next_us = $2, updated_us = $2 \
                   WHERE id = $1 AND state = 'dead'";
        let own = "UPDATE deliveries SET state = 'waiting', attempts = 0, next_us = $2, updated_us = $2 \
                   WHERE id = $1 AND state = 'dead' AND webhook = $3";
        let changed = match webhook {
            None => tx.execute(any, args![id, now_us]).await?,
            Some(webhook) => tx.execute(own, args![id, now_us, webhook]).await?,
        };
        tx.commit().await?;
        Ok(changed > 0)
    }

    /// Forgets what was delivered before an instant, 1,000 rows at most; how many. What was given up stays.
    pub async fn deliveries_forget(&self, before_us: i64) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        let sql = "DELETE FROM deliveries WHERE id IN \
                   (SELECT id FROM deliveries WHERE state = 'delivered' AND updated_us < $1 LIMIT 1000)";
        let gone = tx.execute(sql, args![before_us]).await?;
        tx.commit().await?;
        Ok(gone)
    }

    /// Takes deliveries that are due, and puts each off until `again_us`: whoever took them has until then to say how it went,
    /// and another replica does not send them meanwhile.
    pub async fn deliveries_due(&self, now_us: i64, again_us: i64, limit: u32) -> Result<Vec<Delivery>, StoreError> {
        let mut tx = self.write().await?;
        let due = match tx.is_postgres() {
            false => {
                "SELECT id, webhook, tenant, event, body, state, attempts, next_us, status, error, created_us FROM deliveries \
                 WHERE state = 'waiting' AND next_us <= $1 ORDER BY next_us, id LIMIT $2"
            }
            true => {
                "SELECT id, webhook, tenant, event, body, state, attempts, next_us, status, error, created_us FROM deliveries \
                 WHERE state = 'waiting' AND next_us <= $1 ORDER BY next_us, id LIMIT $2 FOR UPDATE SKIP LOCKED"
            }
        };
        let mut taken = Vec::new();
        for row in tx.rows(due, args![now_us, page(limit)]).await? {
            let delivery = delivery(&row)?;
            let sql = "UPDATE deliveries SET attempts = attempts + 1, next_us = $2, updated_us = $3 WHERE id = $1";
            tx.execute(sql, args![delivery.id, again_us, now_us]).await?;
            taken.push(Delivery { attempts: delivery.attempts.saturating_add(1), next_us: again_us, ..delivery });
        }
        tx.commit().await?;
        Ok(taken)
    }

    /// Writes down how a try went, and when the next one is. One that is over stays as it ended: a slow try may come to
    /// its end after the next has delivered.
    pub async fn delivery_tried(&self, tried: &Delivery, now_us: i64) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let sql = "UPDATE deliveries SET state = $2, next_us = $3, status = $4, error = $5, updated_us = $6 \
                   WHERE id = $1 AND state = 'waiting'";
        let d = tried;
        tx.execute(sql, args![d.id, d.state.word(), d.next_us, d.status, &d.error, now_us]).await?;
        tx.commit().await
    }

    /// Deliveries in a state, in the order of their numbers, those after `after`: a webhook's, or all.
    pub async fn deliveries(
        &self,
        webhook: Option<&str>,
        state: DeliveryState,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Delivery>, StoreError> {
        let all = "SELECT id, webhook, tenant, event, body, state, attempts, next_us, status, error, created_us \
                   FROM deliveries WHERE state = $1 AND id > $2 ORDER BY id LIMIT $3";
        let own = "SELECT id, webhook, tenant, event, body, state, attempts, next_us, status, error, created_us \
                   FROM deliveries WHERE state = $1 AND id > $2 AND webhook = $4 ORDER BY id LIMIT $3";
        let mut tx = self.read().await?;
        let rows = match webhook {
            None => tx.rows(all, args![state.word(), after, page(limit)]).await?,
            Some(webhook) => tx.rows(own, args![state.word(), after, page(limit), webhook]).await?,
        };
        rows.iter().map(delivery).collect()
    }
}

impl Change {
    /// Makes a webhook.
    pub async fn create_webhook(
        &mut self,
        id: &str,
        tenant: Option<&str>,
        secret: &[u8],
        settings: &WebhookSettings,
    ) -> Result<(), StoreError> {
        check_id("id", id)?;
        check(settings)?;
        let (events, told) = (json("events", &settings.events)?, json("settings", settings)?);
        let at_us = self.at_us();
        let sql = "INSERT INTO webhooks (id, tenant, url, secret, events, enabled, version, created_us, updated_us) \
                   VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $7)";
        let values = args![id, tenant, &settings.url, secret, &events, settings.enabled, at_us];
        let made = self.tx().execute(sql, values).await;
        made.map_err(|e| e.or_exists("webhook", id).or_missing("tenant", tenant.unwrap_or_default()))?;
        self.record(Event::of("webhook.create", "webhook", id).tenant(tenant).after(&told)).await
    }

    /// Replaces a webhook's settings, and its secret where there is a new one.
    pub async fn update_webhook(
        &mut self,
        tenant: Option<&str>,
        id: &str,
        version: i64,
        secret: Option<&[u8]>,
        settings: &WebhookSettings,
    ) -> Result<Webhook, StoreError> {
        check(settings)?;
        let before = self.tx().webhook(tenant, id).await?;
        let (events, told) = (json("events", &settings.events)?, json("settings", settings)?);
        let at_us = self.at_us();
        let sql = "UPDATE webhooks SET url = $3, secret = COALESCE($4, secret), events = $5, enabled = $6, updated_us = $7, \
                   version = version + 1 WHERE id = $1 AND version = $2";
        let values = args![id, version, &settings.url, secret, &events, settings.enabled, at_us];
        if self.tx().execute(sql, values).await? == 0 {
            let (id, found) = (id.to_owned(), before.version);
            return Err(StoreError::Conflict { kind: "webhook", id, expected: version, found });
        }
        let old = json("settings", &before.settings)?;
        let event = Event::of("webhook.update", "webhook", id).tenant(before.tenant.as_deref());
        self.record(event.before(&old).after(&told)).await?;
        let secret = secret.map_or(before.secret, <[u8]>::to_vec);
        Ok(Webhook { secret, settings: settings.clone(), version: version + 1, updated_us: at_us, ..before })
    }

    /// Removes a webhook and all of its deliveries.
    pub async fn delete_webhook(&mut self, tenant: Option<&str>, id: &str) -> Result<(), StoreError> {
        let before = self.tx().webhook(tenant, id).await?;
        self.tx().execute("DELETE FROM webhooks WHERE id = $1", args![id]).await?;
        let old = json("settings", &before.settings)?;
        let event = Event::of("webhook.delete", "webhook", id).tenant(before.tenant.as_deref());
        self.record(event.before(&old)).await
    }
}
