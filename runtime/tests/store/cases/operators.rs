//! What an operator looks after: plans, tenants, keys, prices.

use super::*;

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
    let ended = NewKey { expires_us: Some(NOW + 1), ..key_of("acme", "wk_ended") };
    change.create_key(&ended).await.unwrap();
    assert!(change.rotate_key("wk_ended", NOW, &key_of("acme", "wk_3")).await.is_err(), "it has ended by now");
    change.revoke_key(None, "wk_ended", None).await.unwrap();
    change.commit().await.unwrap();

    assert_eq!(store.key(Some("acme"), "wk_1").await.unwrap().expires_us, Some(NOW + 100));
    assert_eq!(store.key(Some("acme"), "wk_2").await.unwrap().revoked_us, Some(NOW + 1));
    let ids = |keys: Vec<weir_runtime::store::Key>| keys.into_iter().map(|key| key.id).collect::<Vec<_>>();
    assert_eq!(ids(store.keys(Some("acme"), "", 10).await.unwrap()), ["wk_1", "wk_2", "wk_ended"]);
    assert_eq!(ids(store.keys(Some("acme"), "wk_1", 10).await.unwrap()), ["wk_2", "wk_ended"]);
    assert_eq!(ids(store.keys(None, "", 10).await.unwrap()), ["wk_0", "wk_1", "wk_2", "wk_ended"]);
    assert_eq!(ids(store.read().await.unwrap().operators_keys("", 10).await.unwrap()), ["wk_0"]);
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

pub(crate) async fn prices_are_set_and_the_past_stays(on: Fixture) {
    let store = on.open().await;
    let price = |from_us, micros_per_device_hour| Price {
        model: "m".into(),
        plan: ANY.into(),
        device_class: "h200".into(),
        from_us,
        micros_per_device_hour,
    };
    let mut change = store.change(&actor(), NOW).await.unwrap();
    for (from_us, micros) in [(5, 1), (10, 2), (5, 3)] {
        change.set_price(&price(from_us, micros), 5).await.unwrap();
    }
    assert!(change.set_price(&price(5, -1), 5).await.is_err());
    let past = change.set_price(&price(5, 4), 6).await.unwrap_err();
    assert!(matches!(past, StoreError::Invalid { ref field, .. } if field == "from_us"), "{past}");
    change.commit().await.unwrap();
    assert_eq!(store.prices().await.unwrap(), [price(5, 3), price(10, 2)]);
    let log = store.audit(None, 0, 10).await.unwrap();
    let amounts: Vec<_> = log.iter().map(|row| (row.before.is_some(), row.after.is_some())).collect();
    assert_eq!(amounts, [(false, true), (false, true), (true, true)]);
}

pub(crate) async fn a_plan_that_contradicts_a_tenant_is_refused(on: Fixture) {
    let store = on.open().await;
    let overrides = limits(r#"{"kv_blocks_floor":100}"#);
    let settings = TenantSettings { overrides, ..TenantSettings::named("Acme", "starter") };
    let mut change = store.change(&actor(), NOW).await.unwrap();
    change.create_tenant(&NewTenant { id: "acme".into(), settings }).await.unwrap();
    let refused = change.update_plan("starter", 1, &limits(r#"{"kv_blocks_ceiling":99}"#)).await.unwrap_err();
    assert!(refused.to_string().contains("tenant `acme`"), "{refused}");
    change.update_plan("starter", 1, &limits(r#"{"kv_blocks_ceiling":100}"#)).await.unwrap();
}
