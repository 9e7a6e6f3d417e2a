//! Grants in the store: the machine of [`Grants`](super::Grants) over rows, each step in one transaction.
//!
//! Whoever changes the windows or grants of a tenant locks the tenant's row first (PostgreSQL; several in the order
//! of their ids), so that no two wait for each other. SQLite has one writer.

use std::collections::BTreeMap;

use super::{
    calendar::Period,
    grants::{Ask, Grant, Reported, Taken},
    limit::{Answer, Limits, Unit, Window, Windows},
};
use crate::store::{Row, Store, StoreError, Tx, args};

/// What of a grant is spent by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportOf {
    /// Which grant.
    pub id: i64,
    /// In all.
    pub spent: i64,
    /// It goes on until then, if it was not to go on longer already.
    pub expires_us: i64,
    /// No more of it will be spent.
    pub closes: bool,
}

const GRANT: &str = "SELECT id, tenant, unit, replica, epoch, amount, spent, hour_us, day_us, month_us, \
     expires_us, closed \
     FROM grants WHERE id = $1";
const OVER: &str = "SELECT id, tenant, unit, replica, epoch, amount, spent, hour_us, day_us, month_us, \
     expires_us, closed \
     FROM grants WHERE tenant = $1 AND unit = $2 AND closed = 0 AND expires_us < $3 ORDER BY id";
const WINDOWS: &str = "SELECT period, begins_us, granted, spent, carried FROM windows WHERE tenant = $1 AND \
     unit = $2 AND \
     (period = 'hour' AND begins_us IN ($3, $4) OR period = 'day' AND begins_us IN ($5, $6) \
     OR period = 'month' AND begins_us IN ($7, $8))";

fn grant_of(row: &Row) -> Result<(i64, Grant), StoreError> {
    let mut fields = row.fields();
    let id = fields.int()?;
    let tenant = fields.text()?;
    let unit = fields.text()?;
    // The schema allows no other.
    let unit = if unit == Unit::Requests.name() { Unit::Requests } else { Unit::DeviceNs };
    let (replica, epoch) = (fields.text()?, fields.int()?);
    let (amount, spent) = (fields.int()?, fields.int()?);
    let windows = [fields.int()?, fields.int()?, fields.int()?];
    let (expires_us, closed) = (fields.int()?, fields.flag()?);
    Ok((id, Grant { tenant, unit, replica, epoch, amount, spent, windows, expires_us, closed }))
}

/// Takes a grant under these limits, after closing what is over by the asker's clock and a skew.
pub async fn take(store: &Store, ask: &Ask, limits: &Limits, skew_us: i64) -> Result<Taken, StoreError> {
    let mut tx = store.write().await?;
    if tx.is_postgres() {
        // A refusal needs no lock: at this moment there was nothing left. So a crowd before a spent window waits for
        // nobody.
        if let Some(refusal) = refusal(&mut tx, ask, limits, skew_us).await? {
            return Ok(Taken::Answer(refusal));
        }
        lock(&mut tx, &ask.tenant).await?;
    }
    let over_us = ask.at_us.saturating_sub(skew_us);
    let over = tx.rows(OVER, args![&ask.tenant, ask.unit.name(), over_us]).await?;
    for row in &over {
        let (id, mut grant) = grant_of(row)?;
        let unused = grant.close();
        change(&mut tx, id, &grant, 0, unused).await?;
    }
    if let Some(row) = tx.row(GRANT, args![ask.id]).await? {
        let (_, grant) = grant_of(&row)?;
        tx.commit().await?;
        return Ok(match grant.closed {
            true => Taken::Closed,
            false => Taken::Answer(Answer::Granted { amount: grant.amount, soft: vec![], over: vec![] }),
        });
    }
    let mut windows = windows(&mut tx, ask, limits).await?;
    let answer = limits.take(&mut windows, ask.wanted, ask.least);
    if let Answer::Granted { amount, .. } = answer {
        for (period, window) in Period::ALL.into_iter().zip(&windows) {
            let sql = "INSERT INTO windows (tenant, unit, period, begins_us, granted, spent, carried) \
                       VALUES ($1, $2, $3, $4, $5, 0, $6) ON CONFLICT (tenant, unit, period, begins_us) \
                       DO UPDATE SET granted = excluded.granted";
            let Window { begins_us, granted, brought, .. } = *window;
            let values = args![&ask.tenant, ask.unit.name(), period.name(), begins_us, granted, brought];
            tx.execute(sql, values).await?;
        }
        let sql = "INSERT INTO grants (id, tenant, unit, replica, epoch, amount, spent, hour_us, day_us, month_us, \
                   expires_us, closed) VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9, $10, 0)";
        let [hour, day, month] = windows.map(|window| window.begins_us);
        let unit = ask.unit.name();
        let values =
            args![ask.id, &ask.tenant, unit, &ask.replica, ask.epoch, amount, hour, day, month, ask.expires_us];
        tx.execute(sql, values).await?;
    }
    tx.commit().await?;
    Ok(Taken::Answer(answer))
}

/// The answer to an ask that can only be refused; nothing if it may get something.
async fn refusal(tx: &mut Tx, ask: &Ask, limits: &Limits, skew_us: i64) -> Result<Option<Answer>, StoreError> {
    let answer = limits.take(&mut windows(tx, ask, limits).await?, ask.wanted, ask.least);
    if matches!(answer, Answer::Granted { .. }) {
        return Ok(None);
    }
    let over =
        "SELECT 1 FROM grants WHERE id = $4 OR tenant = $1 AND unit = $2 AND closed = 0 AND expires_us < $3 LIMIT 1";
    let values = args![&ask.tenant, ask.unit.name(), ask.at_us.saturating_sub(skew_us), ask.id];
    let may_change = tx.row(over, values).await?.is_some();
    Ok((!may_change).then_some(answer))
}

/// Reports what is spent of grants, extends them, or gives them back, in one transaction.
pub async fn report(store: &Store, reports: &[ReportOf]) -> Result<Vec<Reported>, StoreError> {
    let mut tx = store.write().await?;
    let reported = report_in(&mut tx, reports).await?;
    tx.commit().await?;
    Ok(reported)
}

/// The same within a transaction that has locked nothing yet.
pub(crate) async fn report_in(tx: &mut Tx, reports: &[ReportOf]) -> Result<Vec<Reported>, StoreError> {
    let mut grants = BTreeMap::new();
    for report in reports {
        if let Some(row) = tx.row(GRANT, args![report.id]).await? {
            let (id, grant) = grant_of(&row)?;
            grants.insert(id, grant);
        }
    }
    if tx.is_postgres() {
        let mut tenants: Vec<&str> = grants.values().map(|grant| grant.tenant.as_str()).collect();
        tenants.sort_unstable();
        tenants.dedup();
        for tenant in tenants {
            lock(tx, tenant).await?;
        }
    }
    let mut reported = Vec::with_capacity(reports.len());
    for report in reports {
        let Some(grant) = grants.get_mut(&report.id) else {
            reported.push(Reported { open: false, late: report.spent });
            continue;
        };
        if tx.is_postgres()
            && let Some(row) = tx.row(GRANT, args![report.id]).await?
        {
            // Only now is it locked.
            *grant = grant_of(&row)?.1;
        }
        let told = grant.report(report.spent);
        if !grant.closed {
            grant.expires_us = grant.expires_us.max(report.expires_us);
            let unused = if report.closes { grant.close() } else { 0 };
            change(tx, report.id, grant, told.added, unused).await?;
        }
        reported.push(Reported { open: !grant.closed, late: told.late });
    }
    Ok(reported)
}

/// Writes a grant, and to its windows what was spent and what comes back.
async fn change(tx: &mut Tx, id: i64, grant: &Grant, added: i64, unused: i64) -> Result<(), StoreError> {
    let sql = "UPDATE grants SET spent = $2, expires_us = $3, closed = $4 WHERE id = $1";
    tx.execute(sql, args![id, grant.spent, grant.expires_us, grant.closed]).await?;
    if (added, unused) == (0, 0) {
        return Ok(());
    }
    let sql = "UPDATE windows SET spent = spent + $3, granted = granted - $4 WHERE tenant = $1 AND unit = $2 AND \
               (period = 'hour' AND begins_us = $5 OR period = 'day' AND begins_us = $6 \
               OR period = 'month' AND begins_us = $7)";
    let [hour, day, month] = grant.windows;
    tx.execute(sql, args![&grant.tenant, grant.unit.name(), added, unused, hour, day, month]).await?;
    Ok(())
}

/// Locks a tenant in PostgreSQL. Rows that refer to it may be made meanwhile.
async fn lock(tx: &mut Tx, tenant: &str) -> Result<(), StoreError> {
    tx.row("SELECT number FROM tenants WHERE id = $1 FOR NO KEY UPDATE", args![tenant]).await?;
    Ok(())
}

/// The windows of the ask's moment; those without a row bring what the one before leaves.
async fn windows(tx: &mut Tx, ask: &Ask, limits: &Limits) -> Result<Windows, StoreError> {
    let now = Period::ALL.map(|period| period.begin(ask.at_us));
    let [hour, day, month] = now;
    let [hour_before, day_before, month_before] = Period::ALL.map(|period| period.before(now[period as usize]));
    let values = args![&ask.tenant, ask.unit.name(), hour, hour_before, day, day_before, month, month_before];
    let mut rows = BTreeMap::new();
    for row in &tx.rows(WINDOWS, values).await? {
        let mut fields = row.fields();
        let period = fields.text()?;
        let begins_us = fields.int()?;
        let (granted, spent, brought) = (fields.int()?, fields.int()?, fields.int()?);
        rows.insert((period, begins_us), Window { begins_us, brought, granted, spent });
    }
    Ok(Period::ALL.map(|period| {
        let begins_us = now[period as usize];
        let row = |begins_us| rows.get(&(period.name().to_owned(), begins_us));
        row(begins_us).copied().unwrap_or_else(|| {
            let brought = limits.brought(period, row(period.before(begins_us)));
            Window { begins_us, brought, granted: 0, spent: 0 }
        })
    }))
}
