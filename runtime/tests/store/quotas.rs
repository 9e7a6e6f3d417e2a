//! Quotas over a store: real engines on the `fake:` executor, and counts of several replicas.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use weir_runtime::{
    Accounts, DeviceQuota, Engine, RequestQuota, SubmitError, TenantId, TenantSpec,
    ledger::{self, WriterOptions},
    quota::{self, Limits, Period, Refusal, ReportOf, RequestCounts, Source, Taken, Ticket, Unit, Want},
    store::{Store, Value},
};

use crate::{
    cases::with_tenants,
    fixture::Fixture,
    ledger::AT_US,
    rig::{self, complete},
};

const FAKE: &str = "fake:step=1ms,token=1us";

/// An engine of these tenants over a store, as one replica of several.
pub(crate) async fn engine(store: &Store, replica: &str, tenants: Vec<TenantSpec>) -> Engine {
    let mut config = rig::config(rig::specs(&[FAKE]));
    config.tenants = tenants;
    config.accounts =
        Some(Accounts { store: store.clone(), replica: replica.into(), options: WriterOptions::default() });
    Engine::start(config).await.unwrap()
}

/// A tenant with room for so many requests a month.
fn counted(name: &str, month: u64) -> TenantSpec {
    let requests = RequestQuota { month: Some(month), ..RequestQuota::default() };
    TenantSpec { requests, queue_len_max: 1_000, ..TenantSpec::named(name) }
}

/// Of all windows that there are: what is granted, spent and allowed, by tenant, unit and period.
pub(crate) async fn windows(store: &Store) -> Vec<(String, String, String, i64, i64)> {
    let sql = "SELECT tenant, unit, period, granted, spent FROM windows ORDER BY tenant, unit, period, begins_us";
    let mut tx = store.read().await.unwrap();
    let rows = tx.rows(sql, &[]).await.unwrap();
    let read = |row: &weir_runtime::store::Row| {
        let mut fields = row.fields();
        let names = (fields.text().unwrap(), fields.text().unwrap(), fields.text().unwrap());
        (names.0, names.1, names.2, fields.int().unwrap(), fields.int().unwrap())
    };
    rows.iter().map(read).collect()
}

/// What is granted and spent of all windows of a tenant, unit and period: the clock may pass an hour meanwhile.
pub(crate) async fn sums(store: &Store) -> BTreeMap<(String, String, String), (i64, i64)> {
    let mut sums: BTreeMap<_, (i64, i64)> = BTreeMap::new();
    for (tenant, unit, period, granted, spent) in windows(store).await {
        let sum = sums.entry((tenant, unit, period)).or_default();
        *sum = (sum.0 + granted, sum.1 + spent);
    }
    sums
}

fn rounds() -> usize {
    if std::env::var("WEIR_PROOFS").is_ok_and(|size| size == "full") { 1_000 } else { 3 }
}

/// Figure 1: 500 clients race for room for exactly ten requests. Each round has a tenant of its own.
pub(crate) async fn of_five_hundred_clients_ten_are_answered(on: Fixture) {
    let store = on.open().await;
    let names: Vec<String> = (0..rounds()).map(|round| format!("t{round}")).collect();
    with_tenants(&store, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let engine = engine(&store, "one", names.iter().map(|name| counted(name, 10)).collect()).await;
    for name in &names {
        let mut clients = JoinSet::new();
        for _ in 0..500 {
            let (engine, submission) = (engine.clone(), rig::text(&engine, name, "hi", 2));
            clients.spawn(async move {
                match engine.submit(submission).await {
                    Ok(stream) => rig::read(stream, 1).await.end.is_ok(),
                    Err(SubmitError::QuotaSpent { retry_after, .. }) => {
                        assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(31 * 86_400));
                        false
                    }
                    Err(error) => panic!("{error}"),
                }
            });
        }
        let answered = clients.join_all().await.into_iter().filter(|answered| *answered).count();
        assert_eq!(answered, 10, "{name}");
    }
    println!("figure=1.rounds value={} clients=500 answered=10 each", names.len());
    engine.shutdown(Duration::from_secs(10)).await;
    let all = sums(&store).await;
    assert_eq!(all.len(), names.len() * Period::ALL.len());
    assert!(all.values().all(|sums| *sums == (10, 10)), "{all:?}");
}

/// Whoever counts on three replicas lets in as many as there is room for: what one of them does not use, another gets.
pub(crate) async fn three_replicas_let_in_as_many_as_there_is_room_for(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let limits = |month| Limits { amounts: [None, None, Some(month)], ..Limits::default() };
    let mut replicas = Vec::new();
    for name in ["one", "two", "three"] {
        let (chain, _) = ledger::begin(&store, name, AT_US).await.unwrap();
        replicas.push(RequestCounts::new(Source::store(store.clone(), name, chain.epoch)));
    }
    let mut room = 0;
    for round in 1..=10 {
        room += 10;
        replicas.iter().for_each(|counts| counts.put(1, "acme", limits(room)));
        let mut clients = JoinSet::new();
        for client in 0..500 {
            let counts = replicas[client % 3].clone();
            clients.spawn(async move {
                let taken = counts.take(1).await;
                assert_ne!(taken.as_ref().err(), Some(&Refusal::Unknown));
                taken.map(|ticket| ticket.map(Ticket::used)).is_ok()
            });
        }
        let let_in = clients.join_all().await.into_iter().filter(|let_in| *let_in).count();
        assert_eq!(let_in, 10, "round {round}");
    }
    // One of them takes and goes away without using it; another gets that one.
    replicas.iter().for_each(|counts| counts.put(1, "acme", limits(room + 1)));
    let unused = replicas[0].take(1).await.unwrap().unwrap();
    assert!(replicas[1].take(1).await.is_err());
    drop(unused);
    replicas[0].end().await;
    let found = async {
        loop {
            match replicas[1].take(1).await {
                Ok(ticket) => return ticket.unwrap().used(),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.expect("it is given back");
    for counts in &replicas {
        counts.end().await;
    }
    let all = sums(&store).await;
    assert!(all.values().all(|sums| *sums == (room + 1, room + 1)), "{all:?}");
}

/// What requests were charged is what their windows say, to the nanosecond, and nothing is held when an engine has ended.
pub(crate) async fn windows_of_a_store_sum_to_device_time(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme", "beta"]).await;
    let time = |millis| Some(Duration::from_millis(millis));
    let quota = DeviceQuota { hour: time(400), day: time(100_000), month: time(100_000) };
    let acme = TenantSpec { quota, ..TenantSpec::named("acme") };
    let begun = Instant::now();
    let engine = engine(&store, "one", vec![acme, TenantSpec::named("beta")]).await;
    let mut cut = 0;
    for _ in 0..40 {
        let (first, second) = (rig::text(&engine, "acme", "hello", 10), rig::text(&engine, "acme", "world", 10));
        for submitted in [engine.submit(first).await, engine.submit(second).await] {
            match submitted {
                Ok(stream) => match rig::read(stream, 1).await.end {
                    Ok(usage) => cut += u64::from(usage.stop.is_some()),
                    Err(_) => cut += 1,
                },
                Err(SubmitError::QuotaSpent { .. }) => cut += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(cut > 0, "the hour has less than that");
    complete(&engine, rig::text(&engine, "beta", "hello", 10)).await.end.unwrap();
    let overrun = rig::metric(&engine, r#"weir_device_seconds_total{device="cpu:0",account="overrun""#).await;
    engine.shutdown(Duration::from_secs(10)).await;
    let was_slow = begun.elapsed() >= Duration::from_secs(5);
    let all = sums(&store).await;
    assert_eq!(all.len(), 3, "who has no quota has no windows: {all:?}");
    // Not what clients were told: one that had its prompt computed and not a token has a bill and no answer.
    let mut tx = store.read().await.unwrap();
    let bills = tx.rows("SELECT device_ns FROM ledger WHERE kind = 'settle' AND tenant = 'acme'", &[]).await.unwrap();
    let charged: i64 = bills.iter().map(|row| row.fields().int().unwrap()).sum();
    drop(tx);
    for ((tenant, unit, period), sums) in &all {
        assert_eq!((tenant.as_str(), unit.as_str()), ("acme", "device_ns"));
        // A bill is what windows say it spent, and whatever was above its grants is the operator's. Where the machine
        // stood still for a grant's whole life, what was reported after its end is no window's.
        let (granted, spent) = *sums;
        assert!(granted == spent && spent <= charged, "{period}: {sums:?} of {charged}");
        assert!(spent == charged || was_slow, "{period}: {sums:?} of {charged}, {overrun} s of overrun");
    }
    // All of it, or of two hours.
    assert!(windows(&store).await.iter().all(|(.., granted, _)| *granted <= 800_000_000));
}

/// A tenant that has come later is metered, and one whose quota is lifted is not.
pub(crate) async fn a_quota_that_came_later_is_kept_in_the_store(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme", "beta"]).await;
    let engine = engine(&store, "one", vec![TenantSpec::named("acme")]).await;
    engine.put_tenant(TenantId(2), counted("beta", 1)).await.unwrap();
    let mut told = engine.quota_notices();
    let submission = || rig::text(&engine, "beta", "hi", 2);
    complete(&engine, submission()).await.end.unwrap();
    let refused = engine.submit(submission()).await.err();
    assert!(matches!(refused, Some(SubmitError::QuotaSpent { .. })), "{refused:?}");
    let notice = told.try_recv().unwrap();
    assert_eq!((notice.tenant.as_str(), notice.unit, notice.period), ("beta", Unit::Requests, Period::Month));
    assert_eq!(notice.passed, quota::Passed::Spent);
    engine.put_tenant(TenantId(2), TenantSpec::named("beta")).await.unwrap();
    complete(&engine, submission()).await.end.unwrap();
    let (unit, period) = (Unit::Requests, Period::Month);
    let soft = quota::QuotaWarning { unit, period, percent: 50, granted: 2, allowed: 2, until_us: 0 };
    let mut spec = counted("beta", 2);
    spec.terms.soft_limit_percent = 50;
    let limits = spec.limits(Unit::Requests).unwrap();
    engine.put_tenant(TenantId(2), spec).await.unwrap();
    complete(&engine, submission()).await.end.unwrap();
    let warned = engine.quota_warnings(TenantId(2));
    assert_eq!(
        warned.iter().map(|warning| quota::QuotaWarning { until_us: 0, ..*warning }).collect::<Vec<_>>(),
        [soft]
    );
    let mut tx = store.read().await.unwrap();
    let windows = quota::windows(&mut tx, "beta", Unit::Requests, &limits, warned[0].until_us - 1).await.unwrap();
    assert_eq!(windows.map(|window| window.granted), [0, 0, 2], "the month's last hour has had nothing");
    let later = quota::windows(&mut tx, "beta", Unit::Requests, &limits, warned[0].until_us).await.unwrap();
    assert_eq!(later.map(|window| window.granted), [0; 3]);
    drop(tx);
    engine.shutdown(Duration::from_secs(10)).await;
}

/// A request that the scheduler refuses is none.
pub(crate) async fn a_refused_request_gives_its_count_back(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let spec = TenantSpec { running_max: 1, queue_len_max: 1, ..counted("acme", 3) };
    let engine = engine(&store, "one", vec![spec]).await;
    let long = engine.submit(rig::text(&engine, "acme", "hi", 3_000)).await.unwrap();
    let mut busy = 0;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        match engine.submit(rig::text(&engine, "acme", "hi", 2)).await {
            Ok(stream) => waiting.push(stream),
            Err(SubmitError::Busy { tenant_limit: true, .. }) => busy += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(busy >= 18, "one runs and one waits, or one did when the other was not begun: {busy}");
    drop(long);
    for stream in waiting {
        rig::read(stream, 1).await.end.unwrap();
    }
    complete(&engine, rig::text(&engine, "acme", "hi", 2)).await.end.unwrap();
    let refused = engine.submit(rig::text(&engine, "acme", "hi", 2)).await.err();
    assert!(matches!(refused, Some(SubmitError::QuotaSpent { .. })), "{refused:?}");
    engine.shutdown(Duration::from_secs(10)).await;
}

/// Reports of many grants at once do what they do one by one; an id that is somebody else's gives nothing; and closed grants
/// of a month that is over are forgotten.
pub(crate) async fn many_reports_are_one_and_old_grants_are_forgotten(on: Fixture) {
    let store = on.open().await;
    with_tenants(&store, &["acme", "beta"]).await;
    let (chain, _) = ledger::begin(&store, "one", AT_US).await.unwrap();
    let limits = Limits { amounts: [Some(1_000), None, None], ..Limits::default() };
    let (source, mut model) = (Source::store(store.clone(), "one", chain.epoch), quota::Grants::new(1_000_000));
    let mut reports = Vec::new();
    for number in 0..40 {
        let tenant = ["acme", "beta"][number % 2];
        let unit = Unit::ALL[number / 20];
        // Some are of another hour.
        let at_us = AT_US + (number as i64 % 3) * 3_600_000_000;
        let ask = source.ask(tenant, unit, Want::of(10), at_us);
        let taken = source.take(&ask, &limits).await.unwrap();
        assert_eq!(taken, model.take(&ask, &limits));
        let foreign = quota::Ask { tenant: ["beta", "acme"][number % 2].into(), ..ask.clone() };
        assert_eq!(source.take(&foreign, &limits).await, Some(Taken::Foreign));
        assert_eq!(model.take(&foreign, &limits), Taken::Foreign);
        assert_eq!(source.take(&ask, &limits).await.unwrap(), model.take(&ask, &limits));
        let spent = number as i64 % 13;
        reports.push(ReportOf { id: ask.id, spent, expires_us: at_us + 5_000_000, closes: number % 4 == 0 });
        // Twice in one list, and one that nobody knows.
        if number % 10 == 0 {
            reports.push(ReportOf { id: ask.id, spent: spent + 1, expires_us: 0, closes: false });
            reports.push(ReportOf { id: 7, spent: 1, expires_us: 0, closes: false });
        }
    }
    let one_by_one: Vec<_> = reports
        .iter()
        .map(|report| match report.closes {
            true => model.give_back(report.id, report.spent),
            false => model.extend(report.id, report.spent, report.expires_us),
        })
        .collect();
    assert_eq!(quota::report(&store, &reports).await.unwrap(), one_by_one);
    let mut expected: BTreeMap<_, (i64, i64)> = BTreeMap::new();
    for ((tenant, unit, period, _), window) in model.windows() {
        let sum = expected.entry((tenant.clone(), unit.name().to_owned(), period.name().to_owned())).or_default();
        *sum = (sum.0 + window.granted, sum.1 + window.spent);
    }
    assert_eq!(sums(&store).await, expected);

    let count = async |closed: i64| {
        let mut tx = store.read().await.unwrap();
        let sql = "SELECT count(*) FROM grants WHERE closed = $1";
        tx.row(sql, &[Value::from(closed)]).await.unwrap().unwrap().fields().int().unwrap()
    };
    let open = model.grants().values().filter(|grant| !grant.closed).count() as i64;
    assert_eq!((count(0).await, count(1).await), (open, 40 - open));
    let all: Vec<_> = reports.iter().map(|report| ReportOf { closes: true, ..*report }).collect();
    quota::report(&store, &all).await.unwrap();
    let month = Period::Month.end(Period::Month.begin(AT_US));
    let later = |days: i64| source.ask("acme", Unit::Requests, Want::of(1), month + days * 86_400_000_000);
    source.take(&later(1), &limits).await.unwrap();
    assert_eq!((count(0).await, count(1).await), (1, 40), "a day after the month they are there");
    source.take(&later(35), &limits).await.unwrap();
    assert_eq!((count(0).await, count(1).await), (1, 0), "the month is over for more than two days");
}
