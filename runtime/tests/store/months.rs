//! Months that are closed and archived, and heads that are noted, on either database.

use weir_runtime::{
    billing,
    ledger::{
        self, Archive, Entry, LedgerError, MonthFault, NotNow, Record, Settle, Share, SigningKey, Statement, Writer,
        WriterOptions,
    },
    quota::calendar::{self, Period},
    store::{Actor, Store},
};

use crate::{cases::with_tenants, fixture::Fixture, ledger::checkpoint};

const DAY_US: i64 = 86_400_000_000;

fn begins(month: &str) -> i64 {
    calendar::month_begins_us(month).unwrap()
}

/// When a month can be closed.
fn over(month: &str) -> i64 {
    Period::Month.end(begins(month)) + 600_000_000
}

fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32])
}

fn settle(number: i64, ns: i64) -> Record<'static> {
    Record::Settle(Settle {
        tenant: "acme".into(),
        request: format!("1-{number}").into(),
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

/// Writes records at their times, after what a replica has begun; the chain's end.
async fn write(store: &Store, chain: ledger::Chain, records: Vec<(i64, Record<'static>)>) -> ledger::Chain {
    let (writer, task) = Writer::start(store.clone(), chain, WriterOptions::default());
    for (at_us, record) in records {
        writer.send(Entry { at_us, record, grants: Vec::new(), done: None }).await;
    }
    drop(writer);
    task.await.unwrap().unwrap()
}

/// Two months in one epoch that goes on, with 2,500 bills of 10 ns each, and one that runs.
async fn two_months(store: &Store) -> ledger::Chain {
    let october = begins("2026-10") + DAY_US;
    let (chain, _) = ledger::begin(store, "one", october).await.unwrap();
    let mut records: Vec<_> = (0..1_500).map(|number| (october + number, settle(number, 10))).collect();
    records.push((october + 2_000, checkpoint(15_007, 7)));
    let november = begins("2026-11");
    records.extend((1_500..2_500).map(|number| (november + number, settle(number, 10))));
    write(store, chain, records).await
}

async fn close(store: &Store, month: &str, now_us: i64) -> Result<Statement, LedgerError> {
    ledger::close_month(store, &key(), &Actor::system(), begins(month), now_us).await
}

fn used(statement: &Statement) -> Vec<[i64; 4]> {
    statement.month.usage.iter().map(ledger::Usage::sums).collect()
}

async fn count(store: &Store, sql: &'static str) -> i64 {
    store.read().await.unwrap().row(sql, &[]).await.unwrap().unwrap().fields().int().unwrap()
}

const ROWS: &str = "SELECT count(*) FROM ledger";

pub(crate) async fn months_are_closed_in_order_when_they_are_over(on: Fixture) {
    let store = on.open().await;
    let refused = close(&store, "2026-10", over("2026-10")).await.unwrap_err();
    assert!(matches!(refused, LedgerError::NotNow(NotNow::Empty)), "{refused}");
    two_months(&store).await;
    let refused = close(&store, "2026-10", over("2026-10") - 1).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::NotNow(NotNow::Open { month }) if month == "2026-10"), "{refused}");
    for other in ["2026-09", "2026-11"] {
        let refused = close(&store, other, over("2026-12")).await.unwrap_err();
        assert!(
            matches!(&refused, LedgerError::NotNow(NotNow::NotNext { next, .. }) if next == "2026-10"),
            "{refused}"
        );
    }
    let october = close(&store, "2026-10", over("2026-10")).await.unwrap();
    assert_eq!(used(&october), [[1_500, 15_000, 4_500, 7_500]]);
    assert_eq!(close(&store, "2026-10", over("2026-12")).await.unwrap(), october, "it is closed once");

    // By itself: what is over, and nothing else; an empty month, too.
    assert_eq!(ledger::close_months(&store, &key(), over("2026-11") - 1).await.unwrap(), []);
    let rest = ledger::close_months(&store, &key(), over("2026-12")).await.unwrap();
    let names: Vec<&str> = rest.iter().map(|statement| statement.month.month.as_str()).collect();
    assert_eq!(names, ["2026-11", "2026-12"]);
    assert_eq!((used(&rest[0]), used(&rest[1])), (vec![[1_000, 10_000, 3_000, 5_000]], vec![]));
    let all = ledger::statements(&store).await.unwrap();
    assert_eq!(all, [vec![october], rest].concat());
    assert_eq!(ledger::last_month(&store).await.unwrap().as_ref(), all.last());

    let verified = ledger::verify_store(&store, Some(&[key().public()])).await.unwrap();
    assert_eq!((verified.rows, verified.requests, verified.months, verified.epochs), (2_502, 2_500, 3, 1));
    let other = SigningKey::from_seed(&[8; 32]).public();
    let refused = ledger::verify_store(&store, Some(&[other])).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::Month { fault: MonthFault::Signer(_), .. }), "{refused}");
    assert_eq!(count(&store, "SELECT count(*) FROM audit WHERE action = 'ledger.close'").await, 3);
}

pub(crate) async fn of_many_replicas_one_closes_a_month(on: Fixture) {
    let store = on.open().await;
    two_months(&store).await;
    let tasks: Vec<_> = (0..6u8)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let key = SigningKey::from_seed(&[number; 32]);
                ledger::close_months(&store, &key, over("2026-11")).await.unwrap();
                ledger::statements(&store).await.unwrap()
            })
        })
        .collect();
    let mut found = Vec::new();
    for task in tasks {
        found.push(task.await.unwrap());
    }
    assert!(found.iter().all(|statements| *statements == found[0] && statements.len() == 2), "{found:?}");
    assert_eq!(count(&store, "SELECT count(*) FROM audit WHERE action = 'ledger.close'").await, 2);
    ledger::verify_store(&store, None).await.unwrap();
}

pub(crate) async fn a_late_bill_is_in_the_next_month_and_in_one_invoice(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let chain = two_months(&store).await;
    let invoice = |month: &'static str, signs| {
        let store = store.clone();
        async move { billing::invoice(&store, "acme", begins(month), over(month), signs).await.unwrap() }
    };
    let waits = invoice("2026-10", true).await;
    assert_eq!((waits.closed, waits.used.requests), (false, 1_500), "where months are closed it waits for that");
    assert_eq!(billing::keep_invoices(&store, over("2026-10"), true).await.unwrap(), 0);
    close(&store, "2026-10", over("2026-10")).await.unwrap();
    assert_eq!(billing::keep_invoices(&store, over("2026-10"), true).await.unwrap(), 1);
    // The clock had stepped back into October.
    write(&store, chain, vec![(begins("2026-10") + 5, settle(9_000, 50))]).await;
    close(&store, "2026-11", over("2026-11")).await.unwrap();
    let (october, november) = (invoice("2026-10", true).await, invoice("2026-11", true).await);
    assert_eq!((october.closed, october.used.requests, october.used.device_ns), (true, 1_500, 15_000));
    assert_eq!((november.closed, november.used.requests, november.used.device_ns), (true, 1_001, 10_050));
    let statements = ledger::statements(&store).await.unwrap();
    assert_eq!(billing::unequal_invoices(&store, &statements).await.unwrap(), []);
    ledger::verify_store(&store, None).await.unwrap();
}

pub(crate) async fn an_invoice_that_is_not_its_statement_is_found(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let chain = two_months(&store).await;
    // Made by a server that closes no months, of days: a bill of November that is written late is not in it, and one of
    // December whose row stands before a row of November would be.
    let day = billing::invoice(&store, "acme", begins("2026-11"), over("2026-11"), false).await.unwrap();
    assert!(day.closed);
    write(&store, chain, vec![(over("2026-11") - 700_000_000, settle(9_000, 50))]).await;
    ledger::close_months(&store, &key(), over("2026-11")).await.unwrap();
    let statements = ledger::statements(&store).await.unwrap();
    let unequal = billing::unequal_invoices(&store, &statements).await.unwrap();
    let expected = billing::Unequal { tenant: "acme".into(), month: "2026-11".into(), changed: false };
    assert_eq!(unequal, [expected]);
    // Made of the statement, and changed since.
    billing::invoice(&store, "acme", begins("2026-10"), over("2026-11") + 1, true).await.unwrap();
    on.may_change_the_ledger().await;
    on.tamper("UPDATE invoices SET body = replace(body, '\"requests\":1500', '\"requests\":1501')").await;
    let unequal = billing::unequal_invoices(&store, &statements).await.unwrap();
    assert!(unequal.iter().any(|of| of.changed && of.month == "2026-10"), "{unequal:?}");
}

/// The file of a month.
async fn exported(store: &Store, month: &str) -> Vec<u8> {
    let archive = Archive::open(store, begins(month)).await.unwrap();
    let mut file = serde_json::to_vec(&archive.head).unwrap();
    let (mut after, mut count) = ((i64::MIN, 0), 0);
    loop {
        let rows = archive.page(store, after).await.unwrap();
        let Some(last) = rows.last() else { break };
        (after, count) = ((last.epoch, last.seq), count + rows.len());
        for row in &rows {
            file.push(b'\n');
            serde_json::to_writer(&mut file, row).unwrap();
        }
    }
    file.extend(format!("\n{{\"object\":\"end\",\"rows\":{count}}}\n").into_bytes());
    file
}

pub(crate) async fn rows_are_archived_after_their_export_was_checked(on: Fixture) {
    let store = on.open().await;
    let chain = two_months(&store).await;
    let october = close(&store, "2026-10", over("2026-10")).await.unwrap();
    close(&store, "2026-11", over("2026-11")).await.unwrap();
    let file = exported(&store, "2026-10").await;
    let checked = ledger::check_archive(&file[..]).unwrap();
    assert_eq!((checked.hash, checked.rows, &checked.month), (october.hash, 1_502, &october.month));
    let second = ledger::check_archive(&exported(&store, "2026-11").await[..]).unwrap();
    assert_eq!(second.rows, 1_000);

    let days = count(&store, "SELECT count(*) FROM usage_days").await;
    let late = Period::Month.end(begins("2026-10")) + 2 * DAY_US;
    let archive = |month: &'static str, hash, rows, now_us| {
        let store = store.clone();
        async move { ledger::archive_month(&store, &Actor::system(), begins(month), (hash, rows), now_us).await }
    };
    for (month, hash, rows, now_us) in [
        ("2026-10", october.hash, 1_502, late - 1),
        ("2026-10", october.hash, 1_501, late),
        ("2026-10", second.hash, 1_502, late),
        ("2026-11", second.hash, 1_000, late + 40 * DAY_US),
        ("2026-12", second.hash, 0, late + 90 * DAY_US),
    ] {
        let refused = archive(month, hash, rows, now_us).await.unwrap_err();
        assert!(matches!(refused, LedgerError::NotNow(_)), "{month} {rows}: {refused}");
    }
    assert_eq!(count(&store, ROWS).await, 2_502);
    assert_eq!(archive("2026-10", october.hash, 1_502, late).await.unwrap(), 1_502);
    assert_eq!(archive("2026-10", october.hash, 1_502, late).await.unwrap(), 0, "it is done");
    assert_eq!((count(&store, ROWS).await, count(&store, "SELECT count(*) FROM usage_days").await), (1_000, days));
    assert!(Archive::open(&store, begins("2026-10")).await.is_err());
    let verified = ledger::verify_store(&store, None).await.unwrap();
    assert_eq!((verified.rows, verified.requests, verified.months), (1_000, 1_000, 2));

    // All that is closed goes, and the chain goes on: its writer, its recovery, and what is unique.
    let now_us = Period::Month.end(begins("2026-11")) + 2 * DAY_US;
    assert_eq!(archive("2026-11", second.hash, 1_000, now_us).await.unwrap(), 1_000);
    assert_eq!(count(&store, ROWS).await, 0);
    let epoch = chain.epoch;
    let chain = write(&store, chain, vec![(now_us, settle(3_000, 10))]).await;
    write(&store, chain, vec![(now_us, settle(3_000, 10)), (now_us, settle(3_001, 1))]).await;
    let verified = ledger::verify_store(&store, None).await.unwrap();
    assert_eq!((verified.rows, verified.requests), (2, 2), "the same bill is there once");
    let (_, recovered) = ledger::begin(&store, "one", now_us + 5).await.unwrap();
    assert_eq!(recovered, [epoch]);
    let verified = ledger::verify_store(&store, None).await.unwrap();
    assert_eq!((verified.requests, verified.epochs), (3, 2), "what ran is billed");
    close(&store, "2026-12", over("2026-12")).await.unwrap();
    ledger::verify_store(&store, None).await.unwrap();
}

pub(crate) async fn an_archive_that_broke_off_is_finished(on: Fixture) {
    let store = on.open().await;
    two_months(&store).await;
    close(&store, "2026-10", over("2026-10")).await.unwrap();
    // Marked, and nothing removed: as a crash leaves it.
    let mark = "UPDATE months SET archived_us = 5 WHERE month = 202610";
    let mut tx = store.write().await.unwrap();
    assert_eq!(tx.execute(mark, &[]).await.unwrap(), 1);
    tx.commit().await.unwrap();
    ledger::verify_store(&store, None).await.unwrap();
    let mut tx = store.write().await.unwrap();
    assert_eq!(tx.execute("DELETE FROM ledger WHERE seq <= 700", &[]).await.unwrap(), 700);
    tx.commit().await.unwrap();
    ledger::verify_store(&store, None).await.unwrap();
    let other = ledger::Hash([1; 32]);
    let again = ledger::archive_month(&store, &Actor::system(), begins("2026-10"), (other, 0), over("2026-10")).await;
    assert_eq!(again.unwrap(), 802);
    assert_eq!(ledger::remove_archived(&store).await.unwrap(), 0);
    assert_eq!(ledger::verify_store(&store, None).await.unwrap().rows, 1_000);
}

/// What no statement covers stays, and statements stay as they are.
pub(crate) async fn only_what_an_archived_month_covers_can_be_removed(on: Fixture) {
    let store = on.open().await;
    two_months(&store).await;
    close(&store, "2026-10", over("2026-10")).await.unwrap();
    close(&store, "2026-11", over("2026-11")).await.unwrap();
    for refused in [
        "DELETE FROM ledger",
        "DELETE FROM ledger WHERE seq = 1",
        "DELETE FROM months",
        "UPDATE months SET body = '{}'",
        "UPDATE months SET archived_us = NULL",
        "UPDATE months SET archived_us = 5 WHERE month = 202611",
        "INSERT INTO months (month, closed_us, body, hash, signer, signature, archived_us) \
         SELECT 202612, closed_us, body, hash, signer, signature, 5 FROM months WHERE month = 202611",
    ] {
        let mut tx = store.write().await.unwrap();
        assert!(tx.execute(refused, &[]).await.is_err(), "{refused}");
    }
    let mut tx = store.write().await.unwrap();
    tx.execute("UPDATE months SET archived_us = 5 WHERE month = 202610", &[]).await.unwrap();
    tx.commit().await.unwrap();
    for refused in [
        "DELETE FROM ledger",
        "DELETE FROM ledger WHERE seq = 1503",
        "UPDATE months SET archived_us = 6",
        "DELETE FROM months",
    ] {
        let mut tx = store.write().await.unwrap();
        assert!(tx.execute(refused, &[]).await.is_err(), "{refused}");
    }
    let mut tx = store.write().await.unwrap();
    assert_eq!(tx.execute("DELETE FROM ledger WHERE seq <= 1502", &[]).await.unwrap(), 1_502);
}

pub(crate) async fn a_changed_row_of_a_closed_month_is_not_closed_and_is_found(on: Fixture) {
    let store = on.open().await;
    two_months(&store).await;
    on.may_change_the_ledger().await;
    on.tamper("UPDATE ledger SET model = 'tinx' WHERE seq = 9").await;
    let refused = close(&store, "2026-10", over("2026-10")).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::BadRow(bad) if bad.seq == 9), "{refused}");
    on.tamper("UPDATE ledger SET model = 'tiny' WHERE seq = 9").await;
    close(&store, "2026-10", over("2026-10")).await.unwrap();
    on.tamper("UPDATE ledger SET model = 'tinx' WHERE seq = 9").await;
    let refused = ledger::verify_store(&store, None).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::BadRow(bad) if bad.seq == 9), "{refused}");
    // A start begins at the statement.
    ledger::begin(&store, "one", over("2026-10")).await.unwrap();
    on.tamper("UPDATE ledger SET model = 'tiny' WHERE seq = 9").await;
    ledger::verify_store(&store, None).await.unwrap();
    on.tamper("UPDATE months SET signature = hash").await;
    let refused = ledger::verify_store(&store, None).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::Month { fault: MonthFault::Signature, .. }), "{refused}");
    let refused = ledger::begin(&store, "one", over("2026-10")).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::Month { .. }), "{refused}");
}

pub(crate) async fn heads_are_noted_once_a_day_and_at_an_epochs_end(on: Fixture) {
    let store = on.open().await;
    assert_eq!(ledger::note_heads(&store, DAY_US).await.unwrap(), None, "there is none");
    let chain = two_months(&store).await;
    let at_us = begins("2026-11") + DAY_US;
    let first = ledger::note_heads(&store, at_us).await.unwrap().unwrap();
    assert_eq!((first.number, first.heads.len(), first.heads[0].seq), (1, 1, 2_502));
    assert_eq!(ledger::note_heads(&store, at_us + DAY_US - 1).await.unwrap(), None);
    assert_eq!(ledger::note_heads(&store, at_us + DAY_US).await.unwrap(), None, "nothing has moved");
    // The next start ends the epoch, and notes that on the same day.
    ledger::begin(&store, "one", at_us + 5).await.unwrap();
    const ANCHORS: &str = "SELECT count(*) FROM anchors WHERE epoch = 0";
    assert_eq!(count(&store, ANCHORS).await, 2);
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { ledger::note_heads(&store, at_us + 2 * DAY_US).await.unwrap() })
        })
        .collect();
    let mut noted = 0;
    for task in tasks {
        noted += usize::from(task.await.unwrap().is_some());
    }
    assert_eq!((noted, count(&store, ANCHORS).await), (1, 3), "of many replicas one");
    ledger::verify_store(&store, None).await.unwrap();

    on.may_change_the_ledger().await;
    on.tamper("UPDATE anchors SET seq = 2 WHERE number = 1 AND epoch > 0").await;
    let refused = ledger::verify_store(&store, None).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Anchor { number: 1 }), "{refused}");
    on.tamper("UPDATE anchors SET seq = 2502 WHERE number = 1 AND epoch > 0").await;
    on.tamper("DELETE FROM anchors WHERE number = 3").await;
    let refused = ledger::verify_store(&store, None).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Anchor { number: 3 }), "{refused}");
    assert_eq!(chain.epoch, 1);
}
