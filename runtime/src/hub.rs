//! Models by Hugging Face id: what `weir serve org/name` finds or downloads before a model is opened.
//!
//! **Layout.** The cache is the hub's own, `$HF_HOME/hub/models--org--name/{blobs,refs,snapshots/<commit>}`, with the same
//! names, links and lock files as `huggingface_hub` in Python: what either has downloaded, the other uses.
//!
//! **Order of a fetch.** Ask for the listing of a revision, which names its commit; choose the files (`choice`); then
//! for each: ask what it is (`HEAD`: ETag and size), take its lock, fill `blobs/<etag>.incomplete`, check it, rename it to
//! `blobs/<etag>`, link it into `snapshots/<commit>`. Small files come before weights and `refs/<revision>` is written
//! last, so that a ref we wrote means a whole snapshot.
//!
//! **What is trusted.** Never half a download. A file whose ETag is a SHA-256 (everything large: LFS and Xet) is
//! continued by `Range` and must have that digest before it is renamed; any other is small, starts anew when cut, and must
//! have the announced size (its ETag is a git SHA-1, which is not checked). Names from the server become paths, so ETags,
//! commits and file names are parsed, not pasted. The token goes to the endpoint's own scheme, host and port and nowhere
//! else: weights come by redirect from other hosts with signed addresses.
//!
//! **Division of work.** The crate `hf-hub` gives the cache's layout ([`hf_hub::Cache`]), the addresses and the listing's
//! type ([`hf_hub::api::RepoInfo`]). Its downloads check neither size nor digest, append a whole body to a half file when
//! the server ignores `Range`, and keep the token across ports, so requests and files are ours, on the same `ureq`.
//!
//! **Test** with `cargo test --release -p weir-runtime --test hub`: a stand-in for the hub on 127.0.0.1.

mod blob;
mod choice;
mod error;
mod part;
mod progress;
mod remote;
mod settings;
mod snapshot;
mod wanted;

pub use error::HubError;
pub use settings::Settings;

use std::collections::BTreeMap;
use std::path::PathBuf;

use choice::{Choice, INDEX};
use remote::Remote;
use snapshot::Snapshots;
use wanted::Wanted;

/// The folder of a model, or the one `.gguf` file that `file` names, downloaded if the cache does not hold it yet.
///
/// `revision` is a branch, a tag or a commit (`main` if not given). A repository that holds only GGUF files gives its one
/// file; `file` says which when there are several. Blocks for as long as the download takes and reports on stderr.
pub fn fetch(id: &str, revision: Option<&str>, file: Option<&str>) -> Result<PathBuf, HubError> {
    fetch_with(&Settings::from_env()?, id, revision, file)
}

/// [`fetch`] with the environment as an argument.
pub fn fetch_with(
    settings: &Settings,
    id: &str,
    revision: Option<&str>,
    file: Option<&str>,
) -> Result<PathBuf, HubError> {
    let wanted = Wanted::parse(id, revision, file)?;
    let snapshots = Snapshots::new(&settings.home, &wanted);
    if settings.offline {
        return snapshots.find(&wanted);
    }
    let remote = Remote::new(&settings.endpoint, settings.token.as_deref())?;
    let listing = match remote.listing(&wanted) {
        Ok(listing) => listing,
        // A server restarts on a day when the hub does not answer: what is here is as good as it was yesterday.
        Err(error) if error.is_outage() => {
            let Ok(path) = snapshots.find(&wanted) else { return Err(error) };
            eprintln!("{error}; using what the cache has of {wanted}");
            return Ok(path);
        }
        Err(error) => return Err(error),
    };
    let fetching = Fetching { remote: &remote, snapshots: &snapshots, wanted: &wanted, commit: &listing.commit };
    match choice::choose(&listing.files, wanted.file()).map_err(|lack| lack.online(&wanted, &settings.endpoint))? {
        Choice::Gguf(name) => {
            fetching.files(std::slice::from_ref(&name))?;
            snapshots.set_ref(&listing.commit)?;
            Ok(snapshots.folder(&listing.commit).join(name))
        }
        Choice::Folder { files, sharded } => {
            fetching.files(&files)?;
            if sharded {
                fetching.shards(&listing.files)?;
            }
            snapshots.set_ref(&listing.commit)?;
            Ok(snapshots.folder(&listing.commit))
        }
    }
}

/// One revision on its way into the cache.
struct Fetching<'a> {
    remote: &'a Remote,
    snapshots: &'a Snapshots,
    wanted: &'a Wanted,
    commit: &'a str,
}

impl Fetching<'_> {
    fn files(&self, names: &[String]) -> Result<(), HubError> {
        for name in names {
            if !self.snapshots.has(self.commit, name) {
                blob::fetch(self.remote, self.snapshots, self.wanted, self.commit, name)?;
            }
        }
        Ok(())
    }

    /// The files that the index names; an index that names a file the repository lacks is a broken repository.
    fn shards(&self, listed: &[String]) -> Result<(), HubError> {
        let shards = self.snapshots.shards(self.commit)?;
        match shards.iter().find(|shard| !listed.contains(shard)) {
            Some(absent) => Err(HubError::NoUsableFiles {
                repo: self.wanted.to_string(),
                reason: format!("{INDEX} names {absent}, which the repository does not hold"),
            }),
            None => self.files(&shards),
        }
    }
}

/// The part of `model.safetensors.index.json` that says which files there are.
#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}
