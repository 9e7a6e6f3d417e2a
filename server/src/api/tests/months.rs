//! Months of the ledger, closed and archived at the operators' listener and by `weir ledger`.

use std::{fs, net::SocketAddr, path::Path};

use tokio::{net::TcpListener, sync::watch};
use weir_runtime::{
    ledger::{self, Entry, Record, Settle, Share, Writer, WriterOptions},
    quota::calendar::{self, Period},
};

use super::{kept::rig, *};
use crate::{
    cli,
    http::{self, Phase},
    identity::{Now, Peers},
};

const BILLS: i64 = 2_100;

/// What another server has billed in a month that is over, and where it stopped.
async fn with_bills(store: &Store, at_us: i64) {
    let (chain, _) = ledger::begin(store, "other", at_us).await.expect("begun");
    let (writer, task) = Writer::start(store.clone(), chain, WriterOptions::default());
    for number in 0..BILLS {
        let record = Record::Settle(Settle {
            tenant: "a".into(),
            request: format!("old-{number}").into(),
            model: "m".into(),
            key: "k".into(),
            plan: "own".into(),
            split: vec![Share { device: "d".into(), class: "cpu".into(), ns: 5 }],
            prompt_tokens: 1,
            completion_tokens: 2,
            stop: "stop".into(),
            name: "".into(),
        });
        writer.send(Entry { at_us, record, grants: Vec::new(), done: None }).await.expect("a writer");
    }
    drop(writer);
    task.await.expect("no panic").expect("written");
}

/// `weir ledger` with these words, against a server; what it refuses with, or nothing.
async fn weir(address: SocketAddr, key_file: &Path, words: &[&str]) -> String {
    let mut all: Vec<String> = ["weir", "ledger"].iter().chain(words).map(|word| (*word).to_owned()).collect();
    all.extend(["--url".into(), format!("http://{address}"), "--key-file".into(), key_file.display().to_string()]);
    let ran = tokio::task::spawn_blocking(move || cli::run_words(&all)).await.expect("no panic");
    ran.map_or_else(|error| format!("{error:#}"), |()| String::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_is_closed_billed_exported_and_archived() {
    let rig = rig().await;
    let month_us = Period::Month.before(Period::Month.before(Period::Month.begin(Now::read().unix_us)));
    let (month, next) = (calendar::month_name(month_us), calendar::month_name(Period::Month.end(month_us)));
    with_bills(rig.store(), month_us + 5).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (_phase, phases) = watch::channel(Phase::Serving);
    tokio::spawn(http::serve(listener, rig.admin.clone(), None, Peers::All, Connections::new(8), phases));
    let key_file = rig.folder.path().join("operator");
    let weir = |words: Vec<String>| {
        let key_file = key_file.clone();
        async move { weir(address, &key_file, &words.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    macro_rules! weir {
        ($($word:expr),*) => { weir(vec![$($word.to_string()),*]).await };
    }

    // One after the other, and none that goes on.
    let bill = rig.operate(Method::GET, &format!("/admin/v1/invoices/a/{month}"), "").await.json();
    assert_eq!(bill["closed"], json!(false), "it waits for the statement");
    assert!(weir!("close", next).contains(&format!("next month to be closed is {month}")));
    let now = calendar::month_name(Now::read().unix_us);
    for (path, status) in [
        (format!("months/{now}/close"), 409),
        ("months/2026-13/close".to_owned(), 400),
        (format!("months/{month}/archive"), 400),
    ] {
        let answer = rig.operate(Method::POST, &format!("/admin/v1/ledger/{path}"), "").await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
    }
    assert_eq!(rig.operate(Method::GET, &format!("/admin/v1/ledger/months/{month}"), "").await.status, 404);
    for _ in 0..2 {
        assert_eq!(weir!("close", month), "");
    }
    let list = rig.operate(Method::GET, "/admin/v1/ledger/months", "").await.json();
    let closed = &list["data"][0];
    assert_eq!(
        (&closed["month"], &closed["requests"], &closed["device_ns"]),
        (&json!(month), &json!(BILLS), &json!(5 * BILLS))
    );
    assert_eq!((&closed["signer"], &closed["unequal_invoices"]), (&list["key"], &json!([])));
    let bill = rig.operate(Method::GET, &format!("/admin/v1/invoices/a/{month}"), "").await.json();
    assert_eq!((&bill["closed"], &bill["requests"]), (&json!(true), &json!(BILLS)));
    let audit = rig.operate(Method::GET, "/admin/v1/audit", "").await.json();
    let rows = audit["data"].as_array().expect("rows").iter();
    assert_eq!(rows.filter(|row| row["action"] == "ledger.close" && row["target"] == json!(month)).count(), 1);

    let signer = closed["signer"].as_str().expect("a key");
    assert_eq!((weir!("verify"), weir!("verify", "--key", signer), weir!("months")), Default::default());
    assert!(weir!("verify", "--key", "00".repeat(32)).contains("none of the keys"));
    assert_eq!(weir!("statement", month), "");

    // Exported, checked and removed; again, nothing is left to do.
    let file = rig.folder.path().join("month.ndjson");
    for _ in 0..2 {
        assert_eq!(weir!("archive", month, "--into", file.display(), "--key", signer), "");
        assert_eq!(weir!("check", file.display(), "--key", signer), "");
    }
    let lines = fs::read_to_string(&file).expect("a file");
    assert!(lines.ends_with(&format!("{{\"object\":\"end\",\"rows\":{}}}\n", BILLS + 1)), "the bills, and what opened");
    assert!(!file.with_file_name("month.ndjson.partial").exists());
    let gone = rig.operate(Method::GET, &format!("/admin/v1/ledger/months/{month}/rows"), "").await;
    assert_eq!((gone.status.as_u16(), gone.json()["error"]["code"].clone()), (409, json!("month_archived")));
    assert_eq!(rig.store().bills_of("a", "old-1").await.expect("read"), None);
    assert_eq!(weir!("verify", "--key", signer), "");
    let again = rig.operate(Method::GET, &format!("/admin/v1/invoices/a/{month}"), "").await.json();
    assert_eq!(again, bill);

    // A file that is not what it says is no proof.
    fs::write(&file, lines.replace("old-7\"", "old-8\"")).expect("written");
    assert!(weir!("check", file.display()).contains("row 9 of epoch"), "{}", weir!("check", file.display()));
    assert!(weir!("archive", month, "--into", file.display()).contains("row 9 of epoch"));
    fs::remove_file(&file).expect("removed");
    assert!(weir!("archive", month, "--into", file.display()).contains("is archived"));
    assert!(!file.exists());
}
