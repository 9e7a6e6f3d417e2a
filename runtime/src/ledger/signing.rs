//! The key that months are signed with: Ed25519 (RFC 8032) over `weir month 1\n` and the statement's text.

use std::{fmt, io, path::Path};

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::row::Hash;

const SIGNED: &[u8] = b"weir month 1\n";

/// The key that months are signed with.
pub struct SigningKey(Ed25519KeyPair);

/// What anybody can check them with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<PublicKey> {
        Hash::from_hex(text).map(|hash| PublicKey(hash.0))
    }

    /// Whether its owner has signed this statement.
    pub(super) fn has_signed(&self, text: &str, signature: &[u8]) -> bool {
        let signed = [SIGNED, text.as_bytes()].concat();
        UnparsedPublicKey::new(&ED25519, self.0).verify(&signed, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hash(self.0), f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SigningKey {
    /// From its 32 secret bytes.
    pub fn from_seed(seed: &[u8; 32]) -> SigningKey {
        SigningKey(Ed25519KeyPair::from_seed_unchecked(seed).expect("a seed of 32 bytes is always a key"))
    }

    /// Reads a file that holds the seed as 64 hexadecimal digits, with white space around them or without, and that
    /// nobody but its owner may read or write.
    pub fn from_file(path: &Path) -> io::Result<SigningKey> {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let message = format!("others than its owner may use it (mode {mode:o}): chmod 600 it");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let text = std::fs::read_to_string(path)?;
        let seed = Hash::from_hex(text.trim())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a signing key is 64 hexadecimal digits"))?;
        Ok(SigningKey::from_seed(&seed.0))
    }

    /// Writes a new key into a file that only its owner may read and that is not there yet, and makes its folder.
    pub fn create(path: &Path) -> io::Result<SigningKey> {
        use std::{
            io::Write,
            os::unix::fs::{DirBuilderExt, OpenOptionsExt},
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        writeln!(file, "{}", Hash(seed))?;
        file.sync_all()?;
        Ok(SigningKey::from_seed(&seed))
    }

    /// What its signatures are checked with.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs a statement's text: 64 bytes.
    pub fn sign(&self, text: &str) -> Vec<u8> {
        self.0.sign(&[SIGNED, text.as_bytes()].concat()).as_ref().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public())
    }
}
