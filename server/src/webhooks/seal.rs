//! Secrets that must be read again, sealed under a key that is in a file and not in the store.
//!
//! AES-256-GCM. A sealed secret is a byte 1, 12 random bytes (the nonce), and the text with its tag; what it is for is
//! authenticated with it, so that one webhook's secret cannot be put in another's place. 2^32 secrets can be sealed under
//! one key before nonces are to be feared.

use std::{fmt, path::Path};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::keys::{Key, KeyError, read_key_file, write_key_file};

const VERSION: u8 = 1;

/// The key that seals.
#[derive(Clone)]
pub struct EnvelopeKey(LessSafeKey);

impl EnvelopeKey {
    /// Reads the file, which only its owner may read; makes it where there is none.
    pub fn open(path: &Path) -> Result<Self, SealError> {
        if !path.exists() {
            match write_key_file(path, &Key::random()?) {
                // Another process was faster: its key is the key.
                Err(KeyError::File { cause, .. }) if cause.kind() == std::io::ErrorKind::AlreadyExists => {}
                written => written?,
            }
        }
        Ok(EnvelopeKey::of(read_key_file(path)?.reveal()))
    }

    /// The key that a text stands for.
    fn of(text: &str) -> Self {
        let bits = blake3::derive_key("weir 2026 envelope of webhook secrets, AES-256-GCM", text.as_bytes());
        EnvelopeKey(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bits).expect("32 bytes are a key")))
    }

    /// Seals a secret of what `owner` names.
    pub(crate) fn seal(&self, owner: &str, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|e| SealError::NoRandomness(e.to_string()))?;
        let mut sealed = secret.to_vec();
        let aad = Aad::from(owner.as_bytes());
        let done = self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed);
        done.map_err(|_| SealError::Unsealed)?;
        Ok([&[VERSION][..], &nonce, &sealed].concat())
    }

    /// Opens what was sealed for the same owner under the same key.
    pub(crate) fn unseal(&self, owner: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (head, text) = sealed.split_at_checked(1 + NONCE_LEN).ok_or(SealError::Unsealed)?;
        let nonce = Nonce::try_assume_unique_for_key(&head[1..]).map_err(|_| SealError::Unsealed)?;
        if head[0] != VERSION {
            return Err(SealError::Unsealed);
        }
        let mut text = text.to_vec();
        let opened = self.0.open_in_place(nonce, Aad::from(owner.as_bytes()), &mut text);
        Ok(opened.map_err(|_| SealError::Unsealed)?.to_vec())
    }
}

impl fmt::Debug for EnvelopeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnvelopeKey(…)")
    }
}

/// A secret that could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key's file.
    #[error("the envelope key: {0}")]
    File(#[from] KeyError),
    /// It was sealed under another key, for something else, or was changed.
    #[error(
        "the secret was sealed under another key or was changed: put the envelope key's file back, or make a new secret"
    )]
    Unsealed,
    /// The system has no randomness.
    #[error("no random bytes from the system: {0}")]
    NoRandomness(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_for_its_owner_under_its_key_and_nowhere_else() {
        let (key, other) = (EnvelopeKey::of("a"), EnvelopeKey::of("b"));
        let sealed = key.seal("w1", b"secret").expect("sealed");
        assert_eq!(key.unseal("w1", &sealed).expect("opened"), b"secret");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_ne!(key.seal("w1", b"secret").expect("sealed"), sealed, "each has a nonce of its own");
        assert!(key.unseal("w2", &sealed).is_err() && other.unseal("w1", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.unseal("w1", &changed).is_err(), "byte {at}");
            assert!(key.unseal("w1", &sealed[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn the_first_start_makes_the_file_and_later_ones_read_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("deep/envelope.key");
        let sealed = EnvelopeKey::open(&path).expect("made").seal("w", b"x").expect("sealed");
        assert_eq!(EnvelopeKey::open(&path).expect("read").unseal("w", &sealed).expect("opened"), b"x");
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(EnvelopeKey::open(&path), Err(SealError::File(KeyError::Exposed { .. }))));
    }
}
