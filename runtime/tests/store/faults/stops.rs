//! PostgreSQL is stopped in its immediate mode (`pg_ctl stop -m immediate`: no checkpoint, no last word to anybody) while two replicas
//! serve, and started again. A replica goes on if it can say how its last commit went, and is started anew if not.

use std::{
    io,
    sync::{Arc, Mutex},
};

use weir_runtime::{
    ledger,
    store::{Store, StoreOptions},
};

use super::{
    chance::Chance,
    check::{Books, Wrong},
    engine::{Replica, TENANTS, make_tenants},
    proofs::size,
    told::{Told, Truth, now_us},
};
use crate::postgres::Postgres;

const NAMES: [&str; 2] = ["one", "two"];

/// Lines that were told, in this process, which nobody stops.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn truth(&self) -> Truth {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        Truth { now_us: now_us(), ..Truth::of(&text) }
    }
}

impl io::Write for Lines {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is there is held against what had been told before it was read.
async fn check(store: &Store, lines: &Lines) -> (Vec<Wrong>, usize) {
    let told = lines.truth();
    let books = Books::read(store).await;
    let truth = lines.truth().told_by(&told);
    (books.against(&truth, false), truth.acknowledged())
}

mod proofs {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_immediate_stop_takes_nothing_that_was_told() {
        let stops = size(3, 50);
        let mut server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
        let url = server.url("postgres", "postgres");
        let options = StoreOptions::default();
        let mut stores = Vec::new();
        for _ in NAMES {
            stores.push(Store::open(&url, &options).await.unwrap());
        }
        let (lines, mut chance) = (Lines::default(), Chance::new(2));
        let told = Told::to(lines.clone());
        make_tenants(&stores[0], &told, TENANTS).await;
        let mut replicas = Vec::new();
        for (store, name) in stores.iter().zip(NAMES) {
            replicas.push(Replica::start(store, name, &told, 1).await);
        }
        let (mut wrong, mut anew) = (Vec::new(), 0);
        for stop in 0..stops {
            for replica in &mut replicas {
                replica.answered(10 + chance.below(60)).await;
            }
            server = tokio::task::spawn_blocking(move || {
                server.crash();
                server
            })
            .await
            .unwrap();
            for at in 0..replicas.len() {
                replicas[at].answered(1).await;
                if replicas[at].is_dead() {
                    anew += 1;
                    let next = Replica::start(&stores[at], NAMES[at], &told, 2 + stop as u64).await;
                    std::mem::replace(&mut replicas[at], next).end().await;
                }
            }
            wrong.extend(check(&stores[0], &lines).await.0);
        }
        for replica in replicas {
            replica.end().await;
        }
        let (found, acknowledged) = check(&stores[0], &lines).await;
        wrong.extend(found);
        // Whatever was left is recovered by the next starts, and by those after them nothing.
        let mut before = None;
        for _ in 0..2 {
            let mut first = i64::MAX;
            for name in NAMES {
                let (chain, _) = ledger::begin(&stores[0], name, now_us()).await.unwrap();
                first = first.min(chain.epoch);
                ledger::close(&stores[0], chain.epoch, now_us()).await.unwrap();
            }
            ledger::verify_store(&stores[0], None).await.unwrap();
            let books = Books::read(&stores[0]).await;
            wrong.extend(books.against(&lines.truth(), false));
            if let Some((epoch, before)) = before.replace((first, books.clone())) {
                assert_eq!(books.before(epoch), before.before(epoch), "a second recovery changed something");
            }
        }
        let count = |of: fn(&Wrong) -> bool| wrong.iter().filter(|wrong| of(wrong)).count();
        println!("figure=2.pg_stops value={stops} acknowledged={acknowledged} replicas_anew={anew}");
        println!(
            "figure=2.pg_lost value={} twice={} wrong={}",
            count(|wrong| matches!(wrong, Wrong::Lost(_))),
            count(|wrong| matches!(wrong, Wrong::Twice(_))),
            count(|wrong| matches!(wrong, Wrong::Else(_)))
        );
        assert!(wrong.is_empty(), "{:?}", &wrong[..wrong.len().min(5)]);
        assert!(acknowledged > 20 * stops, "{acknowledged}");
        for store in stores {
            store.close().await;
        }
    }
}
