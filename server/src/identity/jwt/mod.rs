//! JSON Web Tokens of issuers that the operator named (RFC 7519, RFC 8725), signed with RS256, ES256 or EdDSA.
//!
//! This is a verifier for one use, over `ring`, which the tree has already for TLS. The library it stands in for,
//! `jsonwebtoken`, needs one of two backends: `rust_crypto` brings some forty crates, an `rsa` with an open advisory
//! (RUSTSEC-2023-0071) among them, and `aws_lc_rs` a second cryptography in C; and most of what RFC 8725 asks for (own
//! keys in headers, names that come twice, one algorithm per key, types of claims) would be written here all the same.
//! What is taken from it are its mistakes: each has a test.
//!
//! A token is believed in this order: it is taken apart ([`compact`]); its `iss` picks the issuer, and that issuer's
//! keys alone count; `kid` is looked up in a map; the key says by which algorithm it verifies; and only then are claims
//! read ([`claims`]).

mod claims;
mod compact;
mod key_set;
mod seen;
mod settings;
mod source;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub(super) use self::claims::{Bearer, Unfit};
pub use self::{
    compact::TOKEN_BYTES_MAX,
    key_set::{Algorithm, KEY_SET_BYTES_MAX, KeySetError},
    settings::{IssuerSettings, JwtTable, KeyPlace, LEEWAY_MAX},
    source::{FetchError, REFRESH_EVERY, REFRESH_PAUSE},
};
use self::{
    compact::{Compact, Malformed},
    seen::Seen,
    source::Source,
};

/// Most issuers.
pub const ISSUERS_LEN_MAX: usize = 16;

/// The issuers whose tokens count.
#[derive(Debug, Default)]
pub struct Issuers {
    list: Vec<Issuer>,
    seen: Seen,
}

#[derive(Debug)]
struct Issuer {
    settings: IssuerSettings,
    source: Source,
    /// Its keys could not be had the last time.
    failing: AtomicBool,
}

/// Why a token does not count; for the log. A client is never told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("no token: {0}")]
    Malformed(#[from] Malformed),
    #[error("an issuer that is not in the configuration")]
    UnknownIssuer,
    #[error("a key that its issuer does not have")]
    UnknownKey,
    #[error("a signature that is not its key's, or by another algorithm than its key's")]
    Signature,
    #[error("a token that does not count here: {0}")]
    Unfit(#[from] Unfit),
}

impl Issuers {
    /// Of these settings, without any keys yet.
    pub fn new(settings: Vec<IssuerSettings>) -> Result<Self, String> {
        if settings.len() > ISSUERS_LEN_MAX {
            return Err(format!("at most {ISSUERS_LEN_MAX} issuers"));
        }
        for (at, one) in settings.iter().enumerate() {
            if settings[..at].iter().any(|other| other.issuer == one.issuer) {
                return Err(format!("two issuers are `{}`", one.issuer.escape_debug()));
            }
        }
        let issuers = settings.into_iter().map(|settings| {
            let source = Source::new(settings.keys.clone());
            Issuer { settings, source, failing: AtomicBool::new(false) }
        });
        Ok(Issuers { list: issuers.collect(), seen: Seen::default() })
    }

    /// Whether nobody's tokens count.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Asks for the keys of those that were not asked for a while; a file is read every time. What does not work is
    /// said in the log, once until it works again.
    pub async fn refresh(&self) {
        for issuer in &self.list {
            let name = &issuer.settings.issuer;
            let pause = match issuer.settings.keys {
                KeyPlace::File(_) => Duration::ZERO,
                KeyPlace::Url(_) => REFRESH_EVERY,
            };
            let outcome = issuer.source.refresh(&issuer.source.keys(), pause).await;
            let failed_before = issuer.failing.swap(outcome.is_err(), Ordering::Relaxed);
            match outcome {
                Ok(true) => tracing::info!(issuer = name, "new keys for tokens"),
                Err(error) if !failed_before => {
                    tracing::warn!(issuer = name, %error, "no keys for tokens: the last good ones stay");
                }
                _ => {}
            }
        }
    }

    /// Whose token this is, if it was found good by its issuer's keys of now not long ago; no signature is looked at.
    pub(super) fn remembered(&self, text: &[u8], now_us: i64) -> Option<Result<Bearer, Refused>> {
        let seen = self.seen.get(text)?;
        let issuer = &self.list[seen.issuer];
        let current = Arc::ptr_eq(&seen.keys, &issuer.source.keys());
        current.then(|| Bearer::of(&seen.claims, &issuer.settings, now_us).map_err(Refused::from))
    }

    /// Whose token this is. A key that is not known may be a new one: then its issuer is asked, at most once a minute.
    pub(super) async fn verify(&self, text: &[u8], now_us: i64) -> Result<Bearer, Refused> {
        if let Some(remembered) = self.remembered(text, now_us) {
            return remembered;
        }
        let token = Compact::parse(text)?;
        let named = token.claims.get("iss").and_then(|issuer| issuer.as_str());
        let at = self.list.iter().position(|issuer| Some(issuer.settings.issuer.as_str()) == named);
        let at = at.ok_or(Refused::UnknownIssuer)?;
        let issuer = &self.list[at];
        let (kid, mut keys) = (token.kid.as_deref(), issuer.source.keys());
        if !keys.knows(kid) {
            match issuer.source.refresh(&keys, REFRESH_PAUSE).await {
                Ok(changed) => keys = if changed { issuer.source.keys() } else { keys },
                Err(error) => tracing::warn!(issuer = issuer.settings.issuer, %error, "no new keys for tokens"),
            }
        }
        if !keys.knows(kid) {
            return Err(Refused::UnknownKey);
        }
        if !keys.verify(kid, token.algorithm, token.signed, &token.signature) {
            return Err(Refused::Signature);
        }
        let bearer = Bearer::of(&token.claims, &issuer.settings, now_us)?;
        self.seen.put(text, at, keys, token.claims);
        Ok(bearer)
    }
}

/// Whether a text has the form of a token: two dots.
pub(super) fn resembles(text: &[u8]) -> bool {
    text.iter().filter(|byte| **byte == b'.').count() == 2
}
