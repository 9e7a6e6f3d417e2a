//! What outlives the process: tenants, plans, keys, prices, quota windows, the ledger and the audit log, in SQLite (one
//! server, the default) or PostgreSQL (several).
//!
//! * [`Store`] is a handle that is cheap to clone. [`Store::read`] and [`Store::write`] begin a transaction ([`Tx`]);
//!   dropping one undoes it.
//! * [`Change`], from [`Store::change`], is a transaction that writes an audit row beside whatever it changes, and the only
//!   way to change what an operator configures. Any number of operations make one change, which all happen or none.
//! * Every row that is edited has a version; an edit names the version it was made from and is refused with
//!   [`StoreError::Conflict`] when somebody was faster.
//! * [`Store::changes`] tells replicas what has changed since they last asked.
//!
//! SQL is constant text with bound parameters, one text for both databases where they agree; `sqlx` refuses anything else
//! at compile time and a test looks for ways around that. Times and random numbers are arguments. Nothing here knows of HTTP,
//! the scheduler or the engine.
//!
//! Tests: `runtime/tests/store`, each case on both databases.

mod audit;
mod change;
mod checkpoints;
mod error;
mod idempotency;
mod keys;
mod limits;
mod meta;
mod plans;
mod postgres;
mod prices;
mod schema;
mod settings;
mod sqlite;
mod tenants;
mod tx;
mod value;
mod wal;
mod webhooks;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use audit::{Actor, ActorKind, AuditFault, AuditProof, AuditRow, Changed, Event, Origin};
pub use change::Change;
pub use error::StoreError;
pub use idempotency::{Begun, Billed, Idempotent, Outcome};
pub use keys::{Key, NewKey, Role};
pub use limits::{LimitError, Limits};
pub use plans::Plan;
pub use prices::{ANY, Price};
pub use settings::{MODEL_KINDS, OPERATOR_NAME, Status, TenantSettings, is_host_name};
pub use tenants::{NewTenant, Tenant};
pub use tx::Tx;
pub(crate) use value::args;
pub use value::{Fields, Row, Value};
pub use webhooks::{Delivery, DeliveryState, Webhook, WebhookSettings};

/// Rows of one page at most.
pub const PAGE_LEN_MAX: u32 = 1000;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// PostgreSQL: where the owner of the tables logs in, to migrate; the store's own address when absent.
    pub owner_url: Option<String>,
    /// Whether tables are made and brought up to date; otherwise an older schema is refused.
    pub migrate: bool,
    /// Connections that read, beside SQLite's one that writes; for PostgreSQL all connections.
    pub connections: u32,
    /// How long a transaction waits for a connection, and a statement for a lock.
    pub patience: Duration,
    /// What every audit row says of where it was written.
    pub origin: Origin,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            owner_url: None,
            migrate: true,
            connections: 4,
            patience: Duration::from_secs(5),
            origin: Origin::default(),
        }
    }
}

/// An open store. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Backend,
    origin: Arc<Origin>,
    begun: Arc<AtomicU64>,
}

#[derive(Debug, Clone)]
enum Backend {
    Sqlite(sqlite::Sqlite),
    Postgres(postgres::Postgres),
}

/// Which database a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A file of this process.
    Sqlite,
    /// A server.
    Postgres,
}

impl Store {
    /// Opens `sqlite:PATH`, which is made when it is missing, or `postgres://...`, and brings its schema up to date.
    pub async fn open(url: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        let backend = match address(url)? {
            Address::Sqlite(path) => Backend::Sqlite(sqlite::Sqlite::open(&path, options).await?),
            Address::Postgres => Backend::Postgres(postgres::Postgres::open(url, options).await?),
        };
        Ok(Store { backend, origin: Arc::new(options.origin.clone()), begun: Arc::default() })
    }

    /// Which database it is.
    pub fn dialect(&self) -> Dialect {
        match &self.backend {
            Backend::Sqlite(_) => Dialect::Sqlite,
            Backend::Postgres(_) => Dialect::Postgres,
        }
    }

    /// A transaction that only reads, at one moment's state.
    pub async fn read(&self) -> Result<Tx, StoreError> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.read().await,
            Backend::Postgres(postgres) => postgres.read().await,
        }
    }

    /// A transaction that reads what belongs to one tenant. PostgreSQL shows it nothing else (row security); SQLite has no such
    /// thing, so each query names the tenant all the same.
    pub async fn read_as(&self, tenant: &str) -> Result<Tx, StoreError> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.read().await,
            Backend::Postgres(postgres) => postgres.read_as(tenant).await,
        }
    }

    /// A transaction that writes. SQLite has one at a time, and the others wait.
    pub async fn write(&self) -> Result<Tx, StoreError> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.write().await,
            Backend::Postgres(postgres) => postgres.write().await,
        }
    }

    /// How many transactions were begun since it was opened: what asks the store shows here, and what does not, does not.
    pub fn transactions(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Begins an audited change by `actor` at `at_us`.
    pub async fn change(&self, actor: &Actor, at_us: i64) -> Result<Change, StoreError> {
        Change::begin(self.write().await?, actor.clone(), self.origin.clone(), at_us).await
    }

    /// Closes every connection and gives up the file. Transactions under way elsewhere are waited for.
    pub async fn close(self) {
        match self.backend {
            Backend::Sqlite(sqlite) => sqlite.close().await,
            Backend::Postgres(postgres) => postgres.close().await,
        }
    }
}

enum Address {
    Sqlite(PathBuf),
    Postgres,
}

fn address(url: &str) -> Result<Address, StoreError> {
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(Address::Postgres);
    }
    // A name with a question mark would be somebody's `?mode=rwc`, which would go unnoticed.
    if url.starts_with("sqlite:") && url.contains('?') {
        return Err(StoreError::invalid("sqlite:PATH", "takes nothing after a question mark"));
    }
    let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"));
    match path {
        Some(path) if !path.is_empty() && !path.starts_with(':') => Ok(Address::Sqlite(PathBuf::from(path))),
        // The address may hold a password, so only its beginning is repeated.
        _ => Err(StoreError::Address { scheme: url.split(':').next().unwrap_or_default().chars().take(20).collect() }),
    }
}

/// `limit` as SQL takes it: at least one row, at most a page.
fn page(limit: u32) -> i64 {
    i64::from(limit.clamp(1, PAGE_LEN_MAX))
}
