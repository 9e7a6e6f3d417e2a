//! What a store or a file says about tenants and keys, as plain values; a [`Snapshot`](super::Snapshot) is made of
//! them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use weir_runtime::{TenantId, store::Limits};

use super::{ApiKey, Cidr, Pepper, Role, Scopes, SecretHash};
use crate::keys::KeyHash;

/// Longest time that an old key works beside the new one.
pub const OVERLAP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// A tenant, as far as identity goes.
#[derive(Debug, Clone)]
pub struct TenantRow {
    /// Its name, which tokens carry in their tenant claim.
    pub id: String,
    /// The same, dense.
    pub number: TenantId,
    /// Whether it may be served.
    pub standing: Standing,
    /// The models it may know of; `None` is all.
    pub models: Option<BTreeSet<String>>,
    /// Where its clients come from; empty is everywhere.
    pub ip_allow: Vec<Cidr>,
    /// A host name of its own, in lower case.
    pub domain: Option<String>,
    /// What it has bought.
    pub account: Account,
}

/// What a tenant has bought and wishes, for those who serve its requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Its plan's name; empty where there is no store.
    pub plan: String,
    /// The plan's limits with the tenant's own in their place.
    pub limits: Limits,
    /// The model it gets where it names none, by what is asked for.
    pub default_models: BTreeMap<String, String>,
    /// By model, what its price is multiplied by, in millionths.
    pub price_ppm: BTreeMap<String, u64>,
    /// Features that are on or off for it.
    pub flags: BTreeMap<String, bool>,
    /// Days for which request logs and kept bodies stay.
    pub retention_days: Option<u32>,
    /// It has opted into keeping bodies, for repeats of a request that has ended.
    pub retain_bodies: bool,
}

/// Whether a tenant is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Active,
    /// Not yet: why.
    Pending(String),
    /// Not any more: why, if anybody said so.
    Suspended(Option<String>),
}

/// An API key, as it is stored.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// `wk_` and 16 digits.
    pub id: String,
    /// Whose; 0 is the operator's.
    pub tenant: TenantId,
    /// For people.
    pub name: String,
    /// Of the whole text, under the pepper.
    pub hash: SecretHash,
    /// What it is.
    pub role: Role,
    /// What it may do; what its role does not allow does not count.
    pub scopes: Scopes,
    /// The models it may know of, if fewer than its tenant's.
    pub models: Option<BTreeSet<String>>,
    /// From then on it is nobody's, in microseconds since 1970.
    pub expires_us: Option<i64>,
    /// When it was made.
    pub created_us: i64,
    /// By which credential.
    pub created_by: String,
    /// When it was taken back.
    pub revoked_us: Option<i64>,
    /// When it was last used, to the precision of the batches that record it.
    pub last_used_us: Option<i64>,
    /// The key it takes the place of.
    pub replaces: Option<String>,
}

/// A key known by its SHA-256 only, from a configuration file: any text, `weir-` and 64 hexadecimal digits by custom.
#[derive(Debug, Clone)]
pub struct PlainKey {
    /// SHA-256 of the text.
    pub hash: KeyHash,
    /// Whose; 0 is the operator's.
    pub tenant: TenantId,
    /// For people and logs.
    pub name: String,
    /// What it is.
    pub role: Role,
}

impl KeyRow {
    /// Makes a key that takes the place of this one: the same tenant, role, scopes, models and end. The old one works
    /// for `overlap` more, at most [`OVERLAP_MAX`] and never longer than it would have. Returns the new key, its row,
    /// and when the old one ends. A key that has ended is not rotated.
    pub fn rotate(
        &self,
        pepper: &Pepper,
        now_us: i64,
        overlap: Duration,
        by: &str,
    ) -> Result<(ApiKey, KeyRow, i64), RotateError> {
        if !self.live(now_us) {
            return Err(RotateError::Ended);
        }
        let overlap_us = i64::try_from(overlap.min(OVERLAP_MAX).as_micros()).expect("30 days fit");
        let key = ApiKey::random().map_err(|e| RotateError::NoRandomness(e.to_string()))?;
        let row = KeyRow {
            id: key.id(),
            hash: key.hash(pepper),
            created_us: now_us,
            created_by: by.to_owned(),
            revoked_us: None,
            last_used_us: None,
            replaces: Some(self.id.clone()),
            ..self.clone()
        };
        let ends = now_us.saturating_add(overlap_us);
        Ok((key, row, self.expires_us.map_or(ends, |own| own.min(ends))))
    }

    /// Whether it is neither revoked nor expired. A revocation holds at once, whatever its time says: clocks differ.
    pub fn live(&self, now_us: i64) -> bool {
        self.revoked_us.is_none() && self.expires_us.is_none_or(|end| now_us < end)
    }
}

/// Why a key was not rotated.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotateError {
    /// It is revoked or expired.
    #[error("the key has ended: make a new one")]
    Ended,
    /// The system has no randomness.
    #[error("no random bytes from the system: {0}")]
    NoRandomness(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pepper: &Pepper) -> KeyRow {
        let key = ApiKey::random().expect("key");
        KeyRow {
            id: key.id(),
            tenant: TenantId(3),
            name: "k".into(),
            hash: key.hash(pepper),
            role: Role::TenantAdmin,
            scopes: Role::Member.scopes(),
            models: Some(BTreeSet::from(["m".into()])),
            expires_us: Some(5_000_000),
            created_us: 0,
            created_by: "x".into(),
            revoked_us: None,
            last_used_us: Some(9),
            replaces: None,
        }
    }

    #[test]
    fn a_rotated_key_is_no_wider_and_the_old_one_ends() {
        let pepper = Pepper::random().expect("pepper");
        let old = row(&pepper);
        let (key, new, ends) = old.rotate(&pepper, 1_000_000, Duration::from_secs(2), "wk_admin").expect("rotated");
        assert_eq!((new.id, ends), (key.id(), 3_000_000));
        assert!(bool::from(new.hash.matches(&key.hash(&pepper))));
        assert_eq!((new.tenant, new.role, new.scopes), (old.tenant, old.role, old.scopes));
        assert_eq!((&new.models, new.expires_us), (&old.models, old.expires_us));
        assert_eq!((new.replaces, new.last_used_us, new.created_by), (Some(old.id.clone()), None, "wk_admin".into()));
        // An overlap never makes the old key's life longer.
        let long = old.rotate(&pepper, 1_000_000, Duration::from_secs(1000), "x").expect("rotated").2;
        assert_eq!(long, 5_000_000);
        let endless = KeyRow { expires_us: None, ..old };
        let longest = endless.rotate(&pepper, 0, Duration::MAX, "x").expect("rotated").2;
        assert_eq!(longest, OVERLAP_MAX.as_micros() as i64);
    }

    #[test]
    fn what_has_ended_is_not_rotated() {
        let pepper = Pepper::random().expect("pepper");
        let expired = row(&pepper).rotate(&pepper, 5_000_000, Duration::ZERO, "x");
        assert_eq!(expired.map(|_| ()), Err(RotateError::Ended));
        let revoked = KeyRow { revoked_us: Some(i64::MAX), ..row(&pepper) };
        assert_eq!(revoked.rotate(&pepper, 0, Duration::ZERO, "x").map(|_| ()), Err(RotateError::Ended));
    }
}
