//! What a loss of power may leave of files, by the rules that a database can count on and no others.
//!
//! * What was written to a file before a sync of it began is there once that sync has returned.
//! * Of what was told later, each call is there or not, whole or in parts (sectors, or up to any byte), in any order: each file by
//!   itself. A length that grew over what is not there shows zeros or what the disk had there before.
//! * That a file or folder was made or removed is there once its folder was synced; until then, for each name, the first so many of
//!   those calls are.
//! * A write changes no byte beside its own (SQLite's `powersafe overwrite`, its default).

use std::collections::{BTreeMap, VecDeque};

use super::{
    chance::Chance,
    log::{Call, What},
};

/// Bytes that a disk writes as one.
const SECTOR: usize = 512;

/// How much of the syncs is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Honesty {
    /// All of it.
    Honest,
    /// A sync of a file does nothing, as with `synchronous = OFF`.
    Lies,
}

/// Files as they are after a crash, by their names below the folder; folders that are there are names of nothing.
pub(super) type Image = BTreeMap<String, Option<Vec<u8>>>;

#[derive(Debug, Default)]
struct File {
    /// What is certain.
    certain: Vec<u8>,
    /// Calls since then.
    pending: VecDeque<usize>,
}

/// What is at a name: nothing, a folder, or the file of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum There {
    #[default]
    Nothing,
    Folder,
    File(usize),
}

#[derive(Debug, Default)]
struct Name {
    certain: There,
    pending: VecDeque<There>,
}

impl Name {
    fn now(&self) -> There {
        self.pending.back().copied().unwrap_or(self.certain)
    }
}

/// A sync under way: how many of the pending calls it will have made certain.
#[derive(Debug)]
enum Sync {
    File(usize, usize),
    Folder(Vec<(String, usize)>),
}

/// The disk after the first calls of a log.
#[derive(Debug)]
pub(super) struct Disk<'l> {
    calls: &'l [Call],
    honesty: Honesty,
    at: usize,
    names: BTreeMap<String, Name>,
    files: Vec<File>,
    /// By their numbers.
    syncs: BTreeMap<usize, Sync>,
}

impl<'l> Disk<'l> {
    pub(super) fn new(calls: &'l [Call], honesty: Honesty) -> Self {
        Disk { calls, honesty, at: 0, names: BTreeMap::new(), files: Vec::new(), syncs: BTreeMap::new() }
    }

    /// Goes on until the first `until` calls were made.
    pub(super) fn go_to(&mut self, until: usize) {
        while self.at < until {
            self.call(self.at);
            self.at += 1;
        }
    }

    fn call(&mut self, at: usize) {
        let Call { name, what } = &self.calls[at];
        match what {
            What::Made => {
                self.files.push(File::default());
                let file = There::File(self.files.len() - 1);
                self.names.entry(name.clone()).or_default().pending.push_back(file);
            }
            What::Folder => self.names.entry(name.clone()).or_default().pending.push_back(There::Folder),
            What::Removed => self.names.entry(name.clone()).or_default().pending.push_back(There::Nothing),
            What::Written { .. } | What::Cut(_) => {
                let There::File(file) = self.names[name].now() else { panic!("{name} is written and not there") };
                self.files[file].pending.push_back(at);
            }
            What::SyncBegun(number) => {
                let sync = match self.names.get(name).map(Name::now) {
                    Some(There::File(file)) => Sync::File(file, self.files[file].pending.len()),
                    _ => Sync::Folder(self.names_in(name)),
                };
                // One of a process that was cut off has no end, and its number is another's by now.
                self.syncs.insert(*number, sync);
            }
            What::Synced(number) => match self.syncs.remove(number).expect("a sync begins before it ends") {
                Sync::File(file, count) => self.synced(file, count),
                Sync::Folder(names) => names.into_iter().for_each(|(name, count)| self.entered(&name, count)),
            },
        }
    }

    fn names_in(&self, folder: &str) -> Vec<(String, usize)> {
        let within = |name: &&String| name.rsplit_once('/').map_or("", |(above, _)| above) == folder;
        self.names.keys().filter(within).map(|name| (name.clone(), self.names[name].pending.len())).collect()
    }

    fn synced(&mut self, file: usize, count: usize) {
        if self.honesty == Honesty::Lies {
            return;
        }
        // Another sync of the file may have made some of them certain meanwhile.
        let count = count.min(self.files[file].pending.len());
        let File { certain, pending } = &mut self.files[file];
        for call in pending.drain(..count) {
            apply(certain, &self.calls[call].what, &mut || 0);
        }
        let gone = count;
        for sync in self.syncs.values_mut() {
            if let Sync::File(of, left) = sync
                && *of == file
            {
                *left = left.saturating_sub(gone);
            }
        }
    }

    fn entered(&mut self, name: &str, count: usize) {
        let name = self.names.get_mut(name).expect("it was there when the sync began");
        for _ in 0..count.min(name.pending.len()) {
            name.certain = name.pending.pop_front().unwrap_or_default();
        }
    }

    /// Everything that was called, as a process sees it that is only killed.
    pub(super) fn all(&self) -> Image {
        let mut image = Image::new();
        for (name, entry) in &self.names {
            let content = match entry.now() {
                There::Nothing => continue,
                There::Folder => None,
                There::File(file) => {
                    let mut content = self.files[file].certain.clone();
                    self.files[file].pending.iter().for_each(|call| {
                        apply(&mut content, &self.calls[*call].what, &mut || 0);
                    });
                    Some(content)
                }
            };
            image.insert(name.clone(), content);
        }
        image
    }

    /// What is left when the power fails now.
    pub(super) fn crash(&self, chance: &mut Chance) -> Image {
        let mut image = Image::new();
        for (name, entry) in &self.names {
            let applied = chance.index(entry.pending.len() + 1);
            let there = applied.checked_sub(1).map_or(entry.certain, |last| entry.pending[last]);
            let above = name.rsplit_once('/').map(|(above, _)| above);
            if above.is_some_and(|above| !image.contains_key(above)) {
                continue;
            }
            match there {
                There::Nothing => {}
                There::Folder => drop(image.insert(name.clone(), None)),
                There::File(file) => drop(image.insert(name.clone(), Some(self.content(file, chance)))),
            }
        }
        image
    }

    fn content(&self, file: usize, chance: &mut Chance) -> Vec<u8> {
        let File { certain, pending } = &self.files[file];
        let mut content = certain.clone();
        let mut calls: Vec<usize> = pending.iter().copied().collect();
        // How much survives differs more from crash to crash than from call to call.
        let (of, torn) = match chance.below(5) {
            0 => (0, false),
            1 => (4, false),
            2 => {
                calls.truncate(chance.index(calls.len() + 1));
                (4, chance.once_in(2))
            }
            _ => (1 + chance.below(4), chance.once_in(2)),
        };
        calls.retain(|_| chance.below(4) < of);
        if of < 4 {
            chance.shuffle(&mut calls);
        }
        let stale = chance.once_in(3);
        for (at, call) in calls.iter().enumerate() {
            let mut hole = Chance::new(if stale { 7 + *call as u64 } else { 0 });
            let mut fill = || if stale { hole.below(256) as u8 } else { 0 };
            match &self.calls[*call].what {
                What::Written { offset, data } if torn && (at + 1 == calls.len() || chance.once_in(3)) => {
                    for (offset, part) in parts(*offset, data, chance) {
                        write(&mut content, offset, part, &mut fill);
                    }
                }
                whole => apply(&mut content, whole, &mut fill),
            }
        }
        content
    }
}

/// The parts of a write that reach the disk.
fn parts<'d>(offset: usize, data: &'d [u8], chance: &mut Chance) -> Vec<(usize, &'d [u8])> {
    if chance.once_in(2) {
        // Up to some byte, or from there on.
        let (first, rest) = data.split_at(chance.index(data.len() + 1));
        return vec![if chance.once_in(4) { (offset + first.len(), rest) } else { (offset, first) }];
    }
    let mut kept = Vec::new();
    let (mut offset, mut left) = (offset, data);
    while !left.is_empty() {
        let (part, rest) = left.split_at((SECTOR - offset % SECTOR).min(left.len()));
        if chance.once_in(2) {
            kept.push((offset, part));
        }
        (offset, left) = (offset + part.len(), rest);
    }
    kept
}

fn apply(content: &mut Vec<u8>, what: &What, fill: &mut dyn FnMut() -> u8) {
    match what {
        What::Written { offset, data } => write(content, *offset, data, fill),
        What::Cut(len) => content.resize(*len, 0),
        other => unreachable!("{other:?} is no content"),
    }
}

fn write(content: &mut Vec<u8>, offset: usize, data: &[u8], fill: &mut dyn FnMut() -> u8) {
    let end = offset + data.len();
    // A hole, where there is one, and then the data.
    while content.len() < offset {
        content.push(fill());
    }
    content.resize(content.len().max(end), 0);
    content[offset..end].copy_from_slice(data);
}

#[test]
fn what_was_synced_is_there_and_the_rest_may_be() {
    let call = |name: &str, what| Call { name: name.into(), what };
    let written = |offset, data: &[u8]| call("f", What::Written { offset, data: data.to_vec() });
    let calls = [
        call("f", What::Made),
        written(0, b"first"),
        call("f", What::SyncBegun(1)),
        written(5, b"later"),
        call("f", What::Synced(1)),
        call("", What::SyncBegun(2)),
        call("", What::Synced(2)),
        written(0, b"FIRST"),
    ];
    let seen = |until: usize, honesty| {
        let mut disk = Disk::new(&calls, honesty);
        disk.go_to(until);
        let image = |seed| disk.crash(&mut Chance::new(seed)).get("f").cloned().flatten();
        (0..2_000).map(image).collect::<std::collections::BTreeSet<_>>()
    };
    let texts = |set: &std::collections::BTreeSet<Option<Vec<u8>>>, text: &[u8]| set.contains(&Some(text.to_vec()));
    // Until its folder was synced it may be missing, whatever was synced of it.
    let early = seen(5, Honesty::Honest);
    assert!(early.contains(&None) && texts(&early, b"first") && texts(&early, b"firstlater"));
    assert!(early.iter().flatten().all(|content| content.starts_with(b"first")));
    let late = seen(8, Honesty::Honest);
    assert!(!late.contains(&None) && texts(&late, b"first") && texts(&late, b"FIRST") && texts(&late, b"FIrstlater"));
    assert!(texts(&seen(8, Honesty::Lies), b""));
    let mut disk = Disk::new(&calls, Honesty::Honest);
    disk.go_to(8);
    assert_eq!(disk.all()["f"].as_deref(), Some(b"FIRSTlater".as_slice()));
}
