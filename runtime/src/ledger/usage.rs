//! The sums of days (`usage_days`), recomputed from the bills.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use super::{
    error::LedgerError,
    month::{Month, UsageSums as Sums},
    record::Settle,
};
use crate::{
    quota::calendar,
    store::{Tx, args},
};

/// Rows of the table that are read at a time.
const PAGE_LEN: i64 = 4096;

/// Sums by day, tenant, model, key, plan and class of device, as bills make them.
#[derive(Debug)]
pub(super) struct DaySums {
    sums: HashMap<u128, (i64, String, Sums)>,
    keys: [RandomState; 2],
}

impl DaySums {
    pub(super) fn new() -> DaySums {
        DaySums { sums: HashMap::new(), keys: [RandomState::new(), RandomState::new()] }
    }

    fn id(&self, day: i64, key: &[&str; 5]) -> u128 {
        let [high, low] = self.keys.each_ref().map(|state| u128::from(state.hash_one((day, key))));
        high << 64 | low
    }

    /// Adds a bill that was written then.
    pub(super) fn add(&mut self, at_us: i64, settle: &Settle<'_>) {
        let day = calendar::day_of(at_us);
        for (key, parts) in settle.usage() {
            self.add_to(day, &key, &parts);
        }
    }

    /// Adds the bills of a month whose rows need not be there any more.
    pub(super) fn add_month(&mut self, month: &Month) {
        for usage in &month.usage {
            let key = [&usage.tenant, &usage.model, &usage.key, &usage.plan, &usage.class].map(String::as_str);
            for (day, sums) in &usage.days {
                self.add_to(*day, &key, sums);
            }
        }
    }

    fn add_to(&mut self, day: i64, key: &[&str; 5], parts: &Sums) {
        let id = self.id(day, key);
        let (_, _, sums) = self.sums.entry(id).or_insert_with(|| (day, key[0].to_owned(), Sums::default()));
        sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum = sum.saturating_add(*part));
    }

    /// Whether the table says the same.
    pub(super) async fn compare(mut self, tx: &mut Tx) -> Result<(), LedgerError> {
        // The table's key is its order; it is read by tenant and day, of which a page may hold a part.
        let sql = "SELECT day, tenant, model, key, plan, device_class, requests, device_ns, prompt_tokens, \
                   completion_tokens FROM usage_days WHERE (tenant, day, model, key, plan, device_class) > \
                   ($1, $2, $3, $4, $5, $6) ORDER BY tenant, day, model, key, plan, device_class LIMIT $7";
        let (mut day, mut key) = (i64::MIN, <[String; 5]>::default());
        loop {
            let [tenant, model, of, plan, class] = &key;
            let values =
                args![tenant.as_str(), day, model.as_str(), of.as_str(), plan.as_str(), class.as_str(), PAGE_LEN];
            let rows = tx.rows(sql, values).await?;
            for row in &rows {
                let mut fields = row.fields();
                day = fields.int()?;
                key = [fields.text()?, fields.text()?, fields.text()?, fields.text()?, fields.text()?];
                let stored = [fields.int()?, fields.int()?, fields.int()?, fields.int()?];
                let billed = self.sums.remove(&self.id(day, &key.each_ref().map(String::as_str)));
                let billed = billed.map_or(Sums::default(), |(_, _, sums)| sums);
                if billed != stored {
                    return Err(wrong(day, &key[0], stored, billed));
                }
            }
            if (rows.len() as i64) < PAGE_LEN {
                break;
            }
        }
        let missing = self.sums.into_values().find(|(_, _, sums)| *sums != Sums::default());
        missing.map_or(Ok(()), |(day, tenant, sums)| Err(wrong(day, &tenant, Sums::default(), sums)))
    }
}

fn wrong(day: i64, tenant: &str, stored: Sums, billed: Sums) -> LedgerError {
    let words =
        |[requests, ns, prompt, drawn]: Sums| format!("{requests} requests, {ns} ns, {prompt} and {drawn} tokens");
    LedgerError::Usage { day, tenant: tenant.to_owned(), stored: words(stored), billed: words(billed) }
}
