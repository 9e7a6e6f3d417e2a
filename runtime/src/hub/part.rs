//! A file on its way: `blobs/<etag>.incomplete`, its length and the digest of what it holds.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::HubError;

/// What is read at a time.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Half a download. The digest is kept up with every byte, so that nothing is read twice; only what an earlier process
/// left is read once.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    digest: Sha256,
}

impl Part {
    /// Opens or creates the file, and takes in what it already holds.
    pub(super) fn open(path: &Path) -> Result<Self, HubError> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(HubError::io("open", path))?;
        let (mut len, mut digest) = (0, Sha256::new());
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match file.read(&mut chunk).map_err(HubError::io("read", path))? {
                0 => return Ok(Part { path: path.to_owned(), file, len, digest }),
                read => {
                    digest.update(&chunk[..read]);
                    len += read as u64;
                }
            }
        }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::io("write", &self.path))?;
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what is there.
    pub(super) fn restart(&mut self) -> Result<(), HubError> {
        let file = File::options().write(true).truncate(true).open(&self.path);
        self.file = file.map_err(HubError::io("open", &self.path))?;
        (self.len, self.digest) = (0, Sha256::new());
        Ok(())
    }

    pub(super) fn delete(self) -> Result<(), HubError> {
        drop(self.file);
        fs::remove_file(&self.path).map_err(HubError::io("delete", &self.path))
    }

    /// Checks the digest, if one is known, and only then gives the file its name; deletes it otherwise.
    pub(super) fn finish(self, name: &str, sha256: Option<&str>, blob: &Path) -> Result<(), HubError> {
        let got: String = self.digest.clone().finalize().iter().map(|b| format!("{b:02x}")).collect();
        if let Some(expected) = sha256.filter(|expected| *expected != got) {
            let expected = expected.to_owned();
            self.delete()?;
            return Err(HubError::DigestMismatch { file: name.to_owned(), expected, got });
        }
        self.file.sync_all().map_err(HubError::io("write", &self.path))?;
        drop(self.file);
        fs::rename(&self.path, blob).map_err(HubError::io("rename", &self.path))
    }
}
