//! What an engine writes into its ledger, below HTTP, on SQLite, with executors in threads. What a killed process leaves
//! behind is in `tests/e2e/chaos.py`.
#![allow(clippy::unwrap_used)]

mod rig;

use std::{collections::BTreeMap, time::Duration};

use rig::{complete, embedding, read, text};
use weir_runtime::{
    Accounts, DeviceConfig, DeviceQuota, Engine, EngineConfig, FailureKind, NotReady, StopReason, StreamEvent,
    Submission, SubmitError, TenantSpec,
    ledger::{self, WriterOptions},
    store::{Actor, NewTenant, Store, StoreOptions, TenantSettings},
};

struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

impl Place {
    async fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("weir.db").display());
        let store = Store::open(&url, &StoreOptions::default()).await.unwrap();
        // Quotas are kept of tenants that the store knows.
        let mut change = store.change(&Actor::system(), 1).await.unwrap();
        for id in ["a", "b", "metered"] {
            let new = NewTenant { id: id.into(), settings: TenantSettings::named(id, "starter") };
            change.create_tenant(&new).await.unwrap();
        }
        change.commit().await.unwrap();
        Place { folder, store }
    }

    fn config(&self, devices: u32, model: &str) -> EngineConfig {
        let accounts = Accounts { store: self.store.clone(), replica: "one".into(), options: WriterOptions::default() };
        let quota = DeviceQuota { hour: Some(Duration::from_millis(200)), ..DeviceQuota::default() };
        EngineConfig {
            tenants: vec![
                TenantSpec { plan: "starter".into(), ..TenantSpec::named("a") },
                TenantSpec { plan: "enterprise".into(), ..TenantSpec::named("b") },
                TenantSpec { quota, ..TenantSpec::named("metered") },
            ],
            devices: (0..devices).map(|index| DeviceConfig { threads: 1, ..rig::cpu(index) }).collect(),
            accounts: Some(accounts),
            ..rig::config(rig::specs(&[model]))
        }
    }

    async fn start(&self, devices: u32, model: &str) -> Engine {
        Engine::start(self.config(devices, model)).await.expect("starts")
    }

    /// Bills by what their clients know them by.
    async fn bills(&self) -> BTreeMap<String, Row> {
        let sql = "SELECT tenant, request, model, key, device_ns, prompt_tokens, completion_tokens, body FROM ledger \
                   WHERE kind IN ('settle', 'recovered') ORDER BY epoch, seq";
        let mut tx = self.store.read().await.unwrap();
        let rows = tx.rows(sql, &[]).await.unwrap();
        let bill = |row: &weir_runtime::store::Row| {
            let mut fields = row.fields();
            let (tenant, request) = (fields.text().unwrap(), fields.text().unwrap());
            let (model, key) = (fields.text().unwrap(), fields.text().unwrap());
            let numbers = [fields.int().unwrap(), fields.int().unwrap(), fields.int().unwrap()];
            let body: serde_json::Value = serde_json::from_str(&fields.text().unwrap()).unwrap();
            let name = body["name"].as_str().unwrap().to_owned();
            (name, Row { tenant, request, model, key, numbers, body })
        };
        let bills: Vec<_> = rows.iter().map(bill).collect();
        let (len, bills) = (bills.len(), BTreeMap::from_iter(bills));
        assert_eq!(len, bills.len(), "two bills of one name");
        bills
    }

    /// The ledger is whole, and the next start has nothing to do.
    async fn is_closed(&self) -> ledger::Verified {
        let verified = ledger::verify_store(&self.store, None).await.unwrap();
        let mut tx = self.store.read().await.unwrap();
        let open = tx.rows("SELECT epoch FROM epochs WHERE ended_us IS NULL", &[]).await.unwrap();
        assert!(open.is_empty());
        verified
    }
}

#[derive(Debug, PartialEq)]
struct Row {
    tenant: String,
    request: String,
    model: String,
    key: String,
    /// Device time, tokens of the prompt, tokens drawn.
    numbers: [i64; 3],
    body: serde_json::Value,
}

fn named(submission: Submission, name: &str) -> Submission {
    Submission { answer_id: Some(name.into()), key: "wk_1".into(), ..submission }
}

const FAST: &str = "m=fake:step=1ms,token=10us";

#[tokio::test(flavor = "multi_thread")]
async fn every_request_that_ran_has_the_bill_that_its_client_was_told() {
    let place = Place::new().await;
    let engine = place.start(2, FAST).await;
    let mut told = BTreeMap::new();
    let mut running = Vec::new();
    for index in 0..40u32 {
        let (engine, name) = (engine.clone(), format!("answer-{index}"));
        let tenant = if index % 3 == 0 { "b" } else { "a" };
        let ask = Submission { n: 1 + index % 2, ..text(&engine, tenant, format!("hello {index}"), 5 + index) };
        running.push(tokio::spawn(async move { (complete(&engine, named(ask, &name)).await, name, tenant) }));
    }
    for task in running {
        let (answer, name, tenant) = task.await.unwrap();
        told.insert(name, (answer.end.unwrap(), tenant));
    }
    // All of them were told, so all of them are there, while the engine runs.
    let bills = place.bills().await;
    assert_eq!(bills.len(), 40);
    for (name, (usage, tenant)) in &told {
        let bill = &bills[name];
        let expected = [usage.device_nanos as i64, usage.prompt_tokens.into(), usage.completion_tokens.into()];
        assert_eq!((bill.numbers, bill.tenant.as_str()), (expected, *tenant), "{name}");
        assert_eq!((bill.model.as_str(), bill.key.as_str()), ("m", "wk_1"));
        let plan = if *tenant == "a" { "starter" } else { "enterprise" };
        assert_eq!((bill.body["plan"].as_str(), bill.body["stop"].as_str()), (Some(plan), Some("finished")));
        assert_eq!(bill.body["split"][0][1], "cpu");
    }
    engine.shutdown(Duration::from_secs(5)).await;
    let verified = place.is_closed().await;
    assert_eq!(verified.requests, 40);
    assert_eq!(verified.charged_ns, told.values().map(|(usage, _)| i128::from(usage.device_nanos)).sum());
    // The same replica goes on, under requests' names of its own.
    let engine = place.start(1, FAST).await;
    complete(&engine, named(text(&engine, "a", "again", 3), "again")).await.end.unwrap();
    engine.shutdown(Duration::from_secs(5)).await;
    assert_eq!(place.is_closed().await.requests, 41);
    assert!(place.folder.path().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ending_is_told_only_when_its_bill_is_on_the_disk() {
    let place = Place::new().await;
    let engine = place.start(1, FAST).await;
    // While somebody else writes, the writer cannot.
    let lock = place.store.write().await.unwrap();
    let mut stream = engine.submit(named(text(&engine, "a", "hello", 4), "held")).await.unwrap();
    loop {
        match stream.next().await.unwrap() {
            StreamEvent::Finished { .. } => break,
            StreamEvent::Delta { .. } => {}
            end => panic!("{end:?} without a bill"),
        }
    }
    // It has run to its end, and others do, too: the engine waits for nobody.
    let mut second = engine.submit(named(text(&engine, "b", "hello", 4), "second")).await.unwrap();
    while !matches!(second.next().await.unwrap(), StreamEvent::Finished { .. }) {}
    assert!(place.bills().await.is_empty());
    let poll = std::future::poll_fn(|context| std::task::Poll::Ready(stream.poll_next(context).is_pending()));
    assert!(poll.await, "an ending without a bill");
    drop(lock);
    assert!(matches!(stream.next().await, Some(StreamEvent::Done(_))));
    assert!(matches!(second.next().await, Some(StreamEvent::Done(_))));
    assert_eq!(place.bills().await.len(), 2);
    engine.shutdown(Duration::from_secs(5)).await;
    place.is_closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_charged_is_not_acknowledged_and_nobody_is_begun() {
    let place = Place::new().await;
    let engine = place.start(1, FAST).await;
    complete(&engine, named(text(&engine, "a", "hello", 4), "before")).await.end.unwrap();
    // Another start of the same replica ends this one's life in the ledger.
    ledger::begin(&place.store, "one", 1_900_000_000_000_000).await.unwrap();
    let answer = complete(&engine, named(text(&engine, "a", "hello", 4), "after")).await;
    assert_eq!(answer.end, Err(FailureKind::LedgerUnavailable));
    assert!(!answer.texts[0].is_empty(), "it ran");
    let refused = engine.submit(text(&engine, "a", "hello", 4)).await.unwrap_err();
    assert_eq!(refused, SubmitError::LedgerUnavailable);
    // The engine thread says so when it looks.
    engine.metrics_text().await;
    assert_eq!(engine.ready(), Err(NotReady::LedgerUnavailable));
    assert_eq!(place.bills().await.keys().collect::<Vec<_>>(), ["before"]);
    engine.shutdown(Duration::from_secs(5)).await;
    ledger::verify_store(&place.store, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_changed_its_device_is_billed_by_device() {
    let place = Place::new().await;
    let engine = place.start(2, "m=fake:step=1ms,token=10us").await;
    let mut streams = Vec::new();
    for index in 0..8 {
        let ask = named(text(&engine, "a", format!("text {index}"), 300), &format!("moves-{index}"));
        let mut stream = engine.submit(ask).await.unwrap();
        // It runs.
        assert!(matches!(stream.next().await, Some(StreamEvent::Delta { .. })));
        streams.push(stream);
    }
    engine.drain_device("cpu:0", Some(Duration::ZERO), false).await.unwrap();
    let mut usages = Vec::new();
    for stream in streams {
        usages.push(read(stream, 1).await.end.unwrap());
    }
    let bills = place.bills().await;
    let mut moved = 0;
    for (index, usage) in usages.iter().enumerate() {
        let bill = &bills[&format!("moves-{index}")];
        let split = bill.body["split"].as_array().unwrap();
        assert_eq!(split.iter().map(|share| share[2].as_i64().unwrap()).sum::<i64>(), usage.device_nanos as i64);
        moved += usize::from(split.len() == 2);
    }
    assert!(moved > 0, "some of them ran on the device that was drained");
    engine.shutdown(Duration::from_secs(5)).await;
    place.is_closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_runs_out_or_embeds_is_billed_too_and_who_never_ran_is_not() {
    let place = Place::new().await;
    let mut config = place.config(1, FAST);
    config.tenants[0].running_max = 1;
    let engine = Engine::start(config).await.expect("starts");
    // Goes away in its midst, while another waits behind it and never runs.
    let mut stream = engine.submit(named(text(&engine, "a", "hello", 2_000), "gone")).await.unwrap();
    assert!(matches!(stream.next().await, Some(StreamEvent::Delta { .. })));
    let waiting = engine.submit(named(text(&engine, "a", "hello", 4), "never")).await.unwrap();
    drop(waiting);
    drop(stream);
    let cut = complete(&engine, named(text(&engine, "metered", "hello", 2_000), "cut")).await;
    let usage = cut.end.unwrap();
    assert_eq!(usage.stop, Some(StopReason::Quota));
    let refused = engine.submit(named(text(&engine, "metered", "hello", 4), "refused")).await;
    assert!(matches!(refused, Err(SubmitError::QuotaSpent { .. })), "{refused:?}");
    engine.shutdown(Duration::from_secs(5)).await;
    let bills = place.bills().await;
    assert_eq!(bills.keys().collect::<Vec<_>>(), ["cut", "gone"]);
    assert_eq!(bills["cut"].numbers[0], usage.device_nanos as i64);
    assert_eq!(
        (bills["cut"].body["stop"].as_str(), bills["gone"].body["stop"].as_str()),
        (Some("quota"), Some("cancelled"))
    );
    assert!(bills["gone"].numbers[0] > 0);
    place.is_closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_runs_at_the_end_is_billed_for_what_it_ran() {
    let place = Place::new().await;
    let engine = place.start(2, "m=fake:step=2ms,token=10us").await;
    let mut streams = Vec::new();
    for index in 0..6 {
        let ask = named(text(&engine, "b", format!("text {index}"), 30_000), &format!("cut-{index}"));
        let mut stream = engine.submit(ask).await.unwrap();
        assert!(matches!(stream.next().await, Some(StreamEvent::Delta { .. })));
        streams.push(stream);
    }
    engine.shutdown(Duration::ZERO).await;
    for stream in streams {
        assert_eq!(read(stream, 1).await.end, Err(FailureKind::Draining));
    }
    let bills = place.bills().await;
    assert_eq!(bills.len(), 6);
    assert!(bills.values().all(|bill| bill.numbers[0] > 0 && bill.body["stop"] == "failed"));
    place.is_closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_wait_for_their_bill_like_texts() {
    let place = Place::new().await;
    let engine = place.start(1, FAST).await;
    let ask = embedding(&engine, "a", ["one", "two", "three"]);
    let answer = engine.embed(ask).await.unwrap();
    let bills = place.bills().await;
    let bill = &bills["test"];
    let numbers = [answer.usage.device_nanos as i64, answer.usage.prompt_tokens.into(), 0];
    assert_eq!((bill.numbers, answer.vectors.len()), (numbers, 3));
    assert!(bill.request.contains('-'));
    ledger::begin(&place.store, "one", 1_900_000_000_000_000).await.unwrap();
    let refused = engine.embed(embedding(&engine, "a", ["four"])).await.unwrap_err();
    assert_eq!(refused, SubmitError::LedgerUnavailable);
    engine.shutdown(Duration::from_secs(5)).await;
}
