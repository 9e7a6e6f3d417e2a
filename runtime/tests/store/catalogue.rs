//! Both databases have the same tables, with the same columns.

use std::collections::BTreeMap;

use sqlx::{Connection, PgConnection, Row, SqliteConnection};

use crate::fixture::Fixture;

/// By table and column: its type, whether it may be absent, and its place in the primary key (0: none).
type Columns = BTreeMap<(String, String), (String, bool, i64)>;

async fn of_sqlite() -> Columns {
    let on = Fixture::sqlite().await;
    on.open().await.close().await;
    let mut connection = SqliteConnection::connect(&on.url).await.unwrap();
    let sql = "SELECT t.name, c.name, lower(c.type), c.\"notnull\", c.pk FROM sqlite_schema t, pragma_table_info(t.name) c \
               WHERE t.type = 'table' AND t.name NOT LIKE '\\_sqlx%' ESCAPE '\\'";
    let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
    let column = |row: &sqlx::sqlite::SqliteRow| {
        ((row.get(0), row.get(1)), (row.get::<String, _>(2), row.get::<i64, _>(3) == 0, row.get(4)))
    };
    rows.iter().map(column).collect()
}

async fn of_postgres() -> Columns {
    let on = Fixture::postgres().await;
    on.open().await.close().await;
    let mut connection = PgConnection::connect(&on.admin).await.unwrap();
    let sql = "SELECT CAST(c.table_name AS text), CAST(c.column_name AS text), CAST(c.data_type AS text), c.is_nullable = 'YES', \
               CAST(COALESCE((SELECT k.ordinal_position FROM information_schema.key_column_usage k \
                 JOIN information_schema.table_constraints p USING (constraint_schema, constraint_name) \
                 WHERE p.constraint_type = 'PRIMARY KEY' AND k.table_name = c.table_name AND k.column_name = c.column_name), 0) \
               AS bigint) FROM information_schema.columns c WHERE c.table_schema = 'public' AND c.table_name <> '_sqlx_migrations'";
    let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
    let column = |row: &sqlx::postgres::PgRow| {
        let kind = match row.get::<String, _>(2).as_str() {
            "bigint" => "integer".to_owned(),
            "bytea" => "blob".to_owned(),
            other => other.to_owned(),
        };
        ((row.get(0), row.get(1)), (kind, row.get(3), row.get(4)))
    };
    rows.iter().map(column).collect()
}

#[tokio::test]
async fn both_have_the_same_columns() {
    let (sqlite, postgres) = (of_sqlite().await, of_postgres().await);
    assert!(sqlite.len() > 100, "the catalogue was read");
    for (column, shape) in &sqlite {
        assert_eq!(postgres.get(column), Some(shape), "{column:?} in PostgreSQL");
    }
    assert_eq!(sqlite.len(), postgres.len(), "PostgreSQL has no others");
}

#[test]
fn migrations_have_the_same_numbers_and_names() {
    let names = |folder: &str| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(folder);
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names("sqlite"), names("postgres"));
}
