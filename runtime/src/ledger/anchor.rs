//! Anchors: once a day, and whenever an epoch ends, the heads of all chains are noted in a chain of their own, which can
//! be kept elsewhere: each is written to the server's log, too.
//!
//! Who holds an anchor can tell whether a chain was made anew up to there, which its own hashes cannot show: whoever
//! may write the store may write all of them. An anchor's hash is `BLAKE3(hash of the anchor before || number || at_us ||
//! for each head: epoch, seq, hash)`, numbers as in [rows](super::row).

use super::{
    error::LedgerError,
    row::Hash,
    verify::{BadRow, Fault, Head},
};
use crate::{
    quota::calendar,
    store::{Row as StoreRow, Store, Tx, args},
};

/// Heads at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Its place in the chain of anchors, from 1.
    pub number: i64,
    /// When, in microseconds since 1970 by the clock of the machine.
    pub at_us: i64,
    /// Of every epoch that had moved since it was noted before, by epoch.
    pub heads: Vec<Head>,
    /// Of the anchors up to this one.
    pub hash: Hash,
}

impl Anchor {
    /// The anchor that follows one with the hash `before`.
    pub fn new(before: Hash, number: i64, at_us: i64, mut heads: Vec<Head>) -> Anchor {
        heads.sort_unstable();
        let mut anchor = Anchor { number, at_us, heads, hash: Hash::NONE };
        anchor.hash = anchor.hash_after(before);
        anchor
    }

    /// The hash that it must have after one with the hash `before`.
    pub fn hash_after(&self, before: Hash) -> Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&before.0).update(&self.number.to_le_bytes()).update(&self.at_us.to_le_bytes());
        for head in &self.heads {
            hasher.update(&head.epoch.to_le_bytes()).update(&head.seq.to_le_bytes()).update(&head.hash.0);
        }
        Hash(*hasher.finalize().as_bytes())
    }
}

/// The number of the first anchor that is not what it must be after the one before, or that is missing.
pub fn first_bad_anchor(anchors: &[Anchor]) -> Option<i64> {
    let mut before = Hash::NONE;
    let is_bad = |(number, anchor): &(i64, &Anchor)| {
        let good = anchor.number == *number && anchor.hash == anchor.hash_after(before);
        before = anchor.hash;
        !good
    };
    (1..).zip(anchors).find(is_bad).map(|(number, _)| number)
}

/// Notes the heads of all chains, unless it was done on this day (UTC) already, by whichever replica.
///
/// # Errors
/// When a chain does not end where its last group of rows did: that is not noted as if it were right.
pub async fn note_heads(store: &Store, now_us: i64) -> Result<Option<Anchor>, LedgerError> {
    let today = |at_us: i64| calendar::day_of(at_us) == calendar::day_of(now_us);
    // Most calls find it done, and need no lock for that.
    let mut tx = store.read().await?;
    if last(&mut tx).await?.is_some_and(|(_, at_us)| today(at_us)) {
        return Ok(None);
    }
    drop(tx);
    let mut tx = store.write().await?;
    lock(&mut tx).await?;
    if last(&mut tx).await?.is_some_and(|(_, at_us)| today(at_us)) {
        return Ok(None);
    }
    let anchor = note(&mut tx, now_us).await?;
    tx.commit().await?;
    if let Some(anchor) = &anchor {
        tell(anchor);
    }
    Ok(anchor)
}

/// Notes the heads of all chains as a part of a transaction: nothing, if none has moved. Must be the last thing in it
/// that takes a lock, as whoever notes waits for those that do.
pub(super) async fn note(tx: &mut Tx, now_us: i64) -> Result<Option<Anchor>, LedgerError> {
    lock(tx).await?;
    let heads = moved(tx).await?;
    if heads.is_empty() {
        return Ok(None);
    }
    let before = last(tx).await?.map_or(Hash::NONE, |(hash, _)| hash);
    let anchor = Anchor::new(before, tx.next("anchor").await?, now_us, heads);
    let sql = "INSERT INTO anchors (number, epoch, seq, at_us, hash) VALUES ($1, $2, $3, $4, $5)";
    for head in &anchor.heads {
        tx.execute(sql, args![anchor.number, head.epoch, head.seq, now_us, &head.hash.0]).await?;
    }
    tx.execute(sql, args![anchor.number, 0i64, anchor.heads.len() as i64, now_us, &anchor.hash.0]).await?;
    Ok(Some(anchor))
}

/// Says in the log what was noted and committed: the log is often kept elsewhere.
pub(super) fn tell(anchor: &Anchor) {
    tracing::info!(number = anchor.number, chains = anchor.heads.len(), hash = %anchor.hash, "noted the ledger's heads");
}

/// All anchors, checked: each follows the one before, and none is missing at the end.
pub(super) async fn anchors(tx: &mut Tx) -> Result<Vec<Anchor>, LedgerError> {
    let rows = tx.rows("SELECT number, epoch, seq, at_us, hash FROM anchors ORDER BY number, epoch", &[]).await?;
    let mut anchors: Vec<Anchor> = Vec::new();
    for row in &rows {
        let mut fields = row.fields();
        let (number, epoch, seq, at_us) = (fields.int()?, fields.int()?, fields.int()?, fields.int()?);
        let hash = Hash(fields.hash("anchors")?);
        if epoch == 0 {
            anchors.push(Anchor { number, at_us, heads: Vec::new(), hash });
        } else if let Some(anchor) = anchors.last_mut().filter(|anchor| anchor.number == number) {
            anchor.heads.push(Head { epoch, seq, hash });
        } else {
            return Err(LedgerError::Anchor { number });
        }
    }
    let counted = tx.row("SELECT value FROM counters WHERE name = 'anchor'", &[]).await?;
    let counted = counted.map_or(Ok(0), |row| row.fields().int())?;
    let missing = (anchors.len() as i64 != counted).then_some(anchors.len() as i64 + 1);
    match first_bad_anchor(&anchors).or(missing) {
        Some(number) => Err(LedgerError::Anchor { number }),
        None => Ok(anchors),
    }
}

/// Whoever notes is alone until its commit. SQLite has one that writes anyway.
async fn lock(tx: &mut Tx) -> Result<(), LedgerError> {
    if tx.is_postgres() {
        tx.row("SELECT value FROM counters WHERE name = 'anchor' FOR UPDATE", &[]).await?;
    }
    Ok(())
}

/// The last anchor's hash, and when it was written.
async fn last(tx: &mut Tx) -> Result<Option<(Hash, i64)>, LedgerError> {
    let sql = "SELECT hash, at_us FROM anchors WHERE epoch = 0 ORDER BY number DESC LIMIT 1";
    let Some(row) = tx.row(sql, &[]).await? else { return Ok(None) };
    let mut fields = row.fields();
    Ok(Some((Hash(fields.hash("anchors")?), fields.int()?)))
}

/// The heads that are not noted. Of an epoch whose rows were all archived the statement says where it ended.
async fn moved(tx: &mut Tx) -> Result<Vec<Head>, LedgerError> {
    let sql = "SELECT e.epoch, l.seq, l.hash, e.head FROM epochs e JOIN ledger l ON l.epoch = e.epoch \
               AND l.seq = (SELECT max(seq) FROM ledger WHERE epoch = e.epoch) WHERE NOT EXISTS \
               (SELECT 1 FROM anchors a WHERE a.epoch = e.epoch AND a.seq = l.seq) ORDER BY e.epoch";
    let head = |row: &StoreRow| {
        let mut fields = row.fields();
        let head = Head { epoch: fields.int()?, seq: fields.int()?, hash: Hash(fields.hash("ledger")?) };
        match fields.bytes_or_none()?.as_deref() == Some(&head.hash.0[..]) {
            true => Ok(head),
            false => Err(BadRow { epoch: head.epoch, seq: head.seq + 1, index: 0, fault: Box::new(Fault::End) }.into()),
        }
    };
    tx.rows(sql, args![]).await?.iter().map(head).collect()
}
