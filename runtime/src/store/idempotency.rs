//! Keys by which clients repeat a request without doing it twice, each a tenant's own.
//!
//! The first to begin runs the request; a repeat learns that it runs, or how it ended. A key is forgotten when it expires.

use super::{
    Store,
    error::StoreError,
    value::{Row, args},
};

/// What a key stands for, as its first use has written it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotent {
    /// Digest of the request's body and path.
    pub fingerprint: [u8; 32],
    /// The request that runs, or ran, for it.
    pub request: String,
    /// The life of a replica in which it was begun.
    pub epoch: i64,
    /// How it ended; none while it runs.
    pub outcome: Option<Outcome>,
    /// When it was begun.
    pub created_us: i64,
    /// When the key is forgotten.
    pub expires_us: i64,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its HTTP status.
    pub status: u32,
    /// Its usage as JSON.
    pub usage: Option<String>,
    /// Its body, where the tenant keeps bodies.
    pub body: Option<Vec<u8>>,
}

/// What the ledger has charged for a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Billed {
    /// Device time, in nanoseconds.
    pub device_ns: i64,
    /// Tokens of its prompts.
    pub prompt_tokens: i64,
    /// Tokens that were drawn.
    pub completion_tokens: i64,
}

/// What beginning found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// Nothing: the request is the caller's to run.
    New,
    /// The same request, running or ended. Whether the body is the same is for the caller to see by the fingerprint.
    Known(Idempotent),
}

/// Bytes of a key at most.
const KEY_LEN_MAX: usize = 255;
const RUNNING: &str = "running";

fn idempotent(row: &Row) -> Result<Idempotent, StoreError> {
    let mut at = row.fields();
    let (fingerprint, state, request, epoch) = (at.hash("idempotency")?, at.text()?, at.text()?, at.int()?);
    let (status, usage, body) = (at.int_or_none()?, at.text_or_none()?, at.bytes_or_none()?);
    let status =
        u32::try_from(status.unwrap_or_default()).map_err(|e| StoreError::corrupt("idempotency", &request, e))?;
    let outcome = (state != RUNNING).then_some(Outcome { status, usage, body });
    Ok(Idempotent { fingerprint, request, epoch, outcome, created_us: at.int()?, expires_us: at.int()? })
}

impl Store {
    /// Takes a tenant's key for `new` (which has no outcome), or says what has it at `new.created_us`. An expired one is as none.
    pub async fn idempotency_begin(&self, tenant: &str, key: &str, new: &Idempotent) -> Result<Begun, StoreError> {
        if key.is_empty() || key.len() > KEY_LEN_MAX || key.chars().any(char::is_control) {
            let message = format!("must be 1 to {KEY_LEN_MAX} bytes without control characters");
            return Err(StoreError::invalid("idempotency-key", message));
        }
        let mut tx = self.write().await?;
        let now_us = new.created_us;
        // One statement: of two that come at once, one inserts and the other changes nothing.
        let sql = "INSERT INTO idempotency (tenant, key, fingerprint, state, request, epoch, status, usage, body, created_us, \
                   expires_us) VALUES ($1, $2, $3, 'running', $4, $5, NULL, NULL, NULL, $6, $7) \
                   ON CONFLICT (tenant, key) DO UPDATE SET fingerprint = excluded.fingerprint, state = excluded.state, \
                   request = excluded.request, epoch = excluded.epoch, status = NULL, usage = NULL, body = NULL, \
                   created_us = excluded.created_us, expires_us = excluded.expires_us \
                   WHERE idempotency.expires_us <= $6";
        let values = args![tenant, key, &new.fingerprint, &new.request, new.epoch, now_us, new.expires_us];
        let taken = tx.execute(sql, values).await.map_err(|e| e.or_missing("tenant", tenant))?;
        if taken > 0 {
            tx.commit().await?;
            return Ok(Begun::New);
        }
        let sql = "SELECT fingerprint, state, request, epoch, status, usage, body, created_us, expires_us FROM idempotency \
                   WHERE tenant = $1 AND key = $2";
        let row = tx.row(sql, args![tenant, key]).await?;
        let row = row.ok_or_else(|| StoreError::Retry("the key was forgotten at the same moment".into()))?;
        Ok(Begun::Known(idempotent(&row)?))
    }

    /// Writes down how the request ended that has the key. False when it has not: somebody took it over after it expired.
    pub async fn idempotency_end(
        &self,
        tenant: &str,
        key: &str,
        request: &str,
        outcome: &Outcome,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let sql = "UPDATE idempotency SET state = 'done', status = $4, usage = $5, body = $6 \
                   WHERE tenant = $1 AND key = $2 AND request = $3 AND state = 'running'";
        let o = outcome;
        let values = args![tenant, key, request, o.status, &o.usage, o.body.as_deref()];
        let changed = tx.execute(sql, values).await?;
        tx.commit().await?;
        Ok(changed > 0)
    }

    /// Gives the key back for a request that was refused before it did anything.
    pub async fn idempotency_cancel(&self, tenant: &str, key: &str, request: &str) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let sql = "DELETE FROM idempotency WHERE tenant = $1 AND key = $2 AND request = $3 AND state = 'running'";
        tx.execute(sql, args![tenant, key, request]).await?;
        tx.commit().await
    }

    /// Forgets what has expired, 1,000 rows at most; how many.
    pub async fn idempotency_forget(&self, now_us: i64) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        let sql = "DELETE FROM idempotency WHERE (tenant, key) IN \
                   (SELECT tenant, key FROM idempotency WHERE expires_us <= $1 LIMIT 1000)";
        let gone = tx.execute(sql, args![now_us]).await?;
        tx.commit().await?;
        Ok(gone)
    }

    /// What a tenant was charged for a request that is billed under `request`, or, where it has several prompts, under that, a
    /// hyphen and a number; nothing where there is no bill.
    pub async fn bills_of(&self, tenant: &str, request: &str) -> Result<Option<Billed>, StoreError> {
        let sql = "SELECT device_ns, prompt_tokens, completion_tokens FROM ledger WHERE tenant = $1 \
                   AND (request = $2 OR (request > $3 AND request < $4)) AND kind IN ('settle', 'recovered') LIMIT 10000";
        // What begins with a hyphen is between these two: a full stop is the character after it.
        let (first, last) = (format!("{request}-"), format!("{request}."));
        let mut sum = None;
        for row in self.read().await?.rows(sql, args![tenant, request, &first, &last]).await? {
            let mut at = row.fields();
            let sum: &mut Billed = sum.get_or_insert_default();
            sum.device_ns = sum.device_ns.saturating_add(at.int()?);
            sum.prompt_tokens = sum.prompt_tokens.saturating_add(at.int()?);
            sum.completion_tokens = sum.completion_tokens.saturating_add(at.int()?);
        }
        Ok(sum)
    }

    /// Whether a life of a replica is over, so that nothing of it runs any more.
    pub async fn epoch_is_over(&self, epoch: i64) -> Result<bool, StoreError> {
        let row = self.read().await?.row("SELECT ended_us FROM epochs WHERE epoch = $1", args![epoch]).await?;
        // One that was never begun runs nothing either.
        row.map_or(Ok(true), |row| Ok(row.fields().int_or_none()?.is_some()))
    }
}
