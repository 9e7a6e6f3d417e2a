//! Closing a month: a signed statement of where each chain stands, after which the rows before it can be archived.
//!
//! A statement cuts every chain after its last row that was written before the month's end. The rows up to there and
//! after the statement before are the month's: each row is in exactly one month, by its place in the chain and not by
//! a clock that may have stepped. For each chain it holds the place, the hash and, if the epoch goes on, the
//! accounts, so that verifying can begin there; and the month's sums by tenant, model, key, plan, class and day, from
//! which the bills are made. It names the hash of the statement before.
//!
//! It is text, as JSON, and what is signed is its bytes: Ed25519 (RFC 8032) over `weir month 1\n` and the text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    book::{Account, Book, Stage, Unsettled},
    operator::OperatorTimes,
    record::{Record, Settle},
    row::Hash,
    signing::PublicKey,
    verify::{Head, Start},
};
use crate::quota::calendar;

/// What came of a month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Month {
    /// Of this text.
    version: u8,
    /// Such as `2026-11`.
    pub month: String,
    /// Its end, in microseconds since 1970 UTC.
    pub ends_us: i64,
    /// The hash of the statement before, as hexadecimal digits; empty in the first.
    pub previous: String,
    /// Every epoch below this one has ended in this month or before.
    pub closed_below: i64,
    /// Where each of the other chains stands, as far as it is in this month or one before.
    pub chains: Vec<ChainEnd>,
    /// Its bills.
    pub usage: Vec<Usage>,
}

/// What one tenant used of one model with one key, under one plan and on devices of one class. A request that ran on
/// several classes, and its tokens, count for the first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Who pays.
    pub tenant: String,
    /// What was asked for.
    pub model: String,
    /// The API key.
    pub key: String,
    /// The plan.
    pub plan: String,
    /// The class of the devices; empty for requests that were charged nothing.
    pub class: String,
    /// By the day on which bills were written, counted from 1970: one outside of the month was written by a clock that
    /// had stepped, or late.
    pub days: Vec<(i64, UsageSums)>,
}

/// Requests settled, device time charged, tokens of prompts, tokens drawn.
pub type UsageSums = [i64; 4];

impl Usage {
    /// All days together.
    pub fn sums(&self) -> UsageSums {
        let mut sums = UsageSums::default();
        for (_, day) in &self.days {
            sums.iter_mut().zip(day).for_each(|(sum, part)| *sum = sum.saturating_add(*part));
        }
        sums
    }
}

/// Tenant, model, key, plan and class.
type UsageKey<T = String> = [T; 5];

impl Settle<'_> {
    /// What it adds to the usage of each class: requests, device time, tokens of prompts and tokens drawn.
    pub fn usage(&self) -> impl Iterator<Item = (UsageKey<&str>, UsageSums)> {
        let first = self.split.first().map_or("", |share| share.class.as_ref());
        let [tenant, model, key, plan] = [&self.tenant, &self.model, &self.key, &self.plan].map(|t| t.as_ref());
        let once = (first, [1, 0, self.prompt_tokens, self.completion_tokens]);
        let shares = self.split.iter().map(|share| (share.class.as_ref(), [0, share.ns, 0, 0]));
        std::iter::once(once).chain(shares).map(move |(class, sums)| ([tenant, model, key, plan, class], sums))
    }
}

/// Where a chain stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainEnd {
    /// Which epoch.
    pub epoch: i64,
    /// Its last row.
    pub seq: i64,
    /// The hash of that.
    pub hash: String,
    /// Nothing if the epoch has ended.
    pub accounts: Option<Accounts>,
}

/// A [`Book`] of an epoch that goes on, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accounts {
    replica: String,
    recovering: bool,
    alive_us: i64,
    devices: Vec<DeviceAccount>,
    unsettled: Vec<UnsettledText>,
}

/// Tenant, request, model, key, plan, and device time by device.
type UnsettledText = (String, String, String, String, String, Vec<(String, i64)>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceAccount {
    device: String,
    class: String,
    wall: i64,
    idle: i64,
    operator: OperatorTimes,
    settled: i64,
    ahead: i64,
    checkpoint_us: Option<i64>,
    lost: bool,
}

/// Why a statement does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MonthFault {
    /// It was not signed by this key, or was changed since.
    #[error("the signature is not that of the key")]
    Signature,
    /// It is of another version, or not of any.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// It does not follow the one before.
    #[error("it does not follow the statement of the month before")]
    Previous,
    /// It stands in another month's place, or its hash in the store is another.
    #[error("the store shows it as another's")]
    Place,
    /// Nobody who is trusted has signed it.
    #[error("it was signed by {0}, which is none of the keys that were named")]
    Signer(String),
    /// The rows add up to something else.
    #[error("the rows up to where it cuts them make another one")]
    Rows,
}

/// Makes the statement of a month while its rows are read, in the order in which they are verified.
#[derive(Debug)]
pub struct Closing {
    month: String,
    ends_us: i64,
    previous: String,
    closed_below: i64,
    chains: BTreeMap<i64, ChainEnd>,
    usage: BTreeMap<UsageKey, BTreeMap<i64, UsageSums>>,
}

impl Closing {
    /// For the month after `previous`, its text; the chains of that one stand where they stood until a row moves them.
    pub fn new(month: &str, ends_us: i64, previous: Option<(&str, &Month)>) -> Closing {
        let chains = previous.iter().flat_map(|(_, before)| &before.chains);
        Closing {
            month: month.to_owned(),
            ends_us,
            previous: previous.map(|(text, _)| hash_of(text).to_string()).unwrap_or_default(),
            closed_below: previous.map_or(1, |(_, before)| before.closed_below),
            chains: chains.map(|chain| (chain.epoch, chain.clone())).collect(),
            usage: BTreeMap::new(),
        }
    }

    /// A row of this month that was verified, written then. The caller knows where the cut is: see the page.
    pub fn row(&mut self, at_us: i64, record: &Record<'_>) {
        if let Record::Settle(settle) | Record::Recovered(settle) = record {
            let day = calendar::day_of(at_us);
            for (key, parts) in settle.usage() {
                let sums = self.usage.entry(key.map(str::to_owned)).or_default().entry(day).or_default();
                for (sum, part) in sums.iter_mut().zip(parts) {
                    // Three centuries of device time are below the end of 64 bits.
                    *sum += part;
                }
            }
        }
    }

    /// The last row of a chain that is in this month, and the accounts there.
    pub fn cut(&mut self, head: Head, book: &Book) {
        let accounts = (book.stage() != Stage::Closed).then(|| Accounts::of(book));
        let end = ChainEnd { epoch: head.epoch, seq: head.seq, hash: head.hash.to_string(), accounts };
        self.chains.insert(head.epoch, end);
    }

    /// The statement.
    pub fn finish(mut self) -> Month {
        // Epochs have numbers in a row, so the ended ones need no line each for ever.
        while self.chains.get(&self.closed_below).is_some_and(|chain| chain.accounts.is_none()) {
            self.chains.remove(&self.closed_below);
            self.closed_below += 1;
        }
        let usage = self.usage.into_iter().map(|([tenant, model, key, plan, class], days)| {
            let days = days.into_iter().collect();
            Usage { tenant, model, key, plan, class, days }
        });
        Month {
            version: 1,
            month: self.month,
            ends_us: self.ends_us,
            previous: self.previous,
            closed_below: self.closed_below,
            chains: self.chains.into_values().collect(),
            usage: usage.collect(),
        }
    }
}

impl Month {
    /// The text that is signed and stored.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("a statement is of numbers, texts and lists, which JSON has")
    }

    /// Checks a text's signature, and reads it.
    pub fn from_text(text: &str, signature: &[u8], key: &PublicKey) -> Result<Month, MonthFault> {
        if !key.has_signed(text, signature) {
            return Err(MonthFault::Signature);
        }
        let month: Month = serde_json::from_str(text).map_err(|error| MonthFault::Unreadable(error.to_string()))?;
        match month.version {
            1 => Ok(month),
            other => Err(MonthFault::Unreadable(format!("it is of version {other}"))),
        }
    }

    /// Whether it names this text as the statement before.
    pub fn follows(&self, previous: Option<&str>) -> Result<(), MonthFault> {
        match previous.map(|text| hash_of(text).to_string()).unwrap_or_default() == self.previous {
            true => Ok(()),
            false => Err(MonthFault::Previous),
        }
    }

    /// Where verifying begins.
    pub fn starts(&self) -> Result<Vec<Start>, MonthFault> {
        let start = |chain: &ChainEnd| {
            let hash = Hash::from_hex(&chain.hash).ok_or_else(|| MonthFault::Unreadable("a hash is none".into()))?;
            let book = match &chain.accounts {
                Some(accounts) => accounts.book(),
                None => Book { stage: Stage::Closed, ..Book::default() },
            };
            Ok(Start { head: Head { epoch: chain.epoch, seq: chain.seq, hash }, book })
        };
        self.chains.iter().map(start).collect()
    }
}

/// What the next statement names a text by.
pub(super) fn hash_of(text: &str) -> Hash {
    Hash(*blake3::hash(text.as_bytes()).as_bytes())
}

impl Accounts {
    fn of(book: &Book) -> Accounts {
        let device = |(device, account): (&str, &Account)| {
            let Account { class, wall, idle, operator, settled, ahead, checkpoint_us, lost } = account.clone();
            DeviceAccount {
                device: device.to_owned(),
                class,
                wall,
                idle,
                operator,
                settled,
                ahead,
                checkpoint_us,
                lost,
            }
        };
        let unsettled = |(tenant, request, of): (&str, &str, &Unsettled)| {
            let split = of.split.iter().map(|(device, ns)| (device.clone(), *ns)).collect();
            let Unsettled { model, key, plan, .. } = of.clone();
            (tenant.to_owned(), request.to_owned(), model, key, plan, split)
        };
        Accounts {
            replica: book.replica.clone(),
            recovering: book.stage == Stage::Recovering,
            alive_us: book.alive_us,
            devices: book.devices().map(device).collect(),
            unsettled: book.unsettled().map(unsettled).collect(),
        }
    }

    fn book(&self) -> Book {
        let device = |of: &DeviceAccount| {
            let of = of.clone();
            let DeviceAccount { device, class, wall, idle, operator, settled, ahead, checkpoint_us, lost } = of;
            (device, Account { class, wall, idle, operator, settled, ahead, checkpoint_us, lost })
        };
        let mut unsettled: BTreeMap<String, BTreeMap<String, Unsettled>> = BTreeMap::new();
        for (tenant, request, model, key, plan, split) in &self.unsettled {
            let split = split.iter().cloned().collect();
            let (model, key, plan) = (model.clone(), key.clone(), plan.clone());
            let of = Unsettled { model, key, plan, split };
            unsettled.entry(tenant.clone()).or_default().insert(request.clone(), of);
        }
        Book {
            stage: if self.recovering { Stage::Recovering } else { Stage::Running },
            replica: self.replica.clone(),
            alive_us: self.alive_us,
            devices: self.devices.iter().map(device).collect(),
            unsettled,
        }
    }
}
