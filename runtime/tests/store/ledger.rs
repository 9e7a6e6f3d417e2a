//! The ledger and grants, on either database.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use weir_runtime::{
    ledger::{
        self, Checkpoint, Entry, LedgerError, OperatorTimes, Record, Running, Settle, Share, Writer, WriterOptions,
    },
    quota::{self, Answer, Ask, Limits, ReportOf, Taken, Unit, Want},
    store::{Dialect, Store, Value},
};

use crate::{cases::with_tenants, fixture::Fixture};

pub(crate) const AT_US: i64 = 1_795_000_000_000_000;

fn settle(number: i64, ns: i64) -> Record<'static> {
    Record::Settle(Settle {
        tenant: "acme".into(),
        request: format!("req \"{number}\"").into(),
        model: "tiny".into(),
        key: "wk_a".into(),
        plan: "starter".into(),
        split: vec![Share { device: "d".into(), class: "cpu".into(), ns }],
        prompt_tokens: 3,
        completion_tokens: 5,
        stop: "stop".into(),
        name: "".into(),
    })
}

pub(crate) fn checkpoint(wall: i64, running: i64) -> Record<'static> {
    let running = Running {
        tenant: "acme".into(),
        request: "long".into(),
        model: "tiny".into(),
        key: "wk_a".into(),
        plan: "starter".into(),
        ns: running,
    };
    let operator = OperatorTimes::default();
    let (device, class) = ("d".into(), "cpu".into());
    Record::Checkpoint(Checkpoint { device, class, wall, idle: 0, operator, running: vec![running] })
}

/// Writes records and waits for all of them; how many were acknowledged.
async fn write(store: &Store, chain: ledger::Chain, records: Vec<Record<'static>>) -> (u64, Result<(), LedgerError>) {
    let (writer, task) = Writer::start(store.clone(), chain, WriterOptions::default());
    let acknowledged = Arc::new(AtomicU64::new(0));
    for record in records {
        let count = acknowledged.clone();
        let done = Box::new(move |written: bool| {
            count.fetch_add(u64::from(written), Ordering::Relaxed);
        });
        writer.send(Entry { at_us: AT_US, record, grants: Vec::new(), done: Some(done) }).await;
    }
    drop(writer);
    let end = task.await.unwrap();
    (acknowledged.load(Ordering::Relaxed), end.map(|_| ()))
}

async fn numbers(store: &Store, sql: &'static str, columns: usize) -> Vec<i64> {
    let mut tx = store.read().await.unwrap();
    let row = tx.row(sql, &[]).await.unwrap().unwrap();
    let mut fields = row.fields();
    (0..columns).map(|_| fields.int().unwrap()).collect()
}

const USAGE: &str = "SELECT CAST(sum(requests) AS BIGINT), CAST(sum(device_ns) AS BIGINT), \
                     CAST(sum(completion_tokens) AS BIGINT) FROM usage_days \
                     WHERE tenant = 'acme' AND device_class = 'cpu'";
const USAGE_SQLITE: &str = "SELECT sum(requests), sum(device_ns), sum(completion_tokens) FROM usage_days \
                            WHERE tenant = 'acme' AND device_class = 'cpu'";

async fn usage(on: &Fixture, store: &Store) -> Vec<i64> {
    let sql = if on.dialect == Dialect::Sqlite { USAGE_SQLITE } else { USAGE };
    numbers(store, sql, 3).await
}

pub(crate) async fn records_are_written_in_groups_and_verified(on: Fixture) {
    let store = on.open().await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    let mut records: Vec<_> = (0..1_500).map(|number| settle(number, 10)).collect();
    records.push(checkpoint(15_007, 7));
    let (acknowledged, end) = write(&store, chain, records).await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(acknowledged, 1_501);
    let verified = ledger::verify_store(&store, None).await.unwrap();
    assert_eq!((verified.rows, verified.requests, verified.charged_ns), (1_502, 1_500, 15_000));
    assert_eq!(usage(&on, &store).await, [1_500, 15_000, 7_500]);
}

pub(crate) async fn the_next_start_recovers_once(on: Fixture) {
    let store = on.open().await;
    let (chain, none) = ledger::begin(&store, "one", AT_US).await.unwrap();
    assert!(none.is_empty());
    let epoch = chain.epoch;
    let (_, end) = write(&store, chain, vec![settle(1, 10), checkpoint(17, 7)]).await;
    assert!(end.is_ok());
    let (next, recovered) = ledger::begin(&store, "one", AT_US + 1_000_000).await.unwrap();
    assert_eq!((next.epoch, recovered), (epoch + 1, vec![epoch]));
    assert_eq!(usage(&on, &store).await, [2, 17, 5], "the long request is billed what the checkpoint says");
    let before = ledger::verify_store(&store, None).await.unwrap();
    ledger::close(&store, epoch, AT_US + 9_000_000).await.unwrap();
    assert_eq!(ledger::verify_store(&store, None).await.unwrap(), before);
    let (_, other) = ledger::begin(&store, "two", AT_US).await.unwrap();
    assert!(other.is_empty(), "another replica's epochs are its own");
}

pub(crate) async fn a_writer_whose_epoch_was_ended_acknowledges_nothing(on: Fixture) {
    let store = on.open().await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    ledger::begin(&store, "one", AT_US + 1).await.unwrap();
    let (acknowledged, end) = write(&store, chain.clone(), vec![settle(1, 10)]).await;
    assert_eq!(acknowledged, 0);
    assert!(matches!(end, Err(LedgerError::Ended { epoch }) if epoch == chain.epoch), "{end:?}");
}

pub(crate) async fn a_request_is_never_settled_twice(on: Fixture) {
    let store = on.open().await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    let same = vec![settle(1, 10), settle(1, 10), checkpoint(17, 7), settle(2, 5)];
    let (acknowledged, end) = write(&store, chain, same).await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(acknowledged, 4, "what is there already is there");
    let (chain, _) = ledger::begin(&store, "two", AT_US).await.unwrap();
    let (acknowledged, end) = write(&store, chain, vec![settle(1, 10), settle(3, 10)]).await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(acknowledged, 2);
    assert_eq!(usage(&on, &store).await, [3, 25, 15]);
    let (chain, _) = ledger::begin(&store, "three", AT_US).await.unwrap();
    let (acknowledged, end) = write(&store, chain, vec![settle(4, 10), settle(1, 11)]).await;
    assert_eq!(acknowledged, 0);
    let Err(LedgerError::SettledTwice { tenant, request }) = end else { panic!("{end:?}") };
    assert_eq!((tenant.as_str(), request.as_str()), ("acme", "req \"1\""));
    ledger::verify_store(&store, None).await.unwrap();
}

pub(crate) async fn a_row_that_does_not_add_up_is_not_written_and_ends_the_writer(on: Fixture) {
    let store = on.open().await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    let (acknowledged, end) = write(&store, chain, vec![settle(1, 10), checkpoint(18, 7), settle(2, 5)]).await;
    assert_eq!(acknowledged, 0);
    let Err(LedgerError::Unsound { seq, fault, .. }) = end else { panic!("{end:?}") };
    assert_eq!((seq, *fault), (3, ledger::Fault::Sum { device: "d".into(), wall: 18, accounted: 17 }));
    assert_eq!(ledger::verify_store(&store, None).await.unwrap().rows, 1);
}

pub(crate) async fn an_epoch_that_its_engine_closed_has_nothing_to_recover(on: Fixture) {
    let store = on.open().await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    let (writer, task) = Writer::start(store.clone(), chain, WriterOptions::default());
    for record in [settle(1, 10), Record::Close] {
        writer.send(Entry { at_us: AT_US, record, grants: Vec::new(), done: None }).await;
    }
    drop(writer);
    // A bill that no checkpoint follows is not a whole account.
    assert!(matches!(task.await.unwrap(), Err(LedgerError::Unsound { .. })));
    let (chain, _) = ledger::begin(&store, "two", AT_US).await.unwrap();
    let (writer, task) = Writer::start(store.clone(), chain, WriterOptions::default());
    let Record::Checkpoint(last) = checkpoint(10, 0) else { unreachable!() };
    let last = Record::Checkpoint(Checkpoint { running: vec![], ..last });
    for record in [settle(1, 10), last, Record::Close] {
        writer.send(Entry { at_us: AT_US, record, grants: Vec::new(), done: None }).await;
    }
    drop(writer);
    let chain = task.await.unwrap().unwrap();
    ledger::end(&store, &chain, AT_US + 5).await.unwrap();
    assert!(ledger::end(&store, &chain, AT_US + 6).await.is_err(), "it has ended");
    let (_, recovered) = ledger::begin(&store, "two", AT_US + 9).await.unwrap();
    assert_eq!(recovered, [0; 0]);
    ledger::verify_store(&store, None).await.unwrap();
}

pub(crate) async fn a_start_refuses_a_ledger_that_was_changed(on: Fixture) {
    let store = on.open().await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    let (ended, live) = (chain.epoch, chain.epoch + 1);
    write(&store, chain, vec![settle(1, 10)]).await.1.unwrap();
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    write(&store, chain, vec![settle(2, 10)]).await.1.unwrap();
    on.may_change_the_ledger().await;
    for epoch in [ended, live] {
        // The other digit is one bit away.
        on.tamper(if epoch == ended { FLIP_FIRST } else { FLIP_SECOND }).await;
        let begun = ledger::begin(&store, "one", AT_US).await;
        let Err(LedgerError::BadRow(bad)) = begun else { panic!("not found: {begun:?}") };
        assert_eq!((bad.epoch, bad.seq), (epoch, 2), "{bad}");
        on.tamper(if epoch == ended { UNFLIP_FIRST } else { UNFLIP_SECOND }).await;
    }
    ledger::begin(&store, "one", AT_US).await.unwrap();
}

const FLIP_FIRST: &str = "UPDATE ledger SET device_ns = 11 WHERE request = 'req \"1\"'";
const UNFLIP_FIRST: &str = "UPDATE ledger SET device_ns = 10 WHERE request = 'req \"1\"'";
const FLIP_SECOND: &str = "UPDATE ledger SET prompt_tokens = 2 WHERE request = 'req \"2\"'";
const UNFLIP_SECOND: &str = "UPDATE ledger SET prompt_tokens = 3 WHERE request = 'req \"2\"'";

pub(crate) async fn a_days_sum_that_was_changed_is_found(on: Fixture) {
    let store = on.open().await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    write(&store, chain, (0..20).map(|number| settle(number, 10)).collect()).await.1.unwrap();
    ledger::verify_store(&store, None).await.unwrap();
    for (change, undo) in [
        ("UPDATE usage_days SET device_ns = device_ns - 1", "UPDATE usage_days SET device_ns = device_ns + 1"),
        ("UPDATE usage_days SET model = 'other'", "UPDATE usage_days SET model = 'tiny'"),
    ] {
        on.tamper(change).await;
        let found = ledger::verify_store(&store, None).await;
        assert!(matches!(&found, Err(LedgerError::Usage { tenant, .. }) if tenant == "acme"), "{found:?}");
        on.tamper(undo).await;
        ledger::verify_store(&store, None).await.unwrap();
    }
    on.tamper("DELETE FROM usage_days").await;
    assert!(matches!(ledger::verify_store(&store, None).await, Err(LedgerError::Usage { .. })));
}

pub(crate) async fn what_is_in_the_ledger_stays(on: Fixture) {
    let store = on.open().await;
    ledger::begin(&store, "one", AT_US).await.unwrap();
    for change in
        ["UPDATE ledger SET at_us = 1", "DELETE FROM ledger", "UPDATE anchors SET seq = 1", "DELETE FROM anchors"]
    {
        let mut tx = store.write().await.unwrap();
        let anchor = "INSERT INTO anchors (number, epoch, seq, at_us, hash) SELECT 1, epoch, 1, 1, head FROM epochs";
        tx.execute(anchor, &[]).await.unwrap();
        assert!(tx.execute(change, &[]).await.is_err(), "{change}");
    }
}

/// In the row of place 9, each column but its hash, and what puts it right again.
const FLIPS: [(&str, &str); 11] = [
    ("UPDATE ledger SET seq = 137 WHERE seq = 9", "UPDATE ledger SET seq = 9 WHERE seq = 137"),
    ("UPDATE ledger SET at_us = at_us + 1 WHERE seq = 9", "UPDATE ledger SET at_us = at_us - 1 WHERE seq = 9"),
    ("UPDATE ledger SET kind = 'recovered' WHERE seq = 9", "UPDATE ledger SET kind = 'settle' WHERE seq = 9"),
    ("UPDATE ledger SET tenant = 'acmd' WHERE seq = 9", "UPDATE ledger SET tenant = 'acme' WHERE seq = 9"),
    ("UPDATE ledger SET request = 'req \"w\"' WHERE seq = 9", "UPDATE ledger SET request = 'req \"7\"' WHERE seq = 9"),
    ("UPDATE ledger SET model = 'tinx' WHERE seq = 9", "UPDATE ledger SET model = 'tiny' WHERE seq = 9"),
    ("UPDATE ledger SET key = 'wk_c' WHERE seq = 9", "UPDATE ledger SET key = 'wk_a' WHERE seq = 9"),
    ("UPDATE ledger SET device_ns = 11 WHERE seq = 9", "UPDATE ledger SET device_ns = 10 WHERE seq = 9"),
    ("UPDATE ledger SET prompt_tokens = 2 WHERE seq = 9", "UPDATE ledger SET prompt_tokens = 3 WHERE seq = 9"),
    ("UPDATE ledger SET completion_tokens = 4 WHERE seq = 9", "UPDATE ledger SET completion_tokens = 5 WHERE seq = 9"),
    (
        "UPDATE ledger SET body = replace(body, 'starter', 'startes') WHERE seq = 9",
        "UPDATE ledger SET body = replace(body, 'startes', 'starter') WHERE seq = 9",
    ),
];
/// The first byte of its hash, for good.
const FLIP_HASH_SQLITE: &str = "UPDATE ledger SET hash = unhex(CASE substr(hex(hash), 1, 1) WHEN '0' THEN '1' ELSE '0' END \
     || substr(hex(hash), 2)) WHERE seq = 9";
const FLIP_HASH_POSTGRES: &str = "UPDATE ledger SET hash = set_byte(hash, 0, get_byte(hash, 0) # 1) WHERE seq = 9";

/// Whatever is changed of a row, `verify` names it, and a start does and begins nothing.
pub(crate) async fn a_byte_flipped_in_the_store_is_found_and_named(on: Fixture) {
    let store = on.open().await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    let epoch = chain.epoch;
    write(&store, chain, (0..20).map(|number| settle(number, 10)).collect()).await.1.unwrap();
    on.may_change_the_ledger().await;
    let named = async |change: &str, row: (i64, i64)| {
        let Err(LedgerError::BadRow(bad)) = ledger::verify_store(&store, None).await else { panic!("{change}") };
        assert_eq!((bad.epoch, bad.seq), row, "{change}");
        let begun = ledger::begin(&store, "one", AT_US).await;
        assert!(
            matches!(&begun, Err(LedgerError::BadRow(same)) if (same.epoch, same.seq) == row),
            "{change}: {begun:?}, {bad:?}"
        );
        assert!(bad.to_string().starts_with(&format!("row {} of epoch {}: ", row.1, row.0)), "{bad}");
    };
    for (change, undo) in FLIPS {
        on.tamper(change).await;
        named(change, (epoch, 9)).await;
        on.tamper(undo).await;
        assert!(ledger::verify_store(&store, None).await.is_ok(), "{undo}");
    }
    on.tamper("DELETE FROM ledger WHERE seq = 21").await;
    named("the last row is gone", (epoch, 21)).await;
    on.tamper(if on.dialect == Dialect::Sqlite { FLIP_HASH_SQLITE } else { FLIP_HASH_POSTGRES }).await;
    named("the hash", (epoch, 9)).await;
}

fn ask(id: i64, epoch: i64, wanted: i64, at_us: i64) -> Ask {
    Ask {
        id,
        tenant: "acme".into(),
        unit: Unit::Requests,
        replica: "one".into(),
        epoch,
        want: Want { wanted, least: 1, floor: 1 },
        at_us,
        expires_us: at_us + 5_000_000,
    }
}

/// 500 at once want one request each, and there is room for ten.
pub(crate) async fn of_five_hundred_at_once_exactly_ten_get_a_place(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    let epoch = chain.epoch;
    let limits = Limits { amounts: [Some(10), None, Some(1_000_000)], ..Limits::default() };
    let ids = Arc::new(AtomicI64::new(1));
    let full = std::env::var("WEIR_PROOFS").is_ok_and(|size| size == "full");
    for round in 0..if full { 1_000 } else { 3 } {
        // Each round is an hour of its own.
        let at_us = AT_US + round * 3_600_000_000;
        let tasks: Vec<_> = (0..500)
            .map(|_| {
                let (store, ids) = (store.clone(), ids.clone());
                tokio::spawn(async move {
                    loop {
                        let id = ids.fetch_add(1, Ordering::Relaxed);
                        match quota::take(&store, &ask(id, epoch, 1, at_us), &limits, 0).await {
                            Ok(Taken::Answer(Answer::Granted { amount, .. })) => return amount,
                            Ok(_) => return 0,
                            // Too many wait for a connection: nothing has happened.
                            Err(weir_runtime::store::StoreError::Unavailable(_)) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        let mut got = 0;
        for task in tasks {
            got += task.await.unwrap();
        }
        assert_eq!(got, 10, "round {round}");
    }
}

pub(crate) async fn grants_in_rows_do_what_grants_in_memory_do(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    let limits =
        Limits { amounts: [Some(40), Some(60), Some(200)], burst_percent: 25, carry_percent: 50, ..Limits::default() };
    let skew_us = 1_000_000;
    let mut model = quota::Grants::new(skew_us);
    let (mut seed, mut at_us) = (7u64, AT_US);
    let mut below = |end: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) % end) as i64
    };
    for _ in 0..300 {
        at_us += below(1_200) * 1_000_000;
        let id = below(60);
        if below(2) == 0 {
            let ask = ask(id, chain.epoch, 1 + below(20), at_us);
            assert_eq!(quota::take(&store, &ask, &limits, skew_us).await.unwrap(), model.take(&ask, &limits));
        } else {
            let report = ReportOf { id, spent: below(20), expires_us: at_us + 5_000_000, closes: below(2) == 0 };
            let expected = match report.closes {
                true => model.give_back(id, report.spent),
                false => model.extend(id, report.spent, report.expires_us),
            };
            assert_eq!(quota::report(&store, &[report]).await.unwrap(), [expected]);
        }
    }
    let mut tx = store.read().await.unwrap();
    let sql = "SELECT granted, spent, carried FROM windows WHERE tenant = $1 AND unit = $2 AND period = $3 \
               AND begins_us = $4";
    for ((tenant, unit, period, begins_us), window) in model.windows() {
        // A window in which all was refused has no row.
        if window.granted == 0 && window.spent == 0 {
            continue;
        }
        let values = [Value::from(tenant), unit.name().into(), period.name().into(), (*begins_us).into()];
        let row = tx.row(sql, &values).await.unwrap().unwrap();
        let mut fields = row.fields();
        let found = (fields.int().unwrap(), fields.int().unwrap(), fields.int().unwrap());
        assert_eq!(found, (window.granted, window.spent, window.brought), "{period:?} {begins_us}");
    }
}
