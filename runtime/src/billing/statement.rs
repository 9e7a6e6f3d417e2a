//! Bills of closed months are made of their statements, and must stay equal to them.

use std::collections::BTreeMap;

use super::{Invoice, Sums, UsageRow};
use crate::{
    ledger::{Month, Statement},
    quota::calendar::{self, Period},
    store::{Store, StoreError, args},
};

/// What a tenant used, as a statement says. A bill that was written on a day of another month counts for the nearest day
/// of this one, so each is in exactly one invoice.
pub(super) fn of_statement(month: &Month, tenant: &str) -> Vec<UsageRow> {
    let last = calendar::day_of(month.ends_us) - 1;
    let first = calendar::day_of(Period::Month.before(month.ends_us));
    let of = month.usage.iter().filter(|usage| usage.tenant == tenant);
    of.flat_map(|usage| {
        usage.days.iter().map(move |&(day, [requests, device_ns, prompt_tokens, completion_tokens])| UsageRow {
            tenant: usage.tenant.clone(),
            day: day.clamp(first, last),
            model: usage.model.clone(),
            key: usage.key.clone(),
            plan: usage.plan.clone(),
            device_class: usage.class.clone(),
            sums: Sums { requests, prompt_tokens, completion_tokens, device_ns },
        })
    })
    .collect()
}

/// A kept bill that is not what the statement of its month says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unequal {
    /// Whose.
    pub tenant: String,
    /// Such as `2026-11`.
    pub month: String,
    /// Whether the bill was made of the statement, and so was changed since. Otherwise it was made before the month was
    /// closed, of the days' use, and a clock had stepped, or rows came late.
    pub changed: bool,
}

/// Model, plan and class.
type Line<'a> = [&'a str; 3];

/// The kept bills of closed months that are not what the statements say.
pub async fn unequal_invoices(store: &Store, statements: &[Statement]) -> Result<Vec<Unequal>, StoreError> {
    let mut found = Vec::new();
    let mut tx = store.read().await?;
    for statement in statements {
        let mut by_tenant: BTreeMap<&str, BTreeMap<Line<'_>, Sums>> = BTreeMap::new();
        for usage in &statement.month.usage {
            let [requests, device_ns, prompt_tokens, completion_tokens] = usage.sums();
            let line = [&usage.model, &usage.plan, &usage.class].map(String::as_str);
            let sums = by_tenant.entry(&usage.tenant).or_default().entry(line).or_default();
            *sums += Sums { requests, prompt_tokens, completion_tokens, device_ns };
        }
        let sql = "SELECT tenant, made_us, body FROM invoices WHERE month_us = $1 ORDER BY tenant";
        for row in &tx.rows(sql, args![statement.begins_us()]).await? {
            let mut fields = row.fields();
            let (tenant, made_us, body) = (fields.text()?, fields.int()?, fields.text()?);
            let invoice: Result<Invoice, _> = serde_json::from_str(&body);
            let invoice = invoice.map_err(|error| StoreError::corrupt("invoices", &tenant, error))?;
            let mut billed: BTreeMap<Line<'_>, Sums> = BTreeMap::new();
            for line in &invoice.lines {
                let key = [&line.model, &line.plan, &line.device_class].map(String::as_str);
                *billed.entry(key).or_default() += line.used;
            }
            if by_tenant.get(tenant.as_str()).unwrap_or(&BTreeMap::new()) != &billed || invoice.tenant != tenant {
                let (month, changed) = (statement.month.month.clone(), made_us > statement.closed_us);
                found.push(Unequal { tenant, month, changed });
            }
        }
    }
    Ok(found)
}
