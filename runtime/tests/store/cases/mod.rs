//! What holds on both databases.

use std::collections::{BTreeMap, BTreeSet};

use weir_runtime::store::{
    ANY, Actor, ActorKind, AuditFault, Begun, Delivery, DeliveryState, Dialect, Event, Idempotent, Limits, NewKey,
    NewTenant, Outcome, Price, Role, Status, Store, StoreError, TenantSettings, Value, WebhookSettings,
};

use crate::fixture::Fixture;

const NOW: i64 = 1_800_000_000_000_000;

fn actor() -> Actor {
    Actor {
        credential: Some("wk_operator".into()),
        method: Some("key".into()),
        source: Some("127.0.0.1:9".into()),
        ..Actor::new(ActorKind::Operator, "olga")
    }
}

fn limits(text: &str) -> Limits {
    serde_json::from_str(text).unwrap()
}

fn tenant_of(id: &str) -> NewTenant {
    NewTenant { id: id.into(), settings: TenantSettings::named(id, "starter") }
}

fn key_of(tenant: &str, id: &str) -> NewKey {
    NewKey {
        id: id.into(),
        tenant: Some(tenant.into()),
        name: "first".into(),
        hash: [7; 32],
        role: Role::Member,
        scopes: BTreeSet::from(["chat".to_owned()]),
        models: None,
        expires_us: None,
    }
}

/// Makes tenants, each in a change of its own.
async fn with_tenants(store: &Store, ids: &[&str]) {
    for id in ids {
        let mut change = store.change(&actor(), NOW).await.unwrap();
        change.create_tenant(&tenant_of(id)).await.unwrap();
        change.commit().await.unwrap();
    }
}

pub(crate) async fn built_in_plans_are_there(on: Fixture) {
    let store = on.open().await;
    let plans = store.plans("", 10).await.unwrap();
    let names: Vec<&str> = plans.iter().map(|plan| plan.id.as_str()).collect();
    assert_eq!(names, ["enterprise", "professional", "starter"]);
    for plan in plans {
        plan.limits.check().unwrap();
        assert!(plan.limits.device_ns_per_month.is_some(), "{} has a finite quota", plan.id);
    }
}

pub(crate) async fn plans_are_made_edited_and_removed(on: Fixture) {
    let store = on.open().await;
    let mut change = store.change(&actor(), NOW).await.unwrap();
    let made = change.create_plan("own", &limits(r#"{"weight":3}"#)).await.unwrap();
    change.commit().await.unwrap();
    assert_eq!(store.plan("own").await.unwrap(), made);

    let mut change = store.change(&actor(), NOW + 5).await.unwrap();
    let taken = change.create_plan("own", &Limits::default()).await.unwrap_err();
    assert!(matches!(taken, StoreError::Exists { kind: "plan", .. }), "{taken}");
    drop(change);

    let mut change = store.change(&actor(), NOW + 5).await.unwrap();
    let edited = change.update_plan("own", 1, &limits(r#"{"weight":4}"#)).await.unwrap();
    change.commit().await.unwrap();
    assert_eq!((edited.version, edited.created_us, edited.updated_us), (2, NOW, NOW + 5));
    assert_eq!(store.plan("own").await.unwrap(), edited);

    let mut change = store.change(&actor(), NOW + 6).await.unwrap();
    change.delete_plan("own", 2).await.unwrap();
    change.commit().await.unwrap();
    assert!(matches!(store.plan("own").await, Err(StoreError::Missing { kind: "plan", .. })));
}

pub(crate) async fn an_edit_from_an_old_version_is_a_conflict(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let before = store.tenant("acme").await.unwrap();
    for expected in [before.version + 1, before.version - 1] {
        let mut change = store.change(&actor(), NOW).await.unwrap();
        let settings = TenantSettings { name: "other".into(), ..before.settings.clone() };
        let late = change.update_tenant("acme", expected, &settings).await.unwrap_err();
        assert!(matches!(late, StoreError::Conflict { found: 1, .. }), "{late}");
        let late = change.update_plan("starter", expected, &Limits::default()).await.unwrap_err();
        assert!(matches!(late, StoreError::Conflict { found: 1, .. }), "{late}");
        change.commit().await.unwrap();
    }
    assert_eq!(store.tenant("acme").await.unwrap(), before);
}

pub(crate) async fn a_plan_in_use_stays(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let mut change = store.change(&actor(), NOW).await.unwrap();
    let needed = change.delete_plan("starter", 1).await.unwrap_err();
    assert!(needed.to_string().contains("acme"), "{needed}");
}

pub(crate) async fn tenants_keep_every_field(on: Fixture) {
    let store = on.open().await;
    let settings = TenantSettings {
        name: "Acme, Ltd. \u{1f980} 'quoted\"".into(),
        domain: Some("acme.example.com".into()),
        status: Status::Trial,
        reason: Some("until may".into()),
        plan: "professional".into(),
        overrides: limits(r#"{"running_max":3,"shadow":true,"pool":"gold"}"#),
        models: Some(BTreeSet::from(["a/b".to_owned(), "c".to_owned()])),
        default_models: BTreeMap::from([("chat".to_owned(), "c".to_owned())]),
        price_ppm: BTreeMap::from([("c".to_owned(), 1_500_000)]),
        flags: BTreeMap::from([("beta".to_owned(), true)]),
        ip_allow: vec!["10.0.0.0/8".into(), "::1".into()],
        retention_days: Some(30),
        retain_bodies: true,
        metadata: serde_json::from_str(r#"{"crm":{"id":1,"tags":["x",null]}}"#).unwrap(),
    };
    let mut change = store.change(&actor(), NOW).await.unwrap();
    let made = change.create_tenant(&NewTenant { id: "acme".into(), settings: settings.clone() }).await.unwrap();
    change.commit().await.unwrap();
    assert_eq!(made.settings, settings);
    assert_eq!(store.tenant("acme").await.unwrap(), made);

    let settings = TenantSettings::named("plain", "starter");
    let mut change = store.change(&actor(), NOW + 1).await.unwrap();
    let edited = change.update_tenant("acme", 1, &settings).await.unwrap();
    change.commit().await.unwrap();
    assert_eq!(edited.settings, settings);
    assert_eq!(store.tenant("acme").await.unwrap(), edited);
}

pub(crate) async fn tenant_numbers_are_dense_and_never_used_again(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["a", "b"]).await;
    // One that is not committed takes no number.
    let mut change = store.change(&actor(), NOW).await.unwrap();
    assert_eq!(change.create_tenant(&tenant_of("c")).await.unwrap().number, 3);
    drop(change);
    let mut change = store.change(&actor(), NOW).await.unwrap();
    change.set_status("b", 1, Status::Deleted, None).await.unwrap();
    assert_eq!(change.create_tenant(&tenant_of("d")).await.unwrap().number, 3);
    change.commit().await.unwrap();
    let numbers: Vec<u32> = store.tenants("", 10).await.unwrap().iter().map(|tenant| tenant.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
}

pub(crate) async fn nonsense_is_refused_by_field(on: Fixture) {
    let store = on.open().await;
    let base = || TenantSettings::named("x", "starter");
    for (field, settings) in [
        ("name", TenantSettings { name: "a\nb".into(), ..base() }),
        ("domain", TenantSettings { domain: Some("Acme.example".into()), ..base() }),
        ("price_ppm", TenantSettings { price_ppm: BTreeMap::from([("m".into(), u64::MAX)]), ..base() }),
        ("ip_allow", TenantSettings { ip_allow: vec!["10.0.0.0/40".into()], ..base() }),
        ("retention_days", TenantSettings { retention_days: Some(u32::MAX), ..base() }),
        ("overrides.weight", TenantSettings { overrides: limits(r#"{"weight":0}"#), ..base() }),
        // Against the plan's month.
        (
            "overrides.device_ns_per_day",
            TenantSettings { overrides: limits(r#"{"device_ns_per_day":9000000000000000000}"#), ..base() },
        ),
    ] {
        let mut change = store.change(&actor(), NOW).await.unwrap();
        let refused = change.create_tenant(&NewTenant { id: "x".into(), settings }).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Invalid { field: f, .. } if f == field), "{field}: {refused}");
    }
    let mut change = store.change(&actor(), NOW).await.unwrap();
    let settings = TenantSettings { plan: "none".into(), ..base() };
    let refused = change.create_tenant(&NewTenant { id: "x".into(), settings }).await.unwrap_err();
    assert!(matches!(refused, StoreError::Missing { kind: "plan", .. }), "{refused}");
    let refused = change.create_key(&NewKey { tenant: None, ..key_of("x", "wk_1") }).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Invalid { field, .. } if field == "role"), "{refused}");
    let refused = change.create_key(&key_of("nobody", "wk_1")).await.unwrap_err();
    assert!(matches!(refused, StoreError::Missing { kind: "tenant", .. }), "{refused}");
}

pub(crate) async fn a_deleted_tenant_stays_and_stays_deleted(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let mut change = store.change(&actor(), NOW).await.unwrap();
    change.set_status("acme", 1, Status::Deleted, Some("left")).await.unwrap();
    change.commit().await.unwrap();
    let mut change = store.change(&actor(), NOW).await.unwrap();
    let late = change.set_status("acme", 2, Status::Active, None).await.unwrap_err();
    assert!(matches!(late, StoreError::Invalid { .. }), "{late}");
    drop(change);
    let mut change = store.change(&actor(), NOW).await.unwrap();
    let again = change.create_tenant(&tenant_of("acme")).await.unwrap_err();
    assert!(matches!(again, StoreError::Exists { .. }), "{again}");
    drop(change);
    assert_eq!(store.tenant("acme").await.unwrap().settings.status, Status::Deleted);
}

pub(crate) async fn a_tenant_and_its_key_are_made_together_or_not_at_all(on: Fixture) {
    let store = on.open().await;
    for commits in [false, true] {
        let mut change = store.change(&actor(), NOW).await.unwrap();
        change.create_tenant(&tenant_of("acme")).await.unwrap();
        let key = change.create_key(&key_of("acme", "wk_1")).await.unwrap();
        assert_eq!(key.created_by, "olga");
        if commits {
            change.commit().await.unwrap();
        } else {
            drop(change);
        }
        assert_eq!(store.tenant("acme").await.is_ok(), commits);
        assert_eq!(store.key(None, "wk_1").await.ok(), commits.then_some(key));
        assert_eq!(store.audit(None, 0, 10).await.unwrap().len(), if commits { 2 } else { 0 });
        assert!(store.audit_verify().await.unwrap().is_ok());
    }
}

pub(crate) async fn lists_go_on_after_a_key(on: Fixture) {
    let store = on.open().await;
    // In the order of bytes, which is not that of most languages.
    let ids = ["A", "Z", "a", "a-b", "a.b", "a_b", "ab"];
    let mut shuffled = ids;
    shuffled.reverse();
    with_tenants(&store, &shuffled).await;
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = store.tenants(&after, 3).await.unwrap();
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = last.id.clone();
        seen.extend(page.into_iter().map(|tenant| tenant.id));
        if seen.len() == 3 {
            // One that is made before the place is not seen any more, and none is seen twice.
            with_tenants(&store, &["0"]).await;
        }
    }
    assert_eq!(seen, ids);
    assert_eq!(store.tenants("", 0).await.unwrap().len(), 1, "a page has a row at least");
}

pub(crate) async fn keys_are_revoked_rotated_and_foreign_ones_unknown(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme", "rival"]).await;
    let mut change = store.change(&actor(), NOW).await.unwrap();
    change.create_key(&key_of("acme", "wk_1")).await.unwrap();
    let operator = NewKey { tenant: None, role: Role::Operator, ..key_of("", "wk_0") };
    change.create_key(&operator).await.unwrap();
    let taken = change.create_key(&key_of("rival", "wk_1")).await;
    assert!(matches!(taken, Err(StoreError::Exists { kind: "key", .. })));
    drop(change);

    let mut change = store.change(&actor(), NOW).await.unwrap();
    change.create_key(&key_of("acme", "wk_1")).await.unwrap();
    change.create_key(&operator).await.unwrap();
    change.commit().await.unwrap();

    // Somebody else's looks like none.
    for id in ["wk_1", "wk_0", "wk_none"] {
        let foreign = store.key(Some("rival"), id).await.unwrap_err();
        assert_eq!(foreign.to_string(), format!("there is no key `{id}`"));
    }
    let mut change = store.change(&actor(), NOW + 1).await.unwrap();
    assert!(change.revoke_key(Some("rival"), "wk_1", None).await.is_err());
    assert!(change.rotate_key("wk_1", NOW, &key_of("rival", "wk_2")).await.is_err());

    let new = change.rotate_key("wk_1", NOW + 100, &key_of("acme", "wk_2")).await.unwrap();
    assert_eq!(new.replaces.as_deref(), Some("wk_1"));
    change.revoke_key(Some("acme"), "wk_2", Some("lost")).await.unwrap();
    change.revoke_key(None, "wk_2", None).await.unwrap();
    assert!(change.rotate_key("wk_2", NOW, &key_of("acme", "wk_3")).await.is_err());
    change.commit().await.unwrap();

    assert_eq!(store.key(Some("acme"), "wk_1").await.unwrap().expires_us, Some(NOW + 100));
    assert_eq!(store.key(Some("acme"), "wk_2").await.unwrap().revoked_us, Some(NOW + 1));
    let ids = |keys: Vec<weir_runtime::store::Key>| keys.into_iter().map(|key| key.id).collect::<Vec<_>>();
    assert_eq!(ids(store.keys(Some("acme"), "", 10).await.unwrap()), ["wk_1", "wk_2"]);
    assert_eq!(ids(store.keys(Some("acme"), "wk_1", 10).await.unwrap()), ["wk_2"]);
    assert_eq!(ids(store.keys(None, "", 10).await.unwrap()), ["wk_0", "wk_1", "wk_2"]);
}

pub(crate) async fn last_use_is_written_in_batches_and_never_goes_back(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let mut change = store.change(&actor(), NOW).await.unwrap();
    change.create_key(&key_of("acme", "wk_1")).await.unwrap();
    change.create_key(&key_of("acme", "wk_2")).await.unwrap();
    change.commit().await.unwrap();
    store.keys_used(&[("wk_2", 5), ("wk_1", 9), ("wk_gone", 1)]).await.unwrap();
    store.keys_used(&[("wk_1", 8), ("wk_2", 6)]).await.unwrap();
    assert_eq!(store.key(None, "wk_1").await.unwrap().last_used_us, Some(9));
    assert_eq!(store.key(None, "wk_2").await.unwrap().last_used_us, Some(6));
}

pub(crate) async fn prices_are_set_and_removed(on: Fixture) {
    let store = on.open().await;
    let price = |from_us, micros_per_device_hour| Price {
        model: "m".into(),
        plan: ANY.into(),
        device_class: "h200".into(),
        from_us,
        micros_per_device_hour,
    };
    let mut change = store.change(&actor(), NOW).await.unwrap();
    for (from_us, micros) in [(0, 1), (10, 2), (0, 3)] {
        change.set_price(&price(from_us, micros)).await.unwrap();
    }
    assert!(change.set_price(&price(0, -1)).await.is_err());
    change.commit().await.unwrap();
    assert_eq!(store.prices().await.unwrap(), [price(0, 3), price(10, 2)]);
    let mut change = store.change(&actor(), NOW).await.unwrap();
    change.delete_price(&price(10, 2)).await.unwrap();
    assert!(matches!(change.delete_price(&price(10, 2)).await, Err(StoreError::Missing { .. })));
    change.commit().await.unwrap();
    assert_eq!(store.prices().await.unwrap(), [price(0, 3)]);
}

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
    let again = store.deliveries_due(NOW + 60, NOW + 120, 100).await.unwrap();
    assert_eq!(again.iter().map(|delivery| delivery.attempts).collect::<Vec<_>>(), [2; 8]);
    let dead = store.deliveries(DeliveryState::Dead, 0, 10).await.unwrap();
    assert_eq!(dead.iter().map(|delivery| delivery.error.as_deref()).collect::<Vec<_>>(), [Some("no")]);

    let mut change = store.change(&actor(), NOW).await.unwrap();
    let off = WebhookSettings { enabled: false, ..settings };
    let edited = change.update_webhook(Some("acme"), "w1", 1, None, &off).await.unwrap();
    assert_eq!(change.tx().webhook(None, "w1").await.unwrap(), edited);
    assert!(change.update_webhook(None, "w1", 1, Some(b"new"), &off).await.is_err());
    change.delete_webhook(Some("acme"), "w1").await.unwrap();
    change.commit().await.unwrap();
    assert_eq!(store.deliveries(DeliveryState::Dead, 0, 10).await.unwrap(), []);
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
