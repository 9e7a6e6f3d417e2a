//! Group commit: one task takes all records that wait, writes them in one transaction, and only then says so.
//!
//! The engine sends records in order and never waits; a record's `done` runs when the commit that holds it has reached
//! the disk, and only then may the request's terminal event go. While a group is being committed the next one
//! gathers, so a slow disk makes groups longer and not the line. The rows of a chain are made here, in the order of
//! the channel.
//!
//! The writer keeps the accounts that its rows make ([`Book`]). A row that does not fit them is not written: whoever
//! made it has lost count, and nothing that it says from there on is worth signing. So the writer stops, as loudly as
//! it can. A bill that is there already, word for word, is skipped: it was acknowledged to nobody, or sent twice.
//!
//! *When the store fails.* What failed before the commit was sent has not happened, and is tried again while the line
//! waits. Of a commit that failed nobody knows. SQLite's is never tried again: the next sync may claim success for pages that are
//! gone. PostgreSQL's outcome is read back by the last row of the chain, under the lock that the transaction held: if it
//! is the group's, the group is committed; if it is the one before, the transaction was undone as a whole, and is written again. In all
//! other cases, and if nobody answers, the writer stops for good and every `done` from there on says so. The next start recovers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    book::Book,
    error::LedgerError,
    record::Record,
    row::{Chain, Hash},
    sql::{self, Made},
    verify::Fault,
};
use crate::{
    quota::{self, ReportOf},
    store::{Store, StoreError},
};

/// Records that may wait for the writer. At 20,000 a second, the backlog of 0.4 s.
pub const RECORDS_WAITING_MAX: usize = 8192;
/// Records of one transaction at most: some milliseconds of work, so that nobody waits long behind a full one.
pub const GROUP_LEN_MAX: usize = 512;
/// From the beginning of a commit of more than [`FEW`] to that of the next, unless a full group waits. A commit takes the processor some
/// hundred microseconds however little it holds, so where the disk is quick and many requests end, they share one.
const COMMIT_INTERVAL: Duration = Duration::from_millis(2);
/// Where so few end at a time nobody waits for others.
const FEW: usize = 4;
/// Pauses between tries while the store does not answer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How often the outcome of a commit is asked for.
const READ_BACK_MAX: u32 = 10;

/// Told whether a record is on the disk.
pub type Done = Box<dyn FnOnce(bool) + Send>;

/// What the writer is sent.
pub struct Entry {
    /// When, by the machine's clock.
    pub at_us: i64,
    /// What.
    pub record: Record<'static>,
    /// What of which grants is spent by now, to be known together with the record.
    pub grants: Vec<ReportOf>,
    /// Called once, from the writer's task: it must not block.
    pub done: Option<Done>,
}

/// How the writer works.
#[derive(Debug, Clone, Default)]
pub struct WriterOptions {
    /// Added to each commit before it is acknowledged: to measure what a slower disk would do.
    pub commit_delay: Duration,
}

/// The way to the writer's task. When the last one is dropped the task ends, having written all that waits.
#[derive(Debug, Clone)]
pub struct Writer {
    entries: flume::Sender<Entry>,
    state: Arc<State>,
}

/// What the task says of itself.
#[derive(Debug)]
struct State {
    stopped: AtomicBool,
    /// When the oldest record was made that is taken and not yet on the disk; [`NONE_US`] where there is none.
    oldest_us: AtomicI64,
}

/// No moment.
const NONE_US: i64 = i64::MIN;

/// Looks at the line of a writer, which it does not keep alive.
#[derive(Debug, Clone)]
pub struct LineWatch {
    entries: flume::WeakSender<Entry>,
    state: Arc<State>,
}

/// How long the line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLine {
    /// Records that wait.
    pub waiting: usize,
    /// When the oldest was made that is not on the disk, in microseconds since 1970.
    pub oldest_us: Option<i64>,
    /// Nothing is written any more.
    pub stopped: bool,
}

impl LineWatch {
    /// The line at this moment.
    pub fn look(&self) -> LedgerLine {
        let oldest_us = self.state.oldest_us.load(Ordering::Acquire);
        LedgerLine {
            waiting: self.entries.upgrade().map_or(0, |entries| entries.len()),
            oldest_us: (oldest_us != NONE_US).then_some(oldest_us),
            stopped: self.state.stopped.load(Ordering::Acquire),
        }
    }
}

impl Writer {
    /// Starts the task, which writes on after `chain`, which [`begin`](super::begin) has just begun; what it returns is
    /// how it ended.
    pub fn start(
        store: Store,
        chain: Chain,
        options: WriterOptions,
    ) -> (Writer, tokio::task::JoinHandle<Result<Chain, LedgerError>>) {
        let (entries, waiting) = flume::bounded(RECORDS_WAITING_MAX);
        let state = Arc::new(State { stopped: AtomicBool::new(false), oldest_us: AtomicI64::new(NONE_US) });
        let task = tokio::spawn(run(store, chain, waiting, options, state.clone()));
        (Writer { entries, state }, task)
    }

    /// Whether it has stopped for good: nothing that is sent from now on is written.
    pub fn has_stopped(&self) -> bool {
        self.state.stopped.load(Ordering::Acquire) || self.entries.is_disconnected()
    }

    /// Sends a record, if there is room and somebody writes; otherwise it comes back.
    pub fn try_send(&self, entry: Entry) -> Result<(), Box<Entry>> {
        self.entries.try_send(entry).map_err(|error| Box::new(error.into_inner()))
    }

    /// Sends a record, and waits for room; nothing if nobody writes any more.
    pub async fn send(&self, entry: Entry) -> Option<()> {
        self.entries.send_async(entry).await.ok()
    }

    /// Sends a record, and waits for room on this thread, until `deadline`; false if there was none or nobody writes.
    pub fn send_before(&self, entry: Entry, deadline: std::time::Instant) -> bool {
        self.entries.send_deadline(entry, deadline).is_ok()
    }

    /// How many records wait.
    pub fn waiting(&self) -> usize {
        self.entries.len()
    }

    /// What looks at the line from elsewhere.
    pub fn watch(&self) -> LineWatch {
        LineWatch { entries: self.entries.downgrade(), state: self.state.clone() }
    }
}

/// What one transaction writes, and whom it is told.
#[derive(Default)]
struct Group {
    records: Vec<(i64, Record<'static>)>,
    reports: Vec<ReportOf>,
    done: Vec<Done>,
}

impl Group {
    fn push(&mut self, entry: Entry) {
        self.records.push((entry.at_us, entry.record));
        self.reports.extend(entry.grants);
        self.done.extend(entry.done);
    }
}

async fn run(
    store: Store,
    mut chain: Chain,
    waiting: flume::Receiver<Entry>,
    options: WriterOptions,
    state: Arc<State>,
) -> Result<Chain, LedgerError> {
    let mut book = Book::begun();
    let mut next = Instant::now();
    while let Ok(first) = waiting.recv_async().await {
        if waiting.len() < GROUP_LEN_MAX && Instant::now() < next {
            tokio::time::sleep_until(next).await;
        }
        let begun = Instant::now();
        let mut group = Group::default();
        state.oldest_us.store(first.at_us, Ordering::Release);
        group.push(first);
        waiting.try_iter().take(GROUP_LEN_MAX - 1).for_each(|entry| group.push(entry));
        let Group { records, reports, done } = group;
        next = if records.len() > FEW { begun + COMMIT_INTERVAL } else { begun };
        let end = commit_group(&store, &chain, &mut book, records, merged(reports)).await;
        // A sleep of nothing would last until the timer's next millisecond.
        if !options.commit_delay.is_zero() {
            tokio::time::sleep(options.commit_delay).await;
        }
        let written = end.is_ok();
        // Before anybody is told, so that nobody who was told so sends more.
        state.stopped.store(!written, Ordering::Release);
        if written {
            // What waits by now is taken in a moment.
            state.oldest_us.store(NONE_US, Ordering::Release);
        }
        done.into_iter().for_each(|done| done(written));
        match end {
            Ok(written) => chain = written,
            Err(error) => {
                let epoch = chain.epoch;
                tracing::error!(%error, epoch, "the ledger cannot be written, so nothing is acknowledged");
                // What still comes is not written either, and is told so.
                tokio::spawn(async move {
                    while let Ok(entry) = waiting.recv_async().await {
                        if let Some(done) = entry.done {
                            done(false);
                        }
                    }
                });
                return Err(error);
            }
        }
    }
    Ok(chain)
}

/// Reports are totals, so of one grant the largest says all; it ends when any says so.
fn merged(mut reports: Vec<ReportOf>) -> Vec<ReportOf> {
    reports.sort_unstable_by_key(|report| report.id);
    reports.dedup_by(|next, kept| {
        let same = next.id == kept.id;
        if same {
            kept.spent = kept.spent.max(next.spent);
            kept.expires_us = kept.expires_us.max(next.expires_us);
            kept.closes |= next.closes;
        }
        same
    });
    reports
}

/// Writes a group, with as many tries as it takes until a commit was sent.
async fn commit_group(
    store: &Store,
    from: &Chain,
    book: &mut Book,
    mut records: Vec<(i64, Record<'static>)>,
    reports: Vec<ReportOf>,
) -> Result<Chain, LedgerError> {
    let (mut pause, mut entered) = (PAUSE.0, None);
    loop {
        let mut chain = from.clone();
        let made: Vec<Made<'_>> = records.iter().map(|(at, record)| (chain.append(*at, record), record)).collect();
        let error = match write(store, &made, &reports, book, &mut entered).await {
            Ok(()) => return Ok(chain),
            Err(error) => error,
        };
        match error {
            LedgerError::Store(StoreError::CommitUnknown(what)) => match read_back(store, chain.epoch).await {
                Some(head) if head == chain => return Ok(chain),
                Some(head) if head == *from => tracing::warn!(what, "the store has undone a commit of the ledger's"),
                _ => return Err(StoreError::CommitUnknown(what).into()),
            },
            LedgerError::Store(StoreError::Unavailable(what) | StoreError::Retry(what)) => {
                tracing::warn!(what, "the ledger waits for its store");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
            LedgerError::Store(StoreError::Database(sqlx::Error::Database(said))) if said.is_unique_violation() => {
                let before = records.len();
                records = without_known(store, records).await?;
                if records.len() == before {
                    // It is the place in the chain that is taken: somebody else writes to this epoch.
                    return Err(StoreError::Database(sqlx::Error::Database(said)).into());
                }
            }
            other => return Err(other),
        }
    }
}

/// `entered` is the last row of this group that the book has: records are entered once, however often they are written.
async fn write(
    store: &Store,
    made: &[Made<'_>],
    reports: &[ReportOf],
    book: &mut Book,
    entered: &mut Option<Hash>,
) -> Result<(), LedgerError> {
    let mut tx = store.write().await?;
    // Grants first: whoever takes one locks its tenant, and no chain.
    if !reports.is_empty() {
        quota::report_in(&mut tx, reports).await?;
    }
    sql::insert(&mut tx, made).await?;
    let last = made.last().map(|(row, _)| row.hash);
    match *entered {
        None => {
            for (row, record) in made {
                let unsound =
                    |fault: Fault| LedgerError::Unsound { epoch: row.epoch, seq: row.seq, fault: Box::new(fault) };
                book.apply(row.at_us, record).map_err(unsound)?;
            }
            *entered = last;
        }
        Some(_) if *entered == last => {}
        Some(_) => return Err(StoreError::CommitUnknown("the group is another after it was undone".into()).into()),
    }
    Ok(tx.commit().await?)
}

/// Leaves out the bills that are there already. One that says something else is a fault of whoever made it.
async fn without_known(
    store: &Store,
    records: Vec<(i64, Record<'static>)>,
) -> Result<Vec<(i64, Record<'static>)>, LedgerError> {
    let mut tx = store.read().await?;
    let (mut seen, mut kept) = (BTreeMap::new(), Vec::with_capacity(records.len()));
    for (at_us, record) in records {
        let Record::Settle(settle) = &record else {
            kept.push((at_us, record));
            continue;
        };
        let id = (settle.tenant.as_ref().to_owned(), settle.request.as_ref().to_owned());
        let known = match seen.get(&id) {
            Some(known) => Some(known == settle),
            None => sql::settled(&mut tx, settle).await?,
        };
        match known {
            Some(true) => tracing::warn!(tenant = id.0, request = id.1, "a request was settled twice, the same"),
            Some(false) => return Err(LedgerError::SettledTwice { tenant: id.0, request: id.1 }),
            None => {
                seen.insert(id, settle.clone());
                kept.push((at_us, record));
            }
        }
    }
    Ok(kept)
}

/// Where the chain stands, once the transaction whose commit failed is over: it held the lock under which this looks.
async fn read_back(store: &Store, epoch: i64) -> Option<Chain> {
    if store.dialect() == crate::store::Dialect::Sqlite {
        // It is the disk that failed; what it says of itself is worth nothing until the file is opened anew.
        return None;
    }
    let mut pause = PAUSE.0;
    for _ in 0..READ_BACK_MAX {
        if let Ok(mut tx) = store.write().await
            && let Ok(head) = sql::head(&mut tx, epoch).await
        {
            return head;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_one_grant_are_merged_into_all_that_they_say() {
        let report = |id, spent, expires_us, closes| ReportOf { id, spent, expires_us, closes };
        let merged = merged(vec![report(2, 1, 1, false), report(1, 7, 20, true), report(1, 9, 10, false)]);
        assert_eq!(merged, [report(1, 9, 20, true), report(2, 1, 1, false)]);
    }
}
