//! Rows out of the store, verified in a stream.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserializer as _,
    de::{Error as _, SeqAccess, Visitor},
};

use super::{
    error::LedgerError,
    month::Month,
    record::Text,
    row::{Hash, Row},
    verify::{BadRow, Fault, Head, Verifier},
};
use crate::store::{Row as StoreRow, StoreError, Tx, args};

/// Rows of one page: enough that asking for it costs little, a few megabytes at most.
const PAGE_LEN: i64 = 4096;

// A whole page as one text: reading a million rows column by column takes several times as long as all of the checking. SQLite
// knows no type but each value's own, and `hex` shows a text as well: a hash that has become one is shown as none.
const PAGE_SQLITE: &str = "SELECT count(*), coalesce(max(seq), 0), json_group_array(json_array(seq, at_us, kind, \
     coalesce(tenant, ''), coalesce(request, ''), coalesce(model, ''), coalesce(key, ''), device_ns, prompt_tokens, \
     completion_tokens, body, CASE typeof(hash) WHEN 'blob' THEN hex(hash) END)) \
     FROM (SELECT * FROM ledger WHERE epoch = $1 AND seq > $2 AND seq <= $4 ORDER BY seq LIMIT $3)";
const PAGE_POSTGRES: &str = "SELECT count(*), coalesce(max(seq), 0), coalesce(json_agg(json_build_array(seq, \
     at_us, kind, \
     coalesce(tenant, ''), coalesce(request, ''), coalesce(model, ''), coalesce(key, ''), device_ns, prompt_tokens, \
     completion_tokens, body, encode(hash, 'hex')) ORDER BY seq), '[]'::json)::text \
     FROM (SELECT * FROM ledger WHERE epoch = $1 AND seq > $2 AND seq <= $4 ORDER BY seq LIMIT $3) AS page";
const PLAIN: &str = "SELECT seq, at_us, kind, coalesce(tenant, ''), coalesce(request, ''), coalesce(model, ''), \
     coalesce(key, ''), device_ns, prompt_tokens, completion_tokens, body, hash FROM ledger \
     WHERE epoch = $1 AND seq > $2 ORDER BY seq LIMIT $3";

/// Rows of one epoch, after a place.
struct Page {
    epoch: i64,
    after: i64,
    text: String,
}

type Columns<'a> = (i64, i64, Text<'a>, Text<'a>, Text<'a>, Text<'a>, Text<'a>, i64, i64, i64, Text<'a>, Text<'a>);

fn row_from(epoch: i64, columns: Columns<'_>) -> Option<Row<'_>> {
    let (seq, at_us, kind, tenant, request, model, key, device_ns, prompt, completion, body, hash) = columns;
    Some(Row {
        epoch,
        seq,
        at_us,
        kind: kind.0,
        tenant: tenant.0,
        request: request.0,
        model: model.0,
        key: key.0,
        device_ns,
        prompt_tokens: prompt,
        completion_tokens: completion,
        body: body.0,
        hash: Hash::from_hex(hash.as_ref())?,
    })
}

/// Checks each row of a page as it is read: a row is a third of a kilobyte, and a list of them would be written and read
/// once more.
struct Check<'v> {
    verifier: &'v mut Verifier,
    epoch: i64,
    bad: Option<BadRow>,
}

impl<'de> Visitor<'de> for &mut Check<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while let Some(columns) = rows.next_element::<Columns<'de>>()? {
            let row = row_from(self.epoch, columns).ok_or_else(|| A::Error::custom("a hash is none"))?;
            if let Err(bad) = self.verifier.row(&row) {
                self.bad = Some(bad);
                return Err(A::Error::custom("a row is wrong"));
            }
        }
        Ok(())
    }
}

/// The page after a place, how many rows it has, and the last one's place. One that the database cannot show, because its own
/// pages are damaged or a value is of another type, is no page, so that its rows are looked at one by one.
async fn page(tx: &mut Tx, epoch: i64, after: i64, upto: i64) -> Result<(Page, i64, i64), StoreError> {
    let sql = if tx.is_postgres() { PAGE_POSTGRES } else { PAGE_SQLITE };
    let parts = |row: StoreRow| {
        let mut fields = row.fields();
        Ok((fields.int()?, fields.int()?, fields.text()?))
    };
    match tx.row(sql, args![epoch, after, PAGE_LEN, upto]).await.and_then(|row| row.map(parts).transpose()) {
        Ok(Some((count, last, text))) => Ok((Page { epoch, after, text }, count, last)),
        Ok(None) => Ok((Page { epoch, after, text: "[]".into() }, 0, after)),
        // PostgreSQL ends a transaction with an error, so nothing more can be asked in this one.
        Err(StoreError::Database(_)) if !tx.is_postgres() => Ok((Page { epoch, after, text: String::new() }, 1, after)),
        Err(error) => Err(error),
    }
}

/// Checks a page; nothing if it is not what a page is, and its rows have to be looked at one by one.
fn check(verifier: &mut Verifier, page: &Page) -> Option<Result<(), BadRow>> {
    let mut check = Check { verifier, epoch: page.epoch, bad: None };
    let mut json = serde_json::Deserializer::from_str(&page.text);
    let read = json.deserialize_seq(&mut check).and_then(|()| json.end());
    match (check.bad, read) {
        (Some(bad), _) => Some(Err(bad)),
        (None, Ok(())) => Some(Ok(())),
        (None, Err(_)) => None,
    }
}

/// Names the row of a page that cannot be read.
async fn unreadable(tx: &mut Tx, epoch: i64, mut after: i64) -> Result<BadRow, StoreError> {
    let first = after + 1;
    let named = |seq, fault| BadRow { epoch, seq, index: 0, fault: Box::new(fault) };
    let bad = |seq, what| named(seq, Fault::Unreadable { what });
    for _ in 0..PAGE_LEN {
        let read = match tx.row(PLAIN, args![epoch, after, 1_i64]).await {
            Ok(Some(row)) => row_of(epoch, &row),
            Ok(None) => break,
            Err(error) => Err(error),
        };
        match read {
            Ok(row) if row.seq == after + 1 => after = row.seq,
            Ok(row) => return Ok(named(after + 1, Fault::Order { epoch, seq: row.seq })),
            Err(StoreError::Database(error)) => return Ok(bad(after + 1, error.to_string())),
            Err(error @ StoreError::Corrupt { .. }) => return Ok(bad(after + 1, error.to_string())),
            Err(error) => return Err(error),
        }
    }
    Ok(bad(first, "the database shows it in two ways".into()))
}

fn row_of(epoch: i64, row: &StoreRow) -> Result<Row<'static>, StoreError> {
    let mut fields = row.fields();
    Ok(Row {
        epoch,
        seq: fields.int()?,
        at_us: fields.int()?,
        kind: fields.text()?.into(),
        tenant: fields.text()?.into(),
        request: fields.text()?.into(),
        model: fields.text()?.into(),
        key: fields.text()?.into(),
        device_ns: fields.int()?,
        prompt_tokens: fields.int()?,
        completion_tokens: fields.int()?,
        body: fields.text()?.into(),
        hash: Hash(fields.hash("ledger")?),
    })
}

/// A part of a chain that is to be read.
#[derive(Debug)]
pub(super) struct ChainOf {
    /// Which epoch.
    pub(super) epoch: i64,
    /// The row before the first.
    pub(super) after: i64,
    /// The last, or beyond what there is.
    pub(super) upto: i64,
    /// The last row that there seems to be.
    pub(super) last: i64,
    /// What `epochs` has noted of that.
    pub(super) head: Option<Hash>,
}

/// The chains after a statement, to their ends, in order.
pub(super) async fn chains(tx: &mut Tx, from: Option<&Month>) -> Result<Vec<ChainOf>, LedgerError> {
    let below = from.map_or(0, |month| month.closed_below);
    let starts: BTreeMap<i64, i64> = from.iter().flat_map(|month| &month.chains).map(|of| (of.epoch, of.seq)).collect();
    let sql = "SELECT epoch, head, (SELECT max(seq) FROM ledger WHERE ledger.epoch = epochs.epoch) FROM epochs \
               WHERE epoch >= $1 ORDER BY epoch";
    let chain = |row: &StoreRow| {
        let mut fields = row.fields();
        let (epoch, head) = (fields.int()?, fields.bytes_or_none()?);
        let after = starts.get(&epoch).copied().unwrap_or(0);
        let head = head.and_then(|head| head.try_into().ok()).map(Hash);
        Ok(ChainOf { epoch, after, upto: i64::MAX, last: fields.int_or_none()?.unwrap_or(0), head })
    };
    tx.rows(sql, args![below]).await?.iter().map(chain).collect()
}

/// Has a verifier, which stands where the chains begin, read them in order. Where a chain is read to its end that must be
/// the noted one. Pages are read while the one before is checked on another thread.
pub(super) async fn read_chains(
    tx: &mut Tx,
    mut verifier: Verifier,
    chains: &[ChainOf],
    noted: &[Head],
) -> Result<Verifier, LedgerError> {
    let places: BTreeMap<i64, &ChainOf> = chains.iter().map(|chain| (chain.epoch, chain)).collect();
    let is_read =
        |head: &&Head| places.get(&head.epoch).is_some_and(|chain| chain.after < head.seq && head.seq <= chain.upto);
    verifier.expect("the anchor", noted.iter().filter(is_read).copied());
    for chain in chains.iter().filter(|chain| chain.upto >= chain.last) {
        if let Some(head) = chain.head {
            verifier.expect_end(chain.epoch, head);
        }
    }
    let (pages, read) = flume::bounded::<Page>(4);
    let checker = tokio::task::spawn_blocking(move || {
        for page in read.iter() {
            match check(&mut verifier, &page) {
                Some(checked) => checked?,
                None => return Ok(Err((page.epoch, page.after))),
            }
        }
        Ok::<_, BadRow>(Ok(verifier))
    });
    'chains: for &ChainOf { epoch, mut after, upto, .. } in chains {
        loop {
            let (page, count, last) = page(tx, epoch, after, upto).await?;
            // Whoever checks has found a bad row, and reads no more.
            if count > 0 && pages.send_async(page).await.is_err() {
                break 'chains;
            }
            if count < PAGE_LEN {
                break;
            }
            after = last;
        }
    }
    drop(pages);
    match checker.await {
        Ok(Ok(Ok(verifier))) => Ok(verifier),
        Ok(Ok(Err((epoch, after)))) => Err(unreadable(tx, epoch, after).await?.into()),
        Ok(Err(bad)) => Err(bad.into()),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Has a verifier read the rows of one epoch after a place; the last of them.
pub(super) async fn read_on(
    tx: &mut Tx,
    verifier: &mut Verifier,
    epoch: i64,
    mut after: i64,
) -> Result<i64, LedgerError> {
    loop {
        let (page, count, last) = page(tx, epoch, after, i64::MAX).await?;
        match check(verifier, &page) {
            Some(checked) => checked?,
            None => return Err(unreadable(tx, epoch, after).await?.into()),
        }
        after = if count > 0 { last } else { after };
        if count < PAGE_LEN {
            return Ok(after);
        }
    }
}
