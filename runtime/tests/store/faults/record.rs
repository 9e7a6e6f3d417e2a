//! Records a life of a store: the same program again, in processes of their own, with the shim in front of the C library.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use weir_runtime::store::{Store, StoreOptions};

use super::{
    disk::{Disk, Honesty},
    engine,
    log::{self, Call, What},
    told::Told,
    writer,
};

/// Where lines of what was told are written, below the folder.
pub(super) const TOLD: &str = "told";
/// The database, below the folder, in one that the store makes.
pub(super) const DATABASE: &str = "store/weir.db";
/// How a process ends that is cut off on purpose.
const CUT_OFF: i32 = 87;
/// Lives of a recording: all but the last are cut off in the midst, as by `kill -9`.
const LIVES: u64 = 3;
const CHILD: &str = "faults::record::a_life_that_is_recorded";

/// What works on the store while it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// An engine with clients.
    Engine,
    /// A writer, and grants, of which every nanosecond is known; and the log is moved into the file all the time.
    Writer,
}

impl Load {
    fn word(self) -> &'static str {
        match self {
            Load::Engine => "engine",
            Load::Writer => "writer",
        }
    }
}

/// What the disk was told, and what is behind it all.
pub(super) struct Recording {
    pub(super) load: Load,
    pub(super) calls: Vec<Call>,
}

/// Records a load.
pub(super) fn record(load: Load, seed: u64) -> Recording {
    let folder = tempfile::tempdir().unwrap();
    let shim = shim(folder.path());
    // The folder's true name, as the store will use it.
    let root = folder.path().canonicalize().unwrap().join("root");
    std::fs::create_dir(&root).unwrap();
    let log = folder.path().join("log");
    for life in 0..LIVES {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", CHILD, "--ignored", "--nocapture"]).stdin(Stdio::null());
        child.env("LD_PRELOAD", &shim).env("WEIR_DISK_ROOT", &root).env("WEIR_DISK_LOG", &log);
        child.env("WEIR_DISK_LIFE", format!("{} {life} {}", load.word(), seed + life));
        let ended = child.output().unwrap();
        let said = || String::from_utf8_lossy(&[ended.stdout.clone(), ended.stderr.clone()].concat()).into_owned();
        let wanted = if life + 1 < LIVES { CUT_OFF } else { 0 };
        assert_eq!(ended.status.code(), Some(wanted), "life {life} of {load:?}: {}\n{}", ended.status, said());
    }
    let calls = log::read(&log);
    is_complete(&calls, &root);
    Recording { load, calls }
}

/// The shim has seen everything: what it saw adds up to the files as they are, and there were syncs of both.
fn is_complete(calls: &[Call], root: &Path) {
    let mut disk = Disk::new(calls, Honesty::Honest);
    disk.go_to(calls.len());
    for (name, content) in disk.all() {
        let found = content.is_some().then(|| std::fs::read(root.join(&name)).unwrap());
        assert!(found == content, "{name} is not what was written down");
    }
    for name in [DATABASE, "store/weir.db-wal"] {
        let syncs = calls.iter().filter(|call| call.name == name && matches!(call.what, What::Synced(_))).count();
        assert!(syncs > 3, "{name} was synced {syncs} times");
    }
}

/// Compiles `shim.c`. A C compiler is what Weir itself is built with, so there is one.
fn shim(folder: &Path) -> PathBuf {
    let made = folder.join("shim.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/faults/shim.c");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = Command::new(&compiler);
    command.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&made).arg(&source).arg("-ldl");
    let done = command.output().unwrap_or_else(|error| panic!("{compiler} does not start: {error}"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    made
}

/// One life of a recording; what starts it says so in its environment.
#[test]
#[ignore = "it is started by the tests that record it"]
fn a_life_that_is_recorded() {
    let Ok(life) = std::env::var("WEIR_DISK_LIFE") else { return };
    let [load, number, seed] = life.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let (number, seed): (u64, u64) = (number.parse().unwrap(), seed.parse().unwrap());
    let is_last = number + 1 == LIVES;
    let root = PathBuf::from(std::env::var("WEIR_DISK_ROOT").unwrap());
    let told = std::fs::OpenOptions::new().append(true).create(true).open(root.join(TOLD)).unwrap();
    let told = Told::to(told);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let path = root.join(DATABASE);
        let store = Store::open(&format!("sqlite:{}", path.display()), &StoreOptions::default()).await.unwrap();
        match load {
            "engine" => engine::life(&store, &told, seed, is_last).await,
            _ => drop(writer::life(&store, &path, &told, seed, is_last).await),
        }
        if !is_last {
            // Nothing is finished, and nobody is told.
            std::process::exit(CUT_OFF);
        }
        store.close().await;
    });
}
