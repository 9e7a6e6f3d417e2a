//! A transaction of either database.

use std::sync::Arc;

use sqlx::{Postgres, Sqlite, Transaction};

use super::{
    checkpoints::Commits,
    error::StoreError,
    value::{Row, Value},
};

/// A transaction. Dropping it undoes what it did; [`Tx::commit`] makes it last.
///
/// Statements are constant text with `$1`, `$2`, ... for the values, which both databases understand. Where the two disagree a
/// caller asks [`Tx::is_postgres`]; sums need `CAST(... AS BIGINT)`, as PostgreSQL adds up to another type.
#[derive(Debug)]
pub struct Tx {
    of: Of,
    /// Where SQLite's commits are counted, of what writes.
    commits: Option<Arc<Commits>>,
}

#[derive(Debug)]
enum Of {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

macro_rules! bound {
    ($query:expr, $values:expr) => {{
        let mut query = $query;
        for value in $values {
            query = match *value {
                Value::Int(value) => query.bind(value),
                Value::Text(value) => query.bind(value.map(str::to_owned)),
                Value::Bytes(value) => query.bind(value.map(<[u8]>::to_vec)),
            };
        }
        query
    }};
}

impl Tx {
    pub(super) fn sqlite(tx: Transaction<'static, Sqlite>, commits: Option<Arc<Commits>>) -> Self {
        Tx { of: Of::Sqlite(tx), commits }
    }

    pub(super) fn postgres(tx: Transaction<'static, Postgres>) -> Self {
        Tx { of: Of::Postgres(tx), commits: None }
    }

    /// Whether it is PostgreSQL's.
    pub fn is_postgres(&self) -> bool {
        matches!(self.of, Of::Postgres(_))
    }

    /// Runs a statement; how many rows it changed. SQLite takes several at once, which share the values, and adds up the rows.
    pub async fn execute(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        check(values)?;
        match &mut self.of {
            Of::Sqlite(tx) => Ok(bound!(sqlx::query::<Sqlite>(sql), values).execute(&mut **tx).await?.rows_affected()),
            Of::Postgres(tx) => {
                Ok(bound!(sqlx::query::<Postgres>(sql), values).execute(&mut **tx).await?.rows_affected())
            }
        }
    }

    /// Runs a statement and reads all of its rows: the statement bounds how many.
    pub async fn rows(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        check(values)?;
        match &mut self.of {
            Of::Sqlite(tx) => {
                let rows = bound!(sqlx::query::<Sqlite>(sql), values).fetch_all(&mut **tx).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
            Of::Postgres(tx) => {
                let rows = bound!(sqlx::query::<Postgres>(sql), values).fetch_all(&mut **tx).await?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
        }
    }

    /// Its first row, if there is one.
    pub async fn row(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<Option<Row>, StoreError> {
        check(values)?;
        match &mut self.of {
            Of::Sqlite(tx) => {
                Ok(bound!(sqlx::query::<Sqlite>(sql), values).fetch_optional(&mut **tx).await?.map(Row::Sqlite))
            }
            Of::Postgres(tx) => {
                Ok(bound!(sqlx::query::<Postgres>(sql), values).fetch_optional(&mut **tx).await?.map(Row::Postgres))
            }
        }
    }

    /// The next number of a counter. Until the commit nobody else gets one, so numbers follow the order of commits and
    /// none is skipped.
    pub async fn next(&mut self, counter: &'static str) -> Result<i64, StoreError> {
        let sql = "UPDATE counters SET value = value + 1 WHERE name = $1 RETURNING value";
        match self.row(sql, &[Value::Text(Some(counter))]).await? {
            Some(row) => row.fields().int(),
            None => Err(StoreError::missing("counter", counter)),
        }
    }

    /// Makes it last. After [`StoreError::CommitUnknown`] nobody knows whether it does.
    pub async fn commit(self) -> Result<(), StoreError> {
        let done = match self.of {
            Of::Sqlite(tx) => tx.commit().await,
            Of::Postgres(tx) => tx.commit().await,
        };
        if let Some(commits) = self.commits {
            commits.count();
        }
        done.map_err(|error| StoreError::CommitUnknown(error.to_string()))
    }
}

/// PostgreSQL's text cannot hold a zero byte, and a refusal should not depend on the database.
fn check(values: &[Value<'_>]) -> Result<(), StoreError> {
    let zero = |value: &Value<'_>| matches!(value, Value::Text(Some(text)) if text.contains('\0'));
    if values.iter().any(zero) { Err(StoreError::invalid("text", "has a zero byte in it")) } else { Ok(()) }
}
