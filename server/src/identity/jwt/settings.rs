//! `[[auth.jwt]]`: an issuer of tokens, and what its claims mean here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use axum::http::Uri;
use serde::{Deserialize, Serialize};

use super::super::{Role, Scopes};

/// Longest leeway for clocks that differ.
pub const LEEWAY_MAX: Duration = Duration::from_secs(30);
/// Audiences of one issuer, and words in each of its tables.
const WORDS_LEN_MAX: usize = 64;

/// One issuer, as it is written in the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JwtTable {
    /// What `iss` must say, to the letter.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// Where the issuer publishes its keys.
    pub jwks_url: Option<String>,
    /// Or a file with them.
    pub jwks_file: Option<PathBuf>,
    /// The claim that names the tenant, or several of which a proxy's header picks one.
    #[serde(default = "tenant_claim")]
    pub tenant_claim: String,
    /// The tenants that the issuer may speak for, `operator` for operators and auditors; without it, all of them. Where
    /// each customer has an issuer of its own, each needs this list: its issuer signs whatever that customer likes.
    pub tenants: Option<Vec<String>>,
    /// The claim that names roles; without it every token is a member's.
    pub role_claim: Option<String>,
    /// What the words in it mean: words that are not here mean nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: BTreeMap<String, String>,
    /// The claim that names scopes; without it a token has all that its role allows.
    pub scopes_claim: Option<String>,
    /// What the words in it mean, where they are not scopes themselves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scopes: BTreeMap<String, Vec<String>>,
    /// The claim that names models; without it a token may use all that its tenant may.
    pub models_claim: Option<String>,
    /// For clocks that differ, in seconds, at most 30.
    pub leeway_seconds: Option<u64>,
    /// Longest time a token may have left, in seconds; it cannot be taken back before.
    pub lifetime_seconds_max: Option<u64>,
    /// Whether `nbf` must be there; it counts either way.
    pub require_nbf: Option<bool>,
}

fn tenant_claim() -> String {
    "tenant".into()
}

/// Where an issuer's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// At an address: https, or http on this machine.
    Url(String),
    /// In a file.
    File(PathBuf),
}

/// The same, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerSettings {
    pub(super) issuer: String,
    pub(super) audiences: BTreeSet<String>,
    pub(super) keys: KeyPlace,
    pub(super) tenant_claim: String,
    pub(super) tenants: Option<BTreeSet<String>>,
    pub(super) role_claim: Option<String>,
    pub(super) roles: BTreeMap<String, Role>,
    pub(super) scopes_claim: Option<String>,
    pub(super) scopes: BTreeMap<String, Scopes>,
    pub(super) models_claim: Option<String>,
    pub(super) leeway_seconds: i64,
    pub(super) lifetime_seconds_max: i64,
    pub(super) require_nbf: bool,
}

impl JwtTable {
    /// Checks everything that can be checked without looking at the keys.
    pub fn checked(&self) -> Result<IssuerSettings, String> {
        let keys = match (&self.jwks_url, &self.jwks_file) {
            (Some(url), None) => KeyPlace::Url(checked_url(url)?),
            (None, Some(file)) => KeyPlace::File(file.clone()),
            _ => return Err("an issuer has either jwks_url or jwks_file".into()),
        };
        if self.issuer.is_empty() {
            return Err("issuer is empty".into());
        }
        let audiences: BTreeSet<String> = self.audiences.iter().cloned().collect();
        if audiences.is_empty() || audiences.len() > WORDS_LEN_MAX || audiences.contains("") {
            return Err(format!(
                "audiences needs 1 to {WORDS_LEN_MAX} names: a token for somebody else must not count here"
            ));
        }
        if self.tenants.as_ref().is_some_and(|names| names.is_empty() || names.contains(&String::new())) {
            return Err("tenants needs at least one name: leave it out to let the issuer speak for all of them".into());
        }
        if self.roles.len().max(self.scopes.len()) > WORDS_LEN_MAX {
            return Err(format!("roles and scopes have at most {WORDS_LEN_MAX} words each"));
        }
        if self.roles.is_empty() != self.role_claim.is_none() {
            return Err("role_claim and roles go together".into());
        }
        let roles = self.roles.iter().map(|(word, role)| {
            let known = Role::parse(role).ok_or_else(|| format!("there is no role `{}`", role.escape_debug()))?;
            Ok((word.clone(), known))
        });
        let scopes = self.scopes.iter().map(|(word, list)| {
            let known = Scopes::parse(list.iter().map(String::as_str)).map_err(|e| e.to_string())?;
            Ok((word.clone(), known))
        });
        let leeway = self.leeway_seconds.unwrap_or(30);
        if leeway > LEEWAY_MAX.as_secs() {
            return Err(format!("leeway_seconds is at most {}", LEEWAY_MAX.as_secs()));
        }
        let lifetime = self.lifetime_seconds_max.unwrap_or(24 * 3600);
        if !(60..=31 * 24 * 3600).contains(&lifetime) {
            return Err("lifetime_seconds_max is a minute to 31 days".into());
        }
        Ok(IssuerSettings {
            issuer: self.issuer.clone(),
            audiences,
            keys,
            tenant_claim: self.tenant_claim.clone(),
            tenants: self.tenants.as_ref().map(|names| names.iter().cloned().collect()),
            role_claim: self.role_claim.clone(),
            roles: roles.collect::<Result<_, String>>()?,
            scopes_claim: self.scopes_claim.clone(),
            scopes: scopes.collect::<Result<_, String>>()?,
            models_claim: self.models_claim.clone(),
            leeway_seconds: leeway as i64,
            lifetime_seconds_max: lifetime as i64,
            require_nbf: self.require_nbf.unwrap_or(true),
        })
    }
}

/// Keys fetched in the clear would be anyone's to replace.
fn checked_url(text: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("jwks_url `{}`: {why}", text.escape_debug());
    let url: Uri = text.parse().map_err(|_| wrong("no address"))?;
    let authority = url.authority().ok_or_else(|| wrong("no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("no user and no password, please"));
    }
    let host = url.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let near = host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback());
    match url.scheme_str() {
        Some("https") => Ok(text.to_owned()),
        Some("http") if near => Ok(text.to_owned()),
        Some("http") => Err(wrong("https is needed, unless it is this machine")),
        _ => Err(wrong("https is needed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(more: &str) -> Result<IssuerSettings, String> {
        let text = format!("issuer = \"https://id.example\"\naudiences = [\"weir\"]\n{more}");
        toml::from_str::<JwtTable>(&text).map_err(|e| e.to_string())?.checked()
    }

    #[test]
    fn a_short_table_has_strict_defaults() {
        let settings = table("jwks_url = \"https://id.example/keys\"").expect("settings");
        assert_eq!(settings.tenant_claim, "tenant");
        assert_eq!((settings.leeway_seconds, settings.lifetime_seconds_max, settings.require_nbf), (30, 86400, true));
        assert!(settings.roles.is_empty());
    }

    #[test]
    fn mistakes_are_refused() {
        const KEYS: &str = "jwks_file = \"k\"\n";
        for bad in [
            "",
            "jwks_url = \"https://a/k\"\njwks_file = \"k\"",
            "jwks_url = \"http://id.example/keys\"",
            "jwks_url = \"http://127.0.0.1.example/keys\"",
            "jwks_url = \"http://127.0.0.1@id.example/keys\"",
            "jwks_url = \"https://user:pass@id.example/keys\"",
            "jwks_url = \"file:///etc/passwd\"",
            "jwks_url = \"ftp://localhost/k\"",
            "jwks_url = \"/keys\"",
            "jwks_url = \"\"",
        ] {
            assert!(table(bad).is_err(), "{bad}");
        }
        for bad in [
            "leeway_seconds = 31",
            "lifetime_seconds_max = 59",
            "role_claim = \"r\"",
            "tenants = []",
            "tenants = [\"\"]",
            "roles = { a = \"member\" }",
            "role_claim = \"r\"\nroles = { a = \"root\" }",
            "scopes_claim = \"s\"\nscopes = { a = [\"everything\"] }",
            "algorithms = [\"none\"]",
        ] {
            assert!(table(&format!("{KEYS}{bad}")).is_err(), "{bad}");
        }
        let no_audience = "issuer = \"i\"\naudiences = []\njwks_file = \"k\"";
        assert!(toml::from_str::<JwtTable>(no_audience).expect("a table").checked().is_err());
    }

    #[test]
    fn this_machine_may_be_asked_in_the_clear() {
        for near in ["http://localhost/k", "http://127.0.0.1:8/k", "http://[::1]:8/k"] {
            assert!(table(&format!("jwks_url = \"{near}\"")).is_ok(), "{near}");
        }
    }
}
