//! Who is calling: a bearer key becomes a [`Caller`], or the request ends here.

use std::{collections::BTreeSet, sync::Arc};

use axum::http::{HeaderMap, header};
use subtle::{ConditionallySelectable, ConstantTimeEq};
use weir_runtime::TenantId;

use crate::{
    error::ApiError,
    keys::{KeyHash, plausible},
};

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who pays.
    pub tenant: TenantId,
    /// The tenant's name, for logs.
    pub name: Arc<str>,
    /// The models it may know of; `None` is all.
    pub models: Option<Arc<BTreeSet<String>>>,
}

impl Caller {
    /// Whether the caller may use (and know of) a model.
    pub fn may_use(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.contains(model))
    }
}

/// Every key there is, as hashes.
#[derive(Debug, Default)]
pub struct KeyRing {
    entries: Vec<(KeyHash, Caller)>,
}

/// Keys of all tenants. The whole ring is compared for every request, so it is kept short.
pub const KEYS_LEN_MAX: usize = 10_000;

impl KeyRing {
    /// Adds a key of a tenant. False when it is there already: one key cannot name two callers.
    pub fn add(&mut self, hash: KeyHash, caller: Caller) -> bool {
        if self.entries.len() >= KEYS_LEN_MAX || self.entries.iter().any(|(known, _)| *known == hash) {
            return false;
        }
        self.entries.push((hash, caller));
        true
    }

    /// Whether a key is somebody's. At start only: it tells by its time.
    pub(crate) fn holds(&self, hash: &KeyHash) -> bool {
        self.entries.iter().any(|(known, _)| known == hash)
    }

    /// Finds who sent these headers.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let key = bearer(headers)?;
        // The same work for every key, known or not: all hashes are compared, none ends the search.
        let hash = KeyHash::of(key);
        let nobody = u32::MAX;
        let mut found = nobody;
        for (index, (known, _)) in (0u32..).zip(&self.entries) {
            found.conditional_assign(&index, known.matches(&hash));
        }
        match bool::from(found.ct_eq(&nobody)) {
            true => Err(ApiError::Unauthenticated("Incorrect API key provided.")),
            false => Ok(self.entries[found as usize].1.clone()),
        }
    }
}

/// The key in `Authorization: Bearer KEY`. The scheme is a word in any case (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Result<&[u8], ApiError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (Some(value), None) => value.as_bytes(),
        (None, _) => {
            return Err(ApiError::Unauthenticated(
                "You didn't provide an API key. Send it in a header: 'Authorization: Bearer YOUR_KEY'.",
            ));
        }
        // Two readers could disagree on which one counts.
        (Some(_), Some(_)) => return Err(ApiError::Unauthenticated("More than one Authorization header.")),
    };
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, key) = value.split_at_checked(SCHEME.len()).unwrap_or((value, b""));
    let key = key.trim_ascii();
    match scheme.eq_ignore_ascii_case(SCHEME) && plausible(key) {
        true => Ok(key),
        false => Err(ApiError::Unauthenticated("The Authorization header must read 'Bearer YOUR_KEY'.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(id: u32, name: &str) -> Caller {
        Caller { tenant: TenantId(id), name: name.into(), models: None }
    }

    fn ring() -> KeyRing {
        let mut ring = KeyRing::default();
        assert!(ring.add(KeyHash::of(b"key-a"), caller(1, "a")));
        assert!(ring.add(KeyHash::of(b"key-a2"), caller(1, "a")));
        assert!(ring.add(KeyHash::of(b"key-b"), caller(2, "b")));
        ring
    }

    fn identify(values: &[&[u8]]) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("authorization", value.to_vec().try_into().expect("header"));
        }
        ring().identify(&headers).map(|c| c.name.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn each_key_names_its_tenant() {
        assert_eq!(identify(&[b"Bearer key-a"]).as_deref(), Ok("a"));
        assert_eq!(identify(&[b"Bearer key-a2"]).as_deref(), Ok("a"));
        assert_eq!(identify(&[b"bearer  key-b "]).as_deref(), Ok("b"));
    }

    #[test]
    fn anything_else_is_nobody() {
        let long = [b"Bearer ".as_slice(), &[b'x'; 4096]].concat();
        let cases: [&[&[u8]]; 11] = [
            &[],
            &[b""],
            &[b"Bearer"],
            &[b"Bearer "],
            &[b"key-a"],
            &[b"Basic key-a"],
            &[b"Bearer key-c"],
            &[b"Bearer key-a key-b"],
            &[b"Bearer key-\xff"],
            &[b"Bearer key-a", b"Bearer key-a"],
            &[&long],
        ];
        for values in cases {
            assert!(identify(values).is_err(), "{values:?}");
        }
    }

    #[test]
    fn an_unknown_key_reads_the_same_as_another() {
        assert_eq!(identify(&[b"Bearer key-"]), identify(&[b"Bearer nothing-like-it"]));
    }

    #[test]
    fn a_key_names_one_caller_only() {
        assert!(!ring().add(KeyHash::of(b"key-a"), caller(2, "b")));
    }

    #[test]
    fn a_list_of_models_hides_all_others() {
        let all = caller(1, "a");
        assert!(all.may_use("anything"));
        let some = Caller { models: Some(Arc::new(BTreeSet::from(["m".to_owned()]))), ..all };
        assert!(some.may_use("m") && !some.may_use("M") && !some.may_use(""));
    }
}
