//! A token's text, taken apart: three parts in base64url, of which two are JSON objects. Nothing here is believed yet.

use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::Value;

use super::Algorithm;

/// Longest token that is looked at.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Longest name of a key.
const KID_BYTES_MAX: usize = 256;

/// What a token claims.
pub(super) type Claims = BTreeMap<String, Value>;

/// A token, not verified.
#[derive(Debug)]
pub(super) struct Compact<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) claims: Claims,
    /// What the signature is of.
    pub(super) signed: &'a [u8],
    pub(super) signature: Vec<u8>,
}

/// Why a token is not taken apart; for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::identity) enum Malformed {
    #[error("longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    #[error("not three parts in base64url")]
    Parts,
    #[error("a part is no JSON object, or names something twice")]
    Json,
    #[error("the algorithm is none of RS256, ES256 and EdDSA")]
    Algorithm,
    #[error("the name of the key is no short text")]
    Kid,
    #[error("the header brings or points to a key of its own")]
    OwnKey,
    #[error("the header asks for something that is not carried out (crit, b64, zip, cty)")]
    Critical,
    #[error("the type is not that of an access token")]
    Type,
}

impl<'a> Compact<'a> {
    pub(super) fn parse(text: &'a [u8]) -> Result<Self, Malformed> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        let mut parts = text.split(|byte| *byte == b'.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Malformed::Parts);
        };
        let signed = &text[..header.len() + 1 + claims.len()];
        let (header, claims) = (object(header)?, object(claims)?);
        let kid = kid(&header)?;
        let algorithm = algorithm(&header)?;
        Ok(Compact { algorithm, kid, claims, signed, signature: decoded(signature)? })
    }
}

/// Strict: no padding, no other alphabet, no spare bits. Of two texts that mean the same, one is not a token.
fn decoded(part: &[u8]) -> Result<Vec<u8>, Malformed> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Malformed::Parts)
}

fn object(part: &[u8]) -> Result<Claims, Malformed> {
    let Once(object) = serde_json::from_slice(&decoded(part)?).map_err(|_| Malformed::Json)?;
    Ok(object)
}

/// RFC 8725: sections 3.1 (algorithms), 3.9 to 3.11 (keys of the token's own, types).
fn algorithm(header: &Claims) -> Result<Algorithm, Malformed> {
    if ["jwk", "jku", "x5u", "x5c"].iter().any(|name| header.contains_key(*name)) {
        return Err(Malformed::OwnKey);
    }
    if ["crit", "b64", "zip", "cty", "enc"].iter().any(|name| header.contains_key(*name)) {
        return Err(Malformed::Critical);
    }
    if let Some(kind) = header.get("typ") {
        let kind = kind.as_str().unwrap_or_default();
        let kind =
            kind.get(..12).filter(|start| start.eq_ignore_ascii_case("application/")).map_or(kind, |_| &kind[12..]);
        if !["JWT", "at+jwt"].iter().any(|known| known.eq_ignore_ascii_case(kind)) {
            return Err(Malformed::Type);
        }
    }
    header.get("alg").and_then(Value::as_str).and_then(Algorithm::parse).ok_or(Malformed::Algorithm)
}

fn kid(header: &Claims) -> Result<Option<String>, Malformed> {
    match header.get("kid") {
        None => Ok(None),
        Some(Value::String(kid)) if (1..=KID_BYTES_MAX).contains(&kid.len()) => Ok(Some(kid.clone())),
        Some(_) => Err(Malformed::Kid),
    }
}

/// An object that names nothing twice: two readers would not agree on which one counts.
struct Once(Claims);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Claims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
                let mut claims = Claims::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if claims.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name comes twice"));
                    }
                }
                Ok(claims)
            }
        }
        source.deserialize_map(Names).map(Once)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(header), part(claims), part("signature"))
    }

    fn parse(text: &str) -> Result<(Algorithm, Option<String>), Malformed> {
        Compact::parse(text.as_bytes()).map(|token| (token.algorithm, token.kid))
    }

    #[test]
    fn a_token_is_taken_apart() {
        let text = token(r#"{"alg":"ES256","kid":"k","typ":"JWT","x5t":"ignored"}"#, r#"{"sub":"a"}"#);
        let taken = Compact::parse(text.as_bytes()).expect("a token");
        assert_eq!((taken.algorithm, taken.kid.as_deref()), (Algorithm::Es256, Some("k")));
        assert_eq!(taken.claims["sub"], "a");
        assert_eq!(taken.signature, b"signature");
        assert_eq!(taken.signed, &text.as_bytes()[..text.rfind('.').expect("dots")]);
    }

    #[test]
    fn headers_that_mean_trouble_are_refused() {
        for (header, reason) in [
            (r#"{"alg":"none"}"#, Malformed::Algorithm),
            (r#"{"alg":"None"}"#, Malformed::Algorithm),
            (r#"{"alg":"HS256"}"#, Malformed::Algorithm),
            (r#"{"alg":"HS512"}"#, Malformed::Algorithm),
            (r#"{"alg":"RS1"}"#, Malformed::Algorithm),
            (r#"{"alg":"RS384"}"#, Malformed::Algorithm),
            (r#"{"alg":"PS256"}"#, Malformed::Algorithm),
            (r#"{"alg":"ES384"}"#, Malformed::Algorithm),
            (r#"{"alg":"es256"}"#, Malformed::Algorithm),
            (r#"{"alg":["ES256"]}"#, Malformed::Algorithm),
            (r#"{"alg":null}"#, Malformed::Algorithm),
            (r#"{}"#, Malformed::Algorithm),
            (r#"{"alg":"ES256","alg":"none"}"#, Malformed::Json),
            (r#"["ES256"]"#, Malformed::Json),
            (r#""ES256""#, Malformed::Json),
            (r#"{"alg":"ES256"} "#, Malformed::Algorithm), // Replaced below: blanks are JSON.
            (r#"{"alg":"ES256"}{}"#, Malformed::Json),
            (r#"{"alg":"ES256","jwk":{}}"#, Malformed::OwnKey),
            (r#"{"alg":"ES256","jku":"https://evil.example/keys"}"#, Malformed::OwnKey),
            (r#"{"alg":"ES256","x5u":"https://evil.example/cert"}"#, Malformed::OwnKey),
            (r#"{"alg":"ES256","x5c":["MII"]}"#, Malformed::OwnKey),
            (r#"{"alg":"ES256","crit":["exp"]}"#, Malformed::Critical),
            (r#"{"alg":"ES256","crit":[]}"#, Malformed::Critical),
            (r#"{"alg":"ES256","b64":false}"#, Malformed::Critical),
            (r#"{"alg":"ES256","zip":"DEF"}"#, Malformed::Critical),
            (r#"{"alg":"ES256","enc":"A128GCM"}"#, Malformed::Critical),
            (r#"{"alg":"ES256","cty":"JWT"}"#, Malformed::Critical),
            (r#"{"alg":"ES256","kid":7}"#, Malformed::Kid),
            (r#"{"alg":"ES256","kid":""}"#, Malformed::Kid),
            (r#"{"alg":"ES256","kid":null}"#, Malformed::Kid),
            (r#"{"alg":"ES256","typ":"dpop+jwt"}"#, Malformed::Type),
            (r#"{"alg":"ES256","typ":"logout+jwt"}"#, Malformed::Type),
            (r#"{"alg":"ES256","typ":1}"#, Malformed::Type),
        ] {
            let expected = if header.ends_with(' ') { Ok((Algorithm::Es256, None)) } else { Err(reason) };
            assert_eq!(parse(&token(header, "{}")), expected, "{header}");
        }
        let long = format!(r#"{{"alg":"ES256","kid":"{}"}}"#, "k".repeat(KID_BYTES_MAX + 1));
        assert_eq!(parse(&token(&long, "{}")), Err(Malformed::Kid));
        for typ in ["jwt", "JWT", "at+jwt", "application/at+jwt", "application/JWT"] {
            assert!(parse(&token(&format!(r#"{{"alg":"EdDSA","typ":"{typ}"}}"#), "{}")).is_ok(), "{typ}");
        }
    }

    #[test]
    fn other_forms_are_no_tokens() {
        let good = token(r#"{"alg":"ES256"}"#, "{}");
        assert!(parse(&good).is_ok());
        let (head, rest) = good.split_once('.').expect("dots");
        for bad in [
            String::new(),
            ".".into(),
            "..".into(),
            format!("{head}.{rest}.x"),
            format!("{head}.{rest}.x.y"),
            head.into(),
            format!("{head}=.{rest}"),
            format!("{head} .{rest}"),
            format!("{good}="),
            format!("{good}+"),
            format!("{good}\u{e9}"),
            // JSON serialisation is never read.
            r#"{"payload":"e30","signatures":[]}"#.into(),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
        let twice = token(r#"{"alg":"ES256"}"#, r#"{"exp":1,"exp":2}"#);
        assert_eq!(parse(&twice), Err(Malformed::Json));
        assert_eq!(parse(&"a".repeat(TOKEN_BYTES_MAX + 1)), Err(Malformed::TooLong));
        let nested = token(r#"{"alg":"ES256"}"#, &format!("{{\"a\":{}1{}}}", "[".repeat(2000), "]".repeat(2000)));
        assert_eq!(parse(&nested), Err(Malformed::Json));
    }
}
