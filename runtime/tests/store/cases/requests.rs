//! What requests leave behind, and the store as a whole.

use super::*;

pub(crate) async fn an_idempotency_key_is_taken_once(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme", "rival"]).await;
    let new = |request: &str, created_us| Idempotent {
        fingerprint: [1; 32],
        request: request.into(),
        epoch: 1,
        outcome: None,
        created_us,
        expires_us: created_us + 100,
    };
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (store, new) = (store.clone(), new(&format!("r{number}"), NOW));
        tasks.spawn(async move { store.idempotency_begin("acme", "k", &new).await.unwrap() });
    }
    let begun = tasks.join_all().await;
    assert_eq!(begun.iter().filter(|begun| **begun == Begun::New).count(), 1, "one of sixteen runs");
    let known: Vec<&Idempotent> =
        begun.iter().filter_map(|begun| if let Begun::Known(known) = begun { Some(known) } else { None }).collect();
    let request = known[0].request.clone();
    assert!(known.iter().all(|known| known.request == request && known.outcome.is_none()));
    // Another tenant's key of the same name is another key.
    assert_eq!(store.idempotency_begin("rival", "k", &new("x", NOW)).await.unwrap(), Begun::New);

    let outcome = Outcome { status: 200, usage: Some(r#"{"t":1}"#.into()), body: Some(vec![0, 255]) };
    assert!(!store.idempotency_end("acme", "k", "another", &outcome).await.unwrap());
    assert!(store.idempotency_end("acme", "k", &request, &outcome).await.unwrap());
    assert!(!store.idempotency_end("acme", "k", &request, &outcome).await.unwrap(), "it ends once");
    let Begun::Known(ended) = store.idempotency_begin("acme", "k", &new("y", NOW + 99)).await.unwrap() else {
        panic!("it is known until it expires");
    };
    assert_eq!(ended.outcome, Some(outcome));
    assert_eq!(store.idempotency_begin("acme", "k", &new("z", NOW + 100)).await.unwrap(), Begun::New);
    assert_eq!(store.idempotency_forget(NOW + 150).await.unwrap(), 1, "rival's");
    store.idempotency_cancel("acme", "k", "z").await.unwrap();
    assert_eq!(store.idempotency_begin("acme", "k", &new("a", NOW + 101)).await.unwrap(), Begun::New);
    let nobody = store.idempotency_begin("nobody", "k", &new("a", NOW)).await.unwrap_err();
    assert!(matches!(nobody, StoreError::Missing { kind: "tenant", .. }), "{nobody}");
}

pub(crate) async fn deliveries_are_taken_once_and_tried_again(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let settings =
        WebhookSettings { url: "https://h/".into(), events: BTreeSet::from(["b".to_owned()]), enabled: true };
    let mut change = store.change(&actor(), NOW).await.unwrap();
    assert!(
        change
            .create_webhook("w0", None, b"s", &WebhookSettings { url: "file:///".into(), ..settings.clone() })
            .await
            .is_err()
    );
    change.create_webhook("w1", Some("acme"), b"sealed", &settings).await.unwrap();
    change.commit().await.unwrap();
    assert!(store.webhook(Some("rival"), "w1").await.is_err());
    assert_eq!(store.webhook(Some("acme"), "w1").await.unwrap().secret, b"sealed");

    let mut tx = store.write().await.unwrap();
    for _ in 0..10 {
        tx.deliver("w1", Some("acme"), "b", "{}", NOW).await.unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!(store.deliveries_due(NOW - 1, NOW, 10).await.unwrap(), []);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        tasks.spawn(async move { store.deliveries_due(NOW, NOW + 60, 10).await.unwrap() });
    }
    let taken: Vec<Delivery> = tasks.join_all().await.into_iter().flatten().collect();
    let ids: BTreeSet<i64> = taken.iter().map(|delivery| delivery.id).collect();
    assert_eq!((taken.len(), ids.len()), (10, 10), "each by one");
    // One arrives, one is given up, the others come again.
    for (delivery, state) in taken.iter().zip([DeliveryState::Delivered, DeliveryState::Dead]) {
        let tried = Delivery { state, status: Some(500), error: Some("no".into()), ..delivery.clone() };
        store.delivery_tried(&tried, NOW + 1).await.unwrap();
    }
    // A slow try that comes to its end afterwards changes nothing.
    for late in &taken[..2] {
        let tried = Delivery { state: DeliveryState::Waiting, error: Some("late".into()), ..late.clone() };
        store.delivery_tried(&tried, NOW + 2).await.unwrap();
    }
    let again = store.deliveries_due(NOW + 60, NOW + 120, 100).await.unwrap();
    assert_eq!(again.iter().map(|delivery| delivery.attempts).collect::<Vec<_>>(), [2; 8]);
    let dead = store.deliveries(None, DeliveryState::Dead, 0, 10).await.unwrap();
    assert_eq!(dead.iter().map(|delivery| delivery.error.as_deref()).collect::<Vec<_>>(), [Some("no")]);

    let mut change = store.change(&actor(), NOW).await.unwrap();
    let off = WebhookSettings { enabled: false, ..settings };
    let edited = change.update_webhook(Some("acme"), "w1", 1, None, &off).await.unwrap();
    assert_eq!(change.tx().webhook(None, "w1").await.unwrap(), edited);
    assert!(change.update_webhook(None, "w1", 1, Some(b"new"), &off).await.is_err());
    change.delete_webhook(Some("acme"), "w1").await.unwrap();
    change.commit().await.unwrap();
    assert_eq!(store.deliveries(None, DeliveryState::Dead, 0, 10).await.unwrap(), []);
}

pub(crate) async fn a_second_opening_finds_everything(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let tenant = store.tenant("acme").await.unwrap();
    store.close().await;
    let store = on.open().await;
    assert_eq!(store.dialect(), on.dialect);
    assert_eq!(store.tenant("acme").await.unwrap(), tenant);
    assert_eq!(store.plans("", 10).await.unwrap().len(), 3, "built-in plans are made once");
}

pub(crate) async fn a_newer_schema_is_refused(on: Fixture) {
    on.open().await.close().await;
    on.tamper(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         SELECT 9999, 'later', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1",
    )
    .await;
    let refused = Store::open(&on.url, &on.options).await.unwrap_err();
    assert!(matches!(refused, StoreError::SchemaNewer { found: 9999, .. }), "{refused}");
    assert!(refused.to_string().contains("9999"), "{refused}");
}

pub(crate) async fn windows_cannot_be_overspent(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let sql = "INSERT INTO windows (tenant, unit, period, begins_us, granted, spent, carried) \
               VALUES ('acme', 'device_ns', 'hour', $1, $2, $3, 0)";
    let mut tx = store.write().await.unwrap();
    tx.execute(sql, &[Value::from(0_i64), Value::from(5_i64), Value::from(5_i64)]).await.unwrap();
    assert!(tx.execute(sql, &[Value::from(1_i64), Value::from(5_i64), Value::from(6_i64)]).await.is_err());
}

pub(crate) async fn single_values_are_kept(on: Fixture) {
    let store = on.open().await;
    assert_eq!(store.meta("imported").await.unwrap(), None);
    for value in ["yes", "twice"] {
        let mut tx = store.write().await.unwrap();
        tx.set_meta("imported", value).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.meta("imported").await.unwrap().as_deref(), Some(value));
    }
}

pub(crate) async fn what_no_row_can_hold_is_refused_alike(on: Fixture) {
    let store = on.open().await;
    let refused = store.tenant("a\0b").await.unwrap_err();
    assert!(matches!(refused, StoreError::Invalid { .. }), "{refused}");
    // What a client calls itself is kept without it, and not without end.
    let actor = Actor { agent: Some("curl\0\x1b".repeat(1000)), ..actor() };
    let mut change = store.change(&actor, NOW).await.unwrap();
    change.record(Event::of("sign_in", "key", "wk_1")).await.unwrap();
    change.commit().await.unwrap();
    let row = store.audit(None, 0, 1).await.unwrap().remove(0);
    assert_eq!(row.agent.unwrap(), "curl".repeat(125));
}
