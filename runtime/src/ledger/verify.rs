//! Whether a ledger is whole: chains, order, and sums at every checkpoint, in one pass over the rows.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
};

use super::{
    book::{Book, Stage},
    month::Closing,
    record::Record,
    row::{Hash, Row},
    usage::DaySums,
};

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its content or its hash was changed, or the row before it was.
    #[error("its hash is not that of its content after the row before it")]
    Hash,
    /// A row is missing, or this one is too many.
    #[error("row {seq} of epoch {epoch} stands in its place")]
    Order {
        /// What was found instead.
        epoch: i64,
        /// What was found instead.
        seq: i64,
    },
    /// The epoch ends before its last row.
    #[error("it is missing: the epoch is known to go on until row {last}")]
    Missing {
        /// The last row that is known of.
        last: i64,
    },
    /// The epoch ends before its last row.
    #[error("it is missing: epoch {next} began after it")]
    Cut {
        /// The replica's next epoch, which names the last row.
        next: i64,
    },
    /// The epoch ends before its last row.
    #[error("it is missing: the last row of the epoch is known to have another hash than the one before it")]
    End,
    /// It is not what was noted of it elsewhere.
    #[error("its hash is not the one that {noted} has noted")]
    Noted {
        /// Where.
        noted: &'static str,
    },
    /// It is of another version, or not of any.
    #[error("it cannot be read: {what}")]
    Unreadable {
        /// What was found.
        what: String,
    },
    /// A total is not that of its parts.
    #[error("it charges {charged} ns, and its parts are {split} ns")]
    Split {
        /// The column.
        charged: i64,
        /// The body's sum.
        split: i64,
    },
    /// A device's wall time is not the sum of its accounts.
    #[error("on {device}, {wall} ns of wall time are {accounted} ns in the accounts")]
    Sum {
        /// Which device.
        device: String,
        /// What the row says.
        wall: i128,
        /// idle + operator + settled + running.
        accounted: i128,
    },
    /// An account that can only grow has shrunk, or is negative.
    #[error("{account} of {device} has shrunk")]
    Shrunk {
        /// Which device.
        device: String,
        /// Which account.
        account: &'static str,
    },
    /// A request is charged less than it had been charged before, or is gone without a bill.
    #[error("request {request:?} of {tenant:?} had been charged {before} ns on {device}, and now {now} ns")]
    Request {
        /// Whose.
        tenant: String,
        /// Which.
        request: String,
        /// Where.
        device: String,
        /// Before.
        before: i64,
        /// Now.
        now: i64,
    },
    /// A request has two bills, or runs after its bill.
    #[error("request {request:?} of {tenant:?} was settled before")]
    SettledTwice {
        /// Whose.
        tenant: String,
        /// Which.
        request: String,
    },
    /// A kind that may not stand there.
    #[error("a row of kind {kind} may not stand there")]
    Kind {
        /// Which.
        kind: &'static str,
    },
    /// The epoch is closed, and something is not.
    #[error("the epoch is closed, and {device} is not settled")]
    Open {
        /// Which device.
        device: String,
    },
}

/// The first row that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {seq} of epoch {epoch}: {fault}")]
pub struct BadRow {
    /// Its epoch.
    pub epoch: i64,
    /// Its place there.
    pub seq: i64,
    /// How many rows were read before it.
    pub index: u64,
    /// What is wrong with it.
    pub fault: Box<Fault>,
}

/// The last row of a chain, or one in its midst, as it was noted elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head {
    /// Which epoch.
    pub epoch: i64,
    /// Which row.
    pub seq: i64,
    /// Its hash.
    pub hash: Hash,
}

/// Where an epoch stood when the rows before were archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Its last row then.
    pub head: Head,
    /// Its accounts.
    pub book: Book,
}

/// What was found right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Rows.
    pub rows: u64,
    /// Epochs that have a row.
    pub epochs: u64,
    /// Requests settled.
    pub requests: u64,
    /// Device time charged to tenants.
    pub charged_ns: i128,
    /// Months that are closed.
    pub months: u64,
}

/// Reads rows in the order of epoch and place, and stops at the first that is wrong.
///
/// It keeps the accounts of one epoch, the last row's hash of each, and 16 bytes for each request that was settled:
/// about 30 MB for a million. The requests are told apart by 128 bits under a key made for the run, so that nobody
/// can prepare two that look alike.
#[derive(Debug)]
pub struct Verifier {
    starts: BTreeMap<i64, Start>,
    noted: BTreeMap<(i64, i64), (Hash, &'static str)>,
    ends: BTreeMap<i64, Head>,
    last: BTreeMap<i64, Hash>,
    epoch: Option<Start>,
    /// The last rows of the epochs that were read, and whether no other can follow.
    heads: BTreeMap<i64, (Head, bool)>,
    settled: HashSet<u128, BuildHasherDefault<AsItIs>>,
    keys: [RandomState; 2],
    buffer: Vec<u8>,
    usage: Option<DaySums>,
    /// The statement that the rows of this pass make.
    closing: Option<Closing>,
    verified: Verified,
}

/// Takes numbers that are hashes already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Never called for the one type that is put in, and right for any.
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, number: u128) {
        self.0 = number as u64;
    }
}

impl Default for Verifier {
    fn default() -> Self {
        Verifier::new()
    }
}

impl Verifier {
    /// From the first row of all.
    pub fn new() -> Verifier {
        Verifier {
            starts: BTreeMap::new(),
            noted: BTreeMap::new(),
            ends: BTreeMap::new(),
            last: BTreeMap::new(),
            epoch: None,
            heads: BTreeMap::new(),
            settled: HashSet::default(),
            keys: [RandomState::new(), RandomState::new()],
            buffer: Vec::with_capacity(1024),
            usage: None,
            closing: None,
            verified: Verified::default(),
        }
    }

    /// Has epochs begin where a signed month ends.
    pub fn start_from(&mut self, starts: impl IntoIterator<Item = Start>) {
        self.starts.extend(starts.into_iter().map(|start| (start.head.epoch, start)));
    }

    /// Begins another pass, over what follows these places: of all epochs, or up to where `closing` will cut them. What
    /// has a bill is still known.
    pub(super) fn go_on(&mut self, starts: Vec<Start>, closing: Option<Closing>) {
        (self.starts, self.epoch, self.closing) = (BTreeMap::new(), None, closing);
        self.start_from(starts);
    }

    /// All rows of a month were read: the statement that they make.
    pub(super) fn end_month(&mut self) -> Result<Option<Closing>, BadRow> {
        self.end_epochs(i64::MAX, self.verified.rows)?;
        Ok(self.closing.take())
    }

    /// Goes on with an epoch where it stood. Its rows come first.
    pub(super) fn resume(&mut self, start: Start) {
        self.epoch = Some(start);
    }

    /// Adds up what bills make of the days' usage.
    pub(super) fn sum_usage(&mut self, usage: Option<DaySums>) {
        self.usage = usage;
    }

    /// What they made of it.
    pub(super) fn take_usage(&mut self) -> Option<DaySums> {
        self.usage.take()
    }

    /// Heads that were noted elsewhere: the rows must be there and have these hashes. Those before the start of their
    /// epoch are not asked for.
    pub fn expect(&mut self, noted: &'static str, heads: impl IntoIterator<Item = Head>) {
        for head in heads {
            self.noted.insert((head.epoch, head.seq), (head.hash, noted));
            let end = self.ends.entry(head.epoch).or_insert(head);
            *end = (*end).max(head);
        }
    }

    /// The hash of an epoch's last row, as it was noted with every group of rows.
    pub fn expect_end(&mut self, epoch: i64, hash: Hash) {
        self.last.insert(epoch, hash);
    }

    /// Reads the next row.
    pub fn row(&mut self, row: &Row<'_>) -> Result<(), BadRow> {
        let index = self.verified.rows;
        let here = |fault| BadRow { epoch: row.epoch, seq: row.seq, index, fault: Box::new(fault) };
        if self.epoch.as_ref().is_none_or(|current| current.head.epoch != row.epoch) {
            self.next_epoch(row.epoch, index)?;
        }
        let Some(current) = &mut self.epoch else { return Err(here(Fault::Hash)) };
        let expected = current.head.seq + 1;
        if row.seq != expected {
            let fault = Box::new(Fault::Order { epoch: row.epoch, seq: row.seq });
            return Err(BadRow { epoch: row.epoch, seq: expected, index, fault });
        }
        if row.hash_after(current.head.hash, &mut self.buffer) != row.hash {
            return Err(here(Fault::Hash));
        }
        let noted = if self.noted.is_empty() { None } else { self.noted.get(&(row.epoch, row.seq)) };
        if let Some(&(_, noted)) = noted.filter(|(hash, _)| *hash != row.hash) {
            return Err(here(Fault::Noted { noted }));
        }
        let record = row.record().map_err(here)?;
        if let Record::Open(open) = &record
            && let Some((before, hash)) = open.previous
            && let Some((head, _)) = self.heads.get(&before).filter(|(head, last)| *last && head.hash != hash)
        {
            let fault = Box::new(Fault::Cut { next: row.epoch });
            return Err(BadRow { epoch: before, seq: head.seq + 1, index, fault });
        }
        let settled = &mut self.settled;
        let keys = &self.keys;
        let id = |tenant: &str, request: &str| {
            let [high, low] = keys.each_ref().map(|key| u128::from(key.hash_one((tenant, request))));
            high << 64 | low
        };
        let twice = |tenant: &str, request: &str| {
            here(Fault::SettledTwice { tenant: tenant.to_owned(), request: request.to_owned() })
        };
        match &record {
            Record::Settle(settle) | Record::Recovered(settle) => {
                let (tenant, request) = (settle.tenant.as_ref(), settle.request.as_ref());
                if !settled.insert(id(tenant, request)) {
                    return Err(twice(tenant, request));
                }
                if let Some(usage) = &mut self.usage {
                    usage.add(row.at_us, settle);
                }
                self.verified.requests += 1;
                self.verified.charged_ns += i128::from(row.device_ns);
            }
            Record::Checkpoint(checkpoint) => {
                for running in &checkpoint.running {
                    let (tenant, request) = (running.tenant.as_ref(), running.request.as_ref());
                    if settled.contains(&id(tenant, request)) {
                        return Err(twice(tenant, request));
                    }
                }
            }
            _ => {}
        }
        if let Some(closing) = &mut self.closing {
            closing.row(row.at_us, &record);
        }
        current.book.apply(row.at_us, &record).map_err(here)?;
        current.head = Head { epoch: row.epoch, seq: row.seq, hash: row.hash };
        self.verified.rows += 1;
        Ok(())
    }

    /// All rows were read.
    pub fn finish(mut self) -> Result<Verified, BadRow> {
        let index = self.verified.rows;
        self.end_epochs(i64::MAX, index)?;
        Ok(self.verified)
    }

    /// The accounts of the epoch that is being read.
    pub fn book(&self) -> Option<&Book> {
        self.epoch.as_ref().map(|current| &current.book)
    }

    /// The last row that was read of it.
    pub fn head(&self) -> Option<Head> {
        self.epoch.as_ref().map(|current| current.head)
    }

    fn next_epoch(&mut self, epoch: i64, index: u64) -> Result<(), BadRow> {
        if let Some(before) = self.epoch.as_ref().map(|current| current.head)
            && before.epoch > epoch
        {
            let fault = Box::new(Fault::Order { epoch, seq: before.seq });
            return Err(BadRow { epoch: before.epoch, seq: before.seq + 1, index, fault });
        }
        self.end_epochs(epoch, index)?;
        self.verified.epochs += u64::from(!self.heads.contains_key(&epoch));
        let start = self.starts.remove(&epoch);
        let head = Head { epoch, seq: 0, hash: Hash::NONE };
        self.epoch = Some(start.unwrap_or_else(|| Start { head, book: Book::default() }));
        Ok(())
    }

    /// No more rows come of the present epoch, and none of those before `next`: what was noted of them must have been
    /// there.
    fn end_epochs(&mut self, next: i64, index: u64) -> Result<(), BadRow> {
        let current = self.epoch.take();
        let read = current.as_ref().map(|current| current.head);
        if let Some(Start { head, book }) = current {
            if let Some(closing) = &mut self.closing {
                closing.cut(head, &book);
            }
            // Where a month cuts a chain others follow.
            let last = self.closing.is_none() || book.stage() == Stage::Closed;
            self.heads.insert(head.epoch, (head, last));
        }
        while let Some(entry) = self.ends.first_entry().filter(|entry| *entry.key() < next || next == i64::MAX) {
            let (epoch, end) = entry.remove_entry();
            let start = self.starts.get(&epoch).map_or(0, |start| start.head.seq);
            let seq = read.filter(|head| head.epoch == epoch).map_or(start, |head| head.seq);
            if end.seq > seq {
                return Err(BadRow { epoch, seq: seq + 1, index, fault: Box::new(Fault::Missing { last: end.seq }) });
            }
        }
        while let Some(entry) = self.last.first_entry().filter(|entry| *entry.key() < next || next == i64::MAX) {
            let (epoch, hash) = entry.remove_entry();
            let head = read.filter(|head| head.epoch == epoch).or(self.starts.get(&epoch).map(|start| start.head));
            if head.is_none_or(|head| head.hash != hash) {
                let seq = head.map_or(0, |head| head.seq) + 1;
                return Err(BadRow { epoch, seq, index, fault: Box::new(Fault::End) });
            }
        }
        self.noted = self.noted.split_off(&(next, i64::MIN));
        Ok(())
    }
}

/// Verifies a whole ledger, in the order of epoch and place.
pub fn verify<'a>(rows: impl IntoIterator<Item = Row<'a>>) -> Result<Verified, BadRow> {
    let mut verifier = Verifier::new();
    for row in rows {
        verifier.row(&row)?;
    }
    verifier.finish()
}

impl Start {
    /// Whether the epoch goes on.
    pub fn is_open(&self) -> bool {
        self.book.stage() != Stage::Closed
    }
}
