//! An issuer's public keys (RFC 7517), and the one thing they do: verify a signature by the one algorithm each is for.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;

/// Largest set that is read.
pub const KEY_SET_BYTES_MAX: usize = 64 << 10;
/// Most keys in one.
const KEYS_LEN_MAX: usize = 64;

/// What a token may be signed with. Nothing symmetric: a public key must never be taken for a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// As headers name it, to the letter.
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Algorithm::Rs256),
            "ES256" => Some(Algorithm::Es256),
            "EdDSA" => Some(Algorithm::EdDsa),
            _ => None,
        }
    }
}

/// A public key. Its kind says which algorithm it is for; a token cannot choose another.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PublicKey {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256 { point: Vec<u8> },
    Ed25519 { point: Vec<u8> },
}

/// Keys by their names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KeySet {
    named: HashMap<String, PublicKey>,
    /// A set of one key may leave it without a name.
    only: Option<PublicKey>,
}

/// A set that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Too large.
    #[error("larger than {KEY_SET_BYTES_MAX} bytes")]
    TooLarge,
    /// Not a set of keys.
    #[error("not a JSON Web Key Set: {0}")]
    Json(String),
    /// More keys than anyone has.
    #[error("more than {KEYS_LEN_MAX} keys")]
    TooMany,
    /// Nothing that could verify anything.
    #[error("no key for RS256, ES256 or EdDSA in it")]
    Empty,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    used_for: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// The private part, which nobody should have sent.
    d: Option<serde_json::Value>,
}

impl KeySet {
    /// Reads a set. Keys for anything else are passed over, since issuers publish those for encryption beside; a name
    /// that comes twice names none of them.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, KeySetError> {
        if bytes.len() > KEY_SET_BYTES_MAX {
            return Err(KeySetError::TooLarge);
        }
        let document: Document = serde_json::from_slice(bytes).map_err(|e| KeySetError::Json(e.to_string()))?;
        if document.keys.len() > KEYS_LEN_MAX {
            return Err(KeySetError::TooMany);
        }
        let mut set = KeySet::default();
        let (mut seen, mut usable) = (HashMap::<String, u32>::new(), 0);
        for value in document.keys {
            if let Some(kid) = value.get("kid").and_then(|kid| kid.as_str()) {
                *seen.entry(kid.to_owned()).or_default() += 1;
            }
            let Some(jwk) = serde_json::from_value::<Jwk>(value).ok() else { continue };
            let Some(key) = PublicKey::of(&jwk) else { continue };
            usable += 1;
            if let Some(kid) = jwk.kid {
                set.named.insert(kid, key.clone());
            }
            set.only = Some(key);
        }
        set.named.retain(|kid, _| seen.get(kid) == Some(&1));
        if usable != 1 {
            set.only = None;
        }
        match set.named.is_empty() && set.only.is_none() {
            true => Err(KeySetError::Empty),
            false => Ok(set),
        }
    }

    /// The key of a name; of a set with one key, also without a name.
    fn key(&self, kid: Option<&str>) -> Option<&PublicKey> {
        match kid {
            Some(kid) => self.named.get(kid),
            None => self.only.as_ref(),
        }
    }

    /// Whether a name is known.
    pub(super) fn knows(&self, kid: Option<&str>) -> bool {
        self.key(kid).is_some()
    }

    /// Whether a signature is that of the named key, by the algorithm of that key.
    pub(super) fn verify(&self, kid: Option<&str>, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        self.key(kid).is_some_and(|key| key.algorithm() == algorithm && key.verify(signed, signature))
    }
}

impl PublicKey {
    fn of(jwk: &Jwk) -> Option<Self> {
        let bytes = |field: &Option<String>| URL_SAFE_NO_PAD.decode(field.as_deref()?).ok();
        let bytes_of = |field, len| bytes(field).filter(|bytes: &Vec<u8>| bytes.len() == len);
        // One that is out is anyone's.
        if jwk.d.is_some() {
            return None;
        }
        let key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", None) => {
                let (n, e) = (bytes(&jwk.n)?, bytes(&jwk.e)?);
                // ring checks the rest, its oddness among them; what is shorter than it takes is left out at once.
                let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
                if !(2048..=8192).contains(&bits) || n[0] == 0 || e.is_empty() || e.len() > 4 {
                    return None;
                }
                PublicKey::Rsa { n, e }
            }
            ("EC", Some("P-256")) => {
                let point = [vec![4], bytes_of(&jwk.x, 32)?, bytes_of(&jwk.y, 32)?].concat();
                PublicKey::P256 { point }
            }
            ("OKP", Some("Ed25519")) => PublicKey::Ed25519 { point: bytes_of(&jwk.x, 32)? },
            _ => return None,
        };
        let named = jwk.alg.as_deref().is_none_or(|alg| Algorithm::parse(alg) == Some(key.algorithm()));
        let signs = jwk.used_for.as_deref().is_none_or(|used| used == "sig");
        let verifies = jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        (named && signs && verifies).then_some(key)
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            PublicKey::Rsa { .. } => Algorithm::Rs256,
            PublicKey::P256 { .. } => Algorithm::Es256,
            PublicKey::Ed25519 { .. } => Algorithm::EdDsa,
        }
    }

    fn verify(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            PublicKey::Rsa { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature)
            }
            PublicKey::P256 { point } => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature)
            }
            PublicKey::Ed25519 { point } => UnparsedPublicKey::new(&ED25519, point).verify(signed, signature),
        }
        .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7515, appendix A.2: an RSA key and what it signed.
    const RSA_N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yR\
        T-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2\
        R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h\
        4FRWyuXpoQ";
    const RSA_SIGNED: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9p\
        c19yb290Ijp0cnVlfQ";
    const RSA_SIGNATURE: &str = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5ju\
        jGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383L\
        cOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igc\
        N_IoypGlUPQGe77Rw";
    /// Appendix A.3: P-256.
    const EC_X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    const EC_Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
    const EC_SIGNED: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc\
        19yb290Ijp0cnVlfQ";
    const EC_SIGNATURE: &str = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    /// RFC 8037, appendix A.4: Ed25519.
    const ED_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const ED_SIGNED: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    const ED_SIGNATURE: &str = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

    fn set(keys: &str) -> Result<KeySet, KeySetError> {
        KeySet::parse(format!("{{\"keys\":[{keys}]}}").as_bytes())
    }

    fn rsa(more: &str) -> String {
        format!(r#"{{"kty":"RSA","kid":"r","n":"{RSA_N}","e":"AQAB"{more}}}"#)
    }

    fn ec(more: &str) -> String {
        format!(r#"{{"kty":"EC","kid":"e","crv":"P-256","x":"{EC_X}","y":"{EC_Y}"{more}}}"#)
    }

    fn ed(more: &str) -> String {
        format!(r#"{{"kty":"OKP","kid":"d","crv":"Ed25519","x":"{ED_X}"{more}}}"#)
    }

    fn bytes(text: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(text).expect("base64url")
    }

    #[test]
    fn the_examples_of_the_rfcs_verify_by_their_own_algorithm_only() {
        let all = set(&[rsa(""), ec(""), ed("")].join(",")).expect("a set");
        let examples = [
            ("r", Algorithm::Rs256, RSA_SIGNED, RSA_SIGNATURE),
            ("e", Algorithm::Es256, EC_SIGNED, EC_SIGNATURE),
            ("d", Algorithm::EdDsa, ED_SIGNED, ED_SIGNATURE),
        ];
        for (kid, own, signed, signature) in examples {
            for other in ["r", "e", "d", "x", ""] {
                for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] {
                    let fine = all.verify(Some(other), algorithm, signed.as_bytes(), &bytes(signature));
                    assert_eq!(fine, other == kid && algorithm == own, "{kid} {other} {algorithm:?}");
                }
            }
            assert!(!all.verify(None, own, signed.as_bytes(), &bytes(signature)), "{kid}: no name among three");
            let mut flipped = bytes(signature);
            flipped[10] ^= 1;
            assert!(!all.verify(Some(kid), own, signed.as_bytes(), &flipped), "{kid}");
            assert!(!all.verify(Some(kid), own, &signed.as_bytes()[1..], &bytes(signature)), "{kid}");
            for short in [&[][..], &[0; 64], &[0; 256]] {
                assert!(!all.verify(Some(kid), own, signed.as_bytes(), short), "{kid}");
            }
        }
    }

    #[test]
    fn a_set_of_one_needs_no_name() {
        for one in [ec(""), ec("").replace("\"kid\":\"e\",", "")] {
            let set = set(&one).expect("a set");
            assert!(set.verify(None, Algorithm::Es256, EC_SIGNED.as_bytes(), &bytes(EC_SIGNATURE)));
            assert!(!set.knows(Some("other")));
        }
    }

    #[test]
    fn keys_for_anything_else_are_passed_over() {
        for other in [
            rsa(r#","alg":"RS512""#),
            rsa(r#","alg":"HS256""#),
            rsa(r#","use":"enc""#),
            rsa(r#","key_ops":["encrypt"]"#),
            rsa(r#","d":"AQAB""#),
            rsa(r#","crv":"P-256""#),
            ec(r#","alg":"ES384""#),
            ec(r#","alg":"none""#),
            ec("").replace("P-256", "P-384"),
            ec("").replace(EC_Y, "x_FE"),
            ed("").replace("Ed25519", "X25519"),
            ed("").replace("OKP", "oct"),
            r#"{"kty":"oct","kid":"h","k":"c2VjcmV0"}"#.into(),
            rsa("").replace(RSA_N, "AQAB"),
            rsa("").replace(RSA_N, &format!("AA{RSA_N}")),
            rsa("").replace(RSA_N, RSA_N.trim_end_matches('Q')),
            rsa("").replace("\"AQAB\"", "\"\""),
            r#"{"kid":"x"}"#.into(),
            "7".into(),
        ] {
            assert_eq!(set(&other), Err(KeySetError::Empty), "{other}");
            let one = ed("").replace("\"d\"", "\"z\"");
            assert_eq!(set(&format!("{other},{one}")).expect("one is left").named.len(), 1, "{other}");
        }
        assert!(set(&rsa(r#","alg":"RS256","use":"sig","key_ops":["verify"]"#)).is_ok());
    }

    #[test]
    fn a_name_that_comes_twice_is_nobodys() {
        let twice = set(&[ec(""), ed("").replace("\"d\"", "\"e\""), rsa("")].join(",")).expect("a set");
        assert!(!twice.knows(Some("e")) && twice.knows(Some("r")));
        // Not even where only one of them can verify anything.
        let hidden = set(&[ec(""), r#"{"kty":"oct","kid":"e","k":"AA"}"#.into(), rsa("")].join(",")).expect("a set");
        assert!(!hidden.knows(Some("e")));
    }

    #[test]
    fn sets_are_bounded() {
        assert_eq!(set(&vec![ec(""); KEYS_LEN_MAX + 1].join(",")), Err(KeySetError::TooMany));
        assert_eq!(KeySet::parse(&[b' '; KEY_SET_BYTES_MAX + 1]), Err(KeySetError::TooLarge));
        for bad in ["", "[]", "{}", "{\"keys\":{}}", "<html>"] {
            assert!(matches!(KeySet::parse(bad.as_bytes()), Err(KeySetError::Json(_))), "{bad}");
        }
        assert_eq!(set(""), Err(KeySetError::Empty));
    }
}
