//! The schema's versions, built into the program.

use std::borrow::Cow;

use sqlx::{
    SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use super::{Dialect, error::StoreError};

/// Number, what it makes, and its text for SQLite and for PostgreSQL.
const MIGRATIONS: [(i64, &str, &str, &str); 3] = [
    (
        1,
        "store",
        include_str!("../../migrations/sqlite/0001_store.sql"),
        include_str!("../../migrations/postgres/0001_store.sql"),
    ),
    (
        2,
        "invoices",
        include_str!("../../migrations/sqlite/0002_invoices.sql"),
        include_str!("../../migrations/postgres/0002_invoices.sql"),
    ),
    (
        3,
        "months",
        include_str!("../../migrations/sqlite/0003_months.sql"),
        include_str!("../../migrations/postgres/0003_months.sql"),
    ),
];

/// The newest version that this program knows.
pub(super) const KNOWN: i64 = MIGRATIONS[MIGRATIONS.len() - 1].0;

/// All migrations of a dialect, to be run in order.
pub(super) fn migrator(dialect: Dialect) -> Migrator {
    let of = |&(version, name, sqlite, postgres): &(i64, &'static str, &'static str, &'static str)| {
        let sql = match dialect {
            Dialect::Sqlite => sqlite,
            Dialect::Postgres => postgres,
        };
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(MIGRATIONS.iter().map(of).collect())
}

/// Refuses a store that a newer program has migrated.
pub(super) fn check_known(found: i64) -> Result<(), StoreError> {
    if found > KNOWN { Err(StoreError::SchemaNewer { found, known: KNOWN }) } else { Ok(()) }
}

/// The number of the newest migration that has run, where the table that says so is there.
pub(super) const VERSION_SQL: &str = "SELECT CAST(COALESCE(MAX(version), 0) AS BIGINT) FROM _sqlx_migrations";

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) => error.into(),
            MigrateError::ExecuteMigration(error, version) => {
                StoreError::Schema(format!("migration {version} failed: {error}"))
            }
            other => StoreError::Schema(other.to_string()),
        }
    }
}
