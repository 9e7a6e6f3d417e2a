//! What requests are charged, on its way to the ledger.
//!
//! A group gathers its *bill* while it runs: what each device was charged for it, as the scheduler's events say. When it
//! has ended, the bill goes to the ledger's writer with what tells the reader, who is told when the commit that holds it
//! is on the disk. Once a second each device's accounts go the same way. The order is that of the channel, and the
//! scheduler's books, the bills sent and the bills that still run add up at every moment in between:
//!
//! ```text
//! wall - in flight = idle + operator + bills sent + what runs
//! ```
//!
//! The engine thread never waits for the writer. When its line is full, what does not fit waits here and newcomers are
//! refused, so that no more than what was running then can come to wait.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use weir_scheduler::{DeviceAccounts, DeviceId, Nanos, RequestId, TenantId};

use super::{
    Node,
    group::{Ending, Group},
};
use crate::{
    config::TenantSpec,
    ledger::{
        Checkpoint, Done, Entry, OperatorKind, OperatorTimes, RECORDS_WAITING_MAX, Record, Running, Settle, Share,
        Text, Writer,
    },
    quota::ReportOf,
};

/// How often each device's accounts are written.
const CHECKPOINT_INTERVAL: Nanos = Nanos::from_secs(1);
/// The same while a device does nothing: all that a crash could take then is idle time.
const IDLE_INTERVAL: Nanos = Nanos::from_secs(60);
/// With so many records before the writer it is behind: newcomers are refused, and accounts wait.
const BEHIND_LEN: usize = RECORDS_WAITING_MAX / 2;
/// How soon what found no room is tried again.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(5);
/// How long the end of the thread waits for room.
const END_WAIT_MAX: Duration = Duration::from_secs(4);

/// The engine thread's end of the ledger.
pub(crate) struct Ledger {
    /// The way to the writer's task, which ends when this is dropped.
    pub(crate) writer: Writer,
    /// Which life of the replica it is.
    pub(crate) epoch: i64,
}

/// What a tenant is called in the ledger.
#[derive(Debug, Clone)]
struct Payer {
    name: Arc<str>,
    plan: Arc<str>,
}

/// What a request is charged, and what its bill says beside it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bill {
    plan: Arc<str>,
    key: Arc<str>,
    /// What its client knows it by.
    name: String,
    /// What the ledger is to know it by, if not by our number.
    id: Option<Arc<str>>,
    /// Nanoseconds by device.
    split: Vec<(u16, u64)>,
}

impl Bill {
    fn add(&mut self, device: DeviceId, amount: Nanos) {
        if amount == Nanos::ZERO {
            return;
        }
        match self.split.iter_mut().find(|(of, _)| *of == device.0) {
            Some((_, ns)) => *ns += amount.0,
            None => self.split.push((device.0, amount.0)),
        }
    }

    fn on(&self, device: usize) -> u64 {
        self.split.iter().find(|(of, _)| usize::from(*of) == device).map_or(0, |(_, ns)| *ns)
    }

    fn total(&self) -> u64 {
        self.split.iter().map(|(_, ns)| ns).sum()
    }
}

/// The ledger as the engine thread sees it; all of it does nothing where there is none.
pub(super) struct Books {
    ledger: Option<Ledger>,
    /// By number, from 1.
    payers: Vec<Payer>,
    /// What found no room, in order.
    late: VecDeque<Entry>,
    /// By device: when its accounts were last written, and what they were.
    written: Vec<(Nanos, DeviceAccounts)>,
    looked: Nanos,
}

impl Books {
    pub(super) fn new(ledger: Option<Ledger>, tenants: &[TenantSpec], devices: usize) -> Books {
        let mut books = Books {
            ledger,
            payers: Vec::new(),
            late: VecDeque::new(),
            written: vec![(Nanos::ZERO, DeviceAccounts::default()); devices],
            looked: Nanos::ZERO,
        };
        (1..).map(TenantId).zip(tenants).for_each(|(id, spec)| books.put_tenant(id, spec));
        books
    }

    /// What the bills of requests that come from now on say of a tenant: a known one, or the next.
    pub(super) fn put_tenant(&mut self, id: TenantId, spec: &TenantSpec) {
        let payer = Payer { name: spec.name.as_str().into(), plan: spec.plan.as_str().into() };
        match self.payers.get_mut((id.0 as usize).wrapping_sub(1)) {
            Some(known) => *known = payer,
            None => self.payers.push(payer),
        }
    }

    /// The bill of a request that has just come.
    pub(super) fn open(&self, tenant: TenantId, key: Arc<str>, name: String, id: Option<Arc<str>>) -> Bill {
        let plan = self.payer(tenant).map(|payer| payer.plan.clone()).unwrap_or_default();
        Bill { plan, key, name, id, split: vec![] }
    }

    fn payer(&self, tenant: TenantId) -> Option<&Payer> {
        self.payers.get((tenant.0 as usize).checked_sub(1)?)
    }

    /// Whether what is accepted now can be charged for.
    pub(super) fn take_newcomers(&self) -> bool {
        let Some(ledger) = &self.ledger else { return true };
        !ledger.writer.has_stopped() && self.late.is_empty() && ledger.writer.waiting() < BEHIND_LEN
    }

    /// Whether nothing can be charged for any more, until a new start.
    pub(super) fn have_stopped(&self) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.writer.has_stopped())
    }

    /// Whether something waits for room.
    pub(super) fn are_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Sends what found no room before.
    pub(super) fn catch_up(&mut self) {
        let Some(ledger) = &self.ledger else { return };
        while let Some(entry) = self.late.pop_front() {
            if let Err(entry) = ledger.writer.try_send(entry) {
                match ledger.writer.has_stopped() {
                    true => tell(*entry, false),
                    false => return self.late.push_front(*entry),
                }
            }
        }
    }

    fn send(&mut self, record: Record<'static>, grants: Vec<ReportOf>, done: Option<Done>) {
        let entry = Entry { at_us: unix_us(), record, grants, done };
        match &self.ledger {
            Some(_) => self.late.push_back(entry),
            None => return tell(entry, true),
        }
        self.catch_up();
    }

    /// The bill of a request that has ended, if it ran.
    fn settle(&self, group: &Group, devices: &[super::Device], models: &[super::NodeModel]) -> Option<Settle<'static>> {
        let ledger = self.ledger.as_ref()?;
        if group.is_canary() || !group.started && group.bill.total() == 0 {
            return None;
        }
        let share = |(device, ns): &(u16, u64)| {
            let config = &devices[usize::from(*device)].config;
            Share { device: text(&config.name), class: text(&config.class), ns: int(*ns) }
        };
        Some(Settle {
            tenant: text(self.payer(group.tenant).map_or("", |payer| &payer.name)),
            request: request_id(ledger.epoch, group).into(),
            model: text(&models[group.model].name),
            key: text(&group.bill.key),
            plan: text(&group.bill.plan),
            split: group.bill.split.iter().map(share).collect(),
            prompt_tokens: group.usage.prompt_tokens.into(),
            completion_tokens: group.usage.completion_tokens.into(),
            stop: text(group.why_ended()),
            name: text(&group.bill.name),
        })
    }
}

/// Unique for ever: no epoch has the number of another, and no group of an epoch; and whoever brings an id of its own sees to that.
fn request_id(epoch: i64, group: &Group) -> String {
    group.bill.id.as_deref().map_or_else(|| format!("{epoch}-{}", group.id.0), str::to_owned)
}

fn tell(entry: Entry, written: bool) {
    if let Some(done) = entry.done {
        done(written);
    }
}

fn text(of: &str) -> Text<'static> {
    of.to_owned().into()
}

/// Three centuries of device time are below the end of 63 bits.
fn int(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// By the machine's clock, in microseconds since 1970.
pub(crate) fn unix_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl Node {
    /// Of what a request was charged so far, what is new is of this device.
    pub(super) fn book(&mut self, request: RequestId, device: DeviceId, charge: Nanos) {
        let Some(live) = self.sequences.get_mut(&request) else { return };
        let new = charge.saturating_sub(std::mem::replace(&mut live.booked, charge));
        if let Some(group) = self.groups.get_mut(&live.group) {
            group.bill.add(device, new);
            group.usage.device_nanos += new.0;
        }
    }

    /// Sends a group's bill, and has its reader told of the end when that is on the disk. Of a failure the reader was told.
    pub(super) fn settle_bill(&mut self, group: &mut Group) {
        let ending: Option<Ending> = (!group.failed).then(|| group.ending());
        match (self.books.settle(group, &self.devices, &self.models), ending) {
            (Some(settle), Some(ending)) => {
                let grants = self.grant_reports(group.tenant);
                let done: Done = Box::new(move |written| ending.tell(written));
                self.books.send(Record::Settle(settle), grants, Some(done));
            }
            (Some(settle), None) => {
                let grants = self.grant_reports(group.tenant);
                self.books.send(Record::Settle(settle), grants, None);
            }
            (None, Some(ending)) => ending.tell(true),
            (None, None) => {}
        }
    }

    /// Tries again what found no room, says whether anything can be charged for, and writes accounts when it is time.
    pub(super) fn look_at_books(&mut self) {
        if self.books.ledger.is_none() {
            return;
        }
        self.books.catch_up();
        if self.books.have_stopped() {
            self.status.ledger_stopped();
        }
        let now = self.now();
        let due = now >= self.books.looked.saturating_add(CHECKPOINT_INTERVAL);
        if due && self.books.take_newcomers() {
            self.books.looked = now;
            self.write_accounts(now, false);
        }
    }

    /// Sends the accounts of every device, of idle ones now and then; or of all at the end.
    fn write_accounts(&mut self, now: Nanos, last: bool) {
        // What the scheduler has to say of charges has to be heard first.
        self.settle();
        let running: Vec<RequestId> = self.sequences.keys().copied().collect();
        for request in running {
            if let Some((device, charge)) = self.scheduler.charge_of(request) {
                self.book(request, device, charge);
            }
        }
        let Some(epoch) = self.books.ledger.as_ref().map(|ledger| ledger.epoch) else { return };
        let mut groups: Vec<&Group> = self.groups.values().filter(|group| !group.is_canary()).collect();
        groups.sort_unstable_by_key(|group| group.id);
        let mut records = Vec::new();
        for (device, entry) in self.devices.iter().enumerate() {
            let accounts = self.scheduler.accounts(now, DeviceId(device as u16));
            let (at, before) = self.books.written[device];
            let quiet = (accounts.tenants, accounts.operator) == (before.tenants, before.operator);
            let idle = quiet && now < at.saturating_add(IDLE_INTERVAL);
            if accounts.wall == Nanos::ZERO || idle && !last {
                continue;
            }
            let on_it = groups.iter().filter(|group| group.bill.on(device) > 0);
            let running = on_it.map(|group| Running {
                tenant: text(self.books.payer(group.tenant).map_or("", |payer| &payer.name)),
                request: request_id(epoch, group).into(),
                model: text(&self.models[group.model].name),
                key: text(&group.bill.key),
                plan: text(&group.bill.plan),
                ns: int(group.bill.on(device)),
            });
            let checkpoint = Checkpoint {
                device: text(&entry.config.name),
                class: text(&entry.config.class),
                wall: int(accounts.wall.saturating_sub(accounts.in_flight).0),
                idle: int(accounts.idle.0),
                operator: operator_times(&accounts),
                running: running.collect(),
            };
            self.books.written[device] = (now, accounts);
            records.push(Record::Checkpoint(checkpoint));
        }
        records.into_iter().for_each(|record| self.books.send(record, Vec::new(), None));
    }

    /// The last accounts, and the end of the epoch. Nothing runs any more. Only here the thread waits for the writer.
    pub(super) fn close_books(&mut self) {
        if self.books.ledger.is_none() {
            return;
        }
        self.write_accounts(self.now(), true);
        self.books.send(Record::Close, Vec::new(), None);
        let deadline = Instant::now() + END_WAIT_MAX;
        if let Some(Ledger { writer, .. }) = self.books.ledger.take() {
            let late = std::mem::take(&mut self.books.late);
            let unsent = late.into_iter().map(|entry| writer.send_before(entry, deadline));
            if unsent.filter(|sent| !sent).count() > 0 {
                tracing::error!("the ledger's last records could not be written: the next start recovers");
            }
        }
    }
}

/// The operator's time by kind; what has no kind is of rows whose request had ended before.
fn operator_times(accounts: &DeviceAccounts) -> OperatorTimes {
    let mut times = OperatorTimes::default();
    let kinds = [
        (OperatorKind::Own, accounts.own),
        (OperatorKind::Redo, accounts.redo),
        (OperatorKind::Overrun, accounts.overrun),
        (OperatorKind::Failed, accounts.failed),
        (OperatorKind::Gap, accounts.gap),
        (OperatorKind::Absent, accounts.absent),
    ];
    let mut other = accounts.operator;
    for (kind, ns) in kinds {
        *times.get_mut(kind) = int(ns.0);
        other = other.saturating_sub(ns);
    }
    *times.get_mut(OperatorKind::Other) = int(other.0);
    times
}
