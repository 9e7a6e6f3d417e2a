//! A made-up engine with the truth beside it: what every device did and what every request was worked for, whatever
//! the ledger says.

use std::collections::{BTreeMap, BTreeSet};

use crate::ledger::{
    Book, Chain, Checkpoint, Open, OperatorKind, OperatorTimes, Record, Row, Running, Settle, Share, recover,
};

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn nanos(&mut self) -> i64 {
        self.below(40_000_000) as i64
    }
}

#[derive(Clone, Default)]
pub(super) struct Device {
    pub(super) wall: i64,
    pub(super) idle: i64,
    pub(super) operator: OperatorTimes,
    pub(super) tenants: i64,
}

struct Live {
    tenant: String,
    request: String,
    model: String,
    key: String,
    split: BTreeMap<String, i64>,
}

type Id = (String, String);

/// What is true of a whole history.
#[derive(Default)]
pub(super) struct Truth {
    /// Device time that each request was worked for.
    pub(super) work: BTreeMap<Id, i64>,
    /// Bills that were acknowledged.
    pub(super) acknowledged: BTreeMap<Id, i64>,
    /// The devices of the epochs that ended cleanly.
    pub(super) clean: BTreeMap<i64, BTreeMap<String, Device>>,
    pub(super) crashes: usize,
}

pub(super) struct History {
    pub(super) rows: Vec<Row<'static>>,
    pub(super) truth: Truth,
}

fn class(device: &str) -> String {
    device[..3].to_owned()
}

fn share((device, ns): (String, i64)) -> Share<'static> {
    Share { class: class(&device).into(), device: device.into(), ns }
}

/// One life of an engine.
struct Life<'a> {
    rng: &'a mut Rng,
    now_us: i64,
    chain: Chain,
    rows: Vec<Row<'static>>,
    devices: BTreeMap<String, Device>,
    live: Vec<Live>,
    settled: Vec<(usize, Id, i64)>,
    truth: &'a mut Truth,
}

impl Life<'_> {
    fn write(&mut self, record: &Record<'_>) {
        let row = self.chain.append(self.now_us, record);
        self.rows.push(row);
    }

    fn pick(&mut self) -> String {
        let at = self.rng.below(self.devices.len());
        self.devices.keys().nth(at).unwrap().clone()
    }

    fn act(&mut self) {
        self.now_us += self.rng.below(300_000) as i64;
        if self.rng.chance(1) {
            self.now_us -= self.rng.below(20_000_000) as i64;
        }
        let name = self.pick();
        match self.rng.below(10) {
            0 => {
                let ns = self.rng.nanos();
                let device = self.devices.get_mut(&name).unwrap();
                device.wall += ns;
                device.idle += ns;
            }
            1..=5 => self.step(&name),
            6 | 7 => self.settle(),
            _ => self.checkpoint(&name),
        }
    }

    fn step(&mut self, name: &str) {
        if self.live.len() < 3 || (self.live.len() < 30 && self.rng.chance(30)) {
            let number = self.truth.work.len();
            // Names that need escapes in JSON, too.
            let tenant = ["acme", "b\"eta", "ü"][self.rng.below(3)].to_owned();
            let request = format!("req\\{number}");
            self.truth.work.insert((tenant.clone(), request.clone()), 0);
            let [model, key] =
                [["tiny", "large"][self.rng.below(2)], ["", "wk_a"][self.rng.below(2)]].map(str::to_owned);
            self.live.push(Live { tenant, request, model, key, split: BTreeMap::new() });
        }
        for _ in 0..=self.rng.below(4) {
            let at = self.rng.below(self.live.len());
            let ns = self.rng.nanos();
            let live = &mut self.live[at];
            *live.split.entry(name.to_owned()).or_default() += ns;
            *self.truth.work.get_mut(&(live.tenant.clone(), live.request.clone())).unwrap() += ns;
            let device = self.devices.get_mut(name).unwrap();
            device.wall += ns;
            device.tenants += ns;
        }
        let (kind, ns) = (OperatorKind::ALL[self.rng.below(8)], self.rng.nanos());
        let device = self.devices.get_mut(name).unwrap();
        *device.operator.get_mut(kind) += ns;
        device.wall += ns;
    }

    fn settle(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let at = self.rng.below(self.live.len());
        let live = self.live.swap_remove(at);
        let total = live.split.values().sum();
        self.settled.push((self.rows.len(), (live.tenant.clone(), live.request.clone()), total));
        let settle = Settle {
            tenant: live.tenant.into(),
            request: live.request.into(),
            model: live.model.into(),
            key: live.key.into(),
            plan: "starter".into(),
            split: live.split.into_iter().map(share).collect(),
            prompt_tokens: self.rng.below(1000) as i64,
            completion_tokens: self.rng.below(1000) as i64,
            stop: "stop".into(),
            name: "".into(),
        };
        self.write(&Record::Settle(settle));
    }

    fn checkpoint(&mut self, name: &str) {
        let running = self.live.iter().filter_map(|live| {
            Some(Running {
                tenant: live.tenant.clone().into(),
                request: live.request.clone().into(),
                model: live.model.clone().into(),
                key: live.key.clone().into(),
                plan: "starter".into(),
                ns: *live.split.get(name)?,
            })
        });
        let running = running.collect();
        let Device { wall, idle, operator, .. } = self.devices[name].clone();
        let device = name.to_owned().into();
        self.write(&Record::Checkpoint(Checkpoint {
            device,
            class: class(name).into(),
            wall,
            idle,
            operator,
            running,
        }));
    }

    fn close(&mut self) {
        while !self.live.is_empty() {
            self.settle();
        }
        for name in self.devices.keys().cloned().collect::<Vec<_>>() {
            self.checkpoint(&name);
        }
        self.write(&Record::Close);
        self.truth.clean.insert(self.chain.epoch, self.devices.clone());
    }
}

/// The book that rows make.
pub(super) fn book_of(rows: &[Row<'_>]) -> Book {
    let mut book = Book::default();
    rows.iter().for_each(|row| book.apply(row.at_us, &row.record().unwrap()).unwrap());
    book
}

/// Lives of an engine, most of which end in a crash at a random row, and so do the recoveries after it.
pub(super) fn history(seed: u64, epochs: i64, actions: usize) -> History {
    let mut rng = Rng(seed);
    let (mut truth, mut rows) = (Truth::default(), Vec::new());
    let mut now_us = 1_800_000_000_000_000;
    let mut previous = None;
    for epoch in 1..=epochs {
        let names = ["cpu0", "gpu\t1", "gpu2"].into_iter().take(1 + rng.below(3));
        let devices = names.map(|name| (name.to_owned(), Device::default())).collect();
        let chain = Chain::new(epoch);
        let actions = rng.below(actions);
        let mut life = Life {
            rng: &mut rng,
            now_us,
            chain,
            rows: Vec::new(),
            devices,
            live: Vec::new(),
            settled: Vec::new(),
            truth: &mut truth,
        };
        life.write(&Record::Open(Open { replica: "one".into(), previous }));
        (0..actions).for_each(|_| life.act());
        let clean = life.rng.chance(20);
        if clean {
            life.close();
        }
        let Life { rows: mut written, settled, now_us: until, .. } = life;
        if !clean {
            truth.crashes += 1;
            let kept = 1 + rng.below(written.len());
            written.truncate(kept);
        }
        let kept = settled.into_iter().filter(|(at, _, _)| *at < written.len());
        truth.acknowledged.extend(kept.map(|(_, id, ns)| (id, ns)));
        now_us = until + rng.below(100_000_000) as i64 - 10_000_000;
        // The next start, which may be cut short as often as it likes.
        loop {
            let records = recover(&book_of(&written), now_us);
            let last = written.last().unwrap();
            let mut chain = Chain { epoch, seq: last.seq, head: last.hash };
            let some = if rng.chance(50) { rng.below(records.len() + 1) } else { records.len() };
            written.extend(records[..some].iter().map(|record| chain.append(now_us, record)));
            now_us += rng.below(1_000_000) as i64;
            if some == records.len() {
                break;
            }
        }
        previous = written.last().map(|row| (epoch, row.hash));
        rows.extend(written);
    }
    History { rows, truth }
}

/// Requests that rows charge, with what they charge; panics if one is charged twice.
pub(super) fn bills(rows: &[Row<'_>]) -> BTreeMap<Id, i64> {
    let mut bills = BTreeMap::new();
    for row in rows.iter().filter(|row| matches!(&*row.kind, "settle" | "recovered")) {
        let twice = bills.insert((row.tenant.to_string(), row.request.to_string()), row.device_ns);
        assert_eq!(twice, None, "{} of {}", row.request, row.tenant);
    }
    bills
}

/// Epochs of rows.
pub(super) fn epochs(rows: &[Row<'_>]) -> BTreeSet<i64> {
    rows.iter().map(|row| row.epoch).collect()
}
