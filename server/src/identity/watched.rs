//! Files whose content is looked at again and again: secrets and certificates are replaced while the server runs.

use std::{fs::File, io::Read, path::PathBuf, time::Duration};

/// How often they are looked at.
pub const EVERY: Duration = Duration::from_secs(2);
/// What is read of each.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Some files, and what they held when they were last looked at. By content, not by time: a mount of Kubernetes changes
/// through links, and a clock that steps back must not hide a change.
#[derive(Debug)]
pub struct Watched {
    files: Vec<PathBuf>,
    seen: [u8; 32],
}

impl Watched {
    /// These files, as they are now.
    pub fn new(files: Vec<PathBuf>) -> Self {
        let seen = digest(&files);
        Watched { files, seen }
    }

    /// Whether any of them holds something else than the last time, or came or went.
    pub fn changed(&mut self) -> bool {
        let now = digest(&self.files);
        std::mem::replace(&mut self.seen, now) != now
    }
}

fn digest(files: &[PathBuf]) -> [u8; 32] {
    let mut all = blake3::Hasher::new();
    for path in files {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
        all.update(&[u8::from(read.is_ok())]).update(blake3::hash(&bytes).as_bytes());
    }
    all.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_change_is_seen_once() {
        let folder = tempfile::tempdir().expect("folder");
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&a, "1").expect("written");
        let mut watched = Watched::new(vec![a.clone(), b.clone()]);
        assert!(!watched.changed());
        fs::write(&a, "2").expect("written");
        assert!(watched.changed() && !watched.changed());
        fs::write(&b, "").expect("written");
        assert!(watched.changed() && !watched.changed());
        // As Kubernetes does it: another file under the same name.
        fs::write(folder.path().join("c"), "3").expect("written");
        fs::rename(folder.path().join("c"), &a).expect("renamed");
        assert!(watched.changed() && !watched.changed());
        fs::remove_file(&b).expect("removed");
        assert!(watched.changed() && !watched.changed());
    }
}
