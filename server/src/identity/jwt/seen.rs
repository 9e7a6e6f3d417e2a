//! Tokens whose signatures were found good not long ago. A client sends the same token with every request, and a
//! signature costs some 50 µs to verify, fifty times what all the rest does.
//!
//! What is remembered is that this text, to the byte, was signed by a key of this very set, and its claims. They are
//! judged anew each time, since time passes; and with another set of keys it is as if the token had not been seen.
//! Only good tokens come in, so nobody can drive them out who has none. Slots are a fixed number, and no lock is taken.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use subtle::ConstantTimeEq;

use super::{compact::Claims, key_set::KeySet};

/// Tokens at once, at most; a direct-mapped table.
const SLOTS: usize = 1024;
/// Longer ones are verified each time: this bounds the table to some 10 MB.
const TOKEN_BYTES_MAX: usize = 4 << 10;

/// The table.
pub(super) struct Seen(Box<[ArcSwapOption<Entry>]>);

/// A token that was found good.
pub(super) struct Entry {
    digest: blake3::Hash,
    /// The place of its issuer.
    pub(super) issuer: usize,
    /// The keys it was verified by.
    pub(super) keys: Arc<KeySet>,
    pub(super) claims: Claims,
}

impl Default for Seen {
    fn default() -> Self {
        Seen((0..SLOTS).map(|_| ArcSwapOption::empty()).collect())
    }
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seen")
    }
}

impl Seen {
    pub(super) fn get(&self, text: &[u8]) -> Option<Arc<Entry>> {
        let digest = blake3::hash(text);
        let entry = self.slot(&digest).load_full()?;
        bool::from(entry.digest.as_bytes().ct_eq(digest.as_bytes())).then_some(entry)
    }

    pub(super) fn put(&self, text: &[u8], issuer: usize, keys: Arc<KeySet>, claims: Claims) {
        if text.len() <= TOKEN_BYTES_MAX {
            let digest = blake3::hash(text);
            self.slot(&digest).store(Some(Arc::new(Entry { digest, issuer, keys, claims })));
        }
    }

    fn slot(&self, digest: &blake3::Hash) -> &ArcSwapOption<Entry> {
        let bytes = digest.as_bytes();
        &self.0[usize::from(u16::from_le_bytes([bytes[0], bytes[1]])) % SLOTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_to_the_byte_and_the_table_is_bounded() {
        let seen = Seen::default();
        let put = |text: &[u8], issuer| seen.put(text, issuer, Arc::default(), Claims::new());
        let issuer = |text: &[u8]| seen.get(text).map(|entry| entry.issuer);
        assert_eq!(issuer(b"a.b.c"), None);
        put(b"a.b.c", 1);
        put(b"a.b.d", 2);
        assert_eq!((issuer(b"a.b.c"), issuer(b"a.b.d"), issuer(b"a.b.")), (Some(1), Some(2), None));
        put(&[b'x'; TOKEN_BYTES_MAX + 1], 3);
        assert_eq!(issuer(&[b'x'; TOKEN_BYTES_MAX + 1]), None);
        (0..10 * SLOTS).for_each(|at| put(at.to_string().as_bytes(), at));
        let kept = (0..10 * SLOTS).filter(|at| issuer(at.to_string().as_bytes()).is_some()).count();
        assert!(kept <= SLOTS, "{kept}");
        // Whoever shares a slot is never taken for the other.
        assert!((0..10 * SLOTS).all(|at| issuer(at.to_string().as_bytes()).is_none_or(|found| found == at)));
    }
}
