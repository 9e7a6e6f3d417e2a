//! Rows of closed months are exported, checked, and then removed.
//!
//! The file is NDJSON: first a line with the statement, and the one before it; then every row of the month, in the order
//! of the chains; last a line that counts them. [`check_archive`] needs nothing else to recompute all of it.
//!
//! Removing takes two steps. First the statement is marked as archived, in one transaction with an audit row: from then on
//! nothing reads the rows that it covers, and verifying begins after it. Then they are removed, some at a time, so that the
//! writer never waits long; what a crash leaves over is removed by whoever comes next ([`remove_archived`]). The database
//! itself removes no row that no marked statement covers.

use std::{io::BufRead, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    error::{LedgerError, NotNow},
    month::{Closing, Month, MonthFault},
    read::chains,
    row::{Hash, Row},
    signing::PublicKey,
    statement::{self, Statement, number_of},
    verify::{BadRow, Verifier},
    whole::of_month,
};
use crate::{
    billing::ExportedRow,
    quota::calendar::{self, Period},
    store::{Actor, Event, Store, StoreError, Tx, args},
};

/// How long after its end the rows of a month stay at the least: whoever repeats a request within 24 hours by its
/// `Idempotency-Key` is told what its bill says.
pub const ARCHIVED_AFTER: Duration = Duration::from_secs(2 * 24 * 3600);
/// Rows of one page.
const PAGE_LEN: i64 = 1000;
/// Rows removed in one transaction: some milliseconds for which the writer waits.
const REMOVED_AT_ONCE: i64 = 1000;

/// A statement in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// Its text.
    pub statement: String,
    /// The public key, in hexadecimal digits.
    pub signer: String,
    /// The signature, likewise.
    pub signature: String,
}

impl From<&Statement> for Signed {
    fn from(of: &Statement) -> Signed {
        let signature = of.signature.iter().map(|byte| format!("{byte:02x}")).collect();
        Signed { statement: of.text.clone(), signer: of.signer.to_string(), signature }
    }
}

impl Signed {
    fn read(self) -> Result<Statement, MonthFault> {
        let signer = PublicKey::from_hex(&self.signer).ok_or(MonthFault::Signature)?;
        let halves = (Hash::from_hex(self.signature.get(..64).unwrap_or_default()), self.signature.get(64..));
        let (Some(first), Some(second)) = (halves.0, halves.1.and_then(Hash::from_hex)) else {
            return Err(MonthFault::Signature);
        };
        Statement::read(self.statement, signer, [first.0, second.0].concat())
    }
}

/// The first line of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveHead {
    /// `ledger.month`.
    pub object: String,
    /// The month's.
    #[serde(flatten)]
    pub month: Signed,
    /// The one before, where its chains and accounts begin; nothing before the first.
    pub previous: Option<Signed>,
}

/// The rows of a closed month, page by page.
#[derive(Debug)]
pub struct Archive {
    /// The first line.
    pub head: ArchiveHead,
    /// Epoch, and the rows before the first and up to the last.
    parts: Vec<(i64, i64, i64)>,
}

impl Archive {
    /// Of the month that begins then.
    pub async fn open(store: &Store, month_us: i64) -> Result<Archive, LedgerError> {
        let mut tx = store.read().await?;
        let month = calendar::month_name(month_us);
        let Some(of) = statement::month_of(&mut tx, month_us).await? else {
            return Err(NotNow::NotClosed { month }.into());
        };
        if of.archived_us.is_some() {
            return Err(NotNow::Archived { month }.into());
        }
        let previous = statement::month_of(&mut tx, Period::Month.before(month_us)).await?;
        let parts = parts(&mut tx, previous.as_ref(), &of).await?;
        let (month, previous) = (Signed::from(&of), previous.as_ref().map(Signed::from));
        Ok(Archive { head: ArchiveHead { object: "ledger.month".into(), month, previous }, parts })
    }

    /// The rows after the place (epoch, seq), in the order of the chains; none when there are no more.
    pub async fn page(&self, store: &Store, after: (i64, i64)) -> Result<Vec<ExportedRow>, StoreError> {
        let sql = "SELECT epoch, seq, at_us, kind, tenant, request, model, key, device_ns, prompt_tokens, \
                   completion_tokens, body, hash FROM ledger WHERE epoch = $1 AND seq > $2 AND seq <= $3 \
                   ORDER BY seq LIMIT $4";
        let mut tx = store.read().await?;
        for &(epoch, first, upto) in self.parts.iter().filter(|part| part.0 >= after.0) {
            let first = if epoch == after.0 { first.max(after.1) } else { first };
            let rows = tx.rows(sql, args![epoch, first, upto, PAGE_LEN]).await?;
            if !rows.is_empty() {
                return rows.iter().map(ExportedRow::read).collect();
            }
        }
        Ok(Vec::new())
    }
}

async fn parts(tx: &mut Tx, before: Option<&Statement>, of: &Statement) -> Result<Vec<(i64, i64, i64)>, LedgerError> {
    let chains = of_month(chains(tx, before.map(|before| &before.month)).await?, &of.month);
    Ok(chains.iter().map(|chain| (chain.epoch, chain.after, chain.upto)).collect())
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveFault {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// A line is not what it must be.
    #[error("line {line}: {what}")]
    Line {
        /// From 1.
        line: u64,
        /// Why not.
        what: String,
    },
    /// A statement in it is wrong.
    #[error("its statement does not count: {0}")]
    Month(#[from] MonthFault),
    /// A row is wrong.
    #[error(transparent)]
    Row(#[from] BadRow),
    /// It broke off.
    #[error("it has no last line, so it broke off")]
    Cut,
}

/// An archive that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Its month.
    pub month: Month,
    /// Of the statement's text.
    pub hash: Hash,
    /// Who signed it.
    pub signer: PublicKey,
    /// Its rows.
    pub rows: u64,
}

/// Recomputes an archive: both signatures, every hash, the accounts, and from them the statement, which must come out byte
/// for byte.
pub fn check_archive(mut file: impl BufRead) -> Result<Checked, ArchiveFault> {
    let (mut text, mut line) = (String::new(), 1);
    file.read_line(&mut text)?;
    let wrong = |line, error: &dyn ToString| ArchiveFault::Line { line, what: error.to_string() };
    let head: ArchiveHead = serde_json::from_str(&text).map_err(|error| wrong(1, &error))?;
    let of = head.month.read()?;
    let previous = head.previous.map(Signed::read).transpose()?;
    of.month.follows(previous.as_ref().map(|previous| previous.text.as_str()))?;
    let mut verifier = Verifier::new();
    let from = previous.as_ref().map(|previous| (previous.text.as_str(), &previous.month));
    let starts = from.map(|(_, month)| month.starts()).transpose()?.unwrap_or_default();
    verifier.go_on(starts, Some(Closing::new(&of.month.month, of.month.ends_us, from)));
    let mut rows = 0;
    loop {
        text.clear();
        line += 1;
        if file.read_line(&mut text)? == 0 {
            return Err(ArchiveFault::Cut);
        }
        if let Ok(End { object, rows: counted }) = serde_json::from_str(&text)
            && object == "end"
        {
            if counted != rows {
                return Err(wrong(line, &format!("it counts {counted} rows, and there are {rows}")));
            }
            break;
        }
        let row: ExportedRow = serde_json::from_str(&text).map_err(|error| wrong(line, &error))?;
        verifier.row(&row_of(row).ok_or_else(|| wrong(line, &"a hash is none"))?)?;
        rows += 1;
    }
    if file.read_line(&mut text)? != 0 {
        return Err(wrong(line + 1, &"there is something after the last line"));
    }
    match verifier.end_month()?.map(Closing::finish) {
        Some(made) if made == of.month => Ok(Checked { month: of.month, hash: of.hash, signer: of.signer, rows }),
        _ => Err(MonthFault::Rows.into()),
    }
}

/// The last line.
#[derive(Deserialize)]
struct End {
    object: String,
    rows: u64,
}

fn row_of(row: ExportedRow) -> Option<Row<'static>> {
    let text = |text: Option<String>| text.unwrap_or_default().into();
    Some(Row {
        epoch: row.epoch,
        seq: row.seq,
        at_us: row.at_us,
        kind: row.kind.into(),
        tenant: text(row.tenant),
        request: text(row.request),
        model: text(row.model),
        key: text(row.key),
        device_ns: row.device_ns,
        prompt_tokens: row.prompt_tokens,
        completion_tokens: row.completion_tokens,
        body: row.body.into(),
        hash: Hash::from_hex(&row.hash)?,
    })
}

/// Gives up the rows of the month that begins then, as `actor`, who says which statement and how many rows an export of
/// them holds, and removes them. One that was given up is finished.
///
/// # Errors
/// [`NotNow`] when it may not be archived, or something else was exported. No row is removed then.
pub async fn archive_month(
    store: &Store,
    actor: &Actor,
    month_us: i64,
    exported: (Hash, i64),
    now_us: i64,
) -> Result<u64, LedgerError> {
    let month = calendar::month_name(month_us);
    let mut change = store.change(actor, now_us).await?;
    let tx = change.tx();
    let Some(of) = statement::month_of(tx, month_us).await? else { return Err(NotNow::NotClosed { month }.into()) };
    if of.archived_us.is_none() {
        let patience = i64::try_from(ARCHIVED_AFTER.as_micros()).unwrap_or(i64::MAX);
        if now_us < of.month.ends_us.saturating_add(patience) {
            return Err(NotNow::Fresh { month }.into());
        }
        let first = statement::all(tx).await?.into_iter().find(|statement| statement.archived_us.is_none());
        if let Some(first) = first.filter(|first| first.hash != of.hash) {
            return Err(NotNow::NotFirst { month, first: first.month.month }.into());
        }
        let before = statement::month_of(tx, Period::Month.before(month_us)).await?;
        let mut rows = 0;
        for (epoch, after, upto) in parts(tx, before.as_ref(), &of).await? {
            let sql = "SELECT count(*) FROM ledger WHERE epoch = $1 AND seq > $2 AND seq <= $3";
            rows += tx.row(sql, args![epoch, after, upto]).await?.map_or(Ok(0), |row| row.fields().int())?;
        }
        if exported != (of.hash, rows) {
            return Err(NotNow::OtherExport { month, rows }.into());
        }
        let sql = "UPDATE months SET archived_us = $2 WHERE month = $1 AND archived_us IS NULL";
        tx.execute(sql, args![number_of(month_us), now_us]).await?;
        let said = format!("{{\"hash\":\"{}\",\"rows\":{rows}}}", of.hash);
        change.record(Event::of("ledger.archive", "month", &month).after(&said)).await?;
        change.commit().await?;
        tracing::info!(month, rows, "archived a month of the ledger");
    } else {
        drop(change);
    }
    remove_archived(store).await
}

/// Removes rows that archived months cover, until there are none; how many it were.
pub async fn remove_archived(store: &Store) -> Result<u64, LedgerError> {
    let mut removed = 0;
    loop {
        let sql = "SELECT a.epoch, a.seq, (SELECT min(seq) FROM ledger WHERE epoch = a.epoch) FROM archived a WHERE EXISTS \
                   (SELECT 1 FROM ledger l WHERE l.epoch = a.epoch AND l.seq <= a.seq) ORDER BY a.epoch LIMIT 1";
        let Some(row) = store.read().await?.row(sql, args![]).await? else { return Ok(removed) };
        let mut fields = row.fields();
        let (epoch, upto, first) = (fields.int()?, fields.int()?, fields.int()?);
        let upto = upto.min(first.saturating_add(REMOVED_AT_ONCE - 1));
        let mut tx = store.write().await?;
        removed += tx.execute("DELETE FROM ledger WHERE epoch = $1 AND seq <= $2", args![epoch, upto]).await?;
        tx.commit().await?;
    }
}
