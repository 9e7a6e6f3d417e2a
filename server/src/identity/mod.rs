//! Who is calling, and what they may do.
//!
//! A request brings an API key ([`ApiKey`], or any text whose SHA-256 is in the configuration) or a token of an issuer
//! that the operator named ([`jwt`]). [`Identity::identify`] turns it into a [`Caller`] or a [`Denied`], out of a
//! [`Snapshot`] of everybody there is, which is replaced as a whole and never changed. No store is asked, and for keys and
//! for tokens by known keys nothing is waited for. A token by a key that its issuer is not known to have waits until the
//! issuer was asked: once a minute at most, and all such tokens of an issuer wait for the one answer.
//!
//! * What is nobody's reads the same whatever is wrong with it: unknown, revoked, expired, forged, somebody else's, or
//!   of the other listener. A reason is in the log at most.
//! * Headers about the client count from trusted proxies only ([`origin`]); naming a tenant narrows and never widens.
//! * What a caller may do is its role's scopes and its own, and each route says which one it needs ([`routes`]).
//!
//! This module knows nothing of HTTP answers (`crate::error` does) and makes no decisions about cost.

mod api_key;
mod caller;
mod cidr;
mod exposure;
mod failures;
pub mod jwt;
mod origin;
mod pepper;
mod refusals;
mod role;
pub mod routes;
mod row;
mod scope;
mod secret;
mod snapshot;
mod tls;
mod watched;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use axum::http::{HeaderMap, header};
use tokio::sync::watch;

pub use self::{
    api_key::{ApiKey, SecretHash, is_key_id},
    caller::{AuthMethod, Caller, Wanted, Wider},
    cidr::{Cidr, CidrList},
    exposure::{Cover, Exposed, Peers},
    failures::{BURST, Failures, PER_SECOND},
    jwt::Issuers,
    origin::{HostName, Origin, TenantName, origin},
    pepper::{Pepper, PepperError},
    role::{Door, Role},
    row::{Account, KeyRow, OVERLAP_MAX, PlainKey, RotateError, Standing, TenantRow},
    scope::{Scope, Scopes, UnknownScope},
    secret::{Secret, SecretError, SecretSource},
    snapshot::{KEYS_LEN_MAX, Snapshot, SnapshotError},
    tls::{Tls, TlsError},
    watched::{EVERY, Watched},
};
use self::{
    jwt::{Bearer, TOKEN_BYTES_MAX},
    refusals::{Reason, Refusals},
    snapshot::Tenant,
};

/// Everything that identifying takes.
#[derive(Debug)]
pub struct Identity {
    snapshot: ArcSwap<Snapshot>,
    /// Counts the snapshots, for those who wait for another.
    turn: watch::Sender<u64>,
    issuers: Issuers,
    proxies: CidrList,
    failures: Failures,
    refusals: Refusals,
}

/// Why a request ends here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// It brings no credential.
    Missing,
    /// It has more than one `Authorization` header: two readers could disagree on which one counts.
    Repeated,
    /// The header does not read `Bearer KEY`.
    Malformed,
    /// The credential is nobody's here, for whatever reason.
    Unknown,
    /// Too many of those came from its address: when it may try again.
    TooMany(Duration),
    /// The tenant's clients come from elsewhere.
    Address,
    /// The tenant is suspended: why, if anybody said so.
    Suspended(Option<String>),
    /// The tenant is not served yet: why.
    Pending(String),
    /// A proxy named a tenant that the credential is not for, or none where one of several is needed.
    Confined,
}

/// A moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Microseconds since 1970.
    pub unix_us: i64,
    /// Never goes back.
    pub at: Instant,
}

impl Now {
    /// This one.
    pub fn read() -> Self {
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { unix_us: i64::try_from(age.as_micros()).unwrap_or(i64::MAX), at: Instant::now() }
    }
}

impl Identity {
    /// Of those in a snapshot, and those whom the issuers speak for.
    pub fn new(snapshot: Snapshot, issuers: Issuers, proxies: CidrList) -> Self {
        let failures = Failures::new(Instant::now());
        let (snapshot, turn) = (ArcSwap::from_pointee(snapshot), watch::Sender::new(0));
        Identity { snapshot, turn, issuers, proxies, failures, refusals: Refusals::default() }
    }

    /// Everybody at this moment.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// From the next request on, it is these.
    pub fn replace(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.turn.send_modify(|turn| *turn = turn.wrapping_add(1));
    }

    /// Waits until a caller that was let in would not be any more, because its key was revoked, its file's key changed, or its
    /// tenant may not work; and says why. The end of a key's or token's own time is no such reason.
    pub async fn revoked(&self, caller: &Caller) -> Denied {
        let mut turns = self.turn.subscribe();
        loop {
            turns.mark_unchanged();
            if let Err(denied) = self.snapshot.load().still(caller) {
                return denied;
            }
            if turns.changed().await.is_err() {
                // The sender is here.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The issuers, for whoever keeps their keys fresh.
    pub fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// Where a request over a connection from `peer` comes from.
    pub fn origin(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Origin {
        origin(&self.proxies, peer, headers)
    }

    /// Finds who sent these headers to a listener, over a connection from `peer`.
    pub async fn identify(
        &self,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
        door: Door,
        now: Now,
    ) -> Result<Caller, Denied> {
        let mut token = None;
        let outcome = self.find(headers, peer, door, now, &mut token).await;
        if let Err(denied) = &outcome {
            self.refusals.count(door, Reason::of(denied, token));
        }
        outcome
    }

    /// How many credentials were refused, and why, as Prometheus text.
    pub fn metrics(&self) -> String {
        self.refusals.metrics()
    }

    /// The same, uncounted. What is wrong with a token that is nobody's is left in `token`.
    async fn find(
        &self,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
        door: Door,
        now: Now,
        token: &mut Option<Reason>,
    ) -> Result<Caller, Denied> {
        let credential = bearer(headers)?;
        let origin = origin(&self.proxies, peer, headers);
        let counted = origin.client.or(origin.peer);
        if let Some(outcome) = self.by_key(credential, &origin, door, now) {
            return outcome;
        }
        let wait = counted.and_then(|address| self.failures.wait(address, now.at));
        if !self.issuers.is_empty() && jwt::resembles(credential) {
            // What costs a signature waits; a token that was good from anywhere costs none, as a key does.
            let found = match wait {
                None => Some(self.issuers.verify(credential, now.unix_us).await),
                Some(_) => self.issuers.remembered(credential, now.unix_us),
            };
            match found {
                Some(Ok(bearer)) if bearer.role.door() == door => {
                    if let Some(outcome) = self.by_token(bearer, &origin) {
                        return outcome;
                    }
                    *token = Some(Reason::TokenClaims);
                }
                Some(Ok(_)) => {
                    tracing::debug!("a token of the other listener");
                    *token = Some(Reason::TokenListener);
                }
                Some(Err(reason)) => {
                    tracing::debug!(%reason, "a token was refused");
                    *token = Some(reason.into());
                }
                None => {}
            }
        }
        if let Some(address) = counted {
            self.failures.count(address, now.at);
        }
        Err(wait.map_or(Denied::Unknown, Denied::TooMany))
    }

    /// `None` where the text is no key of this listener.
    fn by_key(&self, text: &[u8], origin: &Origin, door: Door, now: Now) -> Option<Result<Caller, Denied>> {
        let snapshot = self.snapshot.load();
        let entry = snapshot.key(text, now.unix_us).filter(|entry| entry.caller.role.door() == door)?;
        let outcome = admitted(&snapshot, entry.caller.clone(), &entry.tenant, origin);
        if outcome.is_ok() {
            entry.used(now.unix_us);
        }
        Some(outcome)
    }

    /// `None` where the token is for tenants that are not here.
    fn by_token(&self, bearer: Bearer, origin: &Origin) -> Option<Result<Caller, Denied>> {
        let snapshot = self.snapshot.load();
        let mut own: Vec<&Arc<Tenant>> = bearer.tenants.iter().filter_map(|id| snapshot.tenant(id)).collect();
        if matches!(bearer.role, Role::Operator | Role::Auditor) {
            own = vec![snapshot.operator()];
        }
        let tenant = match own.as_slice() {
            [] => return None,
            [one] if bearer.tenants.len() <= 1 => *one,
            several => match named(&snapshot, origin) {
                Ok(Some(named)) => match several.iter().find(|tenant| tenant.number == named.number) {
                    Some(tenant) => *tenant,
                    None => return Some(Err(Denied::Confined)),
                },
                _ => return Some(Err(Denied::Confined)),
            },
        };
        let mut caller = tenant.bearer(bearer.role);
        caller.scopes = bearer.scopes;
        caller.credential = bearer.subject.into();
        caller.expires_us = Some(bearer.expires_us);
        if let Some(models) = bearer.models {
            let both = models.into_iter().filter(|model| caller.may_use(model)).collect();
            caller.models = Some(Arc::new(both));
        }
        Some(admitted(&snapshot, caller, tenant, origin))
    }
}

/// What remains to be asked once the credential is known to be good.
fn admitted(snapshot: &Snapshot, mut caller: Caller, tenant: &Tenant, origin: &Origin) -> Result<Caller, Denied> {
    // The address before anything else: whoever holds a stolen key elsewhere learns no more than that.
    let here = |client: IpAddr| tenant.ip_allow.iter().any(|range| range.contains(client));
    if !tenant.ip_allow.is_empty() && !origin.client.is_some_and(here) {
        return Err(Denied::Address);
    }
    match &tenant.standing {
        Standing::Active => {}
        Standing::Pending(why) => return Err(Denied::Pending(why.clone())),
        Standing::Suspended(why) => return Err(Denied::Suspended(why.clone())),
    }
    match named(snapshot, origin)? {
        None => Ok(caller),
        Some(named) if caller.role.door() == Door::Admin => {
            caller.only = Some(named.number);
            Ok(caller)
        }
        Some(named) if named.number == caller.tenant => Ok(caller),
        Some(_) => Err(Denied::Confined),
    }
}

/// The tenant that a trusted proxy named, by its name or by a host name of its own. One that does not exist reads like
/// one that the caller is not of.
fn named<'a>(snapshot: &'a Snapshot, origin: &Origin) -> Result<Option<&'a Arc<Tenant>>, Denied> {
    let by_host = match &origin.host {
        None => None,
        Some(HostName::One(host)) => snapshot.domain(host),
        // It may stand for any tenant's, unless none has a host name.
        Some(HostName::Unclear) if snapshot.has_domains() => return Err(Denied::Confined),
        Some(HostName::Unclear) => None,
    };
    let by_name = match &origin.tenant {
        None => None,
        Some(TenantName::Unclear) => return Err(Denied::Confined),
        Some(TenantName::One(name)) => Some(snapshot.tenant(name).ok_or(Denied::Confined)?),
    };
    match (by_name, by_host) {
        (Some(name), Some(host)) if name.number != host.number => Err(Denied::Confined),
        (name, host) => Ok(name.or(host)),
    }
}

/// What stands in `Authorization: Bearer KEY`. The scheme is a word in any case (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Result<&[u8], Denied> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (Some(value), None) => value.as_bytes(),
        (None, _) => return Err(Denied::Missing),
        (Some(_), Some(_)) => return Err(Denied::Repeated),
    };
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, credential) = value.split_at_checked(SCHEME.len()).unwrap_or((value, b""));
    let credential = credential.trim_ascii();
    let visible = !credential.is_empty() && credential.iter().all(u8::is_ascii_graphic);
    match scheme.eq_ignore_ascii_case(SCHEME) && visible {
        true if credential.len() <= TOKEN_BYTES_MAX => Ok(credential),
        true => Err(Denied::Unknown),
        false => Err(Denied::Malformed),
    }
}

#[cfg(test)]
mod tests;
