//! One file from the hub into the cache.

use std::fs;

use super::HubError;
use super::part::{CHUNK_BYTES, Part};
use super::progress::Progress;
use super::remote::{Facts, Remote};
use super::snapshot::{Snapshots, remove_if_there};
use super::wanted::Wanted;

/// How often one file is asked for before its cuts are reported. At once each time: the next call continues anyway.
const ATTEMPTS_MAX: usize = 5;

/// Downloads a file of a commit, unless its blob is here, and links it into the commit's snapshot.
pub(super) fn fetch(
    remote: &Remote,
    snapshots: &Snapshots,
    wanted: &Wanted,
    commit: &str,
    name: &str,
) -> Result<(), HubError> {
    let facts = remote.facts(wanted, commit, name)?;
    let blob = snapshots.blob(&facts.etag);
    let folder = blob.parent().expect("a blob lies in blobs/");
    fs::create_dir_all(folder).map_err(HubError::io("create", folder))?;
    let _lock = snapshots.lock(&facts.etag, name)?;
    // Another process may have brought it while we waited. One of another length is a stranger's broken download.
    let here = fs::metadata(&blob).ok().map(|m| m.len());
    if here.is_none_or(|here| facts.size.is_some_and(|size| size != here)) {
        remove_if_there(&blob)?;
        let download = Download { remote, wanted, commit, name, facts: &facts };
        let mut part = Part::open(&folder.join(format!("{}.incomplete", facts.etag)))?;
        if let Err(error) = download.fill(&mut part) {
            if matches!(error, HubError::SizeMismatch { .. }) {
                part.delete()?;
            }
            return Err(error);
        }
        part.finish(name, facts.sha256(), &blob)?;
    }
    snapshots.link(commit, name, &facts.etag)
}

/// How one request for bytes ended.
enum Ending {
    Complete,
    Cut(String),
}

struct Download<'a> {
    remote: &'a Remote,
    wanted: &'a Wanted,
    commit: &'a str,
    name: &'a str,
    facts: &'a Facts,
}

impl Download<'_> {
    /// Asks until everything has arrived.
    ///
    /// Only a file whose digest is known is continued: of any other, a first half from one day and a second from another
    /// could not be told from the whole.
    fn fill(&self, part: &mut Part) -> Result<(), HubError> {
        let mut reason = String::new();
        let mut progress = None;
        for _ in 0..ATTEMPTS_MAX {
            let known = self.facts.sha256().is_some();
            if part.len() > 0 && (!known || self.facts.size.is_some_and(|size| part.len() > size)) {
                part.restart()?;
            }
            let progress = progress.get_or_insert_with(|| {
                Progress::start(&format!("{}: {}", self.wanted.id(), self.name), part.len(), self.facts.size)
            });
            if self.facts.size == Some(part.len()) {
                return Ok(());
            }
            match self.transfer(part, progress)? {
                Ending::Complete => return Ok(()),
                Ending::Cut(why) => reason = why,
            }
        }
        let kept = if self.facts.sha256().is_some() { ", what has arrived is kept" } else { "" };
        Err(HubError::Unreachable {
            address: format!("{} of {}", self.name, self.wanted),
            reason: format!("cut {ATTEMPTS_MAX} times{kept} ({reason})"),
        })
    }

    /// Sends one request and takes in what comes, at most the announced size.
    fn transfer(&self, part: &mut Part, progress: &mut Progress) -> Result<Ending, HubError> {
        let Some(mut bytes) = self.remote.bytes(self.wanted, self.commit, self.name, part.len())? else {
            part.restart()?;
            return Ok(Ending::Cut("the range was refused".into()));
        };
        if bytes.start != part.len() {
            // A server that does not do ranges starts from 0; so do we.
            part.restart()?;
            if bytes.start != 0 {
                return Ok(Ending::Cut("another range than asked for".into()));
            }
        }
        let expected = self.facts.size.or(bytes.total);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match bytes.reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => part.append(&chunk[..read])?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok(Ending::Cut(e.to_string())),
            }
            progress.at(part.len());
            if let Some(expected) = expected.filter(|expected| part.len() > *expected) {
                return Err(HubError::SizeMismatch { file: self.name.to_owned(), expected, got: part.len() });
            }
        }
        Ok(match expected {
            Some(expected) if part.len() < expected => Ending::Cut(format!("{} of {expected} bytes", part.len())),
            _ => Ending::Complete,
        })
    }
}
