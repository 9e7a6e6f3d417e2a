//! Whether the ledger in a store is whole: its rows, its statements, its anchors, and the days' sums.

use super::{
    anchor::anchors,
    error::LedgerError,
    month::{Closing, Month, MonthFault},
    read::{ChainOf, chains, read_chains},
    signing::PublicKey,
    statement::{self, Statement, are_signed_by, starts},
    usage::DaySums,
    verify::{Head, Verified, Verifier},
};
use crate::store::{Store, Tx};

/// Verifies the whole ledger: every row that is there, every anchor, every month's statement, and the sums of
/// `usage_days`. Each statement must have a signature of one of `keys`; of whichever key it names, if nobody says.
///
/// Rows of months that were archived are what their statements say. Those of a month that is closed and not archived
/// must make its statement again, byte for byte.
pub async fn verify_store(store: &Store, keys: Option<&[PublicKey]>) -> Result<Verified, LedgerError> {
    let mut tx = store.read().await?;
    let statements = statement::all(&mut tx).await?;
    if let Some(keys) = keys {
        are_signed_by(&statements, keys)?;
    }
    let noted: Vec<Head> = anchors(&mut tx).await?.into_iter().flat_map(|anchor| anchor.heads).collect();
    let archived = statements.iter().rposition(|of| of.archived_us.is_some()).map_or(0, |at| at + 1);
    let (archived, kept) = statements.split_at(archived);
    let mut usage = DaySums::new();
    archived.iter().for_each(|statement| usage.add_month(&statement.month));
    let mut verifier = Verifier::new();
    verifier.sum_usage(Some(usage));
    let mut before = archived.last();
    for statement in kept {
        verifier = verify_month(&mut tx, verifier, before, statement, &noted).await?;
        before = Some(statement);
    }
    let from = before.map(|statement| &statement.month);
    let rest = chains(&mut tx, from).await?;
    verifier.go_on(starts(from)?, None);
    let mut verifier = read_chains(&mut tx, verifier, &rest, &noted).await?;
    let usage = verifier.take_usage();
    let verified = Verified { months: statements.len() as u64, ..verifier.finish()? };
    if let Some(usage) = usage {
        usage.compare(&mut tx).await?;
    }
    Ok(verified)
}

/// Has a verifier read the rows of one month, which must make its statement.
async fn verify_month(
    tx: &mut Tx,
    mut verifier: Verifier,
    before: Option<&Statement>,
    statement: &Statement,
    noted: &[Head],
) -> Result<Verifier, LedgerError> {
    let from = before.map(|before| &before.month);
    let chains = of_month(chains(tx, from).await?, &statement.month);
    let Month { month, ends_us, .. } = &statement.month;
    let closing = Closing::new(month, *ends_us, before.map(|before| (before.text.as_str(), &before.month)));
    verifier.go_on(starts(from)?, Some(closing));
    let mut verifier = read_chains(tx, verifier, &chains, noted).await?;
    match verifier.end_month()?.map(Closing::finish) {
        Some(made) if made == statement.month => Ok(verifier),
        _ => Err(LedgerError::Month { month: month.clone(), fault: MonthFault::Rows }),
    }
}

/// Of the chains after the statement before, the parts that are in a month.
pub(super) fn of_month(mut chains: Vec<ChainOf>, month: &Month) -> Vec<ChainOf> {
    chains.retain_mut(|chain| {
        if chain.epoch >= month.closed_below {
            let end = month.chains.iter().find(|end| end.epoch == chain.epoch);
            chain.upto = end.map_or(0, |end| end.seq);
        }
        chain.upto > chain.after
    });
    chains
}

/// Verifies the newest epochs after the last closed month, as many whole ones as have at most so many rows; not those
/// of `but`.
pub(super) async fn verify_newest(
    store: &Store,
    from: Option<&Month>,
    but: &[i64],
    rows_max: i64,
) -> Result<Verified, LedgerError> {
    let mut tx = store.read().await?;
    let mut left = rows_max;
    let mut newest: Vec<ChainOf> = chains(&mut tx, from).await?;
    newest.retain(|chain| !but.contains(&chain.epoch));
    let fits = |chain: &&ChainOf| {
        left = left.saturating_sub(chain.last.saturating_sub(chain.after).max(0));
        left >= 0
    };
    let count = newest.iter().rev().take_while(fits).count();
    let newest = newest.split_off(newest.len() - count);
    let noted: Vec<Head> = anchors(&mut tx).await?.into_iter().flat_map(|anchor| anchor.heads).collect();
    let mut verifier = Verifier::new();
    let asked = |epoch: i64| newest.iter().any(|chain| chain.epoch == epoch);
    verifier.start_from(starts(from)?.into_iter().filter(|start| asked(start.head.epoch)));
    Ok(read_chains(&mut tx, verifier, &newest, &noted).await?.finish()?)
}
