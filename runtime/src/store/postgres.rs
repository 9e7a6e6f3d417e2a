//! PostgreSQL: the owner's role migrates, and the server works as `weir_server`, which owns nothing.
//!
//! The login role needs membership of `weir_server` (the migration grants it to whoever ran it; for another role:
//! `GRANT weir_server TO login`). Each connection becomes `weir_server` before its first use; [`Postgres::read_as`]
//! becomes `weir_app` for one transaction, to whom row security shows one tenant.

use std::{str::FromStr, time::Duration};

use sqlx::{
    Connection, Executor, PgPool, Row as _,
    migrate::MigrateError,
    postgres::{PgConnectOptions, PgConnection, PgPoolOptions},
};

use super::{Dialect, StoreOptions, error::StoreError, schema, tx::Tx};

/// What a connection becomes, and what it promises. A commit has reached the disk when it returns; a transaction that its
/// client forgot is undone and its locks given back.
const BECOME: &str = "SET ROLE weir_server; SET synchronous_commit = on; SET TIME ZONE 'UTC'; \
                      SET idle_in_transaction_session_timeout = '5s'; SET default_transaction_isolation = 'read committed'";

/// A pool of connections as `weir_server`.
#[derive(Debug, Clone)]
pub(super) struct Postgres {
    pool: PgPool,
}

impl Postgres {
    pub(super) async fn open(url: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        let login = PgConnectOptions::from_str(url)?;
        let owner = match &options.owner_url {
            Some(url) => PgConnectOptions::from_str(url)?,
            None => login.clone(),
        };
        migrate(&owner, options).await?;

        let mut connection = connect(&login, options.patience).await?;
        if let Err(error) = connection.execute(BECOME).await {
            let user = login.get_username();
            let role = "cannot take the role weir_server: let the owner run";
            return Err(StoreError::Rights(format!("{user} {role} `GRANT weir_server TO {user}` ({error})")));
        }
        check(&mut connection).await?;
        connection.close().await?;

        let patience = options.patience;
        let pool = PgPoolOptions::new()
            .max_connections(options.connections.max(1))
            .acquire_timeout(patience)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    connection.execute(BECOME).await?;
                    let wait = format!("{}ms", patience.as_millis().max(1));
                    let limit = "SELECT set_config('lock_timeout', $1, false)";
                    sqlx::query(limit).bind(wait).execute(connection).await?;
                    Ok(())
                })
            })
            .connect_with(login)
            .await?;
        Ok(Postgres { pool })
    }

    pub(super) async fn read(&self) -> Result<Tx, StoreError> {
        Ok(Tx::postgres(self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?))
    }

    pub(super) async fn read_as(&self, tenant: &str) -> Result<Tx, StoreError> {
        let mut tx = self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
        sqlx::query("SELECT set_config('role', 'weir_app', true), set_config('weir.tenant', $1, true)")
            .bind(tenant)
            .execute(&mut *tx)
            .await?;
        Ok(Tx::postgres(tx))
    }

    pub(super) async fn write(&self) -> Result<Tx, StoreError> {
        Ok(Tx::postgres(self.pool.begin().await?))
    }

    pub(super) async fn close(self) {
        self.pool.close().await;
    }
}

async fn connect(to: &PgConnectOptions, patience: Duration) -> Result<PgConnection, StoreError> {
    match tokio::time::timeout(patience, PgConnection::connect_with(to)).await {
        Ok(connection) => Ok(connection?),
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {patience:?}"))),
    }
}

/// The role that the server has become neither owns the tables nor passes by row security, and commits wait for the disk.
async fn check(connection: &mut PgConnection) -> Result<(), StoreError> {
    let sql = "SELECT r.rolsuper OR r.rolbypassrls, EXISTS (SELECT 1 FROM pg_tables t WHERE t.schemaname = current_schema() \
               AND pg_has_role(r.rolname, t.tableowner, 'USAGE')) FROM pg_roles r WHERE r.rolname = current_user";
    let row = sqlx::query(sql).fetch_one(&mut *connection).await?;
    let (bypasses, owns): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    if bypasses {
        return Err(StoreError::Rights(
            "weir_server passes by row security: ALTER ROLE weir_server NOSUPERUSER NOBYPASSRLS".into(),
        ));
    }
    if owns {
        return Err(StoreError::Rights("weir_server owns tables: give them to the owner's role".into()));
    }
    let fsync: String = sqlx::query("SELECT current_setting('fsync')").fetch_one(connection).await?.try_get(0)?;
    if fsync != "on" {
        return Err(StoreError::Setting { setting: "fsync", found: fsync, wanted: "on" });
    }
    Ok(())
}

async fn migrate(owner: &PgConnectOptions, options: &StoreOptions) -> Result<(), StoreError> {
    let mut connection = connect(owner, options.patience).await?;
    let there = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    let there: bool = sqlx::query(there).fetch_one(&mut connection).await?.try_get(0)?;
    let found = match there {
        false => 0,
        true => sqlx::query(schema::VERSION_SQL).fetch_one(&mut connection).await?.try_get(0)?,
    };
    schema::check_known(found)?;
    if found < schema::KNOWN {
        let older = |why: String| StoreError::SchemaOlder { found, known: schema::KNOWN, why };
        if !options.migrate {
            return Err(older("migrations are turned off".into()));
        }
        // On a connection of its own, whose end gives back the migrations' lock however they went.
        if let Err(error) = schema::migrator(Dialect::Postgres).run(&mut connection).await {
            return Err(if denied(&error) { older(error.to_string()) } else { error.into() });
        }
    }
    connection.close().await?;
    Ok(())
}

/// Whether it failed for want of rights.
fn denied(error: &MigrateError) -> bool {
    let (MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) = error else { return false };
    matches!(cause, sqlx::Error::Database(said) if said.code().as_deref() == Some("42501"))
}
