//! Use, in groups.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cost, Rates, Sums};

/// Groups of one answer at most; who wants more asks for fewer days, or groups by less.
pub const GROUPS_LEN_MAX: usize = 10_000;

/// What one tenant used of one model on one day, by one key, under one plan, on one class of devices: a row of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// Who.
    pub tenant: String,
    /// Since 1970, UTC.
    pub day: i64,
    /// Its served name.
    pub model: String,
    /// The credential that asked.
    pub key: String,
    /// The tenant's plan at that time.
    pub plan: String,
    /// Of the device.
    pub device_class: String,
    /// How much.
    pub sums: Sums,
}

/// What use is grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// Whose.
    Tenant,
    /// The day, UTC.
    Day,
    /// The model.
    Model,
    /// The credential.
    Key,
    /// The plan at that time.
    Plan,
    /// The class of devices.
    DeviceClass,
}

impl Dimension {
    /// All there are.
    pub const ALL: [Dimension; 6] =
        [Dimension::Tenant, Dimension::Day, Dimension::Model, Dimension::Key, Dimension::Plan, Dimension::DeviceClass];

    /// As it is written in queries and answers.
    pub const fn word(self) -> &'static str {
        match self {
            Dimension::Tenant => "tenant",
            Dimension::Day => "day",
            Dimension::Model => "model",
            Dimension::Key => "key",
            Dimension::Plan => "plan",
            Dimension::DeviceClass => "device_class",
        }
    }

    /// Reads a word.
    pub fn parse(word: &str) -> Option<Dimension> {
        Dimension::ALL.into_iter().find(|dimension| dimension.word() == word)
    }
}

/// A group: what its rows have in common, and their sums.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageGroup {
    /// How much.
    pub sums: Sums,
    /// What it costs, not rounded.
    pub cost: Cost,
    /// The device time in it that no price is set for.
    pub unpriced_ns: i64,
}

impl UsageGroup {
    fn add(&mut self, row: &UsageRow, cost: Option<Cost>) {
        self.sums += row.sums;
        match cost {
            Some(cost) => self.cost += cost,
            None => self.unpriced_ns = self.unpriced_ns.saturating_add(row.sums.device_ns),
        }
    }
}

/// What a group's rows have in common: the day, and texts, in the order of [`Dimension::ALL`]; empty where the group is
/// not by that.
pub type GroupKey = (String, i64, [String; 4]);

/// More groups than [`GROUPS_LEN_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {GROUPS_LEN_MAX} groups: ask for fewer days, or group by less")]
pub struct TooManyGroups;

/// Rows, grouped as they come.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    by: BTreeSet<Dimension>,
    groups: BTreeMap<GroupKey, UsageGroup>,
    total: UsageGroup,
}

impl Usage {
    /// Nothing yet, to be grouped by these.
    pub fn by(by: BTreeSet<Dimension>) -> Usage {
        Usage { by, ..Usage::default() }
    }

    /// Adds a row.
    pub fn add(&mut self, row: &UsageRow, rates: &Rates<'_>) -> Result<(), TooManyGroups> {
        let price = rates.price(&row.model, &row.plan, &row.device_class, row.day);
        let ppm = rates.ppm(&row.model);
        let cost = price.map(|price| Cost::of(row.sums.device_ns, price.micros_per_device_hour, ppm));
        let text = |dimension, text: &String| if self.by.contains(&dimension) { text.clone() } else { String::new() };
        let day = if self.by.contains(&Dimension::Day) { row.day } else { 0 };
        let texts = [
            text(Dimension::Model, &row.model),
            text(Dimension::Key, &row.key),
            text(Dimension::Plan, &row.plan),
            text(Dimension::DeviceClass, &row.device_class),
        ];
        self.total.add(row, cost);
        self.groups.entry((text(Dimension::Tenant, &row.tenant), day, texts)).or_default().add(row, cost);
        if self.groups.len() > GROUPS_LEN_MAX { Err(TooManyGroups) } else { Ok(()) }
    }

    /// What it is grouped by.
    pub fn dimensions(&self) -> &BTreeSet<Dimension> {
        &self.by
    }

    /// The groups, in order.
    pub fn groups(&self) -> impl Iterator<Item = (&GroupKey, &UsageGroup)> {
        self.groups.iter()
    }

    /// All of them together.
    pub fn total(&self) -> &UsageGroup {
        &self.total
    }
}
