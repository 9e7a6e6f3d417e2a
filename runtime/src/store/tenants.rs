//! Tenants: who pays. A tenant is never removed, only deleted by status: its number is never given to another, and the ledger
//! names it for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Store, Tx,
    audit::Event,
    change::Change,
    error::StoreError,
    limits::Limits,
    page,
    value::{Row, args},
};

/// Bytes of an id, and of a name, at most.
const ID_LEN_MAX: usize = 64;
const NAME_LEN_MAX: usize = 200;
/// Bytes of any of a tenant's lists and maps, as JSON.
const JSON_LEN_MAX: usize = 16 << 10;
/// A hundred times the price, in millionths.
const MULTIPLIER_PPM_MAX: u64 = 100_000_000;
/// Ten years.
const RETENTION_DAYS_MAX: u32 = 3653;

/// What a tenant may do at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not yet anything.
    Pending,
    /// Everything, for a while.
    Trial,
    /// Everything.
    Active,
    /// Nothing, until somebody says otherwise.
    Suspended,
    /// Nothing, for ever.
    Deleted,
}

impl Status {
    /// As it is stored.
    pub fn word(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Trial => "trial",
            Status::Active => "active",
            Status::Suspended => "suspended",
            Status::Deleted => "deleted",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Status::Pending, Status::Trial, Status::Active, Status::Suspended, Status::Deleted]
            .into_iter()
            .find(|status| status.word() == word)
    }
}

/// What an operator sets of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantSettings {
    /// For people.
    pub name: String,
    /// The host name by which a trusted proxy means it; unique.
    #[serde(default)]
    pub domain: Option<String>,
    /// What it may do.
    pub status: Status,
    /// Why it is pending or suspended; its people are told.
    #[serde(default)]
    pub reason: Option<String>,
    /// Its plan's name.
    pub plan: String,
    /// What is different from the plan.
    #[serde(default)]
    pub overrides: Limits,
    /// The served names it may use; absent is all.
    #[serde(default)]
    pub models: Option<BTreeSet<String>>,
    /// The model it gets where it names none, by what is asked for (`chat`, `embeddings`, ...).
    #[serde(default)]
    pub default_models: BTreeMap<String, String>,
    /// By model, what its price is multiplied by, in millionths; 1,000,000 where absent.
    #[serde(default)]
    pub price_ppm: BTreeMap<String, u64>,
    /// Features that are on or off for it.
    #[serde(default)]
    pub flags: BTreeMap<String, bool>,
    /// Addresses and networks it may come from; empty is anywhere.
    #[serde(default)]
    pub ip_allow: Vec<String>,
    /// Days for which request logs and kept bodies stay; absent is the server's default.
    #[serde(default)]
    pub retention_days: Option<u32>,
    /// It has opted into keeping bodies, for repeats of a request that has ended.
    #[serde(default)]
    pub retain_bodies: bool,
    /// Whatever the platform wants to remember.
    #[serde(default)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

impl TenantSettings {
    /// An active tenant of a plan, with no other wishes.
    pub fn named(name: &str, plan: &str) -> Self {
        TenantSettings {
            name: name.to_owned(),
            domain: None,
            status: Status::Active,
            reason: None,
            plan: plan.to_owned(),
            overrides: Limits::default(),
            models: None,
            default_models: BTreeMap::new(),
            price_ppm: BTreeMap::new(),
            flags: BTreeMap::new(),
            ip_allow: Vec::new(),
            retention_days: None,
            retain_bodies: false,
            metadata: serde_json::Map::new(),
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        check_name("name", &self.name)?;
        let invalid = |field: &str, message: &str| Err(StoreError::invalid(field, message));
        if self.domain.as_ref().is_some_and(|domain| !is_host_name(domain)) {
            return invalid("domain", "must be a host name in lower case, without a port");
        }
        if self.reason.as_ref().is_some_and(|reason| reason.len() > 1000 || reason.chars().any(char::is_control)) {
            return invalid("reason", "must be at most 1000 bytes without control characters");
        }
        if self.price_ppm.values().any(|ppm| *ppm > MULTIPLIER_PPM_MAX) {
            return invalid("price_ppm", "a multiplier is at most 100,000,000 (100 times the price)");
        }
        if let Some(bad) = self.ip_allow.iter().find(|entry| !is_network(entry)) {
            return Err(StoreError::invalid(
                "ip_allow",
                format!("`{bad}` is not an address or a network such as 10.0.0.0/8"),
            ));
        }
        if self.retention_days.is_some_and(|days| days > RETENTION_DAYS_MAX) {
            return invalid("retention_days", "must be at most 3653");
        }
        self.overrides.check().map_err(|e| StoreError::invalid(format!("overrides.{}", e.field), e.message))
    }
}

/// A host name in lower case, without a port (RFC 1123).
pub fn is_host_name(text: &str) -> bool {
    let label = |l: &str| {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        (1..=63).contains(&l.len()) && l.bytes().all(plain) && !l.starts_with('-') && !l.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// What requests, tokens and logs call those who run the server: no tenant may be taken for them.
pub const OPERATOR_NAME: &str = "operator";

/// An address, or one with the length of its prefix, which fits the family. What the server would not read as a range is
/// refused here: a prefix that is not in digits, and bits after it.
fn is_network(text: &str) -> bool {
    let (address, prefix) = match text.split_once('/') {
        Some((_, prefix)) if !prefix.bytes().all(|byte| byte.is_ascii_digit()) => return false,
        Some((address, prefix)) => (address, prefix.parse::<u32>().ok()),
        None => (text, Some(128)),
    };
    let (bits, longest) = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(four)) => (u128::from(four.to_bits()) << 96, 32),
        Ok(IpAddr::V6(six)) => (six.to_bits(), 128),
        Err(_) => return false,
    };
    let plain = !text.contains('/');
    prefix.is_some_and(|prefix| plain || prefix <= longest && bits.checked_shl(prefix).unwrap_or(0) == 0)
}

/// An id: what is safe in a path, a file name, a metric and a terminal.
pub(super) fn check_id(field: &str, id: &str) -> Result<(), StoreError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if id.is_empty() || id.len() > ID_LEN_MAX || !id.chars().all(plain) || id.starts_with('.') {
        return Err(StoreError::invalid(field, "must be 1 to 64 letters, digits and -_. and not begin with a dot"));
    }
    Ok(())
}

/// An id that is nobody else's name.
fn check_tenant_id(id: &str) -> Result<(), StoreError> {
    match id.eq_ignore_ascii_case(OPERATOR_NAME) {
        true => Err(StoreError::invalid("id", "is what those who run the server are called")),
        false => check_id("id", id),
    }
}

/// A name for people: one line.
pub(super) fn check_name(field: &str, name: &str) -> Result<(), StoreError> {
    if name.is_empty() || name.len() > NAME_LEN_MAX || name.chars().any(char::is_control) {
        return Err(StoreError::invalid(field, "must be 1 to 200 bytes without control characters"));
    }
    Ok(())
}

/// A value as JSON text, within bounds.
pub(super) fn json<T: Serialize>(field: &str, value: &T) -> Result<String, StoreError> {
    let text = serde_json::to_string(value).map_err(|e| StoreError::invalid(field, e.to_string()))?;
    if text.len() > JSON_LEN_MAX {
        return Err(StoreError::invalid(field, format!("must be at most {JSON_LEN_MAX} bytes as JSON")));
    }
    Ok(text)
}

/// JSON text of a row, which is as we wrote it or somebody else did.
pub(super) fn from_json<T: DeserializeOwned>(table: &'static str, id: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::corrupt(table, id, e))
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its name in every place.
    pub id: String,
    /// Its number for the scheduler: dense, from 1, never used again.
    pub number: u32,
    /// What the operator has set.
    pub settings: TenantSettings,
    /// Grows by one with each edit.
    pub version: i64,
    /// When it was made.
    pub created_us: i64,
    /// When it was last edited.
    pub updated_us: i64,
}

/// A tenant to be made.
#[derive(Debug, Clone)]
pub struct NewTenant {
    /// Its id, for ever.
    pub id: String,
    /// Everything else.
    pub settings: TenantSettings,
}

/// A row of `tenants`, read in the order of the statements below.
fn tenant(row: &Row) -> Result<Tenant, StoreError> {
    let mut at = row.fields();
    let id = at.text()?;
    let number = at.int()?;
    let number =
        u32::try_from(number).map_err(|_| StoreError::corrupt("tenants", &id, "its number is out of range"))?;
    let (name, domain, status, reason, plan) =
        (at.text()?, at.text_or_none()?, at.text()?, at.text_or_none()?, at.text()?);
    let status = Status::parse(&status).ok_or_else(|| StoreError::corrupt("tenants", &id, "its status is unknown"))?;
    let overrides = from_json("tenants", &id, &at.text()?)?;
    let models = at.text_or_none()?.map(|text| from_json("tenants", &id, &text)).transpose()?;
    let default_models = from_json("tenants", &id, &at.text()?)?;
    let price_ppm = from_json("tenants", &id, &at.text()?)?;
    let flags = from_json("tenants", &id, &at.text()?)?;
    let ip_allow = from_json("tenants", &id, &at.text()?)?;
    let retention_days = at.int_or_none()?.map(u32::try_from).transpose();
    let retention_days = retention_days.map_err(|e| StoreError::corrupt("tenants", &id, e))?;
    let retain_bodies = at.flag()?;
    let metadata = from_json("tenants", &id, &at.text()?)?;
    let settings = TenantSettings {
        name,
        domain,
        status,
        reason,
        plan,
        overrides,
        models,
        default_models,
        price_ppm,
        flags,
        ip_allow,
        retention_days,
        retain_bodies,
        metadata,
    };
    Ok(Tenant { id, number, settings, version: at.int()?, created_us: at.int()?, updated_us: at.int()? })
}

impl Tx {
    /// A tenant by its id, deleted ones among them.
    pub async fn tenant(&mut self, id: &str) -> Result<Tenant, StoreError> {
        let sql = "SELECT id, number, name, domain, status, reason, plan, overrides, models, default_models, price_ppm, flags, \
                   ip_allow, retention_days, retain_bodies, metadata, version, created_us, updated_us FROM tenants \
                   WHERE id = $1";
        let row = self.row(sql, args![id]).await?.ok_or_else(|| StoreError::missing("tenant", id))?;
        tenant(&row)
    }

    /// Tenants in the order of their ids, those after `after`, deleted ones among them.
    pub async fn tenants(&mut self, after: &str, limit: u32) -> Result<Vec<Tenant>, StoreError> {
        let sql = "SELECT id, number, name, domain, status, reason, plan, overrides, models, default_models, price_ppm, flags, \
                   ip_allow, retention_days, retain_bodies, metadata, version, created_us, updated_us FROM tenants \
                   WHERE id > $1 ORDER BY id LIMIT $2";
        self.rows(sql, args![after, page(limit)]).await?.iter().map(tenant).collect()
    }
}

impl Store {
    /// See [`Tx::tenant`].
    pub async fn tenant(&self, id: &str) -> Result<Tenant, StoreError> {
        self.read().await?.tenant(id).await
    }

    /// See [`Tx::tenants`]; `after` is empty for the first page.
    pub async fn tenants(&self, after: &str, limit: u32) -> Result<Vec<Tenant>, StoreError> {
        self.read().await?.tenants(after, limit).await
    }
}

impl Change {
    /// Makes a tenant and gives it the next number.
    pub async fn create_tenant(&mut self, new: &NewTenant) -> Result<Tenant, StoreError> {
        check_tenant_id(&new.id)?;
        let texts = Texts::of(&new.settings)?;
        self.check_fit(&new.settings).await?;
        let number = self.tx().next("tenant").await?;
        let at_us = self.at_us();
        let s = &new.settings;
        let sql = "INSERT INTO tenants (id, number, name, domain, status, reason, plan, overrides, models, default_models, \
                   price_ppm, flags, ip_allow, retention_days, retain_bodies, metadata, version, created_us, updated_us) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 1, $17, $17)";
        let values = args![
            &new.id,
            number,
            &s.name,
            &s.domain,
            s.status.word(),
            &s.reason,
            &s.plan,
            &texts.overrides,
            &texts.models,
            &texts.default_models,
            &texts.price_ppm,
            &texts.flags,
            &texts.ip_allow,
            s.retention_days.map(i64::from),
            s.retain_bodies,
            &texts.metadata,
            at_us,
        ];
        self.tx().execute(sql, values).await.map_err(|e| e.or_exists("tenant", &new.id))?;
        let event = Event::of("tenant.create", "tenant", &new.id).tenant(Some(&new.id)).after(&texts.whole);
        self.record(event).await?;
        let number = u32::try_from(number).map_err(|_| StoreError::invalid("number", "there are too many tenants"))?;
        Ok(Tenant {
            id: new.id.clone(),
            number,
            settings: new.settings.clone(),
            version: 1,
            created_us: at_us,
            updated_us: at_us,
        })
    }

    /// Replaces a tenant's settings; `version` is the one that the caller has read. A deleted tenant stays as it is. What changed of
    /// its status is an action of its own in the log (`tenant.suspend`, ...).
    pub async fn update_tenant(
        &mut self,
        id: &str,
        version: i64,
        settings: &TenantSettings,
    ) -> Result<Tenant, StoreError> {
        let texts = Texts::of(settings)?;
        let before = self.tx().tenant(id).await?;
        if before.version != version {
            return Err(conflict(id, version, before.version));
        }
        if before.settings.status == Status::Deleted {
            return Err(StoreError::invalid("status", "a deleted tenant stays deleted"));
        }
        self.check_fit(settings).await?;
        let at_us = self.at_us();
        let s = settings;
        let sql = "UPDATE tenants SET name = $3, domain = $4, status = $5, reason = $6, plan = $7, overrides = $8, models = $9, \
                   default_models = $10, price_ppm = $11, flags = $12, ip_allow = $13, retention_days = $14, \
                   retain_bodies = $15, metadata = $16, updated_us = $17, version = version + 1 \
                   WHERE id = $1 AND version = $2";
        let values = args![
            id,
            version,
            &s.name,
            &s.domain,
            s.status.word(),
            &s.reason,
            &s.plan,
            &texts.overrides,
            &texts.models,
            &texts.default_models,
            &texts.price_ppm,
            &texts.flags,
            &texts.ip_allow,
            s.retention_days.map(i64::from),
            s.retain_bodies,
            &texts.metadata,
            at_us,
        ];
        if self.tx().execute(sql, values).await.map_err(|e| e.or_exists("tenant", id))? == 0 {
            let found = self.tx().tenant(id).await?.version;
            return Err(conflict(id, version, found));
        }
        let action = match (before.settings.status, settings.status) {
            (old, new) if old == new => "tenant.update",
            (_, Status::Pending) => "tenant.pend",
            (_, Status::Trial) => "tenant.try",
            (_, Status::Active) => "tenant.activate",
            (_, Status::Suspended) => "tenant.suspend",
            (_, Status::Deleted) => "tenant.delete",
        };
        let old = json("settings", &before.settings)?;
        let event = Event::of(action, "tenant", id).tenant(Some(id)).before(&old).after(&texts.whole);
        self.record(event.reason(settings.reason.as_deref())).await?;
        Ok(Tenant { settings: settings.clone(), version: version + 1, updated_us: at_us, ..before })
    }

    /// Gives a tenant another status, for a reason. See [`Change::update_tenant`].
    pub async fn set_status(
        &mut self,
        id: &str,
        version: i64,
        status: Status,
        reason: Option<&str>,
    ) -> Result<Tenant, StoreError> {
        let before = self.tx().tenant(id).await?;
        let settings = TenantSettings { status, reason: reason.map(str::to_owned), ..before.settings };
        self.update_tenant(id, version, &settings).await
    }

    /// The plan exists, and agrees with the overrides.
    async fn check_fit(&mut self, settings: &TenantSettings) -> Result<(), StoreError> {
        let plan = self.tx().plan(&settings.plan).await?;
        let effective = Limits::effective(&plan.limits, &settings.overrides);
        effective.check().map_err(|e| {
            StoreError::invalid(format!("overrides.{}", e.field), format!("with plan `{}`: {}", plan.id, e.message))
        })
    }
}

fn conflict(id: &str, expected: i64, found: i64) -> StoreError {
    StoreError::Conflict { kind: "tenant", id: id.to_owned(), expected, found }
}

/// The settings that are kept as JSON.
struct Texts {
    overrides: String,
    models: Option<String>,
    default_models: String,
    price_ppm: String,
    flags: String,
    ip_allow: String,
    metadata: String,
    /// All of the settings, for the log.
    whole: String,
}

impl Texts {
    fn of(settings: &TenantSettings) -> Result<Self, StoreError> {
        settings.check()?;
        Ok(Texts {
            overrides: json("overrides", &settings.overrides)?,
            models: settings.models.as_ref().map(|models| json("models", models)).transpose()?,
            default_models: json("default_models", &settings.default_models)?,
            price_ppm: json("price_ppm", &settings.price_ppm)?,
            flags: json("flags", &settings.flags)?,
            ip_allow: json("ip_allow", &settings.ip_allow)?,
            metadata: json("metadata", &settings.metadata)?,
            whole: json("settings", settings)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_from_nonsense() {
        for good in ["10.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32", "0.0.0.0/0"] {
            assert!(is_network(good), "{good}");
        }
        for bad in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0",
            "host",
            "10.0.0.0/8/8",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "10.0.0.1/8",
            "2001:db8::1/32",
            "10.0.0.0/+8",
        ] {
            assert!(!is_network(bad), "{bad}");
        }
    }

    #[test]
    fn no_tenant_is_called_as_the_operator_is() {
        for taken in ["operator", "Operator"] {
            assert!(check_tenant_id(taken).is_err(), "{taken}");
        }
        assert!(check_tenant_id("operators").is_ok() && check_tenant_id("a/b").is_err());
    }

    #[test]
    fn host_names_have_no_port_and_no_capitals() {
        for good in ["a.example", "a", "a-1.example"] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["", "a.example:443", "A.example", "a.example.", "-a", "a_b", "https://a", &"x".repeat(64)] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }

    #[test]
    fn ids_are_plain() {
        for good in ["acme", "a-b_c.9", &"x".repeat(64)] {
            assert!(check_id("id", good).is_ok(), "{good}");
        }
        for bad in ["", "..", ".x", "a b", "a/b", "a\n", "é", &"x".repeat(65)] {
            assert!(check_id("id", bad).is_err(), "{bad}");
        }
    }
}
