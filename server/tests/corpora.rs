//! The corpora of `fuzz/` through their targets: what a fuzzer has found, or was given, stays harmless.

use std::{collections::BTreeSet, fs, path::PathBuf};

use weir_server::fuzzing::TARGETS;

/// Bytes of all corpora together: they are read by people, and are part of every clone.
const BYTES_MAX: u64 = 300 << 10;

fn fuzz(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(folder)
}

fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(fuzz(folder)).unwrap_or_else(|e| panic!("fuzz/{folder}: {e}"));
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
    entries.map(|entry| name(entry.expect("an entry"))).collect()
}

#[test]
fn every_target_has_its_file_and_its_corpus() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("corpus"), targets);
    let files: BTreeSet<String> = targets.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names("fuzz_targets"), files);
}

fn replay(target: &str) -> u64 {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let corpus = format!("corpus/{target}");
    let files = names(&corpus);
    assert!(files.len() >= 10, "fuzz/{corpus} holds {} files", files.len());
    let mut bytes = 0;
    for file in files {
        let content = fs::read(fuzz(&corpus).join(&file)).expect("a file");
        bytes += content.len() as u64;
        // The name of what fails.
        println!("{target}/{file}");
        run(&content);
    }
    bytes
}

macro_rules! replays {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target));
        })*

        #[test]
        fn each_target_is_replayed() {
            let replayed = [$(stringify!($target)),*];
            assert_eq!(BTreeSet::from(replayed), TARGETS.iter().map(|(name, _)| *name).collect());
            let bytes: u64 = replayed.into_iter().map(replay).sum();
            assert!(bytes <= BYTES_MAX, "{bytes} bytes of corpora");
        }
    };
}

replays! { chat completion embedding template gguf safetensors tokenizer to_executor from_executor }
