use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::*;

const KEYS: &str =
    r#"{"keys":[{"kty":"OKP","kid":"d","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
const OTHER: &str =
    r#"{"keys":[{"kty":"OKP","kid":"e","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// Answers each connection with the next of these texts, the last of them for ever; counts them.
fn issuer(answers: Vec<String>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/keys", listener.local_addr().expect("address"));
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let at = counted.fetch_add(1, Ordering::SeqCst);
            let mut lines = BufReader::new(stream.try_clone().expect("cloned")).lines();
            while lines.next().is_some_and(|line| !line.expect("a line").is_empty()) {}
            let _ = stream.write_all(answers[at.min(answers.len() - 1)].as_bytes());
        }
    });
    (url, count)
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

fn fine(body: &str) -> String {
    answer("200 OK", "application/json; charset=utf-8", body)
}

async fn refresh(source: &Source, pause: Duration) -> Result<bool, FetchError> {
    source.refresh(&source.keys(), pause).await
}

#[tokio::test]
async fn keys_are_fetched_kept_through_an_outage_and_replaced() {
    let answers = vec![fine(KEYS), answer("500 No", "text/plain", ""), fine("<html>"), fine(OTHER)];
    let (url, _) = issuer(answers);
    let source = Source::new(KeyPlace::Url(url));
    let now = Duration::ZERO;
    assert!(!source.keys().knows(Some("d")));
    assert!(refresh(&source, now).await.expect("keys"));
    assert!(source.keys().knows(Some("d")));
    assert!(matches!(refresh(&source, now).await, Err(FetchError::Status(500))));
    assert!(matches!(refresh(&source, now).await, Err(FetchError::KeySet(_))));
    assert!(source.keys().knows(Some("d")), "kept");
    assert!(refresh(&source, now).await.expect("keys"));
    assert!(!source.keys().knows(Some("d")) && source.keys().knows(Some("e")));
    assert!(!refresh(&source, now).await.expect("the same keys"));
}

#[tokio::test]
async fn an_issuer_is_asked_once_however_many_want_to_know() {
    let (url, count) = issuer(vec![fine(KEYS)]);
    let source = Arc::new(Source::new(KeyPlace::Url(url)));
    let seen = source.keys();
    let crowd: Vec<_> = (0..100)
        .map(|_| {
            let (source, seen) = (source.clone(), seen.clone());
            tokio::spawn(async move { source.refresh(&seen, REFRESH_PAUSE).await.expect("keys") })
        })
        .collect();
    for one in crowd {
        assert!(one.await.expect("no panic"), "all of them see the new keys");
    }
    for _ in 0..10 {
        assert!(!refresh(&source, REFRESH_PAUSE).await.expect("too early"));
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failure_is_an_attempt_too() {
    let (url, count) = issuer(vec![answer("503 No", "application/json", "")]);
    let source = Source::new(KeyPlace::Url(url));
    assert!(refresh(&source, REFRESH_PAUSE).await.is_err());
    assert!(!refresh(&source, REFRESH_PAUSE).await.expect("too early"));
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn answers_that_are_no_answers_are_refused() {
    let (elsewhere, followed) = issuer(vec![fine(KEYS)]);
    let redirect =
        format!("HTTP/1.1 302 Found\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let large = format!("{KEYS}{}", " ".repeat(KEY_SET_BYTES_MAX));
    let endless = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{large}");
    for text in [
        redirect,
        answer("204 No Content", "application/json", ""),
        answer("404 Not Found", "application/json", KEYS),
        answer("200 OK", "text/html", KEYS),
        answer("200 OK", "", KEYS),
        fine(&large),
        endless,
        fine("{}"),
        fine(""),
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{".into(),
        "nonsense\r\n\r\n".into(),
        String::new(),
    ] {
        let source = Source::new(KeyPlace::Url(issuer(vec![text.clone()]).0));
        assert!(refresh(&source, Duration::ZERO).await.is_err(), "{:.80}", text);
        assert!(!source.keys().knows(Some("d")));
    }
    assert_eq!(followed.load(Ordering::SeqCst), 0, "a redirection was followed");
}

#[tokio::test]
async fn files_are_read_again() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("keys.json");
    let source = Source::new(KeyPlace::File(path.clone()));
    assert!(matches!(refresh(&source, Duration::ZERO).await, Err(FetchError::File(_))));
    for (text, kid) in [(KEYS, "d"), (OTHER, "e")] {
        fs::write(&path, text).expect("written");
        assert!(refresh(&source, Duration::ZERO).await.expect("keys"));
        assert!(source.keys().knows(Some(kid)));
    }
    fs::write(&path, " ".repeat(KEY_SET_BYTES_MAX + 1)).expect("written");
    assert!(refresh(&source, Duration::ZERO).await.is_err() && source.keys().knows(Some("e")));
}
