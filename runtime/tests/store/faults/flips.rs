//! Any byte of the ledger's pages is another: the next start says where, and nothing begins; or nothing that is read has changed,
//! for a page has bytes that are nobody's.

use sqlx::{Connection, Row as _, SqliteConnection};
use weir_runtime::{
    ledger,
    store::{Store, StoreOptions},
};

use super::{
    chance::Chance,
    check::Books,
    engine::make_tenants,
    proofs::{place, size},
    record::DATABASE,
    told::Told,
    writer,
};

const PAGE: u64 = 4096;
/// When files are started from: always the same, as a recovery's rows say how long nothing ran.
const LATER_US: i64 = 4_000_000_000_000_000;

/// The numbers of the pages that hold the ledger's rows.
async fn pages(url: &str) -> Vec<u64> {
    let mut beside = SqliteConnection::connect(url).await.unwrap();
    let rows = sqlx::query("SELECT pageno FROM dbstat WHERE name = 'ledger'").fetch_all(&mut beside).await.unwrap();
    let pages = rows.iter().map(|row| row.try_get::<i64, _>(0).unwrap() as u64).collect();
    let size: i64 = sqlx::query("PRAGMA page_size").fetch_one(&mut beside).await.unwrap().try_get(0).unwrap();
    assert_eq!(size as u64, PAGE);
    beside.close().await.unwrap();
    pages
}

/// What a start says of a file: the ledger's rows before the new epoch, or why there is none.
pub(super) async fn start(url: &str) -> Result<Books, String> {
    let options = StoreOptions { connections: 1, ..StoreOptions::default() };
    let store = Store::open(url, &options).await.map_err(|error| error.to_string())?;
    let begun = ledger::begin(&store, "one", LATER_US).await;
    let books = match begun {
        Ok((chain, _)) => Ok(Books::read(&store).await.before(chain.epoch)),
        Err(error) => Err(error.to_string()),
    };
    store.close().await;
    books
}

/// A database that a server has left, and its log.
pub(super) struct Left {
    pub(super) file: Vec<u8>,
    pub(super) log: Vec<u8>,
}

/// As after `kill -9`: two epochs, of which one was recovered, and commits that are in the log only.
pub(super) async fn killed() -> Left {
    let folder = place();
    let path = folder.path().join(DATABASE);
    let url = format!("sqlite:{}", path.display());
    let told = Told::to(std::io::sink());
    let store = Store::open(&url, &StoreOptions::default()).await.unwrap();
    for seed in [5, 6] {
        let left = writer::life(&store, &path, &told, seed, false).await.unwrap();
        left.await.unwrap().unwrap();
    }
    make_tenants(&store, &told, ["one", "two", "three", "four", "five"]).await;
    let [file, log] = ["", "-wal"].map(|suffix| std::fs::read(format!("{}{suffix}", path.display())).unwrap());
    store.close().await;
    Left { file, log }
}

mod proofs {
    use super::*;

    #[tokio::test]
    async fn a_flipped_byte_of_the_ledger_is_named_by_the_next_start() {
        let folder = place();
        let path = folder.path().join(DATABASE);
        let url = format!("sqlite:{}", path.display());
        let left = killed().await;
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &left.file).unwrap();
        std::fs::write(path.with_file_name("weir.db-wal"), &left.log).unwrap();
        start(&url).await.unwrap();
        let whole = std::fs::read(&path).unwrap();
        let pages = pages(&url).await;
        assert!(pages.len() > 8, "{pages:?}");
        let before = start(&url).await.unwrap();

        let (mut named, mut unread, mut vague) = (0, 0, Vec::new());
        let mut chance = Chance::new(3);
        for _ in 0..size(60, 5_000) {
            let at = (pages[chance.index(pages.len())] - 1) * PAGE + chance.below(PAGE);
            let mut changed = whole.clone();
            changed[at as usize] ^= 1 << chance.below(8);
            std::fs::write(&path, &changed).unwrap();
            match start(&url).await {
                Ok(books) if books.rows_of(&before) => unread += 1,
                Ok(_) => panic!("byte {at} was changed, a row with it, and nobody noticed"),
                Err(why) if why.contains("row ") && why.contains(" of epoch ") => named += 1,
                Err(why) => vague.push(format!("byte {at}: {why}")),
            }
        }
        let all = named + unread + vague.len();
        println!("figure=2.flips value={all} named={named} unread={unread} vague={}", vague.len());
        assert!(vague.is_empty(), "{} of them are not named: {:#?}", vague.len(), &vague[..vague.len().min(5)]);
        assert!(named > unread / 2, "{named} were named, {unread} changed nothing that is read");
    }
}
