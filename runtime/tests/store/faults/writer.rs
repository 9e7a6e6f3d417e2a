//! A writer whose every nanosecond is known: requests on one device, their bills, its accounts, and grants that pay for them.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use tokio::{sync::Semaphore, task::JoinHandle};
use weir_runtime::{
    ledger::{
        self, Chain, Checkpoint, Entry, LedgerError, OperatorKind, OperatorTimes, Record, Running, Settle, Share,
        Writer, WriterOptions,
    },
    quota::{Answer, Limits, ReportOf, Source, Taken, Unit, Want},
    store::Store,
};

use super::{
    chance::Chance,
    engine::{HOUR, TENANTS, make_tenants},
    told::{Told, now_us},
};

/// What happens in a life.
const EVENTS: u64 = 900;
/// Records that nobody has heard of yet, at most.
const UNHEARD_MAX: u32 = 12;
/// Of device time; a handful of bills.
const GRANT_NS: i64 = 20_000_000;
/// Moments at which SQLite's log is moved into the file, by a connection of our own: as a server's own does in longer lives.
const CHECKPOINTS: [&str; 4] = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"];

/// One life of a recording. Of one that is not the last, the writer may not be done: it is what is left of it.
pub(super) async fn life(store: &Store, path: &Path, told: &Told, seed: u64, is_last: bool) -> Option<Left> {
    let mut chance = Chance::new(seed);
    make_tenants(store, told, TENANTS).await;
    let mut beside = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
    let (chain, _) = ledger::begin(store, "one", now_us()).await.unwrap();
    let epoch = chain.epoch;
    let source = Source::store(store.clone(), "one", epoch);
    let (writer, task) = Writer::start(store.clone(), chain, WriterOptions::default());
    let mut work = Work {
        told: told.clone(),
        writer,
        epoch,
        begun: 0,
        idle: 0,
        operator: 0,
        settled: 0,
        running: BTreeMap::new(),
        unheard: Arc::new(Semaphore::new(UNHEARD_MAX as usize)),
    };
    let mut grant = Grant::take(&source, told, 0).await;
    for event in 0..EVENTS {
        match chance.below(12) {
            0..4 => work.begin(&mut chance),
            4..7 => work.run(&mut chance),
            7..11 => work.settle(&mut chance, &source, &mut grant).await,
            _ => work.checkpoint().await,
        }
        if chance.once_in(25) {
            let how = CHECKPOINTS[chance.index(CHECKPOINTS.len())];
            let sql = format!("PRAGMA wal_checkpoint({how})");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut beside).await.unwrap();
        }
        if chance.once_in(60) {
            make_tenants(store, told, [format!("t{epoch}-{event}").as_str()]).await;
        }
    }
    if !is_last {
        return Some(task);
    }
    while !work.running.is_empty() {
        work.settle(&mut chance, &source, &mut grant).await;
    }
    work.checkpoint().await;
    work.send(Record::Close, Vec::new(), None).await;
    drop(work);
    let chain = task.await.unwrap().unwrap();
    ledger::end(store, &chain, now_us()).await.unwrap();
    beside.close().await.unwrap();
    None
}

/// A writer's end.
pub(super) type Left = JoinHandle<Result<Chain, LedgerError>>;

/// What pays for the metered tenant.
struct Grant {
    id: i64,
    amount: i64,
    spent: i64,
}

impl Grant {
    /// One that pays for so much at the least.
    async fn take(source: &Source, told: &Told, ns: i64) -> Grant {
        let limits = Limits { amounts: [Some(HOUR.as_nanos() as i64), None, None], ..Limits::default() };
        let ask = source.ask(TENANTS[0], Unit::DeviceNs, Want::of(ns.max(GRANT_NS)), now_us());
        let Some(Taken::Answer(Answer::Granted { amount, .. })) = source.take(&ask, &limits).await else {
            panic!("an hour has room for it")
        };
        told.held(ask.id, amount);
        Grant { id: ask.id, amount, spent: 0 }
    }
}

struct Work {
    told: Told,
    writer: Writer,
    epoch: i64,
    begun: u64,
    idle: i64,
    operator: i64,
    settled: i64,
    /// By request: whose, and what it has taken.
    running: BTreeMap<String, (&'static str, i64)>,
    unheard: Arc<Semaphore>,
}

impl Work {
    fn begin(&mut self, chance: &mut Chance) {
        self.begun += 1;
        let (tenant, request) = (TENANTS[chance.index(TENANTS.len())], format!("{}-{}", self.epoch, self.begun));
        self.told.work(tenant, &request, 0);
        self.running.insert(request, (tenant, 0));
    }

    /// A step: all that run take some time, and some is nobody's.
    fn run(&mut self, chance: &mut Chance) {
        self.idle += chance.below(1_000) as i64;
        self.operator += chance.below(1_000) as i64;
        for (request, (tenant, ns)) in &mut self.running {
            *ns += chance.below(100_000) as i64;
            self.told.work(tenant, request, *ns);
        }
    }

    async fn settle(&mut self, chance: &mut Chance, source: &Source, grant: &mut Grant) {
        if self.running.is_empty() {
            return;
        }
        let request = self.running.keys().nth(chance.index(self.running.len())).cloned().expect("not empty");
        let (tenant, ns) = self.running.remove(&request).expect("it runs");
        self.settled += ns;
        let numbers = [ns, chance.below(100) as i64, chance.below(100) as i64];
        let mut grants = Vec::new();
        if tenant == TENANTS[0] {
            if grant.spent + ns > grant.amount {
                *grant = Grant::take(source, &self.told, ns).await;
            }
            grant.spent += ns;
            grants.push(ReportOf { id: grant.id, spent: grant.spent, expires_us: now_us() + 5_000_000, closes: false });
        }
        let settle = Record::Settle(Settle {
            tenant: tenant.into(),
            request: request.clone().into(),
            model: "tiny".into(),
            key: "wk_a".into(),
            plan: "starter".into(),
            split: vec![Share { device: "d".into(), class: "cpu".into(), ns }],
            prompt_tokens: numbers[1],
            completion_tokens: numbers[2],
            stop: "stop".into(),
            name: request.clone().into(),
        });
        let told = self.told.clone();
        told.sent(tenant, &request, numbers);
        let done = move || told.done(tenant, &request, numbers);
        self.send(settle, grants, Some(Box::new(done))).await;
    }

    async fn checkpoint(&mut self) {
        let mut operator = OperatorTimes::default();
        *operator.get_mut(OperatorKind::Gap) = self.operator;
        let running = self.running.iter().map(|(request, (tenant, ns))| Running {
            tenant: (*tenant).into(),
            request: request.clone().into(),
            model: "tiny".into(),
            key: "wk_a".into(),
            plan: "starter".into(),
            ns: *ns,
        });
        let running: Vec<_> = running.collect();
        let wall = self.idle + self.operator + self.settled + running.iter().map(|running| running.ns).sum::<i64>();
        let (device, class) = ("d".into(), "cpu".into());
        let record = Record::Checkpoint(Checkpoint { device, class, wall, idle: self.idle, operator, running });
        self.send(record, Vec::new(), None).await;
    }

    async fn send(&self, record: Record<'static>, grants: Vec<ReportOf>, told: Option<Box<dyn FnOnce() + Send>>) {
        let permit = self.unheard.clone().acquire_owned().await.unwrap();
        let done = Box::new(move |written: bool| {
            assert!(written, "the disk of a recording does not fail");
            if let Some(told) = told {
                told();
            }
            drop(permit);
        });
        self.writer.send(Entry { at_us: now_us(), record, grants, done: Some(done) }).await.expect("it writes");
    }
}
