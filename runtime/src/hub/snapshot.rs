//! One repository in the cache: `{blobs,refs,snapshots}` below `hub/models--org--name`.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo};

use super::choice::{self, Choice, INDEX, Lack};
use super::wanted::{Wanted, is_commit, is_relative};
use super::{HubError, ShardIndex};

/// How deep below a snapshot files are looked for: `1_Pooling/config.json`, `UD-Q4_K_M/model.gguf`.
const DEPTH_MAX: usize = 3;

/// A repository's folder in the cache.
pub(super) struct Snapshots {
    layout: CacheRepo,
    root: PathBuf,
    locks: PathBuf,
    revision: String,
}

impl Snapshots {
    pub(super) fn new(home: &Path, wanted: &Wanted) -> Self {
        let cache = Cache::new(home.join("hub"));
        let repo = wanted.repo();
        let root = cache.path().join(repo.folder_name());
        let locks = cache.path().join(".locks").join(repo.folder_name());
        Snapshots { layout: cache.repo(repo), root, locks, revision: wanted.revision().to_owned() }
    }

    /// The folder of a commit.
    pub(super) fn folder(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// Whether a file of a commit is here; a link whose blob is gone is not.
    pub(super) fn has(&self, commit: &str, name: &str) -> bool {
        self.folder(commit).join(name).is_file()
    }

    /// Where the bytes of an ETag are.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    /// Waits for whoever else downloads this blob; the file is the one that `huggingface_hub` locks, in the same way
    /// (`flock`). The lock ends with the returned file.
    pub(super) fn lock(&self, etag: &str, name: &str) -> Result<File, HubError> {
        fs::create_dir_all(&self.locks).map_err(HubError::io("create", &self.locks))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::create(&path).map_err(HubError::io("create", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("waiting for another download of {name}");
                file.lock().map_err(HubError::io("lock", &path))?;
            }
            Err(TryLockError::Error(source)) => return Err(HubError::Io { action: "lock", path, source }),
        }
        Ok(file)
    }

    /// Lets `snapshots/<commit>/<name>` point at `blobs/<etag>`, by a relative link so that the cache can be moved.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<(), HubError> {
        let pointer = self.folder(commit).join(name);
        let parent = pointer.parent().expect("a name is joined to a folder");
        fs::create_dir_all(parent).map_err(HubError::io("create", parent))?;
        // From snapshots/<commit>/a/b up to the repository's folder: two levels and one per folder in the name.
        let up = "../".repeat(2 + name.matches('/').count());
        // Made beside and renamed: the name is never half there, and a link to a blob that is gone is replaced.
        let fresh = parent.join(format!(".{etag}.{}", std::process::id()));
        remove_if_there(&fresh)?;
        point(&fresh, &format!("{up}blobs/{etag}"), &self.blob(etag)).map_err(HubError::io("link", &pointer))?;
        fs::rename(&fresh, &pointer).map_err(HubError::io("link", &pointer))
    }

    /// Remembers which commit the revision is.
    pub(super) fn set_ref(&self, commit: &str) -> Result<(), HubError> {
        if self.revision == commit || self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        self.layout.create_ref(commit).map_err(HubError::io("write", &self.ref_path()))
    }

    /// The files that the index of a commit names, each once.
    pub(super) fn shards(&self, commit: &str) -> Result<Vec<String>, HubError> {
        let path = self.folder(commit).join(INDEX);
        let text = fs::read(&path).map_err(HubError::io("read", &path))?;
        let index: ShardIndex =
            serde_json::from_slice(&text).map_err(|e| HubError::io("read", &path)(std::io::Error::other(e)))?;
        let mut shards: Vec<String> = index.weight_map.into_values().collect();
        shards.sort();
        shards.dedup();
        match shards.iter().find(|s| !is_relative(s) || !s.ends_with(".safetensors")) {
            Some(odd) => {
                let reason = format!("it names a file `{odd}`");
                Err(HubError::io("use", &path)(std::io::Error::new(ErrorKind::InvalidData, reason)))
            }
            None => Ok(shards),
        }
    }

    /// The model from what is here, or an error that names what is not.
    pub(super) fn find(&self, wanted: &Wanted) -> Result<PathBuf, HubError> {
        let missing = |names: Vec<String>| Lack::Missing(names).offline(wanted, &self.root);
        let Some(commit) = self.commit() else {
            return Err(missing(vec!["snapshot".to_owned()]));
        };
        let folder = self.folder(&commit);
        let mut names = Vec::new();
        collect(&folder, "", DEPTH_MAX, &mut names);
        names.sort();
        match choice::choose(&names, wanted.file()).map_err(|lack| lack.offline(wanted, &self.root))? {
            Choice::Gguf(name) => Ok(folder.join(name)),
            Choice::Folder { sharded, .. } => {
                let shards = if sharded { self.shards(&commit)? } else { Vec::new() };
                let absent: Vec<String> = shards.into_iter().filter(|s| !self.has(&commit, s)).collect();
                if absent.is_empty() { Ok(folder) } else { Err(missing(absent)) }
            }
        }
    }

    /// The commit that the revision is or last was.
    fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let text = fs::read_to_string(self.ref_path()).ok()?;
        Some(text.trim().to_owned()).filter(|c| is_commit(c))
    }

    fn ref_path(&self) -> PathBuf {
        self.root.join("refs").join(&self.revision)
    }
}

/// Collects the files below a folder as `a/b`. What cannot be read is not there, and the choice says what that lacks.
fn collect(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if path.is_file() {
            names.push(name);
        } else if depth > 1 && path.is_dir() {
            collect(&path, &format!("{name}/"), depth - 1, names);
        }
    }
}

/// Deletes a file that may not be there.
pub(super) fn remove_if_there(path: &Path) -> Result<(), HubError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(HubError::io("delete", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn point(at: &Path, target: &str, _blob: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

/// Where links need rights, a second name for the same bytes does.
#[cfg(not(unix))]
fn point(at: &Path, _target: &str, blob: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, at)
}
