//! A store for one test, on either database.

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use weir_runtime::store::{Dialect, Origin, Store, StoreOptions};

use crate::postgres::Postgres;

/// One server for all tests of the process, while any of them runs.
static SERVER: Mutex<Option<Postgres>> = Mutex::new(None);
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// What a test is given.
pub(crate) struct Fixture {
    pub(crate) dialect: Dialect,
    pub(crate) url: String,
    pub(crate) options: StoreOptions,
    /// Where a superuser logs in.
    pub(crate) admin: String,
    folder: tempfile::TempDir,
}

impl Fixture {
    /// An empty file.
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("weir.db").display());
        Fixture { dialect: Dialect::Sqlite, admin: url.clone(), url, options: options(), folder }
    }

    /// An empty database, its owner, who is no superuser, and a role that only logs in.
    pub(crate) async fn postgres() -> Self {
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let name = |what: &str| format!("{what}_{number}");
        let (database, owner, login) = (name("test"), name("owner"), name("login"));
        let (root, url, owner_url, admin) = {
            let mut server = SERVER.lock().unwrap_or_else(|e| e.into_inner());
            let server = server.get_or_insert_with(Postgres::start);
            let url = |user: &str| server.url(user, &database);
            (server.url("postgres", "postgres"), url(&login), url(&owner), url("postgres"))
        };
        let mut root = PgConnection::connect(&root).await.unwrap();
        // Roles are the whole server's, so they are made where the tests cannot race.
        let roles = "DO $$ BEGIN PERFORM pg_advisory_xact_lock(7); \
             IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'weir_server') THEN \
             CREATE ROLE weir_server NOLOGIN; CREATE ROLE weir_app NOLOGIN; GRANT weir_app TO weir_server; END IF; END $$";
        sqlx::raw_sql(roles).execute(&mut root).await.unwrap();
        for sql in [
            format!("CREATE ROLE {owner} LOGIN"),
            format!("CREATE ROLE {login} LOGIN IN ROLE weir_server"),
            format!("CREATE DATABASE {database} OWNER {owner}"),
        ] {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut root).await.unwrap();
        }
        let options = StoreOptions { owner_url: Some(owner_url), ..options() };
        Fixture { dialect: Dialect::Postgres, url, options, admin, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) async fn open(&self) -> Store {
        Store::open(&self.url, &self.options).await.unwrap()
    }

    /// The file of SQLite.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("weir.db")
    }

    /// Takes away what keeps the ledger, and what is made of it, from being changed.
    pub(crate) async fn may_change_the_ledger(&self) {
        // The rest the owner of PostgreSQL's tables may anyway.
        self.tamper(match self.dialect {
            Dialect::Sqlite => {
                "DROP TRIGGER ledger_stays; DROP TRIGGER ledger_remains; DROP TRIGGER months_stay; \
                 DROP TRIGGER anchors_stay; DROP TRIGGER anchors_remain; DROP TRIGGER invoices_stay"
            }
            Dialect::Postgres => "DROP TRIGGER ledger_remains ON ledger; DROP TRIGGER months_stay ON months",
        })
        .await;
    }

    /// What somebody does to the database behind the store's back.
    pub(crate) async fn tamper(&self, sql: &'static str) {
        match self.dialect {
            Dialect::Sqlite => {
                let mut connection = SqliteConnection::connect(&self.admin).await.unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Dialect::Postgres => {
                let mut connection = PgConnection::connect(&self.admin).await.unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }
}

fn options() -> StoreOptions {
    let origin = Origin { node: "n1".into(), build: "b1".into(), config: "c1".into() };
    StoreOptions { origin, ..StoreOptions::default() }
}
