//! Anchors: once a day, the heads of all chains are noted in a chain of their own, which can be kept elsewhere.
//!
//! Who holds an anchor can tell whether a chain was made anew up to there, which its own hashes cannot show: whoever
//! may write the store may write all of them. An anchor's hash is `BLAKE3(hash of the anchor before || day || for
//! each head: epoch, seq, hash)`, numbers as in [rows](super::row), the day counted from 1970.

use super::{row::Hash, verify::Head};

/// The heads of one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Days since 1970, in UTC.
    pub day: i64,
    /// Of every epoch that had not ended at the anchor before, by epoch.
    pub heads: Vec<Head>,
    /// Of the anchors up to this one.
    pub hash: Hash,
}

impl Anchor {
    /// The anchor that follows `before`.
    pub fn new(before: Hash, day: i64, mut heads: Vec<Head>) -> Anchor {
        heads.sort_unstable();
        let mut anchor = Anchor { day, heads, hash: Hash::NONE };
        anchor.hash = anchor.hash_after(before);
        anchor
    }

    /// The hash that it must have after one with the hash `before`.
    pub fn hash_after(&self, before: Hash) -> Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&before.0).update(&self.day.to_le_bytes());
        for head in &self.heads {
            hasher.update(&head.epoch.to_le_bytes()).update(&head.seq.to_le_bytes()).update(&head.hash.0);
        }
        Hash(*hasher.finalize().as_bytes())
    }
}

/// The first anchor whose hash or day is not what it must be after the one before, by its day.
pub fn first_bad_anchor(anchors: &[Anchor]) -> Option<i64> {
    let (mut before, mut day) = (Hash::NONE, i64::MIN);
    let is_bad = |anchor: &&Anchor| {
        let good = anchor.day > day && anchor.hash == anchor.hash_after(before);
        (before, day) = (anchor.hash, anchor.day);
        !good
    };
    anchors.iter().find(is_bad).map(|anchor| anchor.day)
}
