//! The exact bytes of every token.

use std::collections::HashMap;
use std::sync::LazyLock;

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// One printable character per byte, the table of GPT-2.
    ByteLevel,
    /// `▁` for a space, `<0xNN>` for a byte that is no character of the vocabulary.
    SentencePiece,
    /// `##` before pieces that continue a word.
    WordPiece,
    /// As it reads.
    Plain,
}

/// GPT-2's table: printable Latin-1 stands for itself, the other bytes for U+0100 onwards.
static BYTE_OF_CHAR: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let mut others = 0x100..;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => (char::from(byte), byte),
            _ => (others.next().and_then(char::from_u32).expect("U+0100 to U+0143 are characters"), byte),
        })
        .collect()
});

impl Spelling {
    /// The bytes that `token` stands for.
    pub(crate) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => token
                .chars()
                .map(|c| BYTE_OF_CHAR.get(&c).copied())
                .collect::<Option<_>>()
                // A token that is not spelled in the alphabet was added as plain text.
                .unwrap_or_else(|| token.as_bytes().to_vec()),
            Self::SentencePiece => match byte_piece(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
            Self::WordPiece => token.strip_prefix("##").unwrap_or(token).as_bytes().to_vec(),
            Self::Plain => token.as_bytes().to_vec(),
        }
    }
}

fn byte_piece(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// The bytes of all tokens, one after the other.
#[derive(Debug, Default)]
pub(crate) struct TokenBytes {
    data: Vec<u8>,
    ends: Vec<usize>,
}

impl TokenBytes {
    /// Appends the bytes of the next id.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
        self.ends.push(self.data.len());
    }

    /// The bytes of `id`; none for an id that is not in the vocabulary.
    pub(crate) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.data[start..end]
    }

    /// Ids in the vocabulary, holes included.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_spelling_gives_its_bytes() {
        assert_eq!(Spelling::ByteLevel.bytes("Ġworld"), b" world");
        assert_eq!(Spelling::ByteLevel.bytes("Ã"), [0xC3], "half a character");
        assert_eq!(Spelling::ByteLevel.bytes("Ċ"), b"\n");
        assert_eq!(Spelling::ByteLevel.bytes("日本"), "日本".as_bytes(), "added text is itself");
        assert_eq!(Spelling::SentencePiece.bytes("▁▁the"), b"  the");
        assert_eq!(Spelling::SentencePiece.bytes("<0x0A>"), b"\n");
        assert_eq!(Spelling::SentencePiece.bytes("<0x0AB>"), b"<0x0AB>");
        assert_eq!(Spelling::WordPiece.bytes("##ing"), b"ing");
        let all: std::collections::HashSet<u8> = BYTE_OF_CHAR.values().copied().collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn bytes_of_ids_outside_are_empty() {
        let mut bytes = TokenBytes::default();
        bytes.push(b"ab");
        bytes.push(b"");
        bytes.push(b"c");
        assert_eq!([bytes.get(0), bytes.get(1), bytes.get(2), bytes.get(3)], [&b"ab"[..], b"", b"c", b""]);
    }
}
