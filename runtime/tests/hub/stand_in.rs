//! A hub on 127.0.0.1: the listing, `HEAD` and `GET` of files with ranges, and the faults that a test asks for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

/// What a request was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

/// A file: LFS files have their SHA-256 as ETag, others 40 digits.
#[derive(Clone)]
pub(crate) struct StoredFile {
    pub(crate) bytes: Vec<u8>,
    pub(crate) lfs: bool,
}

impl StoredFile {
    pub(crate) fn etag(&self) -> String {
        let digest = sha256(&self.bytes);
        if self.lfs { digest } else { digest[..40].to_owned() }
    }
}

/// What the server holds and how it misbehaves.
#[derive(Default)]
pub(crate) struct State {
    /// Commit by revision.
    pub(crate) revisions: BTreeMap<String, String>,
    /// Files by commit and name.
    pub(crate) files: BTreeMap<String, BTreeMap<String, StoredFile>>,
    /// Every request so far.
    pub(crate) seen: Vec<Seen>,
    /// How many more `GET`s of a file end after half of what they should send.
    pub(crate) cuts: BTreeMap<String, usize>,
    /// Sent in place of a file's bytes; ETag and announced size stay.
    pub(crate) spoiled: BTreeMap<String, Vec<u8>>,
    /// Answers every `GET` in full, whatever range it asks for.
    pub(crate) ignores_ranges: bool,
    /// The status for requests that do not carry this token.
    pub(crate) gate: Option<(u16, String)>,
    /// LFS files are redirected to this address, as the hub does.
    pub(crate) cdn: Option<String>,
    /// Other files are redirected to another path of this server, as the hub does.
    pub(crate) resolve_cache: bool,
    /// In place of every ETag.
    pub(crate) etag: Option<String>,
}

/// A running server; dropping it closes its port.
pub(crate) struct StandIn {
    address: String,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    pub(crate) fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client may hang up in the middle of a long answer: that is not the server's fault.
                if let Ok(false) = stream.and_then(|stream| serve(stream, &shared)) {
                    break;
                }
            }
        });
        StandIn { address, state, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic in the server")
    }

    /// The requests since the last call.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(&self.address) {
            let _ = stream.write_all(b"STOP / HTTP/1.1\r\n\r\n");
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Answers one request and closes; `false` is the end of the server.
fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if method == "STOP" {
        return Ok(false);
    }
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let seen = Seen {
        method,
        path,
        range: headers.get("range").cloned(),
        authorization: headers.get("authorization").cloned(),
    };
    let answer = {
        let mut state = state.lock().expect("no panic in a test's closure");
        state.seen.push(seen.clone());
        answer(&mut state, &seen)
    };
    let mut stream = stream;
    stream.write_all(&answer)?;
    Ok(true)
}

fn answer(state: &mut State, seen: &Seen) -> Vec<u8> {
    if let Some((status, token)) = &state.gate
        && seen.authorization.as_deref() != Some(&format!("Bearer {token}"))
    {
        return response(*status, &[], b"{}", 2);
    }
    if let Some((_, revision)) = seen.path.split_once("/revision/") {
        return listing(state, &revision.replace("%2F", "/"));
    }
    // `/org/name/resolve/<commit>/<file>`, `/moved/<commit>/<file>` on this server, `/cdn/<commit>/<file>` on another.
    let Some((rest, moved)) = ["/resolve/", "/moved/", "/cdn/"]
        .iter()
        .find_map(|mark| seen.path.split_once(mark).map(|(_, rest)| (rest.to_owned(), *mark != "/resolve/")))
    else {
        return response(404, &[], b"", 0);
    };
    let rest = rest.split('?').next().unwrap_or_default();
    let (commit, name) = rest.split_once('/').expect("a commit and a file");
    let Some(file) = state.files.get(commit).and_then(|files| files.get(name)).cloned() else {
        return response(404, &[("x-error-code", "EntryNotFound".into())], b"", 0);
    };
    let etag = format!("\"{}\"", state.etag.clone().unwrap_or_else(|| file.etag()));
    let mut headers = vec![("etag", etag.clone()), ("x-repo-commit", commit.to_owned())];
    if file.lfs && !moved {
        headers.push(("x-linked-etag", etag));
        headers.push(("x-linked-size", file.bytes.len().to_string()));
    }
    match &state.cdn {
        Some(cdn) if file.lfs && !moved => {
            headers.push(("location", format!("{cdn}/cdn/{commit}/{name}?signature=secret")));
            return response(302, &headers, b"", 0);
        }
        _ if state.resolve_cache && !file.lfs && !moved => {
            headers.push(("location", format!("/moved/{commit}/{name}")));
            return response(307, &headers, b"", 0);
        }
        _ => {}
    }
    if seen.method == "HEAD" {
        return response(200, &headers, b"", file.bytes.len());
    }
    body(state, seen, name, file, headers)
}

fn body(
    state: &mut State,
    seen: &Seen,
    name: &str,
    file: StoredFile,
    mut headers: Vec<(&'static str, String)>,
) -> Vec<u8> {
    let bytes = state.spoiled.get(name).cloned().unwrap_or(file.bytes);
    let asked = seen.range.as_deref().filter(|_| !state.ignores_ranges);
    let start: Option<usize> = asked.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let (status, sent) = match start {
        Some(start) if start >= bytes.len() => return response(416, &headers, b"", 0),
        Some(start) => {
            headers.push(("content-range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())));
            (206, &bytes[start..])
        }
        None => (200, &bytes[..]),
    };
    match state.cuts.get_mut(name).filter(|cuts| **cuts > 0) {
        Some(cuts) => {
            *cuts -= 1;
            response(status, &headers, &sent[..sent.len() / 2], sent.len())
        }
        None => response(status, &headers, sent, sent.len()),
    }
}

fn listing(state: &State, revision: &str) -> Vec<u8> {
    let commit = state.revisions.get(revision).cloned().unwrap_or_else(|| revision.to_owned());
    let Some(files) = state.files.get(&commit) else {
        return response(404, &[("x-error-code", "RevisionNotFound".into())], b"", 0);
    };
    let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
    let text = serde_json::json!({ "id": "org/model", "sha": commit, "siblings": siblings }).to_string();
    response(200, &[("content-type", "application/json".into())], text.as_bytes(), text.len())
}

/// An answer that announces `len` bytes and holds `body`.
fn response(status: u16, headers: &[(&str, String)], body: &[u8], len: usize) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} Stand-in\r\nconnection: close\r\ncontent-length: {len}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let mut out = text.into_bytes();
    out.extend_from_slice(body);
    out
}
