//! Figure 2 of tenants and the ledger, below the process: 10,000 losses of power, fewer in `make test`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    thread,
};

use sqlx::{Connection, Row as _, SqliteConnection};
use weir_runtime::{
    ledger,
    store::{Store, StoreOptions},
};

use super::{
    chance::Chance,
    check::{Books, Wrong},
    disk::{Disk, Honesty, Image},
    log::What,
    record::{DATABASE, Load, Recording, TOLD, record},
    told::{Truth, now_us},
};

/// How much of a proof is done: enough to fail when it is broken, or all that its figure speaks of.
pub(super) fn size(small: usize, full: usize) -> usize {
    if std::env::var("WEIR_PROOFS").is_ok_and(|size| size == "full") { full } else { small }
}

/// What crashes came to.
#[derive(Debug, Default)]
struct Tally {
    crashes: u64,
    /// Crashes that left nothing at all of the store.
    empty: u64,
    acknowledged: u64,
    bills: u64,
    lost: u64,
    twice: u64,
    other: u64,
    /// The first crash that left something wrong, in words.
    first: Option<String>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.crashes += other.crashes;
        self.empty += other.empty;
        self.acknowledged += other.acknowledged;
        self.bills += other.bills;
        self.lost += other.lost;
        self.twice += other.twice;
        self.other += other.other;
        self.first = self.first.take().or(other.first);
    }

    fn wrong(&self) -> u64 {
        self.lost + self.twice + self.other
    }
}

/// What is believed of the disk and of what clients are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belief {
    /// What is so.
    True,
    /// That syncs may be left out.
    NoSync,
    /// That clients may be told before the commit.
    TooEarly,
}

/// Loses power so many times in a recording, and recovers from each.
fn crashes(recording: &Recording, seeds: &[u64], belief: Belief) -> Tally {
    let mut at: Vec<(usize, u64)> = seeds.iter().map(|seed| (moment(recording, *seed), *seed)).collect();
    at.sort_unstable();
    let workers = thread::available_parallelism().map_or(1, |count| count.get()).min(size(2, 8));
    let chunk = at.len().div_ceil(workers).max(1);
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let parts = at.chunks(chunk).map(|part| scope.spawn(move || crash_in_order(recording, part, belief)));
        let parts: Vec<_> = parts.collect();
        parts.into_iter().for_each(|part| tally.add(part.join().unwrap()));
    });
    tally
}

/// When the power fails: at any call, and half of the time about where a sync has returned, when something is told.
fn moment(recording: &Recording, seed: u64) -> usize {
    let calls = &recording.calls;
    let mut chance = Chance::new(seed);
    let any = chance.index(calls.len() + 1);
    if chance.once_in(2) {
        return any;
    }
    let near = calls[..any].iter().rposition(|call| matches!(call.what, What::Synced(_))).unwrap_or(0);
    (near + chance.index(4)).min(calls.len())
}

fn crash_in_order(recording: &Recording, crashes: &[(usize, u64)], belief: Belief) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let honesty = if belief == Belief::NoSync { Honesty::Lies } else { Honesty::Honest };
    let mut disk = Disk::new(&recording.calls, honesty);
    let mut tally = Tally::default();
    for &(at, seed) in crashes {
        disk.go_to(at);
        let truth = Truth::until(&recording.calls, at, TOLD);
        let truth = if belief == Belief::TooEarly { truth.too_early() } else { truth };
        let image = disk.crash(&mut Chance::new(!seed));
        let folder = place();
        put(&image, folder.path());
        let exact = recording.load == Load::Writer;
        let (wrong, bills) = match runtime.block_on(recover(&folder.path().join(DATABASE), &truth, exact)) {
            Ok(found) => found,
            Err(error) => (vec![Wrong::Else(error)], 0),
        };
        tally.crashes += 1;
        tally.empty += u64::from(!image.contains_key(DATABASE));
        tally.acknowledged += truth.acknowledged() as u64;
        tally.bills += bills as u64;
        let count = |of: fn(&Wrong) -> bool| wrong.iter().filter(|wrong| of(wrong)).count() as u64;
        tally.lost += count(|wrong| matches!(wrong, Wrong::Lost(_)));
        tally.twice += count(|wrong| matches!(wrong, Wrong::Twice(_)));
        tally.other += count(|wrong| matches!(wrong, Wrong::Else(_)));
        if !wrong.is_empty() && tally.first.is_none() {
            let load = recording.load;
            let shown = &wrong[..wrong.len().min(3)];
            let mut why = format!("{load:?}, call {at} of {}, seed {seed}: {shown:?}", recording.calls.len());
            if belief == Belief::True {
                // Of what no other run makes again, the evidence stays.
                let kept = std::env::temp_dir().join(format!("weir-crash-{}-{seed}", std::process::id()));
                std::fs::create_dir_all(&kept).unwrap();
                put(&image, &kept);
                why += &format!("; the disk is in {}", kept.display());
            }
            tally.first = Some(why);
        }
    }
    tally
}

/// Where crashed disks lie: in memory, where there is such a place, since none of them is to outlive anything.
pub(super) fn place() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("weir-disk-");
    builder.tempdir_in(memory).or_else(|_| builder.tempdir()).unwrap()
}

fn put(image: &Image, folder: &Path) {
    for (name, content) in image {
        match content {
            None => std::fs::create_dir_all(folder.join(name)).unwrap(),
            Some(content) => std::fs::write(folder.join(name), content).unwrap(),
        }
    }
}

/// Opens what a crash left as a start does, twice, and says what is wrong with it, and how many bills there are.
async fn recover(path: &Path, truth: &Truth, exact: bool) -> Result<(Vec<Wrong>, usize), String> {
    let words = |what: &'static str| move |error: &dyn std::fmt::Display| format!("{what}: {error}");
    let url = format!("sqlite:{}", path.display());
    let options = StoreOptions { connections: 1, ..StoreOptions::default() };
    let opened = async || Store::open(&url, &options).await.map_err(|error| words("it does not open")(&error));
    let begun = async |store: &Store| {
        ledger::begin(store, "one", now_us()).await.map_err(|error| words("nothing begins")(&error))
    };

    let store = opened().await?;
    let (chain, _) = begun(&store).await?;
    let first = chain.epoch;
    let verified = ledger::verify_store(&store, None).await.map_err(|error| words("it is not whole")(&error))?;
    store.audit_verify().await.unwrap().map_err(|fault| format!("the audit log: {fault:?}"))?;
    let books = Books::read(&store).await;
    let mut wrong = books.against(truth, exact);
    if books.open() != [first] || verified.requests != books.bills() as u64 {
        wrong.push(Wrong::Else(format!("{:?} are open, {} bills were verified", books.open(), verified.requests)));
    }
    store.close().await;

    let store = opened().await?;
    let (chain, recovered) = begun(&store).await?;
    let again = Books::read(&store).await;
    if recovered != [first] || again.before(first) != books.clone().before(first) {
        wrong.push(Wrong::Else(format!("a second recovery changed something: {recovered:?}, {}", chain.epoch)));
    }
    store.close().await;
    let mut beside = SqliteConnection::connect(&url).await.unwrap();
    for sql in ["PRAGMA integrity_check", "PRAGMA foreign_key_check"] {
        let rows = sqlx::query(sql).fetch_all(&mut beside).await.map_err(|error| words(sql)(&error))?;
        let said: Vec<String> = rows.iter().map(|row| row.try_get(0).unwrap()).collect();
        if !said.is_empty() && said != ["ok"] {
            wrong.push(Wrong::Else(format!("{sql}: {said:?}")));
        }
    }
    beside.close().await.unwrap();
    Ok((wrong, books.bills()))
}

/// Recordings of both loads, made at the same time.
fn recordings() -> Vec<Recording> {
    let each = size(1, 3) as u64;
    let loads = (0..each).flat_map(|number| [(Load::Engine, number), (Load::Writer, number)]);
    thread::scope(|scope| {
        let made: Vec<_> = loads.map(|(load, number)| scope.spawn(move || record(load, 10 * number))).collect();
        made.into_iter().map(|made| made.join().unwrap()).collect()
    })
}

/// Un-synced writes are dropped, torn and reordered: no bill that a client was told of is lost, and all adds up. And the same check
/// finds what is lost where syncs do nothing, and where clients are told too early.
#[test]
fn a_loss_of_power_takes_nothing_that_was_told() {
    let recordings = recordings();
    let seeds: Vec<u64> = (0..size(240, 10_000) as u64).collect();
    let crashed = |belief: Belief, seeds: &[u64], of: &[&Recording]| {
        let mut tally = Tally::default();
        for (number, recording) in of.iter().enumerate() {
            let seeds: Vec<u64> = seeds.iter().copied().filter(|seed| *seed as usize % of.len() == number).collect();
            tally.add(crashes(recording, &seeds, belief));
        }
        tally
    };
    let all: Vec<&Recording> = recordings.iter().collect();
    let exact: Vec<&Recording> = all.iter().copied().filter(|recording| recording.load == Load::Writer).collect();
    let few = &seeds[..size(30, 300)];
    let (lies, early) = (crashed(Belief::NoSync, few, &all), crashed(Belief::TooEarly, few, &exact));
    let honest = crashed(Belief::True, &seeds, &all);
    let calls: BTreeMap<&str, usize> = recordings.iter().fold(BTreeMap::new(), |mut sums, recording| {
        *sums.entry("calls").or_default() += recording.calls.len();
        let syncs = recording.calls.iter().filter(|call| matches!(call.what, What::Synced(_)));
        *sums.entry("syncs").or_default() += syncs.count();
        sums
    });
    println!(
        "figure=2.disk_seeds value={} recordings={} calls={} syncs={} acknowledged={} bills={} empty={}",
        honest.crashes,
        recordings.len(),
        calls["calls"],
        calls["syncs"],
        honest.acknowledged,
        honest.bills,
        honest.empty
    );
    println!("figure=2.disk_lost value={} twice={} wrong={}", honest.lost, honest.twice, honest.other);
    for (name, found) in [("no_sync", &lies), ("too_early", &early)] {
        println!("figure=2.disk_control_{name} value={} of={} wrong={}", found.lost, found.crashes, found.wrong());
        assert!(found.lost > 0, "the check finds nothing where something is lost ({name}): {found:?}");
    }
    assert_eq!(honest.wrong(), 0, "{honest:?}");
    assert!(honest.acknowledged > honest.crashes, "{honest:?}");
}
