//! API keys: making them, keeping them in files, and what is kept of them.
//!
//! A key is `weir-` and 256 random bits, so a plain SHA-256 is enough to store: nobody can guess the input. The server
//! keeps only hashes in memory; a key file is read once.

use std::{
    cell::RefCell,
    fmt, fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Longest key that is looked at.
pub(crate) const KEY_BYTES_MAX: usize = 512;
const PREFIX: &str = "weir-";

/// A key in the clear. It has no `Debug` that shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// A new one.
    pub fn random() -> Result<Self, KeyError> {
        let mut bits = [0u8; 32];
        getrandom::fill(&mut bits).map_err(|e| KeyError::NoRandomness(e.to_string()))?;
        Ok(Key(format!("{PREFIX}{}", hex(&bits))))
    }

    /// The text a client sends.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What may be stored.
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Hashes what a client sent.
    pub fn of(key: &[u8]) -> Self {
        KeyHash(Sha256::digest(key).into())
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
        let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, d| (byte << 4) | d)).collect();
        (digits.len() == 64).then_some(())?;
        Some(KeyHash(bytes.try_into().ok()?))
    }

    /// Whether two hashes are equal, in a time that does not depend on where they differ.
    pub(crate) fn matches(&self, other: &KeyHash) -> Choice {
        self.0.ct_eq(&other.0)
    }

    /// The hash itself.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// All 64 digits.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({}…)", &self.hex()[..8])
    }
}

/// A key that could not be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("key file {path}: {cause}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Others on this machine may read the file.
    #[error("key file {path} can be read by others (mode {mode:03o}): run `chmod 600 {path}`")]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold one key.
    #[error("key file {path} must hold one line with a key of at most {KEY_BYTES_MAX} visible ASCII characters")]
    NotAKey {
        /// Which.
        path: PathBuf,
    },
    /// The system has no randomness.
    #[error("no random bytes from the system: {0}")]
    NoRandomness(String),
}

/// Reads a key file, refusing one that group or others can read.
pub fn read_key_file(path: &Path) -> Result<Key, KeyError> {
    let fail = |cause| KeyError::File { path: path.to_owned(), cause };
    let file = fs::File::open(path).map_err(fail)?;
    // Of the open file, so that nobody swaps it in between.
    let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    let bytes_max = KEY_BYTES_MAX as u64 + 2;
    file.take(bytes_max).read_to_string(&mut text).map_err(fail)?;
    let key = text.trim_end_matches(['\r', '\n']);
    match plausible(key.as_bytes()) {
        true => Ok(Key(key.to_owned())),
        false => Err(KeyError::NotAKey { path: path.to_owned() }),
    }
}

/// Writes a key into a new file of mode 0600, making its folder. Never replaces a file.
pub fn write_key_file(path: &Path, key: &Key) -> Result<(), KeyError> {
    let fail = |cause| KeyError::File { path: path.to_owned(), cause };
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        // Keys and the database lie in it: nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    writeln!(file, "{}", key.reveal()).and_then(|()| file.sync_all()).map_err(fail)
}

/// Whether a text can be a key at all.
pub(crate) fn plausible(key: &[u8]) -> bool {
    !key.is_empty() && key.len() <= KEY_BYTES_MAX && key.iter().all(u8::is_ascii_graphic)
}

/// Two digits for each byte. Not by the formatter, which takes a few hundred instructions a byte: every request has ids.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Random bytes of one id.
const ID_BYTES: usize = 12;
/// Ids that a thread draws at once: every request has two, and the system is a way to go.
const IDS_DRAWN: usize = 32;

/// Random hexadecimal digits for ids; not secret.
pub(crate) fn random_id() -> String {
    thread_local! {
        static DRAWN: RefCell<Vec<[u8; ID_BYTES]>> = const { RefCell::new(Vec::new()) };
    }
    let drawn = DRAWN.with_borrow_mut(|drawn| {
        if drawn.is_empty() {
            let mut bits = [[0; ID_BYTES]; IDS_DRAWN];
            getrandom::fill(bits.as_flattened_mut())?;
            drawn.extend(bits);
        }
        Ok::<_, getrandom::Error>(drawn.pop().unwrap_or_default())
    });
    match drawn {
        Ok(bits) => hex(&bits),
        // Ids need not be secret, only distinct.
        Err(_) => {
            use std::sync::atomic::{AtomicU64, Ordering};
            static NEXT: AtomicU64 = AtomicU64::new(0);
            format!("{:024x}", NEXT.fetch_add(1, Ordering::Relaxed))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_and_distinct() {
        let (a, b) = (Key::random().expect("key"), Key::random().expect("key"));
        assert_eq!(a.reveal().len(), PREFIX.len() + 64);
        assert_ne!(a.reveal(), b.reveal());
        assert!(!format!("{a:?}").contains(&a.reveal()[5..]));
    }

    #[test]
    fn ids_are_distinct_beyond_those_that_are_drawn_at_once() {
        let ids: std::collections::BTreeSet<String> = (0..3 * IDS_DRAWN).map(|_| random_id()).collect();
        assert_eq!(ids.len(), 3 * IDS_DRAWN);
        assert!(ids.iter().all(|id| id.len() == 2 * ID_BYTES));
    }

    #[test]
    fn hashes_are_sha256_in_hex() {
        // FIPS 180-2, appendix B.1.
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyHash::of(b"abc").hex(), known);
        assert_eq!(KeyHash::parse(known), Some(KeyHash::of(b"abc")));
        assert_eq!(KeyHash::parse(&known.to_uppercase()), Some(KeyHash::of(b"abc")));
        for bad in ["", "ab", &known[1..], &format!("{known}0"), &known.replace('b', "g"), &known.replace('b', "é")] {
            assert_eq!(KeyHash::parse(bad), None, "{bad}");
        }
        assert!(!format!("{:?}", KeyHash::of(b"abc")).contains(&known[16..]));
    }

    #[test]
    fn written_files_are_private_and_never_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("deep/er/demo.key");
        let key = Key::random().expect("key");
        write_key_file(&path, &key).expect("write");
        let mode = fs::metadata(&path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(read_key_file(&path).expect("read"), key);
        assert!(write_key_file(&path, &Key::random().expect("key")).is_err());
        assert_eq!(read_key_file(&path).expect("read"), key);
    }

    #[test]
    fn files_that_others_can_read_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("k");
        write_key_file(&path, &Key::random().expect("key")).expect("write");
        for (mode, fine) in
            [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o660, false), (0o602, false)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            assert_eq!(read_key_file(&path).is_ok(), fine, "{mode:o}");
        }
    }

    #[test]
    fn a_file_must_hold_exactly_one_key() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("k");
        fs::write(&path, "").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        for bad in ["", "\n", "two words", "two\nlines", "tab\t", "schlüssel", &"x".repeat(KEY_BYTES_MAX + 1)] {
            fs::write(&path, bad).expect("write");
            assert!(matches!(read_key_file(&path), Err(KeyError::NotAKey { .. })), "{bad}");
        }
        for good in ["x", "x\n", "x\r\n", &"x".repeat(KEY_BYTES_MAX)] {
            fs::write(&path, good).expect("write");
            assert!(read_key_file(&path).is_ok(), "{good}");
        }
        let missing = read_key_file(&folder.path().join("missing")).expect_err("missing").to_string();
        assert_eq!(missing.matches("No such file").count(), 1, "{missing}");
    }
}
