//! Opening a store: who may, and who is told why not.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use weir_runtime::store::{Actor, Limits, Store, StoreError, StoreOptions};

use crate::{fixture::Fixture, postgres::Postgres};

#[tokio::test]
async fn a_second_opener_of_a_file_is_refused() {
    let on = Fixture::sqlite().await;
    let first = on.open().await;
    let link = on.path().with_file_name("link.db");
    std::os::unix::fs::symlink(on.path(), &link).unwrap();
    for url in [on.url.clone(), format!("sqlite:{}", link.display())] {
        let refused = Store::open(&url, &on.options).await.unwrap_err();
        let told = format!("weir.db is in use by process {}", std::process::id());
        assert!(refused.to_string().contains(&told), "{refused}");
    }
    first.close().await;
    on.open().await;
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    let on = Fixture::sqlite().await;
    std::fs::write(on.path(), b"").unwrap();
    std::fs::set_permissions(on.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = on.open().await;
    store.change(&Actor::system(), 0).await.unwrap().commit().await.unwrap();
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let path = format!("{}{suffix}", on.path().display());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path}");
    }
}

#[tokio::test]
async fn readers_of_a_file_cannot_write() {
    let on = Fixture::sqlite().await;
    let store = on.open().await;
    let mut tx = store.read().await.unwrap();
    assert!(tx.execute("UPDATE counters SET value = 9", &[]).await.is_err());
}

#[tokio::test]
async fn other_addresses_are_refused_without_repeating_them() {
    for url in ["", "sqlite:", "sqlite::memory:", "mysql://user:secret@host/db", "secret"] {
        let refused = Store::open(url, &StoreOptions::default()).await.unwrap_err();
        assert!(matches!(refused, StoreError::Address { .. }), "{url}: {refused}");
        assert!(!refused.to_string().contains("user:secret"), "{refused}");
    }
}

#[tokio::test]
async fn what_is_no_database_is_refused() {
    let on = Fixture::sqlite().await;
    std::fs::write(on.path(), vec![b'x'; 10_000]).unwrap();
    let refused = Store::open(&on.url, &on.options).await.unwrap_err();
    assert!(refused.to_string().contains("not a database"), "{refused}");
}

#[tokio::test]
async fn an_old_schema_is_not_migrated_unasked() {
    for on in [Fixture::sqlite().await, Fixture::postgres().await] {
        let options = StoreOptions { migrate: false, ..on.options.clone() };
        let refused = Store::open(&on.url, &options).await.unwrap_err();
        assert!(matches!(refused, StoreError::SchemaOlder { found: 0, .. }), "{refused}");
    }
}

#[tokio::test]
async fn a_role_that_may_not_migrate_is_told_who_may() {
    let on = Fixture::postgres().await;
    let options = StoreOptions { owner_url: None, ..on.options.clone() };
    let refused = Store::open(&on.url, &options).await.unwrap_err();
    assert!(matches!(refused, StoreError::SchemaOlder { found: 0, .. }), "{refused}");
    // Once the owner has migrated, the role's own address is enough.
    on.open().await.close().await;
    Store::open(&on.url, &options).await.unwrap().close().await;
}

#[tokio::test]
async fn an_unreachable_server_is_unavailable() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("postgres://weir@127.0.0.1:{closed}/weir");
    let refused = Store::open(&url, &StoreOptions::default()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
}

/// A fresh server, as its owner finds it: one role that may make roles, one address, nothing prepared.
#[tokio::test]
async fn one_address_is_enough_on_a_fresh_server() {
    use sqlx::Connection;
    let server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let mut root = sqlx::PgConnection::connect(&server.url("postgres", "postgres")).await.unwrap();
    for sql in ["CREATE ROLE weir LOGIN CREATEROLE", "CREATE DATABASE weir OWNER weir"] {
        sqlx::raw_sql(sql).execute(&mut root).await.unwrap();
    }
    root.close().await.unwrap();
    let url = server.url("weir", "weir");
    // Two that start at once migrate once.
    let options = StoreOptions::default();
    let (first, second) = tokio::join!(Store::open(&url, &options), Store::open(&url, &options));
    for store in [first.unwrap(), second.unwrap()] {
        assert_eq!(store.plans("", 10).await.unwrap().len(), 3);
        let mut tx = store.read().await.unwrap();
        let row = tx.row("SELECT CAST(current_user AS text)", &[]).await.unwrap().unwrap();
        assert_eq!(row.fields().text().unwrap(), "weir_server");
        drop(tx);
        store.close().await;
    }
}

/// What was committed is there after the server lost everything but its disk, and the same handle goes on.
#[tokio::test]
async fn commits_outlive_the_server() {
    let mut server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let options = StoreOptions { patience: Duration::from_secs(30), ..StoreOptions::default() };
    let store = Store::open(&server.url("postgres", "postgres"), &options).await.unwrap();
    for round in 1..=3 {
        let id = format!("plan{round}");
        let mut change = store.change(&Actor::system(), round).await.unwrap();
        change.create_plan(&id, &Limits::default()).await.unwrap();
        change.commit().await.unwrap();
        let mut lost = store.change(&Actor::system(), round).await.unwrap();
        lost.create_plan("lost", &Limits::default()).await.unwrap();
        server = tokio::task::spawn_blocking(move || {
            server.crash();
            server
        })
        .await
        .unwrap();
        assert!(matches!(lost.commit().await, Err(StoreError::CommitUnknown(_))));
        store.plan(&id).await.unwrap();
        assert!(matches!(store.plan("lost").await, Err(StoreError::Missing { .. })));
        assert_eq!(store.audit_verify().await.unwrap().unwrap().rows, round as u64);
    }
}
