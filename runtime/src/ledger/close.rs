//! Months are closed, one after the other, exactly once each.
//!
//! The rows are read, verified and summed in a snapshot and without a lock, by whoever wants to close the month. The
//! statement is then written in a short transaction that is alone in the store ([`Change`](crate::store::Change), which
//! also notes who closed it in the audit log), and only if the month before is still the last one. Of several replicas
//! that close a month one is the first; the others find it done and take what is there, even if a row that came in
//! between would have made their statement another: that row is in the next month.

use std::time::Duration;

use super::{
    anchor::anchors,
    error::{LedgerError, NotNow},
    month::Closing,
    read::{chains, read_chains},
    signing::SigningKey,
    statement::{self, Statement, number_of, starts},
    verify::{Head, Verifier},
};
use crate::{
    quota::calendar::{self, Period},
    store::{Actor, Event, Store, Tx, args},
};

/// How long after its end a month is closed: rows of its last moments are written by then.
pub const CLOSED_AFTER: Duration = Duration::from_secs(600);
/// Months that are closed in one call, after a long time without a key.
const MONTHS_AT_ONCE: usize = 24;

/// Whether rows of the month that begins then are no longer waited for.
pub fn is_over(month_us: i64, now_us: i64) -> bool {
    let patience = i64::try_from(CLOSED_AFTER.as_micros()).unwrap_or(i64::MAX);
    now_us >= Period::Month.end(month_us).saturating_add(patience)
}

/// Closes every month that is over and not closed, in order; at most two years of them in one call.
pub async fn close_months(store: &Store, key: &SigningKey, now_us: i64) -> Result<Vec<Statement>, LedgerError> {
    let mut closed = Vec::new();
    while closed.len() < MONTHS_AT_ONCE {
        let mut tx = store.read().await?;
        let next = next_month(&mut tx).await?.filter(|month_us| is_over(*month_us, now_us));
        drop(tx);
        let Some(month_us) = next else { break };
        closed.push(close_month(store, key, &Actor::system(), month_us, now_us).await?);
    }
    Ok(closed)
}

/// Closes the month that begins then, as `actor`. One that is closed already is left as it is.
///
/// # Errors
/// [`NotNow`] when it is not over, or another has to be closed before; [`LedgerError::BadRow`] when a row of it was
/// changed. Nothing is closed then.
pub async fn close_month(
    store: &Store,
    key: &SigningKey,
    actor: &Actor,
    month_us: i64,
    now_us: i64,
) -> Result<Statement, LedgerError> {
    let mut tx = store.read().await?;
    if let Some(there) = statement::month_of(&mut tx, month_us).await? {
        return Ok(there);
    }
    let month = calendar::month_name(month_us);
    match next_month(&mut tx).await? {
        None => return Err(NotNow::Empty.into()),
        Some(next) if next != month_us => {
            return Err(NotNow::NotNext { month, next: calendar::month_name(next) }.into());
        }
        Some(_) if !is_over(month_us, now_us) => return Err(NotNow::Open { month }.into()),
        Some(_) => {}
    }
    let before = statement::last(&mut tx).await?;
    let text = read_month(&mut tx, month_us, before.as_ref()).await?;
    drop(tx);

    let made = Statement::read(text.clone(), key.public(), key.sign(&text));
    let made = made.map_err(|fault| LedgerError::Month { month: month.clone(), fault })?;
    let mut change = store.change(actor, now_us).await?;
    // Nobody else closes a month from here to the commit.
    if statement::last(change.tx()).await?.map(|last| last.hash) != before.map(|before| before.hash) {
        let there = statement::month_of(change.tx(), month_us).await?;
        return there.ok_or_else(|| NotNow::NotClosed { month }.into());
    }
    let sql = "INSERT INTO months (month, closed_us, body, hash, signer, signature) VALUES ($1, $2, $3, $4, $5, $6)";
    let signer = made.signer.to_string();
    let values = args![number_of(month_us), now_us, &text, &made.hash.0, &signer, &made.signature];
    change.tx().execute(sql, values).await?;
    let hash = format!("{{\"hash\":\"{}\",\"signer\":\"{signer}\"}}", made.hash);
    change.record(Event::of("ledger.close", "month", &month).after(&hash)).await?;
    change.commit().await?;
    tracing::info!(month, hash = %made.hash, signer, "closed a month of the ledger");
    Ok(Statement { closed_us: now_us, ..made })
}

/// The month that is closed next: after the last one, or that of the first row.
async fn next_month(tx: &mut Tx) -> Result<Option<i64>, LedgerError> {
    if let Some(last) = statement::last(tx).await? {
        return Ok(Some(last.month.ends_us));
    }
    let first = tx.row("SELECT min(at_us) FROM ledger", args![]).await?;
    let first = first.map(|row| row.fields().int_or_none()).transpose()?.flatten();
    Ok(first.map(|at_us| Period::Month.begin(at_us)))
}

/// Verifies the rows of a month; its statement.
async fn read_month(tx: &mut Tx, month_us: i64, before: Option<&Statement>) -> Result<String, LedgerError> {
    let (from, ends_us) = (before.map(|before| &before.month), Period::Month.end(month_us));
    let mut parts = chains(tx, from).await?;
    let sql = "SELECT seq FROM ledger WHERE epoch = $1 AND seq > $2 AND at_us < $3 ORDER BY seq DESC LIMIT 1";
    for chain in &mut parts {
        let cut = tx.row(sql, args![chain.epoch, chain.after, ends_us]).await?;
        chain.upto = cut.map_or(Ok(0), |row| row.fields().int())?;
    }
    parts.retain(|chain| chain.upto > chain.after);
    let noted: Vec<Head> = anchors(tx).await?.into_iter().flat_map(|anchor| anchor.heads).collect();
    let name = calendar::month_name(month_us);
    let mut verifier = Verifier::new();
    let closing = Closing::new(&name, ends_us, before.map(|before| (before.text.as_str(), &before.month)));
    verifier.go_on(starts(from)?, Some(closing));
    let closing = read_chains(tx, verifier, &parts, &noted).await?.end_month()?;
    Ok(closing.expect("what was begun with a statement ends with it").finish().to_text())
}
