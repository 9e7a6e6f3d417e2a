//! An engine and its clients, which write down what they were told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;
use weir_runtime::{
    Accounts, DeviceQuota, Engine, FailureKind, NotReady, RequestQuota, StreamEvent, Submission, SubmitError,
    TenantSpec,
    ledger::WriterOptions,
    store::{Actor, NewTenant, Store, StoreError, TenantSettings},
};

use super::{
    chance::Chance,
    told::{Told, now_us},
};
use crate::rig;

const FAKE: &str = "fake:step=1ms,token=10us";
/// Who asks; the first is metered and counted, the second counted.
pub(super) const TENANTS: [&str; 3] = ["acme", "beta", "free"];
/// Device time of the metered one in an hour: of every reservation, a whole grant fits.
pub(super) const HOUR: Duration = Duration::from_secs(500);
/// Requests that the counted ones may make in a month.
pub(super) const MONTH: u64 = 100_000;
/// Devices of an engine.
pub(super) const DEVICES: u32 = 2;
const CLIENTS: u64 = 8;
/// Answers of one life: enough for a checkpoint or two of each device, and for SQLite's log to be moved into the file.
const ANSWERS: u64 = 120;

/// One life of a recording.
pub(super) async fn life(store: &Store, told: &Told, seed: u64, is_last: bool) {
    make_tenants(store, told, TENANTS).await;
    let mut replica = Replica::start(store, "one", told, seed).await;
    replica.answered(ANSWERS).await;
    if is_last {
        replica.end().await;
    }
}

/// Makes those tenants that are missing, each in a change of its own.
pub(super) async fn make_tenants(store: &Store, told: &Told, ids: impl IntoIterator<Item = &str>) {
    for id in ids {
        let mut change = store.change(&Actor::system(), now_us()).await.unwrap();
        let new = NewTenant { id: id.into(), settings: TenantSettings::named(id, "starter") };
        match change.create_tenant(&new).await {
            Ok(_) => change.commit().await.unwrap(),
            Err(StoreError::Exists { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        told.made(id);
    }
}

/// An engine that is asked all the time.
pub(super) struct Replica {
    engine: Engine,
    answers: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Replica {
    pub(super) async fn start(store: &Store, name: &str, told: &Told, seed: u64) -> Replica {
        let mut config = rig::config(rig::specs(&[FAKE]));
        let month = RequestQuota { month: Some(MONTH), ..RequestQuota::default() };
        config.tenants = TENANTS.iter().map(|name| TenantSpec::named(name)).collect();
        config.tenants[0].quota = DeviceQuota { hour: Some(HOUR), ..DeviceQuota::default() };
        config.tenants[0].requests = month;
        config.tenants[1].requests = month;
        config.devices = (0..DEVICES).map(rig::cpu).collect();
        config.accounts =
            Some(Accounts { store: store.clone(), replica: name.into(), options: WriterOptions::default() });
        let engine = Engine::start(config).await.unwrap();
        let (answers, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let client = Client {
                engine: engine.clone(),
                told: told.clone(),
                answers: answers.clone(),
                stopped: stopped.clone(),
                chance: Chance::new(seed * 1_000 + client),
                name: format!("{name}-{}-{client}", now_us()),
            };
            clients.spawn(client.ask());
        }
        let (admin, store, told, seen) = (stopped.clone(), store.clone(), told.clone(), answers.clone());
        let name = name.to_owned();
        clients.spawn(async move { make_more(&store, &told, &name, &seen, &admin).await });
        Replica { engine, answers, stopped, clients }
    }

    /// Waits until so many answers were given since the last call, or nobody is answered any more.
    pub(super) async fn answered(&mut self, count: u64) {
        while self.answers.load(Ordering::Acquire) < count && !self.is_dead() {
            pace().await;
        }
        self.answers.store(0, Ordering::Release);
    }

    /// Whether its ledger has stopped for good.
    pub(super) fn is_dead(&self) -> bool {
        self.engine.ready() == Err(NotReady::LedgerUnavailable)
    }

    /// Ends it in order.
    pub(super) async fn end(mut self) {
        self.stopped.store(true, Ordering::Release);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
        self.engine.shutdown(Duration::from_secs(10)).await;
    }
}

/// Until something has happened that nobody tells of.
async fn pace() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Changes of an operator's, in between.
async fn make_more(store: &Store, told: &Told, name: &str, answers: &AtomicU64, stopped: &AtomicBool) {
    for number in 0.. {
        let before = answers.load(Ordering::Acquire);
        while answers.load(Ordering::Acquire) / 30 == before / 30 && !stopped.load(Ordering::Acquire) {
            pace().await;
        }
        if stopped.load(Ordering::Acquire) {
            return;
        }
        let id = format!("{name}-{}-{number}", now_us());
        let Ok(mut change) = store.change(&Actor::system(), now_us()).await else { continue };
        let new = NewTenant { id: id.clone(), settings: TenantSettings::named(&id, "starter") };
        if change.create_tenant(&new).await.is_ok() && change.commit().await.is_ok() {
            told.made(&id);
        }
    }
}

struct Client {
    engine: Engine,
    told: Told,
    answers: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    chance: Chance,
    name: String,
}

impl Client {
    async fn ask(mut self) {
        for number in 0.. {
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
            let (tenant, name) = (TENANTS[self.chance.index(TENANTS.len())], format!("{}-{number}", self.name));
            // Some have long answers, and are under way when the device's accounts are written.
            let tokens = if self.chance.once_in(5) { 400 } else { 1 + self.chance.below(40) as u32 };
            let text = rig::text(&self.engine, tenant, format!("hello {name}"), tokens);
            let n = 1 + self.chance.below(2) as u32;
            let asked = Submission { n, answer_id: Some(name.clone()), bill: Some(name.as_str().into()), ..text };
            self.told.asked(tenant, &name);
            match self.engine.submit(asked).await {
                Ok(stream) => {
                    let leaves = self.chance.once_in(8).then(|| self.chance.below(20));
                    self.read(stream, tenant, &name, leaves).await;
                }
                Err(SubmitError::Busy { .. } | SubmitError::LedgerUnavailable | SubmitError::Draining) => pace().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Reads an answer, or hangs up after so many events.
    async fn read(&self, mut stream: weir_runtime::TokenStream, tenant: &str, name: &str, leaves: Option<u64>) {
        let mut events = 0;
        while let Some(event) = stream.next().await {
            events += 1;
            match event {
                StreamEvent::Done(usage) => {
                    let tokens = [usage.prompt_tokens, usage.completion_tokens].map(i64::from);
                    self.told.over(tenant, name);
                    self.told.done(tenant, name, [usage.device_nanos as i64, tokens[0], tokens[1]]);
                    self.answers.fetch_add(1, Ordering::AcqRel);
                    return;
                }
                StreamEvent::Failed(failure) => {
                    let wanted = [FailureKind::LedgerUnavailable, FailureKind::Draining];
                    assert!(wanted.contains(&failure.kind), "{failure}");
                    return;
                }
                _ if leaves == Some(events) => return,
                _ => {}
            }
        }
    }
}
