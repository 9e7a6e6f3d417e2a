//! Epochs begun, recovered and ended.

use super::{
    anchor,
    error::LedgerError,
    month::Month,
    read::read_on,
    record::{Open, Record},
    recover::recover,
    row::{Chain, Hash},
    sql::{self, Made},
    statement::{last_month, start_of},
    verify::Verifier,
    whole::verify_newest,
};
use crate::{
    quota::{self, ReportOf},
    store::{Store, Tx, args},
};

/// Rows of epochs that have ended that a start verifies at most, some seconds' worth: the newest. `weir ledger verify`
/// reads all.
pub const START_ROWS_MAX: i64 = 1_000_000;

/// Begins an epoch. Before that, the newest rows after the last closed month are verified ([`START_ROWS_MAX`]), and
/// those epochs of this replica that have not ended, however long, which are then closed: see [`recover`]. Says which
/// those were.
///
/// # Errors
/// When a row was changed, or the store does not answer. Nothing is begun then.
pub async fn begin(store: &Store, replica: &str, now_us: i64) -> Result<(Chain, Vec<i64>), LedgerError> {
    let month = last_month(store).await?.map(|statement| statement.month);
    let mut tx = store.read().await?;
    let sql = "SELECT epoch FROM epochs WHERE replica = $1 AND ended_us IS NULL ORDER BY epoch";
    let unended = tx.rows(sql, args![replica]).await?;
    let unended = unended.iter().map(|row| row.fields().int()).collect::<Result<Vec<i64>, _>>()?;
    drop(tx);
    let verified = verify_newest(store, month.as_ref(), &unended, START_ROWS_MAX).await?;
    for &epoch in &unended {
        close_from(store, epoch, now_us, month.as_ref()).await?;
    }
    let mut tx = store.write().await?;
    let epoch = tx.next("epoch").await?;
    let sql = "SELECT epoch, head FROM epochs WHERE replica = $1 AND head IS NOT NULL ORDER BY epoch DESC LIMIT 1";
    let previous = match tx.row(sql, args![replica]).await? {
        Some(row) => {
            let mut fields = row.fields();
            Some((fields.int()?, Hash(fields.hash("epochs")?)))
        }
        None => None,
    };
    let sql = "INSERT INTO epochs (epoch, replica, started_us) VALUES ($1, $2, $3)";
    tx.execute(sql, args![epoch, replica, now_us]).await?;
    let mut chain = Chain::new(epoch);
    let open = Record::Open(Open { replica: replica.to_owned().into(), previous });
    let made: [Made<'_>; 1] = [(chain.append(now_us, &open), &open)];
    sql::insert(&mut tx, &made).await?;
    tx.commit().await?;
    tracing::info!(epoch, replica, verified = verified.rows, recovered = ?unended, "the ledger goes on");
    Ok((chain, unended))
}

/// Ends an epoch: writes what its engine could not, gives its grants back, and lets nobody write to it any more. An
/// epoch that has ended is left as it is.
pub async fn close(store: &Store, epoch: i64, now_us: i64) -> Result<(), LedgerError> {
    let month = last_month(store).await?.map(|statement| statement.month);
    close_from(store, epoch, now_us, month.as_ref()).await
}

async fn close_from(store: &Store, epoch: i64, now_us: i64, from: Option<&Month>) -> Result<(), LedgerError> {
    let start = start_of(epoch, from)?;
    let mut after = start.head.seq;
    let mut verifier = Verifier::new();
    verifier.resume(start);
    let mut tx = store.read().await?;
    let ended = "SELECT 1 FROM epochs WHERE epoch = $1 AND ended_us IS NULL";
    if tx.row(ended, args![epoch]).await?.is_none() {
        return Ok(());
    }
    // All that is there, in the time that it takes and without a lock; what is added meanwhile is little.
    after = read_on(&mut tx, &mut verifier, epoch, after).await?;
    drop(tx);
    let mut tx = store.write().await?;
    // Grants, and so tenants, before the epoch: the order in which the writer locks them.
    give_grants_back(&mut tx, epoch).await?;
    // The lock keeps a writer that is still alive from adding to what is read here.
    let lock = "UPDATE epochs SET head = head WHERE epoch = $1 AND ended_us IS NULL";
    if tx.execute(lock, args![epoch]).await? == 0 {
        return Ok(());
    }
    let head = tx.row("SELECT head FROM epochs WHERE epoch = $1", args![epoch]).await?;
    if let Some(head) = head.and_then(|row| row.fields().bytes_or_none().ok()?) {
        verifier.expect_end(epoch, Hash(head.try_into().unwrap_or_default()));
    }
    read_on(&mut tx, &mut verifier, epoch, after).await?;
    let book = verifier.book().cloned().unwrap_or_default();
    let mut chain = verifier.head().map_or(Chain::new(epoch), |head| Chain { epoch, seq: head.seq, head: head.hash });
    verifier.finish()?;
    let records = recover(&book, now_us);
    let made: Vec<Made<'_>> = records.iter().map(|record| (chain.append(now_us, record), record)).collect();
    sql::insert(&mut tx, &made).await?;
    tx.execute("UPDATE epochs SET ended_us = $2 WHERE epoch = $1", args![epoch, now_us]).await?;
    commit_noted(tx, now_us).await
}

/// Ends an epoch whose chain its own engine has closed, at its last row, and gives its grants back.
pub async fn end(store: &Store, chain: &Chain, now_us: i64) -> Result<(), LedgerError> {
    let mut tx = store.write().await?;
    give_grants_back(&mut tx, chain.epoch).await?;
    let sql = "UPDATE epochs SET ended_us = $2 WHERE epoch = $1 AND ended_us IS NULL AND head = $3";
    if tx.execute(sql, args![chain.epoch, now_us, &chain.head.0]).await? != 1 {
        return Err(LedgerError::Ended { epoch: chain.epoch });
    }
    commit_noted(tx, now_us).await
}

/// Notes where the chains stand, this epoch's end among them, and commits.
async fn commit_noted(mut tx: Tx, now_us: i64) -> Result<(), LedgerError> {
    let anchor = anchor::note(&mut tx, now_us).await?;
    tx.commit().await?;
    if let Some(anchor) = &anchor {
        anchor::tell(anchor);
    }
    Ok(())
}

async fn give_grants_back(tx: &mut Tx, epoch: i64) -> Result<(), LedgerError> {
    let grants = tx.rows("SELECT id, spent FROM grants WHERE epoch = $1 AND closed = 0", args![epoch]).await?;
    let mut reports = Vec::with_capacity(grants.len());
    for row in &grants {
        let mut fields = row.fields();
        reports.push(ReportOf { id: fields.int()?, spent: fields.int()?, expires_us: 0, closes: true });
    }
    quota::report_in(tx, &reports).await?;
    Ok(())
}
