//! The accounts of an epoch, as its rows add up to them.
//!
//! For each device: wall time, idle time, the operator's by kind, what running requests were charged so far, and what
//! was settled. A checkpoint says the first four; settled is the sum of the bills that stand before it in the chain.
//! So a checkpoint proves itself, and nothing can be left out of a chain without one saying so.
//!
//! Between two checkpoints of a device the accounts of a bill are *ahead*: it may be for more than the last
//! checkpoint said of its request, or for one that it did not know. The next checkpoint's wall time covers that; in a
//! crash, the row `lost` does.

use std::collections::BTreeMap;

use super::{
    operator::{OperatorKind, OperatorTimes},
    record::{Checkpoint, Lost, Open, Record, Settle, Share, Text},
    verify::Fault,
};

/// Where an epoch is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// No row yet.
    #[default]
    Unborn,
    /// Its engine runs, or has died.
    Running,
    /// The next start writes what its engine could not.
    Recovering,
    /// It has ended.
    Closed,
}

/// One device's accounts, in nanoseconds: cumulative since it was added in this epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Of which class the device is, as its checkpoints say.
    pub class: String,
    /// Wall time up to the last checkpoint, and what a crash added.
    pub wall: i64,
    /// Idle time.
    pub idle: i64,
    /// The operator's.
    pub operator: OperatorTimes,
    /// Bills.
    pub settled: i64,
    /// Of the bills, what the last checkpoint did not know of.
    pub ahead: i64,
    /// When the last checkpoint was written; nothing before the first.
    pub checkpoint_us: Option<i64>,
    /// A crash's time was added.
    pub lost: bool,
}

/// What a request that is not settled was charged, as checkpoints say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unsettled {
    /// What it asked for.
    pub model: String,
    /// The API key that it came with.
    pub key: String,
    /// The plan that its tenant had when it came.
    pub plan: String,
    /// Device time, by device.
    pub split: BTreeMap<String, i64>,
}

/// The accounts of one epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book {
    pub(super) stage: Stage,
    pub(super) replica: String,
    /// When the last row was written that a recovery has not.
    pub(super) alive_us: i64,
    pub(super) devices: BTreeMap<String, Account>,
    /// By tenant and request.
    pub(super) unsettled: BTreeMap<String, BTreeMap<String, Unsettled>>,
}

impl Book {
    /// The accounts of an epoch that has begun and has nothing but its first row.
    pub(super) fn begun() -> Book {
        Book { stage: Stage::Running, ..Book::default() }
    }

    /// Where the epoch is in its life.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whose epoch it is.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Devices, by name.
    pub fn devices(&self) -> impl Iterator<Item = (&str, &Account)> {
        self.devices.iter().map(|(name, account)| (name.as_str(), account))
    }

    /// Requests that the last checkpoints know of and that have no bill: tenant, request and what it was charged.
    pub fn unsettled(&self) -> impl Iterator<Item = (&str, &str, &Unsettled)> {
        let of = |tenant, requests| std::iter::repeat(tenant).zip(requests);
        let all = self.unsettled.iter().flat_map(move |(tenant, requests)| of(tenant.as_str(), requests));
        all.map(|(tenant, (request, unsettled))| (tenant, request.as_str(), unsettled))
    }

    /// Enters what the next row says, which was written at `at_us`. On a fault the book is not to be used any more.
    pub fn apply(&mut self, at_us: i64, record: &Record<'_>) -> Result<(), Fault> {
        let recovers = matches!(record, Record::Recovered(_) | Record::Lost(_));
        self.stage = match (self.stage, record) {
            (Stage::Unborn, Record::Open(_)) => Stage::Running,
            (Stage::Running, Record::Settle(_) | Record::Checkpoint(_)) => Stage::Running,
            (Stage::Running | Stage::Recovering, _) if recovers => Stage::Recovering,
            (Stage::Running | Stage::Recovering, Record::Close) => Stage::Closed,
            _ => return Err(Fault::Kind { kind: record.kind().name() }),
        };
        if self.stage == Stage::Running {
            self.alive_us = at_us;
        }
        match record {
            Record::Open(open) => self.open(open),
            Record::Settle(settle) => self.settle(settle),
            Record::Checkpoint(checkpoint) => self.checkpoint(at_us, checkpoint),
            Record::Recovered(settle) => self.recovered(settle),
            Record::Lost(lost) => self.lose(lost),
            Record::Close => self.close(),
        }
    }

    fn open(&mut self, open: &Open<'_>) -> Result<(), Fault> {
        self.replica = open.replica.as_ref().to_owned();
        Ok(())
    }

    fn settle(&mut self, settle: &Settle<'_>) -> Result<(), Fault> {
        let (tenant, request) = (settle.tenant.as_ref(), settle.request.as_ref());
        let fault = |device: &str, before, now| Fault::Request {
            tenant: tenant.to_owned(),
            request: request.to_owned(),
            device: device.to_owned(),
            before,
            now,
        };
        let mut known = None;
        if let Some(requests) = self.unsettled.get_mut(tenant) {
            known = requests.remove(request);
            if requests.is_empty() {
                self.unsettled.remove(tenant);
            }
        }
        for (at, Share { device, ns, .. }) in settle.split.iter().enumerate() {
            let device = device.as_ref();
            let before = known.as_mut().and_then(|known| known.split.remove(device)).unwrap_or(0);
            let named = settle.split.iter().take(at).any(|share| share.device.as_ref() == device);
            if *ns < before || named {
                return Err(fault(device, before, *ns));
            }
            let account = match self.devices.get_mut(device) {
                Some(account) => account,
                None => self.devices.entry(device.to_owned()).or_default(),
            };
            add(&mut account.settled, *ns, device, "settled")?;
            add(&mut account.ahead, *ns - before, device, "settled")?;
        }
        match known.as_ref().and_then(|known| known.split.iter().find(|(_, ns)| **ns != 0)) {
            Some((device, before)) => Err(fault(device, *before, 0)),
            None => Ok(()),
        }
    }

    fn checkpoint(&mut self, at_us: i64, checkpoint: &Checkpoint<'_>) -> Result<(), Fault> {
        let name = checkpoint.device.as_ref();
        let shrunk = |account| Fault::Shrunk { device: name.to_owned(), account };
        let account = match self.devices.get_mut(name) {
            Some(account) => account,
            None => self.devices.entry(name.to_owned()).or_default(),
        };
        if checkpoint.wall < account.wall {
            return Err(shrunk("wall time"));
        }
        if checkpoint.idle < account.idle {
            return Err(shrunk("idle time"));
        }
        if !checkpoint.operator.is_since(&account.operator) {
            return Err(shrunk("operator time"));
        }
        let running: i128 = checkpoint.running.iter().map(|running| i128::from(running.ns)).sum();
        let accounted =
            i128::from(checkpoint.idle) + checkpoint.operator.total() + i128::from(account.settled) + running;
        if accounted != i128::from(checkpoint.wall) {
            return Err(Fault::Sum { device: name.to_owned(), wall: checkpoint.wall.into(), accounted });
        }
        (account.wall, account.idle, account.operator) = (checkpoint.wall, checkpoint.idle, checkpoint.operator);
        (account.ahead, account.checkpoint_us) = (0, Some(at_us));
        assign(&mut account.class, &checkpoint.class);

        // What the checkpoint does not name any more would be charged to nobody.
        let mut unnamed = 0i64;
        for requests in self.unsettled.values() {
            unnamed += requests.values().filter(|unsettled| unsettled.split.contains_key(name)).count() as i64;
        }
        for running in &checkpoint.running {
            let tenant = running.tenant.as_ref();
            if !self.unsettled.contains_key(tenant) {
                self.unsettled.insert(tenant.to_owned(), BTreeMap::new());
            }
            let Some(requests) = self.unsettled.get_mut(tenant) else { continue };
            let request = running.request.as_ref();
            let unsettled = requests.entry(request.to_owned()).or_default();
            let now = running.ns;
            let was = unsettled.split.insert(name.to_owned(), now);
            if now < was.unwrap_or(0) || now < 0 {
                return Err(Fault::Request {
                    tenant: tenant.to_owned(),
                    request: request.to_owned(),
                    device: name.to_owned(),
                    before: was.unwrap_or(0),
                    now,
                });
            }
            unnamed -= i64::from(was.is_some());
            assign(&mut unsettled.model, &running.model);
            assign(&mut unsettled.key, &running.key);
            assign(&mut unsettled.plan, &running.plan);
        }
        // One that is named twice is counted out twice.
        match unnamed {
            0 => Ok(()),
            _ => Err(shrunk("the running requests' time")),
        }
    }

    fn recovered(&mut self, settle: &Settle<'_>) -> Result<(), Fault> {
        let known = self.unsettled.get(settle.tenant.as_ref()).and_then(|of| of.get(settle.request.as_ref()));
        let charged = |device: &str| known.and_then(|known| known.split.get(device)).copied();
        // No more than the last checkpoints said: [`Book::settle`] checks that it is no less.
        match settle.split.iter().find(|share| charged(share.device.as_ref()) != Some(share.ns)) {
            None => self.settle(settle),
            Some(Share { device, ns, .. }) => Err(Fault::Request {
                tenant: settle.tenant.as_ref().to_owned(),
                request: settle.request.as_ref().to_owned(),
                device: device.as_ref().to_owned(),
                before: charged(device.as_ref()).unwrap_or(0),
                now: *ns,
            }),
        }
    }

    fn lose(&mut self, lost: &Lost<'_>) -> Result<(), Fault> {
        let name = lost.device.as_ref();
        let open = || Fault::Open { device: name.to_owned() };
        let account = self.devices.get_mut(name).filter(|account| !account.lost).ok_or_else(open)?;
        for (kind, ns) in [(OperatorKind::Lost, lost.lost), (OperatorKind::Down, lost.down)] {
            add(account.operator.get_mut(kind), ns, name, "operator time")?;
            add(&mut account.wall, ns, name, "wall time")?;
        }
        let ahead = std::mem::take(&mut account.ahead);
        add(&mut account.wall, ahead, name, "wall time")?;
        account.lost = true;
        Ok(())
    }

    /// All has a place: nothing runs, no bill is ahead, and each device's accounts are its wall time.
    fn close(&mut self) -> Result<(), Fault> {
        if let Some((_, _, unsettled)) = self.unsettled().next() {
            let device = unsettled.split.keys().next().cloned().unwrap_or_default();
            return Err(Fault::Open { device });
        }
        for (name, account) in &self.devices {
            if account.ahead != 0 {
                return Err(Fault::Open { device: name.clone() });
            }
            let accounted = i128::from(account.idle) + account.operator.total() + i128::from(account.settled);
            if accounted != i128::from(account.wall) {
                return Err(Fault::Sum { device: name.clone(), wall: account.wall.into(), accounted });
            }
        }
        Ok(())
    }
}

fn assign(to: &mut String, text: &Text<'_>) {
    if to != text.as_ref() {
        text.as_ref().clone_into(to);
    }
}

/// Adds to an account, which never shrinks and never overflows.
fn add(account: &mut i64, ns: i64, device: &str, name: &'static str) -> Result<(), Fault> {
    let sum = account.checked_add(ns).filter(|_| ns >= 0);
    *account = sum.ok_or_else(|| Fault::Shrunk { device: device.to_owned(), account: name })?;
    Ok(())
}
