//! Group commit: one task takes all records that wait, writes them in one transaction, and only then says so.
//!
//! The engine sends records in order and never waits; a record's `done` runs when the commit that holds it has reached
//! the disk, and only then may the request's terminal event go. While a group is being committed the next one
//! gathers, so a slow disk makes groups longer and not the line. The rows of a chain are made here, in the order of
//! the channel.
//!
//! *When the store fails.* What failed before the commit was sent has not happened, and is tried again while the line
//! waits. A failed commit is never tried again: of a disk, the next sync may claim success for pages that are gone;
//! of a connection, nobody knows. So its outcome is read back by the last row of the group, under the lock that the
//! transaction held; if that row is there the group is committed, and if not, or if nobody answers, the writer stops
//! for good and every `done` from there on says so. The next start recovers.

use std::time::Duration;

use super::{
    error::LedgerError,
    record::Record,
    row::Chain,
    sql::{self, Made},
};
use crate::{
    quota::{self, ReportOf},
    store::{Store, StoreError},
};

/// Records that may wait for the writer. At 20,000 a second, the backlog of 0.4 s.
pub const RECORDS_WAITING_MAX: usize = 8192;
/// Records of one transaction at most: some milliseconds of work, so that nobody waits long behind a full one.
pub const GROUP_LEN_MAX: usize = 512;
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
}

impl Writer {
    /// Starts the task, which writes on after `chain`; what it returns is how it ended.
    pub fn start(
        store: Store,
        chain: Chain,
        options: WriterOptions,
    ) -> (Writer, tokio::task::JoinHandle<Result<Chain, LedgerError>>) {
        let (entries, waiting) = flume::bounded(RECORDS_WAITING_MAX);
        (Writer { entries }, tokio::spawn(run(store, chain, waiting, options)))
    }

    /// Sends a record, if there is room and somebody writes; otherwise it comes back.
    pub fn try_send(&self, entry: Entry) -> Result<(), Box<Entry>> {
        self.entries.try_send(entry).map_err(|error| Box::new(error.into_inner()))
    }

    /// Sends a record, and waits for room; nothing if nobody writes any more.
    pub async fn send(&self, entry: Entry) -> Option<()> {
        self.entries.send_async(entry).await.ok()
    }

    /// How many records wait.
    pub fn waiting(&self) -> usize {
        self.entries.len()
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
) -> Result<Chain, LedgerError> {
    while let Ok(first) = waiting.recv_async().await {
        let mut group = Group::default();
        group.push(first);
        waiting.try_iter().take(GROUP_LEN_MAX - 1).for_each(|entry| group.push(entry));
        let Group { records, reports, done } = group;
        let end = commit_group(&store, &chain, &records, reports).await;
        tokio::time::sleep(options.commit_delay).await;
        let written = end.is_ok();
        done.into_iter().for_each(|done| done(written));
        match end {
            Ok(next) => chain = next,
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

/// Writes a group, with as many tries as it takes until a commit was sent.
async fn commit_group(
    store: &Store,
    from: &Chain,
    records: &[(i64, Record<'static>)],
    mut reports: Vec<ReportOf>,
) -> Result<Chain, LedgerError> {
    let mut chain = from.clone();
    let made: Vec<Made<'_>> = records.iter().map(|(at, record)| (chain.append(*at, record), record)).collect();
    // Reports are totals, so of one grant the largest says all.
    reports.sort_unstable_by_key(|report| (report.id, std::cmp::Reverse(report.spent)));
    reports.dedup_by_key(|report| report.id);
    let mut pause = PAUSE.0;
    loop {
        let error = match write(store, &made, &reports).await {
            Ok(()) => return Ok(chain),
            Err(error) => error,
        };
        match error {
            LedgerError::Store(StoreError::CommitUnknown(what)) => {
                return match read_back(store, &chain).await {
                    true => Ok(chain),
                    false => Err(StoreError::CommitUnknown(what).into()),
                };
            }
            LedgerError::Store(StoreError::Unavailable(what) | StoreError::Retry(what)) => {
                tracing::warn!(what, "the ledger waits for its store");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
            other => return Err(other),
        }
    }
}

async fn write(store: &Store, made: &[Made<'_>], reports: &[ReportOf]) -> Result<(), LedgerError> {
    let mut tx = store.write().await?;
    // Grants first: whoever takes one locks its tenant, and no chain.
    if !reports.is_empty() {
        quota::report_in(&mut tx, reports).await?;
    }
    sql::insert(&mut tx, made).await?;
    Ok(tx.commit().await?)
}

/// Whether the chain's last row is there after all.
async fn read_back(store: &Store, chain: &Chain) -> bool {
    if store.dialect() == crate::store::Dialect::Sqlite {
        // It is the disk that failed; what it says of itself is worth nothing until the file is opened anew.
        return false;
    }
    let mut pause = PAUSE.0;
    for _ in 0..READ_BACK_MAX {
        if let Ok(mut tx) = store.write().await
            && let Ok(head) = sql::head(&mut tx, chain.epoch).await
        {
            return head.as_ref() == Some(chain);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
    false
}
