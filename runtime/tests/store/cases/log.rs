//! The audit log, and what replicas learn from it.

use super::*;

pub(crate) async fn the_log_tells_who_did_what(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme", "rival"]).await;
    let mut change = store.change(&actor(), NOW + 9).await.unwrap();
    change.set_status("acme", 1, Status::Suspended, Some("unpaid")).await.unwrap();
    let refused = Event::of("key.create", "key", "wk_1").tenant(Some("rival")).refused("wider than its creator");
    change.record(refused.approval("ap_1")).await.unwrap();
    change.commit().await.unwrap();

    let log = store.audit(None, 0, 10).await.unwrap();
    let told: Vec<(i64, &str, &str, &str)> =
        log.iter().map(|row| (row.seq, &*row.action, &*row.target, &*row.result)).collect();
    assert_eq!(
        told,
        [
            (1, "tenant.create", "acme", "done"),
            (2, "tenant.create", "rival", "done"),
            (3, "tenant.suspend", "acme", "done"),
            (4, "key.create", "wk_1", "refused"),
        ]
    );
    let row = &log[2];
    assert_eq!((row.actor_kind.as_str(), row.actor.as_str(), row.at_us), ("operator", "olga", NOW + 9));
    assert_eq!((row.credential.as_deref(), row.method.as_deref()), (Some("wk_operator"), Some("key")));
    assert_eq!((row.node.as_str(), row.build.as_str(), row.config.as_str()), ("n1", "b1", "c1"));
    assert_eq!(row.reason.as_deref(), Some("unpaid"));
    let settings = |text: &Option<String>| serde_json::from_str::<TenantSettings>(text.as_deref().unwrap()).unwrap();
    assert_eq!(settings(&row.before).status, Status::Active);
    assert_eq!(settings(&row.after), store.tenant("acme").await.unwrap().settings);
    // A tenant's own part.
    let own: Vec<i64> = store.audit(Some("rival"), 0, 10).await.unwrap().iter().map(|row| row.seq).collect();
    assert_eq!(own, [2, 4]);
    let proof = store.audit_verify().await.unwrap().unwrap();
    assert_eq!((proof.rows, proof.head), (4, log[3].hash));
    // Hashes of keys are nowhere in it.
    let mut change = store.change(&actor(), NOW).await.unwrap();
    change.create_key(&NewKey { hash: *b"hash-of-a-secret-that-is-nowhere", ..key_of("acme", "wk_1") }).await.unwrap();
    change.commit().await.unwrap();
    assert!(!format!("{:?}", store.audit(None, 4, 10).await.unwrap()).contains("hash-of-a-secret"));
}

pub(crate) async fn a_flipped_byte_of_the_log_is_named(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["a", "b", "c", "d"]).await;
    let free = match on.dialect {
        Dialect::Sqlite => "DROP TRIGGER audit_stays",
        Dialect::Postgres => "SELECT 1",
    };
    on.tamper(free).await;
    assert_eq!(store.audit_verify().await.unwrap().unwrap().rows, 4);
    for (plant, undo, seq, what) in [
        (
            "UPDATE audit SET after = replace(after, 'starter', 'startes') WHERE seq = 3",
            "UPDATE audit SET after = replace(after, 'startes', 'starter') WHERE seq = 3",
            3,
            "its columns are not those that were hashed",
        ),
        (
            "UPDATE audit SET actor = 'paul', credential = NULL WHERE seq = 1",
            "UPDATE audit SET actor = 'olga', credential = 'wk_operator' WHERE seq = 1",
            1,
            "its columns are not those that were hashed",
        ),
        (
            "UPDATE audit SET prev = hash WHERE seq = 2",
            "UPDATE audit SET prev = (SELECT hash FROM audit WHERE seq = 1) WHERE seq = 2",
            2,
            "it does not follow the row before it",
        ),
        (
            // A column that is absent is not one that is empty.
            "UPDATE audit SET reason = '' WHERE seq = 4",
            "UPDATE audit SET reason = NULL WHERE seq = 4",
            4,
            "its columns are not those that were hashed",
        ),
    ] {
        on.tamper(plant).await;
        assert_eq!(store.audit_verify().await.unwrap(), Err(AuditFault { seq, what }), "{plant}");
        on.tamper(undo).await;
        assert!(store.audit_verify().await.unwrap().is_ok(), "{undo}");
    }
}

pub(crate) async fn rows_cut_from_the_log_are_missed(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["a", "b", "c", "d"]).await;
    if on.dialect == Dialect::Sqlite {
        on.tamper("DROP TRIGGER audit_remains").await;
    }
    let missing = |seq| Err(AuditFault { seq, what: "it is missing" });
    on.tamper("DELETE FROM audit WHERE seq = 4").await;
    assert_eq!(store.audit_verify().await.unwrap(), missing(4), "the end");
    on.tamper("DELETE FROM audit WHERE seq = 2").await;
    assert_eq!(store.audit_verify().await.unwrap(), missing(2), "the middle");
}

pub(crate) async fn changes_are_told_in_the_order_of_commits(on: Fixture) {
    let store = on.open().await;
    assert_eq!(store.changes_head().await.unwrap(), 0);
    with_tenants(&store, &["acme"]).await;
    let head = store.changes_head().await.unwrap();
    assert_eq!(store.changes(head).await.unwrap(), []);
    let mut change = store.change(&actor(), NOW).await.unwrap();
    change.create_key(&key_of("acme", "wk_1")).await.unwrap();
    change.update_plan("starter", 1, &limits(r#"{"weight":2}"#)).await.unwrap();
    // Nobody hears of what is not committed.
    assert_eq!(store.changes(head).await.unwrap(), []);
    change.commit().await.unwrap();
    let told: Vec<(i64, String, String)> =
        store.changes(head).await.unwrap().into_iter().map(|c| (c.seq, c.kind, c.id)).collect();
    assert_eq!(told, [(head + 1, "key".into(), "wk_1".into()), (head + 2, "plan".into(), "starter".into())]);
}

pub(crate) async fn changes_at_once_wait_for_each_other(on: Fixture) {
    let store = on.open().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut change = store.change(&actor(), NOW).await.unwrap();
            change.create_tenant(&tenant_of(&format!("t{number}"))).await.unwrap();
            change.create_key(&key_of(&format!("t{number}"), &format!("wk_{number}"))).await.unwrap();
            change.commit().await.unwrap();
        });
    }
    tasks.join_all().await;
    assert_eq!(store.audit_verify().await.unwrap().unwrap().rows, 40);
    let mut numbers: Vec<u32> = store.tenants("", 100).await.unwrap().iter().map(|t| t.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
}
