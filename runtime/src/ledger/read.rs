//! Rows out of the store: verified in a stream, and epochs begun, recovered and ended.

use super::{
    book::Stage,
    error::LedgerError,
    month::Month,
    record::{Open, Record, Text},
    recover::recover,
    row::{Chain, Hash, Row},
    sql::{self, Made},
    verify::{BadRow, Fault, Head, Verified, Verifier},
};
use crate::{
    quota::{self, ReportOf},
    store::{Row as StoreRow, Store, StoreError, Tx, args},
};

/// Rows of one page: enough that asking for it costs little, a few megabytes at most.
const PAGE_LEN: i64 = 4096;

// A whole page as one text: reading a million rows column by column takes several times as long as all of the checking.
const PAGE_SQLITE: &str = "SELECT count(*), coalesce(max(seq), 0), json_group_array(json_array(seq, at_us, kind, \
     coalesce(tenant, ''), coalesce(request, ''), coalesce(model, ''), coalesce(key, ''), device_ns, prompt_tokens, \
     completion_tokens, body, hex(hash))) \
     FROM (SELECT * FROM ledger WHERE epoch = $1 AND seq > $2 ORDER BY seq LIMIT $3)";
const PAGE_POSTGRES: &str = "SELECT count(*), coalesce(max(seq), 0), coalesce(json_agg(json_build_array(seq, \
     at_us, kind, \
     coalesce(tenant, ''), coalesce(request, ''), coalesce(model, ''), coalesce(key, ''), device_ns, prompt_tokens, \
     completion_tokens, body, encode(hash, 'hex')) ORDER BY seq), '[]'::json)::text \
     FROM (SELECT * FROM ledger WHERE epoch = $1 AND seq > $2 ORDER BY seq LIMIT $3) AS page";
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

impl Page {
    fn rows(&self) -> Option<Vec<Row<'_>>> {
        let rows: Vec<Columns<'_>> = serde_json::from_str(&self.text).ok()?;
        rows.into_iter().map(|columns| row_from(self.epoch, columns)).collect()
    }
}

/// The page after a place, how many rows it has, and the last one's place.
async fn page(tx: &mut Tx, epoch: i64, after: i64) -> Result<(Page, i64, i64), StoreError> {
    let sql = if tx.is_postgres() { PAGE_POSTGRES } else { PAGE_SQLITE };
    let Some(row) = tx.row(sql, args![epoch, after, PAGE_LEN]).await? else {
        return Ok((Page { epoch, after, text: "[]".into() }, 0, after));
    };
    let mut fields = row.fields();
    let (count, last) = (fields.int()?, fields.int()?);
    Ok((Page { epoch, after, text: fields.text()? }, count, last))
}

/// Checks a page; nothing if it is not what a page is, and its rows have to be looked at one by one.
fn check(verifier: &mut Verifier, page: &Page) -> Option<Result<(), BadRow>> {
    let rows = page.rows()?;
    Some(rows.iter().try_for_each(|row| verifier.row(row)))
}

/// Names the row of a page that cannot be read.
async fn unreadable(tx: &mut Tx, epoch: i64, after: i64) -> Result<BadRow, StoreError> {
    let rows = tx.rows(PLAIN, args![epoch, after, PAGE_LEN]).await?;
    for (expected, row) in (after + 1..).zip(&rows) {
        if let Err(error) = row_of(epoch, row) {
            let what = error.to_string();
            return Ok(BadRow { epoch, seq: expected, index: 0, fault: Box::new(Fault::Unreadable { what }) });
        }
    }
    let what = "the database shows it in two ways".into();
    Ok(BadRow { epoch, seq: after + 1, index: 0, fault: Box::new(Fault::Unreadable { what }) })
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

/// Verifies the whole ledger, or what follows the last month that was closed, with the heads that were noted beside
/// it. Pages are read while the one before is checked on another thread.
pub async fn verify_store(store: &Store, from: Option<&Month>) -> Result<Verified, LedgerError> {
    let mut tx = store.read().await?;
    let below = from.map_or(0, |month| month.closed_below);
    let starts = from.map(Month::starts).transpose()?.unwrap_or_default();
    let mut verifier = Verifier::new();
    let epochs = tx.rows("SELECT epoch, head FROM epochs WHERE epoch >= $1 ORDER BY epoch", args![below]).await?;
    let mut chains = Vec::new();
    for row in &epochs {
        let mut fields = row.fields();
        let (epoch, head) = (fields.int()?, fields.bytes_or_none()?);
        let start = starts.iter().find(|start| start.head.epoch == epoch);
        chains.push((epoch, start.map_or(0, |start| start.head.seq)));
        if let Some(head) = head.and_then(|head| head.try_into().ok()) {
            verifier.expect_end(epoch, Hash(head));
        }
    }
    verifier.expect("the anchor", anchors(&mut tx, below).await?);
    verifier.start_from(starts);

    let (pages, read) = flume::bounded::<Page>(4);
    let checker = tokio::task::spawn_blocking(move || {
        for page in read.iter() {
            match check(&mut verifier, &page) {
                Some(checked) => checked?,
                None => return Ok(Err((page.epoch, page.after))),
            }
        }
        verifier.finish().map(Ok)
    });
    'chains: for (epoch, mut after) in chains {
        loop {
            let (page, count, last) = page(&mut tx, epoch, after).await?;
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
        Ok(Ok(Ok(verified))) => Ok(verified),
        Ok(Ok(Err((epoch, after)))) => Err(unreadable(&mut tx, epoch, after).await?.into()),
        Ok(Err(bad)) => Err(bad.into()),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

async fn anchors(tx: &mut Tx, below: i64) -> Result<Vec<Head>, StoreError> {
    let sql = "SELECT epoch, seq, hash FROM anchors WHERE epoch >= $1 AND epoch > 0";
    let head = |row: &StoreRow| {
        let mut fields = row.fields();
        Ok(Head { epoch: fields.int()?, seq: fields.int()?, hash: Hash(fields.hash("anchors")?) })
    };
    tx.rows(sql, args![below]).await?.iter().map(head).collect()
}

/// Begins an epoch, after closing those of this replica that have not ended: see [`recover`]. Says which those were.
pub async fn begin(store: &Store, replica: &str, now_us: i64) -> Result<(Chain, Vec<i64>), LedgerError> {
    let mut tx = store.read().await?;
    let sql = "SELECT epoch FROM epochs WHERE replica = $1 AND ended_us IS NULL ORDER BY epoch";
    let unended = tx.rows(sql, args![replica]).await?;
    let unended = unended.iter().map(|row| row.fields().int()).collect::<Result<Vec<i64>, _>>()?;
    drop(tx);
    for &epoch in &unended {
        close(store, epoch, now_us).await?;
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
    Ok((chain, unended))
}

/// Ends an epoch: writes what its engine could not, gives its grants back, and lets nobody write to it any more. An
/// epoch that has ended is left as it is.
pub async fn close(store: &Store, epoch: i64, now_us: i64) -> Result<(), LedgerError> {
    // The lock keeps a writer that is still alive from adding to what is read here.
    let mut tx = store.write().await?;
    let lock = "UPDATE epochs SET head = head WHERE epoch = $1 AND ended_us IS NULL";
    if tx.execute(lock, args![epoch]).await? == 0 {
        return Ok(());
    }
    let mut verifier = Verifier::new();
    let head = tx.row("SELECT head FROM epochs WHERE epoch = $1", args![epoch]).await?;
    if let Some(head) = head.and_then(|row| row.fields().bytes_or_none().ok()?) {
        verifier.expect_end(epoch, Hash(head.try_into().unwrap_or_default()));
    }
    let mut after = 0;
    loop {
        let (page, count, last) = page(&mut tx, epoch, after).await?;
        match check(&mut verifier, &page) {
            Some(checked) => checked?,
            None => return Err(unreadable(&mut tx, epoch, after).await?.into()),
        }
        if count < PAGE_LEN {
            break;
        }
        after = last;
    }
    let book = verifier.book().cloned().unwrap_or_default();
    let mut chain = match verifier.head() {
        Some(head) => Chain { epoch, seq: head.seq, head: head.hash },
        None => Chain::new(epoch),
    };
    verifier.finish()?;
    let records = recover(&book, now_us);
    let made: Vec<Made<'_>> = records.iter().map(|record| (chain.append(now_us, record), record)).collect();
    let grants = tx.rows("SELECT id, spent FROM grants WHERE epoch = $1 AND closed = 0", args![epoch]).await?;
    let mut reports = Vec::new();
    for row in &grants {
        let mut fields = row.fields();
        reports.push(ReportOf { id: fields.int()?, spent: fields.int()?, expires_us: 0, closes: true });
    }
    quota::report_in(&mut tx, &reports).await?;
    sql::insert(&mut tx, &made).await?;
    debug_assert!(made.is_empty() || book.stage() != Stage::Closed);
    tx.execute("UPDATE epochs SET ended_us = $2 WHERE epoch = $1", args![epoch, now_us]).await?;
    tx.commit().await?;
    Ok(())
}
