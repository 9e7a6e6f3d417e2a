//! Moves committed pages from SQLite's log into the database, beside the commits and not within them.
//!
//! SQLite by itself does it inside the commit that finds a thousand pages in the log: that one commit writes them all and waits for
//! another sync, and so does everybody in line behind it. Here a task is told of commits and does it on a connection of its
//! own, which holds nobody up (`PASSIVE`). Nothing changes for what is durable: a commit is in the log, synced, before it returns.
//!
//! The log begins anew once all of it was moved and nobody has written meanwhile, which under load never comes about by chance. So a log that
//! has become long is moved while the one connection that writes is held: what is left of it then is what came during the
//! last pass, and whoever waits for that connection waits in line for it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use sqlx::{Row as _, SqlitePool};
use tokio::{sync::Notify, task::JoinHandle};

/// When the log is moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// After so many commits. A commit takes some ten pages of 4 KiB, one of many rows some hundred.
    pub(super) commits: u32,
    /// With so many pages in the log it is to begin anew.
    pub(super) pages: i64,
}

impl Pace {
    /// As servers do: the log stays at some 32 MiB where nobody reads for long.
    pub(super) const USUAL: Pace = Pace { commits: 64, pages: 8192 };
}

/// Counts commits for the task that moves the log.
#[derive(Debug)]
pub(super) struct Commits {
    since: AtomicU32,
    due_after: u32,
    due: Notify,
}

impl Commits {
    /// There was one.
    pub(super) fn count(&self) {
        if self.since.fetch_add(1, Ordering::Relaxed) + 1 == self.due_after {
            self.due.notify_one();
        }
    }
}

/// The task; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Checkpoints {
    commits: Arc<Commits>,
    task: JoinHandle<()>,
}

impl Checkpoints {
    /// Starts it, with the connection that writes and one for itself.
    pub(super) fn start(writer: SqlitePool, beside: SqlitePool, pace: Pace) -> Checkpoints {
        let commits = Arc::new(Commits { since: AtomicU32::new(0), due_after: pace.commits, due: Notify::new() });
        let task = tokio::spawn(run(commits.clone(), writer, beside, pace.pages));
        Checkpoints { commits, task }
    }

    /// Where commits are counted.
    pub(super) fn commits(&self) -> &Arc<Commits> {
        &self.commits
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(commits: Arc<Commits>, writer: SqlitePool, beside: SqlitePool, pages_max: i64) {
    loop {
        commits.due.notified().await;
        // What is committed from here on counts for the next time.
        commits.since.store(0, Ordering::Relaxed);
        let done = async {
            match checkpoint(&beside).await? {
                pages if pages >= pages_max => checkpoint(&writer).await,
                pages => Ok(pages),
            }
        };
        if let Err(error) = done.await {
            // The log grows until it works again; commits say what is wrong with the disk.
            tracing::warn!(%error, "the store's log could not be moved into the database");
        }
    }
}

/// Moves what can be moved without waiting for anybody; how many pages the log has.
pub(super) async fn checkpoint(through: &SqlitePool) -> Result<i64, sqlx::Error> {
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(through).await?.try_get(1)
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

    use super::*;

    const PAGE_BYTES: u64 = 4096;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_log_stays_short_while_somebody_writes_without_a_pause() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("t.db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("synchronous", "OFF")
            .pragma("wal_autocheckpoint", "0");
        let pool = || SqlitePoolOptions::new().max_connections(1);
        let writer = pool().connect_with(options.clone()).await.expect("opens");
        sqlx::query("CREATE TABLE t (n INTEGER PRIMARY KEY, b BLOB)").execute(&writer).await.expect("a table");
        let beside = pool().connect_lazy_with(options);
        let pace = Pace { commits: 8, pages: 64 };
        let checkpoints = Checkpoints::start(writer.clone(), beside.clone(), pace);
        for _ in 0..2000 {
            sqlx::query("INSERT INTO t (b) VALUES (zeroblob(8192))").execute(&writer).await.expect("written");
            checkpoints.commits().count();
        }
        let log = std::fs::metadata(folder.path().join("t.db-wal")).expect("a log").len();
        let written: i64 = sqlx::query("SELECT SUM(length(b)) FROM t").fetch_one(&writer).await.expect("read").get(0);
        assert!(log < written as u64 / 4, "{} pages of log for {written} bytes", log / PAGE_BYTES);
        drop(checkpoints);
        beside.close().await;
        writer.close().await;
    }
}
