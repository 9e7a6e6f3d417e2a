//! What PostgreSQL itself keeps the server from.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use weir_runtime::store::{ANY, Actor, NewTenant, Price, Store, StoreError, TenantSettings};

use crate::fixture::Fixture;

async fn with_two_tenants(on: &Fixture) -> Store {
    let store = on.open().await;
    let mut change = store.change(&Actor::system(), 1).await.unwrap();
    for (id, plan) in [("acme", "starter"), ("rival", "professional")] {
        let settings = TenantSettings::named(id, plan);
        change.create_tenant(&NewTenant { id: id.into(), settings }).await.unwrap();
    }
    for plan in [ANY, "starter", "professional", "enterprise"] {
        let any = || ANY.to_owned();
        let (model, plan) = (any(), plan.to_owned());
        let price = Price { model, plan, device_class: any(), from_us: 1, micros_per_device_hour: 1 };
        change.set_price(&price, 0).await.unwrap();
    }
    change.commit().await.unwrap();
    store
}

/// Connects as the role that serves and becomes the one that sees a tenant, without the store between.
async fn as_app(on: &Fixture, tenant: Option<&str>) -> PgConnection {
    let mut connection = PgConnection::connect(&on.url).await.unwrap();
    sqlx::raw_sql("SET ROLE weir_app").execute(&mut connection).await.unwrap();
    if let Some(tenant) = tenant {
        let sql = "SELECT set_config('weir.tenant', $1, false)";
        sqlx::query(sql).bind(tenant).execute(&mut connection).await.unwrap();
    }
    connection
}

#[tokio::test]
async fn a_foreign_tenants_rows_are_not_there() {
    let on = Fixture::postgres().await;
    let _store = with_two_tenants(&on).await;
    for (tenant, sees) in
        [(Some("acme"), vec!["acme"]), (Some("rival"), vec!["rival"]), (Some(""), vec![]), (None, vec![])]
    {
        let mut connection = as_app(&on, tenant).await;
        for sql in ["SELECT id FROM tenants ORDER BY id", "SELECT tenant FROM audit ORDER BY tenant"] {
            let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
            let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            assert_eq!(ids, sees, "{tenant:?}: {sql}");
        }
        // There are three plans, with a price each and one for all: it sees its own, and what is for all.
        for (sql, all) in [("SELECT id FROM plans", 1), ("SELECT model FROM prices", 2)] {
            let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
            let there = if sees.is_empty() { all - 1 } else { all };
            assert_eq!(rows.len(), there, "{tenant:?}: {sql}");
        }
        // By name it is as one that never was.
        let foreign =
            sqlx::query("SELECT id FROM tenants WHERE id = 'rival'").fetch_optional(&mut connection).await.unwrap();
        assert_eq!(foreign.is_some(), tenant == Some("rival"));
    }
}

#[tokio::test]
async fn a_tenants_role_changes_nothing_and_sees_no_secrets() {
    let on = Fixture::postgres().await;
    let _store = with_two_tenants(&on).await;
    let mut connection = as_app(&on, Some("acme")).await;
    for sql in [
        "UPDATE tenants SET name = 'x'",
        "DELETE FROM tenants",
        "SELECT hash FROM keys",
        "SELECT * FROM keys",
        "SELECT secret FROM webhooks",
        "SELECT body FROM idempotency",
        "SELECT * FROM audit",
        "SELECT actor FROM audit",
        "SELECT credential, source, agent FROM audit",
        "SELECT after FROM audit",
        "SELECT * FROM counters",
        "SELECT * FROM months",
        "SELECT * FROM anchors",
        "SELECT * FROM archived",
        "DELETE FROM ledger",
        "INSERT INTO windows VALUES ('acme', 'device_ns', 'hour', 0, 0, 0, 0)",
        "SET ROLE postgres",
        "ALTER TABLE tenants DISABLE ROW LEVEL SECURITY",
    ] {
        let refused = sqlx::raw_sql(sql).execute(&mut connection).await.unwrap_err();
        let code = refused.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
        assert_eq!(code, "42501", "{sql}: {refused}");
    }
}

#[tokio::test]
async fn the_stores_own_way_to_a_tenants_rows_is_that_role() {
    let on = Fixture::postgres().await;
    let store = with_two_tenants(&on).await;
    let mut tx = store.read_as("acme").await.unwrap();
    let ids: Vec<String> = tx.tenants("", 10).await.unwrap().into_iter().map(|tenant| tenant.id).collect();
    assert_eq!(ids, ["acme"]);
    assert!(matches!(tx.tenant("rival").await, Err(StoreError::Missing { .. })));
    drop(tx);
    // The connection that goes back to the pool is the server's again.
    for _ in 0..8 {
        assert_eq!(store.tenants("", 10).await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn the_server_cannot_change_what_is_only_added_to() {
    let on = Fixture::postgres().await;
    let store = with_two_tenants(&on).await;
    // The rows are there, so that there is something to refuse.
    weir_runtime::ledger::begin(&store, "one", 1).await.unwrap();
    for sql in [
        "UPDATE audit SET actor = 'x'",
        "DELETE FROM audit",
        "UPDATE ledger SET device_ns = 0",
        "DELETE FROM ledger",
        "TRUNCATE ledger",
        "ALTER TABLE ledger DISABLE TRIGGER ledger_remains",
        "DROP TABLE audit",
        "UPDATE anchors SET seq = 1",
        "DELETE FROM anchors",
        // Of a month only that it was archived can be said, and what that covers follows from its statement.
        "UPDATE months SET body = ''",
        "UPDATE months SET signature = hash",
        "UPDATE months SET closed_us = 1, archived_us = 2",
        "DELETE FROM months",
        "INSERT INTO archived (epoch, seq) VALUES (1, 1)",
        "UPDATE archived SET seq = 9",
        "DELETE FROM archived",
        "CREATE OR REPLACE FUNCTION weir_ledger_remains() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
    ] {
        let mut tx = store.write().await.unwrap();
        let refused = tx.execute(sql, &[]).await.unwrap_err();
        let StoreError::Database(sqlx::Error::Database(said)) = &refused else { panic!("{sql}: {refused}") };
        assert_eq!(said.code().as_deref(), Some("42501"), "{sql}: {refused}");
    }
}

#[tokio::test]
async fn the_owner_sees_no_tenants_rows_either() {
    let on = Fixture::postgres().await;
    let _store = with_two_tenants(&on).await;
    let mut owner = PgConnection::connect(on.options.owner_url.as_deref().unwrap()).await.unwrap();
    let rows = sqlx::query("SELECT id FROM tenants").fetch_all(&mut owner).await.unwrap();
    assert_eq!(rows.len(), 0);
}

#[tokio::test]
async fn every_table_with_a_tenant_forces_row_security() {
    let on = Fixture::postgres().await;
    on.open().await.close().await;
    let mut admin = PgConnection::connect(&on.admin).await.unwrap();
    let sql = "SELECT CAST(c.relname AS text), c.relrowsecurity AND c.relforcerowsecurity, \
               (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid) FROM pg_class c \
               WHERE c.relkind = 'r' AND c.relnamespace = CAST('public' AS regnamespace) \
               AND (c.relname = 'tenants' OR EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant'))";
    let rows = sqlx::query(sql).fetch_all(&mut admin).await.unwrap();
    assert!(rows.len() >= 10, "{}", rows.len());
    for row in rows {
        assert!(row.get::<bool, _>(1), "{}", row.get::<String, _>(0));
        assert_eq!(row.get::<i64, _>(2), 2, "{}", row.get::<String, _>(0));
    }
}

/// A server's role that could pass by row security, or owns tables, is refused at the start.
#[tokio::test]
async fn a_role_with_too_many_rights_is_refused() {
    let on = Fixture::postgres().await;
    on.open().await.close().await;
    // Roles are the whole server's; that weir_server owns a table is this database's matter.
    on.tamper("GRANT CREATE ON SCHEMA public TO weir_server; ALTER TABLE meta OWNER TO weir_server").await;
    let refused = Store::open(&on.url, &on.options).await.unwrap_err();
    assert!(refused.to_string().contains("owns tables"), "{refused}");
    // And a login that is no member cannot start.
    let mut admin = PgConnection::connect(&on.admin).await.unwrap();
    let login = on.url.split(['/', '@']).nth(2).unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("REVOKE weir_server FROM {login}"))).execute(&mut admin).await.unwrap();
    let refused = Store::open(&on.url, &on.options).await.unwrap_err();
    assert!(refused.to_string().contains(&format!("GRANT weir_server TO {login}")), "{refused}");
}
