//! What an operator sets of a tenant, and what may be set.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{error::StoreError, limits::Limits};

/// Bytes of an id, and of a name, at most.
const ID_LEN_MAX: usize = 64;
const NAME_LEN_MAX: usize = 200;
/// Bytes of any of a tenant's lists and maps, as JSON.
const JSON_LEN_MAX: usize = 16 << 10;
/// A hundred times the price, in millionths.
const MULTIPLIER_PPM_MAX: u64 = 100_000_000;
/// Ten years.
const RETENTION_DAYS_MAX: u32 = 3653;

/// What a tenant can have a default model for.
pub const MODEL_KINDS: [&str; 3] = ["chat", "completions", "embeddings"];

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

    pub(super) fn parse(word: &str) -> Option<Self> {
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
    /// The model it gets where it names none, by what is asked for: one of [`MODEL_KINDS`].
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

    pub(super) fn check(&self) -> Result<(), StoreError> {
        check_name("name", &self.name)?;
        let invalid = |field: &str, message: &str| Err(StoreError::invalid(field, message));
        if self.domain.as_ref().is_some_and(|domain| !is_host_name(domain)) {
            return invalid("domain", "must be a host name in lower case, without a port");
        }
        if self.reason.as_ref().is_some_and(|reason| reason.len() > 1000 || reason.chars().any(char::is_control)) {
            return invalid("reason", "must be at most 1000 bytes without control characters");
        }
        if let Some(kind) = self.default_models.keys().find(|kind| !MODEL_KINDS.contains(&kind.as_str())) {
            let message = format!("there is no kind `{kind}`: it is {}", MODEL_KINDS.join(", "));
            return Err(StoreError::invalid("default_models", message));
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
pub(super) fn check_tenant_id(id: &str) -> Result<(), StoreError> {
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
