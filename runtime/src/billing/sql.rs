//! Usage and bills in the store.

use std::time::Duration;

use super::{Invoice, Rates, Sums, UsageRow};
use crate::{
    quota::calendar::{self, Period},
    store::{Row, Store, StoreError, Tx, args},
};

/// How long after a month's end its bill is made: rows of its last moments are written by then.
pub const CLOSED_AFTER: Duration = Duration::from_secs(600);
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

/// A tenant's bill of the month that begins at `month_us`. That of a month which is over ([`CLOSED_AFTER`]) is computed once,
/// kept, and the same from then on, whatever becomes of the prices.
pub async fn invoice(store: &Store, tenant: &str, month_us: i64, now_us: i64) -> Result<Invoice, StoreError> {
    let mut tx = store.read().await?;
    if let Some(kept) = kept(&mut tx, tenant, month_us).await? {
        return Ok(kept);
    }
    let price_ppm = tx.tenant(tenant).await?.settings.price_ppm;
    let prices = tx.prices().await?;
    let mut rows = Vec::new();
    usage(&mut tx, tenant, days_of(month_us), |row| rows.push(row)).await?;
    drop(tx);
    let rates = Rates { prices: &prices, price_ppm: &price_ppm };
    let closed = is_closed(month_us, now_us);
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
pub async fn keep_invoices(store: &Store, now_us: i64) -> Result<usize, StoreError> {
    let sql = "SELECT DISTINCT u.tenant FROM usage_days u WHERE u.day >= $1 AND u.day <= $2 AND NOT EXISTS \
               (SELECT 1 FROM invoices i WHERE i.tenant = u.tenant AND i.month_us = $3) ORDER BY u.tenant LIMIT $4";
    let (mut made, mut month_us) = (0, Period::Month.begin(now_us));
    for _ in 0..MONTHS_BACK {
        month_us = Period::Month.before(month_us);
        if !is_closed(month_us, now_us) {
            continue;
        }
        let (first, last) = days_of(month_us);
        let left = TENANTS_AT_ONCE - made as i64;
        let rows = store.read().await?.rows(sql, args![first, last, month_us, left.max(1)]).await?;
        for found in &rows {
            invoice(store, &found.fields().text()?, month_us, now_us).await?;
            made += 1;
        }
        if made as i64 >= TENANTS_AT_ONCE {
            break;
        }
    }
    Ok(made)
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

fn is_closed(month_us: i64, now_us: i64) -> bool {
    let patience = i64::try_from(CLOSED_AFTER.as_micros()).unwrap_or(i64::MAX);
    now_us >= Period::Month.end(month_us).saturating_add(patience)
}
