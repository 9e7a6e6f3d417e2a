//! Usage, bills, exports, and the events that go out.

use std::collections::{BTreeMap, BTreeSet};

use weir_runtime::{
    billing::{self, LedgerRange},
    quota::calendar::{self, Period},
    store::{ANY, Actor, Billed, DeliveryState, NewTenant, Price, Store, TenantSettings, Value, WebhookSettings},
};

use crate::{cases::with_tenants, fixture::Fixture};

const HOUR_NS: i64 = 3_600_000_000_000;
const MINUTE_US: i64 = 60_000_000;

/// The month of 2026-11.
fn november() -> i64 {
    calendar::month_begins_us("2026-11").unwrap()
}

async fn used(store: &Store, tenant: &str, day: i64, model: &str, device_ns: i64) {
    let sql = "INSERT INTO usage_days (tenant, day, model, key, plan, device_class, requests, prompt_tokens, \
               completion_tokens, device_ns) VALUES ($1, $2, $3, 'wk_1', 'starter', 'cpu', 1, 2, 3, $4)";
    let mut tx = store.write().await.unwrap();
    let values = [Value::from(tenant), Value::from(day), Value::from(model), Value::from(device_ns)];
    tx.execute(sql, &values).await.unwrap();
    tx.commit().await.unwrap();
}

async fn set_price(store: &Store, micros_per_device_hour: i64) {
    let [model, plan, device_class] = [ANY, ANY, ANY].map(str::to_owned);
    let mut change = store.change(&Actor::system(), 1).await.unwrap();
    let price = Price { model, plan, device_class, from_us: 0, micros_per_device_hour };
    change.set_price(&price, 0).await.unwrap();
    change.commit().await.unwrap();
}

pub(crate) async fn the_bill_of_a_closed_month_never_changes(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme", "rival", "idle"]).await;
    let (month, end) = (november(), Period::Month.end(november()));
    let (first, last) = (calendar::day_of(month), calendar::day_of(end) - 1);
    for (tenant, day) in [("acme", first - 1), ("acme", first), ("acme", last), ("acme", last + 1), ("rival", last)] {
        used(&store, tenant, day, "m", HOUR_NS).await;
    }
    set_price(&store, 1_000_000).await;
    let amount = |bill: &billing::Invoice| (bill.closed, bill.amount_micros, bill.used.requests);
    // While it goes on, it is of the prices of now.
    let so_far = billing::invoice(&store, "acme", month, end - 1, false).await.unwrap();
    assert_eq!(amount(&so_far), (false, 2_000_000, 2));
    set_price(&store, 3_000_000).await;
    let late = billing::invoice(&store, "acme", month, end + 9 * MINUTE_US, false).await.unwrap();
    assert_eq!(amount(&late), (false, 6_000_000, 2), "a moment for the last rows");
    let closed = billing::invoice(&store, "acme", month, end + 10 * MINUTE_US, false).await.unwrap();
    assert_eq!(amount(&closed), (true, 6_000_000, 2));

    // Others' are made by themselves, once; those of nobody's use are not.
    assert_eq!(
        billing::keep_invoices(&store, end + 10 * MINUTE_US, false).await.unwrap(),
        2,
        "acme's October, and rival's"
    );
    assert_eq!(billing::keep_invoices(&store, end + 11 * MINUTE_US, false).await.unwrap(), 0);

    set_price(&store, 9_000_000).await;
    used(&store, "acme", last, "n", HOUR_NS).await;
    let mut change = store.change(&Actor::system(), 2).await.unwrap();
    let settings = TenantSettings {
        price_ppm: BTreeMap::from([("m".to_owned(), 2_000_000)]),
        ..TenantSettings::named("acme", "professional")
    };
    change.update_tenant("acme", 1, &settings).await.unwrap();
    change.commit().await.unwrap();
    for (tenant, expected) in [("acme", 6_000_000), ("rival", 3_000_000)] {
        let again = billing::invoice(&store, tenant, month, end + 365 * 1440 * MINUTE_US, false).await.unwrap();
        assert_eq!((again.closed, again.amount_micros), (true, expected), "{tenant}");
    }
    assert_eq!(billing::invoice(&store, "acme", month, 0, false).await.unwrap(), closed);
    let nothing = billing::invoice(&store, "idle", month, end + 10 * MINUTE_US, false).await.unwrap();
    assert_eq!((nothing.lines.len(), nothing.amount_micros), (0, 0));
    assert!(billing::invoice(&store, "nobody", month, end, false).await.is_err());

    for sql in ["UPDATE invoices SET body = ''", "DELETE FROM invoices"] {
        assert!(store.write().await.unwrap().execute(sql, &[]).await.is_err(), "{sql}");
    }
}

pub(crate) async fn usage_is_read_by_days_however_much_there_is(on: Fixture) {
    let store = on.open().await;
    let sql = "INSERT INTO usage_days (tenant, day, model, key, plan, device_class, requests, prompt_tokens, \
               completion_tokens, device_ns) WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 11999) \
               SELECT 'acme', 10 + i / 3000, 'm', CAST(i AS TEXT), '', '', 1, 0, 0, 1 FROM n";
    let mut tx = store.write().await.unwrap();
    tx.execute(sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
    for (days, expected) in [((10, 13), 12_000), ((11, 12), 6_000), ((13, 99), 3_000), ((14, 99), 0), ((0, 9), 0)] {
        let mut keys = BTreeSet::new();
        let mut tx = store.read().await.unwrap();
        billing::usage(&mut tx, "acme", days, |row| assert!(keys.insert((row.day, row.key)))).await.unwrap();
        assert_eq!(keys.len(), expected, "{days:?}");
    }
    let mut tx = store.read_as("rival").await.unwrap();
    billing::usage(&mut tx, "rival", (0, 99), |row| panic!("{row:?}")).await.unwrap();
    if tx.is_postgres() {
        // Not even when the question is wrong.
        billing::usage(&mut tx, "acme", (0, 99), |row| panic!("{row:?}")).await.unwrap();
    }
}

/// Rows of an epoch that nobody verifies.
async fn with_rows(store: &Store, count: i64) {
    let mut tx = store.write().await.unwrap();
    tx.execute("INSERT INTO epochs (epoch, replica, started_us, ended_us) VALUES (1, 'r', 0, NULL)", &[])
        .await
        .unwrap();
    tx.execute("INSERT INTO epochs (epoch, replica, started_us, ended_us) VALUES (2, 'r', 0, 9)", &[]).await.unwrap();
    let sql = "INSERT INTO ledger (epoch, seq, at_us, kind, tenant, request, model, key, device_ns, prompt_tokens, \
               completion_tokens, body, hash) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) \
               SELECT 1 + i % 2, i, i, 'settle', 'acme', 'ik-' || CAST(i AS TEXT), 'm', 'k', i, 2, 3, '{}', $2 FROM n";
    let count = Value::from(count);
    tx.execute(sql, &[count, Value::from(&[7u8; 32])]).await.unwrap();
    tx.commit().await.unwrap();
}

pub(crate) async fn an_export_has_every_row_once(on: Fixture) {
    let store = on.open().await;
    with_rows(&store, 4500).await;
    for (from_us, to_us, tenant, expected) in [
        (i64::MIN, i64::MAX, None, 4500),
        (i64::MIN, i64::MAX, Some("acme"), 4500),
        (i64::MIN, i64::MAX, Some("rival"), 0),
        (1001, 3001, None, 2000),
    ] {
        let range = LedgerRange { from_us, to_us, tenant: tenant.map(str::to_owned) };
        let (mut places, mut after) = (Vec::new(), (i64::MIN, 0));
        loop {
            let page = range.page(&store, after).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.len() <= 1000);
            after = (last.epoch, last.seq);
            assert_eq!(last.hash, "07".repeat(32));
            places.extend(page.into_iter().map(|row| (row.epoch, row.seq)));
        }
        assert_eq!(places.len(), expected, "{range:?}");
        assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
    }
}

pub(crate) async fn what_a_request_was_charged_is_found_by_its_id(on: Fixture) {
    let store = on.open().await;
    with_rows(&store, 30).await;
    let sql = "INSERT INTO ledger (epoch, seq, at_us, kind, tenant, request, model, key, device_ns, prompt_tokens, \
               completion_tokens, body, hash) VALUES (1, $1, 1, 'recovered', 'acme', $2, 'm', 'k', 100, 0, 0, '{}', $3)";
    let mut tx = store.write().await.unwrap();
    for (seq, request) in [(100i64, "ik-2-1"), (101, "ik-2-17"), (102, "ik-2.1"), (103, "ik-2x")] {
        tx.execute(sql, &[Value::from(seq), Value::from(request), Value::from(&[7u8; 32])]).await.unwrap();
    }
    tx.commit().await.unwrap();
    // Its own bill and those of its prompts, and not those of others that begin alike.
    let bill = store.bills_of("acme", "ik-2").await.unwrap();
    assert_eq!(bill, Some(Billed { device_ns: 202, prompt_tokens: 2, completion_tokens: 3 }));
    assert_eq!(store.bills_of("acme", "ik-31").await.unwrap(), None);
    assert_eq!(store.bills_of("rival", "ik-2").await.unwrap(), None);
    assert!(!store.epoch_is_over(1).await.unwrap());
    assert!(store.epoch_is_over(2).await.unwrap());
    assert!(store.epoch_is_over(3).await.unwrap(), "one that never was runs nothing");
}

pub(crate) async fn an_event_reaches_those_who_want_it(on: Fixture) {
    let store = on.open().await;
    let mut change = store.change(&Actor::system(), 1).await.unwrap();
    for id in ["acme", "rival"] {
        let settings = TenantSettings::named(id, "starter");
        change.create_tenant(&NewTenant { id: id.into(), settings }).await.unwrap();
    }
    let wants = |event: &str, enabled| WebhookSettings {
        url: "https://h/".into(),
        events: BTreeSet::from([event.to_owned()]),
        enabled,
    };
    for (id, tenant, event, enabled) in [
        ("w1", None, "soft", true),
        ("w2", Some("acme"), "soft", true),
        ("w3", Some("rival"), "soft", true),
        ("w4", Some("acme"), "hard", true),
        ("w5", Some("acme"), "soft", false),
    ] {
        change.create_webhook(id, tenant, b"s", &wants(event, enabled)).await.unwrap();
    }
    change.commit().await.unwrap();
    assert_eq!(store.deliveries_next().await.unwrap(), None);
    assert_eq!(store.notify(Some("acme"), "soft", "{}", 5).await.unwrap(), 2);
    assert_eq!(store.notify(Some("nobody"), "hard", "{}", 6).await.unwrap(), 0);
    assert_eq!(store.deliveries_next().await.unwrap(), Some(5));
    let due = store.deliveries_due(5, 60, 10).await.unwrap();
    let to: Vec<&str> = due.iter().map(|delivery| delivery.webhook.as_str()).collect();
    assert_eq!(to, ["w1", "w2"]);
    assert_eq!(store.deliveries_next().await.unwrap(), Some(60));

    // One is given up and taken up again; the other arrives, and is forgotten.
    let mut tried = due.clone();
    tried[0].state = DeliveryState::Dead;
    tried[1].state = DeliveryState::Delivered;
    for tried in &tried {
        store.delivery_tried(tried, 7).await.unwrap();
    }
    assert_eq!(store.deliveries(Some("w1"), DeliveryState::Dead, 0, 10).await.unwrap().len(), 1);
    assert_eq!(store.deliveries(Some("w2"), DeliveryState::Dead, 0, 10).await.unwrap(), []);
    assert_eq!(store.deliveries_forget(7).await.unwrap(), 0);
    assert_eq!(store.deliveries_forget(8).await.unwrap(), 1);
    assert!(!store.delivery_again(None, tried[1].id, 9).await.unwrap());
    assert!(!store.delivery_again(Some("other"), tried[0].id, 9).await.unwrap(), "another webhook's");
    let counted = store.deliveries_count().await.unwrap();
    assert!(store.delivery_again(Some(&tried[0].webhook), tried[0].id, 9).await.unwrap());
    assert!(!store.delivery_again(None, tried[0].id, 9).await.unwrap());
    assert_eq!(store.deliveries_count().await.unwrap(), (counted.0 + 1, counted.1 - 1), "waiting, and given up");
    let again = store.deliveries_due(9, 60, 10).await.unwrap();
    assert_eq!((again.len(), again[0].attempts, again[0].id), (1, 1, tried[0].id));
}
