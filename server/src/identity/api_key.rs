//! The text of an API key: `weir_`, a visible id, and a secret.
//!
//! ```text
//! weir_k3mz7q2v5b6w4xya_ljpt5hq...  74 characters
//!      visible id, 16    secret, 52: 256 bits in base32
//! ```
//!
//! The id may be shown, logged and written into an audit record: it is what a key is called. It makes the lookup one
//! step in a map. The form is fixed, so that scanners for leaked secrets can look for it:
//! `weir_[a-z2-7]{16}_[a-z2-7]{52}`.

use std::fmt;

use subtle::ConstantTimeEq;

use super::Pepper;

const PREFIX: &str = "weir_";
/// Digits of the visible part: 80 bits, so that ids made anywhere do not meet.
const ID_LEN: usize = 16;
/// Digits of 256 bits.
const SECRET_LEN: usize = 52;
const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// What a key is called everywhere but in the key itself.
const ID_PREFIX: &str = "wk_";

/// A key in the clear: shown once, never kept. It has no `Debug` that shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A new one.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut id = [0; 10];
        let mut secret = [0; 32];
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut secret)?;
        Ok(ApiKey(format!("{PREFIX}{}_{}", base32(&id), base32(&secret))))
    }

    /// Reads what a client sent. `None` where it has another form.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let body = text.strip_prefix(PREFIX.as_bytes())?;
        let (id, rest) = body.split_at_checked(ID_LEN)?;
        let secret = rest.strip_prefix(b"_")?;
        let digits = |part: &[u8]| part.iter().all(|byte| DIGITS.contains(byte));
        if secret.len() != SECRET_LEN || !digits(id) || !digits(secret) {
            return None;
        }
        Some(ApiKey(String::from_utf8(text.to_owned()).ok()?))
    }

    /// The text a client sends.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The visible part as keys are called: `wk_` and 16 digits.
    pub fn id(&self) -> String {
        format!("{ID_PREFIX}{}", self.visible())
    }

    /// The visible part alone.
    pub(super) fn visible(&self) -> &str {
        &self.0[PREFIX.len()..PREFIX.len() + ID_LEN]
    }

    /// What is stored. The whole text is hashed, id included: a hash moved to another row opens nothing.
    pub fn hash(&self, pepper: &Pepper) -> SecretHash {
        SecretHash(pepper.hash("weir api key v1", &[self.0.as_bytes()]))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}…)", self.id())
    }
}

/// The visible part of a key's id, `wk_` taken off. `None` where the id has another form.
pub(super) fn visible_of(id: &str) -> Option<&str> {
    let visible = id.strip_prefix(ID_PREFIX)?;
    (visible.len() == ID_LEN && visible.bytes().all(|byte| DIGITS.contains(&byte))).then_some(visible)
}

/// Whether a text can be a key's id.
pub fn is_key_id(id: &str) -> bool {
    visible_of(id).is_some()
}

/// A hash of a secret, keyed with the pepper. Compared in a time that does not depend on where two differ.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// From the store.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        SecretHash(bytes)
    }

    /// For the store.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    pub(super) fn matches(&self, other: &SecretHash) -> subtle::Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// RFC 4648's alphabet in lower case, without padding; the last digit's spare bits are 0.
fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut held, mut bits) = (0u32, 0u32);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(DIGITS[(held >> bits) as usize & 31]));
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(char::from(DIGITS[(held << (5 - bits)) as usize & 31]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_rfc_4648s() {
        // Section 10, in lower case and without padding.
        for (bytes, text) in [("", ""), ("f", "my"), ("fo", "mzxq"), ("foob", "mzxw6yq"), ("foobar", "mzxw6ytboi")] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
        assert_eq!((base32(&[255; 10]).len(), base32(&[255; 32]).len()), (ID_LEN, SECRET_LEN));
    }

    #[test]
    fn keys_are_distinct_and_read_back() {
        let (a, b) = (ApiKey::random().expect("key"), ApiKey::random().expect("key"));
        assert_eq!(a.reveal().len(), PREFIX.len() + ID_LEN + 1 + SECRET_LEN);
        assert!(a.reveal() != b.reveal() && a.id() != b.id());
        assert_eq!(ApiKey::parse(a.reveal().as_bytes()).as_ref(), Some(&a));
        assert_eq!(visible_of(&a.id()), Some(a.visible()));
        assert!(!format!("{a:?}").contains(&a.reveal()[22..]), "{a:?}");
    }

    #[test]
    fn other_forms_are_no_keys() {
        let key = ApiKey::random().expect("key");
        let text = key.reveal();
        let mut bad = vec![
            String::new(),
            "weir_".into(),
            text[..73].into(),
            format!("{text}a"),
            text.to_uppercase(),
            text.replace("weir_", "weir-"),
            text.replace("weir_", "weir_0"),
        ];
        bad.push(format!("{}-{}", &text[..21], &text[22..]));
        bad.push(format!("{}1", &text[..73]));
        bad.push(format!("{}é", &text[..72]));
        for text in bad {
            assert_eq!(ApiKey::parse(text.as_bytes()), None, "{text}");
        }
        for id in ["", "wk_", "wk_k3mz7q2v5b6w4xy", "wk_k3mz7q2v5b6w4xyA", "k3mz7q2v5b6w4xya"] {
            assert_eq!(visible_of(id), None, "{id}");
        }
    }

    #[test]
    fn a_hash_is_of_one_key_under_one_pepper() {
        let (one, other) = (Pepper::random().expect("pepper"), Pepper::random().expect("pepper"));
        let (a, b) = (ApiKey::random().expect("key"), ApiKey::random().expect("key"));
        let same = |x: SecretHash, y: SecretHash| bool::from(x.matches(&y));
        assert!(same(a.hash(&one), ApiKey::parse(a.reveal().as_bytes()).expect("key").hash(&one)));
        assert!(!same(a.hash(&one), a.hash(&other)) && !same(a.hash(&one), b.hash(&one)));
        let stored = SecretHash::from_bytes(a.hash(&one).to_bytes());
        assert!(same(stored, a.hash(&one)) && !format!("{stored:?}").contains(a.reveal()));
    }
}
