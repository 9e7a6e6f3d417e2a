//! Models by Hugging Face id, against a stand-in for the hub on 127.0.0.1.
#![cfg(feature = "hub")]

#[path = "hub/stand_in.rs"]
mod stand_in;

use std::fs;
use std::path::{Path, PathBuf};

use stand_in::{Seen, StandIn, State, StoredFile, sha256};
use tempfile::TempDir;
use weir_runtime::hub::{HubError, Settings, fetch_with};

const ID: &str = "org/model";
const WEIGHTS: &str = "model.safetensors";
const COMMIT: &str = "1111111111111111111111111111111111111111";
const COMMIT_V2: &str = "2222222222222222222222222222222222222222";

/// Bytes that differ along the way, so that a wrong offset shows.
fn weights(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 33) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn small(text: &str) -> StoredFile {
    StoredFile { bytes: text.as_bytes().to_vec(), lfs: false }
}

fn large(seed: u64) -> StoredFile {
    StoredFile { bytes: weights(seed, 600_000), lfs: true }
}

fn commit_files(files: &[(&str, StoredFile)]) -> State {
    let files = files.iter().map(|(name, file)| (name.to_string(), file.clone())).collect();
    State {
        revisions: [("main".to_owned(), COMMIT.to_owned())].into(),
        files: [(COMMIT.to_owned(), files)].into(),
        ..State::default()
    }
}

/// A small model with what a repository holds beside one.
fn model() -> State {
    commit_files(&[
        ("README.md", small("# a model")),
        ("config.json", small("{\"model_type\":\"llama\"}")),
        ("tokenizer.json", small("{\"version\":\"1.0\"}")),
        ("tokenizer_config.json", small("{}")),
        ("1_Pooling/config.json", small("{\"pooling_mode_mean_tokens\":true}")),
        (WEIGHTS, large(7)),
        ("pytorch_model.bin", large(8)),
    ])
}

struct Fixture {
    home: TempDir,
    hub: StandIn,
}

impl Fixture {
    fn new(state: State) -> Self {
        Fixture { home: tempfile::tempdir().expect("temp folder"), hub: StandIn::start(state) }
    }

    fn settings(&self) -> Settings {
        Settings { home: self.home.path().to_owned(), token: None, endpoint: self.hub.url(), offline: false }
    }

    fn offline(&self) -> Settings {
        Settings { offline: true, ..self.settings() }
    }

    fn fetch(&self) -> Result<PathBuf, HubError> {
        fetch_with(&self.settings(), ID, None, None)
    }

    fn repo(&self) -> PathBuf {
        self.home.path().join("hub/models--org--model")
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT).join(name)
    }

    fn blob(&self, name: &str) -> PathBuf {
        let etag = self.hub.state().files[COMMIT][name].etag();
        self.repo().join("blobs").join(etag)
    }

    fn stored(&self, name: &str) -> Vec<u8> {
        self.hub.state().files[COMMIT][name].bytes.clone()
    }

    fn half(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{}.incomplete", self.blob(name).display()))
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files below a folder, as `a/b`.
fn files_in(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, names: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{name}/"), names);
            } else {
                names.push(name);
            }
        }
    }
    let mut names = Vec::new();
    walk(folder, "", &mut names);
    names.sort();
    names
}

/// The `GET`s of a file.
fn gets<'a>(seen: &'a [Seen], name: &str) -> Vec<&'a Seen> {
    seen.iter().filter(|s| s.method == "GET" && s.path.ends_with(name)).collect()
}

#[test]
fn a_model_is_downloaded_into_the_hubs_layout() {
    let f = Fixture::new(model());
    let folder = f.fetch().expect("fetch");
    assert_eq!(folder, f.snapshot(""));
    let expected =
        ["1_Pooling/config.json", "config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"].map(str::to_owned);
    assert_eq!(files_in(&folder), expected);
    for name in &expected {
        assert_eq!(read(&folder.join(name)), f.stored(name), "{name}");
        assert!(f.blob(name).is_file(), "{name}");
    }
    assert_eq!(read(&f.repo().join("refs/main")), COMMIT.as_bytes());
    // Relative, as the Python tools make them: the cache can be moved.
    let link = fs::read_link(f.snapshot("1_Pooling/config.json")).expect("a link");
    assert!(link.starts_with("../../../blobs"), "{}", link.display());
    assert_eq!(files_in(&f.repo().join("blobs")).len(), expected.len());
}

#[test]
fn a_second_fetch_asks_for_no_file() {
    let f = Fixture::new(model());
    let first = f.fetch().expect("first");
    f.hub.take_seen();
    assert_eq!(f.fetch().expect("second"), first);
    let paths: Vec<String> = f.hub.take_seen().into_iter().map(|s| s.path).collect();
    assert_eq!(paths, ["/api/models/org/model/revision/main"]);
}

#[test]
fn what_the_python_tools_downloaded_is_used() {
    let f = Fixture::new(model());
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json", WEIGHTS];
    for name in names {
        for path in [f.blob(name), f.snapshot(name)] {
            fs::create_dir_all(path.parent().expect("in a folder")).expect("create");
        }
        fs::write(f.blob(name), f.stored(name)).expect("write");
        std::os::unix::fs::symlink(f.blob(name), f.snapshot(name)).expect("link");
    }
    f.fetch().expect("fetch");
    assert_eq!(f.hub.take_seen().len(), 1);
    assert_eq!(fetch_with(&f.offline(), ID, None, None).expect("offline"), f.snapshot(""));
}

#[test]
fn a_cut_download_is_continued_by_range() {
    let f = Fixture::new(model());
    f.hub.state().cuts.insert(WEIGHTS.into(), 1);
    f.fetch().expect("fetch");
    let seen = f.hub.take_seen();
    let ranges: Vec<_> = gets(&seen, WEIGHTS).iter().map(|s| s.range.as_deref()).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-")]);
    assert_eq!(read(&f.snapshot(WEIGHTS)), f.stored(WEIGHTS));
}

#[test]
fn half_a_download_is_kept_unregistered_and_continued_by_the_next_fetch() {
    let f = Fixture::new(model());
    f.hub.state().cuts.insert(WEIGHTS.into(), usize::MAX);
    let error = f.fetch().expect_err("always cut");
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    let kept = fs::metadata(f.half(WEIGHTS)).expect("half is kept").len();
    assert!(kept > 0 && kept < 600_000);
    assert!(!f.snapshot(WEIGHTS).exists() && !f.blob(WEIGHTS).exists());
    assert!(!f.repo().join("refs/main").exists(), "a ref means a whole snapshot");

    f.hub.state().cuts.clear();
    f.hub.take_seen();
    f.fetch().expect("fetch");
    let seen = f.hub.take_seen();
    let ranges: Vec<_> = seen.iter().filter_map(|s| s.range.clone()).collect();
    assert_eq!(ranges, [format!("bytes={kept}-")]);
    assert!(gets(&seen, "tokenizer.json").is_empty(), "what was whole stays");
    assert_eq!(read(&f.snapshot(WEIGHTS)), f.stored(WEIGHTS));
    assert!(!f.half(WEIGHTS).exists());
}

#[test]
fn a_cut_file_without_a_digest_starts_anew() {
    let f = Fixture::new(model());
    fs::create_dir_all(f.repo().join("blobs")).expect("create");
    fs::write(f.half("config.json"), "{\"model_type\":\"b").expect("write");
    f.hub.state().cuts.insert("config.json".into(), 1);
    f.fetch().expect("fetch");
    assert!(f.hub.take_seen().iter().all(|s| s.range.is_none()));
    assert_eq!(read(&f.snapshot("config.json")), f.stored("config.json"));
}

#[test]
fn a_server_without_ranges_is_asked_for_all_again() {
    let f = Fixture::new(model());
    f.hub.state().cuts.insert(WEIGHTS.into(), 1);
    f.hub.state().ignores_ranges = true;
    f.fetch().expect("fetch");
    assert_eq!(read(&f.snapshot(WEIGHTS)), f.stored(WEIGHTS));
}

#[test]
fn a_wrong_digest_is_refused_and_leaves_nothing() {
    let f = Fixture::new(model());
    let expected = sha256(&f.stored(WEIGHTS));
    let other = weights(9, 600_000);
    f.hub.state().spoiled.insert(WEIGHTS.into(), other.clone());
    let error = f.fetch().expect_err("spoiled");
    let HubError::DigestMismatch { file, expected: e, got } = &error else { panic!("{error}") };
    assert_eq!((file.as_str(), e, got), (WEIGHTS, &expected, &sha256(&other)));
    assert!(!f.snapshot(WEIGHTS).exists() && !f.blob(WEIGHTS).exists() && !f.half(WEIGHTS).exists());
    assert!(!f.repo().join("refs/main").exists());
    assert!(matches!(fetch_with(&f.offline(), ID, None, None), Err(HubError::OfflineMissing { .. })));
}

#[test]
fn half_a_download_with_a_flaw_is_found_out() {
    let f = Fixture::new(model());
    fs::create_dir_all(f.repo().join("blobs")).expect("create");
    let mut half = f.stored(WEIGHTS)[..1000].to_vec();
    half[500] ^= 1;
    fs::write(f.half(WEIGHTS), half).expect("write");
    assert!(matches!(f.fetch(), Err(HubError::DigestMismatch { .. })));
    assert!(!f.half(WEIGHTS).exists(), "or it would be continued for ever");
    f.fetch().expect("the next fetch starts anew");
    assert_eq!(read(&f.snapshot(WEIGHTS)), f.stored(WEIGHTS));
}

#[test]
fn more_bytes_than_announced_are_refused() {
    let f = Fixture::new(model());
    f.hub.state().spoiled.insert(WEIGHTS.into(), weights(7, 2_000_000));
    let error = f.fetch().expect_err("too long");
    assert!(matches!(error, HubError::SizeMismatch { expected: 600_000, .. }), "{error}");
    assert!(!f.blob(WEIGHTS).exists() && !f.half(WEIGHTS).exists());
}

#[test]
fn a_revision_is_its_own_snapshot() {
    let mut state = model();
    let mut v2 = state.files[COMMIT].clone();
    v2.insert("config.json".into(), small("{\"model_type\":\"qwen2\"}"));
    state.files.insert(COMMIT_V2.into(), v2);
    state.revisions.insert("refs/pr/2".into(), COMMIT_V2.into());
    let f = Fixture::new(state);
    f.fetch().expect("main");
    f.hub.take_seen();

    let folder = fetch_with(&f.settings(), ID, Some("refs/pr/2"), None).expect("branch");
    assert!(folder.ends_with(COMMIT_V2));
    assert_eq!(read(&folder.join("config.json")), b"{\"model_type\":\"qwen2\"}");
    assert_eq!(read(&f.repo().join("refs/refs/pr/2")), COMMIT_V2.as_bytes());
    assert!(gets(&f.hub.take_seen(), WEIGHTS).is_empty(), "the same blob serves both");

    assert_eq!(fetch_with(&f.settings(), ID, Some(COMMIT_V2), None).expect("commit"), folder);
    assert_eq!(fetch_with(&f.offline(), ID, Some(COMMIT_V2), None).expect("offline commit"), folder);
    let error = fetch_with(&f.settings(), ID, Some("v9"), None).expect_err("no such revision");
    assert!(matches!(error, HubError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("org/model@v9"), "{error}");
}

#[test]
fn offline_takes_the_cache_and_asks_nobody() {
    let f = Fixture::new(model());
    let folder = f.fetch().expect("online");
    f.hub.take_seen();
    assert_eq!(fetch_with(&f.offline(), ID, None, None).expect("offline"), folder);
    assert_eq!(f.hub.take_seen(), []);
}

#[test]
fn offline_names_what_is_missing() {
    let f = Fixture::new(model());
    let missing = |f: &Fixture| match fetch_with(&f.offline(), ID, None, None) {
        Err(HubError::OfflineMissing { missing, .. }) => missing,
        other => panic!("{other:?}"),
    };
    assert_eq!(missing(&f), "snapshot");
    f.fetch().expect("online");
    fs::remove_file(f.blob("tokenizer.json")).expect("delete");
    assert_eq!(missing(&f), "tokenizer.json");
    let error = fetch_with(&f.offline(), ID, None, Some("m.gguf")).expect_err("offline").to_string();
    assert!(error.contains("HF_HUB_OFFLINE") && error.contains("m.gguf") && !error.contains('\n'), "{error}");
    assert_eq!(f.hub.take_seen().iter().filter(|s| s.path.contains("gguf")).count(), 0);
    // A link to a blob that is gone is made whole again.
    f.fetch().expect("online");
    fetch_with(&f.offline(), ID, None, None).expect("offline");
}

#[test]
fn without_a_network_the_cache_stands_in() {
    let f = Fixture::new(model());
    let folder = f.fetch().expect("online");
    let settings = f.settings();
    f.hub.state().gate = Some((503, "nobody has it".into()));
    assert_eq!(fetch_with(&settings, ID, None, None).expect("a hub that is ill"), folder);
    let error = fetch_with(&settings, "org/other", None, None).expect_err("not in the cache");
    assert!(matches!(error, HubError::Status { status: 503, .. }), "{error}");

    let Fixture { home, hub } = f;
    drop(hub);
    assert_eq!(fetch_with(&settings, ID, None, None).expect("from the cache"), folder);
    let error = fetch_with(&settings, "org/other", None, None).expect_err("not in the cache");
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    drop(home);
}

#[test]
fn a_refusal_points_to_the_token() {
    for status in [401, 403] {
        let mut state = model();
        state.gate = Some((status, "right".into()));
        let f = Fixture::new(state);
        let with = |token: Option<&str>| {
            fetch_with(&Settings { token: token.map(str::to_owned), ..f.settings() }, ID, None, None)
        };
        for token in [None, Some("wrong")] {
            let error = with(token).expect_err("refused");
            let HubError::Refused { status: s, token_sent, .. } = &error else { panic!("{error}") };
            assert_eq!((*s, *token_sent), (status, token.is_some()));
            assert!(error.to_string().contains("HF_TOKEN") && !error.to_string().contains("wrong"), "{error}");
        }
        assert_eq!(files_in(f.home.path()), Vec::<String>::new());
        with(Some("right")).expect("let in");
    }
}

#[test]
fn the_token_stays_with_the_endpoint() {
    let cdn = StandIn::start(model());
    let mut state = model();
    state.gate = Some((401, "secret".into()));
    state.cdn = Some(cdn.url());
    state.resolve_cache = true;
    let f = Fixture::new(state);
    f.hub.state().cuts.insert(WEIGHTS.into(), 0);
    cdn.state().cuts.insert(WEIGHTS.into(), 1);
    let settings = Settings { token: Some("secret".into()), ..f.settings() };
    fetch_with(&settings, ID, None, None).expect("fetch");

    let there = cdn.take_seen();
    let ranges: Vec<_> = there.iter().map(|s| s.range.as_deref()).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-")], "weights come from the other port, continued there");
    assert!(there.iter().all(|s| s.authorization.is_none()), "{there:?}");
    let here = f.hub.take_seen();
    assert!(here.iter().all(|s| s.authorization.as_deref() == Some("Bearer secret")));
    assert!(here.iter().any(|s| s.path.starts_with("/moved/")), "a redirect within the endpoint keeps it");
    assert_eq!(read(&f.snapshot(WEIGHTS)), f.stored(WEIGHTS));
    assert!(f.blob("config.json").is_file());
}

#[test]
fn shards_are_those_the_index_names() {
    let index = |shards: [&str; 2]| {
        small(&serde_json::json!({ "weight_map": { "a": shards[0], "b": shards[1], "c": shards[0] } }).to_string())
    };
    let mut state = commit_files(&[
        ("config.json", small("{}")),
        ("tokenizer.json", small("{}")),
        ("model-1-of-2.safetensors", large(1)),
        ("model-2-of-2.safetensors", large(2)),
        ("consolidated.safetensors", large(3)),
        ("model.safetensors.index.json", index(["model-1-of-2.safetensors", "model-2-of-2.safetensors"])),
    ]);
    for (commit, second) in [(COMMIT_V2, "absent.safetensors"), ("3".repeat(40).as_str(), "../../../x.safetensors")] {
        let mut files = state.files[COMMIT].clone();
        files.insert("model.safetensors.index.json".into(), index(["model-1-of-2.safetensors", second]));
        state.files.insert(commit.into(), files);
    }
    let f = Fixture::new(state);
    let folder = f.fetch().expect("fetch");
    assert_eq!(files_in(&folder).iter().filter(|n| n.ends_with(".safetensors")).count(), 2);
    fs::remove_file(folder.join("model-2-of-2.safetensors")).expect("delete");
    let error = fetch_with(&f.offline(), ID, None, None).expect_err("a shard is gone").to_string();
    assert!(error.contains("model-2-of-2.safetensors"), "{error}");

    for (commit, named) in [(COMMIT_V2, "absent.safetensors"), ("3".repeat(40).as_str(), "../../../x.safetensors")] {
        let error = fetch_with(&f.settings(), ID, Some(commit), None).expect_err("a broken index").to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn a_gguf_is_named_when_there_are_several() {
    let f = Fixture::new(commit_files(&[("README.md", small("#")), ("q4/m.gguf", large(4)), ("q8/m.gguf", large(8))]));
    let error = f.fetch().expect_err("which one?");
    let HubError::SeveralGguf { files, .. } = &error else { panic!("{error}") };
    assert_eq!(files, &["q4/m.gguf", "q8/m.gguf"]);
    let path = fetch_with(&f.settings(), ID, None, Some("q8/m.gguf")).expect("named");
    assert_eq!((read(&path), path), (f.stored("q8/m.gguf"), f.snapshot("q8/m.gguf")));
    assert!(!f.snapshot("q4/m.gguf").exists());
    let error = fetch_with(&f.settings(), ID, None, Some("m.gguf")).expect_err("no such file");
    assert!(matches!(error, HubError::NotFound { .. }), "{error}");

    let f = Fixture::new(commit_files(&[("README.md", small("#")), ("m.gguf", large(4))]));
    assert_eq!(f.fetch().expect("the only one"), f.snapshot("m.gguf"));
}

#[test]
fn a_repository_without_a_model_says_so() {
    let f = Fixture::new(commit_files(&[("README.md", small("#"))]));
    let error = f.fetch().expect_err("nothing to serve");
    assert!(matches!(error, HubError::NoUsableFiles { .. }), "{error}");
    assert!(!f.repo().exists());
}

#[test]
fn an_etag_that_is_a_path_is_refused() {
    let mut state = model();
    state.etag = Some("../../../../escaped".into());
    let f = Fixture::new(state);
    assert!(matches!(f.fetch(), Err(HubError::BadAnswer { .. })));
    assert_eq!(files_in(f.home.path()), Vec::<String>::new());
}

#[test]
fn two_fetches_at_once_download_once() {
    let f = Fixture::new(model());
    std::thread::scope(|scope| {
        let both = [scope.spawn(|| f.fetch()), scope.spawn(|| f.fetch())];
        for fetched in both {
            fetched.join().expect("no panic").expect("fetch");
        }
    });
    assert_eq!(gets(&f.hub.take_seen(), WEIGHTS).len(), 1);
    assert_eq!(read(&f.snapshot(WEIGHTS)), f.stored(WEIGHTS));
}
