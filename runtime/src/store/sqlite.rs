//! SQLite: one file, one process, one connection that writes, a few that read, and one that moves the log into the file.
//!
//! WAL with `synchronous = FULL`: a commit is on the disk when it returns. No memory map, so that a failing disk is an error and
//! not a signal. 3.51.3 is the first version without a defect in which a checkpoint loses committed pages.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{ErrorKind, Read, Seek, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use sqlx::{
    Row as _, SqlitePool,
    pool::PoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{
    Dialect, StoreOptions,
    checkpoints::{self, Checkpoints, Pace},
    error::StoreError,
    schema,
    tx::Tx,
    wal,
};

/// The first SQLite without the defect of its WAL.
const LEAST: ((u32, u32, u32), &str) = ((3, 51, 3), "3.51.3");
/// The file and what lies beside it are the server's only.
const MODE: u32 = 0o600;

/// An open file.
#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    beside: SqlitePool,
    checkpoints: Arc<Checkpoints>,
    owner: Arc<Owner>,
}

/// The exclusive lock on the file beside the database. The database file itself is never opened by us while SQLite has it:
/// closing any handle of it would drop SQLite's own locks (POSIX).
#[derive(Debug)]
struct Owner {
    _lock: File,
}

impl Owner {
    fn take(path: &Path) -> Result<Self, StoreError> {
        let beside = suffixed(path, ".lock");
        let fail = |source| StoreError::File { path: beside.clone(), source };
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(MODE).open(&beside);
        let mut file = open.map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut by = String::new();
                // Whoever has it may just be writing its name.
                let known = file.take(64).read_to_string(&mut by).is_ok() && !by.trim().is_empty();
                let by = if known { format!("process {}", by.trim()) } else { "another process".to_owned() };
                return Err(StoreError::Owned { path: path.to_owned(), by });
            }
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        file.set_len(0).map_err(fail)?;
        file.rewind().map_err(fail)?;
        writeln!(file, "{}", std::process::id()).map_err(fail)?;
        Ok(Owner { _lock: file })
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

impl Sqlite {
    pub(super) async fn open(path: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let path = whole(path)?;
        let owner = Owner::take(&path)?;
        private(&path)?;
        whole_log(&path)?;

        let common = SqliteConnectOptions::new()
            .filename(&path)
            .foreign_keys(true)
            .busy_timeout(options.patience)
            .synchronous(SqliteSynchronous::Full)
            .pragma("mmap_size", "0")
            .pragma("trusted_schema", "OFF");
        let pool = |connections: u32| {
            PoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(options.patience)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
        };
        let writer = common.clone().journal_mode(SqliteJournalMode::Wal).pragma("wal_autocheckpoint", "0");
        let writer: SqlitePool = pool(1).connect_with(writer).await?;
        check(&writer).await?;
        migrate(&writer, options).await?;
        let readers = pool(options.connections.max(1)).connect_with(common.clone().read_only(true)).await?;
        let beside = pool(1).connect_with(common).await?;
        // Opens its files now, so that a server's files do not become more as it runs.
        checkpoints::checkpoint(&beside).await?;
        let checkpoints = Arc::new(Checkpoints::start(writer.clone(), beside.clone(), Pace::USUAL));
        Ok(Sqlite { writer, readers, beside, checkpoints, owner: Arc::new(owner) })
    }

    pub(super) async fn read(&self) -> Result<Tx, StoreError> {
        Ok(Tx::sqlite(self.readers.begin().await?, None))
    }

    pub(super) async fn write(&self) -> Result<Tx, StoreError> {
        let tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Tx::sqlite(tx, Some(self.checkpoints.commits().clone())))
    }

    pub(super) async fn close(self) {
        drop(self.checkpoints);
        self.readers.close().await;
        self.beside.close().await;
        self.writer.close().await;
        drop(self.owner);
    }
}

/// The file's one name, so that a link to it cannot be opened a second time. Its folder is made when it is missing.
fn whole(path: &Path) -> Result<PathBuf, StoreError> {
    let fail = |source| StoreError::File { path: path.to_owned(), source };
    if let Ok(known) = path.canonicalize() {
        return Ok(known);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(fail)?;
    let Some(name) = path.file_name() else {
        return Err(fail(std::io::ErrorKind::InvalidInput.into()));
    };
    Ok(folder.canonicalize().map_err(fail)?.join(name))
}

/// Makes the file if there is none, before SQLite would with everybody's rights; what SQLite puts beside it has the same rights.
fn private(path: &Path) -> Result<(), StoreError> {
    let fail = |source| StoreError::File { path: path.to_owned(), source };
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(MODE).open(path);
    let file = open.map_err(fail)?;
    let rights = file.metadata().map_err(fail)?.permissions();
    if rights.mode() & 0o777 != MODE {
        file.set_permissions(std::fs::Permissions::from_mode(MODE)).map_err(fail)?;
    }
    if file.metadata().map_err(fail)?.len() == 0 { entered(path) } else { Ok(()) }
}

/// Syncs the folders above a new file. Each of them may be new as well, and a loss of power takes away what is not entered in its
/// folder, with everything that was synced inside. SQLite does so for the files that it makes, and for the one folder that they are in.
fn entered(path: &Path) -> Result<(), StoreError> {
    for folder in path.ancestors().skip(1) {
        match File::open(folder).and_then(|folder| folder.sync_all()) {
            Ok(()) => {}
            // Whoever may not read or change a folder has not made it; and some file systems have no such call.
            Err(error) if NO_FOLDER_SYNC.contains(&error.kind()) => {}
            Err(source) => return Err(StoreError::File { path: folder.to_owned(), source }),
        }
    }
    Ok(())
}

const NO_FOLDER_SYNC: [ErrorKind; 4] =
    [ErrorKind::PermissionDenied, ErrorKind::InvalidInput, ErrorKind::ReadOnlyFilesystem, ErrorKind::Unsupported];

/// SQLite's log of commits is not damaged in its midst, and is on the disk. Of a process that was killed, the last commit may be whole and
/// not synced: whoever reads it now may tell of it, so from here on it is to stay.
fn whole_log(path: &Path) -> Result<(), StoreError> {
    let log = suffixed(path, "-wal");
    let synced = || File::open(&log)?.sync_all();
    match wal::damage(&log, path) {
        Ok(Some(what)) => Err(StoreError::Damaged { path: log, what }),
        Ok(None) => match synced() {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(StoreError::File { path: log, source }),
            _ => Ok(()),
        },
        Err(source) => Err(StoreError::File { path: log, source }),
    }
}

/// What SQLite says of itself is what was asked for.
async fn check(writer: &SqlitePool) -> Result<(), StoreError> {
    let found: String = sqlx::query("SELECT sqlite_version()").fetch_one(writer).await?.try_get(0)?;
    check_version(&found)?;
    let mode: String = sqlx::query("PRAGMA journal_mode").fetch_one(writer).await?.try_get(0)?;
    if mode != "wal" {
        return Err(StoreError::Setting { setting: "journal_mode", found: mode, wanted: "wal" });
    }
    let synchronous: i64 = sqlx::query("PRAGMA synchronous").fetch_one(writer).await?.try_get(0)?;
    if synchronous != 2 {
        let found = synchronous.to_string();
        return Err(StoreError::Setting { setting: "synchronous", found, wanted: "2 (FULL)" });
    }
    let mmap: i64 = sqlx::query("PRAGMA mmap_size").fetch_one(writer).await?.try_get(0)?;
    if mmap != 0 {
        return Err(StoreError::Setting { setting: "mmap_size", found: mmap.to_string(), wanted: "0" });
    }
    let keys: i64 = sqlx::query("PRAGMA foreign_keys").fetch_one(writer).await?.try_get(0)?;
    if keys != 1 {
        return Err(StoreError::Setting { setting: "foreign_keys", found: keys.to_string(), wanted: "1" });
    }
    Ok(())
}

fn check_version(found: &str) -> Result<(), StoreError> {
    let mut parts = found.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let version = (next(), next(), next());
    if version < LEAST.0 {
        return Err(StoreError::SqliteTooOld { found: found.to_owned(), least: LEAST.1 });
    }
    Ok(())
}

async fn migrate(writer: &SqlitePool, options: &StoreOptions) -> Result<(), StoreError> {
    let there = "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'";
    let there: i64 = sqlx::query(there).fetch_one(writer).await?.try_get(0)?;
    let found = match there {
        0 => 0,
        _ => sqlx::query(schema::VERSION_SQL).fetch_one(writer).await?.try_get(0)?,
    };
    schema::check_known(found)?;
    if options.migrate {
        schema::migrator(Dialect::Sqlite).run(writer).await?;
    } else if found < schema::KNOWN {
        let why = "migrations are turned off".to_owned();
        return Err(StoreError::SchemaOlder { found, known: schema::KNOWN, why });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sqlite_with_the_defect_is_refused() {
        for old in ["3.51.2", "3.50.9", "2.99.99", "nonsense"] {
            assert!(matches!(check_version(old), Err(StoreError::SqliteTooOld { .. })), "{old}");
        }
        for new in ["3.51.3", "3.52.0", "3.53.4", "4.0.0"] {
            assert!(check_version(new).is_ok(), "{new}");
        }
    }
}
