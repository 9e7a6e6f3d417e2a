//! Everybody there is, at one moment: never changed, only replaced as a whole, so that requests read it without a lock.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use subtle::{Choice, ConstantTimeEq};
use weir_runtime::TenantId;

use super::{
    Account, ApiKey, AuthMethod, Caller, Cidr, Denied, KeyRow, Pepper, PlainKey, Role, SecretHash, Standing, TenantRow,
    api_key::visible_of,
};
use crate::keys::{KEY_BYTES_MAX, KeyHash};

/// Keys of all tenants together: some 100 MB.
pub const KEYS_LEN_MAX: usize = 200_000;
/// What a client that is the operator's pays and is called.
const OPERATOR: &str = "operator";

/// A tenant, as requests meet it.
#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) id: Arc<str>,
    pub(super) number: TenantId,
    pub(super) standing: Standing,
    pub(super) models: Option<Arc<BTreeSet<String>>>,
    pub(super) ip_allow: Vec<Cidr>,
    pub(super) account: Arc<Account>,
}

/// A key's owner and its use.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) caller: Caller,
    pub(super) tenant: Arc<Tenant>,
    revoked: bool,
    used: Arc<Used>,
}

/// When a key was last used, and up to when that was recorded. Lives on from one snapshot to the next.
#[derive(Debug)]
struct Used {
    at_us: AtomicI64,
    recorded_us: AtomicI64,
}

/// Everybody.
#[derive(Debug)]
pub struct Snapshot {
    /// By the visible part of the id.
    keys: HashMap<Box<str>, (SecretHash, Entry)>,
    /// By a keyed hash of the SHA-256: nobody can choose two texts that meet in the map.
    plain: HashMap<[u8; 32], (KeyHash, Entry)>,
    tenants: HashMap<Box<str>, Arc<Tenant>>,
    domains: HashMap<Box<str>, Arc<Tenant>>,
    operator: Arc<Tenant>,
    pepper: Pepper,
}

/// Rows that contradict each other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// More keys than [`KEYS_LEN_MAX`].
    #[error("more than {KEYS_LEN_MAX} keys")]
    TooMany,
    /// A key's id has another form.
    #[error("`{}` is not a key's id", .0.escape_debug())]
    BadId(String),
    /// One key cannot name two callers.
    #[error("key `{}` is there already", .0.escape_debug())]
    Twice(String),
    /// Its tenant is not there.
    #[error("key `{}` is of a tenant that does not exist", .0.escape_debug())]
    NoTenant(String),
    /// Two tenants with one name, number or domain; or a tenant with the operator's number.
    #[error("tenant `{}` is there already", .0.escape_debug())]
    TenantTwice(String),
    /// A role of operators in a tenant's key, or the other way round.
    #[error("key `{}` has a role that its tenant cannot have", .0.escape_debug())]
    RoleOfOthers(String),
}

impl Snapshot {
    /// Nobody.
    pub fn empty(pepper: Pepper) -> Self {
        Snapshot::build(pepper, Vec::new(), Vec::new(), Vec::new(), None).expect("nobody contradicts nobody")
    }

    /// Everybody in these rows. What `previous` knows of last uses is kept.
    pub fn build(
        pepper: Pepper,
        tenants: Vec<TenantRow>,
        keys: Vec<KeyRow>,
        plain: Vec<PlainKey>,
        previous: Option<&Snapshot>,
    ) -> Result<Self, SnapshotError> {
        if keys.len().saturating_add(plain.len()) > KEYS_LEN_MAX {
            return Err(SnapshotError::TooMany);
        }
        let operator = Arc::new(Tenant {
            id: OPERATOR.into(),
            number: TenantId::OPERATOR,
            standing: Standing::Active,
            models: None,
            ip_allow: Vec::new(),
            account: Arc::default(),
        });
        let mut snapshot = Snapshot {
            keys: HashMap::with_capacity(keys.len()),
            plain: HashMap::with_capacity(plain.len()),
            tenants: HashMap::with_capacity(tenants.len()),
            domains: HashMap::new(),
            operator: operator.clone(),
            pepper,
        };
        let mut numbers = HashMap::from([(TenantId::OPERATOR, operator)]);
        for row in tenants {
            snapshot.add_tenant(row, &mut numbers)?;
        }
        for row in keys {
            snapshot.add_key(row, &numbers, previous)?;
        }
        for row in plain {
            snapshot.add_plain(row, &numbers, previous)?;
        }
        Ok(snapshot)
    }

    fn add_tenant(
        &mut self,
        row: TenantRow,
        numbers: &mut HashMap<TenantId, Arc<Tenant>>,
    ) -> Result<(), SnapshotError> {
        let twice = || SnapshotError::TenantTwice(row.id.clone());
        let tenant = Arc::new(Tenant {
            id: row.id.as_str().into(),
            number: row.number,
            standing: row.standing.clone(),
            models: row.models.clone().map(Arc::new),
            ip_allow: row.ip_allow.clone(),
            account: Arc::new(row.account.clone()),
        });
        if numbers.insert(row.number, tenant.clone()).is_some() {
            return Err(twice());
        }
        if let Some(domain) = &row.domain
            && self.domains.insert(domain.to_ascii_lowercase().into(), tenant.clone()).is_some()
        {
            return Err(twice());
        }
        match self.tenants.insert(row.id.as_str().into(), tenant) {
            Some(_) => Err(twice()),
            None => Ok(()),
        }
    }

    fn add_key(
        &mut self,
        row: KeyRow,
        numbers: &HashMap<TenantId, Arc<Tenant>>,
        previous: Option<&Snapshot>,
    ) -> Result<(), SnapshotError> {
        let visible: Box<str> = visible_of(&row.id).ok_or_else(|| SnapshotError::BadId(row.id.clone()))?.into();
        let tenant = owner(numbers, row.tenant, row.role, &row.id)?;
        let models = match (&tenant.models, row.models) {
            (all, None) => all.clone(),
            (None, Some(own)) => Some(Arc::new(own)),
            (Some(all), Some(own)) => Some(Arc::new(own.intersection(all).cloned().collect())),
        };
        let caller = Caller {
            account: tenant.account.clone(),
            models,
            scopes: row.scopes.and(row.role.scopes()),
            credential: row.id.as_str().into(),
            expires_us: row.expires_us,
            ..Caller::with_role(tenant.number, &tenant.id, row.role)
        };
        let used = previous.and_then(|previous| previous.keys.get(&visible)).map(|(_, entry)| entry.used.clone());
        let used = used.unwrap_or_else(|| Used::at(row.last_used_us));
        let entry = Entry { caller, tenant, revoked: row.revoked_us.is_some(), used };
        match self.keys.insert(visible, (row.hash, entry)) {
            Some(_) => Err(SnapshotError::Twice(row.id)),
            None => Ok(()),
        }
    }

    fn add_plain(
        &mut self,
        row: PlainKey,
        numbers: &HashMap<TenantId, Arc<Tenant>>,
        previous: Option<&Snapshot>,
    ) -> Result<(), SnapshotError> {
        let tenant = owner(numbers, row.tenant, row.role, &row.name)?;
        let caller = Caller {
            account: tenant.account.clone(),
            models: tenant.models.clone(),
            // Enough of the hash to find its line in the file, and no more.
            credential: format!("sha256:{}", &row.hash.hex()[..8]).into(),
            ..Caller::with_role(tenant.number, &tenant.id, row.role)
        };
        let place = self.place(&row.hash);
        let used = previous.and_then(|previous| previous.plain.get(&place)).map(|(_, entry)| entry.used.clone());
        let entry = Entry { caller, tenant, revoked: false, used: used.unwrap_or_else(|| Used::at(None)) };
        match self.plain.insert(place, (row.hash, entry)) {
            Some(_) => Err(SnapshotError::Twice(row.name)),
            None => Ok(()),
        }
    }

    fn place(&self, hash: &KeyHash) -> [u8; 32] {
        self.pepper.hash("weir plain key v1", &[hash.bytes()])
    }

    /// Whose key this is. Unknown, wrong, revoked and expired all read alike, and cost alike: all keys are looked for by
    /// their hash, and those of Weir's own form by their id before, with one comparison in constant time each. A key in
    /// the configuration may be any text, and so have that form, too.
    pub(super) fn key(&self, text: &[u8], now_us: i64) -> Option<&Entry> {
        let entry = self.by_id(text).or_else(|| self.by_hash(text))?;
        let ended = entry.revoked || entry.caller.expires_us.is_some_and(|end| now_us >= end);
        (!ended).then_some(entry)
    }

    fn by_id(&self, text: &[u8]) -> Option<&Entry> {
        let key = ApiKey::parse(text)?;
        let hash = key.hash(&self.pepper);
        let found = self.keys.get(key.visible());
        // What is not there is compared, too: with itself, which says nothing.
        known(found.map_or(&hash, |(known, _)| known).matches(&hash), found.map(|(_, entry)| entry))
    }

    fn by_hash(&self, text: &[u8]) -> Option<&Entry> {
        if text.len() > KEY_BYTES_MAX {
            return None;
        }
        let hash = KeyHash::of(text);
        let found = self.plain.get(&self.place(&hash));
        known(found.map_or(&hash, |(known, _)| known).matches(&hash), found.map(|(_, entry)| entry))
    }

    /// Whether a caller that was let in before still is somebody: its key is there and its tenant may work.
    pub(super) fn still(&self, caller: &Caller) -> Result<(), Denied> {
        let tenant = match caller.tenant {
            TenantId::OPERATOR => &self.operator,
            _ => self.tenants.get(&*caller.name).ok_or(Denied::Unknown)?,
        };
        match &tenant.standing {
            Standing::Active => {}
            Standing::Pending(why) => return Err(Denied::Pending(why.clone())),
            Standing::Suspended(why) => return Err(Denied::Suspended(why.clone())),
        }
        let there = match (caller.method, visible_of(&caller.credential)) {
            // Its issuer answers for it until it ends.
            (AuthMethod::Jwt, _) => true,
            (AuthMethod::ApiKey, Some(visible)) => self.keys.get(visible).is_some_and(|(_, entry)| !entry.revoked),
            // Few, and asked for only when something has changed.
            (AuthMethod::ApiKey, None) => self.plain.values().any(|(_, entry)| {
                (&entry.caller.credential, entry.caller.tenant) == (&caller.credential, caller.tenant)
            }),
        };
        if there { Ok(()) } else { Err(Denied::Unknown) }
    }

    /// A tenant by the name that tokens carry.
    pub(super) fn tenant(&self, id: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(id)
    }

    /// A tenant by a host name of its own.
    pub(super) fn domain(&self, host: &str) -> Option<&Arc<Tenant>> {
        self.domains.get(host.to_ascii_lowercase().as_str())
    }

    /// Whether any tenant has a host name of its own.
    pub(super) fn has_domains(&self) -> bool {
        !self.domains.is_empty()
    }

    pub(super) fn operator(&self) -> &Arc<Tenant> {
        &self.operator
    }

    /// The pepper its hashes are made with.
    pub fn pepper(&self) -> &Pepper {
        &self.pepper
    }

    /// Keys by id that were used since the last call, each with when, for one write of all: at most one entry per key
    /// however often it is used. Keys from files are not in it: no store knows them.
    pub fn take_uses(&self) -> Vec<(Arc<str>, i64)> {
        let entries = self.keys.values().map(|(_, entry)| entry);
        let fresh = entries.filter_map(|entry| {
            let at = entry.used.at_us.load(Ordering::Relaxed);
            let before = entry.used.recorded_us.swap(at, Ordering::Relaxed);
            (at > before).then(|| (entry.caller.credential.clone(), at))
        });
        fresh.collect()
    }
}

fn owner(
    numbers: &HashMap<TenantId, Arc<Tenant>>,
    tenant: TenantId,
    role: Role,
    key: &str,
) -> Result<Arc<Tenant>, SnapshotError> {
    let found = numbers.get(&tenant).ok_or_else(|| SnapshotError::NoTenant(key.to_owned()))?;
    let of_operators = matches!(role, Role::Operator | Role::Auditor);
    match of_operators == (tenant == TenantId::OPERATOR) {
        true => Ok(found.clone()),
        false => Err(SnapshotError::RoleOfOthers(key.to_owned())),
    }
}

fn known(matches: Choice, entry: Option<&Entry>) -> Option<&Entry> {
    let found = matches & u8::from(entry.is_some()).ct_eq(&1);
    entry.filter(|_| bool::from(found))
}

impl Entry {
    /// Notes that the key was used. A request that is refused is no use.
    pub(super) fn used(&self, now_us: i64) {
        self.used.at_us.fetch_max(now_us, Ordering::Relaxed);
    }
}

impl Used {
    fn at(at_us: Option<i64>) -> Arc<Self> {
        let at = at_us.unwrap_or(i64::MIN);
        Arc::new(Used { at_us: AtomicI64::new(at), recorded_us: AtomicI64::new(at) })
    }
}

impl Tenant {
    /// The caller a token of this tenant speaks for.
    pub(super) fn bearer(&self, role: Role) -> Caller {
        Caller {
            account: self.account.clone(),
            models: self.models.clone(),
            method: AuthMethod::Jwt,
            ..Caller::with_role(self.number, &self.id, role)
        }
    }
}

#[cfg(test)]
mod tests;
