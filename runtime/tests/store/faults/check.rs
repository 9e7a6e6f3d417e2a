//! Holds a store against what was told: the sums are added up here, from the rows, and not by the code that wrote them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use weir_runtime::store::{Row, Store};

use super::{
    engine::{DEVICES, HOUR, MONTH},
    told::Truth,
};

/// What is wrong with a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrong {
    /// Something that was told is not there, or not as it was told.
    Lost(String),
    /// A request has two bills.
    Twice(String),
    /// Anything else.
    Else(String),
}

/// What is in a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Books {
    /// By epoch: its rows.
    chains: BTreeMap<i64, Vec<Entry>>,
    /// Epochs that have ended.
    ended: BTreeSet<i64>,
    tenants: BTreeSet<String>,
    grants: BTreeMap<i64, Grant>,
    /// By tenant, unit, period and beginning: granted and spent.
    windows: BTreeMap<(String, String, String, i64), (i64, i64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    seq: i64,
    kind: String,
    tenant: String,
    request: String,
    /// Device time, tokens of the prompt, tokens drawn.
    numbers: [i64; 3],
    body: String,
    hash: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    tenant: String,
    unit: String,
    amount: i64,
    spent: i64,
    closed: bool,
    begins: [i64; 3],
}

impl Books {
    pub(super) async fn read(store: &Store) -> Books {
        let mut books = Books::default();
        let mut tx = store.read().await.unwrap();
        let sql = "SELECT epoch, seq, kind, coalesce(tenant, ''), coalesce(request, ''), device_ns, prompt_tokens, \
                   completion_tokens, body, hash FROM ledger ORDER BY epoch, seq";
        for row in tx.rows(sql, &[]).await.unwrap() {
            let (epoch, entry) = entry(&row);
            books.chains.entry(epoch).or_default().push(entry);
        }
        for row in tx.rows("SELECT epoch FROM epochs WHERE ended_us IS NOT NULL", &[]).await.unwrap() {
            books.ended.insert(row.fields().int().unwrap());
        }
        for row in tx.rows("SELECT id FROM tenants", &[]).await.unwrap() {
            books.tenants.insert(row.fields().text().unwrap());
        }
        let sql = "SELECT id, tenant, unit, amount, spent, closed, hour_us, day_us, month_us FROM grants";
        for row in tx.rows(sql, &[]).await.unwrap() {
            let mut fields = row.fields();
            let id = fields.int().unwrap();
            let (tenant, unit) = (fields.text().unwrap(), fields.text().unwrap());
            let (amount, spent, closed) = (fields.int().unwrap(), fields.int().unwrap(), fields.flag().unwrap());
            let begins = [fields.int().unwrap(), fields.int().unwrap(), fields.int().unwrap()];
            books.grants.insert(id, Grant { tenant, unit, amount, spent, closed, begins });
        }
        for row in tx.rows("SELECT tenant, unit, period, begins_us, granted, spent FROM windows", &[]).await.unwrap() {
            let mut fields = row.fields();
            let names = (fields.text().unwrap(), fields.text().unwrap(), fields.text().unwrap());
            let (begins_us, granted, spent) = (fields.int().unwrap(), fields.int().unwrap(), fields.int().unwrap());
            books.windows.insert((names.0, names.1, names.2, begins_us), (granted, spent));
        }
        books
    }

    /// Without the epochs from this one on.
    pub(super) fn before(mut self, epoch: i64) -> Books {
        self.chains.retain(|of, _| *of < epoch);
        self.ended.retain(|of| *of < epoch);
        self
    }

    /// Whether the ledger has the same rows; those of an epoch that the other does not know are new.
    pub(super) fn rows_of(&self, other: &Books) -> bool {
        other.chains.iter().all(|(epoch, rows)| self.chains.get(epoch) == Some(rows))
    }

    pub(super) fn bills(&self) -> usize {
        self.entries().filter(|(_, entry)| entry.is_bill()).count()
    }

    fn entries(&self) -> impl Iterator<Item = (i64, &Entry)> {
        self.chains.iter().flat_map(|(epoch, entries)| entries.iter().map(|entry| (*epoch, entry)))
    }

    /// Epochs that have not ended.
    pub(super) fn open(&self) -> Vec<i64> {
        self.chains.keys().copied().filter(|epoch| !self.ended.contains(epoch)).collect()
    }

    /// Everything that was told is here, once; nobody is charged above its work; and all sums are right. `exact` if every nanosecond
    /// of the metered tenant's bills is paid for out of grants.
    pub(super) fn against(&self, truth: &Truth, exact: bool) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        let mut bills: BTreeMap<(String, String), &Entry> = BTreeMap::new();
        let mut names = BTreeSet::new();
        for (epoch, entry) in self.entries().filter(|(_, entry)| entry.is_bill()) {
            let id = (entry.tenant.clone(), entry.request.clone());
            if let Some(fault) = above(entry, truth) {
                wrong.push(Wrong::Else(format!("epoch {epoch}: {fault}")));
            }
            if let Some(name) = entry.json()["name"].as_str().filter(|name| !names.insert((*name).to_owned())) {
                wrong.push(Wrong::Twice(name.to_owned()));
            }
            if bills.insert(id, entry).is_some() {
                wrong.push(Wrong::Twice(entry.request.clone()));
            }
        }
        for (id, asked) in &truth.asked {
            let Some(told) = asked.done else { continue };
            match bills.get(id) {
                Some(bill) if bill.kind == "settle" && bill.numbers == told => {}
                found => wrong.push(Wrong::Lost(format!("{id:?} was told {told:?}, and there is {found:?}"))),
            }
        }
        for made in truth.made.difference(&self.tenants) {
            wrong.push(Wrong::Lost(format!("tenant {made} was made")));
        }
        for (id, amount) in &truth.held {
            if self.grants.get(id).is_none_or(|grant| grant.amount != *amount) {
                wrong.push(Wrong::Lost(format!("grant {id} of {amount}: {:?}", self.grants.get(id))));
            }
        }
        for (epoch, entries) in &self.chains {
            let mut chain = Chain::default();
            let fault = entries.iter().find_map(|entry| {
                chain.enter(entry).err().map(|fault| format!("epoch {epoch}, row {}: {fault}", entry.seq))
            });
            wrong.extend(fault.map(Wrong::Else));
            // Between the last row and the end, an engine that ends gives its grants back.
            if self.ended.contains(epoch) && !chain.closed {
                wrong.push(Wrong::Else(format!("epoch {epoch} has ended, and its rows have not")));
            }
        }
        wrong.extend(self.windows_are_wrong(exact).map(Wrong::Else));
        wrong
    }

    fn windows_are_wrong(&self, exact: bool) -> Option<String> {
        let periods = ["hour", "day", "month"];
        for ((tenant, unit, period, begins), (granted, spent)) in &self.windows {
            let at = periods.iter().position(|name| name == period)?;
            let of: Vec<_> = (self.grants.values())
                .filter(|grant| (&grant.tenant, &grant.unit, grant.begins[at]) == (tenant, unit, *begins))
                .collect();
            let held: i64 = of.iter().map(|grant| if grant.closed { grant.spent } else { grant.amount }).sum();
            let used: i64 = of.iter().map(|grant| grant.spent).sum();
            let limit = match (unit.as_str(), at) {
                ("device_ns", 0) => HOUR.as_nanos() as i64,
                ("requests", 2) => MONTH as i64,
                _ => i64::MAX,
            };
            if (held, used) != (*granted, *spent) || spent > granted || *granted > limit {
                return Some(format!(
                    "{unit} of {tenant} in {period} {begins}: granted {granted}, spent {spent}, grants {held} and {used}"
                ));
            }
        }
        let spent: i64 = self.grants.values().filter(|grant| grant.unit == "device_ns").map(|grant| grant.spent).sum();
        let metered = |entry: &&Entry| entry.kind == "settle" && entry.tenant == super::engine::TENANTS[0];
        let billed: i64 = self.entries().map(|(_, entry)| entry).filter(metered).map(|entry| entry.numbers[0]).sum();
        (exact && spent != billed).then(|| format!("{billed} ns were billed, and {spent} ns of grants spent"))
    }
}

fn entry(row: &Row) -> (i64, Entry) {
    let mut fields = row.fields();
    let (epoch, seq) = (fields.int().unwrap(), fields.int().unwrap());
    let (kind, tenant, request) = (fields.text().unwrap(), fields.text().unwrap(), fields.text().unwrap());
    let numbers = [fields.int().unwrap(), fields.int().unwrap(), fields.int().unwrap()];
    let (body, hash) = (fields.text().unwrap(), fields.bytes().unwrap());
    (epoch, Entry { seq, kind, tenant, request, numbers, body, hash })
}

impl Entry {
    fn is_bill(&self) -> bool {
        matches!(self.kind.as_str(), "settle" | "recovered")
    }

    fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Why a bill is above what its request can have taken.
fn above(bill: &Entry, truth: &Truth) -> Option<String> {
    let (ns, id) = (bill.numbers[0], (bill.tenant.clone(), bill.request.clone()));
    let Some(asked) = truth.asked.get(&id) else { return Some(format!("{id:?} was never asked for")) };
    // Of one that has not ended nobody has said when it did: it may have run until now, on all devices.
    let ran = |began_us: i64| (asked.over_us.unwrap_or(truth.now_us) - began_us) * 1_000 * i64::from(DEVICES);
    let most = asked.work.or_else(|| asked.began_us.map(ran)).unwrap_or(0);
    (ns > most).then(|| format!("{id:?} was charged {ns} ns, and has taken {most} ns at most"))
}

/// The accounts of one epoch, added up from its rows.
#[derive(Debug, Default)]
struct Chain {
    seq: i64,
    closed: bool,
    /// By device.
    accounts: BTreeMap<String, Accounts>,
}

#[derive(Debug, Default)]
struct Accounts {
    wall: i64,
    idle: i64,
    operator: i64,
    settled: i64,
    running: BTreeMap<String, i64>,
}

impl Accounts {
    fn add_up(&self) -> Result<(), String> {
        let sum = self.idle + self.operator + self.settled + self.running.values().sum::<i64>();
        if sum == self.wall { Ok(()) } else { Err(format!("wall {}, accounts {sum}: {self:?}", self.wall)) }
    }
}

impl Chain {
    fn enter(&mut self, row: &Entry) -> Result<(), String> {
        if self.closed || row.seq != self.seq + 1 {
            return Err(format!("it follows row {}, after which nothing is to come: {}", self.seq, self.closed));
        }
        self.seq = row.seq;
        let body = row.json();
        let text = |of: &Json| of.as_str().unwrap_or_default().to_owned();
        let int = |of: &Json| of.as_i64().unwrap_or(i64::MIN);
        match row.kind.as_str() {
            "settle" | "recovered" => {
                let parts: Vec<_> = body["split"].as_array().into_iter().flatten().collect();
                if parts.iter().map(|part| int(&part[2])).sum::<i64>() != row.numbers[0] {
                    return Err("a bill is not the sum of its parts".into());
                }
                for part in parts {
                    let accounts = self.accounts.entry(text(&part[0])).or_default();
                    let before = accounts.running.remove(&row.request).unwrap_or(0);
                    let ns = int(&part[2]);
                    accounts.settled += ns;
                    if ns < before || row.kind == "recovered" && ns != before {
                        return Err(format!("{} has {ns} ns, and had {before} ns", row.request));
                    }
                }
                if self.accounts.values().any(|accounts| accounts.running.contains_key(&row.request)) {
                    return Err(format!("{} is not billed in full", row.request));
                }
            }
            "checkpoint" => {
                let accounts = self.accounts.entry(text(&body["device"])).or_default();
                let now: BTreeMap<_, _> = (body["running"].as_array().into_iter().flatten())
                    .map(|running| (text(&running[1]), int(&running[5])))
                    .collect();
                let gone = accounts.running.iter().find(|(of, ns)| now.get(*of).is_none_or(|now| now < *ns));
                let (wall, idle) = (int(&body["wall"]), int(&body["idle"]));
                if gone.is_some() || wall < accounts.wall || idle < accounts.idle {
                    return Err(format!("accounts shrink: {gone:?}"));
                }
                (accounts.wall, accounts.idle, accounts.running) = (wall, idle, now);
                let operator = body["operator"].as_array().into_iter().flatten();
                accounts.operator = operator.map(|kind| int(&kind[1])).sum();
                accounts.add_up()?;
            }
            "lost" => {
                let accounts = self.accounts.entry(text(&body["device"])).or_default();
                // What was billed after the last checkpoint was worked then, too.
                accounts.operator += int(&body["lost"]) + int(&body["down"]);
                accounts.wall = accounts.idle + accounts.operator + accounts.settled;
            }
            "close" => {
                self.closed = true;
                for accounts in self.accounts.values() {
                    if !accounts.running.is_empty() {
                        return Err(format!("{:?} have no bill", accounts.running));
                    }
                    accounts.add_up()?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
