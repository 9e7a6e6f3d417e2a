//! Figure 1: three replicas on one PostgreSQL, one of which loses its way to it for a while.
//!
//! `spent <= granted <= limit` is read from the database all the time, and what the lost replica held and did not use is
//! back in its windows for the others. `WEIR_PROOFS=full` cuts it off for a minute.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};
use weir_runtime::{
    DeviceQuota, Engine, RequestQuota, SubmitError, TenantSpec,
    store::{Store, Value},
};

use crate::{
    cases::with_tenants,
    fixture::Fixture,
    quotas::{engine, sums, windows},
    rig,
};

/// A way to the database that can be cut: what is under way then waits, as behind a cable that was pulled.
struct Proxy {
    port: u16,
    cut: watch::Sender<bool>,
    lose: Arc<Lose>,
}

/// What is lost once, with the connection.
#[derive(Default)]
struct Lose {
    /// The next commit, before the database has heard of it.
    commit: AtomicBool,
    /// What the database answers to the next one.
    answer: AtomicBool,
}

impl Proxy {
    async fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (cut, is_cut) = watch::channel(false);
        let lose = Arc::<Lose>::default();
        let proxy = Proxy { port: listener.local_addr().unwrap().port(), cut, lose: lose.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (is_cut, lose) = (is_cut.clone(), lose.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let ((from, to), (back, forth)) = (client.into_split(), server.into_split());
                    let commits = AtomicBool::new(false);
                    // Whichever ends first takes the other with it.
                    tokio::select! {
                        () = pass(from, forth, is_cut.clone(), |bytes| {
                            commits.store(is_commit(bytes), Ordering::Relaxed);
                            is_commit(bytes) && lose.commit.swap(false, Ordering::Relaxed)
                        }) => {}
                        () = pass(back, to, is_cut, |_| {
                            commits.load(Ordering::Relaxed) && lose.answer.swap(false, Ordering::Relaxed)
                        }) => {}
                    }
                });
            }
        });
        proxy
    }

    /// The way to the same database through this.
    fn way(&self, url: &str) -> String {
        url.replacen(&format!(":{}/", port_of(url)), &format!(":{}/", self.port), 1)
    }
}

fn port_of(url: &str) -> u16 {
    url.split(':').nth(2).and_then(|rest| rest.split('/').next()).unwrap().parse().unwrap()
}

fn is_commit(bytes: &[u8]) -> bool {
    bytes.windows(6).any(|word| word == b"COMMIT")
}

/// Until either end closes, or something is lost.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut is_cut: watch::Receiver<bool>,
    is_lost: impl Fn(&[u8]) -> bool,
) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let Ok(len @ 1..) = from.read(&mut bytes).await else { return };
        if is_lost(&bytes[..len]) || is_cut.wait_for(|cut| !cut).await.is_err() {
            return;
        }
        if to.write_all(&bytes[..len]).await.is_err() {
            return;
        }
    }
}

/// A commit that never arrived, or whose answer did not, is known for what it was, and the replica goes on: each answer has its
/// one bill.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_goes_on_after_a_lost_commit() {
    let on = Fixture::postgres().await;
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let proxy = Proxy::to(port_of(&on.url)).await;
    let own = Store::open(&proxy.way(&on.url), &on.options).await.unwrap();
    let engine = engine(&own, "one", vec![TenantSpec::named("acme")]).await;
    let mut answered = 0;
    for round in 0..20 {
        match round % 4 {
            1 => proxy.lose.commit.store(true, Ordering::Relaxed),
            3 => proxy.lose.answer.store(true, Ordering::Relaxed),
            _ => {}
        }
        let stream = engine.submit(rig::text(&engine, "acme", "hello", 5)).await.unwrap();
        rig::read(stream, 1).await.end.unwrap();
        answered += 1;
    }
    let lost = [&proxy.lose.commit, &proxy.lose.answer].map(|lose| !lose.load(Ordering::Relaxed));
    assert_eq!(lost, [true, true], "each was lost");
    engine.shutdown(Duration::from_secs(10)).await;
    let mut tx = store.read().await.unwrap();
    let sql = "SELECT count(*), count(DISTINCT request) FROM ledger WHERE kind = 'settle'";
    let row = tx.row(sql, &[]).await.unwrap().unwrap();
    let mut fields = row.fields();
    assert_eq!((fields.int().unwrap(), fields.int().unwrap()), (answered, answered));
    drop(tx);
    weir_runtime::ledger::verify_store(&store, None).await.unwrap();
}

const REPLICAS: [&str; 3] = ["one", "two", "three"];
/// More than three devices use in the longest of these tests, and far less than they would without grants.
const HOUR: Duration = Duration::from_secs(3_000);
const REQUESTS: u64 = 100_000;

fn acme() -> TenantSpec {
    let quota = DeviceQuota { hour: Some(HOUR), ..DeviceQuota::default() };
    let requests = RequestQuota { month: Some(REQUESTS), ..RequestQuota::default() };
    TenantSpec { quota, requests, ..TenantSpec::named("acme") }
}

async fn clients(engine: Engine, over: Arc<AtomicBool>, answered: Arc<AtomicU64>) {
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let (engine, over, answered) = (engine.clone(), over.clone(), answered.clone());
        clients.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                match engine.submit(rig::text(&engine, "acme", "hello", 20)).await {
                    Ok(stream) => {
                        let end = rig::read(stream, 1).await.end;
                        answered.fetch_add(u64::from(end.is_ok_and(|usage| usage.stop.is_none())), Ordering::Relaxed);
                    }
                    // What a replica without a store says, and one whose hour is spent.
                    Err(SubmitError::Busy { .. } | SubmitError::QuotaSpent { .. } | SubmitError::LedgerUnavailable) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    clients.join_all().await;
}

async fn open_grants(store: &Store, replica: &str) -> i64 {
    let mut tx = store.read().await.unwrap();
    let sql = "SELECT count(*) FROM grants WHERE replica = $1 AND closed = 0";
    tx.row(sql, &[Value::from(replica)]).await.unwrap().unwrap().fields().int().unwrap()
}

/// How long it took until something held.
async fn until(what: &str, holds: impl AsyncFn() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds().await {
        // Only so that it ends: what is asked is that it comes, not when.
        assert!(begun.elapsed() < Duration::from_secs(300), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_cut_off_overspends_nothing_and_what_it_held_comes_back() {
    let on = Fixture::postgres().await;
    let store = on.open().await;
    with_tenants(&store, &["acme"]).await;
    let proxy = Proxy::to(port_of(&on.url)).await;
    let behind = proxy.way(&on.url);
    let mut engines = Vec::new();
    for replica in REPLICAS {
        let url = if replica == "three" { &behind } else { &on.url };
        let own = Store::open(url, &on.options).await.unwrap();
        engines.push(engine(&own, replica, vec![acme()]).await);
    }

    let over = Arc::new(AtomicBool::new(false));
    let answered: Vec<Arc<AtomicU64>> = engines.iter().map(|_| Arc::default()).collect();
    let mut load = JoinSet::new();
    for (engine, answered) in engines.iter().zip(&answered) {
        load.spawn(clients(engine.clone(), over.clone(), answered.clone()));
    }
    let watched = tokio::spawn({
        let (store, over) = (store.clone(), over.clone());
        async move {
            let mut samples = 0;
            while !over.load(Ordering::Relaxed) {
                for (_, unit, period, granted, spent) in windows(&store).await {
                    let limit = match (unit.as_str(), period.as_str()) {
                        ("device_ns", "hour") => i64::try_from(HOUR.as_nanos()).unwrap(),
                        ("requests", "month") => i64::try_from(REQUESTS).unwrap(),
                        _ => i64::MAX,
                    };
                    assert!(0 <= spent && spent <= granted && granted <= limit, "{unit} {period}: {spent} {granted}");
                    samples += 1;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            samples
        }
    });

    let done = |replica: usize| answered[replica].load(Ordering::Relaxed);
    until("all of them work", async || (0..3).all(|replica| done(replica) > 20)).await;
    proxy.cut.send(true).unwrap();
    let cut = Instant::now();
    let before = [done(0), done(1)];
    let back = until("what it held is back", async || open_grants(&store, "three").await == 0).await;
    println!("figure=1.back_s value={:.1}", back.as_secs_f64());
    let full = std::env::var("WEIR_PROOFS").is_ok_and(|size| size == "full");
    if full {
        tokio::time::sleep(Duration::from_secs(60).saturating_sub(cut.elapsed())).await;
    }
    assert!(done(0) > before[0] && done(1) > before[1], "the others go on");
    proxy.cut.send(false).unwrap();
    let healed = done(2);
    until("it works again", async || done(2) > healed + 20).await;
    over.store(true, Ordering::Relaxed);
    load.join_all().await;
    let samples = watched.await.unwrap();
    println!("figure=1.cut_s value={:.1}", cut.elapsed().as_secs_f64());
    println!("figure=1.samples value={samples}");
    for engine in &engines {
        engine.shutdown(Duration::from_secs(10)).await;
    }
    for replica in REPLICAS {
        assert_eq!(open_grants(&store, replica).await, 0, "{replica} holds nothing");
    }
    for ((.., unit, period), (granted, spent)) in sums(&store).await {
        assert_eq!(granted, spent, "{unit} {period}");
    }
}
