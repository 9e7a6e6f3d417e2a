//! Measures the ledger: how long a bill waits until it is acknowledged, settles a second through the writer, both with 5 ms
//! added to every commit, too, and the time to verify all rows, to close their month, and to verify that.
//! `cargo run --release --example ledger [ROWS] [postgres://...]`; without an address, SQLite in a
//! new folder below `TMPDIR`, whose disk's own syncs are measured first: a wait is of one to two of them, and of the processor's
//! time slices where others want it, too.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use weir_runtime::{
    ledger::{self, Checkpoint, Entry, OperatorTimes, Record, Settle, Share, SigningKey, Writer, WriterOptions},
    store::{Store, StoreOptions},
};

type Failure = Box<dyn std::error::Error>;

/// A made-up minute of 2026.
const AT_US: i64 = 1_795_000_000_000_000;
/// From then on its month is over.
const MONTH_US: i64 = 31 * 86_400_000_000;
/// Bills whose wait is measured.
const WAITS: i64 = 5_000;

fn settle(epoch: i64, number: i64) -> Settle<'static> {
    Settle {
        tenant: format!("tenant-{}", number % 20).into(),
        request: format!("req-{epoch}-{number:012}").into(),
        model: ["smollm2-360m", "qwen2.5-7b"][(number % 2) as usize].into(),
        key: format!("wk_abcdefgh2345{:04}", number % 20).into(),
        plan: "professional".into(),
        split: vec![Share { device: "gpu0".into(), class: "h200".into(), ns: 1_000_000 + number % 1000 }],
        prompt_tokens: 120,
        completion_tokens: 34,
        stop: "stop".into(),
        name: "".into(),
    }
}

/// Settles `rows` requests, with a checkpoint in every ten thousand; settles a second until all are acknowledged.
async fn settles(store: &Store, rows: i64, options: WriterOptions) -> Result<f64, Failure> {
    let (chain, _) = ledger::begin(store, "bench", AT_US).await?;
    let epoch = chain.epoch;
    let (writer, task) = Writer::start(store.clone(), chain, options);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut charged = 0;
    let begin = Instant::now();
    let send = |record, at_us| {
        let acknowledged = acknowledged.clone();
        let done = Box::new(move |written: bool| {
            acknowledged.fetch_add(u64::from(written), Ordering::Relaxed);
        });
        writer.send(Entry { at_us, record, grants: Vec::new(), done: Some(done) })
    };
    let mut sent = 0;
    for number in 0..rows {
        let at_us = AT_US + number * 50;
        let settle = settle(epoch, number);
        charged += settle.total();
        send(Record::Settle(settle), at_us).await.ok_or("the writer has stopped")?;
        sent += 1;
        if number % 10_000 == 9_999 || number + 1 == rows {
            let (device, class) = ("gpu0".into(), "h200".into());
            let operator = OperatorTimes::default();
            let checkpoint = Checkpoint { device, class, wall: charged, idle: 0, operator, running: Vec::new() };
            send(Record::Checkpoint(checkpoint), at_us).await.ok_or("the writer has stopped")?;
            sent += 1;
        }
    }
    send(Record::Close, AT_US + rows * 50).await.ok_or("the writer has stopped")?;
    drop(writer);
    let chain = task.await??;
    let took = begin.elapsed();
    ledger::end(store, &chain, AT_US).await?;
    match acknowledged.load(Ordering::Relaxed) == sent + 1 {
        true => Ok(rows as f64 / took.as_secs_f64()),
        false => Err("not all was acknowledged".into()),
    }
}

/// Sends a settle every millisecond, as a thousand requests a second do, and says how long each waited: the median, the
/// 99th of a hundred and the longest, in milliseconds.
async fn waits(store: &Store, options: WriterOptions) -> Result<[f64; 3], Failure> {
    let (chain, _) = ledger::begin(store, "bench", AT_US).await?;
    let epoch = chain.epoch;
    let (writer, task) = Writer::start(store.clone(), chain, options);
    let waited = Arc::new(Mutex::new(Vec::new()));
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    for number in 0..WAITS {
        tick.tick().await;
        let (waited, sent) = (waited.clone(), Instant::now());
        let done = Box::new(move |_| waited.lock().unwrap_or_else(PoisonError::into_inner).push(sent.elapsed()));
        let entry =
            Entry { at_us: AT_US, record: Record::Settle(settle(epoch, number)), grants: Vec::new(), done: Some(done) };
        writer.try_send(entry).map_err(|_| "no room")?;
    }
    drop(writer);
    task.await??;
    let mut waited = std::mem::take(&mut *waited.lock().unwrap_or_else(PoisonError::into_inner));
    waited.sort_unstable();
    Ok([waited.len() / 2, waited.len() * 99 / 100, waited.len() - 1].map(|at| waited[at].as_secs_f64() * 1e3))
}

/// How long it takes until 16 KiB are on the disk: the median and the 99th of a hundred, in milliseconds.
fn syncs(folder: &Path) -> Result<[f64; 2], Failure> {
    let mut file = File::create(folder.join("syncs"))?;
    let mut took = Vec::new();
    for _ in 0..200 {
        let begin = Instant::now();
        file.write_all(&[7; 16 << 10])?;
        file.sync_data()?;
        took.push(begin.elapsed());
    }
    took.sort_unstable();
    Ok([50, 99].map(|share| took[took.len() * share / 100].as_secs_f64() * 1e3))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let rows: i64 = args.next().map_or(Ok(1_000_000), |rows| rows.parse())?;
    let folder = tempfile::tempdir()?;
    let url = args.next().unwrap_or_else(|| format!("sqlite:{}", folder.path().join("weir.db").display()));
    let store = Store::open(&url, &StoreOptions::default()).await?;
    let [median, most] = syncs(folder.path())?;
    println!("figure=5.sync_ms value={most:.1} p50={median:.1} unit=ms");
    let slow = WriterOptions { commit_delay: Duration::from_millis(5) };
    for (name, options) in [("wait", WriterOptions::default()), ("wait_slow", slow.clone())] {
        let [median, most, longest] = waits(&store, options).await?;
        println!("figure=5.{name}_ms value={most:.1} p50={median:.1} max={longest:.1} unit=ms");
    }
    println!("figure=5.settles value={:.0}", settles(&store, rows, WriterOptions::default()).await?);
    let begin = Instant::now();
    let verified = ledger::verify_store(&store, None).await?;
    let seconds = begin.elapsed().as_secs_f64();
    println!("figure=5.verify_rows value={}", verified.rows);
    println!("figure=5.verify_seconds value={seconds:.2}");
    let (begin, key) = (Instant::now(), SigningKey::from_seed(&[1; 32]));
    let closed = ledger::close_months(&store, &key, AT_US + MONTH_US).await?;
    println!("figure=5.close_seconds value={:.2} months={}", begin.elapsed().as_secs_f64(), closed.len());
    let begin = Instant::now();
    ledger::verify_store(&store, Some(&[key.public()])).await?;
    println!("figure=5.verify_closed_seconds value={:.2}", begin.elapsed().as_secs_f64());
    println!("figure=5.settles_slow value={:.0}", settles(&store, rows.min(100_000), slow).await?);
    Ok(())
}
