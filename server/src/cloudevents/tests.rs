//! A NATS server of a few lines, which speaks the real protocol, and a store to tell of.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use weir_runtime::{
    quota::{Passed, Period, Unit},
    store::{Actor, NewTenant, Status, StoreOptions, TenantSettings, Value as Bound},
};

use super::*;

/// What it heard: subject, headers and payload of a message, or the options of a client that connects.
#[derive(Debug)]
enum Heard {
    Connect(Value),
    Message(String, String, Value),
}

/// Serves one connection. Of `pongs` it gives so many, and hangs up instead of the next.
async fn serve(stream: TcpStream, headers: bool, mut pongs: usize, heard: mpsc::UnboundedSender<Heard>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let info = json!({"server_id": "x", "version": "2.10.0", "proto": 1, "headers": headers, "max_payload": 1 << 20});
    writer.write_all(format!("INFO {info} \r\n").as_bytes()).await.expect("written");
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let words: Vec<&str> = line.trim_end().splitn(2, ' ').collect();
        match words[0] {
            "CONNECT" => {
                let said = serde_json::from_str(words[1]).expect("options");
                heard.send(Heard::Connect(said)).expect("heard");
            }
            "PING" if pongs == 0 => return,
            "PING" => {
                pongs -= 1;
                // A server may ask, too, and tell of its cluster, at any time.
                writer.write_all(b"PING\r\nINFO {}\r\nPONG\r\n").await.expect("written");
                let mut pong = String::new();
                // What it asked is answered before anything else comes.
                reader.read_line(&mut pong).await.expect("read");
                assert_eq!(pong, "PONG\r\n");
            }
            verb @ ("PUB" | "HPUB") => {
                assert_eq!(verb == "HPUB", headers);
                let words: Vec<&str> = words[1].split(' ').collect();
                let head: usize = if headers { words[1].parse().expect("a length") } else { 0 };
                let all: usize = words[words.len() - 1].parse().expect("a length");
                let mut bytes = vec![0; all + 2];
                reader.read_exact(&mut bytes).await.expect("a payload");
                assert_eq!(&bytes[all..], b"\r\n");
                let text = String::from_utf8(bytes[..head].to_vec()).expect("headers");
                let payload = serde_json::from_slice(&bytes[head..all]).expect("JSON");
                heard.send(Heard::Message(words[0].to_owned(), text, payload)).expect("heard");
            }
            other => panic!("{other}"),
        }
    }
}

struct Rig {
    _folder: tempfile::TempDir,
    store: Store,
}

async fn rig() -> Rig {
    let folder = tempfile::tempdir().expect("folder");
    let url = format!("sqlite:{}", folder.path().join("weir.db").display());
    let store = Store::open(&url, &StoreOptions::default()).await.expect("a store");
    let mut tx = store.write().await.expect("a transaction");
    for (epoch, replica) in [(1_i64, "one"), (2, "two"), (3, "one")] {
        let sql = "INSERT INTO epochs (epoch, replica, started_us, ended_us) VALUES ($1, $2, 0, NULL)";
        tx.execute(sql, &[Bound::from(epoch), replica.into()]).await.expect("written");
    }
    tx.commit().await.expect("committed");
    Rig { _folder: folder, store }
}

impl Rig {
    async fn row(&self, epoch: i64, seq: i64, kind: &str) {
        let sql = "INSERT INTO ledger (epoch, seq, at_us, kind, tenant, request, model, key, device_ns, prompt_tokens, \
                   completion_tokens, body, hash) VALUES ($1, $2, 1, $3, 'acme', $4, 'm', 'k', 7, 2, 3, '{}', x'00')";
        let mut tx = self.store.write().await.expect("a transaction");
        let request = format!("req-{epoch}-{seq}");
        let values = [Bound::from(epoch), seq.into(), kind.into(), request.as_str().into()];
        tx.execute(sql, &values).await.expect("written");
        tx.commit().await.expect("committed");
    }

    async fn suspend(&self) {
        let mut change = self.store.change(&Actor::system(), 5).await.expect("a change");
        let settings = TenantSettings::named("Acme", "starter");
        change.create_tenant(&NewTenant { id: "acme".into(), settings }).await.expect("made");
        change.set_status("acme", 1, Status::Suspended, Some("unpaid")).await.expect("suspended");
        change.commit().await.expect("committed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_told_at_least_once_and_in_order() {
    for headers in [true, false] {
        let rig = rig().await;
        let (tell_quota, notices) = tokio::sync::broadcast::channel(8);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let (heard, mut hears) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            // The first connection is lost after what was sent and before it was acknowledged.
            for pongs in [1, usize::MAX] {
                let (stream, _) = listener.accept().await.expect("a client");
                serve(stream, headers, pongs, heard.clone()).await;
            }
        });
        // What was billed in a life before the first one that is told of is not told; nor is another replica's.
        rig.row(1, 1, "settle").await;
        rig.row(2, 1, "settle").await;
        rig.row(3, 1, "open").await;
        rig.row(3, 2, "settle").await;
        let address: Address = format!("nats://u:secret@127.0.0.1:{port}").parse().expect("an address");
        let told = tokio::spawn(tell(address, rig.store.clone(), "one".into(), 3, notices));
        let mut next = async || hears.recv().await.expect("something");
        let Heard::Connect(options) = next().await else { panic!("first it connects") };
        assert_eq!(
            (&options["user"], &options["pass"], &options["verbose"]),
            (&json!("u"), &json!("secret"), &json!(false))
        );
        let message = |heard: Heard| match heard {
            Heard::Message(subject, head, event) => (subject, head, event),
            other => panic!("{other:?}"),
        };
        let (subject, head, first) = message(next().await);
        assert_eq!((subject.as_str(), &first["id"]), ("weir.usage.settled", &json!("bill-3-2")));
        assert_eq!(head.starts_with("NATS/1.0\r\ncontent-type: application/cloudevents+json"), headers);
        // It comes back by itself, with what was not acknowledged, to the letter.
        assert!(matches!(next().await, Heard::Connect(_)));
        assert_eq!(message(next().await).2, first);
        rig.row(3, 3, "settle").await;
        assert_eq!(message(next().await).2["id"], json!("bill-3-3"));
        rig.suspend().await;
        let (created, suspended) = (message(next().await), message(next().await));
        assert_eq!(
            (created.0.as_str(), &created.2["data"]["action"]),
            ("weir.tenant.changed", &json!("tenant.create"))
        );
        assert_eq!((&suspended.2["subject"], &suspended.2["data"]["reason"]), (&json!("acme"), &json!("unpaid")));
        let notice = QuotaNotice {
            tenant: "acme".into(),
            unit: Unit::Requests,
            period: Period::Month,
            begins_us: 1,
            until_us: 2,
            passed: Passed::Soft(80),
            at_us: 3,
        };
        tell_quota.send(notice).expect("told");
        let (subject, _, event) = message(next().await);
        assert_eq!((subject.as_str(), &event["data"]["percent"]), ("weir.quota.soft_limit", &json!(80)));
        told.abort();

        // Another start goes on behind what has arrived.
        let mut feed = Feed::open(rig.store.clone(), "one", 4).await.expect("opened");
        let batch = feed.next().await.expect("read");
        assert!(batch.events.iter().all(|event| event.subject() != "weir.usage.settled"), "{batch:?}");
        rig.row(3, 4, "recovered").await;
        let batch = feed.next().await.expect("read");
        let bills: Vec<String> =
            batch.events.iter().filter(|e| e.subject() == "weir.usage.settled").map(Event::json).collect();
        assert!(bills.len() == 1 && bills[0].contains("bill-3-4"), "{bills:?}");
        feed.sent(&batch).await.expect("kept");
        assert!(feed.next().await.expect("read").events.is_empty());
    }
}

#[tokio::test]
async fn a_server_that_refuses_or_wants_tls_is_told_of_in_words() {
    for (info, answer, said) in [
        (r#"{"tls_required":true}"#, "", "wants TLS"),
        ("{}", "-ERR 'Authorization Violation'\r\n", "Authorization Violation"),
        ("{}", "HTTP/1.1 400\r\n", "does not speak NATS"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("a client");
            stream.write_all(format!("INFO {info}\r\n{answer}").as_bytes()).await.expect("written");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        };
        let address: Address = format!("nats://127.0.0.1:{port}").parse().expect("an address");
        let (error, ()) = tokio::join!(async { Nats::connect(&address).await.expect_err("refused") }, server);
        assert!(error.to_string().contains(said), "{error}");
    }
}
