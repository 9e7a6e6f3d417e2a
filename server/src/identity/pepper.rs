//! The secret that key hashes are made with: a copy of the store alone lets nobody test guesses or plant keys.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::keys::{hex, random_id};

/// 64 hexadecimal digits and the end of a line; more is not read.
const FILE_BYTES_MAX: u64 = 128;

/// 256 secret bits. It has no `Debug` that shows them.
#[derive(Clone, PartialEq, Eq)]
pub struct Pepper([u8; 32]);

impl Pepper {
    /// A new one.
    pub fn random() -> Result<Self, PepperError> {
        let mut bits = [0; 32];
        getrandom::fill(&mut bits).map_err(|e| PepperError::NoRandomness(e.to_string()))?;
        Ok(Pepper(bits))
    }

    /// Reads the file, which only its owner may read; makes it where there is none.
    pub fn open(path: &Path) -> Result<Self, PepperError> {
        match read(path) {
            Err(PepperError::File { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {}
            read => return read,
        }
        match write(path, &Pepper::random()?) {
            // Another process was faster: its pepper is the pepper.
            Err(PepperError::File { cause, .. }) if cause.kind() == io::ErrorKind::AlreadyExists => read(path),
            Err(error) => Err(error),
            // What was written is what later starts will read.
            Ok(()) => read(path),
        }
    }

    /// BLAKE3 keyed with the pepper, over what `domain` says it is: hashes of one kind never pass for another's.
    pub(super) fn hash(&self, domain: &'static str, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in [domain.as_bytes()].iter().chain(parts) {
            // Lengths first, or two lists of parts could read alike.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }

    /// Tells one pepper from another without telling it: a store keeps this beside its keys, so that a server with the
    /// wrong file says so at its start and does not refuse every key.
    pub fn mark(&self) -> String {
        hex(&self.hash("weir pepper mark v1", &[])[..8])
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pepper({})", self.mark())
    }
}

fn read(path: &Path) -> Result<Pepper, PepperError> {
    let fail = |cause| PepperError::File { path: path.to_owned(), cause };
    let file = fs::File::open(path).map_err(fail)?;
    let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PepperError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(fail)?;
    let digits = text.trim_end_matches(['\r', '\n']).as_bytes();
    let mut bits = [0; 32];
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let read = (digits.len() == 64).then(|| {
        bits.iter_mut().zip(digits.chunks(2)).try_for_each(|(byte, pair)| {
            *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
            Some(())
        })
    });
    match read.flatten() {
        Some(()) => Ok(Pepper(bits)),
        None => Err(PepperError::NotAPepper { path: path.to_owned() }),
    }
}

/// Writes beside and links into place: the file is whole or not there, and never replaced.
fn write(path: &Path, pepper: &Pepper) -> Result<(), PepperError> {
    let fail = |cause| PepperError::File { path: path.to_owned(), cause };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
    }
    let beside = path.with_file_name(format!(".pepper-{}", random_id()));
    let digits = hex(&pepper.0);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| writeln!(file, "{digits}").and_then(|()| file.sync_all()))
        .and_then(|()| fs::hard_link(&beside, path));
    let _ = fs::remove_file(&beside);
    written.map_err(fail)
}

/// A pepper that could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PepperError {
    /// The file cannot be read or written.
    #[error("pepper file {path}: {cause}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Others on this machine may read it.
    #[error("pepper file {path} can be read by others (mode {mode:03o}): run `chmod 600 {path}`")]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds something else.
    #[error(
        "pepper file {path} must hold 64 hexadecimal digits; put the backup back: with another one no key is known"
    )]
    NotAPepper {
        /// Which.
        path: PathBuf,
    },
    /// The system has no randomness.
    #[error("no random bytes from the system: {0}")]
    NoRandomness(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_makes_it_and_later_ones_read_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("deep/pepper");
        let first = Pepper::open(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        assert_eq!(Pepper::open(&path).expect("read"), first);
        assert_eq!(fs::read_dir(path.parent().expect("folder")).expect("listed").count(), 1, "nothing is left beside");
        assert!(write(&path, &Pepper::random().expect("pepper")).is_err(), "never replaced");
        let shown = format!("{first:?}");
        assert!(!fs::read_to_string(&path).expect("text").contains(&shown[7..shown.len() - 1]), "{shown}");
    }

    #[test]
    fn files_that_others_can_read_or_that_hold_something_else_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("pepper");
        Pepper::open(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(Pepper::open(&path), Err(PepperError::Exposed { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        for bad in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"a".repeat(65), &"a".repeat(300)] {
            fs::write(&path, bad).expect("written");
            assert!(matches!(Pepper::open(&path), Err(PepperError::NotAPepper { .. })), "{bad}");
        }
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let pepper = Pepper([7; 32]);
        let hash = |domain, parts: &[&[u8]]| pepper.hash(domain, parts);
        assert_ne!(hash("d", &[b"ab", b"c"]), hash("d", &[b"a", b"bc"]));
        assert_ne!(hash("d", &[b"a"]), hash("e", &[b"a"]));
        assert_ne!(hash("d", &[b"a"]), Pepper([8; 32]).hash("d", &[b"a"]));
    }
}
