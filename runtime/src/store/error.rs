//! What can go wrong with a store, by what its caller can do about it.

use std::path::PathBuf;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is neither of the two kinds.
    #[error("the store's address begins with `{scheme}`: use sqlite:PATH or postgres://...")]
    Address {
        /// What stands before the first colon.
        scheme: String,
    },
    /// Another process has the file.
    #[error("{path} is in use by {by}: stop it, or speak to it over its admin address", path = path.display())]
    Owned {
        /// The database file.
        path: PathBuf,
        /// `process 123`, as far as it is known.
        by: String,
    },
    /// The file cannot be used.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// SQLite would leave out commits that were on the disk.
    #[error(
        "{path}: {what}: put a whole copy of the database in its place; without one, removing this file gives up those commits",
        path = path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        what: String,
    },
    /// A later version of Weir has been here.
    #[error("the store has schema {found}, and this version of weir knows up to {known}: use the newer weir")]
    SchemaNewer {
        /// What the store has.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// The schema must be brought up to date first, by whoever may.
    #[error(
        "the store has schema {found} of {known}, and this role may not migrate it: give the owner's address ({why})"
    )]
    SchemaOlder {
        /// What the store has; 0 is nothing.
        found: i64,
        /// The newest that this program knows.
        known: i64,
        /// What the database said.
        why: String,
    },
    /// A migration was changed after it ran, or stopped half-way.
    #[error("the store's schema is not what weir made: {0}")]
    Schema(String),
    /// The SQLite that was built in has a known defect.
    #[error("SQLite {found} can lose data: at least {least} is needed")]
    SqliteTooOld {
        /// What is built in.
        found: String,
        /// The first without the defect.
        least: &'static str,
    },
    /// SQLite or PostgreSQL does not do what was asked of it.
    #[error("the database has {setting} = {found}, and {wanted} is needed")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Its value.
        found: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// The login role cannot become the server's role, or that one has more rights than it may have.
    #[error("{0}")]
    Rights(String),
    /// There is no such row.
    #[error("there is no {kind} `{id}`")]
    Missing {
        /// `tenant`, `plan`, ...
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The id, or what must be unique, is taken.
    #[error("{kind} `{id}` exists already, or shares what must be unique with another")]
    Exists {
        /// `tenant`, `plan`, ...
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// Somebody else has changed it in the meantime: read it again.
    #[error("{kind} `{id}` has version {found} by now, and the change was made from {expected}")]
    Conflict {
        /// `tenant`, `plan`, ...
        kind: &'static str,
        /// Its id.
        id: String,
        /// What the caller had read.
        expected: i64,
        /// What there is.
        found: i64,
    },
    /// Something else needs it.
    #[error("{kind} `{id}` is in use: {by}")]
    Needed {
        /// `plan`, ...
        kind: &'static str,
        /// Its id.
        id: String,
        /// By what.
        by: String,
    },
    /// A value that may not be stored.
    #[error("{field}: {message}")]
    Invalid {
        /// Which.
        field: String,
        /// Why.
        message: String,
    },
    /// A row does not say what its type allows: somebody else has written to the database.
    #[error("{table} `{id}` cannot be read: {message}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// Its id.
        id: String,
        /// What is wrong.
        message: String,
    },
    /// The database cannot be reached, is full, or took too long. Nothing has happened; later it may.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// The database has undone this transaction for the sake of another. Nothing has happened; do it again.
    #[error("the store asks to try again: {0}")]
    Retry(String),
    /// The commit failed so that nobody knows whether it took place: read back by id before doing anything else.
    #[error("nobody knows whether the commit took place: {0}")]
    CommitUnknown(String),
    /// Anything else the database says.
    #[error("the store failed: {0}")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    pub(super) fn missing(kind: &'static str, id: &str) -> Self {
        StoreError::Missing { kind, id: id.to_owned() }
    }

    pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        StoreError::Invalid { field: field.into(), message: message.into() }
    }

    pub(crate) fn corrupt(table: &'static str, id: &str, message: impl ToString) -> Self {
        StoreError::Corrupt { table, id: id.to_owned(), message: message.to_string() }
    }

    /// The same, where a row that must be unique was not.
    pub(super) fn or_exists(self, kind: &'static str, id: &str) -> Self {
        match self {
            StoreError::Database(sqlx::Error::Database(e)) if e.is_unique_violation() => {
                StoreError::Exists { kind, id: id.to_owned() }
            }
            other => other,
        }
    }

    /// The same, where the row refers to one that is not there.
    pub(super) fn or_missing(self, kind: &'static str, id: &str) -> Self {
        match self {
            StoreError::Database(sqlx::Error::Database(e)) if e.is_foreign_key_violation() => {
                StoreError::missing(kind, id)
            }
            other => other,
        }
    }
}

/// SQLite's primary codes for what may pass: busy, locked, an error of the disk, no space, cannot open. Extended codes have them in
/// their low byte.
const SQLITE_PASSING: [i64; 5] = [5, 6, 10, 13, 14];
/// PostgreSQL's classes of errors for the same: connection, resources, an operator's intervention, the system.
const POSTGRES_PASSING: [&str; 4] = ["08", "53", "57", "58"];

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => {
                StoreError::Unavailable(error.to_string())
            }
            E::Database(said) => {
                let code = said.code().unwrap_or_default();
                if matches!(&*code, "40001" | "40P01" | "55P03") {
                    return StoreError::Retry(error.to_string());
                }
                // Five characters are PostgreSQL's, fewer (a number) are SQLite's.
                let passing = match code.parse::<i64>() {
                    Ok(number) if code.len() < 5 => SQLITE_PASSING.contains(&(number & 0xff)),
                    _ => POSTGRES_PASSING.iter().any(|class| code.starts_with(class)),
                };
                if passing { StoreError::Unavailable(error.to_string()) } else { StoreError::Database(error) }
            }
            _ => StoreError::Database(error),
        }
    }
}
