//! Rows into the store, in one way to it for a whole group.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    error::LedgerError,
    record::{Record, Settle},
    row::{Chain, Hash, Row},
};
use crate::{
    quota::calendar,
    store::{StoreError, Tx, args},
};

/// A row that was made, and what it says.
pub(super) type Made<'a> = (Row<'static>, &'a Record<'static>);

/// All of it at once, because each statement is a way to SQLite's thread and back. Read from JSON in its binary form, which is
/// parsed once and not once for each column.
const WRITE_SQLITE: &str = "UPDATE epochs SET head = $2 WHERE epoch = $1 AND ended_us IS NULL; \
     INSERT INTO ledger (epoch, seq, at_us, kind, tenant, request, model, key, device_ns, \
     prompt_tokens, completion_tokens, body, hash) SELECT $1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, \
     value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, unhex(value ->> 11) \
     FROM jsonb_each($3) WHERE EXISTS (SELECT 1 FROM epochs WHERE epoch = $1 AND ended_us IS NULL); \
     INSERT INTO usage_days (day, tenant, model, key, plan, device_class, requests, device_ns, \
     prompt_tokens, completion_tokens) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, \
     value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9 FROM jsonb_each($4) \
     WHERE EXISTS (SELECT 1 FROM epochs WHERE epoch = $1 AND ended_us IS NULL) \
     ON CONFLICT (tenant, day, model, key, plan, device_class) DO UPDATE SET \
     requests = usage_days.requests + excluded.requests, device_ns = usage_days.device_ns + excluded.device_ns, \
     prompt_tokens = usage_days.prompt_tokens + excluded.prompt_tokens, \
     completion_tokens = usage_days.completion_tokens + excluded.completion_tokens";

/// The same in one statement, for the same reason. What is inserted looks at `head`, so the epoch's row is changed, and locked, first.
const WRITE_POSTGRES: &str = "WITH head AS (UPDATE epochs SET head = $2 WHERE epoch = $1 AND ended_us IS NULL \
     RETURNING epoch), \
     rows AS (INSERT INTO ledger (epoch, seq, at_us, kind, tenant, request, model, key, device_ns, \
     prompt_tokens, completion_tokens, body, hash) SELECT $1, (r ->> 0)::bigint, (r ->> 1)::bigint, r ->> 2, \
     r ->> 3, r ->> 4, r ->> 5, r ->> 6, (r ->> 7)::bigint, (r ->> 8)::bigint, (r ->> 9)::bigint, r ->> 10, \
     decode(r ->> 11, 'hex') FROM json_array_elements($3::json) AS r WHERE EXISTS (SELECT 1 FROM head)), \
     days AS (INSERT INTO usage_days (day, tenant, model, key, plan, device_class, requests, device_ns, \
     prompt_tokens, completion_tokens) SELECT (r ->> 0)::bigint, r ->> 1, r ->> 2, r ->> 3, r ->> 4, r ->> 5, \
     (r ->> 6)::bigint, (r ->> 7)::bigint, (r ->> 8)::bigint, (r ->> 9)::bigint FROM \
     json_array_elements($4::json) AS r WHERE EXISTS (SELECT 1 FROM head) \
     ON CONFLICT (tenant, day, model, key, plan, device_class) DO UPDATE SET \
     requests = usage_days.requests + excluded.requests, device_ns = usage_days.device_ns + excluded.device_ns, \
     prompt_tokens = usage_days.prompt_tokens + excluded.prompt_tokens, \
     completion_tokens = usage_days.completion_tokens + excluded.completion_tokens) \
     SELECT COUNT(*) FROM head";

/// Writes rows that follow each other in one chain, what they add to the usage of their days, and the chain's new
/// head. An epoch that somebody has ended takes none.
pub(super) async fn insert(tx: &mut Tx, made: &[Made<'_>]) -> Result<(), LedgerError> {
    let Some((last, _)) = made.last() else { return Ok(()) };
    let rows: Vec<_> = made.iter().map(|(row, _)| columns(row)).collect();
    let mut days: BTreeMap<(i64, [&str; 5]), [i64; 4]> = BTreeMap::new();
    for (row, record) in made {
        if let Record::Settle(settle) | Record::Recovered(settle) = record {
            for (key, parts) in settle.usage() {
                let sums = days.entry((calendar::day_of(row.at_us), key)).or_default();
                sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
            }
        }
    }
    let usage: Vec<_> =
        days.iter().map(|((day, [t, m, k, p, c]), [r, d, i, o])| (day, t, m, k, p, c, r, d, i, o)).collect();
    let (rows, usage) = (json(&rows)?, json(&usage)?);
    let values = args![last.epoch, &last.hash.0, &rows, &usage];
    // The epoch's row is locked from here to the commit: whoever reads it with a lock knows how the commit went. All is written, or
    // nothing.
    let ended = match tx.is_postgres() {
        true => tx.rows(WRITE_POSTGRES, values).await?.first().map(|row| row.fields().int()).transpose()? != Some(1),
        false => tx.execute(WRITE_SQLITE, values).await? == 0,
    };
    if ended { Err(LedgerError::Ended { epoch: last.epoch }) } else { Ok(()) }
}

/// Whether a request has this very bill; nothing if it has none.
pub(super) async fn settled(tx: &mut Tx, settle: &Settle<'_>) -> Result<Option<bool>, StoreError> {
    let sql = "SELECT kind, model, key, device_ns, prompt_tokens, completion_tokens, body FROM ledger \
               WHERE tenant = $1 AND request = $2 AND kind IN ('settle', 'recovered')";
    let Some(row) = tx.row(sql, args![settle.tenant.as_ref(), settle.request.as_ref()]).await? else {
        return Ok(None);
    };
    let mut fields = row.fields();
    let texts = (fields.text()?, fields.text_or_none()?, fields.text_or_none()?);
    let numbers = (fields.int()?, fields.int()?, fields.int()?);
    let body = fields.text()?;
    let bill = Record::Settle(settle.clone()).to_row();
    let same = texts == (bill.kind.into_owned(), Some(bill.model.into_owned()), Some(bill.key.into_owned()))
        && numbers == (bill.device_ns, bill.prompt_tokens, bill.completion_tokens)
        && body == bill.body;
    Ok(Some(same))
}

/// The last row of an epoch, once nobody is about to write another.
pub(super) async fn head(tx: &mut Tx, epoch: i64) -> Result<Option<Chain>, StoreError> {
    if tx.is_postgres() {
        tx.row("SELECT epoch FROM epochs WHERE epoch = $1 FOR UPDATE", args![epoch]).await?;
    }
    let sql = "SELECT seq, hash FROM ledger WHERE epoch = $1 ORDER BY seq DESC LIMIT 1";
    let Some(row) = tx.row(sql, args![epoch]).await? else { return Ok(None) };
    let mut fields = row.fields();
    Ok(Some(Chain { epoch, seq: fields.int()?, head: Hash(fields.hash("ledger")?) }))
}

type Columns<'a> = (
    i64,
    i64,
    &'a str,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
    i64,
    i64,
    i64,
    &'a str,
    String,
);

fn columns<'a>(row: &'a Row<'_>) -> Columns<'a> {
    let settled = matches!(&*row.kind, "settle" | "recovered");
    // What is the operator's is nobody's, which row security shows to no tenant.
    let text = |text: &'a str| settled.then_some(text);
    (
        row.seq,
        row.at_us,
        &row.kind,
        text(&row.tenant),
        text(&row.request),
        text(&row.model),
        text(&row.key),
        row.device_ns,
        row.prompt_tokens,
        row.completion_tokens,
        &row.body,
        row.hash.to_string(),
    )
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<String, LedgerError> {
    serde_json::to_string(value)
        .map_err(|error| LedgerError::Store(StoreError::Database(sqlx::Error::Encode(error.into()))))
}
