//! Usage and bills in the store.

use std::collections::BTreeSet;

use super::{Invoice, Rates, Sums, UsageRow, statement::of_statement};
use crate::{
    ledger::{self, LedgerError, is_over},
    quota::calendar::{self, Period},
    store::{Row, Store, StoreError, Tx, args},
};

/// Rows read at a time.
const PAGE_LEN: i64 = 5000;
/// Months that are looked through for bills to be made.
const MONTHS_BACK: u32 = 12;
/// Bills made in one call.
const TENANTS_AT_ONCE: i64 = 1000;

fn row(row: &Row) -> Result<UsageRow, StoreError> {
    let mut at = row.fields();
    Ok(UsageRow {
        tenant: at.text()?,
        day: at.int()?,
        model: at.text()?,
        key: at.text()?,
        plan: at.text()?,
        device_class: at.text()?,
        sums: Sums {
            requests: at.int()?,
            prompt_tokens: at.int()?,
            completion_tokens: at.int()?,
            device_ns: at.int()?,
        },
    })
}

/// Tells `each` of every row of a tenant in some days since 1970, the first and the last among them, in order.
pub async fn usage(
    tx: &mut Tx,
    tenant: &str,
    days: (i64, i64),
    mut each: impl FnMut(UsageRow),
) -> Result<(), StoreError> {
    let sql = "SELECT tenant, day, model, key, plan, device_class, requests, prompt_tokens, completion_tokens, device_ns \
               FROM usage_days WHERE tenant = $1 AND day <= $2 AND (day, model, key, plan, device_class) > ($3, $4, $5, $6, $7) \
               ORDER BY day, model, key, plan, device_class LIMIT $8";
    // No model's name is empty, so nothing of the first day sorts before this.
    let mut after = (days.0, [String::new(), String::new(), String::new(), String::new()]);
    loop {
        let (day, [model, key, plan, class]) = &after;
        let rows = tx.rows(sql, args![tenant, days.1, *day, model, key, plan, class, PAGE_LEN]).await?;
        for found in &rows {
            let found = row(found)?;
            after = (found.day, [&found.model, &found.key, &found.plan, &found.device_class].map(String::clone));
            each(found);
        }
        if (rows.len() as i64) < PAGE_LEN {
            return Ok(());
        }
    }
}

/// A tenant's bill of the month that begins at `month_us`. That of a month which is over ([`is_over`]) is computed once,
/// kept, and the same from then on, whatever becomes of the prices.
///
/// Of a month that is closed it is made of the signed statement. Where `signs` says that months are closed it waits for
/// that; elsewhere it is of the days' use.
pub async fn invoice(
    store: &Store,
    tenant: &str,
    month_us: i64,
    now_us: i64,
    signs: bool,
) -> Result<Invoice, StoreError> {
    let mut tx = store.read().await?;
    if let Some(kept) = kept(&mut tx, tenant, month_us).await? {
        return Ok(kept);
    }
    let price_ppm = tx.tenant(tenant).await?.settings.price_ppm;
    let prices = tx.prices().await?;
    let (rows, closed) = match statement(&mut tx, month_us).await? {
        Some(statement) => (of_statement(&statement.month, tenant), true),
        None => {
            let mut rows = Vec::new();
            usage(&mut tx, tenant, days_of(month_us), |row| rows.push(row)).await?;
            (rows, is_over(month_us, now_us) && !signs)
        }
    };
    drop(tx);
    let rates = Rates { prices: &prices, price_ppm: &price_ppm };
    let made = Invoice::new(tenant, month_us, &rows, &rates, now_us, closed);
    if !closed {
        return Ok(made);
    }
    let body = serde_json::to_string(&made).map_err(|e| StoreError::corrupt("invoices", tenant, e))?;
    let mut tx = store.write().await?;
    let sql = "INSERT INTO invoices (tenant, month_us, made_us, body) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    tx.execute(sql, args![tenant, month_us, now_us, &body]).await?;
    // Of two that were made at once the first is kept, and is what both say.
    let first = kept(&mut tx, tenant, month_us).await?;
    tx.commit().await?;
    Ok(first.unwrap_or(made))
}

/// Keeps the bills of the months that are over, of at most a year, and of at most 1,000 tenants in one call; how many.
/// `signs` is as for [`invoice`].
pub async fn keep_invoices(store: &Store, now_us: i64, signs: bool) -> Result<usize, StoreError> {
    let sql = "SELECT DISTINCT u.tenant FROM usage_days u WHERE u.day >= $1 AND u.day <= $2 AND NOT EXISTS \
               (SELECT 1 FROM invoices i WHERE i.tenant = u.tenant AND i.month_us = $3) ORDER BY u.tenant LIMIT $4";
    let (mut made, mut month_us) = (0, Period::Month.begin(now_us));
    for _ in 0..MONTHS_BACK {
        month_us = Period::Month.before(month_us);
        if !is_over(month_us, now_us) {
            continue;
        }
        let mut tx = store.read().await?;
        let left = TENANTS_AT_ONCE - made as i64;
        let tenants: Vec<String> = match statement(&mut tx, month_us).await? {
            // Late bills are of a day that is in another month, so it is the statement that knows whose there are.
            Some(statement) => without_invoice(&mut tx, &statement.month, month_us).await?,
            None if signs => continue,
            None => {
                let (first, last) = days_of(month_us);
                let rows = tx.rows(sql, args![first, last, month_us, left.max(1)]).await?;
                rows.iter().map(|row| row.fields().text()).collect::<Result<_, _>>()?
            }
        };
        drop(tx);
        for tenant in tenants.iter().take(left.max(1) as usize) {
            invoice(store, tenant, month_us, now_us, signs).await?;
            made += 1;
        }
        if made as i64 >= TENANTS_AT_ONCE {
            break;
        }
    }
    Ok(made)
}

/// The tenants of a statement that have no bill of its month.
async fn without_invoice(tx: &mut Tx, month: &ledger::Month, month_us: i64) -> Result<Vec<String>, StoreError> {
    let rows = tx.rows("SELECT tenant FROM invoices WHERE month_us = $1", args![month_us]).await?;
    let have = rows.iter().map(|row| row.fields().text()).collect::<Result<BTreeSet<_>, _>>()?;
    let all: BTreeSet<&String> = month.usage.iter().map(|usage| &usage.tenant).collect();
    Ok(all.into_iter().filter(|tenant| !have.contains(*tenant)).cloned().collect())
}

/// The statement of the month that begins then.
async fn statement(tx: &mut Tx, month_us: i64) -> Result<Option<ledger::Statement>, StoreError> {
    ledger::month_of(tx, month_us).await.map_err(|error| match error {
        LedgerError::Store(error) => error,
        other => StoreError::corrupt("months", &calendar::month_name(month_us), other),
    })
}

async fn kept(tx: &mut Tx, tenant: &str, month_us: i64) -> Result<Option<Invoice>, StoreError> {
    let sql = "SELECT body FROM invoices WHERE tenant = $1 AND month_us = $2";
    let Some(found) = tx.row(sql, args![tenant, month_us]).await? else { return Ok(None) };
    let body = found.fields().text()?;
    serde_json::from_str(&body).map(Some).map_err(|e| StoreError::corrupt("invoices", tenant, e))
}

/// The first and the last day of a month.
fn days_of(month_us: i64) -> (i64, i64) {
    (calendar::day_of(month_us), calendar::day_of(Period::Month.end(month_us)) - 1)
}
