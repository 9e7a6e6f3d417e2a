//! A row as it is stored, its canonical bytes, and the chain that rows form.
//!
//! # Canonical bytes, version 1
//!
//! | bytes | what |
//! |---|---|
//! | 1 | the version, 1 |
//! | 8 each | `epoch`, `seq`, `at_us`, `device_ns`, `prompt_tokens`, `completion_tokens`: signed, little endian |
//! | 4 and n each | `kind`, `tenant`, `request`, `model`, `key`, `body`: the length in bytes, and the UTF-8 |
//!
//! Each field has one encoding and its end is known before it is read, so no two rows have the same bytes. A row's
//! hash is `BLAKE3(hash of the row before || canonical bytes)`; before the first row of an epoch stand 32 zero bytes.

use std::{borrow::Cow, fmt};

use super::{
    record::{Kind, Record},
    verify::Fault,
};

/// Version of the canonical bytes, and of the bodies.
pub const ROW_VERSION: u8 = 1;

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What stands before the first row of a chain.
    pub const NONE: Hash = Hash([0; 32]);

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Hash> {
        blake3::Hash::from_hex(text).ok().map(|hash| Hash(*hash.as_bytes()))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A row of the ledger. Texts that a kind has no use for are empty, and its numbers zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// Which life of which engine.
    pub epoch: i64,
    /// Its place in the epoch's chain, from 1.
    pub seq: i64,
    /// When it was written, in microseconds since 1970 by the clock of the machine, which may step.
    pub at_us: i64,
    /// The name of a [`Kind`].
    pub kind: Cow<'a, str>,
    /// Who pays; nobody for what is the operator's.
    pub tenant: Cow<'a, str>,
    /// Which request of the tenant.
    pub request: Cow<'a, str>,
    /// What it asked for.
    pub model: Cow<'a, str>,
    /// The API key that it came with.
    pub key: Cow<'a, str>,
    /// Device time that the row charges.
    pub device_ns: i64,
    /// Tokens of the prompt.
    pub prompt_tokens: i64,
    /// Tokens that were drawn.
    pub completion_tokens: i64,
    /// The rest, as JSON.
    pub body: Cow<'a, str>,
    /// The chain's hash up to and with this row.
    pub hash: Hash,
}

impl Row<'_> {
    /// Appends the canonical bytes to `out`.
    pub fn canonical(&self, out: &mut Vec<u8>) {
        out.push(ROW_VERSION);
        for number in [self.epoch, self.seq, self.at_us, self.device_ns, self.prompt_tokens, self.completion_tokens] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for text in [&self.kind, &self.tenant, &self.request, &self.model, &self.key, &self.body] {
            // Rows are written by us and bounded far below; a text of 4 GiB fits no row of either store.
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }

    /// The hash that the row must have after one with the hash `before`; `buffer` is scratch space.
    pub fn hash_after(&self, before: Hash, buffer: &mut Vec<u8>) -> Hash {
        buffer.clear();
        buffer.extend_from_slice(&before.0);
        self.canonical(buffer);
        Hash(*blake3::hash(buffer).as_bytes())
    }

    /// The row with texts of its own.
    pub fn into_owned(self) -> Row<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Row {
            epoch: self.epoch,
            seq: self.seq,
            at_us: self.at_us,
            kind: own(self.kind),
            tenant: own(self.tenant),
            request: own(self.request),
            model: own(self.model),
            key: own(self.key),
            device_ns: self.device_ns,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            body: own(self.body),
            hash: self.hash,
        }
    }

    /// What the row says.
    pub fn record(&self) -> Result<Record<'_>, Fault> {
        Record::from_row(self)
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        Kind::from_name(&self.kind)
    }
}

/// The end of an epoch's chain: makes the rows that follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Which epoch.
    pub epoch: i64,
    /// The last row's place; zero for none.
    pub seq: i64,
    /// The last row's hash.
    pub head: Hash,
}

impl Chain {
    /// A chain without rows.
    pub fn new(epoch: i64) -> Chain {
        Chain { epoch, seq: 0, head: Hash::NONE }
    }

    /// The next row.
    pub fn append(&mut self, at_us: i64, record: &Record<'_>) -> Row<'static> {
        let mut row = record.to_row();
        (row.epoch, row.seq, row.at_us) = (self.epoch, self.seq + 1, at_us);
        row.hash = row.hash_after(self.head, &mut Vec::with_capacity(256));
        (self.seq, self.head) = (row.seq, row.hash);
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_bytes_are_those_of_the_document() {
        let row = Row {
            epoch: 3,
            seq: 2,
            at_us: 1_800_000_000_000_000,
            kind: "settle".into(),
            tenant: "acme".into(),
            request: "req-1".into(),
            model: "tiny".into(),
            key: "wk_a".into(),
            device_ns: 1_500,
            prompt_tokens: 12,
            completion_tokens: 7,
            body: r#"{"plan":"starter","split":[["cpu0","cpu",1500]],"stop":"stop"}"#.into(),
            hash: Hash::NONE,
        };
        let mut bytes = Vec::new();
        row.canonical(&mut bytes);
        let mut expected = vec![1u8];
        for number in [3i64, 2, 1_800_000_000_000_000, 1_500, 12, 7] {
            expected.extend(number.to_le_bytes());
        }
        for text in [
            "settle",
            "acme",
            "req-1",
            "tiny",
            "wk_a",
            r#"{"plan":"starter","split":[["cpu0","cpu",1500]],"stop":"stop"}"#,
        ] {
            expected.extend((text.len() as u32).to_le_bytes());
            expected.extend(text.as_bytes());
        }
        assert_eq!(bytes, expected);
        // Computed by the program in docs/ledger.md.
        let hash = row.hash_after(Hash([7; 32]), &mut Vec::new());
        assert_eq!(hash.to_string(), "97e560f2de09b65aa19398e906df9d16a73a73f5438ce81e968f994e7632491e");
        assert_eq!(Hash::from_hex(&hash.to_string()), Some(hash));
    }
}
