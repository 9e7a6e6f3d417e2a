//! A tenant's bill of a month.

use std::{collections::BTreeMap, fmt::Write, ops::AddAssign};

use serde::{Deserialize, Serialize};

use super::{Cost, Rates, UsageRow};
use crate::quota::calendar::{self, Period};

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Requests that ended.
    pub requests: i64,
    /// Tokens of their prompts.
    pub prompt_tokens: i64,
    /// Tokens that were drawn.
    pub completion_tokens: i64,
    /// Device time, in nanoseconds.
    pub device_ns: i64,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.requests = self.requests.saturating_add(other.requests);
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
        self.device_ns = self.device_ns.saturating_add(other.device_ns);
    }
}

/// Use at one price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvoiceLine {
    /// The model.
    pub model: String,
    /// The tenant's plan at that time.
    pub plan: String,
    /// The class of devices.
    pub device_class: String,
    /// Since when the price is set, in microseconds since 1970; absent where none is, and then the line costs nothing.
    pub price_from_us: Option<i64>,
    /// The price, in millionths of the currency for an hour of one device.
    pub micros_per_device_hour: Option<i64>,
    /// What the price is multiplied by, in millionths.
    pub price_ppm: u64,
    /// What was used.
    #[serde(flatten)]
    pub used: Sums,
    /// `device_ns * micros_per_device_hour * price_ppm / (3600 * 10^9 * 10^6)`, rounded down.
    pub amount_micros: i64,
}

/// A bill. What is here is what is kept, so it is read back as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invoice {
    /// Whose.
    pub tenant: String,
    /// Such as `2026-11`, UTC.
    pub month: String,
    /// Whether the month is over and the bill is kept; otherwise it is of the month so far, at the prices of now.
    pub closed: bool,
    /// When it was computed.
    pub made_us: i64,
    /// By model, plan, class and price.
    pub lines: Vec<InvoiceLine>,
    /// All lines together.
    #[serde(flatten)]
    pub used: Sums,
    /// The sum of the lines' amounts.
    pub amount_micros: i64,
}

/// What the rows of a line have in common.
type LineKey<'a> = (&'a str, &'a str, &'a str, Option<(i64, i64)>);

impl Invoice {
    /// The bill of the month that begins at `month_us`, out of its rows; those of other months and tenants do not count.
    pub fn new(
        tenant: &str,
        month_us: i64,
        rows: &[UsageRow],
        rates: &Rates<'_>,
        made_us: i64,
        closed: bool,
    ) -> Invoice {
        let days = calendar::day_of(month_us)..calendar::day_of(Period::Month.end(month_us));
        let mut by_line: BTreeMap<LineKey<'_>, (Sums, u64)> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.tenant == tenant && days.contains(&row.day)) {
            let price = rates.price(&row.model, &row.plan, &row.device_class, row.day);
            let price = price.map(|price| (price.from_us, price.micros_per_device_hour));
            let key = (row.model.as_str(), row.plan.as_str(), row.device_class.as_str(), price);
            by_line.entry(key).or_insert_with(|| (Sums::default(), rates.ppm(&row.model))).0 += row.sums;
        }
        let line = |((model, plan, class, price), (used, price_ppm)): (LineKey<'_>, (Sums, u64))| InvoiceLine {
            model: model.to_owned(),
            plan: plan.to_owned(),
            device_class: class.to_owned(),
            price_from_us: price.map(|price| price.0),
            micros_per_device_hour: price.map(|price| price.1),
            price_ppm,
            used,
            amount_micros: price.map_or(0, |price| Cost::of(used.device_ns, price.1, price_ppm).micros()),
        };
        let lines: Vec<InvoiceLine> = by_line.into_iter().map(line).collect();
        let mut used = Sums::default();
        lines.iter().for_each(|line| used += line.used);
        let amount_micros = lines.iter().fold(0i64, |sum, line| sum.saturating_add(line.amount_micros));
        let month = calendar::month_name(month_us);
        Invoice { tenant: tenant.to_owned(), month, closed, made_us, lines, used, amount_micros }
    }

    /// As CSV (RFC 4180): a head, the lines, and the total last.
    pub fn csv(&self) -> String {
        let mut out = String::from(
            "line,tenant,month,model,plan,device_class,price_from_us,micros_per_device_hour,price_ppm,requests,\
             prompt_tokens,completion_tokens,device_ns,amount_micros\r\n",
        );
        let (tenant, month) = (cell(&self.tenant), &self.month);
        let shown = |value: Option<i64>| value.map_or(String::new(), |value| value.to_string());
        let used = |used: &Sums| {
            format!("{},{},{},{}", used.requests, used.prompt_tokens, used.completion_tokens, used.device_ns)
        };
        // Writing to a String cannot fail.
        for (number, line) in (1..).zip(&self.lines) {
            let number: usize = number;
            let names = [&line.model, &line.plan, &line.device_class].map(|name| cell(name)).join(",");
            let price = format!("{},{}", shown(line.price_from_us), shown(line.micros_per_device_hour));
            let _ = write!(
                out,
                "{number},{tenant},{month},{names},{price},{},{},{}\r\n",
                line.price_ppm,
                used(&line.used),
                line.amount_micros
            );
        }
        let _ = write!(out, "total,{tenant},{month},,,,,,,{},{}\r\n", used(&self.used), self.amount_micros);
        out
    }
}

/// A text as a cell. A spreadsheet takes what begins with one of these signs for a formula, so it gets a quote before it.
fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    match text.contains(['"', ',', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}
