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

const GRANTS_SQLITE: &str = "SELECT id, tenant, unit, replica, epoch, amount, spent, hour_us, day_us, month_us, \
     expires_us, closed FROM grants WHERE id IN (SELECT value FROM json_each($1))";
const GRANTS_POSTGRES: &str = "SELECT id, tenant, unit, replica, epoch, amount, spent, hour_us, day_us, month_us, \
     expires_us, closed FROM grants WHERE id IN (SELECT r::bigint FROM json_array_elements_text($1::json) AS r)";
const LOCK_OF: &str = "SELECT number FROM tenants WHERE id IN (SELECT tenant FROM grants WHERE id IN \
     (SELECT r::bigint FROM json_array_elements_text($1::json) AS r)) ORDER BY id FOR NO KEY UPDATE";
const SET_GRANTS_SQLITE: &str = "UPDATE grants SET spent = c.value ->> 1, expires_us = c.value ->> 2, \
     closed = c.value ->> 3 FROM json_each($1) AS c WHERE grants.id = c.value ->> 0";
const SET_GRANTS_POSTGRES: &str = "UPDATE grants SET spent = (c ->> 1)::bigint, expires_us = (c ->> 2)::bigint, \
     closed = (c ->> 3)::bigint FROM json_array_elements($1::json) AS c WHERE grants.id = (c ->> 0)::bigint";
const SET_WINDOWS_SQLITE: &str = "UPDATE windows SET spent = spent + (c.value ->> 4), \
     granted = granted - (c.value ->> 5) FROM json_each($1) AS c WHERE windows.tenant = c.value ->> 0 AND \
     windows.unit = c.value ->> 1 AND windows.period = c.value ->> 2 AND windows.begins_us = c.value ->> 3";
const SET_WINDOWS_POSTGRES: &str = "UPDATE windows SET spent = spent + (c ->> 4)::bigint, \
     granted = granted - (c ->> 5)::bigint FROM json_array_elements($1::json) AS c WHERE windows.tenant = c ->> 0 AND \
     windows.unit = c ->> 1 AND windows.period = c ->> 2 AND windows.begins_us = (c ->> 3)::bigint";
const FORGET_SQLITE: &str = "DELETE FROM grants WHERE id IN (SELECT id FROM grants WHERE closed = 1 AND \
     expires_us < $1 ORDER BY expires_us LIMIT $2)";
// What another replica is about to forget is left to it.
const FORGET_POSTGRES: &str = "DELETE FROM grants WHERE id IN (SELECT id FROM grants WHERE closed = 1 AND \
     expires_us < $1 ORDER BY expires_us LIMIT $2 FOR UPDATE SKIP LOCKED)";

/// Closed grants are kept until their month is over, and so much longer: longer than any clock is wrong, and any report late.
const KEPT_US: i64 = 2 * 86_400_000_000;
/// Grants that one ask forgets at most.
const FORGOTTEN_MAX: i64 = 64;

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
    let mut over: Vec<(i64, Grant)> = over.iter().map(grant_of).collect::<Result<_, _>>()?;
    let over: Vec<_> = over
        .iter_mut()
        .map(|(id, grant)| {
            let unused = grant.close();
            (*id, &*grant, 0, unused)
        })
        .collect();
    write(&mut tx, &over).await?;
    if let Some(row) = tx.row(GRANT, args![ask.id]).await? {
        let (_, grant) = grant_of(&row)?;
        tx.commit().await?;
        return Ok(grant.told_again(ask));
    }
    let mut windows = windows(&mut tx, &ask.tenant, ask.unit, limits, ask.at_us).await?;
    let answer = limits.take(&mut windows, ask.want);
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
        // One more row than there was, and up to so many fewer: what is old goes faster than what is new comes.
        let old_us = Period::Month.begin(ask.at_us.saturating_sub(KEPT_US));
        let forget = if tx.is_postgres() { FORGET_POSTGRES } else { FORGET_SQLITE };
        tx.execute(forget, args![old_us, FORGOTTEN_MAX]).await?;
    }
    tx.commit().await?;
    Ok(Taken::Answer(answer))
}

/// The answer to an ask that can only be refused; nothing if it may get something.
async fn refusal(tx: &mut Tx, ask: &Ask, limits: &Limits, skew_us: i64) -> Result<Option<Answer>, StoreError> {
    let answer = limits.take(&mut windows(tx, &ask.tenant, ask.unit, limits, ask.at_us).await?, ask.want);
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

/// The same within a transaction that has locked nothing yet. Four statements, however many reports.
pub(crate) async fn report_in(tx: &mut Tx, reports: &[ReportOf]) -> Result<Vec<Reported>, StoreError> {
    let ids = json(&reports.iter().map(|report| report.id).collect::<Vec<_>>())?;
    let (lock, grants) = if tx.is_postgres() { (Some(LOCK_OF), GRANTS_POSTGRES) } else { (None, GRANTS_SQLITE) };
    if let Some(lock) = lock {
        tx.rows(lock, args![&ids]).await?;
    }
    let rows = tx.rows(grants, args![&ids]).await?;
    let mut grants: BTreeMap<i64, Grant> = rows.iter().map(grant_of).collect::<Result<_, _>>()?;
    let mut changes: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    let mut reported = Vec::with_capacity(reports.len());
    for report in reports {
        let Some(grant) = grants.get_mut(&report.id) else {
            reported.push(Reported { open: false, late: report.spent });
            continue;
        };
        let told = grant.report(report.spent);
        if !grant.closed {
            grant.expires_us = grant.expires_us.max(report.expires_us);
            let unused = if report.closes { grant.close() } else { 0 };
            let change = changes.entry(report.id).or_default();
            *change = (change.0 + told.added, change.1 + unused);
        }
        reported.push(Reported { open: !grant.closed, late: told.late });
    }
    let changed = changes.iter().filter_map(|(id, (added, unused))| Some((*id, grants.get(id)?, *added, *unused)));
    write(tx, &changed.collect::<Vec<_>>()).await?;
    Ok(reported)
}

/// Writes grants, and to their windows what was spent and what comes back.
async fn write(tx: &mut Tx, changes: &[(i64, &Grant, i64, i64)]) -> Result<(), StoreError> {
    if changes.is_empty() {
        return Ok(());
    }
    let (grants, windows) = match tx.is_postgres() {
        true => (SET_GRANTS_POSTGRES, SET_WINDOWS_POSTGRES),
        false => (SET_GRANTS_SQLITE, SET_WINDOWS_SQLITE),
    };
    let rows: Vec<_> = changes.iter().map(|(id, g, ..)| (id, g.spent, g.expires_us, i64::from(g.closed))).collect();
    tx.execute(grants, args![&json(&rows)?]).await?;
    let mut sums: BTreeMap<(&str, Unit, Period, i64), (i64, i64)> = BTreeMap::new();
    for (_, grant, added, unused) in changes.iter().filter(|(_, _, added, unused)| (*added, *unused) != (0, 0)) {
        for (period, begins_us) in Period::ALL.into_iter().zip(grant.windows) {
            let sum = sums.entry((&grant.tenant, grant.unit, period, begins_us)).or_default();
            *sum = (sum.0 + added, sum.1 + unused);
        }
    }
    if !sums.is_empty() {
        let rows: Vec<_> = sums
            .iter()
            .map(|((tenant, unit, period, at), (added, unused))| {
                (tenant, unit.name(), period.name(), at, added, unused)
            })
            .collect();
        tx.execute(windows, args![&json(&rows)?]).await?;
    }
    Ok(())
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Database(sqlx::Error::Encode(error.into())))
}

/// Locks a tenant in PostgreSQL. Rows that refer to it may be made meanwhile.
async fn lock(tx: &mut Tx, tenant: &str) -> Result<(), StoreError> {
    tx.row("SELECT number FROM tenants WHERE id = $1 FOR NO KEY UPDATE", args![tenant]).await?;
    Ok(())
}

/// The windows of a moment: what all replicas hold and have used of them. Those without a row bring what the one before leaves.
pub async fn windows(
    tx: &mut Tx,
    tenant: &str,
    unit: Unit,
    limits: &Limits,
    at_us: i64,
) -> Result<Windows, StoreError> {
    let now = Period::ALL.map(|period| period.begin(at_us));
    let [hour, day, month] = now;
    let [hour_before, day_before, month_before] = Period::ALL.map(|period| period.before(now[period as usize]));
    let values = args![tenant, unit.name(), hour, hour_before, day, day_before, month, month_before];
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
