//! The audit log: who did what, each row bound to the one before it by a hash.
//!
//! `hash = BLAKE3(prev || every other column)`, each column with its length, so that no two rows have the same bytes. The first row's
//! `prev` is zero. A row that is changed, removed, added in between or put elsewhere breaks the chain at that row; rows cut off
//! at the end are missed by the counter, which is in the same transaction as each row.
//!
//! The sequence is also how replicas learn of changes: rows are numbered in the order of their commits.

use super::{
    PAGE_LEN_MAX, Store, Tx,
    error::StoreError,
    page,
    value::{Row, Value, args},
};

/// The version of what the hash covers.
const SCHEMA: i64 = 1;
/// Characters of anything that an actor says of itself.
const TOLD_LEN_MAX: usize = 500;
const ZERO: [u8; 32] = [0; 32];

/// What kind of actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActorKind {
    /// Who runs the server.
    Operator,
    /// Somebody of a tenant.
    Tenant,
    /// Who may read everything and change nothing.
    Auditor,
    /// The server itself.
    System,
}

impl ActorKind {
    /// As it is stored.
    pub fn word(self) -> &'static str {
        match self {
            ActorKind::Operator => "operator",
            ActorKind::Tenant => "tenant",
            ActorKind::Auditor => "auditor",
            ActorKind::System => "system",
        }
    }
}

/// Who acts, and from where. What is unknown is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// What kind.
    pub kind: ActorKind,
    /// Who: a key's id, a token's subject, `weir`.
    pub id: String,
    /// The id of the key that was shown, never the secret.
    pub credential: Option<String>,
    /// `key`, `jwt`, ...
    pub method: Option<String>,
    /// Of a token.
    pub issuer: Option<String>,
    /// The address of the client.
    pub source: Option<String>,
    /// The proxies that it came through.
    pub proxies: Option<String>,
    /// What the client calls itself.
    pub agent: Option<String>,
    /// The request's id.
    pub request: Option<String>,
    /// The trace's id.
    pub trace: Option<String>,
}

impl Actor {
    /// An actor of whom nothing else is known.
    pub fn new(kind: ActorKind, id: &str) -> Self {
        Actor {
            kind,
            id: id.to_owned(),
            credential: None,
            method: None,
            issuer: None,
            source: None,
            proxies: None,
            agent: None,
            request: None,
            trace: None,
        }
    }

    /// The server itself.
    pub fn system() -> Self {
        Actor::new(ActorKind::System, "weir")
    }
}

/// Where rows are written: which node, which program, which configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The node's name.
    pub node: String,
    /// Digest or version of the program.
    pub build: String,
    /// Digest of its configuration.
    pub config: String,
}

/// What happened. Secrets never stand in here, not in `before` and `after` either.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    action: &'a str,
    target_kind: &'a str,
    target: &'a str,
    tenant: Option<&'a str>,
    before: Option<&'a str>,
    after: Option<&'a str>,
    result: &'a str,
    reason: Option<&'a str>,
    approval: Option<&'a str>,
}

impl<'a> Event<'a> {
    /// `action` (such as `tenant.suspend`) was done to the `kind` of that id.
    pub fn of(action: &'a str, kind: &'a str, id: &'a str) -> Self {
        Event {
            action,
            target_kind: kind,
            target: id,
            tenant: None,
            before: None,
            after: None,
            result: "done",
            reason: None,
            approval: None,
        }
    }

    /// It concerns this tenant.
    pub fn tenant(self, tenant: Option<&'a str>) -> Self {
        Event { tenant, ..self }
    }

    /// What it was before, as JSON.
    pub fn before(self, before: &'a str) -> Self {
        Event { before: Some(before), ..self }
    }

    /// What it is now, as JSON.
    pub fn after(self, after: &'a str) -> Self {
        Event { after: Some(after), ..self }
    }

    /// It was not done, and why.
    pub fn refused(self, reason: &'a str) -> Self {
        Event { result: "refused", reason: Some(reason), ..self }
    }

    /// Why it was done.
    pub fn reason(self, reason: Option<&'a str>) -> Self {
        Event { reason, ..self }
    }

    /// Who had approved it.
    pub fn approval(self, approval: &'a str) -> Self {
        Event { approval: Some(approval), ..self }
    }
}

/// A row of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in Actor, Event and Origin")]
pub struct AuditRow {
    pub seq: i64,
    pub at_us: i64,
    pub schema: i64,
    pub event: String,
    pub actor_kind: String,
    pub actor: String,
    pub credential: Option<String>,
    pub tenant: Option<String>,
    pub method: Option<String>,
    pub issuer: Option<String>,
    pub source: Option<String>,
    pub proxies: Option<String>,
    pub agent: Option<String>,
    pub request: Option<String>,
    pub trace: Option<String>,
    pub action: String,
    pub target_kind: String,
    pub target: String,
    pub before: Option<String>,
    pub after: Option<String>,
    pub result: String,
    pub reason: Option<String>,
    pub approval: Option<String>,
    pub node: String,
    pub build: String,
    pub config: String,
    pub prev: [u8; 32],
    pub hash: [u8; 32],
}

impl AuditRow {
    fn read(row: &Row) -> Result<Self, StoreError> {
        let mut at = row.fields();
        Ok(AuditRow {
            seq: at.int()?,
            at_us: at.int()?,
            schema: at.int()?,
            event: at.text()?,
            actor_kind: at.text()?,
            actor: at.text()?,
            credential: at.text_or_none()?,
            tenant: at.text_or_none()?,
            method: at.text_or_none()?,
            issuer: at.text_or_none()?,
            source: at.text_or_none()?,
            proxies: at.text_or_none()?,
            agent: at.text_or_none()?,
            request: at.text_or_none()?,
            trace: at.text_or_none()?,
            action: at.text()?,
            target_kind: at.text()?,
            target: at.text()?,
            before: at.text_or_none()?,
            after: at.text_or_none()?,
            result: at.text()?,
            reason: at.text_or_none()?,
            approval: at.text_or_none()?,
            node: at.text()?,
            build: at.text()?,
            config: at.text()?,
            prev: at.hash("audit")?,
            hash: at.hash("audit")?,
        })
    }

    /// Every column but the hash, in the order of the table.
    fn values(&self) -> [Value<'_>; 27] {
        [
            self.seq.into(),
            self.at_us.into(),
            self.schema.into(),
            (&self.event).into(),
            (&self.actor_kind).into(),
            (&self.actor).into(),
            (&self.credential).into(),
            (&self.tenant).into(),
            (&self.method).into(),
            (&self.issuer).into(),
            (&self.source).into(),
            (&self.proxies).into(),
            (&self.agent).into(),
            (&self.request).into(),
            (&self.trace).into(),
            (&self.action).into(),
            (&self.target_kind).into(),
            (&self.target).into(),
            (&self.before).into(),
            (&self.after).into(),
            (&self.result).into(),
            (&self.reason).into(),
            (&self.approval).into(),
            (&self.node).into(),
            (&self.build).into(),
            (&self.config).into(),
            (&self.prev).into(),
        ]
    }

    /// The hash that the row must have.
    pub fn expected_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.prev);
        for value in self.values() {
            // A tag and a length go before the bytes; what is absent is a tag alone, and so differs from what is empty.
            match value {
                Value::Int(Some(number)) => hasher.update(&[1]).update(&number.to_le_bytes()),
                Value::Text(Some(text)) => {
                    hasher.update(&[2]).update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes())
                }
                Value::Bytes(Some(bytes)) => {
                    hasher.update(&[3]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes)
                }
                Value::Int(None) | Value::Text(None) | Value::Bytes(None) => hasher.update(&[0]),
            };
        }
        *hasher.finalize().as_bytes()
    }
}

/// What a client says of itself, without what a terminal or a database would stumble over, and not without end.
fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TOLD_LEN_MAX).collect()
}

/// Adds a row to the log, in the transaction of what it tells of.
pub(super) async fn append(
    tx: &mut Tx,
    actor: &Actor,
    origin: &Origin,
    at_us: i64,
    event: Event<'_>,
) -> Result<(), StoreError> {
    let seq = tx.next("audit").await?;
    let prev = match tx.row("SELECT hash FROM audit WHERE seq = $1", args![seq - 1]).await? {
        Some(row) => row.fields().hash("audit")?,
        None => ZERO,
    };
    let owned = |text: Option<&str>| text.map(str::to_owned);
    let told = |text: &Option<String>| text.as_deref().map(bounded);
    let mut row = AuditRow {
        seq,
        at_us,
        schema: SCHEMA,
        // Unique, and says where in the chain it stands.
        event: format!("ev_{seq:016x}"),
        actor_kind: actor.kind.word().to_owned(),
        actor: bounded(&actor.id),
        credential: told(&actor.credential),
        tenant: owned(event.tenant),
        method: told(&actor.method),
        issuer: told(&actor.issuer),
        source: told(&actor.source),
        proxies: told(&actor.proxies),
        agent: told(&actor.agent),
        request: told(&actor.request),
        trace: told(&actor.trace),
        action: event.action.to_owned(),
        target_kind: event.target_kind.to_owned(),
        target: event.target.to_owned(),
        before: owned(event.before),
        after: owned(event.after),
        result: event.result.to_owned(),
        reason: owned(event.reason),
        approval: owned(event.approval),
        node: origin.node.clone(),
        build: origin.build.clone(),
        config: origin.config.clone(),
        prev,
        hash: ZERO,
    };
    row.hash = row.expected_hash();
    let mut values = row.values().to_vec();
    values.push((&row.hash).into());
    let sql = "INSERT INTO audit (seq, at_us, schema, event, actor_kind, actor, credential, tenant, method, issuer, source, \
               proxies, agent, request, trace, action, target_kind, target, before, after, result, reason, approval, node, \
               build, config, prev, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
               $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28)";
    tx.execute(sql, &values).await?;
    Ok(())
}

/// What a whole log shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditProof {
    /// Rows that were read.
    pub rows: u64,
    /// The last one's hash; zero of none. Kept elsewhere, it proves later that nothing before it has changed.
    pub head: [u8; 32],
}

/// The first row that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditFault {
    /// Which.
    pub seq: i64,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Something changed at a point of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The row's number: ask for what comes after it next time.
    pub seq: i64,
    /// `tenant`, `plan`, `key`, `price`, `webhook`, ...
    pub kind: String,
    /// Its id.
    pub id: String,
}

impl Store {
    /// A page of the log, after a row, oldest first; of one tenant or all.
    pub async fn audit(&self, tenant: Option<&str>, after: i64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        let mut tx = self.read().await?;
        tx.audit(tenant, after, limit).await
    }

    /// Reads the whole log and recomputes every hash.
    pub async fn audit_verify(&self) -> Result<Result<AuditProof, AuditFault>, StoreError> {
        let mut tx = self.read().await?;
        let (mut seq, mut head) = (0_i64, ZERO);
        loop {
            let rows = tx.audit(None, seq, PAGE_LEN_MAX).await?;
            for row in &rows {
                let fault = |what| Ok(Err(AuditFault { seq: seq + 1, what }));
                if row.seq != seq + 1 {
                    return fault("it is missing");
                }
                if row.prev != head {
                    return fault("it does not follow the row before it");
                }
                if row.hash != row.expected_hash() {
                    return fault("its columns are not those that were hashed");
                }
                (seq, head) = (row.seq, row.hash);
            }
            if rows.len() < PAGE_LEN_MAX as usize {
                break;
            }
        }
        if tx.audit_seq().await? != seq {
            return Ok(Err(AuditFault { seq: seq + 1, what: "it is missing" }));
        }
        Ok(Ok(AuditProof { rows: seq.unsigned_abs(), head }))
    }

    /// What has changed after a row of the audit log, in the order of the commits; a page at most. Replicas poll it: nothing that
    /// is committed later gets an earlier number.
    pub async fn changes(&self, after: i64) -> Result<Vec<Changed>, StoreError> {
        let mut tx = self.read().await?;
        let sql = "SELECT seq, target_kind, target FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2";
        let changed = |row: &Row| {
            let mut at = row.fields();
            Ok(Changed { seq: at.int()?, kind: at.text()?, id: at.text()? })
        };
        tx.rows(sql, args![after, page(PAGE_LEN_MAX)]).await?.iter().map(changed).collect()
    }

    /// The number of the last change: to be asked before everything is read for the first time.
    pub async fn changes_head(&self) -> Result<i64, StoreError> {
        self.read().await?.audit_seq().await
    }
}

impl Tx {
    /// See [`Store::audit`].
    pub async fn audit(&mut self, tenant: Option<&str>, after: i64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        let all = "SELECT seq, at_us, schema, event, actor_kind, actor, credential, tenant, method, issuer, source, proxies, \
                   agent, request, trace, action, target_kind, target, before, after, result, reason, approval, node, build, \
                   config, prev, hash FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2";
        let own = "SELECT seq, at_us, schema, event, actor_kind, actor, credential, tenant, method, issuer, source, proxies, \
                   agent, request, trace, action, target_kind, target, before, after, result, reason, approval, node, build, \
                   config, prev, hash FROM audit WHERE seq > $1 AND tenant = $3 ORDER BY seq LIMIT $2";
        let rows = match tenant {
            None => self.rows(all, args![after, page(limit)]).await?,
            Some(tenant) => self.rows(own, args![after, page(limit), tenant]).await?,
        };
        rows.iter().map(AuditRow::read).collect()
    }

    /// How far the log has come.
    async fn audit_seq(&mut self) -> Result<i64, StoreError> {
        let row = self.row("SELECT value FROM counters WHERE name = 'audit'", args![]).await?;
        row.ok_or_else(|| StoreError::missing("counter", "audit"))?.fields().int()
    }
}
